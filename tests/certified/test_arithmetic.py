"""Sums and products without error against rational arithmetic, and double-double operations against their bounds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.oracle import arithmetic
from refattn.oracle.arithmetic import U, dd_add, dd_add_float, dd_div, dd_mul, dd_mul_float

numbers = st.floats(-(2.0**300), 2.0**300).filter(lambda x: x == 0 or abs(x) >= 2.0**-300)


def _array(*xs):
    return [np.array([x]) for x in xs]


def _exact(pair):
    """The sum of a pair's two arrays of one number."""
    return sum(Fraction(float(x[0])) for x in pair)


def _numbers(rng, count):
    """Numbers of many sizes; half of them have few bits, so that roundings tie."""
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-60, 60, count)
    few = rng.integers(1, 2**12, count) * 2.0 ** rng.integers(-60, 60, count)
    return np.where(rng.random(count) < 0.5, x, rng.choice([-1.0, 1.0], count) * few)


def _double_doubles(rng, count):
    """Pairs whose low part is at most half a unit in the last place of the high part, often exactly that."""
    high = _numbers(rng, count)
    share = np.where(rng.random(count) < 0.3, rng.choice([-1.0, 0.0, 1.0], count), rng.uniform(-1, 1, count))
    return arithmetic.two_sum(high, share * np.spacing(np.abs(high)) / 2)


def _near(rng, pair):
    """Pairs whose high parts are those of `pair` to a few units, with the other sign: what cancels in a sum."""
    high = -pair[0] * (1 + rng.integers(-4, 5, len(pair[0])) * U)
    return arithmetic.two_sum(high, rng.uniform(-1, 1, len(high)) * np.spacing(np.abs(high)) / 2)


def _worst(results, exact):
    """The largest relative error, in units of u^2; exact zeros have to be exact."""
    worst = Fraction(0)
    for high, low, truth in zip(*results, exact, strict=True):
        error = abs(Fraction(float(high)) + Fraction(float(low)) - truth)
        worst = max(worst, error / abs(truth) if truth else 10**9 * error)
    return float(worst / Fraction(U) ** 2)


def _rational(pair):
    return [Fraction(float(high)) + Fraction(float(low)) for high, low in zip(*pair, strict=True)]


@given(numbers, numbers)
def test_two_sum_is_exact(a, b):
    pair = arithmetic.two_sum(*_array(a, b))
    assert pair[0][0] == a + b
    assert _exact(pair) == Fraction(a) + Fraction(b)


@given(numbers, numbers)
def test_fast_two_sum_is_exact_with_the_larger_first(a, b):
    if a != 0 and abs(a) < abs(b):
        a, b = b, a
    pair = arithmetic.fast_two_sum(*_array(a, b))
    assert pair[0][0] == a + b
    assert _exact(pair) == Fraction(a) + Fraction(b)


@given(numbers)
def test_split_gives_halves_of_26_bits(a):
    halves = arithmetic.split(*_array(a))
    assert _exact(halves) == Fraction(a)
    for half in halves:
        numerator = abs(Fraction(float(half[0])).numerator)
        assert (numerator // (numerator & -numerator or 1)).bit_length() <= 26


@given(numbers, numbers)
def test_two_prod_is_exact(a, b):
    pair = arithmetic.two_prod(*_array(a, b))
    assert pair[0][0] == a * b
    assert _exact(pair) == Fraction(a) * Fraction(b)


def test_two_prod_is_exact_at_the_ends_of_its_range():
    largest, odd = 2.0**995 * (1 - U), 1 + 2 * U
    for a, b in ((largest, 2.0**26 * odd), (largest, odd), (2.0**-484 * odd, 2.0**-484 * odd), (2.0**-1074, 3.0)):
        assert _exact(arithmetic.two_prod(*_array(a, b))) == Fraction(a) * Fraction(b)


@pytest.mark.parametrize("cancelling", [False, True])
def test_double_double_sums_keep_their_bounds(cancelling):
    rng = np.random.default_rng(1)
    a = _double_doubles(rng, 4000)
    b = _near(rng, a) if cancelling else _double_doubles(rng, 4000)
    exact = [x + y for x, y in zip(_rational(a), _rational(b), strict=True)]
    assert _worst(dd_add(*a, *b), exact) <= arithmetic.ADD_ERROR / U**2
    exact = [x + Fraction(float(y)) for x, y in zip(_rational(a), b[0], strict=True)]
    assert _worst(dd_add_float(*a, b[0]), exact) <= arithmetic.ADD_FLOAT_ERROR / U**2


def test_double_double_products_and_quotients_keep_their_bounds():
    rng = np.random.default_rng(2)
    a, b = _double_doubles(rng, 4000), _double_doubles(rng, 4000)
    x, y = _rational(a), _rational(b)
    floats = [Fraction(float(z)) for z in b[0]]
    products, quotients = ([operation(p, q) for p, q in zip(x, y, strict=True)] for operation in (_times, _over))
    assert _worst(dd_mul(*a, *b), products) <= arithmetic.MUL_ERROR / U**2
    assert _worst(dd_div(*a, *b), quotients) <= arithmetic.DIV_ERROR / U**2
    products = [p * q for p, q in zip(x, floats, strict=True)]
    assert _worst(dd_mul_float(*a, b[0]), products) <= arithmetic.MUL_FLOAT_ERROR / U**2


def test_results_are_double_doubles():
    rng = np.random.default_rng(3)
    a, b = _double_doubles(rng, 4000), _double_doubles(rng, 4000)
    near = _near(rng, a)
    results = (dd_add(*a, *b), dd_add(*a, *near), dd_add_float(*a, b[0]), dd_add_float(*a, near[0]))
    for high, low in (*results, dd_mul(*a, *b), dd_mul_float(*a, b[0]), dd_div(*a, *b)):
        assert np.array_equal(high + low, high)


def test_operands_broadcast():
    rng = np.random.default_rng(4)
    column, row = (_double_doubles(rng, 6) for _ in range(2))
    column = tuple(x[:, None] for x in column)
    for operation in (dd_add, dd_mul, dd_div):
        high, low = operation(*column, *row)
        assert high.shape == low.shape == (6, 6)
        one = operation(*(x[2] for x in column), *(x[3:4] for x in row))
        assert (high[2, 3], low[2, 3]) == (one[0][0], one[1][0])
    for operation in (dd_add_float, dd_mul_float):
        whole, one = operation(*column, 3.0), operation(*column, np.full(6, 3.0))
        assert np.array_equal(np.broadcast_to(whole, np.shape(one)), one)


def _times(p, q):
    return p * q


def _over(p, q):
    return p / q
