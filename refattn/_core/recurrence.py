"""What a step of the gated and delta recurrences does to their state.

S_t = diag(alpha_t) S_(t-1) + b_t (a_t^T S_(t-1)) + w_t v_t^T,    alpha_t = exp(g_t)
"""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import Array, Namespace


class Steps(NamedTuple):
    """What each step does to the state: decays g (..., L, 1 or E), reads a and writes b, w (..., L, E).

    Where a rule reads nothing of the state, a and b are None.
    """

    g: Array
    w: Array
    a: Array | None = None
    b: Array | None = None

    def at(self, i: slice) -> Steps:
        """The steps of a chunk."""
        return Steps(*(None if x is None else x[..., i, :] for x in self))


def additive(K: Array, g: Array) -> Steps:
    """Linear and gated attention: S = diag(alpha) S + k v^T."""
    return Steps(g, K)


def delta(K: Array, g: Array, beta: Array, *, xp: Namespace) -> Steps:
    """The delta rule on the decayed state: S = diag(alpha) S, then S = S + beta k (v - S^T k)^T."""
    return Steps(g, beta * K, -xp.exp(g) * K, beta * K)


def low_rank(K: Array, g: Array, a: Array, b: Array) -> Steps:
    """Diagonal plus low rank: S = diag(alpha) S + b (a^T S) + k v^T, the state read before it decays."""
    return Steps(g, K, a, b)


def step(S: Array, v: Array, at: Steps, *, xp: Namespace) -> Array:
    """The state after one step."""
    new = xp.matrix_transpose(xp.exp(at.g)) * S + xp.matrix_transpose(at.w) @ v
    return new if at.a is None else new + xp.matrix_transpose(at.b) @ (at.a @ S)
