"""The block form of a mask: which key tiles each query tile needs, and the cells of each distinct partial tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from refattn._core.choice import ImplementationError
from refattn._core.tiles import united
from refattn.masks.forms import CELLS, host_tile, int32

if TYPE_CHECKING:
    from refattn.masks.base import Mask

Ints = npt.NDArray[np.int64]
Cells = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint32]
# Key tiles of the query tiles in order: how many each query tile has, their numbers, and which partial tile each is
# (-1 where it is full).
Strip = tuple[Ints, Ints, Ints]

LARGEST_BITS = 256 * 2**20  # bytes


@dataclass(frozen=True, eq=False)
class Blocks:
    """Key tiles that each query tile of each (batch ..., head) needs, as a kernel reads them.

    Attributes
    ----------
    indptr : numpy.ndarray of int32, shape (n + 1,)
        Query tile r has the entries ``indptr[r] : indptr[r + 1]``. The n = prod(lead) * ceil(L / tile_q) query tiles
        are in C order of (batch ..., head, query tile).
    indices : numpy.ndarray of int32, shape (nnz,)
        Key tile of each entry, rising within a query tile. A tile without a cell that takes part has no entry.
    kind : numpy.ndarray of uint8, shape (nnz,)
        0 = full: every cell inside L x S takes part. 1 = partial.
    tile : numpy.ndarray of int32, shape (nnz,)
        For a partial entry, its place in `bits`; -1 for a full one.
    bits : numpy.ndarray of uint32, shape (distinct, tile_q, ceil(tile_k / 32))
        Each distinct partial tile once, in order of first use: bit c % 32 of word c // 32 is key c of the tile. Cells
        beyond L or S are 0.
    lead : tuple of int
        Leading axes of the mask: `indptr` has a run of query tiles for each index.
    tile_q, tile_k : int
        Queries and keys in a tile.
    """

    indptr: npt.NDArray[np.int32]
    indices: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]
    tile: npt.NDArray[np.int32]
    bits: Words
    lead: tuple[int, ...]
    tile_q: int
    tile_k: int

    def dense(self, L: int, S: int) -> Cells:
        """Mask that the blocks stand for.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys that the blocks were made for.

        Returns
        -------
        numpy.ndarray of bool, shape lead + (L, S)
            True where the key takes part.

        Raises
        ------
        ValueError
            If L does not cut into this number of query tiles, or an entry lies beyond S.
        """
        rows = -(-L // self.tile_q)
        if math.prod(self.lead) * rows + 1 != self.indptr.size or np.any(self.indices >= -(-S // self.tile_k)):
            raise ValueError(
                f"blocks.dense: L and S must be those the blocks were made for; got L={L}, S={S} for "
                f"{self.indptr.size - 1} query tiles with lead={self.lead}, tile_q={self.tile_q}, tile_k={self.tile_k}."
            )
        out = np.zeros((math.prod(self.lead), L, S), np.bool_)
        cells = np.unpackbits(self.bits.astype("<u4").view(np.uint8), axis=-1, bitorder="little")
        for r in range(self.indptr.size - 1):
            whole, q = out[r // rows], r % rows * self.tile_q
            for entry in range(self.indptr[r], self.indptr[r + 1]):
                k = int(self.indices[entry]) * self.tile_k
                into = whole[q : q + self.tile_q, k : k + self.tile_k]
                n, m = into.shape
                into[...] = True if self.kind[entry] == 0 else cells[self.tile[entry], :n, :m]
        return out.reshape((*self.lead, L, S))


class _Bank:
    """The distinct partial tiles in order of first use."""

    def __init__(self, L: int, S: int, tile_q: int, tile_k: int) -> None:
        self.tile_q, self.tile_k, self.words = tile_q, tile_k, -(-tile_k // 32)
        # Kept without the rows and columns that lie beyond L or S in every tile.
        self.height, self.width = min(tile_q, L), min(tile_k, S)
        self.numbers: dict[bytes, int] = {}
        self.packed: list[Words] = []

    def number(self, cells: Cells) -> int:
        """The number of a partial tile, cut by L and S or not."""
        # Packed at one size, or a tile that is cut could not be told from one that is not.
        padded = np.zeros((self.height, self.width + -self.width % 32), np.bool_)
        padded[: cells.shape[0], : cells.shape[1]] = cells
        packed: Any = np.packbits(padded, axis=-1, bitorder="little").view("<u4")
        key = packed.tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.packed)
            self.packed.append(np.asarray(packed, np.uint32))
            if len(self.packed) * self.tile_q * self.words * 4 > LARGEST_BITS:
                raise ImplementationError(
                    "mask.blocks: the distinct partial tiles must fit in 256 MiB of bits; got at least "
                    f"{len(self.packed)} of {self.tile_q} x {self.tile_k} cells. Use sparse_attention."
                )
        return self.numbers[key]

    def bits(self) -> Words:
        """All tiles at their full size, the first key of each word in its lowest bit."""
        out = np.zeros((len(self.packed), self.tile_q, self.words), np.uint32)
        for into, x in zip(out, self.packed, strict=True):
            into[: x.shape[0], : x.shape[1]] = x
        return out


def build(mask: Mask, L: int, S: int, tile_q: int, tile_k: int) -> Blocks:
    """The blocks of a mask, for arguments that were checked."""
    bank = _Bank(L, S, tile_q, tile_k)
    strips: list[Strip] = [(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for index in np.ndindex(mask.lead):
        one = mask.at(index)
        found = one._interval(L, S)
        if found is None:
            strips.extend(_from_cells(one, L, S, bank))
        else:
            first, stop = (np.broadcast_to(x, (L,)) for x in found)
            strips.extend(_from_intervals(first, stop, S, bank))
    counts, indices, tile = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    return Blocks(
        indptr=int32("mask.blocks", "number of key tiles", int(counts.sum()), np.cumsum(counts)),
        indices=int32("mask.blocks", "S", S, indices),
        kind=(tile >= 0).astype(np.uint8),
        tile=tile.astype(np.int32),
        bits=bank.bits(),
        lead=mask.lead,
        tile_q=tile_q,
        tile_k=tile_k,
    )


def _from_intervals(first: Ints, stop: Ints, S: int, bank: _Bank) -> Iterator[Strip]:
    """Classify the tiles by the ends of the rows; only distinct partial tiles have their cells evaluated."""
    L, tile_k, height = first.size, bank.tile_k, bank.height
    across = -(-S // tile_k)
    # A block of query tiles at a time, so that the table of tiles stays small.
    step = max(1, CELLS // (across + 1)) * height if L else 1
    for q in range(0, L, step):
        rows = min(step, L - q)
        n = -(-rows // height)
        # Rows beyond L are empty.
        F, T = np.zeros(n * height, np.int64), np.zeros(n * height, np.int64)
        F[:rows], T[:rows] = first[q : q + rows], stop[q : q + rows]
        which = np.arange(n * height) // height
        seen = F < T
        touched = _cover(which[seen], F[seen] // tile_k, -(-T[seen] // tile_k), n, across) > 0
        # The last key tile may be cut by S: a row that reaches S fills it.
        end = np.where(T == S, across, T // tile_k)
        begin = -(-F // tile_k)
        filled = seen & (begin < end)
        full = _cover(which[filled], begin[filled], end[filled], n, across)
        inside = np.minimum(height, rows - height * np.arange(n))
        r, k = np.nonzero(touched)
        tile = np.full(r.size, -1, np.int64)
        cut = np.flatnonzero(full[r, k] != inside[r])
        tile[cut] = _number_intervals(F.reshape(n, height), T.reshape(n, height), r[cut], k[cut], bank)
        yield np.bincount(r, minlength=n), k, tile


def _cover(which: Ints, begin: Ints, end: Ints, n: int, across: int) -> Ints:
    """How many of the intervals begin .. end of each query tile cover each key tile, shape (n, across)."""
    steps = np.bincount(which * (across + 1) + begin, minlength=n * (across + 1))
    steps = steps - np.bincount(which * (across + 1) + end, minlength=n * (across + 1))
    return np.cumsum(steps.reshape(n, across + 1), axis=-1)[:, :across]


def _number_intervals(F: Ints, T: Ints, r: Ints, k: Ints, bank: _Bank) -> Ints:
    """Numbers of the partial tiles (r, k), of which each is evaluated once that differs in the ends of its rows."""
    numbers = np.zeros(r.size, np.int64)
    known: dict[bytes, int] = {}
    keys = np.arange(bank.width)
    step = max(1, CELLS // bank.height)
    for at in range(0, r.size, step):
        some = slice(at, at + step)
        origin = (k[some] * bank.tile_k)[:, None]
        first, stop = np.clip(F[r[some]] - origin, 0, bank.tile_k), np.clip(T[r[some]] - origin, 0, bank.tile_k)
        for x, (f, t) in enumerate(zip(first, stop, strict=True)):
            ends = f.tobytes() + t.tobytes()
            if ends not in known:
                known[ends] = bank.number((keys >= f[:, None]) & (keys < t[:, None]))
            numbers[at + x] = known[ends]
    return numbers


def _from_cells(mask: Mask, L: int, S: int, bank: _Bank) -> Iterator[Strip]:
    """Classify the tiles inside the hull by their cells, as many of one query tile at a time as CELLS allows."""
    tile_q, tile_k = bank.tile_q, bank.tile_k
    step = max(1, CELLS // max(1, bank.height * tile_k)) * tile_k
    low, high = united(mask._hull(L, S), L, S)
    for q in range(0, L, tile_q):
        i = slice(q, min(q + tile_q, L))
        indices, tile = [], []
        end = min(S, -(-int(high[i].max()) // tile_k) * tile_k)
        for start in range(int(low[i].min()) // tile_k * tile_k, end, step):
            j = slice(start, min(start + step, end))
            shape = i.stop - i.start, j.stop - j.start
            cells = np.broadcast_to(host_tile(mask, i, j, L, S), shape)
            # Number of cells of each key tile that take part.
            taken = np.add.reduceat(np.count_nonzero(cells, axis=0), np.arange(0, shape[1], tile_k))
            for k in np.flatnonzero(taken).tolist():
                part = cells[:, k * tile_k : (k + 1) * tile_k]
                indices.append(start // tile_k + k)
                tile.append(-1 if taken[k] == part.size else bank.number(part))
        yield np.array([len(indices)]), np.array(indices, np.int64), np.array(tile, np.int64)
