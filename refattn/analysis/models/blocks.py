"""What decoder models are made of beside attention: norm, rotary positions, feed-forward layer, loss.

Plain NumPy, in the dtype of the arguments. Letters: L tokens, D model width, F width of the feed-forward layer,
V vocabulary, E head dimension. Matrices are stored as checkpoints store them, (out, in): a projection is ``x @ W.T``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["halves_from_interleaved", "perplexity", "rms_norm", "rotary", "swiglu"]

Array = NDArray[Any]


def rms_norm(x: Array, weight: Array, *, eps: float) -> Array:
    """Divide each vector by its root mean square, then scale by weight.

        y = x / sqrt(mean(x^2) + eps) * weight

    Parameters
    ----------
    x : array, shape (..., D)
        Vectors to normalise.
    weight : array, shape (D,)
        Learnt scale of each coordinate.
    eps : float
        Constant under the root.

    Returns
    -------
    array, shape (..., D)
        In the dtype of `x`.

    References
    ----------
    .. [1] Zhang and Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, arXiv:1910.07467, eq. (4).

    Examples
    --------
    >>> rms_norm(np.array([3.0, -3.0]), np.array([1.0, 2.0]), eps=0.0)
    array([ 1., -2.])
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return np.asarray(x / np.sqrt(mean_square + eps) * weight)


def rotary(x: Array, positions: Array, *, base: float) -> Array:
    """Turn each pair of coordinates by an angle that grows with the position (RoPE).

        y_i       = x_i cos(p t_i) - x_(i+E/2) sin(p t_i)
        y_(i+E/2) = x_(i+E/2) cos(p t_i) + x_i sin(p t_i),       t_i = base^(-2i/E),  0 <= i < E/2

    Each vector keeps its length, and the product of a query at position m and a key at position n depends on m - n
    alone.

    Parameters
    ----------
    x : array, shape (..., L, E)
        Queries or keys in rotate-half order, E even.
    positions : array, shape (L,)
        Position p of each vector, in tokens.
    base : float
        Base of the angles; 10000 in [1]_.

    Returns
    -------
    array, shape (..., L, E)
        In the dtype of `x`.

    Notes
    -----
    Numerics: angles, sines and cosines are float64 whatever `x` is, and are rounded once to the dtype of `x`.

    References
    ----------
    .. [1] Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, arXiv:2104.09864, eq. (34),
       where the pairs are neighbours.

    Examples
    --------
    >>> rotary(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), base=1e4).round(4)
    array([[1.    , 0.    ],
           [0.5403, 0.8415]])
    """
    E = x.shape[-1]
    theta = base ** (-np.arange(0, E, 2) / E)
    angle = positions[:, None] * theta
    cos, sin = np.cos(angle).astype(x.dtype), np.sin(angle).astype(x.dtype)
    x_1, x_2 = x[..., : E // 2], x[..., E // 2 :]
    return np.concatenate([x_1 * cos - x_2 * sin, x_2 * cos + x_1 * sin], axis=-1)


def halves_from_interleaved(weight: Array, heads: int) -> Array:
    """Reorder the rows of a query or key projection from interleaved pairs to rotate-half order.

    Rotary embedding turns pairs of coordinates. Meta's checkpoints and GGUF files pair the neighbours (2i, 2i + 1),
    Hugging Face's checkpoints and `rotary` pair (i, i + E/2). The logits do not change when query and key are
    reordered together.

    Parameters
    ----------
    weight : array, shape (heads * E, ...)
        Projection whose rows are in interleaved order within each head.
    heads : int
        Number of heads: H for a query projection, Hk for a key projection.

    Returns
    -------
    array, shape (heads * E, ...)
        The same rows, in each head first the even ones, then the odd ones.

    Raises
    ------
    ValueError
        A number of rows that is not an even multiple of `heads`.

    Examples
    --------
    >>> halves_from_interleaved(np.array([0, 1, 2, 3, 10, 11, 12, 13]), heads=2)
    array([ 0,  2,  1,  3, 10, 12, 11, 13])
    """
    rows = weight.shape[0]
    if rows % (2 * heads):
        msg = f"halves_from_interleaved: weight must have heads * E rows (axis 0), E even; got {rows}, {heads} heads."
        raise ValueError(msg)
    pairs = weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """Feed-forward layer with a gated linear unit.

        y = (silu(x gate^T) * (x up^T)) down^T,       silu(a) = a / (1 + exp(-a))

    Parameters
    ----------
    x : array, shape (..., D)
        Inputs.
    gate : array, shape (F, D)
        Projection that passes through silu.
    up : array, shape (F, D)
        Projection that is gated.
    down : array, shape (D, F)
        Projection back to the model width.

    Returns
    -------
    array, shape (..., D)
        In the dtype of `x`.

    References
    ----------
    .. [1] Shazeer, GLU Variants Improve Transformer, 2020, arXiv:2002.05202, eq. (6).

    Examples
    --------
    >>> swiglu(np.array([2.0]), np.array([[0.0]]), np.array([[1.0]]), np.array([[1.0]]))
    array([0.])
    """
    a = x @ gate.T
    # 1 / (1 + exp(-a)) through logaddexp, which cannot overflow.
    silu = a * np.exp(-np.logaddexp(0, -a))
    return np.asarray((silu * (x @ up.T)) @ down.T)


def perplexity(logits: ArrayLike, tokens: ArrayLike) -> float:
    """Exponential of the mean surprise of each token given those before it.

        exp(mean over t of (logsumexp(logits_t) - logits_t[tokens_(t+1)])),       0 <= t < L - 1

    Parameters
    ----------
    logits : array, shape (L, V)
        Row t predicts token t + 1, as `forward` returns them.
    tokens : array of int, shape (L,)
        The sequence itself, L at least 2.

    Returns
    -------
    float
        1 for a model that is always sure and right, V for one that knows nothing.

    Raises
    ------
    ValueError
        Shapes that do not fit, or fewer than two tokens.

    Examples
    --------
    >>> round(perplexity(np.zeros((3, 50)), [4, 2, 7]), 6)
    50.0
    """
    logits, tokens = np.asarray(logits), np.asarray(tokens)
    if logits.ndim != 2 or tokens.shape != logits.shape[:1] or tokens.size < 2:
        msg = f"perplexity: logits must be (L, V), tokens (L,), L at least 2; got {logits.shape} and {tokens.shape}."
        raise ValueError(msg)
    surprise = 0.0
    # Row by row: a second array of shape (L, V) would double the memory.
    for row, following in zip(logits[:-1], tokens[1:], strict=True):
        shifted = row - row.max()
        surprise += float(np.log(np.exp(shifted).sum()) - shifted[following])
    return float(np.exp(surprise / (tokens.size - 1)))
