"""Masks of sequences that are packed into one: each document sees itself, under a mask of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import Anchor, frozen, integers
from refattn._core.arrays import Array
from refattn.masks.arguments import batch_of, lead_of, positions, shown
from refattn.masks.base import Ints, Mask, Positions
from refattn.masks.stacked import Stacked


class Tokens(NamedTuple):
    """Queries or keys of one batch entry by document; documents are numbered by rising id."""

    document: Ints  # of each token, -1 for none
    rank: Ints  # place of each token inside its document
    size: Ints  # number of tokens of each document
    start: Ints  # where in `order` each document begins
    order: Ints  # the tokens, document by document


class Packed(NamedTuple):
    """Documents of one batch entry."""

    ids: Ints
    query: Tokens
    key: Tokens
    # Each (queries, keys) that documents have, once; the first document that has it, and which one each document has.
    sizes: list[tuple[int, int]]
    first: list[int]
    which: Ints

    @property
    def contiguous(self) -> bool:
        """Whether the keys of each document lie side by side."""
        step, same = np.diff(self.key.order), np.diff(self.key.document[self.key.order]) == 0
        return not np.any(same & (step != 1))


def pack(query: Ints, key: Ints) -> Packed:
    """Sort the tokens of one batch entry by document."""
    ids = np.unique(np.concatenate([query, key]))
    ids = ids[ids >= 0]
    queries, keys = (_tokens(x, ids) for x in (query, key))
    sizes, first, which = np.unique(
        np.stack([queries.size, keys.size], axis=-1), axis=0, return_index=True, return_inverse=True
    )
    return Packed(ids, queries, keys, [(int(n), int(m)) for n, m in sizes], first.tolist(), which)


def _tokens(x: Ints, ids: Ints) -> Tokens:
    """The tokens of the given ids."""
    document = np.where(x >= 0, np.searchsorted(ids, x), -1)
    order = np.argsort(document, kind="stable")
    order = order[document[order] >= 0]
    size = np.bincount(document[order], minlength=ids.size)
    start = np.cumsum(size) - size
    rank = np.zeros(x.size, np.int64)
    rank[order] = np.arange(order.size) - np.repeat(start, size)
    return Tokens(document, rank, size, start, order)


@dataclass(frozen=True, eq=False, repr=False)
class Documents(Stacked):
    """The keys of the query's own document, as far as `inside` shows them."""

    key: Ints
    query: Ints | None
    inside: Mask | None
    packed: tuple[Packed, ...]  # of each batch entry

    def __post_init__(self) -> None:
        """Refuse leading axes that do not broadcast."""
        own, inside = lead_of(self._batch()), () if self.inside is None else self.inside.lead
        try:
            np.broadcast_shapes(own, inside)
        except ValueError:
            raise ValueError(
                f"masks.documents: the leading axes of inside must broadcast with those of the ids; got lead={inside} "
                f"and lead={own}."
            ) from None

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of ids, and the leading axes of the mask inside."""
        inside = () if self.inside is None else self.inside.lead
        return np.broadcast_shapes(lead_of(self._batch()), inside)

    def _batch(self) -> tuple[int, ...]:
        """Batch shape of the ids."""
        query = self.key if self.query is None else self.query
        return batch_of("masks.documents", key=self.key.shape[:-1], query=query.shape[:-1])

    def _check(self, function: str, L: int, S: int) -> None:
        if self.query is None and L != S:
            raise ValueError(
                f"{function}: query of masks.documents must be given where L and S differ; got L={L}, S={S}."
            )
        for name, x, axis, n in (("key", self.key, "S", S), ("query", self.query, "L", L)):
            if x is not None and x.shape[-1] != n:
                raise ValueError(
                    f"{function}: {name} of masks.documents must have an id for each {name}, {axis}={n}; got shape "
                    f"{x.shape}."
                )
        if self.inside is None:
            return
        for index, packed in zip(np.ndindex(self._batch()), self.packed, strict=True):
            entry = f" of batch entry {index}" if index else ""
            for sizes, document in zip(packed.sizes, packed.first, strict=True):
                self.inside._check(f"{function}: document {packed.ids[document]}{entry}", *sizes)

    def _one_tile(self, i: Positions, j: Positions, L: int, S: int) -> npt.NDArray[np.bool_]:
        q, k = self.packed[0].query, self.packed[0].key
        rows, columns = (positions(x, np, None) for x in (i, j))
        at_q, at_k = q.document[rows], k.document[columns]
        if self.inside is None:
            cells: npt.NDArray[np.bool_] = (at_q[:, None] == at_k) & (at_k >= 0)
            return cells
        cells = np.zeros((rows.size, columns.size), np.bool_)
        for document in np.intersect1d(at_q, at_k[at_k >= 0]).tolist():
            own = np.ix_(at_q == document, at_k == document)
            ranks = q.rank[rows[at_q == document]], k.rank[columns[at_k == document]]
            sizes = int(q.size[document]), int(k.size[document])
            cells[own] = self.inside._tile(*ranks, *sizes, xp=np, device=None)
        return cells

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        return self._ends(L, exact=True)

    def _hull(self, L: int, S: int) -> tuple[Ints, Ints] | None:
        return self._ends(L, exact=False)

    def _ends(self, L: int, *, exact: bool) -> tuple[Ints, Ints] | None:
        """The interval form, or the hull, written out to lead + (L,)."""
        ones: list[Any] = [self.at(index) for index in np.ndindex(self.lead)]
        found = [one._ends_of_one(L, exact) for one in ones]
        if any(x is None for x in found):
            return None
        first, stop = (np.array([x[n] for x in found], np.int64).reshape((*self.lead, L)) for n in (0, 1))
        return first, stop

    def _ends_of_one(self, L: int, exact: bool) -> tuple[Ints, Ints] | None:
        """The ends of the rows where `lead` is (): the place of the first key and of the last one in each document."""
        packed = self.packed[0]
        q, k = packed.query, packed.key
        if exact and not packed.contiguous:
            return None
        first, stop = np.zeros(L, np.int64), np.zeros(L, np.int64)
        which = np.append(packed.which, -1)[q.document]
        for number, (n, m) in enumerate(packed.sizes):
            found = self._ends_inside(n, m, exact)
            if found is None:
                return None
            rows = np.flatnonzero(which == number)
            begin, end = (np.broadcast_to(x, (n,))[q.rank[rows]] for x in found)
            seen = begin < end
            start = k.start[q.document[rows]][seen]
            first[rows[seen]] = k.order[start + begin[seen]]
            stop[rows[seen]] = k.order[start + end[seen] - 1] + 1
        return first, stop

    def _ends_inside(self, n: int, m: int, exact: bool) -> tuple[Ints, Ints] | None:
        """The interval form, or the hull, inside documents of n queries and m keys."""
        if self.inside is not None:
            found = self.inside._interval(n, m) if exact else self.inside._hull(n, m)
            if exact or found is not None:
                return found
        return np.zeros(1, np.int64), np.full(1, m)

    def _at(self, index: tuple[int, ...]) -> Mask:
        batch = self._batch()
        # The mask inside may have a batch where the ids have none.
        own = tuple(0 if n == 1 else x for x, n in zip(index[:-1][len(index) - 1 - len(batch) :], batch, strict=True))

        def pick(x: Ints) -> Ints:
            return np.asarray(np.broadcast_to(x, (*batch, x.shape[-1]))[own])

        query = None if self.query is None else pick(self.query)
        inside = None if self.inside is None else self.inside.at(index)
        packed = self.packed[int(np.ravel_multi_index(own, batch))] if batch else self.packed[0]
        return Documents(pick(self.key), query, inside, (packed,))

    def _reanchored(self, anchor: Anchor) -> Mask:
        inside = None if self.inside is None else self.inside._reanchored(anchor)
        return self if inside is self.inside else replace(self, inside=inside)

    def __repr__(self) -> str:
        """The call that makes it."""
        query = "" if self.query is None else f", query={shown(self.query)}"
        inside = "" if self.inside is None else f", inside={self.inside!r}"
        return f"masks.documents({shown(self.key)}{query}{inside})"


def documents(
    key: Sequence[int] | Array, query: Sequence[int] | Array | None = None, *, inside: Mask | None = None
) -> Mask:
    """Mask of sequences packed into one: a query sees the keys of its own document, under a mask inside it.

        query i sees key j  iff  query[i] = key[j] >= 0  and  inside lets query rank(i) see key rank(j)

    Parameters
    ----------
    key : array of int, shape (S,) or (B, S)
        Id of the document that each key belongs to; a negative id is none, as for padding.
    query : array of int, shape (L,) or (B, L), optional
        The same for the queries. Default: the ids of the keys, L = S.
    inside : Mask, optional
        What a document's queries see of its keys, as if it stood alone with the L_d queries and S_d keys that have its
        id, each counted by rank: how many of its document come before it. So "lower_right" is each document's own
        corner. Default: everything.

    Returns
    -------
    Mask
        With ``lead == ()``, or ``(B, 1)`` where ids are given for a batch, broadcast with the lead of `inside`, of
        which each batch entry and head takes its own.

    Raises
    ------
    TypeError
        If ids are no integers or `inside` is no Mask.
    ValueError
        If ids have no axis, one lies beyond int64, leading axes do not broadcast, or `inside` holds an array that is
        traced; later, where the mask is used, if there is not one id for each query and key, or `inside` has no meaning
        for some document.

    Notes
    -----
    The tokens of a document need not lie side by side. Where its keys do and `inside` promises intervals, rows are
    intervals and every form but `tile` is in closed form. Cost: O(L + S) memory for each batch entry, and a tile
    O(tile) operations.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.documents([7, 7, 7, 2, 2], inside=masks.causal()).draw(5, 5))
      01234
    0 #....
    1 ##...
    2 ###..
    3 ...#.
    4 ...##
    >>> step = masks.documents([7, 7, 7, 2, 2, -1], query=[7, 2, 2], inside=masks.causal("lower_right"))
    >>> print(step.draw(3, 6))
      012345
    0 ###...
    1 ...#..
    2 ...##.
    """
    if inside is not None and not isinstance(inside, Mask):
        raise TypeError(
            f"masks.documents: inside must be a Mask; got {type(inside).__name__}. Wrap a boolean array in masks.array."
        )
    if inside is not None and not inside.readable:
        raise ValueError(f"masks.documents: inside must have cells that can be read now; got {inside!r}.")
    keys = _ids("key", key, "(S,) or (B, S)")
    queries = None if query is None else _ids("query", query, "(L,) or (B, L)")
    pair = [keys if x is None else x for x in (queries, keys)]
    batch = batch_of("masks.documents", key=keys.shape[:-1], query=pair[0].shape[:-1])
    rows = [np.broadcast_to(x, (*batch, x.shape[-1])) for x in pair]
    return Documents(keys, queries, inside, tuple(pack(*(x[index] for x in rows)) for index in np.ndindex(batch)))


def _ids(name: str, x: Any, shape: str) -> Ints:
    """Ids that were checked, in int64."""
    rule = f"an integer array of shape {shape}"
    found = np.asarray(integers("masks.documents", name, x, rule))
    if found.ndim == 0:
        raise ValueError(f"masks.documents: {name} must be {rule}; got {found}.")
    if np.any(found > np.iinfo(np.int64).max):
        raise ValueError(f"masks.documents: ids must fit in int64; got {found.max()} in {name}.")
    return frozen(found.astype(np.int64))
