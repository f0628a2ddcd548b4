"""Masks made of masks: both, either, the other cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from refattn._core.anchors import Anchor
from refattn._core.arrays import Array
from refattn.masks.base import Ints, Mask, Positions


@dataclass(frozen=True, eq=False, repr=False)
class Pair(Mask):
    """Two masks combined cell by cell; their leading axes broadcast."""

    a: Mask
    b: Mask
    symbol: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuse leading axes that do not broadcast."""
        try:
            np.broadcast_shapes(self.a.lead, self.b.lead)
        except ValueError:
            raise ValueError(
                f"masks: the leading axes of both sides of {self.symbol} must broadcast; got lead={self.a.lead} and "
                f"lead={self.b.lead}."
            ) from None

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of both, broadcast."""
        return np.broadcast_shapes(self.a.lead, self.b.lead)

    @property
    def readable(self) -> bool:
        """Whether both can be read."""
        return self.a.readable and self.b.readable

    def _check(self, function: str, L: int, S: int) -> None:
        self.a._check(function, L, S)
        self.b._check(function, L, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return type(self)(self.a.at(index), self.b.at(index))

    def _reanchored(self, anchor: Anchor) -> Mask:
        a, b = self.a._reanchored(anchor), self.b._reanchored(anchor)
        return self if a is self.a and b is self.b else type(self)(a, b)


class And(Pair):
    """Keys that both masks let take part."""

    symbol = "&"

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        return self.a._tile(i, j, L, S, xp=xp, device=device) & self.b._tile(i, j, L, S, xp=xp, device=device)

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        a, b = self.a._interval(L, S), self.b._interval(L, S)
        return None if a is None or b is None else _common(a, b)

    def _hull(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        a, b = self.a._hull(L, S), self.b._hull(L, S)
        return b if a is None else a if b is None else _common(a, b)

    def __repr__(self) -> str:
        """Both sides; ``&`` binds tighter than ``|``."""
        return " & ".join(f"({x!r})" if isinstance(x, Or) else repr(x) for x in (self.a, self.b))


def _common(a: tuple[Ints, Ints], b: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """What two intervals have in common."""
    first = np.maximum(a[0], b[0])
    return first, np.maximum(first, np.minimum(a[1], b[1]))


class Or(Pair):
    """Keys that either mask lets take part."""

    symbol = "|"

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        return self.a._tile(i, j, L, S, xp=xp, device=device) | self.b._tile(i, j, L, S, xp=xp, device=device)

    def _hull(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        a, b = self.a._hull(L, S), self.b._hull(L, S)
        if a is None or b is None:
            return None
        # An empty row must not reach to where its interval happens to lie.
        stop = np.maximum(*(np.where(x < y, y, 0) for x, y in (a, b)))
        return np.minimum(*(np.where(x < y, x, stop) for x, y in (a, b))), stop

    def __repr__(self) -> str:
        """Both sides."""
        return f"{self.a!r} | {self.b!r}"


@dataclass(frozen=True, eq=False, repr=False)
class Not(Mask):
    """Keys that the mask leaves out."""

    mask: Mask

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of the mask."""
        return self.mask.lead

    @property
    def readable(self) -> bool:
        """Whether the mask can be read."""
        return self.mask.readable

    def _check(self, function: str, L: int, S: int) -> None:
        self.mask._check(function, L, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return Not(self.mask.at(index))

    def _reanchored(self, anchor: Anchor) -> Mask:
        mask = self.mask._reanchored(anchor)
        return self if mask is self.mask else Not(mask)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        return ~self.mask._tile(i, j, L, S, xp=xp, device=device)

    def _count(self, L: int, S: int) -> Ints:
        return np.asarray(L * S - self.mask._count(L, S))

    def __invert__(self) -> Mask:
        """The mask itself, so that its intervals are not lost."""
        return self.mask

    def __repr__(self) -> str:
        """The mask, in brackets where it is a pair."""
        return f"~({self.mask!r})" if isinstance(self.mask, Pair) else f"~{self.mask!r}"
