"""Exact products of float64 matrices, and when a product in floating point is exact: theorem X of README.md."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.tiles import tiles
from refattn.oracle.arithmetic import two_sum

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

U = 2.0**-53
ETA = 2.0**-1074

# The quantum of zero, which is a multiple of every power of two: above that of any other number.
ZERO_QUANTUM = 2000

# Numbers that are worked on together, so that they stay in the cache.
CELLS = 8192
# Theorem W: keys whose weighted values one product sums, and bits that a slice of the weights and one of the values may
# have together for it to be exact. All slices of the weights have at least COVERED bits; values have one slice of at
# most ONE_SLICE bits, or two of TWO_SLICES.
BLOCK, CAPACITY, COVERED, ONE_SLICE, TWO_SLICES = 512, 43, 42, 26, 22

# Theorem X: sums of integer multiples of 2^(g + h) up to 2^(53 + g + h) have to be finite and no finer than 2^-1074.
_LEAST, _GREATEST = -1074, 970

_FRACTION, _ONE, _ALL_ONES = np.uint64(2**52 - 1), np.uint64(1), np.uint64(2**64 - 1)


def quantum(x: Floats) -> Ints:
    """The largest g of each row for which its numbers, all finite, are multiples of 2^g; for zeros, ZERO_QUANTUM."""
    least = np.empty(len(x), dtype=np.uint64)
    for rows in tiles(len(x), max(1, CELLS // max(1, x.shape[1]))):
        magnitudes = np.abs(x[rows])
        ones = magnitudes.view(np.uint64) & _FRACTION
        ones &= ~ones + _ONE
        # A number less its last one bit, unless that is the one that is not stored: then the number itself is its
        # quantum, and zero stands here, which counts as the largest once 1 is taken from it as an integer.
        last = magnitudes - (magnitudes.view(np.uint64) - ones).view(np.float64)
        both = ((y.view(np.uint64) - _ONE).min(axis=1, initial=_ALL_ONES) for y in (last, magnitudes))
        least[rows] = np.minimum(*both) + _ONE
    exponents = np.frexp(least.view(np.float64))[1].astype(np.int64) - 1
    return np.where(least == 0, ZERO_QUANTUM, exponents)


def top(largest: Floats) -> Ints:
    """The least E with each magnitude below 2^E; -1074 for 0."""
    return np.where(largest > 0, np.frexp(largest)[1], -1074).astype(np.int64)


def norms(x: Floats) -> Floats:
    """Upper bounds of the Euclidean norms of the rows, lemma N: for any finite numbers, subnormal ones included."""
    # The largest becomes at least 2^-74 and at most 2^24: short of that, the power of two might be infinite.
    exponents = np.clip(top(np.abs(x).max(axis=1, initial=0.0)), -1000, 1000)
    scaled = x * np.ldexp(1.0, -exponents)[:, None]
    squares = np.einsum("ij,ij->i", scaled, scaled)
    with np.errstate(over="ignore"):
        bounds = np.ldexp(np.sqrt(squares) * (1.0 + (x.shape[1] + 8) * U), exponents)
    return np.where(squares > 0, bounds + ETA, 0.0)


def exact_rows(query_norms: Floats, query_quanta: Ints, key_norms: Floats, key_quanta: Ints) -> Flags:
    """Whether every product of a query with any of the keys is exact however it is summed: theorem X, per query.

    Norms are upper bounds as `norms` gives them, quanta as `quantum` does.
    """
    some = key_norms > 0
    if not some.any():
        return np.ones(len(query_norms), dtype=np.bool_)
    lowest, highest = key_quanta[some].min(), key_quanta[some].max()
    with np.errstate(over="ignore"):
        spread = np.ldexp(key_norms[some], -key_quanta[some]).max()
        # The rounded product is below 2^53 only where the product is.
        fits = np.ldexp(query_norms, -query_quanta) * spread < 2.0**53
    ranged = (query_quanta + lowest >= _LEAST) & (query_quanta + highest <= _GREATEST)
    return np.asarray((query_norms == 0) | (fits & ranged))


def add_exactly(a: Floats, b: Floats, total: Floats, work: Floats) -> None:
    """Rounded sum of a and b in `total`, its error in b: `two_sum` without new arrays; a and `work` are overwritten."""
    np.add(a, b, out=total)
    np.subtract(total, a, out=work)
    b -= work
    np.subtract(total, work, out=work)
    a -= work
    b += a


def cutter(g: Ints | int) -> Floats:
    """What `cut` needs to cut at multiples of 2^g."""
    return np.asarray(np.ldexp(1.5, 52 + g))


def cut(x: Floats, constant: Floats | float) -> tuple[Floats, Floats]:
    """The nearest multiple of 2^g and the rest, both exact, lemma F: for constant = cutter(g) and |x| <= 2^(g + 51)."""
    nearest = x + constant
    nearest -= constant
    return nearest, x - nearest


class Slices(NamedTuple):
    """Rows of queries or keys as x = first + second + rest, lemma F: at 2^(E - bits) and 2^(E - 2 bits), |x| < 2^E."""

    middle: Floats  # (n, 2 E): first and second side by side
    low: Floats  # (n, 3 E): what a product of queries and keys still lacks, in the order that pairs the two
    rest: bool  # whether any rest is not zero


def slice_bits(E: int) -> int:
    """Bits of each slice for which products over E features are exact: theorem S."""
    return (53 - max(0, E - 1).bit_length()) // 2


def query_slices(x: Floats, exponents: Ints) -> Slices:
    """Slices of queries (n, E), whose magnitudes are below 2^exponents (n,)."""
    first, left, second, rest = _cut_twice(x, exponents)
    return Slices(np.hstack([first, second]), np.hstack([x, left, rest]), bool(rest.any()))


def key_slices(x: Floats, exponents: Ints) -> Slices:
    """Slices of keys (n, E), whose magnitudes are below 2^exponents (n,)."""
    first, _, second, rest = _cut_twice(x, exponents)
    low = np.hstack([rest, second, first])
    return Slices(low[:, x.shape[1] :], low, bool(rest.any()))


def _cut_twice(x: Floats, exponents: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """First slice, what it leaves, second slice, what it leaves."""
    bits = slice_bits(x.shape[1])
    first, left = cut(x, cutter(exponents - bits)[:, None])
    second, rest = cut(left, cutter(exponents - 2 * bits)[:, None])
    return first, left, second, rest


def product_dd(queries: Slices, keys: Slices, high: Floats, low: Floats, work: Floats) -> None:
    """Q K^T as high + low, theorem S, each (R, n); `work` is overwritten."""
    E = queries.middle.shape[1] // 2
    np.matmul(queries.middle[:, :E], keys.middle[:, E:].T, out=high)
    np.matmul(queries.middle, keys.middle.T, out=low)
    lacking = slice(0 if keys.rest else E, 3 * E if queries.rest else 2 * E)
    np.matmul(queries.low[:, lacking], keys.low[:, lacking].T, out=work)
    buffers = np.empty((2, CELLS))
    for chunk in chunks(high.shape):
        h, l = high[chunk], low[chunk]
        total, other = (x[: h.size].reshape(h.shape) for x in buffers)
        add_exactly(h, l, total, other)
        l += work[chunk]
        add_exactly(total, l, h, other)


def product_error(E: int, norm: Floats, exponent: Ints, key_norm: float, key_exponent: int) -> Floats:
    """Theorem S: how far `product_dd` may be from q.k, per query, for the largest norm and exponent of the keys."""
    bits, root = slice_bits(E), math.sqrt(E)
    size, key_size = np.ldexp(1.0, exponent), np.ldexp(1.0, key_exponent)
    lacking = 0.5 * root * norm * key_size + 0.25 * E * size * key_size
    lacking += 0.5 * root * size * (key_norm + root * 2.0**-bits * key_size)
    error: Floats = 1.02 * ((3 * E + 1) * U * 4.0**-bits * lacking + U * U * norm * key_norm) + 16 * E * ETA
    return error


def chunks(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Parts of a matrix of at most CELLS numbers, of whole rows where a row has no more."""
    R, n = shape
    return [(rows, keys) for rows in tiles(R, max(1, CELLS // max(1, n))) for keys in tiles(n, CELLS)]


class Plan(NamedTuple):
    """How weights and values are sliced for theorem W."""

    weight_bits: int
    weight_slices: int
    value_bits: int
    one: bool  # whether the values are one slice


def plan(bits: int) -> Plan:
    """How to slice for values that are multiples of 2^-bits, up to 1 in magnitude."""
    one = bits <= ONE_SLICE
    value_bits = max(1, bits) if one else TWO_SLICES
    weight_bits = CAPACITY - value_bits
    return Plan(weight_bits, -(-COVERED // weight_bits), value_bits, one)


class Values(NamedTuple):
    """Values (n, Ev), up to 1 in magnitude, cut for theorem W."""

    whole: Floats  # (n, Ev)
    slices: Floats  # (n, Ev), or (n, 2 Ev) with two slices side by side
    rest: Floats | None  # (n, Ev): what the slices leave; None for nothing
    magnitudes: Singles  # (n, Ev)

    def block(self, keys: slice) -> Values:
        """Some of the keys."""
        rest = None if self.rest is None else self.rest[keys]
        return Values(self.whole[keys], self.slices[keys], rest, self.magnitudes[keys])


def value_slices(x: Floats, cuts: Plan) -> Values:
    """Values (n, Ev), up to 1 in magnitude, cut as planned."""
    magnitudes = np.abs(x).astype(np.float32)
    if cuts.one:
        return Values(x, x, None, magnitudes)
    first, left = cut(x, cutter(-cuts.value_bits))
    second, rest = cut(left, cutter(-2 * cuts.value_bits))
    return Values(x, np.hstack([first, second]), rest if rest.any() else None, magnitudes)


class Weighted:
    """Sums of weights and of weighted values, theorem W, added up block of keys by block of keys."""

    def __init__(self, Ev: int, cuts: Plan, rest: Floats) -> None:
        """No keys so far; `rest` (R,) is the computed sum of the magnitudes of all rests."""
        R = len(rest)
        self.cuts, self.rest = cuts, rest
        self.high, self.low, self.magnitudes = (np.zeros((R, Ev)) for _ in range(3))  # of p v; and of p |v|
        self.sum_high, self.sum_low = np.zeros((2, R))  # of p
        self.additions = 0
        self._total, self._work, self._product = (np.empty((R, Ev)) for _ in range(3))
        self._products = np.empty((R, (1 if cuts.one else 2) * Ev))

    def add(self, slices: list[Floats], rest: Floats, single: Singles, kept: Flags | None, values: Values) -> None:
        """Up to BLOCK keys, whose weights (R, n) are the sum of slices and rest, and about `single`."""
        ones = np.ones(rest.shape[1])
        for x in slices:
            self.sum_high, error = two_sum(self.sum_high, x @ ones)
            self.sum_low += error
        self.sum_low += rest @ ones
        if kept is not None:
            for weights in (*slices, rest):
                weights *= kept
            single *= kept
        self.magnitudes += single @ values.magnitudes
        Ev = self.high.shape[1]
        for x in slices:
            np.matmul(x, values.slices, out=self._products)
            for i in range(1 if self.cuts.one else 2):
                part = self._products[:, i * Ev : (i + 1) * Ev]
                add_exactly(self.high, part, self._total, self._work)
                self.low += part
                self.high, self._total = self._total, self.high
                self.additions += 1
        self._add_inexactly(rest, values.whole)
        if values.rest is not None:
            slices[0] += slices[1]
            self._add_inexactly(slices[0], values.rest)

    def _add_inexactly(self, weights: Floats, values: Floats) -> None:
        """A product of little, in float64."""
        self.low += np.matmul(weights, values, out=self._product)
        self.additions += 1

    def errors(self, n: int) -> tuple[Floats, Floats]:
        """Theorem W: how far the sum of p v (R, Ev) and that of p (R,) may be from those of the n weights."""
        steps = 1.01 * (BLOCK + self.additions + 4) * U
        again = 17.0 * (self.additions * U) ** 2
        lacking = self.rest
        if not self.cuts.one:
            lacking = self.rest + 1.01 * self.sum_high * 4.0**-self.cuts.value_bits
        of_values = (steps * lacking + 8 * n * ETA)[:, None] + again * self.bound(n)
        return of_values, steps * self.rest + again * self.sum_high

    def bound(self, n: int) -> Floats:
        """An upper bound of the sum of p |v|, lemma M."""
        return 1.02 * self.magnitudes + n * 2.0**-120
