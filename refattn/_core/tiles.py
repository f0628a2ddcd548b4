"""How an axis is cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator


def tiles(length: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `size` that cover ``start .. length`` in order; the last one is cut to fit."""
    for first in range(start, length, size):
        yield slice(first, min(first + size, length))
