"""Drawn masks, each beside its definition: a plain Python function of (batch, head, query, key)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


FAMILIES = (causal, window, lengths, array, from_function)
INTERVALS = (causal, window, lengths)


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
