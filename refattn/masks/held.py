"""A boolean array as a mask whose values cannot be read yet: it is traced, mapped over, or computed later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refattn._core.arrays import Array, array_namespace, moved, taken, to_numpy
from refattn.masks.base import Mask, Positions


@dataclass(frozen=True, eq=False, repr=False)
class Held(Mask):
    """The cells of a boolean array, shape (..., L or 1, S or 1), which stays in its own namespace."""

    cells: Array

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes before the last two."""
        return tuple(self.cells.shape[:-2])

    @property
    def readable(self) -> bool:
        """The cells are not known before the computation that they are a part of."""
        return False

    def _check(self, function: str, L: int, S: int) -> None:
        if self.cells.shape[-2] not in (1, L) or self.cells.shape[-1] not in (1, S):
            raise ValueError(
                f"{function}: mask must have the shape (..., L, S), or 1 for either, with L={L} and S={S}; "
                f"got {tuple(self.cells.shape)}."
            )

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        own = array_namespace("mask.tile", mask=self.cells)
        cells = self.cells if self.cells.shape[-2] == 1 else taken(self.cells, i, -2, own)
        cells = cells if self.cells.shape[-1] == 1 else taken(cells, j, -1, own)
        return cells if xp is own else moved(to_numpy(cells), xp, device)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return Held(self.cells[(*index, ...)])

    def __repr__(self) -> str:
        """The call that makes it, with the array's shape in place of its cells."""
        return f"masks.array(<bool array {tuple(self.cells.shape)}>)"
