"""What `reference.py` costs, every array operation for itself, and the tiles that it takes where none are asked for."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

from refattn._core.cost import Cost, Given, Work
from refattn._core.cost_arrays import (
    WORD,
    Arrays,
    finish,
    finish_moments,
    kept,
    kept_moments,
    score_moments,
    scores,
    update,
    update_moments,
)
from refattn._core.score import Score
from refattn._core.tiles import some_tiles

# A tile of scores, of all heads together, is 1 MiB of float64, one of keys and values at most 4 MiB: the handful of
# arrays that a step makes stays in a core's own caches. Smaller ones cost more calls than they save.
CELLS, ELEMENTS = 2**17, 2**19
LEAST_CELLS, LEAST_QUERIES, LEAST_KEYS = 2**10, 16, 64


def fitting(
    heads: int, key_heads: int, L: int, features: int, tile_q: int | None = None, tile_k: int | None = None
) -> tuple[int, int]:
    """Queries and keys in a tile: as given, else such that it fits into a cache."""
    cells = max(LEAST_CELLS, CELLS // max(1, heads))
    queries = max(LEAST_QUERIES, cells // (tile_k or math.isqrt(2 * cells))) if tile_q is None else tile_q
    fits = min(cells // max(1, min(queries, L)), ELEMENTS // (max(1, key_heads) * features))
    return queries, max(LEAST_KEYS, fits) if tile_k is None else tile_k


def reference(work: Work) -> Cost:
    """FlashAttention-2, Algorithm 1, in array operations that each read their operands and write their result.

    Tiles of mask, bias and dropout are read; what it takes to make them, and to find out which are empty, is not
    counted.
    """
    if work.on_chip is not None:
        raise ValueError(
            f"cost: on_chip must be None for form='reference', whose tiles do not follow from it; got {work.on_chip}."
        )
    heads, key_heads = (math.prod(work.batch) * n for n in work.heads)
    tile = work.tile or fitting(heads, key_heads, work.lengths[0], sum(work.features))
    score, tally, strips = Score(work.lengths, 1.0, mask=work.mask), Arrays(), []
    for i in some_tiles(work.lengths[0], tile[0]):
        strips.append(Strip(i.stop - i.start, tuple(j.stop - j.start for j in score.tiles(i, tile[1]))))
    for (rows, widths), times in Counter((strip.rows, tuple(sorted(strip.widths))) for strip in strips).items():
        tally.adds(_strip(work, rows, Counter(widths)), times)
    r, o = work.rows, work.elements[3]
    for size in (o, r):  # concat
        tally.moves(WORD * size, WORD * size)
    if work.dtypes[3] != "float64":
        tally.moves(WORD * o, work.operand_bytes[3])
    return tally.cost(work, "reference", _peak(work, strips), tile=tile)


class Strip(NamedTuple):
    """A tile of queries: their number, and those of the keys in the tiles that it visits, in order."""

    rows: int
    widths: tuple[int, ...]


def _part(work: Work, rows: int, keys: int) -> Work:
    """One tile of so many queries and keys as work of its own."""

    def cut(given: Given | None) -> Given | None:
        if given is None:
            return None
        *lead, L, S = given.shape
        return given._replace(shape=(*lead, 1 if L == 1 else rows, 1 if S == 1 else keys))

    masked, bias, dropout = map(cut, (work.masked, work.bias, work.dropout))
    return replace(work, lengths=(rows, keys), masked=masked, bias=bias, dropout=dropout)


def _strip(work: Work, rows: int, widths: Counter[int]) -> Arrays:
    """All of one tile of queries: lines 4 to 13."""
    tally, whole = Arrays(), _part(work, rows, 1)
    _casts(tally, work, (whole.elements[0], 0, 0))
    tally.moves(0, WORD * (2 * whole.rows + whole.elements[3]))  # line 5
    for keys, times in widths.items():
        step, part = Arrays(), _part(work, rows, keys)
        _casts(step, work, (0, *part.elements[1:3]))
        scores(step, part)
        kept(step, part)
        if part.cells:
            update(step, part)
        tally.adds(step, times)
    finish(tally, whole)
    return tally


def _casts(tally: Arrays, work: Work, counts: tuple[int, ...]) -> None:
    """Tiles of query, key and value that are not float64 yet."""
    for size, count, name in zip(work.dtype_bytes[:3], counts, work.dtypes[:3], strict=True):
        if name != "float64":
            tally.moves(size * count, WORD * count)


class Alive(NamedTuple):
    """Bytes of what a step leaves to the next: tile of queries, state, tiles of keys and values, scores, factors."""

    query: int = 0
    state: int = 0
    keys: int = 0
    scores: int = 0
    factors: int = 0


def _peak(work: Work, strips: list[Strip]) -> int:
    """Most bytes alive at once, up to the booleans of one test of the rows.

    Tiles of the output that are done stay until they are joined.
    """
    most, done, left = 0, 0, Alive()
    known: dict[tuple[Strip, Alive], tuple[int, Alive]] = {}
    for strip in strips:
        if (strip, left) not in known:
            known[strip, left] = _moments(work, strip, left)
        highest, left = known[strip, left]
        most = max(most, done + highest)
        whole = _part(work, strip.rows, 1)
        done += WORD * (whole.rows + whole.elements[3])
    r, o = WORD * work.rows, WORD * work.elements[3]
    stored = work.operand_bytes[3] if work.dtypes[3] != "float64" else 0
    return max(most, done + sum(left) + o + r, o + r + stored)


def _moments(work: Work, strip: Strip, left: Alive) -> tuple[int, Alive]:
    """Most bytes of one tile of queries beside those that are done, and what it leaves."""
    whole = _part(work, strip.rows, 1)
    query = _owned(work, (whole.elements[0], 0, 0))
    state = WORD * (2 * whole.rows + whole.elements[3])
    most = sum(left) + max(query, query - left.query + state)
    keys, S, Z = left.keys, left.scores, left.factors
    for n, width in enumerate(strip.widths):
        if n > 2 and width == strip.widths[n - 1] == strip.widths[n - 2]:
            continue  # as the step before
        part = _part(work, strip.rows, width)
        new = _owned(work, (0, *part.elements[1:3]))
        around = query + state + new
        moments = [around + keys + S + Z]  # line 7
        moments += [around + S + Z + moment for moment in score_moments(part)]  # line 8
        moments += [around + Z + moment for moment in kept_moments(part)]
        moments += [query + new + moment for moment in update_moments(part)]  # lines 9, 10
        most = max(most, *moments)
        keys, S, Z = new, WORD * part.cells, 0 if part.dropout is None else WORD * part.dropout.size
    most = max(most, *(query + keys + S + Z + moment for moment in finish_moments(whole)))  # lines 12, 13
    return most, Alive(query, state, keys, S, Z)


def _owned(work: Work, counts: tuple[int, ...]) -> int:
    """Bytes of tiles of query, key and value that were cast, and so are no views."""
    return sum(WORD * count for count, name in zip(counts, work.dtypes[:3], strict=True) if name != "float64")
