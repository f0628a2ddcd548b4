"""Rotary position embedding, and the angles that it turns by."""

from __future__ import annotations

import numpy as np

from refattn._core.anchors import integers
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, device, float64, quiet, round_to, taken
from refattn._core.checks import check_array, check_flag, check_integer, check_output_dtype, check_real


@quiet
def rotary_embedding(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    positions: Array | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    dtype: object = None,
) -> Array:
    """Rotary position embedding: pairs of features turned by angles that grow with the position.

        y_a = cos x_a - sin x_b
        y_b = sin x_a + cos x_b

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        Queries or keys; any real dtype.
    cos, sin : array, shape (..., L, R/2), or (P, R/2) beside `positions`
        Cosines and sines of the angles, the same for all heads; axes before L broadcast to those of `x` before H.
    positions : array of int, shape (L,) or (..., L), optional
        Row of `cos` and `sin` for each token, in 0 .. P - 1; a list, or an array of any library. Axes before L
        broadcast to those of `x` before H.
    rotary_dim : int, optional
        R, the number of features that are turned, the first ones; the others stay. Even, at most E. Default: E.
    interleaved : bool, default False
        Which features are a pair, for k < R/2: k and k + R/2 (GPT-NeoX, Llama in transformers), or 2k and 2k + 1
        (the paper, GPT-J).
    dtype : dtype or str, optional
        Dtype of the result; default that of `x`. Must be given for float8 and integer arrays.

    Returns
    -------
    array, shape (..., H, L, E)
        In `dtype`, on the namespace and device of `x`.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit, and for a position that is no row of `cos`.

    Notes
    -----
    Numerics: float64, one rounding at the end. Before it a number errs by at most 3 u (|cos x_a| + |sin x_b|), u =
    2^-53; products of float32 numbers are exact.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864, section 3.2.
    .. [2] ONNX, "Operator Schemas: RotaryEmbedding", version 23.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> cos, sin = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])  # one token: no turn, and a quarter of one
    >>> x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    >>> ra.rotary_embedding(x, cos, sin)
    array([[[ 1., -4.,  3.,  2.]]])
    >>> ra.rotary_embedding(x, cos, sin, interleaved=True)
    array([[[ 1.,  2., -4.,  3.]]])
    """
    name = "rotary_embedding"
    check_array(name, "x", x)
    check_array(name, "cos", cos, FLOATS)
    check_array(name, "sin", sin, FLOATS)
    xp = array_namespace(name, x=x, cos=cos, sin=sin)
    kind = check_output_dtype(name, dtype, x, "x")
    if len(x.shape) < 3:
        raise ValueError(f"{name}: x must have at least 3 axes (..., H, L, E); got {tuple(x.shape)}.")
    R = _rotary_dim(x.shape[-1], rotary_dim)
    cos, sin = _rows(tuple(x.shape), R, cos, sin, positions, xp)
    X, half = float64(x, xp), R // 2
    paired = check_flag(name, "interleaved", interleaved)
    a, b = (X[..., 0:R:2], X[..., 1:R:2]) if paired else (X[..., :half], X[..., half:R])
    turned = [cos * a - sin * b, sin * a + cos * b]
    if paired:
        turned = [xp.reshape(xp.stack(turned, axis=-1), (*x.shape[:-1], R))]
    return round_to(xp.concat([*turned, X[..., R:]], axis=-1), kind, xp)


@quiet
def rotary_cos_sin(
    positions: Array, rotary_dim: int, *, base: float = 10000.0, frequencies: Array | None = None
) -> tuple[Array, Array]:
    """Cosines and sines of the angles of rotary embedding.

        angle[..., k] = positions[...] * base^(-2 k / R),  k = 0 .. R/2 - 1

    Parameters
    ----------
    positions : array, shape (..., L)
        Positions of the tokens; integers, or real numbers (scaled positions).
    rotary_dim : int
        R, the number of features that are turned, even.
    base : float, default 10000.0
        Called theta in many models.
    frequencies : array, shape (R/2,), optional
        Numbers to take in place of base^(-2 k / R), of the library of `positions`: NTK-aware, YaRN's, Llama 3's.

    Returns
    -------
    tuple of two arrays, shape (..., L, R/2)
        The cosines and the sines, float64, on the namespace and device of `positions`.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For an odd `rotary_dim`, a `base` that is not positive, and `frequencies` of another shape.

    Notes
    -----
    Numerics: the angle errs by at most 2 u |angle|, u = 2^-53, beyond what `pow` errs by. Code that takes angles in
    float32 is off by up to 2^-24 |angle|, which for the first pair at position 100000 is 0.006.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> cos, sin = ra.rotary_cos_sin(np.arange(3), 4)
    >>> print(np.round(sin, 4))
    [[0.     0.    ]
     [0.8415 0.01  ]
     [0.9093 0.02  ]]
    """
    name = "rotary_cos_sin"
    check_array(name, "positions", positions)
    R = check_integer(name, "rotary_dim", rotary_dim)
    if R % 2:
        raise ValueError(f"{name}: rotary_dim must be even, for features are turned in pairs; got {R}.")
    root = check_real(name, "base", base, "a real number")
    if root <= 0:
        raise ValueError(f"{name}: base must be positive; got {base}.")
    if frequencies is not None:
        check_array(name, "frequencies", frequencies)
        if tuple(frequencies.shape) != (R // 2,):
            raise ValueError(f"{name}: frequencies must have shape (R/2,)=({R // 2},); got {tuple(frequencies.shape)}.")
    xp = array_namespace(name, positions=positions, frequencies=frequencies)
    if frequencies is None:
        numbers = [root ** (-2 * k / R) for k in range(R // 2)]
        frequencies = xp.asarray(numbers, dtype=xp.float64, device=device(positions))
    angles = xp.expand_dims(float64(positions, xp), axis=-1) * float64(frequencies, xp)
    return xp.cos(angles), xp.sin(angles)


def _rotary_dim(E: int, rotary_dim: object) -> int:
    """Number of features that are turned."""
    R = E if rotary_dim is None else check_integer("rotary_embedding", "rotary_dim", rotary_dim)
    if R > E or R % 2:
        raise ValueError(f"rotary_embedding: rotary_dim must be even and at most E={E} (axis -1 of x); got {R}.")
    return R


def _rows(
    shape: tuple[int, ...], R: int, cos: Array, sin: Array, positions: object, xp: Namespace
) -> tuple[Array, Array]:
    """Cosines and sines (..., 1, L, R/2) in float64, for x of the shape."""
    name, batch, L = "rotary_embedding", shape[:-3], shape[-2]
    if tuple(cos.shape) != tuple(sin.shape):
        raise ValueError(
            f"{name}: cos and sin must have the same shape; got {tuple(cos.shape)} and {tuple(sin.shape)}."
        )
    own = tuple(cos.shape)
    if positions is None:
        if len(own) < 2 or own[-2:] != (L, R // 2) or not _broadcasts(own[:-2], batch):
            raise ValueError(
                f"{name}: cos must have shape (..., L, R/2)={(*batch, L, R // 2)}, or broadcast to it before L; got "
                f"{own}. Pass positions= for a table of all positions."
            )
        return tuple(xp.expand_dims(float64(x, xp), axis=-3) for x in (cos, sin))
    if len(own) != 2 or own[1] != R // 2:
        raise ValueError(f"{name}: cos must have shape (P, R/2)=(P, {R // 2}) beside positions; got {own}.")
    at = np.asarray(integers(name, "positions", positions, "an integer array (..., L)"))
    if at.shape[-1:] != (L,) or not _broadcasts(at.shape[:-1], batch):
        raise ValueError(
            f"{name}: positions must have shape (..., L)={(*batch, L)}, or broadcast to it before L; got {at.shape}."
        )
    if at.size and not (at.min() >= 0 and at.max() < own[0]):
        raise ValueError(f"{name}: positions must lie within the P={own[0]} rows of cos; got {at.min()} to {at.max()}.")
    flat = at.astype(np.int64).reshape(-1)
    return tuple(
        xp.expand_dims(xp.reshape(taken(float64(x, xp), flat, -2, xp), (*at.shape, R // 2)), axis=-3)
        for x in (cos, sin)
    )


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether the axes before L are those of the batch, or 1, or left out."""
    return len(shape) <= len(full) and all(n in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False))
