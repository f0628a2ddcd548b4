"""Products of matrices: when they are exact, how they are cut into exact ones, and what the rest may be off by."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from refattn.oracle import products
from refattn.oracle.products import (
    BLOCK,
    ETA,
    ZERO_QUANTUM,
    U,
    Weighted,
    cut,
    cutter,
    exact_rows,
    key_slices,
    norms,
    plan,
    product_dd,
    product_error,
    quantum,
    query_slices,
    top,
    value_slices,
)

DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")


def drawn(rng: np.random.Generator, shape: tuple[int, int], dtype: str = "float64") -> np.ndarray:
    """Normal numbers of a dtype, as float64."""
    return rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float64)


def anywhere(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Numbers of any bits and any exponent, subnormal ones included."""
    bits = rng.integers(1, 2**53, shape) >> rng.integers(0, 53, shape)
    return np.ldexp(bits.astype(np.float64), rng.integers(-1074, 970, shape)) * rng.choice([-1, 1], shape)


def exact(x: np.ndarray) -> list[list[Fraction]]:
    """The numbers of a matrix as fractions."""
    return [[Fraction(a) for a in row] for row in x.tolist()]


def dots(q: np.ndarray, k: np.ndarray) -> list[list[Fraction]]:
    """Q K^T as fractions."""
    keys = exact(k)
    return [[sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0)) for y in keys] for x in exact(q)]


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_the_quantum_is_the_last_one_bit_of_a_row(columns: int) -> None:
    rng = np.random.default_rng(columns)
    special = [0.0, -0.0, 5e-324, 2.0**-1023, 3 * 2.0**-1022, 2.0**-1022, 1.0, -1.5, 2.0**1023, np.finfo(float).max]
    x = np.vstack([anywhere(rng, (500, columns)), rng.choice(special, (500, columns)), np.zeros((1, columns))])
    for row, g in zip(exact(x), quantum(x).tolist(), strict=True):
        if any(row):
            assert all((a / Fraction(2) ** g).denominator == 1 for a in row)
            assert any((a / Fraction(2) ** (g + 1)).denominator == 2 for a in row)
        else:
            assert g == ZERO_QUANTUM


@pytest.mark.parametrize("columns", [0, 1, 3, 64, 300])
def test_norms_are_upper_bounds(columns: int) -> None:
    """Of rows of any size: a sum of squares that is too small, or a subnormal norm that is rounded down, shows."""
    rng = np.random.default_rng(columns)
    equal = np.repeat(rng.uniform(0.5, 1, (10, 1)), columns, axis=1)
    rows = np.vstack([drawn(rng, (5, columns)), equal])
    x = np.vstack([rows * 2.0**e for e in (0, -500, 1000, -1000, -1060, -1073)])
    found = norms(x)
    for row, norm, size in zip(exact(x), found.tolist(), np.abs(x).max(axis=1, initial=0.0), strict=True):
        square = sum((a * a for a in row), Fraction(0))
        assert Fraction(norm) ** 2 >= square
        if size > 2.0**-1000:
            assert Fraction(norm) ** 2 <= square * (1 + Fraction(2) ** -40)
        if size == 0:
            assert norm == 0
    assert norms(np.full((1, 4), 1.7e308)).tolist() == [np.inf]


def test_products_that_are_said_to_be_exact_are() -> None:
    """In the order of a BLAS, of einsum, and backwards; and rows at the limit of 2^53 are told apart."""
    rng, said = np.random.default_rng(0), []
    for _ in range(300):
        E = int(rng.integers(1, 9))
        bits = int(rng.integers(20, 30))
        q, k = (rng.integers(-(2**bits), 2**bits, (n, E)).astype(np.float64) for n in (6, 5))
        q *= np.exp2(rng.integers(-3, 4, (6, 1)))
        flags = exact_rows(norms(q), quantum(q), norms(k), quantum(k))
        said.append(flags.mean())
        want = dots(q, k)
        for got in (q @ k.T, np.einsum("ie,je->ij", q, k), np.ascontiguousarray(q[:, ::-1]) @ k[:, ::-1].T):
            for i in np.flatnonzero(flags):
                assert [Fraction(x) for x in got[i].tolist()] == want[i]
    assert 0.2 < np.mean(said) < 0.8


def test_exactness_ends_at_2_to_the_53_and_at_the_ends_of_the_range() -> None:
    def one(a: float, b: float) -> bool:
        q, k = np.array([[a]]), np.array([[b]])
        return bool(exact_rows(norms(q), quantum(q), norms(k), quantum(k))[0])

    assert one(2.0**26 - 1, 2.0**27 - 1)
    assert not one(2.0**26 + 1, 2.0**27 + 1)
    assert one(2.0**-537, 2.0**-537)
    assert not one(2.0**-537, 2.0**-538)
    assert one(2.0**485, 2.0**485)
    assert not one(2.0**486, 2.0**485)
    assert not one(2.0**600, 2.0**600)
    assert one(0.0, 2.0**1000)
    assert one(2.0**1000, 0.0)
    empty = np.zeros((0, 1))
    assert exact_rows(*(f(np.ones((2, 1))) for f in (norms, quantum)), norms(empty), quantum(empty)).all()


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.99), ("float16", 0.98), ("float8_e4m3fn", 1.0)])
def test_products_of_short_numbers_are_exact(dtype: str, share: float) -> None:
    rng = np.random.default_rng(0)
    q, k = (drawn(rng, (1000, 64), dtype) for _ in range(2))
    assert exact_rows(norms(q), quantum(q), norms(k), quantum(k)).mean() >= share


def test_a_cut_is_exact() -> None:
    rng = np.random.default_rng(0)
    for g in (-1200, -1127, -1100, -1074, -1060, -1000, -60, 0, 20, 900):
        x = np.ldexp(rng.uniform(-1, 1, 200), g + rng.integers(-20, 52, 200))
        for a, part, rest in zip(x, *cut(x, cutter(g)), strict=True):
            assert Fraction(part) + Fraction(rest) == Fraction(a)
            assert (Fraction(part) / Fraction(2) ** g).denominator == 1
            assert abs(Fraction(rest)) <= Fraction(2) ** (g - 1)


def sliced(q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[bool, bool]]:
    """The product by slices, its error, and which operand has a rest."""
    exponents = [top(np.abs(x).max(axis=1)) for x in (q, k)]
    queries, keys = query_slices(q, exponents[0]), key_slices(k, exponents[1])
    high, low, work = np.empty((3, len(q), len(k)))
    product_dd(queries, keys, high, low, work)
    error = product_error(q.shape[1], norms(q), exponents[0], float(norms(k).max()), int(exponents[1].max()))
    return high, low, error, (queries.rest, keys.rest)


@pytest.mark.parametrize("E", [1, 2, 3, 16, 64, 100, 257])
@pytest.mark.parametrize("cancel", [False, True])
def test_products_by_slices_stay_within_their_error(E: int, cancel: bool) -> None:
    rng = np.random.default_rng(E)
    rests = set()
    for a in ("float64", "float32", "bfloat16"):
        for b in ("float64", "float32", "bfloat16"):
            q, k = drawn(rng, (4, E), a), drawn(rng, (5, E), b)
            k *= np.exp2(rng.integers(-5, 6, (5, 1)))
            if cancel and E > 1:
                half = E // 2
                q[:, half : 2 * half], k[:, half : 2 * half] = q[:, :half], -k[:, :half]
            high, low, error, rest = sliced(q, k)
            rests.add(rest)
            assert (np.abs(low) <= U * np.abs(high)).all()
            assert (error <= 2.0**-77 * norms(q) * norms(k).max()).all()
            for row, h, l, bound in zip(dots(q, k), high.tolist(), low.tolist(), error.tolist(), strict=True):
                for x, y, z in zip(row, h, l, strict=True):
                    assert abs(Fraction(y) + Fraction(z) - x) <= Fraction(bound)
    assert {(True, True), (True, False), (False, True), (False, False)} <= rests


@pytest.mark.parametrize("exponent", [-540, -530, -520, -500, 0, 440])
def test_products_by_slices_stay_within_their_error_at_the_ends_of_the_range(exponent: int) -> None:
    rng = np.random.default_rng(0)
    q, k = (drawn(rng, (4, 8)) * 2.0**exponent for _ in range(2))
    high, low, error, _ = sliced(q, k)
    for row, h, l, bound in zip(dots(q, k), high.tolist(), low.tolist(), error.tolist(), strict=True):
        for x, y, z in zip(row, h, l, strict=True):
            assert abs(Fraction(y) + Fraction(z) - x) <= Fraction(bound)


def test_slices_of_equal_signs_fill_their_products_and_stay_exact() -> None:
    """Numbers just below a power of two, whose products add up to all that the bits of a slice leave room for."""
    for E in (1, 2, 32, 64, 128):
        q, k = np.full((1, E), 1 - 2.0**-53), np.full((1, E), 1 - 2.0**-26 - 2.0**-53)
        high, low, error, _ = sliced(q, k)
        want = dots(q, k)[0][0]
        assert abs(Fraction(float(high[0, 0])) + Fraction(float(low[0, 0])) - want) <= Fraction(float(error[0]))


@pytest.mark.parametrize("bits", [-3000, 0, 1, 8, 21, 22, 26, 27, 60, 2000])
def test_slices_of_weights_and_values_fit(bits: int) -> None:
    """Their products add up to at most 2^53 units, and all slices together reach far enough."""
    cuts = plan(bits)
    assert BLOCK * 1.01 * 2.0 ** (cuts.weight_bits + cuts.value_bits) <= 2.0**53
    assert cuts.weight_bits * cuts.weight_slices >= 42
    assert cuts.weight_slices <= (3 if cuts.one else 2)
    assert not cuts.one or bits <= cuts.value_bits


def added(
    high: np.ndarray, low: np.ndarray, values: np.ndarray, bits: int, kept: np.ndarray | None = None
) -> tuple[Weighted, int]:
    """Sums of weights high + low, block by block."""
    cuts = plan(bits)
    slices, rest = [], high
    for i in range(cuts.weight_slices):
        part, rest = cut(rest, cutter(-cuts.weight_bits * (i + 1)))
        slices.append(part)
    rest = rest + low
    sums, whole = Weighted(values.shape[1], cuts, np.abs(rest).sum(axis=1)), value_slices(values, cuts)
    single, n = high.astype(np.float32), high.shape[1]
    for start in range(0, n, BLOCK):
        b = slice(start, start + BLOCK)
        sums.add(
            [x[:, b] for x in slices], rest[:, b], single[:, b], None if kept is None else kept[:, b], whole.block(b)
        )
    return sums, n


WEIGHTS = {
    "full": lambda rng, shape: np.full(shape, 1.002),
    "near one": lambda rng, shape: rng.uniform(1 - 2.0**-20, 1.002, shape),
    "spread": lambda rng, shape: np.exp(-rng.uniform(0, 60, shape)),
    "far": lambda rng, shape: np.exp(-rng.uniform(0, 600, shape)),
    "none": lambda rng, shape: np.zeros(shape),
}
VALUES = {
    "float64": lambda rng, shape: rng.uniform(-1, 1, shape),
    "positive": lambda rng, shape: 1 - rng.uniform(0, 2.0**-20, shape),
    "float32": lambda rng, shape: rng.uniform(-1, 1, shape).astype(np.float32).astype(np.float64),
    "bfloat16": lambda rng, shape: rng.uniform(-1, 1, shape).astype(ml_dtypes.bfloat16).astype(np.float64),
    "ones": lambda rng, shape: np.ones(shape),
    "tiny": lambda rng, shape: np.where(rng.random(shape) < 0.1, 1.0, rng.uniform(-ETA, ETA, shape) * 100),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("n", [0, 1, 40, 2 * BLOCK + 3])
def test_sums_stay_within_their_errors(weights: str, values: str, n: int) -> None:
    """Those of p v, of p, and the bound of that of p |v|; with dropped keys and without."""
    rng, R = np.random.default_rng(n), 1 if n > BLOCK else 3
    high = WEIGHTS[weights](rng, (R, n))
    low = high * rng.uniform(-U, U, high.shape)
    V = VALUES[values](rng, (n, 2))
    finest = int(quantum(V).min(initial=ZERO_QUANTUM))
    for kept in (None, rng.random((R, n)) < 0.7):
        sums, _ = added(high, low, V, -finest, kept)
        of_values, of_sum = sums.errors(n)
        for i in range(R):
            p = [Fraction(a) + Fraction(b) for a, b in zip(high[i].tolist(), low[i].tolist(), strict=True)]
            total = Fraction(float(sums.sum_high[i])) + Fraction(float(sums.sum_low[i]))
            assert abs(total - sum(p, Fraction(0))) <= Fraction(float(of_sum[i]))
            for c in range(2):
                v = [Fraction(x) for x in V[:, c].tolist()]
                if kept is not None:
                    v = [x * bool(keep) for x, keep in zip(v, kept[i], strict=True)]
                want = sum((a * b for a, b in zip(p, v, strict=True)), Fraction(0))
                got = Fraction(float(sums.high[i, c])) + Fraction(float(sums.low[i, c]))
                assert abs(got - want) <= Fraction(float(of_values[i, c]))
                size = sum((a * abs(b) for a, b in zip(p, v, strict=True)), Fraction(0))
                assert (
                    size <= Fraction(float(sums.bound(n)[i, c])) <= size * Fraction(103, 100) + n * Fraction(2) ** -119
                )
        if n:
            assert (of_values <= 2.0**-80 * n * max(1.0, high.max())).all()


def test_chunks_cover_a_matrix_once() -> None:
    for shape in ((0, 3), (3, 0), (5, 7), (40, 1000), (2, 3 * products.CELLS + 1)):
        seen = np.zeros(shape, dtype=int)
        for chunk in products.chunks(shape):
            assert seen[chunk].size <= products.CELLS
            seen[chunk] += 1
        assert (seen == 1).all()


def test_the_least_exponent_above_a_number() -> None:
    x = np.array([0.0, ETA, 1.0, 1.5, 2.0**1023, math.nextafter(2.0, 0.0)])
    assert top(x).tolist() == [-1074, -1073, 1, 1, 1024, 1]
