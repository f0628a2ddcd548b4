"""The softmax state (m, l, O) of a set of keys: running maximum, sum of exponentials, unnormalised output.

Two states merge into the state of the union of their keys; the operation is associative and commutative, and the
empty state is its neutral element (Milakov & Gimelshein 2018; FlashAttention-2, Dao 2023, section 3.1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from refattn._core.arrays import Array, Namespace, device, known

# A score of a visible key is raised to this number if it is -inf, so that only masked cells are -inf: a row is empty
# when its mask says so, not when its scores overflow.
LOWEST = float(np.finfo(np.float64).min)
ABOVE_LOWEST = float(np.nextafter(LOWEST, 0.0))


class State(NamedTuple):
    """Softmax state of the keys seen so far: ``m`` and ``l`` (..., L, 1), ``O`` (..., L, Ev)."""

    m: Array
    l: Array
    O: Array


def empty_state(Q_i: Array, Ev: int, *, xp: Namespace) -> State:
    """State of no keys, for the queries Q_i (..., L, E)."""
    rows, dev = tuple(Q_i.shape[:-1]), device(Q_i)
    return State(
        m=xp.full((*rows, 1), -math.inf, dtype=xp.float64, device=dev),
        l=xp.zeros((*rows, 1), dtype=xp.float64, device=dev),
        O=xp.zeros((*rows, Ev), dtype=xp.float64, device=dev),
    )


def update(state: State, S: Array, V: Array, Z: Array | None = None, *, xp: Namespace) -> State:
    """State after the keys with scores S (..., L, k), -inf where masked, and values V (..., k, Ev).

    Z (..., L, k) are dropout's factors on the weights that the values get; a value with the factor 0 is not read.
    """
    if 0 in S.shape:
        return state
    m = xp.maximum(state.m, xp.max(S, axis=-1, keepdims=True))
    P = xp.exp(S - _finite(m, xp))
    alpha = xp.exp(state.m - _finite(m, xp))
    l = state.l * alpha + xp.sum(P, axis=-1, keepdims=True)
    return State(m, l, _rescaled(state.O, alpha, xp) + _weighted_sum(P, S, Z, V, xp))


def merge(a: State, b: State, *, xp: Namespace) -> State:
    """State of the keys of both states."""
    m = xp.maximum(a.m, b.m)
    alpha, beta = xp.exp(a.m - _finite(m, xp)), xp.exp(b.m - _finite(m, xp))
    return State(m, a.l * alpha + b.l * beta, _rescaled(a.O, alpha, xp) + _rescaled(b.O, beta, xp))


def normalised(state: State, *, xp: Namespace) -> State:
    """The same state with l = 1: its m is the log-sum-exp, its O the output; as they were where there is no weight."""
    m, l, O = state
    some = (m > LOWEST) & (m < math.inf)
    lse = xp.where(some, m + xp.log(xp.where(some, l, 1.0)), m)
    return State(lse, xp.where(some, 1.0, l), O / xp.where(some, l, 1.0))


def finish(state: State, sink: Array | None, *, xp: Namespace) -> tuple[Array, Array]:
    """Output (..., L, Ev) and log-sum-exp (..., L) of a state; a sink takes weight once and carries no value."""
    if sink is not None:
        none = State(sink, xp.astype(sink > -math.inf, xp.float64), xp.zeros_like(sink))
        state = merge(state, none, xp=xp)
    m, l, O = state
    empty = m == -math.inf
    O = xp.where(empty, 0.0, O / xp.where(empty, 1.0, l))
    # Every visible score was -inf, and the weights are 0/0; or one was inf, and they are inf/inf; or one was NaN.
    O = xp.where((m == LOWEST) | ~(m < math.inf), math.nan, O)
    lse = xp.where(xp.isinf(m), m, m + xp.log(xp.where(empty, 1.0, l)))
    lse = xp.where(empty | (m == LOWEST), -math.inf, lse)  # of an empty row, a constant that no derivative passes
    return O, xp.squeeze(lse, axis=-1)


def weights(S: Array, lse: Array, *, xp: Namespace) -> Array:
    """Weights (..., L, S) of the scores S, -inf where masked, before dropout; the sink's share is left out."""
    lse = xp.expand_dims(lse, axis=-1)
    P = xp.exp(S - xp.where(lse == -math.inf, 0.0, lse))
    P = xp.where(lse == -math.inf, math.nan, P)  # a row without weight though it sees keys: 0/0
    return xp.where(S == -math.inf, 0.0, P)


def seen_product(A: Array, seen: Array, X: Array, *, xp: Namespace) -> Array:
    """A X, in which a row of X that is not seen takes no part; one that is seen and not finite makes the sum NaN."""
    finite = xp.isfinite(X)
    if known(xp.all(finite)):
        return xp.matmul(A, X)
    lost = xp.matmul(xp.astype(seen, xp.float64), xp.astype(~finite, xp.float64)) > 0
    return xp.where(lost, math.nan, xp.matmul(A, xp.where(finite, X, 0.0)))


def sink_gradient(sink: Array, lse: Array, D: Array, *, xp: Namespace) -> Array:
    """The gradient of the sink in each row: its weight times -D, for its value is 0 and so is dP."""
    return xp.where(sink == -math.inf, 0.0, -xp.exp(sink - xp.expand_dims(lse, axis=-1)) * D)


def merge_normalised(outputs: list[Array], lses: list[Array], *, xp: Namespace) -> tuple[Array, Array]:
    """Output and log-sum-exp over the union of key sets that were each normalised alone.

    A part with lse = -inf holds no key: its output is not read, whatever a kernel left there.
    """
    parts = []
    for output, lse in zip(outputs, lses, strict=True):
        m = xp.expand_dims(xp.where(lse == LOWEST, ABOVE_LOWEST, lse), axis=-1)  # a number, not the mark of a -inf
        seen = ~(m == -math.inf)
        parts.append(State(m, xp.astype(seen, xp.float64), xp.where(seen, output, 0.0)))
    total = parts[0]
    for part in parts[1:]:
        total = merge(total, part, xp=xp)
    return finish(total, None, xp=xp)


def _finite(m: Array, xp: Namespace) -> Array:
    """The maximum to subtract: 0 for rows without keys, whose exponentials are then exp(-inf) = 0."""
    return xp.where(m == -math.inf, 0.0, m)


def _rescaled(O: Array, alpha: Array, xp: Namespace) -> Array:
    """O * alpha, where an infinite or NaN value stays what it is: a real weight is never 0, alpha may round to 0."""
    return xp.where(xp.isfinite(O), O * alpha, O)


def _weighted_sum(P: Array, S: Array, Z: Array | None, V: Array, xp: Namespace) -> Array:
    """P V, or (P * Z) V, in which a masked or dropped key's value takes no part even if it is infinite or NaN."""
    P = P if Z is None else P * Z
    finite = xp.isfinite(V)
    if known(xp.all(finite)):
        return xp.matmul(P, V)
    seen = S != -math.inf if Z is None else (S != -math.inf) & (Z != 0)
    seen = xp.astype(seen, xp.float64)
    up = xp.matmul(seen, xp.astype(V == math.inf, xp.float64)) > 0
    down = xp.matmul(seen, xp.astype(V == -math.inf, xp.float64)) > 0
    lost = (xp.matmul(seen, xp.astype(xp.isnan(V), xp.float64)) > 0) | (up & down)
    O = xp.matmul(P, xp.where(finite, V, 0.0))
    O = xp.where(up & ~xp.isnan(O), math.inf, xp.where(down & ~xp.isnan(O), -math.inf, O))
    return xp.where(lost, math.nan, O)
