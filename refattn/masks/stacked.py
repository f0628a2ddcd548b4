"""Masks that answer for one batch entry and head at a time."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, moved
from refattn.masks.arguments import positions
from refattn.masks.base import Mask, Positions


class Stacked(Mask):
    """A mask whose tile is made of those of its batch entries and heads."""

    @abstractmethod
    def _one_tile(self, i: Positions, j: Positions, L: int, S: int) -> npt.NDArray[np.bool_]:
        """The cells (len i, len j) where `lead` is ()."""

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        ones: list[Any] = [self.at(index) for index in np.ndindex(self.lead)]
        sizes = (positions(x, np, None).size for x in (i, j))
        cells = np.array([one._one_tile(i, j, L, S) for one in ones], np.bool_)
        return moved(cells.reshape((*self.lead, *sizes)), xp, device)
