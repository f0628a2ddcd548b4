"""What is added to scores after softcap, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refattn._core.arrays import Array
from refattn._core.checks import check_integer
from refattn.biases.base import ArrayBias as ArrayBias
from refattn.biases.base import Bias
from refattn.biases.families import Alibi, FromFunction, Relative, near_anchor_of, numbers_of
from refattn.biases.t5 import t5_buckets

__all__ = ["Bias", "alibi", "alibi_slopes", "from_function", "relative", "t5_buckets"]


def alibi_slopes(heads: int) -> np.ndarray[Any, Any]:
    """Published ALiBi slopes for any number of heads.

        m_h = 2^(-8 h / n),  h = 1..n,  for n heads, n a power of two

    For other numbers the slopes of the next lower power of two n come first, then every other slope of 2n.

    Parameters
    ----------
    heads : int
        Number of query heads H, at least 1.

    Returns
    -------
    numpy.ndarray, shape (H,)
        float64 slopes, all positive.

    Raises
    ------
    TypeError
        If `heads` is no integer.
    ValueError
        If `heads` is below 1.

    References
    ----------
    .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", ICLR 2022, arXiv:2108.12409, section 3; the rule for other numbers of heads is in its code.

    Examples
    --------
    >>> from refattn import biases
    >>> biases.alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> biases.alibi_slopes(3).tolist()
    [0.0625, 0.00390625, 0.25]
    """
    heads = check_integer("biases.alibi_slopes", "heads", heads, least=1)
    n = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / n) for h in range(1, n + 1)]
    slopes += [2.0 ** (-4.0 * h / n) for h in range(1, 2 * n, 2)]
    return np.array(slopes[:heads])


def alibi(slopes: int | Array, *, anchor: str | int | Sequence[int] | Array | None = None) -> Bias:
    """ALiBi: scores fall linearly with the distance between query and key.

        bias[h, i, j] = -m_h |i + offset - j|

    Parameters
    ----------
    slopes : int or array, shape (H,) or (..., H)
        The number of heads, for the published slopes (`alibi_slopes`), or the slopes m_h themselves.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Where the queries stand among the keys: offset = S - L, 0, the integer, or an integer for each batch entry (a
        padded cache: lengths - L). Needed only for L != S.

    Returns
    -------
    Bias
        To be passed as ``bias=``.

    Raises
    ------
    TypeError
        If the slopes are neither an integer nor a real array, or the anchor is of another kind.
    ValueError
        If a slope is not finite, or the anchor is unknown, beyond 2**53 or of another batch than the slopes.

    Notes
    -----
    The paper writes -m_h (i - j) for the visible keys j <= i of causal attention; this is the same there, and
    symmetric where later keys are visible too.

    References
    ----------
    .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", ICLR 2022, arXiv:2108.12409, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = k = v = np.ones((1, 2, 3, 4))
    >>> ra.attention(q, k, v, bias=ra.biases.alibi(2), is_causal=True).shape
    (1, 2, 3, 4)
    """
    where = near_anchor_of("biases.alibi", anchor)
    if isinstance(slopes, int | np.integer) and not isinstance(slopes, bool):
        return Alibi(alibi_slopes(int(slopes)), where)
    return Alibi(numbers_of("biases.alibi", "slopes", slopes, "head axis (H,)"), where)


def relative(table: Array, *, anchor: str | int | Sequence[int] | Array | None = None) -> Bias:
    """Relative position bias: one number for each head and distance, the same for all distances beyond the table.

        bias[h, i, j] = table[h, clip(j - i - offset, -R, R) + R]

    Parameters
    ----------
    table : array, shape (2 R + 1,), (H, 2 R + 1) or (..., H, 2 R + 1)
        Its middle is for the key that the query stands on, what follows for the keys behind it. Kept in float64 on the
        host; for a gradient of the table pass its numbers, gathered, as an array.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Where the queries stand among the keys, as in `alibi`. Needed only for L != S.

    Returns
    -------
    Bias
        To be passed as ``bias=``.

    Raises
    ------
    TypeError
        If the table is no real array, or the anchor is of another kind.
    ValueError
        If the table's last axis is even, a number of it is not finite, or the anchor is unknown, beyond 2**53 or of
        another batch than the table.

    Notes
    -----
    Of Shaw et al. this is the clipped distance; there it selects a vector that is added to the key.

    References
    ----------
    .. [1] P. Shaw, J. Uszkoreit, A. Vaswani, "Self-Attention with Relative Position Representations", NAACL 2018,
       arXiv:1803.02155, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> bias = ra.biases.relative(np.array([-1.0, 0.0, 1.0]), anchor="lower_right")
    >>> bias.tile(slice(0, 2), slice(0, 4), 2, 4, xp=np).tolist()
    [[-1.0, -1.0, 0.0, 1.0], [-1.0, -1.0, -1.0, 0.0]]
    """
    where = near_anchor_of("biases.relative", anchor)
    numbers = numbers_of("biases.relative", "table", table, "axis of distances (2R + 1,)")
    if numbers.shape[-1] % 2 == 0:
        raise ValueError(
            "biases.relative: table must have an odd number of distances (axis -1), 2R + 1 from -R to R; got "
            f"{numbers.shape}."
        )
    return Relative(numbers, where)


def from_function(f: Callable[..., Any], *, batch: int | None = None, heads: int | None = None) -> Bias:
    """Bias that a function of positions gives: what a score_mod of FlexAttention adds to the score.

        bias[b, h, i, j] = f(b, h, i, j)

    Parameters
    ----------
    f : callable
        ``f(b, h, q, kv)`` gets four int64 NumPy arrays of positions (batch entry, head, query, key) that broadcast
        against each other, and returns a real array of any library that broadcasts to their common shape. It must
        depend on nothing else, since it is called tile by tile, and be finite in every cell, masked or not.
    batch, heads : int, optional
        Number of batch entries and of query heads. Default: f does not look at b (at h), and gets 0.

    Returns
    -------
    Bias
        With ``lead`` of ``()``, ``(heads,)``, ``(batch, 1)`` or ``(batch, heads)``.

    Raises
    ------
    TypeError
        If `f` cannot be called, or `batch` or `heads` is no integer; later, if f does not return real numbers.
    ValueError
        If `batch` or `heads` is negative; later, if what f returns does not broadcast or is not finite. What is
        hidden by -inf there is the matter of a mask here, `masks.from_function`, which can then leave out whole tiles.

    Notes
    -----
    f gets the tile that is computed and no more: `attention_rows` never asks it for all L S cells.

    References
    ----------
    .. [1] J. Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels", 2024,
       arXiv:2412.05496.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import biases
    >>> bias = biases.from_function(lambda b, h, q, kv: (kv - q) / (h + 1), heads=2)
    >>> bias.tile(slice(0, 1), slice(0, 3), 8, 8, xp=np).tolist()
    [[[0.0, 1.0, 2.0]], [[0.0, 0.5, 1.0]]]
    """
    if not callable(f):
        raise TypeError(f"biases.from_function: f must be a function of (b, h, q, kv); got {type(f).__name__}.")
    b = h = np.asarray(0)
    if heads is not None:
        h = np.arange(check_integer("biases.from_function", "heads", heads))
    if batch is not None:
        b = np.arange(check_integer("biases.from_function", "batch", batch))[:, None]
    return FromFunction(f, b, h)
