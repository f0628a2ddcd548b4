"""The gated and delta recurrences, step by step and by chunks.

    S_t = diag(alpha_t) S_(t-1) + b_t (a_t^T S_(t-1)) + w_t v_t^T,    o_t = S_t^T q_t,    alpha_t = exp(g_t)

Linear attention: Katharopoulos et al. 2020, arXiv:2006.16236. Chunks and the delta rule in WY form: Yang et al. 2024,
arXiv:2406.06484, and with decay arXiv:2412.06464. Sums of decays over segments: Dao & Gu 2024, arXiv:2405.21060.
"""

from __future__ import annotations

import math

from refattn._core.arrays import Array, Namespace, device
from refattn._core.recurrence import Steps, step
from refattn._core.tiles import tiles


def recurrent(Q: Array, V: Array, steps: Steps, S: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Step by step: outputs (..., L, Ev), and the state (..., E, Ev) after the last step."""
    O = [V[..., :0, :]]
    for t in tiles(Q.shape[-2], 1):
        S = step(S, V[..., t, :], steps.at(t), xp=xp)
        O.append(Q[..., t, :] @ S)
    return xp.concat(O, axis=-2), S


def chunked(Q: Array, V: Array, steps: Steps, S: Array, *, chunk: int, xp: Namespace) -> tuple[Array, Array]:
    """By chunks: within one all steps together, from one to the next through the state."""
    O = [V[..., :0, :]]
    for i in tiles(Q.shape[-2], chunk):
        O_i, S = together(Q[..., i, :], V[..., i, :], steps.at(i), S, xp=xp)
        O.append(O_i)
    return xp.concat(O, axis=-2), S


def together(Q: Array, V: Array, steps: Steps, S: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """All steps of a chunk, from the state before it.

    With D_ij the decay of what step j wrote until step i, and u_i = S_(i-1)^T a_i what step i reads,

        S_i = D_i0 S_0 + sum_(j <= i) D_ij (b_j u_j^T + w_j v_j^T),

    which put into u_i is a unit lower triangular system for all u.
    """
    D = decays(steps.g, xp=xp)
    since = xp.exp(xp.cumulative_sum(steps.g, axis=-2))  # D_i0
    end = D[..., -1, :, :]
    O = (Q * since) @ S + pairs(Q, steps.w, D, xp=xp) @ V
    new = xp.matrix_transpose(since[..., -1:, :]) * S + xp.matrix_transpose(end * steps.w) @ V
    if steps.a is None:
        return O, new
    before, D_before = shifted(since, 1.0, -2, xp=xp), shifted(D, 0.0, -3, xp=xp)  # the state that step i reads
    T = pairs(steps.a, steps.b, D_before, xp=xp)
    U = (steps.a * before) @ S + pairs(steps.a, steps.w, D_before, xp=xp) @ V
    U = substituted(T, U, xp=xp)
    return O + pairs(Q, steps.b, D, xp=xp) @ U, new + xp.matrix_transpose(end * steps.b) @ U


def substituted(T: Array, R: Array, *, xp: Namespace) -> Array:
    """The solution of X = R + T X for strictly lower triangular T, by forward substitution, in halves.

    A solver that exchanges rows would let what comes later into the rounding of what comes before.
    """
    C = R.shape[-2]
    if C < 2:
        return R
    i, j = slice(0, C // 2), slice(C // 2, C)
    X = substituted(T[..., i, i], R[..., i, :], xp=xp)
    return xp.concat([X, substituted(T[..., j, j], R[..., j, :] + T[..., j, i] @ X, xp=xp)], axis=-2)


def decays(g: Array, *, xp: Namespace) -> Array:
    """D (..., C, C, 1 or E) of a chunk: exp of the sum of g over the steps j < l <= i, and 0 for j > i.

    Each sum is taken for itself: a difference of sums from the start of the chunk would lose what a strong decay in
    front of it takes of its digits.
    """
    C = g.shape[-2]
    l, j = xp.arange(C, device=device(g))[:, None, None], xp.arange(C, device=device(g))[None, :, None]
    sums = xp.cumulative_sum(xp.where(l > j, g[..., :, None, :], 0.0), axis=-3)
    return xp.exp(xp.where(l >= j, sums, -math.inf))


def pairs(X: Array, Y: Array, D: Array, *, xp: Namespace) -> Array:
    """Matrix (..., C, C) of the sums over features of x_i D_ij y_j."""
    if D.shape[-1] == 1:
        return (X @ xp.matrix_transpose(Y)) * D[..., 0]
    return xp.sum(X[..., :, None, :] * D * Y[..., None, :, :], axis=-1)


def shifted(x: Array, first: float, axis: int, *, xp: Namespace) -> Array:
    """The rows of the step before; in front of the first step, `first`."""
    after = (slice(None),) * (-axis - 1)
    return xp.concat([xp.full_like(x[..., :1, *after], first), x[..., :-1, *after]], axis=axis)
