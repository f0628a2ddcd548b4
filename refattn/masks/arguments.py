"""What the families of masks are made from: positions, offsets and lengths, checked, cut, moved and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import Anchor, frozen, integers
from refattn._core.arrays import Array, moved
from refattn.masks.base import Ints, Positions

if TYPE_CHECKING:
    from refattn.masks.base import Mask


def positions(x: Positions, xp: Any, device: Any) -> Array:
    """Positions as an int64 array of the namespace."""
    if isinstance(x, slice):
        return xp.arange(x.start, x.stop, dtype=xp.int64, device=device)
    return moved(np.asarray(x, np.int64), xp, device)


def shown(x: Any) -> str:
    """An argument as it would be typed; a long array by its shape."""
    if not isinstance(x, np.ndarray):
        return repr(x)
    return repr(x.tolist()) if x.size <= 8 else f"<int array {x.shape}>"


def lengths_of(function: str, name: str, x: Any) -> Ints:
    """Lengths that were checked, in int64."""
    rule = "a non-negative integer or an array of them, of batch shape"
    found = np.asarray(integers(function, name, x, rule))
    if np.any(found < 0) or np.any(found > np.iinfo(np.int64).max):
        worst = found.min() if np.any(found < 0) else found.max()
        raise ValueError(f"{function}: {name} must be {rule}; got {worst}.")
    return frozen(found.astype(np.int64))


def check_anchor(function: str, mask: Mask, anchor: Anchor, L: int, S: int) -> None:
    """Raise where the two corners differ and none was named."""
    if anchor is None and L != S:
        raise ValueError(
            f'{function}: {mask!r} is ambiguous for L={L}, S={S}. Pass anchor="lower_right" or anchor="upper_left".'
        )


def after(anchor: Anchor, distance: int, L: int, S: int, most: int) -> Ints:
    """Key that lies `distance` behind the one query 0 stands on, cut to -L .. most; (..., 1) for an array of offsets.

    Cut, in Python integers, to where it no longer matters: no offset overflows.
    """
    if isinstance(anchor, np.ndarray):
        return np.asarray(np.clip(anchor.astype(object) + distance, -L, most), np.int64)[..., None]
    offset = anchor if isinstance(anchor, int) else S - L if anchor == "lower_right" else 0
    return np.asarray(min(max(offset + distance, -L), most), np.int64)


def batch_of(function: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The batch shape of two arguments, whose names lead to their shapes."""
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(
            f"{function}: {' and '.join(shapes)} must have the same batch shape; got "
            f"{' and '.join(map(str, shapes.values()))}."
        ) from None


def lead_of(batch: tuple[int, ...]) -> tuple[int, ...]:
    """Leading axes of what has this batch shape and is the same for all heads."""
    return (*batch, 1) if batch else ()


def per_head(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers of batch shape with an axis for the heads, where they have axes."""
    return x[..., None] if x.ndim else x


def picked(x: npt.NDArray[Any], batch: tuple[int, ...], index: tuple[int, ...]) -> npt.NDArray[Any]:
    """What an array of one number for each batch entry holds for one of them."""
    return np.asarray(np.broadcast_to(x, batch)[index])


def anchor_batch(anchor: Anchor) -> tuple[int, ...]:
    """Batch shape of an anchor."""
    return anchor.shape if isinstance(anchor, np.ndarray) else ()


def anchor_at(anchor: Anchor, batch: tuple[int, ...], index: tuple[int, ...]) -> Anchor:
    """The anchor of one batch entry."""
    return int(picked(anchor, batch, index)) if isinstance(anchor, np.ndarray) else anchor
