"""A mask: who may attend to whom, and its forms: tile, row, dense, CSR, blocks, bounds, count, picture."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import Anchor, anchor_of
from refattn._core.arrays import Array
from refattn.masks import forms
from refattn.masks.blocks import Blocks, build
from refattn.masks.operators import Operators

Ints = npt.NDArray[np.int64]
Positions = slice | Ints


class Mask(Operators):
    """Which key each query may attend to, as a rule that answers for one tile, one row or the whole.

    A mask holds no L x S array unless it was made from one. Masks combine with ``&``, ``|`` and ``~`` and cannot be
    changed. They are made by the functions of `refattn.masks`; a new family is a subclass that gives `lead`,
    `_check`, `_tile`, `_at` and, where each row is one interval of keys, `_interval`, else `_hull` where one is known;
    `_reanchored` where it has an anchor.

    Notes
    -----
    `lead` is the shape of the leading axes (batch ..., heads): ``()`` where the mask is the same for all, and 1 on an
    axis along which it does not change. It broadcasts to the leading axes of the query.
    """

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes (batch ..., heads): ``()`` for one mask for all, 1 on an axis along which it does not change."""
        return ()

    @property
    def readable(self) -> bool:
        """Whether its cells can be read on the host now; False where it is made of a traced or uncomputed array."""
        return True

    def _check(self, function: str, L: int, S: int) -> None:
        """Raise where this mask has no meaning for L queries and S keys."""

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        """The cells of queries i and keys j, for arguments that were checked."""
        raise NotImplementedError

    def _at(self, index: tuple[int, ...]) -> Mask:
        """The mask at one full index into `lead`, which is not ()."""
        raise NotImplementedError

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        """The interval form for arguments that were checked, or None."""
        return None

    def _hull(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        """The hull for arguments that were checked, or None."""
        return self._interval(L, S)

    def _reanchored(self, anchor: Anchor) -> Mask:
        """This mask with another anchor, which was checked."""
        return self

    def _count(self, L: int, S: int) -> Ints:
        """Number of cells, for arguments that were checked."""
        return forms.count(self, L, S)

    def _sizes(self, function: str, L: int, S: int) -> tuple[int, int]:
        """L and S as Python integers, after every check."""
        L, S = forms.size(function, "L", L, 0), forms.size(function, "S", S, 0)
        self._check(function, L, S)
        return L, S

    def check(self, function: str, L: int, S: int) -> None:
        """Raise where this mask has no meaning for L queries and S keys.

        Parameters
        ----------
        function : str
            Name of the public function that the message begins with.
        L, S : int
            Number of queries and of keys.

        Raises
        ------
        ValueError
            If an anchor is missing and L != S, the axes of an array do not fit, a length lies beyond L or S, or L or S
            is no size.
        """
        self._sizes(function, L, S)

    def at(self, index: Sequence[int]) -> Mask:
        """Mask of one (batch ..., head), without leading axes.

        Parameters
        ----------
        index : sequence of int
            One entry for each leading axis of the query. Entries for axes that `lead` lacks, or has with size 1, are
            not looked at.

        Returns
        -------
        Mask
            With ``lead == ()``.

        Raises
        ------
        ValueError
            If `index` has fewer entries than `lead`, or an entry lies outside its axis.
        """
        index = tuple(operator.index(x) for x in index)
        if len(index) < len(self.lead):
            raise ValueError(f"mask.at: index must have an entry for each axis of lead={self.lead}; got {index}.")
        last = index[len(index) - len(self.lead) :]
        if any(n != 1 and not 0 <= x < n for x, n in zip(last, self.lead, strict=True)):
            raise ValueError(f"mask.at: index must lie inside lead={self.lead}; got {index}.")
        return self._at(tuple(0 if n == 1 else x for x, n in zip(last, self.lead, strict=True))) if self.lead else self

    def tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any = None) -> Array:
        """Cells of queries `i` and keys `j`, built on the device from their positions.

        Parameters
        ----------
        i, j : slice or numpy.ndarray of int, shape (n,)
            Positions: a slice with start and stop inside 0 .. L (0 .. S) and no step, or positions in any order.
        L, S : int
            Number of queries and of keys.
        xp : namespace
            Array API namespace of the result.
        device : object, optional
            Device of the result, in the words of `xp`.

        Returns
        -------
        array of bool
            Of shape ``lead + (n, m)``, where n is len(i), or 1 where the mask is the same for all queries, and m is
            len(j), or 1 where it is the same for all keys. True where the key takes part.

        Raises
        ------
        ValueError
            As `check`.
        """
        L, S = self._sizes("mask.tile", L, S)
        cells = self._tile(i, j, L, S, xp=xp, device=device)
        return xp.broadcast_to(cells, (*self.lead, *cells.shape[-2:]))

    def interval(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        """First key and first key after the last one, of each query, where every row is one interval by construction.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.

        Returns
        -------
        (first, stop) of numpy.ndarray of int64, or None
            Each broadcastable to ``lead + (L,)``, with ``0 <= first <= stop <= S``; an empty row has first == stop.
            None where the form of the mask does not promise intervals.

        Raises
        ------
        ValueError
            As `check`.
        """
        return self._interval(*self._sizes("mask.interval", L, S))

    def hull(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        """Interval of keys that contains all that a query may attend to, where one is known without a look at cells.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.

        Returns
        -------
        (first, stop) of numpy.ndarray of int64, or None
            As `interval`, but keys between may be left out. None where nothing is known but 0 .. S.

        Raises
        ------
        ValueError
            As `check`.
        """
        return self._hull(*self._sizes("mask.hull", L, S))

    def reanchored(self, anchor: str | int | Sequence[int] | Array | None) -> Mask:
        """Mask with every anchor in it, given or missing, replaced.

        Parameters
        ----------
        anchor : {"lower_right", "upper_left"}, int, array of int or None
            As in `causal`.

        Returns
        -------
        Mask
            The mask itself where it has no anchor.

        Raises
        ------
        TypeError
            If `anchor` is of another kind.
        ValueError
            If `anchor` is another string, or an array whose batch shape does not fit the rest of the mask.

        Examples
        --------
        >>> from refattn import masks
        >>> (masks.causal() & ~masks.window(2, 0, anchor=5)).reanchored("lower_right")
        masks.causal(anchor='lower_right') & ~masks.window(2, 0, anchor='lower_right')
        """
        return self._reanchored(anchor_of("mask.reanchored", anchor))

    def dense(self, L: int, S: int) -> npt.NDArray[np.bool_]:
        """Whole mask as one array.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.

        Returns
        -------
        numpy.ndarray of bool, shape lead + (L, S)
            True where the key takes part. The caller's own.

        Raises
        ------
        ValueError
            As `check`.
        """
        L, S = self._sizes("mask.dense", L, S)
        return np.array(np.broadcast_to(forms.host_tile(self, slice(0, L), slice(0, S), L, S), (*self.lead, L, S)))

    def row(self, r: int, L: int, S: int, index: Sequence[int] = ()) -> Ints:
        """Keys that one query may attend to, in O(S).

        Parameters
        ----------
        r : int
            The query, 0 .. L - 1.
        L, S : int
            Number of queries and of keys.
        index : sequence of int, optional
            Which (batch ..., head), as in `at`.

        Returns
        -------
        numpy.ndarray of int64, shape (n,)
            Sorted key positions.

        Raises
        ------
        ValueError
            As `check` and `at`, and if `r` is no query.
        """
        L, S = self._sizes("mask.row", L, S)
        if not 0 <= r < L:
            raise ValueError(f"mask.row: r must be a query, 0 <= r < L={L}; got {r}.")
        cells = forms.host_tile(self.at(index), slice(r, r + 1), slice(0, S), L, S)
        return np.flatnonzero(np.broadcast_to(cells, (1, S))).astype(np.int64)

    def csr(self, L: int, S: int, index: Sequence[int] = ()) -> Any:
        """Mask of one (batch ..., head) as a sparse matrix, in O(L + cells) memory.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.
        index : sequence of int, optional
            Which (batch ..., head), as in `at`.

        Returns
        -------
        scipy.sparse.csr_array of bool, shape (L, S)
            True at each cell that takes part, with sorted indices; nothing else is stored.

        Raises
        ------
        ValueError
            As `check` and `at`.
        """
        L, S = self._sizes("mask.csr", L, S)
        return forms.csr(self.at(index), L, S)

    def blocks(self, L: int, S: int, tile_q: int, tile_k: int) -> Blocks:
        """Key tiles that each query tile needs: what a kernel reads in place of a mask.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.
        tile_q, tile_k : int
            Queries and keys in a tile.

        Returns
        -------
        Blocks
            An int32 CSR of tiles, each full or partial, and the cells of each distinct partial tile.

        Raises
        ------
        ValueError
            As `check`, or if a tile size is not positive.
        ImplementationError
            If the distinct partial tiles need more than 256 MiB.

        Notes
        -----
        Where `interval` gives an answer the tiles are classified from it and no cell of a full or empty tile is
        evaluated; elsewhere every cell of the tiles that meet the `hull` is evaluated once, a tile's height of rows at
        a time.
        """
        L, S = self._sizes("mask.blocks", L, S)
        tile_q = forms.size("mask.blocks", "tile_q", tile_q, 1)
        tile_k = forms.size("mask.blocks", "tile_k", tile_k, 1)
        return build(self, L, S, tile_q, tile_k)

    def bounds(self, L: int, S: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
        """Interval form as kernels read it.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.

        Returns
        -------
        (first, stop) of numpy.ndarray of int32, each of shape lead + (L,), or None
            As `interval`, written out and C-ordered.

        Raises
        ------
        ValueError
            As `check`.
        ImplementationError
            If S does not fit in int32.
        """
        L, S = self._sizes("mask.bounds", L, S)
        found = self._interval(L, S)
        if found is None:
            return None
        first, stop = (np.broadcast_to(forms.int32("mask.bounds", "S", S, x), (*self.lead, L)).copy() for x in found)
        return first, stop

    def count(self, L: int, S: int) -> Ints:
        """Number of cells that take part.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys.

        Returns
        -------
        numpy.ndarray of int64, shape lead
            From the intervals in O(L) where there are any, else by tiles in O(L S) time and O(tile) memory.

        Raises
        ------
        ValueError
            As `check`.
        """
        L, S = self._sizes("mask.count", L, S)
        return self._count(L, S)

    def draw(self, L: int, S: int) -> str:
        """Picture of a small mask: a row for each query, ``#`` where the key takes part and ``.`` where not.

        Parameters
        ----------
        L, S : int
            Number of queries and of keys, at most 64 of each.

        Returns
        -------
        str
            One picture, or one for each distinct (batch ..., head), headed by its index with ``:`` for "all".

        Raises
        ------
        ValueError
            As `check`, or if the mask is too large to draw.
        """
        L, S = self._sizes("mask.draw", L, S)
        return forms.draw(self, L, S)
