"""A tiled kernel in NumPy that can be given one mistake at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.namespaces import numpy_dtype

TILE = 32
MISTAKES = ("zeros", "anchor", "tail", "scale", "heads", "lse")


def tiled(dtype: str = "float32", mistake: str | None = None, *, stored: bool = False) -> Callable[..., Any]:
    """Causal attention, lower right, key tile by key tile: float32 inside, weights and output in `dtype`.

    With `stored` the scores and the normalised weights are kept in `dtype`, as plain framework code does.
    """
    narrow = numpy_dtype(dtype)

    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        (H, L, E), (Hk, S) = q.shape[-3:], k.shape[-3:-1]
        reads = np.arange(H) % Hk if mistake == "heads" else np.arange(H) // (H // Hk)
        k, v = k[..., reads, :, :], v[..., reads, :, :]
        scale = np.float32((0.98 if mistake == "scale" else 1.0) / math.sqrt(E))
        offset = 0 if mistake == "anchor" else S - L
        m = np.full(q.shape[:-1], -np.inf, np.float32)
        l = np.zeros_like(m)
        O = np.zeros((*m.shape, v.shape[-1]), np.float32)
        for first in range(0, S, S if stored else TILE):
            j = slice(first, S if stored else min(first + TILE, S))
            s = q @ np.swapaxes(k[..., j, :], -1, -2) * scale
            s = s.astype(narrow).astype(np.float32) if stored else s
            seen = np.arange(S)[j] <= np.arange(L)[:, None] + offset
            if mistake == "tail" and 0 < first and first + TILE > S:
                seen = seen & (np.arange(S)[j] < S - 1)
            s = np.where(seen, s, -np.inf).astype(np.float32)
            top = np.maximum(m, s.max(axis=-1))
            safe = np.where(top == -np.inf, 0, top)
            p, alpha = np.exp(s - safe[..., None]), np.exp(m - safe)
            l = l * alpha + p.sum(axis=-1)
            p = p / np.where(l == 0, 1, l)[..., None] if stored else p
            O = O * alpha[..., None] + p.astype(narrow).astype(np.float32) @ v[..., j, :]
            m = top
        O = O if stored else O / np.where(l == 0, 1, l)[..., None]
        with np.errstate(divide="ignore"):
            lse = m + np.log(l)
        lse = lse / np.float32(math.log(2)) if mistake == "lse" else lse
        return (0 * O if mistake == "zeros" else O).astype(narrow), lse.astype(np.float32)

    kernel.__name__ = mistake or "right"
    return kernel


def output_of(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel without its log-sum-exp."""
    return lambda *arrays: kernel(*arrays)[0]


def normal(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def drawn(
    batch: int = 2,
    heads: tuple[int, int] = (4, 2),
    lengths: tuple[int, int] = (40, 70),
    dims: tuple[int, int] = (16, 16),
    dtype: str = "float32",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, key and value of standard normal numbers."""
    (H, Hk), (L, S), (E, Ev) = heads, lengths, dims
    shapes = ((batch, H, L, E), (batch, Hk, S, E), (batch, Hk, S, Ev))
    return tuple(normal(shape, dtype, seed) for seed, shape in enumerate(shapes))
