"""One batch entry and head of a call, as the oracle sees it: operands taken as exact, and what changes a score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._arguments import Arguments

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Operand:
    """An array (n, features) whose rows become float64 where they are read, so that no copy of the whole is made."""

    array: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def __getitem__(self, rows: slice | Ints) -> Floats:
        """The rows, C-ordered."""
        return np.ascontiguousarray(self.array[rows], dtype=np.float64)


class Tile(NamedTuple):
    """Some rows, the keys outside which they see none, and what changes their scores, each (rows, keys) or None.

    `visible` is None where every row sees every key, `kept` where nothing is dropped.
    """

    rows: slice  # of the rows that were asked for
    positions: Ints  # among the L queries
    keys: slice
    visible: Flags | None
    bias: Floats | None
    kept: Flags | None

    @property
    def empty(self) -> Flags:
        """Rows that see no key, (rows,): by the mask alone."""
        if self.visible is None:
            return np.full(len(self.positions), self.keys.start == self.keys.stop)
        return np.asarray(~self.visible.any(axis=1))


class Rows(NamedTuple):
    """Answers for some rows: the exact value is within `radius` of high part + low part, everywhere; inf claims nothing."""

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

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers L of queries and S of keys."""
        return self.query.shape[0], self.key.shape[0]

    @property
    def kept_factor(self) -> Fraction:
        """1 / (1 - p), by which dropout multiplies the weights that it keeps; 1 without dropout."""
        return Fraction(1) if self.dropout is None else 1 / (1 - Fraction(self.dropout_p))

    def tiles(self, rows: Ints, cells: int) -> Iterator[Tile]:
        """Tiles of at most `cells` score cells, or of one row, in the order of `rows`."""
        L, S = self.lengths
        hull = None if self.mask is None else self.mask.hull(L, S)
        first, stop = (np.broadcast_to(x, (L,)) for x in ((0, S) if hull is None else hull))
        height = max(1, cells // max(1, S))
        for start in range(0, len(rows), height):
            part = slice(start, min(start + height, len(rows)))
            positions = rows[part]
            # An empty row has first == stop, anywhere.
            some = first[positions] < stop[positions]
            low = int(np.min(first[positions], where=some, initial=S))
            keys = slice(low, max(low, int(np.max(stop[positions], where=some, initial=0))))
            yield Tile(part, positions, keys, *self._cells(positions, keys))

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
    for index in np.ndindex(*arguments.lead):
        yield index, problem_at(arguments, index)


def problem_at(arguments: Arguments, index: tuple[int, ...]) -> Problem:
    """One batch entry and query head of a call on NumPy arrays, with the key head that it reads."""
    of_key = (*index[:-1], index[-1] // arguments.groups[1])
    mask, bias, sinks, dropout = arguments.mask, arguments.bias, arguments.sinks, arguments.dropout_mask
    return Problem(
        query=Operand(arguments.query[index]),
        key=Operand(arguments.key[of_key]),
        value=Operand(arguments.value[of_key]),
        scale=arguments.scale,
        softcap=arguments.softcap,
        mask=None if mask is None else mask.at(index),
        bias=None if bias is None else bias.at(index),
        sink=-math.inf if sinks is None else float(sinks[index[-1]]),
        dropout=None if dropout is None else dropout.at(index),
        dropout_p=arguments.dropout_p,
    )
