"""Queries, keys or values of one head: rows that become float64 where they are read, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.tiles import tiles
from refattn.oracle.products import norms, quantum

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# Rows that are measured at a time.
ROWS = 4096


class Measures(NamedTuple):
    """What is known of each row of an operand, (n,); numbers that are not finite count as 0."""

    finite: Flags  # every number of the row is
    norm: Floats  # at least the 2-norm
    quantum: Ints  # every number of the row is a multiple of 2^quantum
    largest: Floats  # largest magnitude


@dataclass(frozen=True, eq=False)
class Operand:
    """An array (n, features) whose rows become float64 where they are read, so that no copy of the whole is made."""

    array: Any  # of NumPy, or what gives one where it is sliced

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    def __getitem__(self, rows: Any) -> Floats:
        """The rows at a slice or at positions, C-ordered."""
        return np.ascontiguousarray(self.array[rows], dtype=np.float64)

    def numbers(self, rows: slice | Ints) -> Floats:
        """The rows with 0 in place of what is not finite."""
        x = self[rows]
        return x if self.measures.finite[rows].all() else np.where(np.isfinite(x), x, 0.0)

    @cached_property
    def measures(self) -> Measures:
        """What is known of each row."""
        n = self.shape[0]
        measures = Measures(np.ones(n, dtype=np.bool_), np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n))
        for rows in tiles(n, ROWS):
            x = self[rows]
            finite = np.isfinite(x)
            measures.finite[rows] = finite.all(axis=1)
            if not measures.finite[rows].all():
                x = np.where(finite, x, 0.0)
            measures.norm[rows] = norms(x)
            measures.quantum[rows] = quantum(x)
            measures.largest[rows] = np.abs(x).max(axis=1, initial=0.0)
        return measures
