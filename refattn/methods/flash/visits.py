"""Which pairs of a query tile and a key tile a tiled form visits, counted without going through them one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.cost import Given, TileMask, Work
from refattn._core.tiles import tiles

Ints = npt.NDArray[np.int64]

ROWS = 2**20  # most rows that are looked at at a time


class Sums(NamedTuple):
    """Sums over pairs of tiles: 1, the rows (of all heads that share the pair), the keys, and rows times keys."""

    pairs: int = 0
    rows: int = 0
    keys: int = 0
    cells: int = 0

    def plus(self, other: Sums, times: int = 1) -> Sums:
        """Sums over these and, so many times, the other pairs."""
        return Sums(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Visits:
    """Pairs that are visited, those of them in which the mask must be asked, and the keys that any query tile visits.

    `strips` is the number of query tiles, visited or not; `heads` of the query share each of them.
    """

    all: Sums
    partial: Sums
    columns: int
    strips: int
    heads: int

    def read(self, given: Given | None, pairs: Sums) -> int:
        """Bytes of an operand of which each of these pairs reads its own part."""
        if given is None or given.rule:
            return 0
        alone = len(given.shape) > 2 and given.shape[-3] != 1
        by_row, by_key = (n != 1 for n in given.shape[-2:])
        size = pairs.cells if by_row and by_key else pairs.rows if by_row else pairs.keys if by_key else pairs.pairs
        # Sums over rows are over the rows of all heads.
        times, divisor = (self.heads if alone else 1), (self.heads if by_row else 1)
        return given.dtype_bytes * size * times // divisor


def visits(work: Work, tile: tuple[int, int]) -> Visits:
    """The visits of all batch entries and heads, for tiles of so many query positions and keys."""
    (H, Hk), (L, S), (tile_q, tile_k) = work.heads, work.lengths, tile
    heads = H // Hk if work.pack_gqa else 1
    units, down, across = math.prod(work.batch) * H // heads, -(-L // tile_q), -(-S // tile_k)
    if work.mask is None:
        every = Sums(units * down * across, units * heads * L * across, units * down * S, units * heads * L * S)
        return Visits(every, Sums(), units * S if L else 0, units * down, heads)
    every, partial, columns = Sums(), Sums(), 0
    for group, times in _groups(work.mask, (*work.batch, H), heads):
        found = _from_intervals(group, heads, L, S, tile) or _from_blocks(group, heads, L, S, tile)
        every, partial = every.plus(found[0], times), partial.plus(found[1], times)
        columns += times * found[2]
    return Visits(every, partial, columns, units * down, heads)


def _groups(mask: TileMask, lead: tuple[int, ...], heads: int) -> Iterator[tuple[list[TileMask], int]]:
    """The masks of the heads that share tiles, once where they are the same, and for how many groups they stand."""
    own = (1,) * (len(lead) - len(mask.lead)) + tuple(mask.lead)
    times = math.prod(n for n, m in zip(lead[:-1], own[:-1], strict=True) if m == 1)
    for index in np.ndindex(own[:-1]):
        if own[-1] == 1:
            yield [mask.at((*index, 0))], times * (lead[-1] // heads)
        else:
            for first in range(0, lead[-1], heads):
                yield [mask.at((*index, h)) for h in range(first, first + heads)], times


Found = tuple[Sums, Sums, int]


def _from_intervals(group: list[TileMask], heads: int, L: int, S: int, tile: tuple[int, int]) -> Found | None:
    """All pairs, partial ones and visited keys of one group, where every row of each mask is one interval of keys."""
    intervals = [mask.interval(L, S) for mask in group]
    ends = [tuple(np.broadcast_to(x, (L,)) for x in found) for found in intervals if found is not None]
    if len(ends) < len(group):
        return None
    (tile_q, tile_k), across = tile, -(-S // tile[1])
    every, full, steps = Sums(), Sums(), np.zeros(across + 1, np.int64)
    for part in tiles(L, max(1, ROWS // (len(group) * tile_q)) * tile_q):
        n = -(-(part.stop - part.start) // tile_q)
        inside = np.minimum(tile_q, part.stop - part.start - tile_q * np.arange(n))
        first, stop = (np.concatenate([_cut(x[e][part], n, tile_q) for x in ends], axis=1) for e in (0, 1))
        seen = first < stop
        begin, end = np.where(seen, first // tile_k, across), np.where(seen, -(-stop // tile_k), 0)
        steps += np.bincount(begin[seen], minlength=across + 1) - np.bincount(end[seen], minlength=across + 1)
        every = every.plus(_sums(_union(begin, end), end.max(axis=1) == across, inside * heads, S, tile_k))
        # A pair is full where every row inside L fills its key tile.
        within = np.tile(np.arange(tile_q) < inside[:, None], len(group))
        begin = np.where(within, -(-first // tile_k), 0).max(axis=1)
        end = np.where(within, np.where(stop == S, across, stop // tile_k), across).min(axis=1)
        filled = np.where((seen == within).all(axis=1), np.maximum(end - begin, 0), 0)
        full = full.plus(_sums(filled, end == across, inside * heads, S, tile_k))
    columns = int(_widths(np.flatnonzero(np.cumsum(steps)[:-1] > 0), S, tile_k).sum())
    return every, every.plus(full, -1), columns


def _cut(x: Ints, n: int, tile_q: int) -> Ints:
    """Ends of rows by query tile, (n, tile_q); rows beyond L are empty."""
    padded = np.zeros(n * tile_q, np.int64)
    padded[: x.size] = x
    return padded.reshape(n, tile_q)


def _union(begin: Ints, end: Ints) -> Ints:
    """Number of key tiles in the union of the intervals begin .. end of each query tile."""
    order = np.argsort(begin, axis=1)
    begin, end = np.take_along_axis(begin, order, axis=1), np.take_along_axis(end, order, axis=1)
    before = np.maximum.accumulate(end, axis=1)[:, :-1]
    before = np.concatenate([np.zeros((len(end), 1), np.int64), before], axis=1)
    return np.asarray(np.maximum(end - np.maximum(begin, before), 0).sum(axis=1))


def _sums(count: Ints, last: npt.NDArray[np.bool_], rows: Ints, S: int, tile_k: int) -> Sums:
    """Sums over `count` key tiles of each query tile, the last one of all among them or not."""
    keys = count * tile_k - np.where(last & (count > 0), -S % tile_k, 0)
    return Sums(*(int(x.sum()) for x in (count, count * rows, keys, keys * rows)))


def _widths(k: Ints, S: int, tile_k: int) -> Ints:
    """Keys in the key tiles k."""
    return np.minimum(tile_k, S - k * tile_k)


def _from_blocks(group: list[TileMask], heads: int, L: int, S: int, tile: tuple[int, int]) -> Found:
    """All pairs, partial ones and visited keys of one group, from the block lists of its masks."""
    (tile_q, tile_k), across = tile, max(1, -(-S // tile[1]))
    places, kinds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for mask in group:
        blocks = mask.blocks(L, S, tile_q, tile_k)
        strip = np.repeat(np.arange(blocks.indptr.size - 1), np.diff(blocks.indptr))
        places.append(strip * across + blocks.indices)
        kinds.append(blocks.kind == 0)
    place, which = np.unique(np.concatenate(places), return_inverse=True)
    full = np.bincount(which, weights=np.concatenate(kinds), minlength=place.size) == len(group)
    rows = heads * np.minimum(tile_q, L - place // across * tile_q)
    keys = _widths(place % across, S, tile_k)
    every, partial = (
        Sums(*(int(x[at].sum()) for x in (np.ones_like(keys), rows, keys, rows * keys))) for at in (slice(None), ~full)
    )
    return every, partial, int(_widths(np.unique(place % across), S, tile_k).sum())
