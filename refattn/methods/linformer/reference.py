"""Low-rank attention, on Q (..., L, E), K (..., S, E), V (..., S, Ev).

Linformer: Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768.
Nystromformer: Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention", AAAI 2021,
arXiv:2102.03902.
"""

from __future__ import annotations

from refattn._core.arrays import Array, Namespace, device


def linformer_attention(Q: Array, K: Array, V: Array, E: Array, F: Array, *, scale: float, xp: Namespace) -> Array:
    """Attention to R mixtures of keys and of values; E and F are (..., S, R)."""
    K_bar = xp.matmul(xp.matrix_transpose(E), K)
    P_bar = softmax(scale * xp.matmul(Q, xp.matrix_transpose(K_bar)), xp=xp)
    return xp.matmul(P_bar, xp.matmul(xp.matrix_transpose(F), V))


def nystrom_attention(
    Q: Array, K: Array, V: Array, *, landmarks: int, iterations: int, coupled: bool, scale: float, xp: Namespace
) -> Array:
    """The softmax matrix by its rows and columns at landmarks, which are means of segments."""
    Q_tilde, K_tilde = means(Q, landmarks, xp=xp), means(K, landmarks, xp=xp)
    F = softmax(scale * xp.matmul(Q, xp.matrix_transpose(K_tilde)), xp=xp)
    A = softmax(scale * xp.matmul(Q_tilde, xp.matrix_transpose(K_tilde)), xp=xp)
    B = softmax(scale * xp.matmul(Q_tilde, xp.matrix_transpose(K)), xp=xp)
    Z = pseudo_inverse(A, iterations=iterations, coupled=coupled, xp=xp)
    return xp.matmul(xp.matmul(F, Z), xp.matmul(B, V))


def pseudo_inverse(A: Array, *, iterations: int, coupled: bool, xp: Namespace) -> Array:
    """The paper's iteration for the pseudo-inverse of nonnegative A (..., M, M): its last step."""
    return iterates(A, iterations=iterations, coupled=coupled, xp=xp)[-1]


def iterates(A: Array, *, iterations: int, coupled: bool, xp: Namespace) -> list[Array]:
    """All steps of the iteration, the first being A^T over the product of the largest column sum and largest row sum.

    `coupled` takes these sums over all matrices together, as published programs do.
    """
    axes = None if coupled else (-1, -2)
    columns = xp.max(xp.sum(A, axis=-2, keepdims=True), axis=axes, keepdims=True)
    rows = xp.max(xp.sum(A, axis=-1, keepdims=True), axis=axes, keepdims=True)
    found, one = [xp.matrix_transpose(A) / (columns * rows)], xp.eye(A.shape[-1], dtype=A.dtype, device=device(A))
    for _ in range(iterations):
        AZ = xp.matmul(A, found[-1])
        found.append(xp.matmul(found[-1], 13 * one - xp.matmul(AZ, 15 * one - xp.matmul(AZ, 7 * one - AZ))) / 4)
    return found


def means(X: Array, M: int, *, xp: Namespace) -> Array:
    """Means of M segments of rows, as equal as whole rows let them be."""
    L = X.shape[-2]
    parts = [xp.mean(X[..., m * L // M : (m + 1) * L // M, :], axis=-2, keepdims=True) for m in range(M)]
    return xp.concat(parts, axis=-2)


def softmax(S: Array, *, xp: Namespace) -> Array:
    """Softmax of the last axis."""
    P = xp.exp(S - xp.max(S, axis=-1, keepdims=True))
    return P / xp.sum(P, axis=-1, keepdims=True)
