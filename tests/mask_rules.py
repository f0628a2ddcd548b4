"""Masks of sequences, trees and draws, each with the rule that it stands for, for whole problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn import masks

KINDS = ("documents", "prefix", "chunked", "tree", "bernoulli")


def made(
    kind: str, rng: np.random.Generator, batch: tuple[int, ...], H: int, L: int, S: int, anchor: Any, offset: Any
) -> tuple[str, masks.Mask, Callable[[tuple[int, ...], int, int], Any]]:
    """What a mask of the kind is called, the mask, and its rule by (..., h), query and key."""
    shape = batch if rng.random() < 0.5 else ()
    match kind:
        case "documents":
            return _documents(rng, shape, H, L, S)
        case "prefix":
            length = rng.integers(0, S + 2, size=shape)
            return (
                f"prefix({length.tolist()}, {anchor!r})",
                masks.prefix(length, anchor),
                lambda index, i, j: j < length[index[: length.ndim]] or j <= i + offset(index[:-1]),
            )
        case "chunked":
            size = int(rng.choice([1, 2, 3, 16, 17, 2**40]))
            return (
                f"chunked({size}, {anchor!r})",
                masks.chunked(size, anchor),
                lambda index, i, j: j // size == (i + offset(index[:-1])) // size,
            )
        case "tree":
            parents = np.array([rng.integers(-1, n, size=shape) for n in range(L)], int).reshape(L, *shape)
            parents = np.moveaxis(parents, 0, -1)

            def line(index: tuple[int, ...], i: int, j: int) -> bool:
                node = j - offset(index[:-1])
                while i > node and i >= 0:
                    i = parents[(*index[: len(shape)], i)]
                return node < 0 or node == i

            return f"tree({parents.tolist()}, {anchor!r})", masks.tree(parents, anchor), line
    keep, seed = float(rng.choice([0.3, 0.9])), int(rng.integers(2**32))
    sizes = {"heads": H} if len(batch) != 1 else {"heads": H, "batch": batch[0]}

    def drawn(index: tuple[int, ...], i: int, j: int) -> bool:
        counter = [0, i, index[-1], index[0] if len(batch) == 1 else 0]
        return np.random.Generator(np.random.Philox(key=seed, counter=counter)).random(j + 1)[j] < keep

    return f"bernoulli({keep}, {seed}, {sizes})", masks.bernoulli(keep, seed, **sizes), drawn


def _documents(rng: np.random.Generator, shape: tuple[int, ...], H: int, L: int, S: int) -> Any:
    """Documents of the queries and of the keys, causal inside from one corner or the other, or open."""
    query, key = (rng.integers(-1, int(rng.choice([1, 2, 6])), size=(*shape, n)) for n in (L, S))
    if rng.random() < 0.5:
        query, key = np.sort(query, axis=-1), np.sort(key, axis=-1)
    corner = str(rng.choice(["none", "lower_right", "upper_left"]))
    inside = None if corner == "none" else masks.causal(corner)

    def within(index: tuple[int, ...], i: int, j: int) -> bool:
        q, k = query[index[: len(shape)]].tolist(), key[index[: len(shape)]].tolist()
        if q[i] != k[j] or q[i] < 0:
            return False
        offset = k.count(q[i]) - q.count(q[i]) if corner == "lower_right" else 0
        return inside is None or k[:j].count(q[i]) <= q[:i].count(q[i]) + offset

    text = f"documents({key.tolist()}, {query.tolist()}, inside={inside!r})"
    return text, masks.documents(key, query, inside=inside), within
