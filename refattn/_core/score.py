"""Everything that changes a score, in one frozen record that travels to every form of softmax attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from refattn._core.arrays import Array, Namespace, device
from refattn._core.state import ABOVE_LOWEST, LOWEST
from refattn._core.tiles import some_tiles, tiles, united


class Keep(Protocol):
    """What a score asks of a mask; `refattn.masks.Mask` is one."""

    @property
    def lead(self) -> tuple[int, ...]: ...
    @property
    def readable(self) -> bool: ...
    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array: ...
    def at(self, index: tuple[int, ...]) -> Keep: ...
    def interval(self, L: int, S: int) -> tuple[Array, Array] | None: ...
    def hull(self, L: int, S: int) -> tuple[Array, Array] | None: ...


class Add(Protocol):
    """What a score asks of a bias; `refattn.biases.Bias` is one."""

    @property
    def lead(self) -> tuple[int, ...]: ...
    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array: ...
    def at(self, index: tuple[int, ...]) -> Add: ...


class Parts(NamedTuple):
    """The stages of one tile of scores, each (..., i, j) or broadcastable to it."""

    raw: Array
    capped: Array
    bias: Array | None
    keep: Array | None


class Dropout(NamedTuple):
    """Which weights are kept, and the probability with which each was to be dropped."""

    mask: Keep
    p: float

    @property
    def factor(self) -> float:
        """What the weights that are kept are multiplied by."""
        return 1.0 / (1.0 - self.p)


@dataclass(frozen=True)
class Score:
    """Scores of query-key pairs, tile by tile: scale, softcap, bias and mask, in this order; the sink comes after.

    Dropout changes no score, but the weight that a value gets. `groups` is (Hk, G), the two axes into which the head
    axis of masks and biases is split; None where the arrays have no head axis.
    """

    lengths: tuple[int, int]
    scale: float
    softcap: float | None = None
    bias: Add | None = None
    mask: Keep | None = None
    sink: Array | None = None
    dropout: Dropout | None = None
    groups: tuple[int, int] | None = None

    def tiles(self, i: slice | Array, tile_k: int) -> Iterator[slice]:
        """The tiles of `tile_k` keys of which the queries i see some key; all, where the mask cannot be read."""
        L, S = self.lengths
        if self.mask is None:
            yield from tiles(S, tile_k)
            return
        first, stop, gaps = self._reach
        start = int(np.min(first[i], initial=S)) // tile_k * tile_k
        for j in tiles(int(np.max(stop[i], initial=0)), tile_k, start=start):
            if not gaps or np.any(self.mask.tile(i, j, L, S, xp=np)):
                yield j

    def columns(self, rows: list[slice], tile_k: int) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
        """Every tile of `tile_k` keys, with the numbers and slices of the tiles of queries to which `tiles` gives it.

        Where there are no keys, one tile that is empty.
        """
        to_come = [self.tiles(i, tile_k) for i in rows]
        due = [next(tiles_of_row, None) for tiles_of_row in to_come]
        for j in some_tiles(self.lengths[1], tile_k):
            visited = [n for n, tile in enumerate(due) if tile is not None and tile.start == j.start]
            yield j, [(n, rows[n]) for n in visited]
            for n in visited:
                due[n] = next(to_come[n], None)

    @cached_property
    def _reach(self) -> tuple[Array, Array, bool]:
        """First and stop, (L,), of the keys outside which no head sees any; whether there may be gaps to be found."""
        L, S = self.lengths
        mask: Any = self.mask
        return *united(mask.hull(L, S), L, S), mask.readable and mask.interval(L, S) is None

    def parts(self, Q_i: Array, K_j: Array, i: slice | Array, j: slice | Array, *, xp: Namespace) -> Parts:
        """The stages of the scores of the queries i and the keys j."""
        L, S = self.lengths
        raw = xp.matmul(Q_i, xp.matrix_transpose(K_j)) * self.scale
        capped = raw if self.softcap is None else self.softcap * xp.tanh(raw / self.softcap)
        where = {"xp": xp, "device": device(Q_i)}
        bias = None if self.bias is None else self._grouped(self.bias.tile(i, j, L, S, **where), xp)
        return Parts(raw, capped, bias, self.seen(Q_i, i, j, xp=xp))

    def seen(self, Q_i: Array, i: slice | Array, j: slice | Array, *, xp: Namespace) -> Array | None:
        """Which of the keys j each of the queries i sees, (..., i, j) or broadcastable; None without a mask."""
        if self.mask is None:
            return None
        return self._grouped(self.mask.tile(i, j, *self.lengths, xp=xp, device=device(Q_i)), xp)

    def __call__(self, Q_i: Array, K_j: Array, i: slice | Array, j: slice | Array, *, xp: Namespace) -> Array:
        """Masked scores (..., i, j): -inf in masked cells and in no other."""
        _, S, bias, keep = self.parts(Q_i, K_j, i, j, xp=xp)
        # The lowest finite bias, which padding code adds, must not be taken for a score of -inf.
        S = S if bias is None else S + xp.clip(bias, min=ABOVE_LOWEST)
        S = xp.clip(S, min=LOWEST)
        return S if keep is None else xp.where(keep, S, -math.inf)

    def before_softcap(self, dS: Array, Q_i: Array, K_j: Array, *, xp: Namespace) -> Array:
        """The gradient of the raw scores (..., i, j) from that of the capped ones."""
        if self.softcap is None:
            return dS
        raw = xp.matmul(Q_i, xp.matrix_transpose(K_j)) * self.scale
        slope = xp.cosh(raw / self.softcap) ** -2.0  # 1 - tanh^2, without its cancellation
        return xp.where(dS == 0, 0.0, dS * slope)

    def kept(self, Q_i: Array, i: slice | Array, j: slice | Array, *, xp: Namespace) -> Array | None:
        """Factors (..., i, j) by which dropout multiplies the weights: 0 or 1 / (1 - p); None without dropout."""
        if self.dropout is None:
            return None
        mask, factor = self.dropout.mask, self.dropout.factor
        kept = self._grouped(mask.tile(i, j, *self.lengths, xp=xp, device=device(Q_i)), xp)
        return xp.astype(kept, xp.float64) * factor

    def at(self, index: tuple[int, ...]) -> Score:
        """The scores of one batch entry and head, of arrays (L, E) and (S, E) without leading axes."""
        return replace(
            self,
            bias=None if self.bias is None else self.bias.at(index),
            mask=None if self.mask is None else self.mask.at(index),
            sink=None if self.sink is None else self.sink[(*_split(index[-1], self.groups), ...)],
            dropout=None if self.dropout is None else self.dropout._replace(mask=self.dropout.mask.at(index)),
            groups=None,
        )

    def _grouped(self, tile: Array, xp: Namespace) -> Array:
        """A tile over (..., H, i, j), or what broadcasts to it, as (..., Hk, G, i, j)."""
        if self.groups is None or len(tile.shape) < 3:
            return tile
        heads = (1, 1) if tile.shape[-3] == 1 else self.groups
        return xp.reshape(tile, (*tile.shape[:-3], *heads, *tile.shape[-2:]))


def _split(head: int, groups: tuple[int, int] | None) -> tuple[int, int]:
    """A query head's place (key head, member) in the group view."""
    if groups is None:
        raise ValueError(f"Score.at: the score has no head axis any more; got head {head}.")
    return divmod(head, groups[1])
