"""How a mask becomes a CSR matrix, a count and a picture, for arguments that were checked."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refattn._core.choice import ImplementationError
from refattn._core.tiles import united

if TYPE_CHECKING:
    from refattn.masks.base import Mask, Positions

CELLS = 2**20  # most cells that are evaluated at a time


def size(function: str, name: str, value: Any, smallest: int) -> int:
    """A size as a Python integer, at least 0 or 1."""
    kind = "positive" if smallest else "non-negative"
    try:
        n = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        n = None
    if n is None:
        raise TypeError(f"{function}: {name} must be a {kind} integer; got {value!r}.")
    if n < smallest:
        raise ValueError(f"{function}: {name} must be a {kind} integer; got {n}.")
    return n


def int32(function: str, name: str, largest: int, x: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Positions x in int32, whose largest value is known."""
    if largest > np.iinfo(np.int32).max:
        raise ImplementationError(f"{function}: {name} must fit in int32; got {largest}.")
    return x.astype(np.int32)


def host_tile(mask: Mask, i: Positions, j: Positions, L: int, S: int) -> npt.NDArray[np.bool_]:
    """The cells of queries i and keys j on the host."""
    cells: npt.NDArray[np.bool_] = mask._tile(i, j, L, S, xp=np, device=None)
    return cells


def count(mask: Mask, L: int, S: int) -> npt.NDArray[np.int64]:
    """Cells of each leading index: from the intervals, else by tiles."""
    found = mask._interval(L, S)
    if found is not None:
        rows = np.broadcast_to(found[1] - found[0], (*mask.lead, L))
        return np.asarray(rows.sum(axis=-1, dtype=np.int64))
    total = np.zeros(mask.lead, np.int64)
    low, high = united(mask._hull(L, S), L, S)
    # Square tiles, whose side shrinks as the leading axes grow.
    side = max(1, math.isqrt(CELLS // max(1, total.size)))
    for q in range(0, L, side):
        i = slice(q, min(q + side, L))
        end = int(high[i].max())
        for k in range(int(low[i].min()), end, side):
            j = slice(k, min(k + side, end))
            cells = host_tile(mask, i, j, L, S)
            cells = np.broadcast_to(cells, (*mask.lead, i.stop - i.start, j.stop - j.start))
            total = total + np.count_nonzero(cells, axis=(-2, -1))
    return np.asarray(total)


def csr(mask: Mask, L: int, S: int) -> Any:
    """A scipy.sparse.csr_array of a mask without leading axes."""
    from scipy.sparse import csr_array

    found = mask._interval(L, S)
    if found is not None:
        first, stop = (np.broadcast_to(x, (L,)) for x in found)
        lengths = stop - first
        starts = np.cumsum(lengths) - lengths
        indices = np.arange(lengths.sum()) + np.repeat(first - starts, lengths)
    else:
        counted, parts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        height = max(1, CELLS // max(1, S))
        low, high = united(mask._hull(L, S), L, S)
        for q in range(0, L, height):
            i = slice(q, min(q + height, L))
            start = int(low[i].min())
            j = slice(start, max(start, int(high[i].max())))
            cells = np.broadcast_to(host_tile(mask, i, j, L, S), (i.stop - i.start, j.stop - start))
            counted.append(np.count_nonzero(cells, axis=-1))
            parts.append(np.nonzero(cells)[1] + start)
        lengths, indices = np.concatenate(counted), np.concatenate(parts)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_array((np.ones(indices.size, np.bool_), indices, indptr), shape=(L, S))


def draw(mask: Mask, L: int, S: int) -> str:
    """Each distinct picture under the indices it belongs to."""
    if L > 64 or S > 64:
        raise ValueError(
            f"mask.draw: L and S must be at most 64 to be drawn; got L={L}, S={S}. Draw a smaller case, or use dense."
        )
    left = len(str(max(L - 1, 0)))
    ruler = [" " * (left + 1) + "".join(str(k % 10) for k in range(S))]
    if S > 10:
        tens = "".join(str(k // 10) if k % 10 == 0 else " " for k in range(S))
        ruler.insert(0, " " * (left + 1) + tens)
    pictures: dict[str, list[str]] = {}
    for index in np.ndindex(mask.lead):
        cells = np.broadcast_to(host_tile(mask.at(index), slice(0, L), slice(0, S), L, S), (L, S))
        rows = [f"{q:>{left}} " + "".join("#" if x else "." for x in cells[q]) for q in range(L)]
        name = ", ".join(":" if n == 1 else str(x) for x, n in zip(index, mask.lead, strict=True))
        pictures.setdefault("\n".join(line.rstrip() for line in ruler + rows), []).append(f"({name})")
    return "\n\n".join(f"{' '.join(names)}\n{picture}" if mask.lead else picture for picture, names in pictures.items())
