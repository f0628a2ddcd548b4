"""Masks that are a band along the diagonal: causal and windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn._core.anchors import Anchor, anchor_of, integer
from refattn._core.arrays import Array, moved
from refattn.masks.arguments import after, anchor_at, anchor_batch, check_anchor, lead_of, positions, shown
from refattn.masks.base import Ints, Mask, Positions


@dataclass(frozen=True, eq=False, repr=False)
class Band(Mask):
    """Keys from `left` before to `right` behind the key that the query stands on; None = no end on that side."""

    left: int | None
    right: int | None
    anchor: Anchor
    name: str  # of the function of `refattn.masks` that makes it

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of offsets, the same for all heads."""
        return lead_of(anchor_batch(self.anchor))

    def _check(self, function: str, L: int, S: int) -> None:
        check_anchor(function, self, self.anchor, L, S)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        q, k = positions(i, xp, device)[:, None], positions(j, xp, device)[None, :]
        keep = xp.ones((1, 1), dtype=xp.bool, device=device)
        if self.left is not None:
            keep = keep & (k >= q + moved(after(self.anchor, -self.left, L, S, S)[..., None, None], xp, device))
        if self.right is not None:
            keep = keep & (k <= q + moved(after(self.anchor, self.right, L, S, S)[..., None, None], xp, device))
        return keep

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints]:
        i = np.arange(L)
        first, stop = np.zeros(1, np.int64), np.full(1, S)
        if self.left is not None:
            first = i + after(self.anchor, -self.left, L, S, S)[..., None]
        if self.right is not None:
            stop = i + after(self.anchor, self.right, L, S, S)[..., None] + 1
        return np.clip(first, 0, S), np.clip(stop, 0, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return replace(self, anchor=anchor_at(self.anchor, self.lead[:-1], index[:-1]))

    def _reanchored(self, anchor: Anchor) -> Mask:
        return replace(self, anchor=anchor)

    def __repr__(self) -> str:
        """The call that makes it."""
        sides = [] if self.name == "causal" else [repr(self.left), repr(self.right)]
        anchor = [] if self.anchor is None else [f"anchor={shown(self.anchor)}"]
        return f"masks.{self.name}({', '.join(sides + anchor)})"


def reach_of(name: str, x: Any) -> int | None:
    """A side of a window that was checked."""
    rule = f"masks.window: {name} must be a non-negative integer or None; got"
    if x is None:
        return None
    try:
        n = integer(x)
    except TypeError:
        raise TypeError(f"{rule} {x!r}.") from None
    if n < 0:
        raise ValueError(f"{rule} {n}.")
    return n


def causal(anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask that lets a query see the key it stands on and those before it.

        query i sees key j  iff  j <= i + offset

    Parameters
    ----------
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Where the diagonal lies. "lower_right" (FlashAttention, FlashInfer, vLLM): the last query stands on the last
        key, offset = S - L. "upper_left" (PyTorch SDPA, JAX): query 0 stands on key 0, offset = 0. An integer is the
        offset itself, an array one for each batch entry (a padded cache: lengths - L). Default: the two corners must
        agree, L = S.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` for an array of offsets.

    Raises
    ------
    TypeError
        If `anchor` is of another kind.
    ValueError
        If `anchor` is another string; later, where the mask is used, if `anchor` is None and L != S.

    Notes
    -----
    Rows are intervals: every form is in closed form. An offset may have any size.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.causal(anchor="lower_right").draw(2, 5))
      01234
    0 ####.
    1 #####
    >>> print(masks.causal(anchor="upper_left").draw(2, 5))
      01234
    0 #....
    1 ##...
    """
    return Band(None, 0, anchor_of("masks.causal", anchor), "causal")


def window(left: int | None, right: int | None, anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask that lets a query see the keys beside the one it stands on.

        query i sees key j  iff  i + offset - left <= j <= i + offset + right

    Parameters
    ----------
    left, right : int or None
        Number of keys before and behind the key that the query stands on, which is always in; None = no end on that
        side. A window of W keys that ends at the diagonal is ``window(W - 1, 0)``.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Which key the query stands on, as in `causal`.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` for an array of offsets.

    Raises
    ------
    TypeError
        If `left` or `right` is no integer (a boolean is none), or `anchor` is of another kind.
    ValueError
        If `left` or `right` is negative or `anchor` another string; later, where the mask is used, if `anchor` is None
        and L != S.

    Notes
    -----
    Rows are intervals: every form is in closed form.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.window(1, 2, anchor="lower_right").draw(3, 5))
      01234
    0 .####
    1 ..###
    2 ...##
    """
    return Band(reach_of("left", left), reach_of("right", right), anchor_of("masks.window", anchor), "window")
