"""The array that a kernel is to write its output to: full of one NaN, so that what it never wrote can be told."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, dtype_of, from_numpy, to_numpy

# Bits of a NaN that arithmetic does not make, by bytes; of float8 there is one NaN, or as good as one.
BITS = {8: 0x7FF8DEADBEEFCAFE, 4: 0x7FC0BEEF, 2: 0x7FDA, 1: 0x7F}
# The NaN of the float8 kinds without a negative zero.
BITS_FNUZ = 0x80
# Cells before and behind a contiguous array.
GUARD = 64


class Room(NamedTuple):
    """An array to write to, and the larger one that it lies in."""

    out: Array
    whole: Array
    inside: npt.NDArray[np.bool_]  # cells of the larger one that are the array's


def room(shape: tuple[int, ...], dtype: str, library: str, device: object, margin: int) -> Room:
    """An array of some shape: contiguous with guards at both ends, or with margins along each axis but the last."""
    kind = np.dtype(dtype_of(dtype, np))
    sides = [margin] * (len(shape) - 1) + [0]
    size = (
        tuple(n + 2 * side for n, side in zip(shape, sides, strict=True)) if margin else (math.prod(shape) + 2 * GUARD,)
    )
    place = (
        tuple(slice(side, side + n) for n, side in zip(shape, sides, strict=True))
        if margin
        else (slice(GUARD, -GUARD),)
    )
    inside = np.zeros(size, dtype=np.bool_)
    inside[place] = True
    whole = from_numpy(
        np.full(size, _bits(dtype, kind), f"u{kind.itemsize}").view(kind), library=library, device=device
    )
    return Room(whole[place].reshape(shape) if not margin else whole[place], whole, inside)


def unwritten(given: Room) -> str | None:
    """How many cells of the output still hold what was there, and which is the first."""
    left = _same(given.out)
    if not left.any():
        return None
    first = tuple(int(n) for n in np.argwhere(left)[0])
    return f"never wrote {int(left.sum())} of the {left.size} cells of out, the first at {first}"


def overwritten(given: Room) -> bool:
    """Whether cells around the output hold anything else than what was there."""
    return bool((~_same(given.whole) & ~given.inside).any())


def _bits(dtype: str, kind: np.dtype[Any]) -> int:
    """The bits of the NaN."""
    return BITS_FNUZ if dtype.endswith("fnuz") else BITS[kind.itemsize]


def _same(x: Array) -> npt.NDArray[np.bool_]:
    """Which cells hold the bits of the NaN."""
    host = np.ascontiguousarray(to_numpy(x))
    bits = host.view(f"u{host.dtype.itemsize}")
    return np.asarray(bits == _bits(host.dtype.name, host.dtype))
