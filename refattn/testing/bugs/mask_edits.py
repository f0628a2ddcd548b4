"""Masks with one thing about them changed; a mask that has none of it comes back as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from refattn._core.anchors import Anchor
from refattn.masks import Mask
from refattn.masks.bands import Band
from refattn.masks.combine import Not, Pair
from refattn.masks.documents import Documents
from refattn.masks.families import Dense
from refattn.masks.segments import Chunked, Prefix
from refattn.masks.tree import Tree


def parts(mask: Mask | None) -> Iterator[Mask]:
    """The masks that a mask is made of."""
    if isinstance(mask, Pair):
        yield from parts(mask.a)
        yield from parts(mask.b)
    elif isinstance(mask, Not):
        yield from parts(mask.mask)
    elif mask is not None:
        yield mask


def bands(mask: Mask | None) -> list[Band]:
    """The causal masks and windows in a mask that count from its own first query and key."""
    return [part for part in parts(mask) if isinstance(part, Band)]


def all_bands(mask: Mask | None) -> list[Band]:
    """The causal masks and windows in a mask, those inside documents too."""
    inside = [part.inside for part in parts(mask) if isinstance(part, Documents)]
    return bands(mask) + [band for one in inside for band in all_bands(one)]


def anchors(mask: Mask | None) -> list[Anchor]:
    """Where the diagonals of a mask start, those inside documents too."""
    found = [part.anchor for part in parts(mask) if isinstance(part, Band | Chunked | Prefix | Tree)]
    inside = [part.inside for part in parts(mask) if isinstance(part, Documents)]
    return found + [anchor for one in inside for anchor in anchors(one)]


def replaced(mask: Mask | None, change: Callable[[Mask], Mask]) -> Mask | None:
    """The mask with a change of each mask that it is made of."""
    if isinstance(mask, Not):
        inner = replaced(mask.mask, change)
        return mask if inner is mask.mask or inner is None else Not(inner)
    if isinstance(mask, Pair):
        a, b = replaced(mask.a, change), replaced(mask.b, change)
        return mask if (a is mask.a and b is mask.b) or a is None or b is None else type(mask)(a, b)
    return None if mask is None else change(mask)


def edited(mask: Mask | None, change: Callable[[Band], Band]) -> Mask | None:
    """The mask with a change of each causal mask and window in it, those inside documents too."""

    def of_part(part: Mask) -> Mask:
        if isinstance(part, Documents):
            inner = edited(part.inside, change)
            return part if inner is part.inside else replace(part, inside=inner)
        return change(part) if isinstance(part, Band) else part

    return replaced(mask, of_part)


def cut(mask: Mask, L: int, S: int) -> Mask | None:
    """The mask whose padded cells are those of the first queries and keys."""
    return replaced(mask, lambda part: Dense(part.cells[..., :L, :S]) if isinstance(part, Dense) else part)


def moved(mask: Mask | None, *, left: int = 0, right: int = 0) -> Mask | None:
    """The mask with the ends of its windows moved outwards by so many keys."""

    def change(band: Band) -> Band:
        ends = (
            None if band.left is None else band.left + left,
            None if band.right is None else band.right + right,
        )
        return band if ends == (band.left, band.right) else replace(band, left=ends[0], right=ends[1])

    return edited(mask, change)


def without_left(mask: Mask | None) -> Mask | None:
    """The mask whose windows have no left end."""
    return edited(mask, lambda band: band if band.left is None else replace(band, left=None))


def offset(band: Band, L: int, S: int) -> int:
    """Key that query 0 stands on, of a band without leading axes."""
    if isinstance(band.anchor, int):
        return band.anchor
    return S - L if band.anchor == "lower_right" else 0


def reanchored(mask: Mask | None, anchor: str | int) -> Mask | None:
    """The mask with all its diagonals at another place."""
    return None if mask is None else mask.reanchored(anchor)
