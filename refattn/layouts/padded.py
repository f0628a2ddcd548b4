"""Batches padded on the left: where a sequence's tokens end at the last position."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core.arrays import Array
from refattn.layouts.host import back, filled, lengths_of, on_host
from refattn.layouts.ragged import padded_length


class LeftPadded(NamedTuple):
    """Sequences that end at the last position.

    Attributes
    ----------
    padded : array, shape (B, H, L, E)
        Sequence b is the positions ``leftpad[b] : L``.
    leftpad : array of int32, shape (B,)
        Where each sequence begins.
    """

    padded: Array
    leftpad: Array


def pad_left(x: Array, lengths: Any, *, fill: float = 0.0) -> LeftPadded:
    """Move the padding of a batch from the right to the left, as decoders' tokenizers put it.

    Parameters
    ----------
    x : array, shape (B, H, L, E)
        Sequences that begin at position 0, of any library and dtype.
    lengths : array of int, shape (B,)
        Number of tokens of each sequence, 0 .. L.
    fill : float, default 0.0
        What the padding is filled with; NaN shows who reads it.

    Returns
    -------
    LeftPadded
        ``(padded, leftpad)``, of the library and on the device of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array, or lengths are no integers.
    ValueError
        If a length lies beyond L, or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> x = np.array([[1, 2, 0], [3, 4, 5]]).reshape(2, 1, 3, 1)
    >>> padded, leftpad = layouts.pad_left(x, [2, 3])
    >>> padded[:, 0, :, 0].tolist(), leftpad.tolist()
    ([[0, 1, 2], [3, 4, 5]], [1, 0])
    """
    function = "layouts.pad_left"
    host = on_host(function, "x", x, "(B, H, L, E)")
    L = host.shape[2]
    lengths = lengths_of(function, "lengths", lengths, len(host), L, "L")
    padded = filled(function, host.shape, host.dtype, fill)
    for b, n in enumerate(lengths):
        padded[b, :, L - n :] = host[b, :, :n]
    return LeftPadded(back(padded, x), back((L - lengths).astype(np.int32), x))


def unpad_left(x: Array, leftpad: Any, *, stop: Any = None, length: int | None = None, fill: float = 0.0) -> Array:
    """Logical array of sequences that begin somewhere: each is moved to position 0.

    Parameters
    ----------
    x : array, shape (B, H, L, E)
        Of any library and dtype.
    leftpad : array of int, shape (B,)
        Where each sequence begins: FlashAttention's ``cache_leftpad`` (``leftpad_k``); for a Hugging Face
        ``attention_mask`` that is padded on the left, ``L - attention_mask.sum(-1)``.
    stop : array of int, shape (B,), optional
        Where each sequence ends, at least `leftpad`: FlashAttention's ``cache_seqlens``, which counts from position 0
        too. Default: L.
    length : int, optional
        Length of the result. Default: the longest sequence's.
    fill : float, default 0.0
        What the padding is filled with.

    Returns
    -------
    array, shape (B, H, length, E)
        The same numbers, bit for bit, of the library and on the device of `x`; sequence b has ``stop[b] - leftpad[b]``
        tokens.

    Raises
    ------
    TypeError
        If `x` is not an array, or a table is not of integers.
    ValueError
        If a sequence ends before it begins or beyond L, or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> x = np.array([[9, 1, 2], [3, 4, 5]]).reshape(2, 1, 3, 1)
    >>> layouts.unpad_left(x, [1, 0])[:, 0, :, 0].tolist()
    [[1, 2, 0], [3, 4, 5]]
    """
    function = "layouts.unpad_left"
    host = on_host(function, "x", x, "(B, H, L, E)")
    B, heads, L, E = host.shape
    first = lengths_of(function, "leftpad", leftpad, B, L, "L")
    end = np.full(B, L) if stop is None else lengths_of(function, "stop", stop, B, L, "L")
    if (crossed := np.flatnonzero(end < first)).size:
        at = int(crossed[0])
        raise ValueError(
            f"{function}: stop must not be less than leftpad; got {end[at]} before {first[at]} for sequence {at}."
        )
    lengths = end - first
    padded = filled(function, (B, heads, padded_length(function, length, lengths), E), host.dtype, fill)
    for b, n in enumerate(lengths):
        padded[b, :, :n] = host[b, :, first[b] : end[b]]
    return back(padded, x)
