"""Multi-head latent attention as plain attention, in the two forms that are one."""

from __future__ import annotations

import math
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, array_namespace, float64, quiet
from refattn._core.checks import check_array


class LatentAttention(NamedTuple):
    """Multi-head latent attention as one call of `attention`.

    Attributes
    ----------
    query : array, shape (..., H, L, E)
        Queries, float64 as all arrays here.
    key : array, shape (..., Hk, S, E)
        Keys; Hk = H, or 1 in the absorbed form.
    value : array, shape (..., Hk, S, Ev)
        Values; in the absorbed form the latents, Ev = C.
    scale : float
        The factor on the scores, 1/sqrt(D + Dr) in both forms.
    up : array, shape (H, C, Dv), or None
        What the output is multiplied by in the absorbed form.
    """

    query: Array
    key: Array
    value: Array
    scale: float
    up: Array | None = None


@quiet
def absorb_mla(q_nope: Array, q_rope: Array, c_kv: Array, k_rope: Array, W_UK: Array, W_UV: Array) -> LatentAttention:
    """Multi-head latent attention over the latents themselves: the form that kernels decode with.

        query = [q_nope W_UK, q_rope],  key = [c_kv, k_rope],  value = c_kv,  up = W_UV^T
        O = attention(query, key, value, scale=1/sqrt(D + Dr)) up

    Parameters
    ----------
    q_nope : array, shape (..., H, L, D)
        The part of the queries without rotary embedding.
    q_rope : array, shape (..., H, L, Dr)
        The part with it, turned already.
    c_kv : array, shape (..., S, C)
        The latents, as they are cached (normalised, where the model does so).
    k_rope : array, shape (..., S, Dr)
        The part of the keys with rotary embedding, turned already, the same for all heads.
    W_UK : array, shape (H, D, C)
        The map from a latent to the key of each head.
    W_UV : array, shape (H, Dv, C)
        The map from a latent to the value of each head.

    Returns
    -------
    LatentAttention
        The named tuple (query, key, value, scale, up): query (..., H, L, C + Dr), key (..., 1, S, C + Dr), value
        (..., 1, S, C), up (H, C, Dv), in float64 on the namespace and device of the inputs.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit.

    Notes
    -----
    Nothing is rounded to the inputs' dtype: that a kernel keeps q_nope W_UK in bfloat16 is its own error.

    In DeepSeek's code the two maps are one weight: ``kv_b_proj.weight.reshape(H, D + Dv, C)`` holds W_UK in its first
    D rows and W_UV in the others. There the scale has a factor besides where YaRN is on: pass the product instead.

    References
    ----------
    .. [1] DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
       arXiv:2405.04434, sections 2.1.2 and 2.1.3.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q_nope, q_rope = np.ones((2, 1, 3)), np.ones((2, 1, 1))
    >>> c_kv, k_rope = np.arange(8.0).reshape(2, 4), np.ones((2, 1))
    >>> W_UK, W_UV = np.ones((2, 3, 4)), np.ones((2, 5, 4))
    >>> query, key, value, scale, up = ra.absorb_mla(q_nope, q_rope, c_kv, k_rope, W_UK, W_UV)
    >>> output = ra.attention(query, key, value, scale=scale) @ up
    >>> output.shape, scale
    ((2, 1, 5), 0.5)
    """
    xp = _check_latents("absorb_mla", q_nope, q_rope, c_kv, k_rope, W_UK, W_UV)
    q_n, q_r, c, k_r, K, V = (float64(x, xp) for x in (q_nope, q_rope, c_kv, k_rope, W_UK, W_UV))
    return LatentAttention(
        query=xp.concat([xp.matmul(q_n, K), q_r], axis=-1),
        key=xp.expand_dims(xp.concat([c, k_r], axis=-1), axis=-3),
        value=xp.expand_dims(c, axis=-3),
        scale=_scale(q_nope, q_rope),
        up=xp.matrix_transpose(V),
    )


@quiet
def expand_mla(q_nope: Array, q_rope: Array, c_kv: Array, k_rope: Array, W_UK: Array, W_UV: Array) -> LatentAttention:
    """Multi-head latent attention over keys and values made from the latents: the definition.

        query = [q_nope, q_rope],  key = [c_kv W_UK^T, k_rope],  value = c_kv W_UV^T
        O = attention(query, key, value, scale=1/sqrt(D + Dr))

    Parameters
    ----------
    q_nope : array, shape (..., H, L, D)
        The part of the queries without rotary embedding; everything as in `absorb_mla`.
    q_rope : array, shape (..., H, L, Dr)
        The part with it.
    c_kv : array, shape (..., S, C)
        The latents.
    k_rope : array, shape (..., S, Dr)
        The part of the keys with rotary embedding.
    W_UK : array, shape (H, D, C)
        The map from a latent to the key of each head.
    W_UV : array, shape (H, Dv, C)
        The map from a latent to the value of each head.

    Returns
    -------
    LatentAttention
        The named tuple (query, key, value, scale, up): query (..., H, L, D + Dr), key (..., H, S, D + Dr), value
        (..., H, S, Dv), up None, in float64 on the namespace and device of the inputs.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit.

    References
    ----------
    .. [1] DeepSeek-AI, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
       arXiv:2405.04434, sections 2.1.2 and 2.1.3.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q_nope, q_rope = np.ones((2, 1, 3)), np.ones((2, 1, 1))
    >>> c_kv, k_rope = np.arange(8.0).reshape(2, 4), np.ones((2, 1))
    >>> W_UK, W_UV = np.ones((2, 3, 4)), np.ones((2, 5, 4))
    >>> query, key, value, scale, _ = ra.expand_mla(q_nope, q_rope, c_kv, k_rope, W_UK, W_UV)
    >>> ra.attention(query, key, value, scale=scale).shape
    (2, 1, 5)
    """
    xp = _check_latents("expand_mla", q_nope, q_rope, c_kv, k_rope, W_UK, W_UV)
    q_n, q_r, c, k_r, K, V = (float64(x, xp) for x in (q_nope, q_rope, c_kv, k_rope, W_UK, W_UV))
    c, k_r = xp.expand_dims(c, axis=-3), xp.expand_dims(k_r, axis=-3)
    keys = xp.matmul(c, xp.matrix_transpose(K))
    turned = xp.broadcast_to(k_r, (*keys.shape[:-1], k_r.shape[-1]))
    return LatentAttention(
        query=xp.concat([q_n, q_r], axis=-1),
        key=xp.concat([keys, turned], axis=-1),
        value=xp.matmul(c, xp.matrix_transpose(V)),
        scale=_scale(q_nope, q_rope),
    )


def _check_latents(
    function: str, q_nope: Array, q_rope: Array, c_kv: Array, k_rope: Array, W_UK: Array, W_UV: Array
) -> Namespace:
    """Namespace of the arrays of latent attention, whose axes of one letter must be equal."""
    given = {
        "q_nope": (q_nope, ("...", "H", "L", "D")),
        "q_rope": (q_rope, ("...", "H", "L", "Dr")),
        "c_kv": (c_kv, ("...", "S", "C")),
        "k_rope": (k_rope, ("...", "S", "Dr")),
        "W_UK": (W_UK, ("H", "D", "C")),
        "W_UV": (W_UV, ("H", "Dv", "C")),
    }
    for name, (x, _) in given.items():
        check_array(function, name, x)
    xp = array_namespace(function, **{name: x for name, (x, _) in given.items()})
    batch = tuple(q_nope.shape[:-3])
    sizes: dict[str, int] = {}
    for name, (x, axes) in given.items():
        letters = axes[axes[0] == "..." :]
        shape, lead = tuple(x.shape), len(x.shape) - len(letters)
        fits = lead >= 0 and shape[:lead] == (batch if axes[0] == "..." else ())
        if not fits or any(sizes.setdefault(k, n) != n for k, n in zip(letters, shape[lead:], strict=True)):
            wanted = (*(batch if axes[0] == "..." else ()), *(sizes.get(k, k) for k in letters))
            raise ValueError(
                f"{function}: {name} must have shape ({', '.join(axes)})=({', '.join(map(str, wanted))}); got {shape}."
            )
    if sizes["D"] + sizes["Dr"] == 0:
        raise ValueError(f"{function}: q_nope and q_rope must have at least one feature together; got D=0 and Dr=0.")
    return xp


def _scale(q_nope: Array, q_rope: Array) -> float:
    """The factor on the scores, that of heads of D + Dr features in either form."""
    return 1.0 / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1])
