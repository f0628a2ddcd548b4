"""Tiled kernels in NumPy for packed and for paged operands, causal and lower right, with one mistake at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

TILE = 32
RAGGED = ("offset", "padded", "empty")
PAGED = ("offset", "page", "tail", "empty", "zero times tail", "table")

Read = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def one(q: np.ndarray, read: Read, S: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Output (L, H, Ev) and log-sum-exp (L, H) of one sequence's q (L, H, E); read(first, stop) gives keys, values."""
    L, H, E = q.shape
    m = np.full((L, H), -np.inf, np.float32)
    l = np.zeros((L, H), np.float32)
    O = np.zeros((L, H, 1), np.float32)
    for first in range(0, S, TILE):
        stop = min(first + TILE, S)
        k, v = read(first, stop)
        k, v = (np.repeat(x.astype(np.float32), H // x.shape[1], axis=1) for x in (k, v))
        s = np.einsum("ihd,jhd->ihj", q.astype(np.float32), k) * np.float32(1 / math.sqrt(E))
        seen = np.arange(first, stop) <= np.arange(L)[:, None, None] + offset
        s = np.where(seen, s, -np.inf).astype(np.float32)
        top = np.maximum(m, s.max(axis=-1))
        safe = np.where(top == -np.inf, 0, top)
        p, alpha = np.exp(s - safe[..., None]), np.exp(m - safe)
        l = l * alpha + p.sum(axis=-1)
        O = O * alpha[..., None] + np.einsum("ihj,jhd->ihd", p, v)
        m = top
    with np.errstate(divide="ignore"):
        return O / np.where(l == 0, 1, l)[..., None], m + np.log(l)


def ragged(mistake: str | None = None) -> Callable[..., Any]:
    """Packed queries, keys and values, as FlashAttention's varlen function takes them; log-sum-exp (H, T)."""

    def kernel(
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        cu_seqlens_q: np.ndarray,
        cu_seqlens_k: np.ndarray,
        **_: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        output, lse = leftover(query, value)
        L, S = np.diff(cu_seqlens_q), np.diff(cu_seqlens_k)
        for b, (l, s) in enumerate(zip(L, S, strict=True)):
            if mistake == "empty" and s == 0:
                continue
            at = slice(cu_seqlens_q[b], cu_seqlens_q[b] + l)
            k, v = (x[cu_seqlens_k[b] :][:s] for x in (key, value))
            rows = np.minimum(b * L.max() + np.arange(l), len(query) - 1) if mistake == "padded" else at
            offset = S.max() - L.max() if mistake == "offset" else s - l
            output[at], lse[:, at] = turned(one(query[rows], lambda i, j, k=k, v=v: (k[i:j], v[i:j]), s, offset))
        return output, lse

    kernel.__name__ = f"ragged_{mistake or 'right'}"
    return kernel


def paged(mistake: str | None = None, page_size: int = 16, order: str = "nhd") -> Callable[..., Any]:
    """Keys and values in pages; queries packed where there are offsets, as vLLM calls it, else (B, L, H, E)."""

    def kernel(
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        block_table: np.ndarray,
        seqused_k: np.ndarray,
        cu_seqlens_q: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if cu_seqlens_q is None:
            B, L = query.shape[:2]
            packed, lse = kernel(
                query.reshape(-1, *query.shape[2:]), key, value, block_table, seqused_k, np.arange(B + 1) * L
            )
            return packed.reshape(B, L, *packed.shape[1:]), np.moveaxis(lse.reshape(-1, B, L), 0, 1)
        pools = [np.swapaxes(x, 1, 2) if order == "hnd" else x for x in (key, value)]
        assert pools[0].shape[1] == page_size
        output, lse = leftover(query, pools[1])
        L = np.diff(cu_seqlens_q)
        for b, (l, s) in enumerate(zip(L, seqused_k, strict=True)):
            if mistake == "empty" and s == 0:
                continue
            at = slice(cu_seqlens_q[b], cu_seqlens_q[b] + l)
            stop = -(-s // page_size) * page_size if mistake == "tail" else s
            offset = seqused_k.max() - L.max() if mistake == "offset" else stop - l

            def read(first: int, last: int, b: int = b, s: int = s) -> tuple[np.ndarray, np.ndarray]:
                places = np.arange(first, last)
                pages = places // page_size
                twice = np.minimum(first // page_size, pages) if mistake == "page" else pages
                entries = b * block_table.shape[1] + np.stack([pages, twice])
                if mistake == "behind":
                    entries += pages == (s - 1) // page_size
                ids = [twice] * 2 if mistake == "table" else block_table.reshape(-1)[entries % block_table.size]
                k, v = (pool[n, places % page_size] for pool, n in zip(pools, ids, strict=True))
                if mistake == "zero times tail" and last == s:
                    tail = pools[1][ids[1][-1], places[-1] % page_size + 1 :]
                    v[-1] += 0 * tail.sum(axis=0)
                return k, v

            output[at], lse[:, at] = turned(one(query[at], read, stop, offset))
        return output, lse

    kernel.__name__ = f"paged_{(mistake or 'right').replace(' ', '_')}"
    return kernel


def leftover(query: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memory that nobody wrote to: output (T, H, Ev) and log-sum-exp (H, T)."""
    T, H = query.shape[:2]
    return np.full((T, H, value.shape[-1]), 0.5, np.float32), np.full((H, T), 0.5, np.float32)


def turned(result: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The log-sum-exp with its heads first."""
    return result[0], result[1].T
