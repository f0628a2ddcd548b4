"""Masks: who may attend to whom, as rules that answer for a tile, a row or the whole, and combine with ``& | ~``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refattn._core.arrays import Array
from refattn.masks.base import Mask
from refattn.masks.blocks import Blocks
from refattn.masks.families import Band, FromFunction, Lengths, anchor_of, as_mask, dense_of, lengths_of, reach_of
from refattn.masks.forms import size

__all__ = ("Blocks", "Mask", "array", "as_mask", "causal", "from_function", "lengths", "window")


def causal(anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask that lets a query see the key it stands on and those before it.

        query i sees key j  iff  j <= i + offset

    Parameters
    ----------
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Where the diagonal lies. "lower_right" (FlashAttention, FlashInfer, vLLM): the last query stands on the last
        key, offset = S - L. "upper_left" (PyTorch SDPA, JAX): query 0 stands on key 0, offset = 0. An integer is the
        offset itself, an array one for each batch entry (a padded cache: lengths - L). Default: the two corners must
        agree, L = S.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` for an array of offsets.

    Raises
    ------
    TypeError
        If `anchor` is of another kind.
    ValueError
        If `anchor` is another string; later, where the mask is used, if `anchor` is None and L != S.

    Notes
    -----
    Rows are intervals: every form is in closed form. An offset may have any size.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.causal(anchor="lower_right").draw(2, 5))
      01234
    0 ####.
    1 #####
    >>> print(masks.causal(anchor="upper_left").draw(2, 5))
      01234
    0 #....
    1 ##...
    """
    return Band(None, 0, anchor_of("masks.causal", anchor), "causal")


def window(left: int | None, right: int | None, anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask that lets a query see the keys beside the one it stands on.

        query i sees key j  iff  i + offset - left <= j <= i + offset + right

    Parameters
    ----------
    left, right : int or None
        Number of keys before and behind the key that the query stands on, which is always in; None = no end on that
        side. A window of W keys that ends at the diagonal is ``window(W - 1, 0)``.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Which key the query stands on, as in `causal`.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` for an array of offsets.

    Raises
    ------
    TypeError
        If `left` or `right` is no integer (a boolean is none), or `anchor` is of another kind.
    ValueError
        If `left` or `right` is negative or `anchor` another string; later, where the mask is used, if `anchor` is None
        and L != S.

    Notes
    -----
    Rows are intervals: every form is in closed form.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.window(1, 2, anchor="lower_right").draw(3, 5))
      01234
    0 .####
    1 ..###
    2 ...##
    """
    return Band(reach_of("left", left), reach_of("right", right), anchor_of("masks.window", anchor), "window")


def lengths(key: int | Sequence[int] | Array, query: int | Sequence[int] | Array | None = None) -> Mask:
    """Mask of padded batches: the first ``key[b]`` keys take part, for the first ``query[b]`` queries.

        query i sees key j  iff  j < key[b]  and  i < query[b]

    Parameters
    ----------
    key : int or array of int, shape (B,)
        Number of keys that are no padding, at most S.
    query : int or array of int, shape (B,), optional
        Number of queries that are no padding, at most L; the others see nothing. Default: all.

    Returns
    -------
    Mask
        With ``lead == (B, 1)``, or ``()`` where both are integers.

    Raises
    ------
    TypeError
        If `key` or `query` is no integer and no integer array.
    ValueError
        If a length is negative, or the two do not broadcast; later, where the mask is used, if one lies beyond S or L.

    Notes
    -----
    Rows are intervals: every form is in closed form. For a causal mask on padded batches give `causal` the offsets
    ``key - query``: "lower_right" anchors at the padded corner.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.lengths([2, 4], query=[1, 2]).draw(2, 4))
    (0, :)
      0123
    0 ##..
    1 ....
    <BLANKLINE>
    (1, :)
      0123
    0 ####
    1 ####
    """
    return Lengths(lengths_of("key", key), None if query is None else lengths_of("query", query))


def array(x: Array) -> Mask:
    """Mask that is given cell by cell.

        query i sees key j  iff  x[..., i, j]

    Parameters
    ----------
    x : array of bool, shape (..., L, S)
        Of any array library; True where the key takes part. Leading axes broadcast to (..., H), and L and S may be 1.

    Returns
    -------
    Mask
        With ``lead == x.shape[:-2]``. It keeps a copy of `x` on the host.

    Raises
    ------
    TypeError
        If `x` is not an array, or not boolean.
    ValueError
        If `x` has fewer than two axes; later, where the mask is used, if L or S does not fit.

    Notes
    -----
    Its rows are taken to be no intervals, so every form reads all cells.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import masks
    >>> mask = masks.array(np.array([[True, False, True]])) | masks.window(0, 0)
    >>> print(mask.draw(3, 3))
      012
    0 #.#
    1 ###
    2 #.#
    """
    return dense_of("masks.array", "x", x)


def from_function(f: Callable[..., Array], *, batch: int | None = None, heads: int | None = None) -> Mask:
    """Mask that a function of positions decides, as FlexAttention's mask_mod does.

        query i sees key j  iff  f(b, h, i, j)

    Parameters
    ----------
    f : callable
        ``f(b, h, q, kv)`` gets four int64 NumPy arrays of positions (batch entry, head, query, key) that broadcast
        against each other, and returns a boolean array of any library that broadcasts to their common shape. It must
        depend on nothing else, since it is called tile by tile.
    batch, heads : int, optional
        Number of batch entries and of query heads. Default: f does not look at b (at h), and gets 0.

    Returns
    -------
    Mask
        With ``lead`` of ``()``, ``(heads,)``, ``(batch, 1)`` or ``(batch, heads)``.

    Raises
    ------
    TypeError
        If `f` cannot be called, or `batch` or `heads` is no integer; later, if f does not return a boolean array.
    ValueError
        If `batch` or `heads` is negative; later, if what f returns does not broadcast.

    Notes
    -----
    f is called with tiles; counting and `blocks` evaluate every cell.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import masks
    >>> document = np.array([0, 0, 0, 1, 1])
    >>> mask = masks.from_function(lambda b, h, q, kv: document[q] == document[kv]) & masks.causal()
    >>> print(mask.draw(5, 5))
      01234
    0 #....
    1 ##...
    2 ###..
    3 ...#.
    4 ...##
    """
    if not callable(f):
        raise TypeError(f"masks.from_function: f must be a function of (b, h, q, kv); got {type(f).__name__}.")
    b, h = np.asarray(0), np.asarray(0)
    text = [getattr(f, "__name__", repr(f))]
    if heads is not None:
        h = np.arange(size("masks.from_function", "heads", heads, 0))
    if batch is not None:
        b = np.arange(size("masks.from_function", "batch", batch, 0))[:, None]
    text += [f"{name}={n}" for name, n in (("batch", batch), ("heads", heads)) if n is not None]
    return FromFunction(f, b, h, f"masks.from_function({', '.join(text)})")
