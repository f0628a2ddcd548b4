"""Sums and products without error, and double-double arithmetic: lemmas D1, D2 and D3 of README.md.

A double-double (high, low) is the sum of two float64 with high the nearest float64 to it, so that |low| <= u |high|.
Operands broadcast. Bounds are relative errors, for results that neither overflow nor come near 2^-960.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Pair = tuple[Floats, Floats]

U = 2.0**-53

# Lemma D3. Joldes, Muller and Popescu, Tight and rigorous error bounds for basic building blocks of double-word
# arithmetic, ACM Transactions on Mathematical Software 44, 2017: algorithms 4, 6, 8, 10 and 17.
ADD_FLOAT_ERROR = 2.0 * U * U
ADD_ERROR = 3.01 * U * U
MUL_FLOAT_ERROR = 3.0 * U * U
MUL_ERROR = 7.0 * U * U
DIV_ERROR = 15.01 * U * U

# Veltkamp: 2^27 + 1 cuts 53 bits into 26 and 26 and a sign.
_SPLITTER = 134217729.0


def two_sum(a: Floats, b: Floats | float) -> Pair:
    """Rounded sum and its error, lemma D1 (Knuth): a + b = high + low."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def fast_two_sum(a: Floats, b: Floats | float) -> Pair:
    """Rounded sum and its error, lemma D1 (Dekker): a + b = high + low, where |a| >= |b| or a = 0."""
    high = a + b
    return high, b - (high - a)


def split(a: Floats) -> Pair:
    """Two numbers of at most 26 bits whose sum is a, lemma D2 (Veltkamp), for |a| < 2^995."""
    spread = _SPLITTER * a
    high = spread - (spread - a)
    return high, a - high


def two_prod(a: Floats, b: Floats | float) -> Pair:
    """Rounded product and its error, lemma D2 (Dekker): a b = high + low.

    For |a|, |b| < 2^995, |a b| < 2^1021, and a b a multiple of 2^-1074, as it is where |a b| >= 2^-968.
    """
    high = a * b
    a_high, a_low = split(a)
    b_high, b_low = split(np.asarray(b))
    return high, a_low * b_low - (((high - a_high * b_high) - a_low * b_high) - a_high * b_low)


def dd_add_float(a_high: Floats, a_low: Floats, b: Floats | float) -> Pair:
    """Sum of a double-double and a float64, ADD_FLOAT_ERROR of lemma D3."""
    high, low = two_sum(a_high, b)
    return fast_two_sum(high, a_low + low)


def dd_add(a_high: Floats, a_low: Floats, b_high: Floats, b_low: Floats) -> Pair:
    """Sum of two double-doubles, ADD_ERROR of lemma D3."""
    high, low = two_sum(a_high, b_high)
    low_high, low_low = two_sum(a_low, b_low)
    high, low = fast_two_sum(high, low + low_high)
    return fast_two_sum(high, low_low + low)


def dd_mul_float(a_high: Floats, a_low: Floats, b: Floats | float) -> Pair:
    """Product of a double-double and a float64, MUL_FLOAT_ERROR of lemma D3."""
    high, low = two_prod(a_high, b)
    return fast_two_sum(high, low + a_low * b)


def dd_mul(a_high: Floats, a_low: Floats, b_high: Floats, b_low: Floats) -> Pair:
    """Product of two double-doubles, MUL_ERROR of lemma D3."""
    high, low = two_prod(a_high, b_high)
    return fast_two_sum(high, low + (a_high * b_low + a_low * b_high))


def dd_div(a_high: Floats, a_low: Floats, b_high: Floats, b_low: Floats) -> Pair:
    """Quotient of two double-doubles, DIV_ERROR of lemma D3; b is not 0."""
    quotient = a_high / b_high
    high, low = dd_mul_float(b_high, b_low, quotient)
    rest = (a_high - high) + (a_low - low)
    return fast_two_sum(quotient, rest / b_high)
