"""Rounding of intervals and of rational numbers to a dtype, to nearest even: lemma R of README.md.

Independent of any library's conversions. A zero keeps the sign of the number that was rounded to it, where the dtype
has a negative zero; 0 itself is +0.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn.oracle.arithmetic import two_sum

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Format(NamedTuple):
    """A floating-point format with gradual underflow."""

    precision: int  # significant bits, the leading one included
    least: int  # exponent of the smallest normal number, 2^least
    largest: float
    overflow: float  # what stands for greater numbers
    negative_zero: bool = True

    @property
    def half_smallest(self) -> Fraction:
        """Half of the smallest positive number."""
        return Fraction(2) ** (self.least - self.precision)


FORMATS = {
    "float64": Format(53, -1022, math.ldexp(2 - 2.0**-52, 1023), math.inf),
    "float32": Format(24, -126, math.ldexp(2 - 2.0**-23, 127), math.inf),
    "float16": Format(11, -14, 65504.0, math.inf),
    "bfloat16": Format(8, -126, math.ldexp(2 - 2.0**-7, 127), math.inf),
    "float8_e4m3fn": Format(4, -6, 448.0, math.nan),
    "float8_e5m2": Format(3, -14, 57344.0, math.inf),
    "float8_e4m3fnuz": Format(4, -7, 240.0, math.nan, negative_zero=False),
    "float8_e5m2fnuz": Format(3, -15, 57344.0, math.nan, negative_zero=False),
}


def round_floats(x: Floats, name: str) -> Floats:
    """Each number rounded once to the dtype called `name`, in float64; NaN stays NaN."""
    if name == "float64":
        return x
    form = FORMATS[name]
    dropped = 53 - form.precision
    # A float64's bits count it among its neighbours, so that rounding is integer arithmetic: half of the last place,
    # less one where the last place is even, carries where it should, into the exponent too.
    bits = np.ascontiguousarray(x).view(np.uint64)
    odd = (bits >> np.uint64(dropped)) & np.uint64(1)
    odd += bits
    odd += np.uint64(2 ** (dropped - 1) - 1)
    odd &= np.uint64(2**64 - 2**dropped)
    y = odd.view(np.float64)
    size = np.abs(x)
    small = size < 2.0**form.least
    if small.any():
        # Next to an even multiple of 2^52 units, float64 numbers are the multiples of one unit, the smallest number.
        shift = 1.5 * 2.0**52 * float(2 * form.half_smallest)
        y = np.where(small, np.copysign((size + shift) - shift, x), y)
    over = ~(np.abs(y) <= form.largest)
    if over.any():
        y = np.where(over, np.where(np.isnan(x), np.nan, np.copysign(form.overflow, x)), y)
    return y if form.negative_zero else y + 0.0


def round_interval(
    high: Floats, low: Floats, radius: Floats, name: str, least: Floats | None = None, most: Floats | None = None
) -> tuple[Floats, Flags]:
    """What the numbers within `radius` of high + low round to, and where all round to the same: lemma R.

    `least` and `most` are other bounds of the numbers, that broadcast against them.
    """
    with np.errstate(all="ignore"):
        lower = _end(high, low, -radius, -math.inf, name)
        upper = _end(high, low, radius, math.inf, name)
        # An exact zero is +0: adding 0 takes the sign from a negative one.
        lower = (lower if least is None else np.maximum(lower, least)) + 0.0
        upper = (upper if most is None else np.minimum(upper, most)) + 0.0
        known = np.isfinite(radius) & np.isfinite(high) & (lower <= upper)
        below, above = round_floats(lower, name), round_floats(upper, name)
        same = (below == above) & (np.signbit(below) == np.signbit(above))
        # Past the largest number on one side; on both sides lies everything.
        same |= np.isnan(below) & np.isnan(above) & (np.signbit(lower) == np.signbit(upper))
    return below, known & same


def _end(high: Floats, low: Floats, radius: Floats, outward: float, name: str) -> Floats:
    """A number that rounds no further inward than high + low + radius."""
    shift = _directed(low, radius, outward)
    # To float64 one addition is the rounding itself.
    return high + shift if name == "float64" else _directed(high, shift, outward)


def _directed(a: Floats, b: Floats, outward: float) -> Floats:
    """A bound of a + b on the side of `outward`."""
    found, error = two_sum(a, b)
    inside = error >= 0 if outward < 0 else error <= 0
    return found if inside.all() else np.where(inside, found, np.nextafter(found, outward))


def round_fraction(x: Fraction, name: str) -> float:
    """A rational number rounded to the dtype called `name`."""
    form = FORMATS[name]
    if x == 0:
        return 0.0
    count, unit = _place(abs(x), form)
    rest = abs(x) - count * unit
    count += 2 * rest > unit or (2 * rest == unit and count % 2 == 1)
    y = float(count * unit) if count * unit <= form.largest else form.overflow
    return y if x > 0 else -y if y or form.negative_zero else 0.0


def turns(lower: Fraction, upper: Fraction, name: str) -> list[Fraction]:
    """The numbers of [lower, upper] on whose two sides rounding differs, none, one, or any two of them."""
    form = FORMATS[name]
    if upper < 0:
        return [-x for x in turns(-upper, -lower, name)]
    if lower <= 0:
        half = form.half_smallest
        found = [Fraction(0)] if form.negative_zero and lower < 0 else []
        return found + [x for x in (-half, half) if lower <= x <= upper]
    found = []
    count, unit = _place(lower, form)
    while len(found) < 2 and count * unit <= form.largest and (turn := (count + Fraction(1, 2)) * unit) <= upper:
        found += [turn] if turn >= lower else []
        count, unit = _place((count + 1) * unit, form)
    return found


def _place(x: Fraction, form: Format) -> tuple[int, Fraction]:
    """How often the unit in the last place of the positive number x goes into it, and that unit."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if x.numerator << max(0, -exponent) < x.denominator << max(0, exponent):
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, form.least) - form.precision + 1)
    return x // unit, unit
