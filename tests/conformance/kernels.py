"""A tiled kernel in NumPy that keeps every law, and can be given one mistake at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

TILE = 64
MISTAKES = (
    "scale", "lse", "tail", "empty", "leak", "nan", "place", "raw", "heads", "batch", "mixed", "clipped", "strides",
    "state", "scribble",
)  # fmt: skip


def tiled(mistake: str | None = None) -> Callable[..., Any]:
    """Attention in float32, key tile by key tile; causal where L = S and it is asked for, or under a mask."""
    calls = [0]

    def kernel(
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        *,
        mask: np.ndarray | None = None,
        is_causal: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        calls[0] += 1
        if mistake == "scribble":
            query *= np.float32(0.5)
        if mistake == "strides":
            query, key, value = (packed(x) for x in (query, key, value))
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        if mistake == "batch":
            k = np.repeat(k[:1], len(k), axis=0)
        if mistake == "clipped":
            v = np.clip(v, -1, 1)
        (B, H, L, E), (Hk, S) = q.shape, k.shape[1:3]
        reads = np.arange(H) % Hk if mistake == "heads" else np.arange(H) // (H // Hk)
        k, v = k[:, reads], v[:, reads]
        scale = np.float32((0.98 if mistake == "scale" else 1.0) / math.sqrt(E))
        keep = np.ones((B, H, L, S), bool) if mask is None else mask
        if is_causal:
            keep = keep & np.tri(L, S, dtype=bool)
        if mistake == "tail" and S > TILE and S % TILE == 1:
            keep = keep & (np.arange(S) < S - 1)
        m = np.full((B, H, L), -np.inf, np.float32)
        l, O = np.zeros_like(m), np.zeros((B, H, L, v.shape[-1]), np.float32)
        for first in range(0, S, TILE):
            j = slice(first, min(first + TILE, S))
            with np.errstate(invalid="ignore"):
                s = q @ np.swapaxes(k[:, :, j], -1, -2) * scale
            if mistake == "place":
                s = s + np.float32(1e-2) * np.arange(S, dtype=np.float32)[j]
            s = np.where(keep[..., j], s, np.float32(-12.0 if mistake == "leak" else -np.inf))
            if mistake == "raw":
                s = np.minimum(s, np.float32(80))
            top = np.zeros_like(m) if mistake == "raw" else np.maximum(m, s.max(axis=-1))
            safe = np.where(np.isneginf(top), np.float32(0), top)
            with np.errstate(invalid="ignore"):
                p, alpha = np.exp(s - safe[..., None]), np.exp(m - safe)
                l = l * alpha + p.sum(axis=-1)
                O = O * alpha[..., None] + (p @ v[:, :, j] if mistake == "nan" else product(p, v[:, :, j]))
            m = top
        with np.errstate(divide="ignore", invalid="ignore"):
            lse = m + np.log(l)
        if mistake == "empty":
            none = (l == 0)[..., None]
            O, l = np.where(none, v.mean(axis=-2, keepdims=True), O), np.where(l == 0, np.float32(1), l)
        O = O / np.where(l == 0, np.float32(1), l)[..., None]
        if mistake == "mixed":
            O = O + 0 * v.sum(axis=(0, 2), keepdims=True)
        if mistake == "state":
            O = O * np.float32(1 + 1e-6 * calls[0])
        lse = lse / np.float32(math.log(2)) if mistake == "lse" else lse
        return O.astype(np.float32), lse.astype(np.float32)

    kernel.__name__ = f"tiled_{mistake or 'right'}"
    return kernel


def product(p: np.ndarray, v: np.ndarray) -> np.ndarray:
    """p @ v in which a weight of 0 keeps out NaN and infinity."""
    odd = ~np.isfinite(v)
    if not odd.any():
        return p @ v
    reached = (p != 0).astype(np.float32) @ odd.astype(np.float32) > 0
    return np.where(reached, np.float32(np.nan), p @ np.where(odd, np.float32(0), v))


def packed(x: np.ndarray) -> np.ndarray:
    """The numbers that lie where those of a contiguous array of this shape would."""
    whole = x
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return whole.reshape(-1)[: x.size].reshape(x.shape)


def only_output(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel without its log-sum-exp."""

    def output(*operands: np.ndarray, **named: Any) -> np.ndarray:
        return kernel(*operands, **named)[0]

    output.__name__ = kernel.__name__
    return output
