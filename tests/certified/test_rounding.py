"""Rounding of intervals and of rational numbers, against the package's own rounding and against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from refattn._core.arrays import round_to
from refattn.oracle.rounding import FORMATS, round_floats, round_fraction, round_interval, turns

NARROW = [name for name in FORMATS if FORMATS[name].precision <= 11]
TINY = Fraction(1, 2**3000)


def bits(x: np.ndarray) -> np.ndarray:
    """What tells numbers apart, signs of zeros too, and takes every NaN for one."""
    return np.where(np.isnan(x), np.nan, x).view(np.int64)


def numbers(name: str) -> np.ndarray:
    """Every finite number of a narrow dtype, or many of a wide one, in order."""
    if name in NARROW:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        with np.errstate(invalid="ignore"):
            raw = np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype).astype(np.float64)
        return np.unique(raw[np.isfinite(raw)])
    rng, form = np.random.default_rng(3), FORMATS[name]
    with np.errstate(over="ignore"):
        x = np.ldexp(rng.uniform(1, 2, 4000), rng.integers(form.least - form.precision, 128, 4000))
        x = x.astype(name).astype(np.float64)
        x = np.concatenate([x, np.nextafter(x.astype(name), np.array(np.inf, name)).astype(np.float64)])
    edges = [0.0, 2 * float(form.half_smallest), 2.0**form.least, form.largest]
    return np.unique(np.concatenate([x[np.isfinite(x)], edges, -x[np.isfinite(x)]]))


def awkward(name: str) -> np.ndarray:
    """Numbers of a dtype, midpoints, their float64 neighbours, and what lies past the largest."""
    x = numbers(name)
    x = np.concatenate([x, x[:-1] / 2 + x[1:] / 2, x / 2])
    edge = FORMATS[name].largest
    past = edge * np.array([1 + 2.0**-k for k in (1, 2, 3, 4, 5, 9, 10, 12, 25)]) if name != "float64" else np.array([])
    x = np.concatenate([x, past, -past])
    with np.errstate(over="ignore"):
        x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)])
    return np.concatenate([x, [np.inf, -np.inf, np.nan, 0.0, -0.0, 5e-324, -5e-324, 1e308, -1e308]])


@pytest.mark.parametrize("name", FORMATS)
def test_floats_are_rounded_as_the_package_rounds_bit_for_bit(name: str) -> None:
    x = awkward(name)
    with np.errstate(all="ignore"):
        want = round_to(x, name, np).astype(np.float64)
    assert np.array_equal(bits(round_floats(x, name)), bits(want))


@pytest.mark.parametrize("name", FORMATS)
def test_fractions_are_rounded_as_floats_are(name: str) -> None:
    x = awkward(name)
    x = x[np.isfinite(x)]
    x = x[np.random.default_rng(0).permutation(len(x))[:2000]] + 0.0
    got = np.array([round_fraction(Fraction(float(y)), name) for y in x])
    assert np.array_equal(bits(got), bits(round_floats(x, name)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_fraction_beside_a_midpoint_is_rounded_to_its_side(name: str) -> None:
    x = numbers(name)
    x = x[np.sort(np.random.default_rng(1).permutation(len(x) - 1)[:150])]
    # About zero there are two turns where it is signed: see below.
    for a in x[x != -2 * float(FORMATS[name].half_smallest)].tolist():
        b = float(np.nextafter(a, np.inf)) if name == "float64" else _next(a, name)
        middle = (Fraction(a) + Fraction(b)) / 2
        assert round_fraction(middle - TINY, name) == a
        assert round_fraction(middle + TINY, name) == b
        assert turns(Fraction(a), Fraction(b), name) == [middle]
        assert turns(middle, middle, name) == [middle]
        assert turns(middle + TINY, Fraction(b), name) == turns(Fraction(a), middle - TINY, name) == []


def _next(a: float, name: str) -> float:
    """The next number of a narrower dtype."""
    unit = float(2 * FORMATS[name].half_smallest)
    step = max(unit, abs(a) * 2.0 ** -FORMATS[name].precision)
    return float(round_floats(np.array([a + step * 1.0001]), name)[0])


@pytest.mark.parametrize(
    ("name", "tie", "at", "beyond"),
    [
        ("float64", 2**1024 - 2**970, math.inf, math.inf),
        ("float32", 2**128 - 2**103, math.inf, math.inf),
        ("float16", 65520, math.inf, math.inf),
        ("bfloat16", 2**128 - 2**119, math.inf, math.inf),
        ("float8_e5m2", 61440, math.inf, math.inf),
        ("float8_e4m3fn", 464, 448.0, math.nan),
        ("float8_e4m3fnuz", 248, math.nan, math.nan),
        ("float8_e5m2fnuz", 61440, math.nan, math.nan),
    ],
)
def test_the_last_turn_is_half_a_place_past_the_largest_number(name: str, tie: int, at: float, beyond: float) -> None:
    largest, x = FORMATS[name].largest, Fraction(tie)
    assert round_fraction(x - TINY, name) == largest
    assert round_fraction(-x + TINY, name) == -largest
    assert np.array_equal([round_fraction(x, name), round_fraction(x + TINY, name)], [at, beyond], equal_nan=True)
    assert np.array_equal(np.abs([round_fraction(-x - 1, name)]), [beyond], equal_nan=True)
    assert turns(x - 1, 16 * x, name) == [x]
    assert turns(-16 * x, -x, name) == [-x]
    assert turns(x + TINY, 16 * x, name) == []


@pytest.mark.parametrize("name", FORMATS)
def test_turns_about_zero(name: str) -> None:
    half = FORMATS[name].half_smallest
    signed = name not in ("float8_e4m3fnuz", "float8_e5m2fnuz")
    zero = [Fraction(0)] if signed else []
    assert turns(-half + TINY, half - TINY, name) == zero
    assert turns(-TINY, Fraction(0), name) == zero
    assert turns(Fraction(0), half - TINY, name) == []
    assert turns(Fraction(0), half, name) == [half]
    assert turns(-half, Fraction(0), name) == [*zero, -half]
    assert len(turns(-half, half, name)) == 2 + signed
    assert math.copysign(1, round_fraction(-TINY, name)) == (-1 if signed else 1)
    assert math.copysign(1, round_fraction(Fraction(0), name)) == 1


def test_at_most_two_turns_are_looked_for() -> None:
    assert len(turns(Fraction(1), Fraction(10**300), "float64")) == 2
    assert len(turns(Fraction(-(10**300)), Fraction(-1), "float64")) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_decided_interval_rounds_to_its_value_and_only_narrow_misses_are_undecided(name: str) -> None:
    rng = np.random.default_rng(5)
    form, n = FORMATS[name], 900
    exponent = rng.integers(max(form.least - form.precision, -1070), min(1020, math.frexp(form.largest)[1] + 2), n)
    high = np.ldexp(rng.uniform(-2, 2, n), exponent)
    near = rng.random(n) < 0.5
    with np.errstate(all="ignore"):
        ulp = np.spacing(np.abs(round_floats(high, name)) + float(form.half_smallest))
        y = round_floats(high, name) + ulp * 2.0 ** (52 - form.precision) * rng.choice([1, -1], n)
    high = np.where(near & np.isfinite(y), y, high)
    low = np.spacing(high) * rng.uniform(-0.5, 0.5, n) * (rng.random(n) < 0.7)
    radius = np.abs(high) * 2.0 ** -rng.uniform(2, 110, n) * (rng.random(n) < 0.9)
    value, known = round_interval(high, low, radius, name)
    assert known.mean() > 0.15
    for h, l, r, x, decided in zip(*(z.tolist() for z in (high, low, radius, value, known)), strict=True):
        middle, away = Fraction(h) + Fraction(l), Fraction(r)
        ends = [round_fraction(middle + s * away, name) for s in (-1, 1)]
        if decided:
            assert bits(np.array(ends)).tolist() == bits(np.array([x, x])).tolist()
        else:
            # Bounds err outward by a float64's place at most, of the radius or of the number.
            size = abs(middle) if name != "float64" else abs(Fraction(l)) + away
            more = away + size * Fraction(1, 2**50) + Fraction(1, 2**1073)
            assert turns(middle - more, middle + more, name)


def interval(high: float, radius: float, name: str, low: float = 0.0, **hull: float) -> tuple[float, bool]:
    """One interval."""
    given = {side: np.array([x]) for side, x in hull.items()}
    value, known = round_interval(*(np.array([x]) for x in (high, low, radius)), name, **given)
    return float(value[0]), bool(known[0])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_known_is_not_decided(name: str) -> None:
    for high in (1.0, math.inf, -math.inf, math.nan):
        for radius in (math.inf, math.nan) if high == 1 else (0.0, 1.0, math.inf, math.nan):
            assert not interval(high, radius, name)[1]
    # Other bounds do not make up for a radius, which is infinite where the number need not exist.
    assert not interval(0.0, math.inf, name, least=0.0, most=0.0)[1]
    # Past the largest number on either side, which is NaN on both in some dtypes.
    assert not interval(0.0, 1e300, name)[1]
    assert not interval(1.0, 1e308, name)[1]


@pytest.mark.parametrize("name", FORMATS)
def test_exact_intervals(name: str) -> None:
    assert interval(0.0, 0.0, name) == (0.0, True)
    assert math.copysign(1, interval(-0.0, 0.0, name, low=-0.0)[0]) == 1
    assert interval(1.0, 0.0, name) == (1.0, True)
    assert interval(-1.5, 2.0**-60, name) == (-1.5, True)
    largest = FORMATS[name].largest
    assert interval(largest, 0.0, name) == (largest, True)


def test_the_sign_of_a_zero_is_known_or_not() -> None:
    assert interval(0.0, 1e-200, "float32") == (-0.0, False)
    assert interval(1e-100, 1e-101, "float32") == (0.0, True)
    value, known = interval(-1e-100, 1e-101, "float32")
    assert (known, math.copysign(1, value)) == (True, -1)
    assert interval(-1e-100, 1e-101, "float8_e4m3fnuz") == (0.0, True)
    assert interval(0.0, 1e-200, "float8_e5m2fnuz") == (0.0, True)
    # Nothing is below zero where all values are not: zero or more, it is rounded to +0.
    assert interval(0.0, 1e-200, "float32", least=0.0) == (0.0, True)
    assert interval(0.0, 1e-200, "float32", most=0.0) == (-0.0, False)
    # A bound of -0 is no other bound than 0.
    assert interval(0.0, 1e-200, "float32", most=-0.0) == (-0.0, False)
    assert interval(0.0, 1e-200, "float32", least=-0.0) == (0.0, True)
    assert interval(0.0, 1e-200, "float64", least=0.0)[1] is False
    assert interval(0.0, 1e-200, "float64", least=0.0, most=0.0) == (0.0, True)


def test_the_last_place_of_the_sum_of_the_parts_counts() -> None:
    # 1 + 2^-8 is midway between numbers of bfloat16; the low part says on which side.
    tie = 1 + 2.0**-8
    assert interval(tie, 0.0, "bfloat16", low=2.0**-50) == (1 + 2.0**-7, True)
    assert interval(tie, 2.0**-51, "bfloat16", low=2.0**-50) == (1 + 2.0**-7, True)
    assert interval(tie, 2.0**-49, "bfloat16", low=2.0**-50)[1] is False
    assert interval(tie, 0.0, "bfloat16", low=-(2.0**-60)) == (1.0, True)
    # A float64 does not hold the sum: its bounds lie on both sides of the turn, or at it.
    assert interval(tie, 0.0, "bfloat16", low=2.0**-60)[1] is False
    assert interval(tie, 2.0**-60, "bfloat16", low=-(2.0**-59)) == (1.0, True)
    assert interval(tie, 0.0, "bfloat16") == (1.0, True)
    assert interval(1.0, 0.0, "float64", low=2.0**-53 + 2.0**-80) == (1 + 2.0**-52, True)
    assert interval(1.0, 2.0**-79, "float64", low=2.0**-53 + 2.0**-80)[1] is False
    assert interval(65520.0, 0.0, "float16") == (math.inf, True)
    assert interval(65520.0, 1e-9, "float16")[1] is False
    assert interval(65519.0, 0.5, "float16") == (65504.0, True)
    assert interval(70000.0, 1.0, "float16") == (math.inf, True)
    value, known = interval(-500.0, 1.0, "float8_e4m3fn")
    assert (math.isnan(value), known) == (True, True)
