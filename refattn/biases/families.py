"""The families of biases that are rules on positions, and the checks of the arguments they are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import Anchor, anchor_of, frozen
from refattn._core.arrays import FLOATS, INTEGERS, Array, Namespace, dtype_name, is_array, moved, to_numpy
from refattn._core.checks import check_array, check_cells
from refattn.biases.base import Bias, own

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FARTHEST = 2**53  # of the offsets, so that distances are exact in float64


@dataclass(frozen=True, eq=False)
class Anchored(Bias):
    """A bias that depends on the distance between the key and the one that the query stands on."""

    numbers: Floats  # slopes (..., H), or tables (..., H, 2R + 1)
    anchor: Anchor

    name = ""  # of the function of `refattn.biases` that makes it
    axes = 0  # of the numbers, behind the heads

    def __post_init__(self) -> None:
        """Refuse a batch of offsets that is none of the numbers."""
        try:
            _ = self.lead
        except ValueError:
            raise ValueError(
                f"biases.{self.name}: anchor must broadcast against the batch axes before H; got anchor "
                f"{self._batch()[:-1]} and {self._heads()} for (..., H)."
            ) from None

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes (..., H) of the numbers and of a batch of offsets, together."""
        return np.broadcast_shapes(self._heads(), self._batch())

    def check(self, function: str, L: int, S: int) -> None:
        """An anchor is needed where queries and keys differ in number."""
        if self.anchor is None and L != S:
            raise ValueError(
                f"{function}: biases.{self.name}() is ambiguous for L={L}, S={S}. Pass anchor='lower_right' or "
                "anchor='upper_left'."
            )

    def at(self, index: tuple[int, ...]) -> Bias:
        """The bias of one batch entry and head."""
        anchor = self.anchor
        if isinstance(anchor, np.ndarray):
            anchor = int(anchor[own(index, self._batch())[:-1]])
        return type(self)(self.numbers[own(index, self._heads())], anchor)

    def _heads(self) -> tuple[int, ...]:
        """Leading axes (..., H) of the numbers."""
        return self.numbers.shape[: self.numbers.ndim - self.axes]

    def _batch(self) -> tuple[int, ...]:
        """Leading axes (..., 1) of the anchor."""
        return (*self.anchor.shape, 1) if isinstance(self.anchor, np.ndarray) else ()

    def _distances(self, i: slice | Array, j: slice | Array, L: int, S: int) -> Ints:
        """How far each key lies behind the one that each query stands on: (i, j), or (..., 1, i, j) for a batch."""
        if isinstance(self.anchor, np.ndarray):
            offset = self.anchor.astype(np.int64)[..., None, None, None]
        else:
            corner = S - L if self.anchor == "lower_right" else 0
            offset = np.asarray(self.anchor if isinstance(self.anchor, int) else corner)
        return positions(j, S)[None, :] - positions(i, L)[:, None] - offset


@dataclass(frozen=True, eq=False)
class Alibi(Anchored):
    """-slope * distance between the query's own position and the key."""

    name = "alibi"

    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """Slopes times distances."""
        distance = np.abs(self._distances(i, j, L, S)).astype(np.float64)
        return -moved(self.numbers[..., None, None], xp, device) * moved(distance, xp, device)


@dataclass(frozen=True, eq=False)
class Relative(Anchored):
    """The table's number for the distance between the query's own position and the key."""

    name = "relative"
    axes = 1

    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """The table at the distances, which are cut to its reach."""
        reach = self.numbers.shape[-1] // 2
        at = np.clip(self._distances(i, j, L, S), -reach, reach) + reach
        table = np.broadcast_to(self.numbers, (*self.lead, self.numbers.shape[-1]))
        cells = np.take_along_axis(table[..., None, :], np.broadcast_to(at, (*self.lead, *at.shape[-2:])), axis=-1)
        return moved(cells, xp, device)


@dataclass(frozen=True, eq=False)
class FromFunction(Bias):
    """What a function of (batch, head, query, key) positions returns."""

    function: Callable[..., Any]
    b: Ints
    h: Ints

    @property
    def lead(self) -> tuple[int, ...]:
        """(batch, heads) as far as they were given."""
        return np.broadcast_shapes(self.b.shape, self.h.shape)

    def check(self, function: str, L: int, S: int) -> None:
        """A function of positions has a meaning for every L and S."""

    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """What the function returns for the tile, and for no cell beyond it."""
        where = (self.b[..., None, None], self.h[..., None, None], positions(i, L)[:, None], positions(j, S)[None, :])
        cells = real_of(self.function(*where))
        shape = (*self.lead, where[2].size, where[3].size)
        check_cells("biases.from_function", cells.shape, shape)
        if not np.all(np.isfinite(cells)):
            whole = np.broadcast_to(cells, shape)
            at = tuple(int(n[0]) for n in np.nonzero(~np.isfinite(whole)))
            b, h, q, kv = (int(np.broadcast_to(x, shape)[at]) for x in where)
            raise ValueError(
                f"biases.from_function: f must return finite numbers; got {whole[at]} for b={b}, h={h}, q={q}, "
                f"kv={kv}. Hide cells with mask=masks.from_function(...)."
            )
        return moved(np.atleast_2d(cells), xp, device)

    def at(self, index: tuple[int, ...]) -> FromFunction:
        """The function for one batch entry and head."""
        mine = own(index, self.lead)
        b, h = (np.asarray(np.broadcast_to(x, self.lead)[mine]) for x in (self.b, self.h))
        return FromFunction(self.function, b, h)


def positions(x: slice | Array, n: int) -> Ints:
    """Positions among n, from a slice or an integer array."""
    return np.arange(*x.indices(n), dtype=np.int64) if isinstance(x, slice) else np.asarray(x, np.int64)


def real_of(found: Any) -> Floats:
    """What the function of a bias returned, in float64 on the host."""
    number = isinstance(found, bool | int | float | np.generic)
    cells = np.asarray(found) if number else to_numpy(found) if is_array(found) else None
    if cells is None or dtype_name(cells) not in FLOATS + INTEGERS:
        got = type(found).__name__ if cells is None else dtype_name(cells)
        hint = " Pass it as mask=masks.from_function(...)." if got == "bool" else ""
        raise TypeError(f"biases.from_function: f must return an array of real numbers; got {got}.{hint}")
    return cells.astype(np.float64)


def numbers_of(function: str, name: str, x: Any, axes: str) -> Floats:
    """Slopes or a table, that were checked, as a read-only float64 array on the host."""
    check_array(function, name, x)
    values = frozen(to_numpy(x).astype(np.float64))
    if values.ndim == 0:
        raise ValueError(f"{function}: {name} must have at least the {axes}; got a 0-d array.")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{function}: {name} must be finite; got NaN or infinity.")
    return values


def near_anchor_of(function: str, anchor: Any) -> Anchor:
    """An anchor that was checked, whose distances float64 can hold."""
    found = anchor_of(function, anchor)
    offsets = np.asarray([] if found is None or isinstance(found, str) else found).astype(object)
    for far in offsets[abs(offsets) > FARTHEST].ravel()[:1]:
        raise ValueError(f"{function}: anchor must lie within -2**53 and 2**53, for distances to be exact; got {far}.")
    return found
