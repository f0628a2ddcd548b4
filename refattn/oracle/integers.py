"""Float64 numbers as integers times one power of two, and products of vectors in these integers, without any error."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from refattn.oracle.products import ZERO_QUANTUM, quantum

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Limbs that a vector is cut into at most; numbers whose bits lie further apart are taken one by one.
_LIMBS = 16


def integers(x: Floats) -> tuple[list[int], int]:
    """Integers m and a power g with x = m 2^g, for finite numbers (n,)."""
    low, width = _span(x)
    if width <= 62:
        return np.ldexp(x, -low).astype(np.int64).tolist(), low
    fractions, exponents = np.frexp(x)
    whole = np.ldexp(fractions, 53).astype(np.int64).tolist()
    shifts = (exponents.astype(np.int64) - 53 - low).tolist()
    return [m << s if s >= 0 else m >> -s for m, s in zip(whole, shifts, strict=True)], low


def products(q: Floats, K: Floats) -> tuple[list[int], int]:
    """Integers X and a power g with K q = X 2^g, for finite q (E,) and K (n, E)."""
    (n, E), (of_q, q_width), (of_K, K_width) = K.shape, _span(q), _span(K.ravel())
    # Sums of E products of two limbs, and of _LIMBS such sums, stay below 2^62.
    bits = (62 - (E - 1).bit_length() - (_LIMBS - 1).bit_length()) // 2
    if max(q_width, K_width) > _LIMBS * bits:
        a = integers(q)[0]
        flat = integers(K.ravel())[0]
        rows = (flat[j * E : (j + 1) * E] for j in range(n))
        return [sum(x * y for x, y in zip(a, b, strict=True)) for b in rows], of_q + of_K
    parts = dict(_limbs(q, of_q, q_width, bits))
    sums: dict[int, Ints] = {}
    for i, limb in _limbs(K, of_K, K_width, bits):
        for j, part in parts.items():
            sums[i + j] = sums.get(i + j, 0) + limb @ part
    found = [0] * n
    for i in range(max(sums, default=0), -1, -1):
        found = [x << bits for x in found]
        if i in sums:
            found = [x + y for x, y in zip(found, sums[i].tolist(), strict=True)]
    return found, of_q + of_K


def _span(x: Floats) -> tuple[int, int]:
    """The greatest g for which all numbers are multiples of 2^g, and w with all magnitudes below 2^(g + w)."""
    low = int(quantum(x[None])[0])
    return (0, 0) if low == ZERO_QUANTUM else (low, math.frexp(np.abs(x).max())[1] - low)


def _limbs(x: Floats, low: int, width: int, bits: int) -> Iterator[tuple[int, Ints]]:
    """The limbs of x, from the last to the first that is not zero: x 2^-low is the sum of limb i times 2^(bits i)."""
    rest = np.ldexp(x, -low)
    for i in range((max(width, 1) - 1) // bits, -1, -1):
        limb = np.trunc(rest * 2.0 ** (-bits * i))
        rest -= limb * 2.0 ** (bits * i)
        if limb.any():
            yield i, limb.astype(np.int64)
