"""Attention written out in Python loops, with a rule for each cell in place of masks and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Sees = Callable[[int, int, int, int], bool]
Adds = Callable[[int, int, int, int], float]


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    sees: Sees = lambda b, h, i, j: True,
    adds: Adds = lambda b, h, i, j: 0.0,
    scale: float | None = None,
    cap: float = 0.0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Output (B, H, L, Ev) of query (B, H, L, E), key (B, Hk, S, E) and value (B, Hk, S, Ev)."""
    (B, H, L, E), (_, Hk, S, Ev) = query.shape, value.shape
    scale = 1 / math.sqrt(E) if scale is None else scale
    output = np.zeros((B, H, L, Ev))
    for b, h, i in np.ndindex(B, H, L):
        g = h // (H // Hk)
        keys = [j for j in range(S) if sees(b, h, i, j)]
        scores = [scale * math.fsum(query[b, h, i] * key[b, g, j]) for j in keys]
        scores = [cap * math.tanh(s / cap) if cap else s for s in scores]
        scores = [s + adds(b, h, i, j) for s, j in zip(scores, keys, strict=True)]
        extra = [] if sinks is None else [float(sinks[h])]
        top = max([*scores, *extra], default=0.0)
        weights = [math.exp(s - top) for s in scores]
        total = math.fsum(weights + [math.exp(s - top) for s in extra])
        for w, j in zip(weights, keys, strict=True):
            output[b, h, i] += w / total * value[b, g, j]
    return output


def seen(rule: Sees, L: int, S: int, *, B: int = 1, H: int = 1) -> np.ndarray:
    """The cells (B, H, L, S) in which a rule holds, one by one."""
    return np.array([rule(*index) for index in np.ndindex(B, H, L, S)], dtype=bool).reshape(B, H, L, S)


def dense(call: Any, L: int, S: int, *, B: int = 1, H: int = 1) -> np.ndarray:
    """The cells (B, H, L, S) of a converted call's mask."""
    mask = call.arguments.get("mask")
    return np.broadcast_to(np.True_ if mask is None else mask.dense(L, S), (B, H, L, S))


def draw(rng: np.random.Generator, L: int, S: int, *, B: int = 2, H: int = 4, Hk: int = 2) -> tuple[np.ndarray, ...]:
    """Query, key and value of small sizes, E != Ev."""
    shapes = (B, H, L, 5), (B, Hk, S, 5), (B, Hk, S, 3)
    q, k, v = (rng.standard_normal(shape) for shape in shapes)
    return q, k, v
