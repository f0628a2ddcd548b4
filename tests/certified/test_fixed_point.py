"""Integers of float64 numbers, their products, and fixed-point exponentials, against rationals and ball arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from flint import arb

from refattn.oracle.fixed_point import EXPONENT_ERROR, GUARD, WEIGHT_ERROR, _constants, exponentials
from refattn.oracle.integers import integers, products
from tests.certified.balls import precision

PRECISIONS = (40, 104, 208, 416, 1664)


def exponents(bits: int) -> list[int]:
    """Exponents of every size, and those beside multiples of ln 2, in units of 2^-(bits + GUARD)."""
    rng, unit = random.Random(bits), 1 << bits + GUARD
    drawn = [
        rng.randrange(-unit * size, unit * 69 // 100) for size in (0, 1, 2, 10, bits // 2, bits) for _ in range(40)
    ]
    ln2 = _constants(bits + GUARD).ln2
    beside = [-k * ln2 + d for k in (0, 1, 2, bits - 1, bits, bits + 1, bits + 2, bits + 3) for d in (-1, 0, 1)]
    return [*drawn, *beside, -(unit >> 9), -(unit >> 17), -(unit >> 25), -unit * 10**30]


@pytest.mark.parametrize("bits", PRECISIONS)
def test_exponentials_err_by_less_than_lemma_f_says(bits: int) -> None:
    given = exponents(bits)
    found = exponentials(given, bits)
    with precision(2 * bits + 400):
        unit = arb(2) ** (bits + GUARD)
        for x, y in zip(given, found, strict=True):
            # The exponent may be off, and the result still has to be within.
            for off in (-EXPONENT_ERROR, 0, EXPONENT_ERROR):
                assert abs(((x + off) / unit).exp() * arb(2) ** bits - y) < WEIGHT_ERROR
            # Lemma F's own count: one unit for the last cut and half a one for all else.
            assert abs((x / unit).exp() * arb(2) ** bits - y) < 1.25


@pytest.mark.parametrize("bits", [24, *PRECISIONS, 6662])
def test_constants_err_by_one_unit(bits: int) -> None:
    constants = _constants(bits)
    with precision(bits + 100):
        unit = arb(2) ** bits
        assert abs(arb(2).log() * unit - constants.ln2) < 1.01
        for step, table in enumerate(constants.tables, 1):
            for i, x in enumerate(table):
                assert abs((i * arb(2) ** (-8 * step)).exp() * unit - x) < 1.01
        # What the series leaves out is below a quarter of a unit.
        t = arb(2) ** -24
        series = sum((t**i * (x / unit) for i, x in enumerate(reversed(constants.coefficients))), arb(0))
        assert abs(series - t.exp()) * unit < 0.26


def float_kinds() -> list[np.ndarray]:
    """Vectors of numbers near each other, far apart, at the ends of the range, and zero."""
    rng = np.random.default_rng(2)
    drawn = [rng.standard_normal(12), np.rint(8 * rng.standard_normal(12)), np.zeros(12), np.ones(12)]
    for spread in (10, 70, 400, 1000):
        drawn.append(np.ldexp(rng.uniform(-1, 1, 12), rng.integers(-spread, spread, 12)))
    ends = np.array([5e-324, -5e-324, 2.0**-1022, np.finfo(np.float64).max, -np.finfo(np.float64).max, 0.0])
    return [*drawn, np.concatenate([ends, ends[::-1]]), 5e-324 * np.arange(12), np.zeros(0)]


def test_integers_are_the_numbers() -> None:
    for x in float_kinds():
        found, power = integers(x)
        assert [m * Fraction(2) ** power for m in found] == [Fraction(y) for y in x.tolist()]


@pytest.mark.parametrize("E", [1, 3, 12])
def test_products_have_no_error(E: int) -> None:
    kinds = [x[:E] for x in float_kinds() if x.size]
    for q in kinds:
        for K in (np.stack(kinds[:4]), np.stack(kinds[3:6]), np.stack(kinds[6:]), np.zeros((0, E))):
            found, power = products(q, K)
            want = [sum(Fraction(a) * Fraction(b) for a, b in zip(q.tolist(), row, strict=True)) for row in K.tolist()]
            assert [x * Fraction(2) ** power for x in found] == want


@pytest.mark.parametrize("E", [64, 1024])
def test_products_of_the_largest_limbs_do_not_overflow(E: int) -> None:
    # Every bit of every limb is one, as far apart as limbs reach.
    ones = float(2**53 - 1)
    bits = (62 - (E - 1).bit_length() - 4) // 2
    exponents = np.array([0, 53, 106, 159, 16 * bits - 53])
    for q in (np.ldexp(ones, exponents[np.arange(E) % 5]), np.full(E, ones), np.full(E, np.ldexp(ones, 2))):
        found, power = products(q, np.stack([q, -q, q[::-1]]))
        want = [sum(Fraction(a) * Fraction(b) for a, b in zip(q, k, strict=True)) for k in (q, -q, q[::-1])]
        assert [x * Fraction(2) ** power for x in found] == want
