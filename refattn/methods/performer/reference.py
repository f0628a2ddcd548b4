"""FAVOR+: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794, section 2.

Features are kept as F exp(G), so that no exponential overflows: what queries and keys are divided by cancels, exactly,
between numerator and normaliser. W is (M, E), X (..., L, E) and carries the root of the scale already.
"""

from __future__ import annotations

from refattn._core.arrays import Array, Namespace
from refattn._core.random_features import Features, Memory, empty_memory, remember
from refattn._core.tiles import tiles


def positive(X: Array, W: Array, *, xp: Namespace) -> Features:
    """Lemma 1: exp(W x - |x|^2 / 2)."""
    G = projected(X, W, xp) - half_squares(X, xp)
    return Features(xp.ones_like(G), G)


def stabilised(X: Array, W: Array, *, eps: float, axes: tuple[int, ...], xp: Namespace) -> Features:
    """The authors' program: positive features divided by exp of the largest W x over some axes, then + eps."""
    U = projected(X, W, xp)
    F = xp.exp(U - half_squares(X, xp) - xp.max(U, axis=axes, keepdims=True)) + eps
    return Features(F, xp.zeros_like(F[..., :1]))


def hyperbolic(X: Array, W: Array, *, xp: Namespace) -> Features:
    """Lemma 1, the second form: exp(W x - |x|^2 / 2) and exp(-W x - |x|^2 / 2)."""
    U = projected(X, W, xp)
    G = xp.concat([U, -U], axis=-1) - half_squares(X, xp)
    return Features(xp.ones_like(G), G)


def trigonometric(X: Array, W: Array, *, xp: Namespace) -> Features:
    """The classical features: exp(|x|^2 / 2) (cos W x, sin W x)."""
    U = projected(X, W, xp)
    return Features(xp.concat([xp.cos(U), xp.sin(U)], axis=-1), half_squares(X, xp))


def relu(X: Array, W: Array, *, eps: float, xp: Namespace) -> Features:
    """Generalised attention with f = ReLU: max(W x, 0) + eps."""
    F = xp.clip(projected(X, W, xp), min=0.0) + eps
    return Features(F, xp.zeros_like(F[..., :1]))


def projected(X: Array, W: Array, xp: Namespace) -> Array:
    """W x for each x."""
    return xp.matmul(X, xp.matrix_transpose(W))


def half_squares(X: Array, xp: Namespace) -> Array:
    """|x|^2 / 2 (..., L, 1)."""
    return xp.sum(X * X, axis=-1, keepdims=True) / 2


def recall(Q: Features, memory: Memory, *, xp: Namespace) -> Array:
    """Outputs of queries that see all of a memory."""
    G = Q.G + memory.c
    phi_Q = Q.F * xp.exp(G - xp.max(G, axis=-1, keepdims=True))
    return xp.matmul(phi_Q, memory.S) / xp.matmul(phi_Q, memory.Z)  # D^-1 (Q' ((K')^T V))


def bidirectional(Q: Features, K: Features, V: Array, *, xp: Namespace) -> Array:
    """Every query with every key, of which there may be none."""
    if V.shape[-2] == 0:
        return xp.matmul(xp.zeros_like(xp.matmul(Q.F, xp.matrix_transpose(K.F))), V)
    return recall(Q, remember(empty_memory(K, V, xp=xp), K, V, xp=xp), xp=xp)


def unidirectional(Q: Features, K: Features, V: Array, *, xp: Namespace) -> Array:
    """Each query with the keys up to its own, by prefix sums."""
    # Deviates: one key at a time and divided by a running maximum, for which no later key matters.
    if V.shape[-2] == 0:
        return bidirectional(Q, K, V, xp=xp)
    memory, O = empty_memory(K, V, xp=xp), []
    for i in tiles(V.shape[-2], 1):
        memory = remember(memory, Features(K.F[..., i, :], K.G[..., i, :]), V[..., i, :], xp=xp)
        O.append(recall(Features(Q.F[..., i, :], Q.G[..., i, :]), memory, xp=xp))
    return xp.concat(O, axis=-2)
