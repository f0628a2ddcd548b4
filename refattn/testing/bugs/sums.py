"""What bugs of the softmax recurrence look for in a problem, and the sums that they make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn._core.tiles import tiles
from refattn.testing.bugs.cuts import Cut, cuts, parts
from refattn.testing.bugs.engine import Floats, Head, Ints, State, merge, power
from refattn.testing.bugs.problems import SIZES, TILES, Problem
from refattn.testing.bugs.record import Seen, has_empty_rows, of_all_heads, sample, tile_keys, tile_sizes
from refattn.testing.bugs.rounding import HALF_MAX, LOG2E, merged, normalised, rounded

Flags = npt.NDArray[np.bool_]

# log2(e) in bfloat16.
LOG2E_BF16 = 1.4453125
SENTINEL = -5e4
# Binary orders that a maximum may rise before it is taken; weights are stored times 2^8, up to 448.
LAZY, SHIFT, FP8_MAX = (4, 8), 2.0**8, 448.0


def kept_denominator(x: Head) -> State:
    """Normalised states merged, the denominator 1 throughout: divided by the two weights of each merge, or never."""
    cut, divided = x.choice
    ones = (normalised(part) for part in parts(x, cut))
    if not divided:
        total = merged(ones)
        return State(total.m, np.minimum(total.l, 1.0), total.O)
    total = next(ones)
    for part in ones:
        last = merge(State(total.m, np.minimum(total.l, 1.0), total.output), part)
        total = last
    return total


def cuts_and_divisions(p: Problem) -> Iterator[tuple[Cut, bool]]:
    """Splits, three or more where each merge divides."""
    yield from ((cut, True) for cut in cuts(p, 3))
    yield from ((cut, False) for cut in cuts(p))


def fold(x: Head, *, rescale_l: bool = True, rescale_output: bool = True) -> State:
    """Tiles one after the other, of which a sum is not rescaled when the maximum rises."""
    total: State | None = None
    for part in x.states(x.choice):
        if total is None:
            total = part
            continue
        m = np.maximum(total.m, part.m)
        alpha, beta = power(total.m, m), power(part.m, m)
        l = total.l * (alpha if rescale_l else 1.0) + part.l * beta
        O = total.O * alpha[:, None] if rescale_output else total.O
        total = State(m, l, O + part.O * beta[:, None])
    assert total is not None
    return total


def in_empty_rows(x: Head, name: str, value: Any) -> Floats:
    """A result with another value in rows that see no key."""
    seen, right = x.keep.any(axis=-1), x.right(name)
    return np.asarray(np.where(seen[:, None] if right.ndim == 2 else seen, right, value))


def absorbed(x: Head) -> State:
    """Rows that see no key, with equal weights of all keys and of zeros up to whole tiles, or with the keys' own."""
    state, seen = x.right("state"), x.keep.any(axis=-1)
    tile = x.choice.tile
    plain = np.full(x.scores.shape, float(np.finfo(np.float32).min)) if tile else x.biased
    m = plain.max(axis=-1, initial=-math.inf)
    P = np.exp(plain - m[:, None])
    l = P.sum(axis=-1) + (-x.S % tile if tile else 0)
    O = (P * x.kept) @ x.value
    return State(np.where(seen, state.m, m), np.where(seen, state.l, l), np.where(seen[:, None], state.O, O))


class Blank(NamedTuple):
    """What rows that see no key are a mean of."""

    words: str
    tile: int  # keys of a tile, of which the last is filled up with zeros; 0: keys have weights of their own

    def __str__(self) -> str:
        """In words."""
        return self.words


def blanks(p: Problem) -> Iterator[Blank]:
    """All keys, alike or not, and zeros up to whole tiles; each number of zeros once."""
    yield Blank("all keys alike", 1)
    yield Blank("all keys by their weights", 0)
    found = {(0,) * len(p.sequences[1])}
    for tile in SIZES if p.tile_k is None else (p.tile_k,):
        zeros = tuple((-p.sequences[1] % tile).tolist())
        if zeros not in found:
            found.add(zeros)
            yield Blank(f"all keys and zeros up to whole tiles of {tile} alike", tile)


def not_finite_hidden(name: str, p: Problem) -> bool:
    """An operand with numbers that are not finite, and a mask."""
    array = np.asarray(getattr(p, name))
    return p.mask is not None and not np.isfinite(array.astype(np.float32 if array.itemsize < 4 else array.dtype)).all()


def plain_product(x: Head) -> State:
    """Weights times values, of masked keys too."""
    m, l, _ = x.right("state")
    return State(m, l, (x.weights * x.kept) @ x.value)


class Beside(NamedTuple):
    """Which row is taken for each row of a tile of queries."""

    words: str
    tile: int  # rows of a tile; 0: all
    of: Callable[[Ints, Ints], Ints]  # from places in a tile and its rows; places outside it hold nothing

    def rows(self, x: Head) -> tuple[Ints, Flags]:
        """The other rows, and where there is one."""
        size = self.tile or x.L
        first = x.rows // size * size
        place, length = x.rows - first, np.minimum(size, x.L - first)
        other = self.of(place, length)
        there = (other >= 0) & (other < length)
        return first + np.where(there, other, place), there

    def __str__(self) -> str:
        """In words."""
        return self.words + (f" of tiles of {self.tile} rows" if self.tile else "")


def row_tiles(p: Problem) -> tuple[int, ...]:
    """Sizes of tiles of queries, 0 for all queries."""
    sizes = (*TILES, 256) if p.tile_q is None else (p.tile_q,)
    return (0, *(n for n in sizes if n < p.lengths[0]))


def moved(step: int, round_end: bool, place: Ints, length: Ints) -> Ints:
    """Places some steps on, round the end or not."""
    return (place + step) % length if round_end else place + step


def turned(bit: int, place: Ints, length: Ints) -> Ints:
    """Places with the other value of a bit."""
    return place ^ bit


def neighbours(p: Problem) -> Iterator[Beside]:
    """Rows that a reduction over rows may take in: the next or previous one, round the tile or not, or by one bit."""
    if p.lengths[0] < 2:
        return
    for size in row_tiles(p):
        for words, step in (("next row", 1), ("previous row", -1)):
            yield Beside(words, size, partial(moved, step, False))
            yield Beside(f"{words}, round the end,", size, partial(moved, step, True))
    for bit in (n for n in (1, 2, 4, 8, 16) if n < p.lengths[0]):
        yield Beside(f"row of the other bit {bit}", 0, partial(turned, bit))


def stale_rows(p: Problem) -> Iterator[Beside]:
    """Rows whose maximum may lie where another's should: the previous or next one, the first or last of a tile."""
    if p.lengths[0] < 2:
        return
    yield Beside("previous row", 0, lambda i, n: i - 1)
    yield Beside("next row", 0, lambda i, n: i + 1)
    for size in row_tiles(p):
        yield Beside("first row", size, lambda i, n: 0 * i)
        yield Beside("last row", size, lambda i, n: 0 * i + n - 1)


def crossed_sums(x: Head) -> State:
    """Row sums with those of another row added."""
    m, l, O = x.right("state")
    rows, there = x.choice.rows(x)
    return State(m, l + np.where(there, x.of(rows=rows).state.l, 0.0), O)


def fused_weights(x: Head) -> Floats:
    """Powers of scores that are not rounded, from a maximum that is rounded to float32."""
    exponent = x.scores * LOG2E - rounded(x.top * LOG2E, "float32")[:, None]
    return np.where(exponent >= 128, math.inf, np.exp2(exponent))


def overflowed(x: Head) -> Floats:
    """Scaled products of which those past the largest float16 are infinite."""
    product = x.query @ x.key.T
    return np.asarray(np.where(np.abs(product) > HALF_MAX, np.copysign(math.inf, product), product) * x.scale)


class Lazy(NamedTuple):
    """Tiles of keys under a maximum that is taken where it has risen by more than some binary orders."""

    tile: int
    orders: int
    backward: bool

    def __str__(self) -> str:
        """In words."""
        order = ", the last one first" if self.backward else ""
        return f"key tiles of {self.tile}{order}; maxima rise by 2^{self.orders}"


def saturated(x: Head) -> State:
    """Tiles one after the other with a lazy maximum, of which large weights saturate."""
    rows, Ev = len(x.rows), x.value.shape[1]
    m, l, O = np.full(rows, -math.inf), np.zeros(rows), np.zeros((rows, Ev))
    kept = np.broadcast_to(x.kept, x.scores.shape)
    order = list(tiles(x.S, x.choice.tile))
    for j in reversed(order) if x.choice.backward else order:
        S = x.scores[:, j]
        risen = np.maximum(m, S.max(axis=-1))
        taken = np.where(risen - m > x.choice.orders * math.log(2), risen, np.where(m == -math.inf, risen, m))
        alpha = power(m, taken)
        P = np.exp(S - np.where(taken == -math.inf, 0.0, taken)[:, None])
        stored = np.minimum(P * SHIFT, FP8_MAX) / SHIFT
        m, l = taken, l * alpha + P.sum(axis=-1)
        O = O * alpha[:, None] + (stored * kept[:, j]) @ x.value[j]
    return State(m, l, O)


def lazy_tiles(p: Problem) -> list[Lazy]:
    """Tiles of which some row sees more than one, in both orders."""
    return [Lazy(*of) for of in itertools.product(tile_keys(p), LAZY, (False, True))]


def stale_sink(x: Head) -> State:
    """The sink beside the maximum of another row."""
    m, l, O = x.state
    stale = other_top(x)
    assert x.sink is not None
    return State(m, l + np.exp(x.sink - np.where(stale == -math.inf, 0.0, stale)), O)


def stale_lse(x: Head) -> Floats:
    """The log-sum-exp with the maximum of another row."""
    return np.asarray(x.right("lse") - x.total.m + other_top(x))


def other_top(x: Head) -> Floats:
    """The maximum of another row, the row's own where there is none."""
    rows, _ = x.choice.rows(x)
    top: Floats = x.of(rows=rows).top
    return top


def blank_rows(p: Problem) -> bool:
    """Some row without keys and without a sink."""
    return p.sinks is None and has_empty_rows(p)


def blank_among_keys(p: Problem) -> bool:
    """Some row that sees none of several keys."""
    return bool((p.sequences[1] > 0).all()) and blank_rows(p)


@quiet
def tops(p: Problem) -> list[Floats]:
    """The maxima of a few rows."""
    return [Head(p, *at).top for at in of_all_heads(p)]


def low_sentinel(p: Problem) -> bool:
    """Some row whose scores all lie below the sentinel, as far as rows are looked at."""
    return any(((top < SENTINEL - 50) & (top > -math.inf)).any() for top in tops(p))


def huge_logits(p: Problem) -> bool:
    """Some maximum that float32 holds to more than 128 only."""
    return any(((np.abs(top) > 2.0**32) & np.isfinite(top)).any() for top in tops(p))


class Start(NamedTuple):
    """Where a row of a tile of queries begins among the tiles of keys."""

    tile_k: int
    tile_q: int  # 0: all keys are visited, not those from the first to the last that a tile of queries sees
    backward: bool
    value: float  # what becomes of NaN

    def blank(self, x: Head) -> Flags:
        """Rows of which the first tile that is visited is masked whole."""
        visited = ends(x, self.tile_q)[:, -1 if self.backward else 0] // self.tile_k
        return np.asarray(~(x.keep & (np.arange(x.S) // self.tile_k == visited[:, None])).any(axis=-1))

    def __str__(self) -> str:
        """In words."""
        after = " from the last one on" if self.backward else ""
        return f"key tiles of {self.tile_k}{after}" + (f", query tiles of {self.tile_q}" if self.tile_q else "")


def ends(x: Head, tile_q: int) -> Ints:
    """First and last key (R, 2) that each row's tile of queries sees; those of all keys where it sees none."""
    if ("ends", tile_q) not in x.held:
        found = np.tile([0, x.S - 1], (len(x.rows), 1))
        of = x.rows // tile_q if tile_q else np.empty(0)
        for tile in np.unique(of).tolist():
            rows = np.arange(tile * tile_q, min((tile + 1) * tile_q, x.L))
            (seen,) = np.nonzero(x.of(rows=rows).keep.any(axis=0))
            if len(seen):
                found[of == tile] = seen[0], seen[-1]
        x.held["ends", tile_q] = found
    ends_of: Ints = x.held["ends", tile_q]
    return ends_of


def blank_start(x: Head, name: str) -> Floats:
    """A result with NaN, or what becomes of it, in rows whose first tile is masked."""
    blank, right, value = x.choice.blank(x), x.right(name), x.choice.value
    if name == "lse":
        return np.asarray(np.where(blank, math.nan if math.isnan(value) else -math.inf, right))
    return np.asarray(np.where(blank[:, None], value, right))


def starts(p: Problem) -> Iterator[Start]:
    """Tiles of which some row sees nothing in the first."""
    if p.mask is None:
        return
    heads = [Head(p, *at) for at in sample(p)]
    for tile_q, tile_k, backward in itertools.product(row_tiles(p), tile_sizes(p), (False, True)):
        start = Start(tile_k, tile_q, backward, math.nan)
        if any((start.blank(x) & x.keep.any(axis=-1)).any() for x in heads):
            yield start


def starts_read(p: Problem, seen: Seen) -> Iterator[Start]:
    """Tiles that leave the rows of NaN, or of zeros, of what was returned."""
    if p.mask is None:
        return
    heads = [Head(p, *at) for at in seen.rows]
    some = np.concatenate([x.keep.any(axis=-1) for x in heads])
    for value in (math.nan, 0.0):
        lost = np.all(np.isnan(seen.output) if math.isnan(value) else seen.output == value, axis=-1)
        if not (lost & some).any():
            continue
        for tile_q, tile_k, backward in itertools.product(row_tiles(p), tile_sizes(p), (False, True)):
            start = Start(tile_k, tile_q, backward, value)
            if (np.concatenate([start.blank(x) for x in heads]) == lost).all():
                yield start
