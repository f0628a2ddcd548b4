"""The gradient of random-feature attention: back through its sums, and through the features.

With N_i and Z_i numerator and normaliser of a query, o_i = N_i / Z_i and D_i = do_i.o_i, a pair of a query and a key
that it sees gives (do_i.v_j - D_i) / Z_i to the product of their features, for each feature.
"""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import Array, Namespace
from refattn._core.random_features import Features, Memory, empty_memory, remember


class Pulls(NamedTuple):
    """Gradients by F of queries (..., L, M) and keys (..., S, M), and by the values; that by G is F times that by F."""

    Q: Array
    K: Array
    V: Array


class Asked(NamedTuple):
    """What queries leave for the keys that they see: F exp(G - log Z), and (do, D) over what of Z is no exponential."""

    features: Features
    pulls: Array


def bidirectional(Q: Features, K: Features, V: Array, dO: Array, *, xp: Namespace) -> Pulls:
    """Every query with every key; there are some of both."""
    dQ, asked = of_queries(Q, remember(empty_memory(K, V, xp=xp), K, V, xp=xp), dO, xp=xp)
    empty = empty_memory(asked.features, asked.pulls, xp=xp)
    return Pulls(dQ, *of_keys(K, V, remember(empty, *asked, xp=xp), xp=xp))


def unidirectional(Q: Features, K: Features, V: Array, dO: Array, *, xp: Namespace) -> Pulls:
    """Each query with the keys up to its own, of which there are some: forward for queries, backward for keys."""
    rows = [slice(i, i + 1) for i in range(V.shape[-2])]
    memory, found = empty_memory(K, V, xp=xp), []
    for i in rows:
        memory = remember(memory, at(K, i), V[..., i, :], xp=xp)
        found.append(of_queries(at(Q, i), memory, dO[..., i, :], xp=xp))
    questions, parts = empty_memory(found[0][1].features, found[0][1].pulls, xp=xp), []
    for i, (_, asked) in zip(reversed(rows), reversed(found), strict=True):
        questions = remember(questions, *asked, xp=xp)
        parts.append(of_keys(at(K, i), V[..., i, :], questions, xp=xp))
    dK, dV = (xp.concat([part[n] for part in reversed(parts)], axis=-2) for n in (0, 1))
    return Pulls(xp.concat([dq for dq, _ in found], axis=-2), dK, dV)


def at(X: Features, i: slice) -> Features:
    """Features of some rows."""
    return Features(X.F[..., i, :], X.G[..., i, :])


def of_queries(Q: Features, memory: Memory, dO: Array, *, xp: Namespace) -> tuple[Array, Asked]:
    """The gradient by F of queries that see all of a memory, and what they leave for its keys."""
    G = Q.G + memory.c
    top = xp.max(G, axis=-1, keepdims=True)
    w = xp.exp(G - top)
    Z = xp.matmul(Q.F * w, memory.Z)
    D = xp.sum(dO * xp.matmul(Q.F * w, memory.S), axis=-1, keepdims=True) / Z
    dF = w * (xp.matmul(dO, xp.matrix_transpose(memory.S)) - D * xp.matrix_transpose(memory.Z)) / Z
    return dF, Asked(Features(Q.F, Q.G - top), xp.concat([dO, D], axis=-1) / Z)


def of_keys(K: Features, V: Array, questions: Memory, *, xp: Namespace) -> tuple[Array, Array]:
    """The gradients by F of keys, and by their values, summed over the heads that read them."""
    w = xp.exp(K.G + questions.c)
    dO, D = questions.S[..., :-1], questions.S[..., -1:]
    dF = w * (xp.matmul(V, xp.matrix_transpose(dO)) - xp.matrix_transpose(D))
    dF, dV = (xp.sum(x, axis=-3, keepdims=True) for x in (dF, xp.matmul(K.F * w, dO)))
    return dF, dV


def positive(X: Array, W: Array, phi: Features, dF: Array, *, xp: Namespace) -> Array:
    """Through exp(W x - |x|^2 / 2)."""
    return xp.matmul(dF, W) - xp.sum(dF, axis=-1, keepdims=True) * X


def hyperbolic(X: Array, W: Array, phi: Features, dF: Array, *, xp: Namespace) -> Array:
    """Through exp(W x - |x|^2 / 2) and exp(-W x - |x|^2 / 2)."""
    M = W.shape[0]
    return xp.matmul(dF[..., :M] - dF[..., M:], W) - xp.sum(dF, axis=-1, keepdims=True) * X


def trigonometric(X: Array, W: Array, phi: Features, dF: Array, *, xp: Namespace) -> Array:
    """Through exp(|x|^2 / 2) (cos W x, sin W x)."""
    M = W.shape[0]
    cos, sin = phi.F[..., :M], phi.F[..., M:]
    dU = cos * dF[..., M:] - sin * dF[..., :M]
    return xp.matmul(dU, W) + xp.sum(phi.F * dF, axis=-1, keepdims=True) * X


def relu(X: Array, W: Array, phi: Features, dF: Array, *, xp: Namespace) -> Array:
    """Through max(W x, 0); at 0 the gradient is 0."""
    return xp.matmul(xp.where(xp.matmul(X, xp.matrix_transpose(W)) > 0, dF, 0.0), W)
