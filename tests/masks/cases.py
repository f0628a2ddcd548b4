"""Drawn masks, each beside its definition: a plain Python function of (batch, head, query, key)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refattn import masks

Keep = Callable[[int, int, int, int], bool]
BATCH, HEADS = 2, 3
TILES = (1, 2, 3, 7, 8, 16, 31, 32, 33, 64, 65, 100)
# Lengths at the edges of those tiles, of the 32 bits in a word, and nothing at all.
LENGTHS = sorted({0, 1, 2, 5} | {n + d for n in (8, 16, 32) for d in (-1, 0, 1)})
LONG = (63, 64, 65, 127, 129, 200, 299, 300)


@dataclass(frozen=True)
class Case:
    """A mask, its definition, and the lengths it was drawn for."""

    mask: masks.Mask
    keep: Keep
    L: int
    S: int

    def defined(self) -> np.ndarray[Any, Any]:
        """The definition cell by cell, shape (BATCH, HEADS, L, S)."""
        cells = [
            self.keep(b, h, i, j)
            for b in range(BATCH)
            for h in range(HEADS)
            for i in range(self.L)
            for j in range(self.S)
        ]
        return np.array(cells, bool).reshape(BATCH, HEADS, self.L, self.S)

    def dense(self) -> np.ndarray[Any, Any]:
        """The dense form, shape (BATCH, HEADS, L, S)."""
        return np.broadcast_to(self.mask.dense(self.L, self.S), (BATCH, HEADS, self.L, self.S))


@st.composite
def anchors(draw: st.DrawFn, L: int, S: int) -> tuple[Any, Callable[[int], int]]:
    """An anchor and its offset as a function of the batch entry."""
    kinds = ["lower_right", "upper_left", "int", "huge", "array"] + ["none"] * (L == S)
    kind = draw(st.sampled_from(kinds))
    near = st.integers(-L - S - 2, L + S + 2)
    if kind == "array":
        offsets = draw(st.lists(near | st.sampled_from([-(2**62), 2**62]), min_size=BATCH, max_size=BATCH))
        return np.array(offsets), lambda b: offsets[b]
    if kind in ("int", "huge"):
        offset = draw(near if kind == "int" else st.sampled_from([-(10**30), -(2**63), 2**63 - 1, 10**30]))
        return offset, lambda b: offset
    return None if kind == "none" else kind, lambda b: S - L if kind == "lower_right" else 0


@st.composite
def causal(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    anchor, offset = draw(anchors(L, S))
    return masks.causal(anchor), lambda b, h, i, j: j <= i + offset(b)


@st.composite
def window(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    anchor, offset = draw(anchors(L, S))
    side = st.none() | st.integers(0, 6) | st.integers(0, L + S + 2) | st.just(10**30)
    left, right = draw(side), draw(side)

    def keep(b: int, h: int, i: int, j: int) -> bool:
        at = i + offset(b)
        return (left is None or at - left <= j) and (right is None or j <= at + right)

    return masks.window(left, right, anchor), keep


@st.composite
def lengths(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    def some(n: int) -> st.SearchStrategy[Any]:
        return st.integers(0, n) | st.lists(st.integers(0, n), min_size=BATCH, max_size=BATCH)

    key, query = draw(some(S)), draw(st.none() | some(L))

    def at(x: Any, b: int) -> int:
        return x if isinstance(x, int) else x[b]

    return masks.lengths(key, query), lambda b, h, i, j: j < at(key, b) and (query is None or i < at(query, b))


@st.composite
def array(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    lead = draw(st.sampled_from([(), (1,), (HEADS,), (BATCH, 1), (1, HEADS), (BATCH, HEADS)]))
    shape = (*lead, draw(st.sampled_from([1, L])), draw(st.sampled_from([1, S])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    cells = rng.random(shape) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    full = np.broadcast_to(cells, (BATCH, HEADS, L, S))
    return masks.array(cells), lambda b, h, i, j: bool(full[b, h, i, j])


@st.composite
def from_function(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    batch, heads = draw(st.sampled_from([None, BATCH])), draw(st.sampled_from([None, HEADS]))
    on_b, on_h = 0 if batch is None else 7, 0 if heads is None else 5
    m, t, coarse = draw(st.integers(1, 9)), draw(st.integers(0, 9)), draw(st.sampled_from([1, 4, 40]))

    def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return (on_b * b + on_h * h + 3 * (q // coarse) + kv // coarse) % m < t

    return masks.from_function(f, batch=batch, heads=heads), lambda b, h, i, j: bool(f(b, h, i, j))


@st.composite
def prefix(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    anchor, offset = draw(anchors(L, S))
    one = st.integers(0, S + 2) | st.just(2**62)
    length = draw(one | st.lists(one, min_size=BATCH, max_size=BATCH))

    def keep(b: int, h: int, i: int, j: int) -> bool:
        return j < (length if isinstance(length, int) else length[b]) or j <= i + offset(b)

    return masks.prefix(length, anchor), keep


@st.composite
def chunked(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    anchor, offset = draw(anchors(L, S))
    size = draw(st.integers(1, 9) | st.integers(1, L + S + 2) | st.just(2**62))
    return masks.chunked(size, anchor), lambda b, h, i, j: j // size == (i + offset(b)) // size


@st.composite
def tree(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    anchor, offset = draw(anchors(L, S))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    reach = draw(st.sampled_from([1, 3, 300]))  # a chain, a bush, anything
    lead = draw(st.sampled_from([(), (BATCH,)]))
    parents = np.array([rng.integers(max(-1, n - reach), n, size=lead) for n in range(L)], int).reshape(L, *lead)
    parents = np.moveaxis(parents, 0, -1)
    trees = np.broadcast_to(parents, (BATCH, L)).tolist()

    def keep(b: int, h: int, i: int, j: int) -> bool:
        node, at = j - offset(b), i
        while at > node and at >= 0:
            at = trees[b][at]
        return node < 0 or node == at

    return masks.tree(parents, anchor), keep


@st.composite
def bernoulli(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    seed = draw(st.sampled_from([0, 1, 2**64, 2**128 - 1]))
    batch, heads = draw(st.sampled_from([None, BATCH])), draw(st.sampled_from([None, HEADS]))

    @cache
    def row(b: int, h: int, i: int) -> list[bool]:
        counter = [0, i, 0 if heads is None else h, 0 if batch is None else b]
        u = np.random.Generator(np.random.Philox(key=seed, counter=counter)).random(S)
        return (u < share).tolist()

    return masks.bernoulli(share, seed, batch=batch, heads=heads), lambda b, h, i, j: row(b, h, i)[j]


@dataclass(frozen=True)
class Ids:
    """Document ids of one axis of one batch entry, with what a definition needs of them."""

    ids: list[int]

    @cached_property
    def ranks(self) -> list[int]:
        return [self.ids[:n].count(x) for n, x in enumerate(self.ids)]

    @cached_property
    def size(self) -> Counter[int]:
        return Counter(self.ids)


@st.composite
def insides(draw: st.DrawFn, equal: bool) -> tuple[masks.Mask | None, Callable[..., bool], bool]:
    """A mask for documents, its definition by (b, h, i, j, L, S) inside one, and whether it promises intervals."""
    kind = draw(
        st.sampled_from(["none", "none", "causal", "causal", "window", "prefix", "chunked", "pair", "function"])
    )
    numbers = draw(st.lists(st.integers(-3, 5), min_size=BATCH, max_size=BATCH))
    named = [("lower_right", lambda b, L, S: S - L), ("upper_left", lambda b, L, S: 0)]
    named += [(None, lambda b, L, S: 0)] * equal
    given = [(numbers[0], lambda b, L, S: numbers[0]), (numbers, lambda b, L, S: numbers[b])]
    anchor, at = draw(st.sampled_from(named + given))
    n = draw(st.integers(0, 4))
    match kind:
        case "causal":
            return masks.causal(anchor), lambda b, h, i, j, L, S: j <= i + at(b, L, S), True
        case "window":
            return masks.window(n, 1, anchor), lambda b, h, i, j, L, S: -n <= j - i - at(b, L, S) <= 1, True
        case "prefix":
            return masks.prefix(n, anchor), lambda b, h, i, j, L, S: j < n or j <= i + at(b, L, S), True
        case "chunked":
            made = masks.chunked(n + 1, anchor)
            return made, lambda b, h, i, j, L, S: j // (n + 1) == (i + at(b, L, S)) // (n + 1), True
        case "pair":
            made = masks.causal(anchor) & ~masks.window(n, 0, "upper_left")
            return made, lambda b, h, i, j, L, S: j <= i + at(b, L, S) and not i - n <= j <= i, False
        case "function":
            heads = draw(st.sampled_from([None, HEADS]))

            def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
                return (h + q + 2 * kv) % (n + 1) == 0

            return (
                masks.from_function(f, heads=heads),
                lambda b, h, i, j, L, S: f(0, h * (heads or 0) // HEADS, i, j),
                False,
            )
    return None, lambda b, h, i, j, L, S: True, True


@st.composite
def packed(draw: st.DrawFn, L: int, S: int) -> tuple[masks.Mask, Keep]:
    """Documents whose keys lie side by side, under a mask that promises intervals."""
    return draw(documents(L, S, contiguous=True))


@st.composite
def documents(draw: st.DrawFn, L: int, S: int, *, contiguous: bool = False) -> tuple[masks.Mask, Keep]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([1, 2, 5, 40]))
    lowest = draw(st.sampled_from([-2, -1, 0]))

    def drawn(n: int, runs: bool) -> Any:
        ids = rng.integers(lowest, most, size=(*draw(st.sampled_from([(), (BATCH,)])), n))
        # Runs of an id, in an order that is not that of the ids.
        return np.sort(ids, axis=-1) * 7 % 47 - 47 * (np.sort(ids, axis=-1) < 0) if runs else ids

    key = drawn(S, contiguous or draw(st.booleans()))
    query = None if L == S and draw(st.booleans()) else drawn(L, draw(st.booleans()))
    asked = key if query is None else query
    q, k = ([Ids(x) for x in np.broadcast_to(ids, (BATCH, ids.shape[-1])).tolist()] for ids in (asked, key))
    equal = all(a.size[x] == b.size[x] for a, b in zip(q, k, strict=True) for x in {*a.ids, *b.ids} if x >= 0)
    inside, within, _ = draw(insides(equal).filter(lambda x: x[2] or not contiguous))

    def keep(b: int, h: int, i: int, j: int) -> bool:
        own = q[b].ids[i]
        if own != k[b].ids[j] or own < 0:
            return False
        return within(b, h, q[b].ranks[i], k[b].ranks[j], q[b].size[own], k[b].size[own])

    return masks.documents(key, query, inside=inside), keep


INTERVALS = (causal, window, lengths, prefix, chunked, packed)
FAMILIES = (*INTERVALS, array, from_function, tree, bernoulli, documents)


@st.composite
def cases(draw: st.DrawFn, families: Any = FAMILIES, sizes: Any = LENGTHS, pairs: str = "&|~") -> Case:
    """Up to three masks of the families, combined by the operators in `pairs`."""
    L, S = draw(st.sampled_from(sizes)), draw(st.sampled_from(sizes))
    mask, keep = draw(draw(st.sampled_from(families))(L, S))
    for symbol in draw(st.lists(st.sampled_from(pairs), max_size=3)):
        if symbol == "~":
            mask, keep = ~mask, lambda b, h, i, j, a=keep: not a(b, h, i, j)
            continue
        other, also = draw(draw(st.sampled_from(families))(L, S))
        if symbol == "&":
            mask, keep = mask & other, lambda b, h, i, j, a=keep, c=also: a(b, h, i, j) and c(b, h, i, j)
        else:
            mask, keep = other | mask, lambda b, h, i, j, a=keep, c=also: a(b, h, i, j) or c(b, h, i, j)
    return Case(mask, keep, L, S)
