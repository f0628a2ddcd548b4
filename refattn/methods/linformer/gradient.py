"""The gradients of Linformer and of Nystrom attention, on arrays (..., Hk, G, L, n) and (..., Hk, 1, S, n)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, device

Softmax = Callable[..., Array]
Iterates = Callable[[Array], list[Array]]


class LinformerGradients(NamedTuple):
    """Gradients by query, key, value, and the projections of each batch entry and key head."""

    Q: Array
    K: Array
    V: Array
    E: Array
    F: Array


def linformer(
    Q: Array, K: Array, V: Array, E: Array, F: Array, dO: Array, *, scale: float, softmax: Softmax, xp: Namespace
) -> LinformerGradients:
    """Back through O = P V_bar, P = softmax(scale Q K_bar^T), K_bar = E^T K, V_bar = F^T V."""
    T = xp.matrix_transpose
    K_bar, V_bar = xp.matmul(T(E), K), xp.matmul(T(F), V)
    P = softmax(scale * xp.matmul(Q, T(K_bar)), xp=xp)
    dS = scale * through_softmax(P, xp.matmul(dO, T(V_bar)), xp=xp)
    dK_bar, dV_bar = shared(xp.matmul(T(dS), Q), xp=xp), shared(xp.matmul(T(P), dO), xp=xp)
    return LinformerGradients(
        xp.matmul(dS, K_bar), xp.matmul(E, dK_bar), xp.matmul(F, dV_bar), xp.matmul(K, T(dK_bar)),
        xp.matmul(V, T(dV_bar)),
    )  # fmt: skip


def nystrom(
    Q: Array, K: Array, V: Array, dO: Array, *, landmarks: int, coupled: bool, scale: float, softmax: Softmax,
    iterates: Iterates, xp: Namespace,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Back through O = F Z B V with Z the iterate of A, by query, key and value."""
    T, M = xp.matrix_transpose, landmarks
    to_Q, to_K = averages(Q, M, xp=xp), averages(K, M, xp=xp)
    Q_tilde, K_tilde = xp.matmul(to_Q, Q), xp.matmul(to_K, K)
    F, A, B = (softmax(scale * xp.matmul(q, T(k)), xp=xp) for q, k in ((Q, K_tilde), (Q_tilde, K_tilde), (Q_tilde, K)))
    steps = iterates(A)
    Z, BV = steps[-1], xp.matmul(B, V)
    dZ = xp.matmul(xp.matmul(T(F), dO), T(BV))
    dF = scale * through_softmax(F, xp.matmul(dO, T(xp.matmul(Z, BV))), xp=xp)
    dBV = xp.matmul(T(xp.matmul(F, Z)), dO)
    dB = scale * through_softmax(B, xp.matmul(dBV, T(V)), xp=xp)
    dA = scale * through_softmax(A, through_iterates(A, steps, dZ, coupled=coupled, xp=xp), xp=xp)
    dQ_tilde = xp.matmul(dA, K_tilde) + xp.matmul(dB, K)
    dK_tilde = xp.matmul(T(dF), Q) + xp.matmul(T(dA), Q_tilde)
    dQ = xp.matmul(dF, K_tilde) + xp.matmul(T(to_Q), dQ_tilde)
    dK = xp.matmul(T(dB), Q_tilde) + xp.matmul(T(to_K), dK_tilde)
    return dQ, shared(dK, xp=xp), shared(xp.matmul(T(B), dBV), xp=xp)


def through_iterates(A: Array, steps: list[Array], dZ: Array, *, coupled: bool, xp: Namespace) -> Array:
    """The gradient by A, but for constants along its rows, which the softmax before it takes away."""
    T, dA = xp.matrix_transpose, xp.zeros_like(A)
    one = xp.eye(A.shape[-1], dtype=A.dtype, device=device(A))
    for Z in reversed(steps[:-1]):
        X = xp.matmul(A, Z)
        W_7 = 7 * one - X
        W_15 = 15 * one - xp.matmul(X, W_7)
        W_13 = 13 * one - xp.matmul(X, W_15)
        d13 = xp.matmul(T(Z), dZ) / 4
        d15 = -xp.matmul(T(X), d13)
        d7 = -xp.matmul(T(X), d15)
        dX = -xp.matmul(d13, T(W_15)) - xp.matmul(d15, T(W_7)) - d7
        dZ = xp.matmul(dZ, T(W_13)) / 4 + xp.matmul(T(A), dX)
        dA = dA + xp.matmul(dX, T(Z))
    # Z_0 = A^T / (c r): c the largest column sum, which columns that are equally large share, and r a row sum, 1.
    axes, Z_0 = None if coupled else (-1, -2), steps[0]
    columns = xp.sum(A, axis=-2, keepdims=True)
    c = xp.max(columns, axis=axes, keepdims=True)
    top = xp.astype(columns == c, A.dtype)
    dc = -xp.sum(dZ * Z_0, axis=axes, keepdims=True) / (c * xp.sum(top, axis=axes, keepdims=True))
    return dA + T(dZ) / c + dc * top


def averages(X: Array, M: int, *, xp: Namespace) -> Array:
    """The matrix (M, L) that takes the means of M segments of rows."""
    L = X.shape[-2]
    at, m = xp.arange(L, device=device(X)), xp.arange(M, device=device(X))[:, None]
    inside = xp.astype((at >= m * L // M) & (at < (m + 1) * L // M), xp.float64)
    return inside / xp.sum(inside, axis=-1, keepdims=True)


def through_softmax(P: Array, dP: Array, *, xp: Namespace) -> Array:
    """Back through P = softmax(S)."""
    return P * (dP - xp.sum(P * dP, axis=-1, keepdims=True))


def shared(X: Array, *, xp: Namespace) -> Array:
    """Summed over the query heads that read one key head."""
    return xp.sum(X, axis=-3, keepdims=True)
