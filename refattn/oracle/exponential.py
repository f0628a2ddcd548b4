"""Exponential, tanh and logarithm with proven errors, as float64 and double-double: Theorems E1, E2, L of README.md.

Made of additions, products, quotients, table lookups and moved bits, all of them exact or rounded to nearest. NumPy's
log is a guess that its exponential certifies.

| float64 | double-double | what |
|---|---|---|
| `exp`, `exp_in_place` | `exp_dd`, `exp_dd_in_place` | for numbers from EXP_LOWEST to EXP_HIGHEST |
| `tanh` | `tanh_dd` | for any number |
| `log` | `log_dd` | from e^-500 to e^500; with a bound of its error |
"""

from __future__ import annotations

import threading

import numpy as np

from refattn.oracle.arithmetic import Floats, Pair, U, dd_add_float, dd_div, dd_mul, fast_two_sum, two_sum
from refattn.oracle.tables import OCTAVE, OCTAVE_BITS, Ints, tables

EXP_LOWEST, EXP_HIGHEST = -600.0, 700.0
EXP_LOST = 2.0**-865  # at least exp(EXP_LOWEST)
EXP_ERROR = 1.005 * U  # Theorem E1: relative
EXP_DD_ERROR = 2.0**-78  # Theorem E2: relative
TANH_ERROR = 2.01 * U  # Corollary E1: absolute
TANH_DD_ERROR = 0.51 * EXP_DD_ERROR + 2.0**-101  # Corollary E2: absolute
LOG_LIMIT = 2.0**-40  # Theorem L: what a guess may be off by
LOG_HIGHEST = 500.0  # Theorem L: what a guess may be at most, so that its exponential is right

# Elements at a time: the buffers of both exponentials then lie in a second-level cache of 1 MiB.
_CHUNK, _CHUNK_DD = 16384, 12288

# Added to a number below 2^51 (2^18) in size, they leave it rounded to an integer (a multiple of 2^-33) in the last
# bits of the sum: lemma G, theorem E2.
_TO_INTEGER = 1.5 * 2.0**52
_TO_GRID = 1.5 * 2.0**19

# tanh of more than this is 1, up to 2^-864.
_TANH_FAR = -0.5 * EXP_LOWEST

_WITHIN_OCTAVE = OCTAVE - 1
# Bits of the fraction below those that count the steps of an octave.
_BELOW = 52 - OCTAVE_BITS

# Theorem E1, step 2: exp(r) = 1 + r + (1/2 + 2^-32) r^2 + r^3/6 up to 4.7e-19; the 2^-32 makes up for r^4/24.
_HALF = 0.5 + 2.0**-32


class _Buffers(threading.local):
    """Room for a chunk, of each thread and kept from call to call: fresh memory would cost more than the arithmetic."""

    def __init__(self) -> None:
        """Make it, when a thread first asks."""
        self.floats = np.empty((3, _CHUNK))
        self.integers = np.empty((2, _CHUNK), dtype=np.int64)


_BUFFERS = _Buffers()


def exp(x: Floats) -> Floats:
    """Exponential of x in a new array, as `exp_in_place` computes it."""
    y = np.array(x, dtype=np.float64, order="C")
    exp_in_place(y)
    return y


def exp_in_place(x: Floats) -> None:
    """Overwrite an array with its exponential: Theorem E1, relative error EXP_ERROR.

    It is C-contiguous, or flattens without a copy; else ValueError. Its numbers lie between EXP_LOWEST and
    EXP_HIGHEST; any other makes its own result meaningless, and NaN stays NaN.
    """
    flat = _flattened(x)
    constants = tables()
    for start in range(0, flat.size, _CHUNK):
        r = flat[start : start + _CHUNK]
        (k, part), (within, scale) = _BUFFERS.floats[:2, : r.size], _BUFFERS.integers[:, : r.size]
        power = _nearest_step(r, k, within, scale, part)
        np.multiply(k, constants.first, out=part)
        r -= part
        k *= constants.after_first
        r -= k
        constants.rests.take(within, out=part, mode="wrap")
        r += part

        q = k
        np.multiply(r, 1 / 6, out=q)
        q += _HALF
        q *= r
        q *= r
        q += r
        q *= power
        np.add(power, q, out=r)


def _flattened(x: Floats) -> Floats:
    """The same memory as one axis."""
    flat = x.reshape(-1)
    if flat.size and not np.may_share_memory(flat, x):
        raise ValueError("exp_in_place: x must flatten without a copy.")
    return flat


def exp_dd(high: Floats, low: Floats) -> Pair:
    """Exponential of high + low in new arrays, as `exp_dd_in_place` computes it."""
    high, low = (np.array(x, dtype=np.float64, order="C") for x in np.broadcast_arrays(high, low))
    exp_dd_in_place(high, low)
    return high, low


def exp_dd_in_place(high: Floats, low: Floats) -> None:
    """Overwrite two arrays of one shape with exp(high + low): Theorem E2, relative error EXP_DD_ERROR.

    They are C-contiguous, or flatten without a copy; else ValueError. `high` lies between EXP_LOWEST and EXP_HIGHEST,
    and |low| <= 2^-43, as it is in a double-double of that size. The low part of the result may exceed half a unit in
    the last place of the high part, by 2^-12 of it.
    """
    flat_high, flat_low = _flattened(high), _flattened(low)
    constants = tables()
    for start in range(0, high.size, _CHUNK_DD):
        x, y = (flat[start : start + _CHUNK_DD] for flat in (flat_high, flat_low))
        (k, part, grid), (within, scale) = _BUFFERS.floats[:, : x.size], _BUFFERS.integers[:, : x.size]
        power = _nearest_step(x, k, within, scale, part)

        # What remains of x is grid + rest, exact but for the three last terms of rest, which are small.
        np.multiply(k, constants.first, out=part)
        x -= part
        np.multiply(k, constants.second, out=part)
        np.subtract(x, part, out=grid)
        grid += _TO_GRID
        grid -= _TO_GRID
        x -= grid
        x -= part
        k *= constants.third
        y -= k
        constants.rests.take(within, out=part, mode="wrap")
        y += part
        y += x
        rest, r, q = y, part, k
        np.add(grid, rest, out=r)

        np.multiply(r, 1 / 120, out=q)
        q += 1 / 24
        q *= r
        q += 1 / 6
        q *= r
        q += 0.5
        q *= r
        q *= r
        rest += q

        # power + power grid + power rest, of which the first two are exact.
        grid *= power
        rest *= power
        np.add(grid, rest, out=q)
        np.add(power, q, out=x)
        power -= x
        power += grid
        y += power


def tanh(x: Floats) -> Floats:
    """Hyperbolic tangent of x, for any x: Corollary E1, absolute error TANH_ERROR."""
    y = np.array(x, dtype=np.float64, order="C")
    flat = y.reshape(-1)
    room = np.empty((2, min(flat.size, _CHUNK)))
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        e, quotient = room[:, : part.size]
        np.abs(part, out=e)
        np.minimum(e, _TANH_FAR, out=e)
        e *= -2.0
        exp_in_place(e)
        np.subtract(1.0, e, out=quotient)
        e += 1.0
        quotient /= e
        np.copysign(quotient, part, out=part)
    return y


def tanh_dd(high: Floats, low: Floats) -> Pair:
    """Hyperbolic tangent of high + low, for any double-double: Corollary E2, absolute error TANH_DD_ERROR."""
    sign = np.copysign(1.0, high)
    size = np.abs(high)
    far = size > _TANH_FAR
    e, e_low = exp_dd(-2.0 * np.minimum(size, _TANH_FAR), np.where(far, 0.0, -2.0 * sign * low))
    e, e_low = fast_two_sum(e, e_low)
    high, low = dd_div(*dd_add_float(-e, -e_low, 1.0), *dd_add_float(e, e_low, 1.0))
    return sign * high, sign * low


def log(x: Floats) -> Pair:
    """Logarithm of x and a bound of its error, which is inf where the guess was not near enough: Theorem L."""
    guess = np.log(x)
    off = x * exp(-guess) - 1.0
    value = guess + off
    return value, _certified(guess, off, 2.02 * U + 2.0**-80 + 1.01 * U * np.abs(value))


def log_dd(high: Floats, low: Floats) -> tuple[Floats, Floats, Floats]:
    """Logarithm of high + low as a double-double and a bound of its error: Theorem L."""
    guess = np.log(high)
    product, product_low = dd_mul(high, low, *fast_two_sum(*exp_dd(-guess, np.zeros_like(guess))))
    off = (product - 1.0) + product_low
    value, value_low = two_sum(guess, off)
    return value, value_low, _certified(guess, off, 1.13 * EXP_DD_ERROR)


def _nearest_step(x: Floats, k: Floats, within: Ints, scale: Ints, work: Floats) -> Floats:
    """Lemma G: the nearest multiple k of ln 2 / 4096, its place within the octave, and power_j 2^n, held in `scale`."""
    constants, bits, part = tables(), k.view(np.int64), work.view(np.int64)
    np.multiply(x, constants.inverse, out=k)
    k += _TO_INTEGER
    np.bitwise_and(bits, _WITHIN_OCTAVE, out=within)
    np.left_shift(bits.view(np.uint64), _BELOW, out=scale.view(np.uint64))
    k -= _TO_INTEGER
    # All places are in range: the mode only keeps `take` from making a copy.
    constants.bits.take(within, out=part, mode="wrap")
    scale += part
    return scale.view(np.float64)


def _certified(guess: Floats, off: Floats, error: Floats | float) -> Floats:
    """An error that holds where the guess was near enough; NaN is not."""
    return np.where((np.abs(guess) <= LOG_HIGHEST) & (np.abs(off) < LOG_LIMIT), error, np.inf)
