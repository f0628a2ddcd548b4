"""One batch entry and head of a call, as the oracle sees it: operands taken as exact, and what changes a score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._arguments import Arguments, gather
from refattn._core import checks
from refattn._core.arrays import Array, is_array, to_numpy
from refattn._core.descale import on_host as factors_on_host
from refattn.oracle.operands import Flags, Floats, Ints, Operand


@dataclass(frozen=True, eq=False)
class Tile:
    """Some rows, the keys outside which they see none, and what changes their scores, each (rows, keys) or None.

    `visible` is None where every row sees every key, `kept` where nothing is dropped.
    """

    rows: slice  # of the rows that were asked for
    queries: Ints  # rows of the problem's query
    positions: Ints  # the same among the L queries
    keys: slice
    visible: Flags | None
    bias: Floats | None
    kept: Flags | None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and keys."""
        return len(self.positions), self.keys.stop - self.keys.start

    @cached_property
    def seen(self) -> slice | Ints:
        """Positions of the keys that some row sees."""
        if self.visible is None:
            return self.keys
        return np.asarray(self.keys.start + np.flatnonzero(self.visible.any(axis=0)))

    @cached_property
    def empty(self) -> Flags:
        """Rows that see no key, (rows,): by the mask alone."""
        R, n = self.shape
        return np.full(R, n == 0) if self.visible is None else np.asarray(~self.visible.any(axis=1))


class Rows(NamedTuple):
    """Answers for some rows: the exact value is within `radius` of high part + low part; inf claims nothing."""

    output: Floats  # (R, Ev)
    output_low: Floats
    radius: Floats
    lse: Floats  # (R,)
    lse_low: Floats
    lse_radius: Floats


@dataclass(frozen=True, eq=False)
class Problem:
    """Softmax attention of one batch entry and head.

    `scale` is None for the real number 1/sqrt(E), which float64 need not hold; `sink` is -inf where there is none.
    Where not all L queries are there, `among` says how many there are and which positions these have.
    """

    query: Operand  # (L, E)
    key: Operand  # (S, E)
    value: Operand  # (S, Ev)
    scale: float | None = None
    softcap: float | None = None
    mask: masks.Mask | None = None
    bias: biases.Bias | None = None
    sink: float = -math.inf
    dropout: masks.Mask | None = None
    dropout_p: float = 0.0
    among: tuple[int, Ints] | None = None

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers L of queries and S of keys."""
        return self.query.shape[0] if self.among is None else self.among[0], self.key.shape[0]

    @property
    def kept_factor(self) -> Fraction:
        """1 / (1 - p), by which dropout multiplies the weights that it keeps; 1 without dropout."""
        return Fraction(1) if self.dropout is None else 1 / (1 - Fraction(self.dropout_p))

    def tiles(self, rows: Ints, cells: int) -> Iterator[Tile]:
        """Tiles of at most `cells` score cells, or of one row, of the rows of `query` in the order of `rows`."""
        L, S = self.lengths
        hull = None if self.mask is None else self.mask.hull(L, S)
        first, stop = (np.broadcast_to(x, (L,)) for x in ((0, S) if hull is None else hull))
        height = max(1, cells // max(1, S))
        for start in range(0, len(rows), height):
            part = slice(start, min(start + height, len(rows)))
            positions = rows[part] if self.among is None else self.among[1][rows[part]]
            # An empty row has first == stop, anywhere.
            some = first[positions] < stop[positions]
            low = int(np.min(first[positions], where=some, initial=S))
            keys = slice(low, max(low, int(np.max(stop[positions], where=some, initial=0))))
            yield Tile(part, rows[part], positions, keys, *self._cells(positions, keys))

    def unreadable(self, tile: Tile) -> tuple[Flags, Flags]:
        """Rows (rows,) and numbers (rows, Ev) of the output whose exact value depends on what is not finite.

        They see such a key, or a value that is not dropped, or have such a query.
        """
        R = tile.shape[0]
        rows = ~self.query.measures.finite[tile.queries]
        keys = np.flatnonzero(~self.key.measures.finite[tile.keys])
        if keys.size:
            rows |= True if tile.visible is None else tile.visible[:, keys].any(axis=1)
        cells = np.zeros((R, self.value.shape[1]), dtype=np.bool_)
        keys = np.flatnonzero(~self.value.measures.finite[tile.keys])
        if keys.size:
            weighed = np.ones((R, keys.size), dtype=np.bool_)
            for one in (tile.visible, tile.kept):
                weighed &= True if one is None else one[:, keys]
            cells |= weighed @ ~np.isfinite(self.value[tile.keys.start + keys])
        return rows, cells | rows[:, None]

    def _cells(self, positions: Ints, keys: slice) -> tuple[Flags | None, Floats | None, Flags | None]:
        """Visible cells, bias and kept cells of a tile."""
        shape = (len(positions), keys.stop - keys.start)
        visible, bias, kept = (
            None if one is None else np.broadcast_to(one.tile(positions, keys, *self.lengths, xp=np), shape)
            for one in (self.mask, self.bias, self.dropout)
        )
        return None if visible is None or visible.all() else visible, bias, kept


def problems(arguments: Arguments) -> Iterator[tuple[tuple[int, ...], Problem]]:
    """Every batch entry and head of a call on NumPy arrays, by its index (..., H)."""
    for lead in np.ndindex(*arguments.lead[:-1]):
        for key_head in range(arguments.groups[0]):
            key, value = (Operand(x[(*lead, key_head)]) for x in (arguments.key, arguments.value))
            for member in range(arguments.groups[1]):
                index = (*lead, key_head * arguments.groups[1] + member)
                yield index, _problem(arguments, index, key, value)


def _problem(arguments: Arguments, index: tuple[int, ...], key: Operand, value: Operand) -> Problem:
    """One batch entry and query head, with the keys and values that it reads."""
    mask, bias, sinks, dropout = arguments.mask, arguments.bias, arguments.sinks, arguments.dropout_mask
    return Problem(
        query=Operand(arguments.query[index]),
        key=key,
        value=value,
        scale=arguments.scale,
        softcap=arguments.softcap,
        mask=None if mask is None else mask.at(index),
        bias=None if bias is None else bias.at(index),
        sink=-math.inf if sinks is None else float(sinks[index[-1]]),
        dropout=None if dropout is None else dropout.at(index),
        dropout_p=arguments.dropout_p,
    )


def chosen(arguments: Arguments, rows: Ints) -> Iterator[tuple[Ints, Ints, Problem]]:
    """Rows (R, n) by batch entry and head: their places among the R, their positions among the queries, the problem."""
    heads, of_head = np.unique(rows[:, :-1], axis=0, return_inverse=True)
    places = {tuple(head.tolist()): np.flatnonzero(of_head == n) for n, head in enumerate(heads)}
    for index, problem in problems(arguments):
        if index in places:
            yield places[index], rows[places[index], -1], problem


def on_host(function: str, query: Array, key: Array, value: Array, **given: Any) -> Arguments:
    """The arguments of softmax attention as NumPy arrays, from any libraries, in any dtype that float64 holds."""
    operands = []
    for name, x in (("query", query), ("key", key), ("value", value)):
        checks.check_array(function, name, x)
        operands.append(to_numpy(x))
        _check_held(function, name, operands[-1])
    host: dict[str, Any] = {name: to_numpy(x) if is_array(x) else x for name, x in given.items()}
    host["descale"] = factors_on_host(function, given.get("descale"))
    return gather(function, *operands, **host, dtype="float64")


def _check_held(function: str, name: str, x: npt.NDArray[Any]) -> None:
    """Integers that float64 holds."""
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8 and x.size:
        largest = max(abs(int(x.min())), abs(int(x.max())))
        if largest > 2**53:
            raise ValueError(f"{function}: {name} must hold integers up to 2**53, as float64 does; got {largest}.")
