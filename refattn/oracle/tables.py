"""Constants of the exponential, made from Python's integers: the nearest float64 to numbers known to 2^-130."""

from __future__ import annotations

from functools import cache
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Steps of the table in an octave.
OCTAVE_BITS = 12
OCTAVE = 2**OCTAVE_BITS

# Fixed-point numbers here are integers times 2^-256.
FRACTION = 256
ONE = 2**FRACTION

# Lemma G: the grids of the first two parts of ln 2 / 4096, and of the powers.
_FIRST, _SECOND, _POWER = 43, 74, 32


class Tables(NamedTuple):
    """Lemma G: ln 2 / 4096 in parts, and 2^(j/4096) = power_j exp(rest_j) with a power of 33 bits."""

    inverse: float  # 4096 / ln 2
    first: float  # the nearest multiple of 2^-43 to ln 2 / 4096
    second: float  # the nearest multiple of 2^-74 to what remains
    third: float  # what remains then
    after_first: float  # second + third, rounded
    bits: Ints  # (4096,) power_j as a float64, less j 2^40: what j steps are to the exponent and the bits below it
    rests: Floats  # (4096,)


def nearest(numerator: int, bits: int) -> float:
    """The nearest float64 to numerator 2^-bits: Python's division of integers rounds correctly."""
    return numerator / (1 << bits)


def on_grid(x: int, bits: int) -> int:
    """The nearest multiple of 2^-bits to a fixed-point number."""
    drop = FRACTION - bits
    return ((x + (1 << (drop - 1))) >> drop) << drop


def ln_2() -> int:
    """The logarithm of 2 in fixed point, at most 256 units too small: 2 artanh(1/3)."""
    total, power, n = 0, 2 * ONE // 3, 1
    while power:
        total += power // n
        power //= 9
        n += 2
    return total


@cache
def tables() -> Tables:
    """Make the constants, when they are first asked for."""
    logarithm = ln_2()
    step = logarithm // OCTAVE
    first = on_grid(step, _FIRST)
    second = on_grid(step - first, _SECOND)
    third = step - first - second

    ratio = 2 * ONE
    for _ in range(OCTAVE_BITS):
        ratio = isqrt(ratio * ONE)
    exact, powers, rests = ONE, [], []
    for _ in range(OCTAVE):
        power = on_grid(exact, _POWER)
        powers.append(nearest(power, FRACTION))
        t = ((exact - power) << FRACTION) // power
        # log(1 + t) up to t^4 / 4, where |t| <= 2^-33.
        rests.append(nearest(t - (t * t >> (FRACTION + 1)) + (t**3 >> (2 * FRACTION)) // 3, FRACTION))
        exact = exact * ratio >> FRACTION
    return Tables(
        inverse=(OCTAVE << FRACTION) / logarithm,
        first=nearest(first, FRACTION),
        second=nearest(second, FRACTION),
        third=nearest(third, FRACTION),
        after_first=nearest(second + third, FRACTION),
        bits=np.array(powers).view(np.int64) - (np.arange(OCTAVE) << (52 - OCTAVE_BITS)),
        rests=np.array(rests),
    )
