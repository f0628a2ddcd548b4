"""Features whose logarithms are kept apart, and their sums over keys, which no exponential makes overflow."""

from __future__ import annotations

import math
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, device


class Features(NamedTuple):
    """Features F exp(G): F (..., L, M), and G of the same shape or (..., L, 1)."""

    F: Array
    G: Array


class Memory(NamedTuple):
    """Sums over keys divided by exp(c): S (..., M, Ev), Z (..., M, 1); c (..., 1, M or 1), the largest G so far."""

    S: Array
    Z: Array
    c: Array


def empty_memory(K: Features, V: Array, *, xp: Namespace) -> Memory:
    """Memory of no keys."""
    made = {"dtype": xp.float64, "device": device(V)}
    lead, M, C = tuple(V.shape[:-2]), K.F.shape[-1], K.G.shape[-1]
    return Memory(
        xp.zeros((*lead, M, V.shape[-1]), **made),
        xp.zeros((*lead, M, 1), **made),
        xp.full((*lead, 1, C), -math.inf, **made),
    )


def remember(memory: Memory, K: Features, V: Array, *, xp: Namespace) -> Memory:
    """Memory after further keys, at least one."""
    S, Z, c_old = memory
    c = xp.maximum(c_old, xp.max(K.G, axis=-2, keepdims=True))
    old = xp.matrix_transpose(xp.exp(c_old - c))
    phi_K = xp.matrix_transpose(K.F * xp.exp(K.G - c))
    return Memory(old * S + xp.matmul(phi_K, V), old * Z + xp.sum(phi_K, axis=-1, keepdims=True), c)
