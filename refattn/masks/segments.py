"""Masks whose rows are intervals with other ends than a band's: a prefix that all see, chunks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn._core.anchors import Anchor, anchor_of
from refattn._core.arrays import Array, moved
from refattn.masks.arguments import (
    after,
    anchor_at,
    anchor_batch,
    batch_of,
    check_anchor,
    lead_of,
    lengths_of,
    per_head,
    picked,
    positions,
    shown,
)
from refattn.masks.base import Ints, Mask, Positions
from refattn.masks.forms import size as size_of

LARGEST_CHUNK = 2**62


class Segments(Mask):
    """A mask that is given by the interval of each row."""

    @abstractmethod
    def _ends(self, i: Ints, L: int, S: int) -> tuple[Ints, Ints]:
        """First key and first key after the last one of the queries i, each broadcastable to lead + (len i,)."""

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints]:
        return self._ends(np.arange(L), L, S)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        first, stop = (moved(x[..., None], xp, device) for x in self._ends(positions(i, np, None), L, S))
        k = positions(j, xp, device)
        return (first <= k) & (k < stop)


@dataclass(frozen=True, eq=False, repr=False)
class Prefix(Segments):
    """The first `length` keys, and those up to the one the query stands on."""

    length: Ints
    anchor: Anchor

    def __post_init__(self) -> None:
        """Refuse batch shapes that do not broadcast."""
        self._batch()

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of lengths or offsets, the same for all heads."""
        return lead_of(self._batch())

    def _batch(self) -> tuple[int, ...]:
        """Batch shape of lengths and offsets."""
        return batch_of("masks.prefix", length=self.length.shape, anchor=anchor_batch(self.anchor))

    def _check(self, function: str, L: int, S: int) -> None:
        check_anchor(function, self, self.anchor, L, S)

    def _ends(self, i: Ints, L: int, S: int) -> tuple[Ints, Ints]:
        stop = i + after(self.anchor, 1, L, S, S)[..., None]
        return np.zeros(1, np.int64), np.clip(np.maximum(per_head(self.length)[..., None], stop), 0, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        at = self._batch(), index[:-1]
        return Prefix(picked(self.length, *at), anchor_at(self.anchor, *at))

    def _reanchored(self, anchor: Anchor) -> Mask:
        return replace(self, anchor=anchor)

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"masks.prefix({shown(self.length)}{'' if self.anchor is None else f', anchor={shown(self.anchor)}'})"


@dataclass(frozen=True, eq=False, repr=False)
class Chunked(Segments):
    """The keys of the chunk that the query stands in."""

    size: int
    anchor: Anchor

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of offsets, the same for all heads."""
        return lead_of(anchor_batch(self.anchor))

    def _check(self, function: str, L: int, S: int) -> None:
        check_anchor(function, self, self.anchor, L, S)

    def _ends(self, i: Ints, L: int, S: int) -> tuple[Ints, Ints]:
        # Before key 0 and from S + size on there are no chunks with keys.
        first = (i + after(self.anchor, 0, L, S, S + self.size)[..., None]) // self.size * self.size
        first = np.minimum(first, S)  # two of the largest chunks do not fit in int64
        return np.maximum(first, 0), np.clip(first + self.size, 0, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return replace(self, anchor=anchor_at(self.anchor, self.lead[:-1], index[:-1]))

    def _reanchored(self, anchor: Anchor) -> Mask:
        return replace(self, anchor=anchor)

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"masks.chunked({self.size}{'' if self.anchor is None else f', anchor={shown(self.anchor)}'})"


def prefix(length: int | Sequence[int] | Array, anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask that lets a query see a prefix of the keys, whole, and behind it those up to the key it stands on.

        query i sees key j  iff  j < length[b]  or  j <= i + offset

    Parameters
    ----------
    length : int or array of int, shape (B,)
        Number of keys in the prefix. A length beyond S is all keys.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Which key the query stands on, as in `causal`.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` where either is an array.

    Raises
    ------
    TypeError
        If `length` is no integer and no integer array, or `anchor` is of another kind.
    ValueError
        If a length is negative, `anchor` another string, or the two do not broadcast; later, where the mask is used,
        if `anchor` is None and L != S.

    Notes
    -----
    Rows are intervals: every form is in closed form. Padding behind the keys is left out by ``& masks.lengths(...)``.

    References
    ----------
    .. [1] C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
       JMLR 21(140), 2020, arXiv:1910.10683, section 3.2.1, "causal with prefix".

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.prefix(3).draw(5, 5))
      01234
    0 ###..
    1 ###..
    2 ###..
    3 ####.
    4 #####
    """
    return Prefix(lengths_of("masks.prefix", "length", length), anchor_of("masks.prefix", anchor))


def chunked(size: int, anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask that cuts the keys into chunks and lets a query see the chunk it stands in.

        query i sees key j  iff  floor(j / size) = floor((i + offset) / size)

    Parameters
    ----------
    size : int
        Number of keys in a chunk.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Which key the query stands on, as in `causal`.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` for an array of offsets.

    Raises
    ------
    TypeError
        If `size` is no integer, or `anchor` is of another kind.
    ValueError
        If `size` is not positive or beyond 2**62, or `anchor` another string; later, where the mask is used, if
        `anchor` is None and L != S.

    Notes
    -----
    Rows are intervals: every form is in closed form. A query that stands before key 0 sees nothing. The mask is not
    causal: Llama 4's local layers are ``masks.chunked(8192) & masks.causal()``, with one anchor for both.

    Examples
    --------
    >>> from refattn import masks
    >>> print((masks.chunked(3) & masks.causal()).draw(5, 5))
      01234
    0 #....
    1 ##...
    2 ###..
    3 ...#.
    4 ...##
    """
    n = size_of("masks.chunked", "size", size, 1)
    if n > LARGEST_CHUNK:
        raise ValueError(f"masks.chunked: size must be at most 2**62; got {n}.")
    return Chunked(n, anchor_of("masks.chunked", anchor))
