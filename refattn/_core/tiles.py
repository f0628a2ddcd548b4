"""How an axis is cut into tiles, and which keys the tiles must cover."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def tiles(length: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `size` that cover ``start .. length`` in order; the last one is cut to fit."""
    for first in range(start, length, size):
        yield slice(first, min(first + size, length))


def some_tiles(length: int, size: int) -> Iterator[slice]:
    """The tiles of an axis, at least one: where the length is 0, one that holds nothing."""
    yield from tiles(length, size) if length else (slice(0, 0),)


def united(intervals: tuple[Any, Any] | None, L: int, S: int) -> tuple[Ints, Ints]:
    """First and stop, (L,), of the keys that hold the intervals (..., L) of all leading indices; None is 0 .. S."""
    first, stop, _ = np.broadcast_arrays(*((0, S) if intervals is None else intervals), np.zeros(L))
    seen, leading = first < stop, tuple(range(first.ndim - 1))
    low = np.min(np.where(seen, first, S), axis=leading, initial=S)
    return low, np.max(np.where(seen, stop, 0), axis=leading, initial=0)
