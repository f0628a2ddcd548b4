"""The arguments of low-rank attention, checked."""

from __future__ import annotations

from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, float64
from refattn._core.checks import check_array, check_flag, check_integer


def projections(
    function: str, key_projection: Array, value_projection: Array | None, key: Array, xp: Namespace
) -> tuple[Array, Array]:
    """E and F, each (S, R) or (Hk, 1, S, R), in float64."""
    E = _projection(function, "key_projection", key_projection, key, xp)
    F = E if value_projection is None else _projection(function, "value_projection", value_projection, key, xp)
    if E.shape[-1] != F.shape[-1]:
        raise ValueError(
            f"{function}: key_projection and value_projection must have the same rank R (axis -1); got {E.shape[-1]} "
            f"and {F.shape[-1]}."
        )
    return E, F


def check_landmarks(
    function: str, landmarks: object, iterations: object, coupled: object, lengths: tuple[int, int]
) -> tuple[int, int, bool]:
    """How many landmarks and steps there are, and whether matrices begin together."""
    steps, together = check_integer(function, "iterations", iterations), check_flag(function, "coupled", coupled)
    M, (L, S) = check_integer(function, "landmarks", landmarks, least=1), lengths
    if min(L, S) < M:
        raise ValueError(
            f"{function}: landmarks must not be more than the queries or keys; got {M} for L={L} and S={S}."
        )
    return M, steps, together


def _projection(function: str, name: str, projection: Array, key: Array, xp: Namespace) -> Array:
    """A projection (S, R), or (Hk, 1, S, R), in float64."""
    check_array(function, name, projection, FLOATS)
    array_namespace(function, key=key, **{name: projection})
    shape, Hk, S = tuple(projection.shape), key.shape[-3], key.shape[-2]
    if shape[:-1] not in ((S,), (Hk, S)) or 0 in shape:
        raise ValueError(
            f"{function}: {name} must have shape (S, R) or (Hk, S, R) with S={S}, Hk={Hk}, and S and R at least 1; got "
            f"{shape}."
        )
    wide = float64(projection, xp)
    return wide if len(shape) == 2 else xp.expand_dims(wide, axis=-3)
