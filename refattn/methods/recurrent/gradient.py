"""The gradient of the recurrence: the states again, chunk by chunk, and back through the steps of each.

Back through S_t = diag(alpha_t) S_(t-1) + b_t u_t^T + w_t v_t^T with u_t = S_(t-1)^T a_t and o_t = S_t^T q_t.
"""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import Array, Namespace
from refattn._core.recurrence import Steps, step
from refattn._core.tiles import tiles


class Gradients(NamedTuple):
    """Gradients by query, value, the steps, and the initial state."""

    Q: Array
    V: Array
    steps: Steps
    S: Array


def of_delta(K: Array, g: Array, beta: Array, found: Steps, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """Gradients by key, decay and beta through a = -exp(g) k, b = w = beta k."""
    assert found.a is not None
    alpha, dw = xp.exp(g), found.w + found.b
    of_g = -alpha * K * found.a
    of_g = xp.sum(of_g, axis=-1, keepdims=True) if g.shape[-1] == 1 else of_g
    return beta * dw - alpha * found.a, found.g + of_g, xp.sum(K * dw, axis=-1, keepdims=True)


def gradients(
    Q: Array, V: Array, steps: Steps, S: Array, dO: Array, dS: Array, *, chunk: int, xp: Namespace
) -> Gradients:
    """Gradients of sum(dO O) + sum(dS S_L); between chunks one state is kept, within one all."""
    starts = []
    for i in tiles(Q.shape[-2], chunk):
        starts.append((i, S))
        for t in tiles(i.stop, 1, i.start):
            S = step(S, V[..., t, :], steps.at(t), xp=xp)
    parts = []
    for i, S_0 in reversed(starts):
        states = [S_0]
        for t in tiles(i.stop, 1, i.start):
            states.append(step(states[-1], V[..., t, :], steps.at(t), xp=xp))
        for n, t in reversed(list(enumerate(tiles(i.stop, 1, i.start)))):
            found, dS = back(Q[..., t, :], V[..., t, :], steps.at(t), states[n : n + 2], dO[..., t, :], dS, xp=xp)
            parts.append(found)
    empty = slice(0, 0)
    parts.append((Q[..., empty, :], V[..., empty, :], *steps.at(empty)))
    dQ, dV, *changed = (
        None if column[0] is None else xp.concat(column[::-1], axis=-2) for column in zip(*parts, strict=True)
    )
    return Gradients(dQ, dV, Steps(*changed), dS)


def back(
    q: Array, v: Array, at: Steps, states: list[Array], do: Array, dS: Array, *, xp: Namespace
) -> tuple[tuple[Array | None, ...], Array]:
    """Through one step: gradients by q, v, g, w, a, b, and by the state before it."""
    S_old, S_new = states
    dS = dS + xp.matrix_transpose(q) @ do
    dq, dw, dv = do @ xp.matrix_transpose(S_new), v @ xp.matrix_transpose(dS), at.w @ dS
    alpha = xp.exp(at.g)
    dg = xp.matrix_transpose(xp.sum(dS * S_old, axis=-1, keepdims=True)) * alpha
    dg = xp.sum(dg, axis=-1, keepdims=True) if at.g.shape[-1] == 1 else dg
    dS_old = xp.matrix_transpose(alpha) * dS
    if at.a is None:
        return (dq, dv, dg, dw, None, None), dS_old
    u, du = at.a @ S_old, at.b @ dS
    da, db = du @ xp.matrix_transpose(S_old), u @ xp.matrix_transpose(dS)
    return (dq, dv, dg, dw, da, db), dS_old + xp.matrix_transpose(at.a) @ du
