"""Sequences of different lengths one after another, with the offsets at which they begin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refattn._core.arrays import Array
from refattn._core.checks import check_choice, check_integer
from refattn.layouts.host import (
    Host,
    Ints,
    back,
    filled,
    lengths_of,
    offsets_from,
    offsets_of,
    on_host,
    table_of,
)

# Of each order of packed arrays: the axes of the packed and of the logical array.
PACKED = {"thd": ("(T, H, E)", "(B, H, L, E)"), "th": ("(T, H)", "(B, H, L)"), "ht": ("(H, T)", "(B, H, L)")}


class Ragged(NamedTuple):
    """Packed sequences.

    Attributes
    ----------
    packed : array, shape (T, H, E), (T, H) or (H, T)
        All tokens, sequence by sequence.
    cu_seqlens : array of int32, shape (B + 1,)
        Sequence b is the tokens ``cu_seqlens[b] : cu_seqlens[b + 1]``.
    """

    packed: Array
    cu_seqlens: Array


def pack_ragged(x: Array, lengths: Any, *, order: str = "thd", capacity: Any = None, fill: float = 0.0) -> Ragged:
    """Lay the sequences of a padded array one after another, as FlashAttention's ``varlen`` functions take them.

    Parameters
    ----------
    x : array, shape (B, H, L, E)
        Padded sequences, of any library and dtype; (B, H, L) for a log-sum-exp.
    lengths : array of int, shape (B,)
        Number of tokens of each sequence, 0 .. L; what `x` holds past them is left out.
    order : {"thd", "ht", "th"}, default "thd"
        Axes of the result: "thd" for arrays with features; for a log-sum-exp "ht" is (H, T) (FlashAttention) and "th"
        (T, H) (FlashInfer).
    capacity : array of int, shape (B,), optional
        Room for each sequence, at least its length. Default: `lengths`, no room is left over.
    fill : float, default 0.0
        What cells that hold no token are filled with; NaN shows who reads them.

    Returns
    -------
    Ragged
        ``(packed, cu_seqlens)``, of the library and on the device of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array, or lengths are no integers.
    ValueError
        If a length lies beyond L or its capacity, or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> packed, cu_seqlens = layouts.pack_ragged(np.zeros((3, 4, 5, 8)), [2, 0, 5])
    >>> packed.shape, cu_seqlens.tolist()
    ((7, 4, 8), [0, 2, 2, 7])
    """
    function = "layouts.pack_ragged"
    check_choice(function, "order", order, tuple(PACKED))
    host = on_host(function, "x", x, PACKED[order][1])
    used = lengths_of(function, "lengths", lengths, len(host), host.shape[2], "L")
    room = used if capacity is None else table_of(function, "capacity", capacity, "(B,)", used.shape)
    if (short := np.flatnonzero(room < used)).size:
        at = int(short[0])
        raise ValueError(
            f"{function}: capacity must not be less than lengths; got {room[at]} for {used[at]} tokens of sequence "
            f"{at}."
        )
    offsets = offsets_from(function, room)
    tokens = filled(function, (int(offsets[-1]), host.shape[1], *host.shape[3:]), host.dtype, fill)
    for b, first in enumerate(offsets[:-1]):
        tokens[first : first + used[b]] = np.moveaxis(host[b, :, : used[b]], 0, 1)
    return Ragged(back(tokens.T if order == "ht" else tokens, x), back(offsets, x))


def unpack_ragged(
    packed: Array,
    cu_seqlens: Any,
    *,
    used: Any = None,
    order: str = "thd",
    length: int | None = None,
    fill: float = 0.0,
) -> Array:
    """Padded array of packed sequences: what `refattn.attention` takes, and what its result is compared with.

    Parameters
    ----------
    packed : array, shape (T, H, E)
        All tokens, sequence by sequence; (H, T) or (T, H) for a log-sum-exp.
    cu_seqlens : array of int, shape (B + 1,)
        Offsets: sequence b is the tokens ``cu_seqlens[b] : cu_seqlens[b + 1]``. The first is 0, the last T.
    used : array of int, shape (B,), optional
        How many of its tokens each sequence uses (``seqused_k``). Default: all.
    order : {"thd", "ht", "th"}, default "thd"
        Axes of `packed`, as in `pack_ragged`.
    length : int, optional
        L of the result. Default: the longest sequence's.
    fill : float, default 0.0
        What the padding is filled with.

    Returns
    -------
    array, shape (B, H, L, E)
        The same numbers, bit for bit, of the library and on the device of `packed`; (B, H, L) for a log-sum-exp.

    Raises
    ------
    TypeError
        If `packed` is not an array, or a table is not of integers.
    ValueError
        If the offsets do not start at 0, decrease or do not end at T, a sequence is longer than `length`, or shapes do
        not fit.

    Notes
    -----
    Masks of the padded array: ``masks.causal(anchor=key_lengths - query_lengths) & masks.lengths(key_lengths,
    query_lengths)`` is FlashAttention's ``causal=True``, which anchors at each sequence's own corner.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> layouts.unpack_ragged(np.zeros((7, 4, 8)), [0, 2, 2, 7]).shape
    (3, 4, 5, 8)
    """
    function = "layouts.unpack_ragged"
    check_choice(function, "order", order, tuple(PACKED))
    host = on_host(function, "packed", packed, PACKED[order][0])
    tokens = host.T if order == "ht" else host
    offsets = offsets_of(function, "cu_seqlens", cu_seqlens, len(tokens))
    room = np.diff(offsets)
    lengths = room if used is None else lengths_of(function, "used", used, len(room), None, "")
    if (over := np.flatnonzero(lengths > room)).size:
        at = int(over[0])
        raise ValueError(
            f"{function}: used must not be more than the sequence has; got {lengths[at]} of {room[at]} tokens of "
            f"sequence {at}."
        )
    return back(
        logical(function, tokens, offsets[:-1], lengths, padded_length(function, length, lengths), fill), packed
    )


def logical(function: str, tokens: Host, first: Ints, lengths: Ints, L: int, fill: float) -> Host:
    """Padded sequences (B, H, L, ...), of which each begins at a token of (T, H, ...)."""
    padded = filled(function, (len(lengths), tokens.shape[1], L, *tokens.shape[2:]), tokens.dtype, fill)
    for b, n in enumerate(lengths):
        padded[b, :, :n] = np.moveaxis(tokens[first[b] : first[b] + n], 1, 0)
    return padded


def padded_length(function: str, length: int | None, lengths: Ints) -> int:
    """The length of a padded array: the one asked for, or the longest sequence's."""
    longest = int(lengths.max(initial=0))
    if length is None:
        return longest
    L = check_integer(function, "length", length)
    if longest > L:
        at = int(lengths.argmax())
        raise ValueError(f"{function}: length must hold every sequence; got {L} for {longest} tokens of sequence {at}.")
    return L
