"""A bias that is another one for each head."""

from __future__ import annotations

from dataclasses import dataclass

from refattn._core.arrays import Array, Namespace
from refattn.biases.base import Bias


@dataclass(frozen=True, eq=False, repr=False)
class HeadBiases(Bias):
    """A bias of its own for each head."""

    ones: tuple[Bias, ...]

    @property
    def lead(self) -> tuple[int, ...]:
        """The heads."""
        return (len(self.ones),)

    def check(self, function: str, L: int, S: int) -> None:
        """Each of them is held against the lengths."""
        for one in self.ones:
            one.check(function, L, S)

    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """The tiles of all heads."""
        shape = tuple(x.stop - x.start if isinstance(x, slice) else len(x) for x in (i, j))
        return xp.stack([xp.broadcast_to(x.tile(i, j, L, S, xp=xp, device=device), shape) for x in self.ones])

    def at(self, index: tuple[int, ...]) -> Bias:
        """That of one head."""
        return self.ones[index[-1]]
