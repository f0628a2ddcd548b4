"""A mask that is another one for each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refattn._core.arrays import Array, Namespace
from refattn.masks.base import Mask, Positions


@dataclass(frozen=True, eq=False, repr=False)
class HeadMasks(Mask):
    """A mask of its own for each head."""

    ones: tuple[Mask, ...]

    @property
    def lead(self) -> tuple[int, ...]:
        """The heads."""
        return (len(self.ones),)

    @property
    def readable(self) -> bool:
        """Whether all of them are."""
        return all(one.readable for one in self.ones)

    def _check(self, function: str, L: int, S: int) -> None:
        for one in self.ones:
            one.check(function, L, S)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Namespace, device: Any) -> Array:
        shape = tuple(x.stop - x.start if isinstance(x, slice) else len(x) for x in (i, j))
        return xp.stack([xp.broadcast_to(x.tile(i, j, L, S, xp=xp, device=device), shape) for x in self.ones])

    def _at(self, index: tuple[int, ...]) -> Mask:
        return self.ones[index[-1]]
