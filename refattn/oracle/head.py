"""Keys and values of one head, cut into slices for the double-double tier: once where they are few, else in parts."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from refattn._core.tiles import tiles
from refattn.oracle.operands import Flags, Floats
from refattn.oracle.problem import Problem, Tile
from refattn.oracle.products import ZERO_QUANTUM, Slices, Values, key_slices, plan, top, value_slices

LARGEST_VALUE = 2.0**900  # Theorem O, (O2)


class Head:
    """Keys and values of a head, cut once where they are few and otherwise part by part."""

    def __init__(self, problem: Problem, chunk: int, held: int) -> None:
        """Cut nothing yet: `chunk` keys at a time where the numbers are more than `held`."""
        self.chunk = chunk
        self.key, self.value = problem.key, problem.value
        self.S, E = problem.key.shape
        self.few = self.S * (4 * E + 5 * problem.value.shape[1]) <= held

    @cached_property
    def _keys(self) -> Floats:
        return self.key.numbers(slice(0, self.S))

    @cached_property
    def _cut_keys(self) -> Slices:
        return key_slices(self._keys, top(self.key.measures.largest))

    def parts(self, keys: slice) -> list[slice]:
        """Parts of a range of keys that are made ready at a time."""
        return [keys] if self.few else list(tiles(keys.stop, self.chunk, keys.start))

    def keys(self, j: slice) -> Floats:
        """Keys j, (n, E)."""
        return self._keys[j] if self.few else self.key.numbers(j)

    def cut_keys(self, j: slice) -> Slices:
        """Keys j, cut."""
        if not self.few:
            return key_slices(self.key.numbers(j), top(self.key.measures.largest[j]))
        middle, low, rest = self._cut_keys
        return Slices(middle[j], low[j], rest)

    @cached_property
    def _all_seen(self) -> SeenValues:
        return SeenValues(self, None, slice(0, self.S))

    def values(self, tile: Tile) -> SeenValues:
        """The values that the rows of a tile see."""
        if self.few and tile.visible is None and tile.keys == slice(0, self.S):
            return self._all_seen
        return SeenValues(self, None if tile.visible is None else np.asarray(tile.visible.any(axis=0)), tile.keys)


class SeenValues:
    """Values that some row sees, times a power of two for each column that makes them at most 1, cut."""

    def __init__(self, head: Head, seen: Flags | None, keys: slice) -> None:
        """Find the powers of two, and how to cut."""
        self.head, self.seen, self.keys = head, seen, keys
        largest = np.zeros(head.value.shape[1])
        for j in head.parts(keys):
            np.maximum(largest, np.abs(self._numbers(j)).max(axis=0, initial=0.0), out=largest)
        quanta = head.value.measures.quantum[keys]
        finest = int((quanta if seen is None else quanta[seen]).min(initial=ZERO_QUANTUM))
        self.known = largest < LARGEST_VALUE
        self.exponents = np.clip(top(largest), -1000, 900)
        self.cuts = plan(int(self.exponents.max(initial=-1000)) - finest)

    @cached_property
    def _cut(self) -> Values:
        return self._cut_part(self.keys)

    def cut(self, j: slice) -> Values:
        """Values j, cut."""
        return self._cut if self.head.few else self._cut_part(j)

    def _cut_part(self, j: slice) -> Values:
        return value_slices(self._numbers(j) * np.ldexp(1.0, -self.exponents), self.cuts)

    def _numbers(self, j: slice) -> Floats:
        x = self.head.value.numbers(j)
        if self.seen is not None:
            # What no row sees may be of any size.
            x = np.where(self.seen[j.start - self.keys.start : j.stop - self.keys.start, None], x, 0.0)
        return x
