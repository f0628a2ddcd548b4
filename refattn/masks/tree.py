"""Masks of token trees, as speculative decoding verifies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import Anchor, anchor_of, frozen, integers
from refattn._core.arrays import Array
from refattn.masks.arguments import after, anchor_at, anchor_batch, batch_of, check_anchor, lead_of, positions, shown
from refattn.masks.base import Ints, Mask, Positions
from refattn.masks.stacked import Stacked


@dataclass(frozen=True, eq=False, repr=False)
class Tree(Stacked):
    """The node itself, its ancestors, and the keys before the tree."""

    parents: Ints
    anchor: Anchor
    line: npt.NDArray[np.bool_]  # (..., T, T + 1): node n's line up to its root; in the last column nothing

    def __post_init__(self) -> None:
        """Refuse batch shapes that do not broadcast."""
        self._batch()

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of trees or offsets, the same for all heads."""
        return lead_of(self._batch())

    def _batch(self) -> tuple[int, ...]:
        """Batch shape of trees and offsets."""
        return batch_of("masks.tree", parents=self.parents.shape[:-1], anchor=anchor_batch(self.anchor))

    def _check(self, function: str, L: int, S: int) -> None:
        T = self.parents.shape[-1]
        if T != L:
            raise ValueError(f"{function}: parents of masks.tree must have a node for each query, T=L={L}; got T={T}.")
        check_anchor(function, self, self.anchor, L, S)

    def _one_tile(self, i: Positions, j: Positions, L: int, S: int) -> npt.NDArray[np.bool_]:
        node = positions(j, np, None) - after(self.anchor, 0, L, S, S)
        inside = np.where((node >= 0) & (node < L), node, L)
        cells: npt.NDArray[np.bool_] = self.line[i][:, inside] | (node < 0)
        return cells

    def _hull(self, L: int, S: int) -> tuple[Ints, Ints]:
        stop = np.arange(L) + after(self.anchor, 1, L, S, S)[..., None]
        return np.zeros(1, np.int64), np.clip(stop, 0, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        batch, at = self._batch(), index[:-1]
        T = self.parents.shape[-1]
        parents, line = np.broadcast_to(self.parents, (*batch, T)), np.broadcast_to(self.line, (*batch, T, T + 1))
        return Tree(parents[at], anchor_at(self.anchor, batch, at), line[at])

    def _reanchored(self, anchor: Anchor) -> Mask:
        return replace(self, anchor=anchor)

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"masks.tree({shown(self.parents)}{'' if self.anchor is None else f', anchor={shown(self.anchor)}'})"


def tree(parents: Sequence[int] | Array, anchor: str | int | Sequence[int] | Array | None = None) -> Mask:
    """Mask of a tree of tokens behind a context: a node sees the context, its ancestors and itself.

        query i sees key j  iff  j < offset  or  node j - offset is i or an ancestor of i

    Parameters
    ----------
    parents : array of int, shape (T,) or (B, T)
        For each node an earlier one, or -1 where there is none: several roots are fine. Query i is node i, T = L.
    anchor : {"lower_right", "upper_left"}, int or array of int, shape (B,), optional
        Where the tree lies among the keys: node n is key n + offset. "lower_right" is behind all other keys, offset =
        S - T, as speculative decoding has it; an array is for padded caches. Otherwise as in `causal`.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` where either is an array over the batch.

    Raises
    ------
    TypeError
        If `parents` holds no integers, or `anchor` is of another kind.
    ValueError
        If a parent is no earlier node and not -1, `parents` has no axis, `anchor` is another string, or the batch
        shapes do not broadcast; later, where the mask is used, if T != L, or `anchor` is None and L != S.

    Notes
    -----
    Each tree's T x T ancestors are held as boolean cells, so that a tile costs O(tile); a row lies within 0 .. i +
    offset. Keys behind the tree are seen by none.

    References
    ----------
    .. [1] X. Miao et al., "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference
       and Verification", ASPLOS 2024, arXiv:2305.09781, section 4.2.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.tree([-1, 0, 0, 1], anchor="lower_right").draw(4, 6))
      012345
    0 ###...
    1 ####..
    2 ###.#.
    3 ####.#
    """
    rule = "an integer array of shape (T,) or (B, T)"
    found = np.asarray(integers("masks.tree", "parents", parents, rule))
    if found.ndim == 0:
        raise ValueError(f"masks.tree: parents must be {rule}; got {found}.")
    wrong = (found < -1) | (found >= np.arange(found.shape[-1]))
    if np.any(wrong):
        at = tuple(int(x) for x in np.argwhere(wrong)[0])
        raise ValueError(
            f"masks.tree: parents must each be an earlier node, or -1 for none; got {found[at]} for node {at[-1]}"
            f"{f' of batch entry {at[:-1]}' if at[:-1] else ''}."
        )
    return Tree(frozen(found.astype(np.int64)), anchor_of("masks.tree", anchor), frozen(_lines(found)))


def _lines(parents: Ints) -> npt.NDArray[np.bool_]:
    """Each node's line up to its root, itself included, (..., T, T + 1)."""
    line = np.zeros((*parents.shape, parents.shape[-1] + 1), np.bool_)
    for *batch, n in np.ndindex(parents.shape):  # a parent comes before its children
        above = parents[(*batch, n)]
        if above >= 0:
            line[(*batch, n)] = line[(*batch, above)]
        line[(*batch, n, n)] = True
    return line
