"""Exponentials in fixed point, made of Python integers alone: lemma P of README.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

# Bits of the exponents and of the work behind those of the result.
GUARD = 6
# Lemma P: units by which a result may err, where its exponent errs by at most EXPONENT_ERROR of its own.
WEIGHT_ERROR = 2
EXPONENT_ERROR = 8

# An exponent's first bits, in three steps of eight, are looked up; the rest, below 2^-24, goes into a series.
_STEP = 8
# Bits that the tables' own powers carry behind those of the tables.
_SPARE = 32


class _Constants(NamedTuple):
    """Numbers in units of 2^-bits, each within 1.01 units."""

    ln2: int
    coefficients: tuple[int, ...]  # 1 / i!, from the last to the first, which is exact
    tables: tuple[tuple[int, ...], ...]  # exp(i / 2^8), exp(i / 2^16), exp(i / 2^24)


def exponentials(exponents: Sequence[int], bits: int) -> list[int]:
    """Exponentials in units of 2^-bits, within WEIGHT_ERROR, of numbers below ln 2 in units of 2^-(bits + GUARD)."""
    fine = bits + GUARD
    ln2, (first, *coefficients), (a, b, c) = _constants(fine)
    at_a, at_b, at_c = fine - _STEP, fine - 2 * _STEP, fine - 3 * _STEP
    within, rest = 2**_STEP - 1, 2**at_c - 1
    lowest = -(bits + 2) * ln2
    found = []
    for x in exponents:
        if x < lowest:
            found.append(0)
            continue
        power, r = divmod(x, ln2)
        t = r & rest
        y = first
        for coefficient in coefficients:
            y = (y * t >> fine) + coefficient
        y = y * a[r >> at_a] >> fine
        y = y * b[r >> at_b & within] >> fine
        y = y * c[r >> at_c & within] >> fine
        found.append(y >> GUARD - power)
    return found


@cache
def _constants(bits: int) -> _Constants:
    """The constants of a precision, each made once."""
    unit, spare = 1 << bits, bits + _SPARE
    terms, factorials, size = 0, [1], 0
    # The first term left out, t^terms / terms! with t < 2^-24, is below a quarter of a unit.
    while size < bits + 2:
        terms += 1
        factorials.append(factorials[-1] * terms)
        size = 3 * _STEP * terms + factorials[-1].bit_length() - 1
    tables = []
    for step in (_STEP, 2 * _STEP, 3 * _STEP):
        base, powers = _exponential(spare - step, spare), [1 << spare]
        for _ in range(2**_STEP - 1):
            powers.append(powers[-1] * base >> spare)
        tables.append(tuple(x >> _SPARE for x in powers))
    coefficients = tuple(unit // x for x in reversed(factorials[:terms]))
    # ln 2 = 18 artanh(1/26) - 2 artanh(1/4801) + 8 artanh(1/8749).
    ln2 = 18 * _artanh(26, spare) - 2 * _artanh(4801, spare) + 8 * _artanh(8749, spare)
    return _Constants(ln2 >> _SPARE, coefficients, tuple(tables))


def _exponential(exponent: int, bits: int) -> int:
    """The number exp(2^(exponent - bits)) <= exp(2^-8) in units of 2^-bits, too small by at most 1.02 units a term."""
    total, term, n = 0, 1 << bits, 0
    while term:
        total += term
        n += 1
        term = (term << exponent) // n >> bits
    return total


def _artanh(x: int, bits: int) -> int:
    """The number artanh(1/x) = 1/x + 1/(3 x^3) + ... in units of 2^-bits, too small by at most 2.01 units a term."""
    total, power, n = 0, (1 << bits) // x, 1
    while power:
        total += power // n
        power //= x * x
        n += 2
    return total
