"""The exponential of numba's kernels against its proven error, and what reads numbers of every format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from flint import arb, ctx

numba = pytest.importorskip("numba", reason="numba is not installed")

from refattn import contract  # noqa: E402
from refattn._core import numba_math  # noqa: E402
from refattn._core.numba_math import APPROXIMATION, POWERS, exp2, exp2_error, fetch  # noqa: E402
from refattn._core.numba_vectors import exponentials  # noqa: E402

U = {"float32": 2.0**-24, "float64": 2.0**-53}


@numba.njit
def powers_of_2(x):
    """2**x of each number."""
    out = np.empty_like(x)
    for k in range(x.size):
        out[k] = exp2(x[k])
    return out


@numba.njit
def in_vectors(w, rows):
    """The same through the kernels' pass over `rows` rows of scores."""
    exponentials(w, 0, w.size - 256, w.size - 128, rows)


@numba.njit
def fetched(address, step, count, code, like):
    """Numbers of a format."""
    out = np.empty(count, like.dtype)
    for k in range(count):
        out[k] = fetch(address + step * k, code, like[0])
    return out


@pytest.mark.parametrize("dtype", POWERS)
def test_the_polynomial_stays_within_its_bound_everywhere(dtype, monkeypatch):
    """By balls around 512 points: the Taylor series of p(r) 2**-r - 1, whose rest is below 4 h**K."""
    monkeypatch.setattr(ctx, "prec", 200)
    c, pieces = [arb(float.fromhex(x)) for x in POWERS[dtype]], 512
    K, h, ln2, worst = len(c) + 14, arb(1) / (2 * pieces), arb(2).log(), 0.0
    for piece in range(pieces):
        middle = arb(-0.5) + (2 * piece + 1) * h
        p = list(c)
        for j in range(len(p) - 1):  # powers of r - middle
            for k in range(len(p) - 2, j - 1, -1):
                p[k] = p[k] + middle * p[k + 1]
        e = [(-middle * ln2).exp()]
        for k in range(1, K):
            e.append(e[-1] * -ln2 / k)
        series = [
            sum((p[i] * e[k - i] for i in range(max(0, k - K + 1), min(len(p), k + 1))), arb(0)) for k in range(K)
        ]
        series[0] -= 1
        total = sum((abs(x) * h**k for k, x in enumerate(series)), arb(0)) + 4 * h**K
        worst = max(worst, float((total / U[dtype]).upper()))
    assert worst <= APPROXIMATION[dtype]
    assert worst > 0.9 * APPROXIMATION[dtype]


def test_the_contract_takes_the_bound_in():
    for dtype, u in U.items():
        claim = contract.numba(dtype)
        assert exp2_error(dtype) <= claim.exp_ulp * 2 * u
        assert exp2_error(dtype) <= claim.rescale_ulp * 2 * u


def test_every_float32_of_the_upper_binades_and_a_comb_of_the_others():
    largest = 0.0
    for low, high, step in ((2**-2, 2**-1, 1), (2**-9, 2**-2, 37), (2**-26, 2**-9, 1009)):
        bits = np.arange(np.float32(low).view(np.int32), np.float32(high).view(np.int32) + 1, step, dtype=np.int32)
        for r in (bits.view(np.float32), -bits.view(np.float32)):
            x = (r[r <= 0.5] - np.float32(1)).astype(np.float32)
            x = np.concatenate([x, r[r <= 0]])
            exact = np.exp2(x.astype(np.float64))
            largest = max(largest, float(np.max(np.abs(powers_of_2(x) - exact) / exact)))
    assert largest <= exp2_error("float32")
    assert largest > 0.6 * exp2_error("float32")


@pytest.mark.parametrize("dtype", POWERS)
def test_random_exponents(dtype):
    lowest = {"float32": -126.0, "float64": -1022.0}[dtype]
    x = np.random.default_rng(0).uniform(lowest, 0, 200_000).astype(dtype)
    exact = np.exp2(x.astype(np.longdouble))
    assert np.max(np.abs(powers_of_2(x) - exact) / exact) <= exp2_error(dtype)


@pytest.mark.parametrize("dtype", POWERS)
def test_the_edges(dtype):
    bias = {"float32": 127.0, "float64": 1023.0}[dtype]
    x = np.array([0.0, -0.0, -1.0, -3.0, 1 - bias, -bias, -2 * bias, -1e30, -np.inf, np.nan], dtype)
    want = np.array([1, 1, 0.5, 0.125, 2 ** (1 - bias), 0, 0, 0, 0, np.nan], dtype)
    np.testing.assert_array_equal(powers_of_2(x), want)


@pytest.mark.parametrize("dtype", POWERS)
def test_vectors_and_single_numbers_agree_bit_by_bit(dtype):
    w = np.random.default_rng(1).uniform(-140, 0, 1024 + 256).astype(dtype)
    w[[3, 70]] = -np.inf, np.nan
    w[1024:] = 0
    want = powers_of_2(w[:1024])
    n = numba_math.COLUMNS * numba_math.VECTOR_BYTES // w.itemsize
    in_vectors(w, 1024 // n)
    np.testing.assert_array_equal(w[:1024], want)
    # Each lane adds 1024 / n numbers that are not negative, as the sum in float64 does in an order of its own.
    exact = np.where(np.isnan(want), np.nan, want.astype(np.float64)).reshape(-1, n).sum(axis=0)
    np.testing.assert_allclose(w[1024 + 128 :][:n], exact, rtol=2 * (1024 // n) * U[dtype])


@pytest.mark.parametrize(("dtype", "code"), [("float16", 3), ("bfloat16", 2)])
@pytest.mark.parametrize("into", ["float32", "float64"])
def test_every_half_precision_number_is_read_exactly(dtype, code, into):
    x = np.arange(2**16, dtype=np.uint16)
    want = x.view(getattr(ml_dtypes, dtype, dtype)).astype(np.float32)
    with np.errstate(invalid="ignore"):  # NaN that signals
        want = want.astype(into)
    got = fetched(x.__array_interface__["data"][0], 2, x.size, code, np.zeros(1, into))
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(want[~np.isnan(got)]))
