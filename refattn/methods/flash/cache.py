"""Keys and values as caches keep them: padded, packed or in pages, sequence by sequence, read a tile at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn import biases, masks
from refattn._core.arrays import Array, Namespace, device, float64, is_array, taken
from refattn._core.checks import check_array, check_broadcast
from refattn._core.descale import check_whole
from refattn.biases.heads import HeadBiases
from refattn.layouts.host import Ints, lengths_of, offsets_of, table_of
from refattn.layouts.paged import PAGES, needed_pages
from refattn.masks.heads import HeadMasks

CELLS = ("mask", "bias", "dropout_mask")


class Cache(NamedTuple):
    """Keys or values of B sequences: the array as it came, and where each sequence lies in it."""

    array: Array
    lengths: Ints
    starts: Ints | None = None  # of packed sequences
    table: Ints | None = None
    order: str = "nhd"

    def sequence(self, b: int, xp: Namespace) -> tuple[Array, Pages | None]:
        """Sequence b as an array (1, Hk, S, E); in pages, a stand-in of this shape and what reads its tiles."""
        n = int(self.lengths[b])
        if self.table is not None:
            pages = Pages(self.array, self.table[b], n, self.order, xp)
            return xp.broadcast_to(self._zeros(1, 1, xp), (1, pages.shape[1], n, pages.shape[-1])), pages
        if self.starts is not None:
            first = int(self.starts[b])
            return xp.expand_dims(xp.permute_dims(self.array[first : first + n, ...], (1, 0, 2)), axis=0), None
        return self.array[b : b + 1, :, :n, :], None

    def nothing(self, xp: Namespace) -> Array:
        """An array (0, Hk, 0, E)."""
        return self._zeros(0, 0, xp)

    def _zeros(self, B: int, S: int, xp: Namespace) -> Array:
        """Zeros (B, Hk, S, E)."""
        paged = self.table is not None
        Hk = self.array.shape[2 if paged and self.order == "nhd" else 1]
        return xp.zeros((B, Hk, S, self.array.shape[-1]), dtype=self.array.dtype, device=device(self.array))


@dataclass(frozen=True, eq=False)
class Pages:
    """One sequence (1, Hk, 1, S, E) of a pool of pages; what is read is gathered, and cast to float64."""

    pool: Array
    table: Ints
    length: int
    order: str
    xp: Namespace

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the sequence."""
        return (1, self.pool.shape[2 if self.order == "nhd" else 1], 1, self.length, self.pool.shape[-1])

    def gathered(self, j: slice) -> Array:
        """The tokens j, (Hk, len j, E), in the dtype of the pool."""
        xp, size = self.xp, self.pool.shape[1 if self.order == "nhd" else 2]
        first, stop = j.start // size, -(-j.stop // size)
        pages = taken(self.pool, self.table[first:stop], -4, xp)
        pages = xp.permute_dims(pages, (2, 0, 1, 3) if self.order == "nhd" else (1, 0, 2, 3))
        tokens = xp.reshape(pages, (pages.shape[0], (stop - first) * size, pages.shape[-1]))
        return tokens[:, j.start - first * size : j.stop - first * size, :]

    def __getitem__(self, item: Any) -> Array:
        """The tokens of ``[..., j, :]``, (1, Hk, 1, len j, E)."""
        tokens = float64(self.gathered(item[1]), self.xp)
        return self.xp.expand_dims(self.xp.expand_dims(tokens, axis=0), axis=2)

    def whole(self) -> Array:
        """The sequence (1, Hk, S, E) in the dtype of the pool."""
        return self.xp.expand_dims(self.gathered(slice(0, self.length)), axis=0)


def caches(
    function: str, query: Array, key: Array, value: Array, tables: Mapping[str, Any], pages: str
) -> tuple[Cache, Cache]:
    """The caches of keys and values, after every check of the tables."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_array(function, name, x)
    if len(query.shape) != 4:
        raise ValueError(
            f"{function}: query must have 4 axes (B, H, L, E) where keys come with tables; got {tuple(query.shape)}."
        )
    B, used, offsets = query.shape[0], tables["seqused_k"], tables["cu_seqlens_k"]
    if offsets is not None:
        offsets = table_of(function, "cu_seqlens_k", offsets, "(B + 1,)", (B + 1,))
    if used is not None:
        used = lengths_of(function, "seqused_k", used, B, None, "")
    if tables["block_table"] is not None:
        if used is None and offsets is None:
            raise ValueError(
                f"{function}: block_table must come with the numbers of keys; got neither seqused_k nor cu_seqlens_k."
            )
        if used is None:
            used = np.diff(offsets_of(function, "cu_seqlens_k", offsets, int(offsets[-1])))
        return _paged(function, key, value, tables["block_table"], used, pages)
    if offsets is not None:
        return _packed(function, key, value, offsets, used)
    for name, x in (("key", key), ("value", value)):
        if len(x.shape) != 4 or x.shape[0] != B:
            raise ValueError(
                f"{function}: {name} must have 4 axes (B, Hk, S, E) beside seqused_k, with B={B}; got {tuple(x.shape)}."
            )
        lengths_of(function, "seqused_k", used, B, x.shape[2], "S")
    return Cache(key, used), Cache(value, used)


def _paged(function: str, key: Array, value: Array, table: Any, used: Ints, order: str) -> tuple[Cache, Cache]:
    """Caches in the pages of two pools."""
    sizes = []
    for name, x in (("key", key), ("value", value)):
        axis = PAGES[order].split(", ").index("page_size")
        if len(x.shape) != 4 or 0 in x.shape[1:3]:
            raise ValueError(f"{function}: {name} must have pages, {PAGES[order]}; got {tuple(x.shape)}.")
        sizes.append(x.shape[axis])
    if sizes[0] != sizes[1]:
        raise ValueError(f"{function}: key and value must have pages of one size; got {sizes[0]} and {sizes[1]}.")
    table = table_of(function, "block_table", table, "(B, max_pages)", (len(used), None))
    for x in (key, value):
        needed_pages(function, "seqused_k", table, used, sizes[0], x.shape[0])
    return Cache(key, used, table=table, order=order), Cache(value, used, table=table, order=order)


def _packed(function: str, key: Array, value: Array, offsets: Ints, used: Ints | None) -> tuple[Cache, Cache]:
    """Caches of sequences that lie one after another."""
    for name, x in (("key", key), ("value", value)):
        if len(x.shape) != 3:
            raise ValueError(
                f"{function}: {name} must have 3 axes (T, Hk, E) beside cu_seqlens_k; got {tuple(x.shape)}."
            )
        offsets_of(function, "cu_seqlens_k", offsets, x.shape[0])
    room = np.diff(offsets)
    lengths = room if used is None else used
    if (over := np.flatnonzero(lengths > room)).size:
        at = int(over[0])
        raise ValueError(
            f"{function}: seqused_k must not be more than the sequence has; got {lengths[at]} of {room[at]} keys of "
            f"sequence {at}."
        )
    return Cache(key, lengths, offsets[:-1]), Cache(value, lengths, offsets[:-1])


def arguments_of(
    function: str, b: int, lead: tuple[int, int], L: int, lengths: Ints, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What holds for sequence b: its part of masks and biases, which stand inside it."""
    found, S, n = dict(given), int(lengths.max(initial=0)), int(lengths[b])
    for name in CELLS:
        x = given[name]
        if isinstance(x, masks.Mask | biases.Bias):
            if len(x.lead) > 1 and x.lead[0] != 1:
                check_broadcast(function, name, (*x.lead, 1, 1), lead, L, S)
                found[name] = _of_entry(x, b)
        elif is_array(x) and len(x.shape) > 1:
            check_broadcast(function, name, tuple(x.shape), lead, L, S)
            x = x[b : b + 1, ...] if len(x.shape) == 4 and x.shape[0] > 1 else x
            found[name] = x if x.shape[-1] == 1 else x[..., :n]
    factors = check_whole(function, given["descale"], lead[0])
    found["descale"] = [x[b : b + 1, ...] if is_array(x) and x.shape and x.shape[0] > 1 else x for x in factors]
    return found


def _of_entry(x: masks.Mask | biases.Bias, b: int) -> masks.Mask | biases.Bias:
    """The mask or bias of one batch entry."""
    if x.lead[1] == 1:
        return x.at((b, 0))
    heads = range(x.lead[1])
    if isinstance(x, masks.Mask):
        return HeadMasks(tuple(x.at((b, h)) for h in heads))
    return HeadBiases(tuple(x.at((b, h)) for h in heads))
