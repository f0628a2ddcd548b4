"""Batches of sequences that a kernel takes packed, paged or with lengths: which are drawn, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import layouts
from refattn.layouts.host import offsets_from
from refattn.testing.spec import KernelSpec

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Pair = tuple[int, int]

# Pages of the pool that no sequence has: the table names one of them where a sequence has no page.
SPARE = 2
# Sequences in a batch beyond those that `batch` asks for.
MORE = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """The lengths of a batch's sequences, and what its pages are dealt out with."""

    queries: Ints
    keys: Ints
    seed: int = 0
    prefix: tuple[int, int] | None = None  # two sequences that share their first page


def lengths_of(
    spec: KernelSpec, check: str, batch: int, lengths: Pair, rng: np.random.Generator, *, square: bool
) -> tuple[Pair, ...]:
    """Lengths (L, S) of the sequences of one problem, the longest somewhere among them.

    They stay within what `spec.lengths` shows: as many queries as keys where that is so in all of it, and no more
    queries than keys where there never are. With `square` they must be equal.
    """
    L, S = lengths
    packed, ragged = "cu_seqlens_q" in spec.tables, len(set(spec.tables) - {"cu_seqlens_q"}) > 0
    if square and not (packed and ragged):
        return (lengths,) * (batch + MORE)
    square = square or all(l == s for l, s in spec.lengths)
    longer = any(l > s for l, s in spec.lengths)
    found = [lengths, *(_cut(lengths, packed, longer, rng) for _ in range(batch + MORE - 1))]
    found += _hard(check, lengths, spec.stored.page_size, packed, longer, square)
    found = [found[n] for n in rng.permutation(len(found))]
    if check == "cu_seqlens_q":
        # No queries: first, last and in between.
        none = (0, 0 if square else S)
        found = [none, found[0], none, *found[1:], none]
    return tuple((l if packed else L, s if ragged else S) for l, s in found)


def _cut(lengths: Pair, packed: bool, longer: bool, rng: np.random.Generator) -> Pair:
    """A shorter sequence: a square stays one, and the longer side stays the longer one."""
    L, S = lengths
    if not packed:
        return L, int(rng.integers(1 if longer else L, S + 1))
    s = int(rng.integers(1, S + 1))
    if L == S:
        return s, s
    return (int(rng.integers(1, min(L, s) + 1)) if L < S else int(rng.integers(s, L + 1))), s


def _hard(check: str, lengths: Pair, page: int, packed: bool, longer: bool, square: bool) -> Iterator[Pair]:
    """The sequences that a table's own check is for."""
    L = lengths[0]
    if check in ("cu_seqlens_k", "seqused_k"):
        yield (0 if square and packed else L, 0)
        if packed or longer or L == 1:
            yield (1 if packed else L, 1)
    if check == "block_table":
        # Pages that are one token short, full, and one token over; two sequences are to share a page.
        first = page if packed or longer else -(-L // page) * page
        for s in (first - 1, first, first + 1, first + page - 1, first + page, first + page + 1):
            l = L if not packed else s if square else L if longer else min(L, s)
            if s > 0 and (packed or longer or l <= s):
                yield l, s


def drawn(law: Any, rng: np.random.Generator, lengths: tuple[Pair, ...], heads: Pair, dims: Pair) -> list[Array]:
    """Padded arrays of sequences that are drawn by a law one by one; the padding is NaN."""
    (H, Hk), (E, Ev) = heads, dims
    B, L, S = len(lengths), max(l for l, _ in lengths), max(s for _, s in lengths)
    padded = [np.full(shape, math.nan) for shape in ((B, H, L, E), (B, Hk, S, E), (B, Hk, S, Ev))]
    for b, (l, s) in enumerate(lengths):
        arrays = law(rng, (1, H, Hk), (max(l, 1), max(s, 1)), dims)
        for whole, x, n in zip(padded, arrays, (l, s, s), strict=True):
            whole[b, :, :n] = x[0, :, :n]
    return padded


def with_prefix(spec: KernelSpec, batch: Batch, arrays: list[Array]) -> Batch:
    """The batch, two of whose sequences begin with the same page of keys and values; the arrays are changed."""
    page = spec.stored.page_size
    (full,) = np.nonzero(batch.keys >= page)
    if len(full) < 2:
        return batch
    first, other = int(full[0]), int(full[-1])
    for x in arrays[1:]:
        x[other, :, :page] = x[first, :, :page]
    return Batch(batch.queries, batch.keys, batch.seed, (first, other))


def stored(
    spec: KernelSpec, batch: Batch, arrays: list[Array], *, tails: float = math.nan, unused: float = math.nan
) -> tuple[list[Array], dict[str, Array]]:
    """The operands as the kernel gets them, and its tables, in NumPy.

    `tails` is in the cells behind a sequence's keys, on its last page or in its room, `unused` in pages of no sequence.
    """
    query, key, value = arrays
    layout, named = spec.stored, {}
    if "cu_seqlens_q" in spec.tables:
        query, named["cu_seqlens_q"] = layouts.pack_ragged(query, batch.queries)
    else:
        query = layouts.to_order(query, layout.order)
    if "seqused_k" in spec.tables:
        named["seqused_k"] = batch.keys.astype(np.int32)
    if "cu_seqlens_k" in spec.tables:
        named["cu_seqlens_k"] = offsets_from("check_kernel", batch.keys)
    if "block_table" in spec.tables:
        table, pages = layouts.page_table(batch.keys, layout.page_size, seed=batch.seed, spare=SPARE)
        if batch.prefix is not None:
            table[batch.prefix[1], 0] = table[batch.prefix[0], 0]
        named["block_table"] = table
        size, order = layout.page_size, layout.pages
        key, value = (
            layouts.pack_paged(x, batch.keys, table, size, order=order, pages=pages, shared=True, fill=tails)
            for x in (key, value)
        )
        needed = np.arange(table.shape[1]) < -(-batch.keys // size)[:, None]
        for pool in (key, value):
            pool[np.setdiff1d(np.arange(pages), table[needed])] = unused
    elif "cu_seqlens_k" in spec.tables:
        # Where the kernel takes both, sequences have room that they do not use.
        room = batch.keys + (np.arange(len(batch.keys)) % 3 if "seqused_k" in spec.tables else 0)
        named["cu_seqlens_k"] = offsets_from("check_kernel", room)
        key, value = (layouts.pack_ragged(x, batch.keys, capacity=room, fill=tails).packed for x in (key, value))
    else:
        behind = (np.arange(key.shape[2]) >= batch.keys[:, None])[:, None, :, None]
        key, value = (
            layouts.to_order(np.where(behind, np.asarray(tails, x.dtype), x), layout.order) for x in (key, value)
        )
    return [query, key, value], named
