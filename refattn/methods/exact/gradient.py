"""The gradient of attention: Dao et al., "FlashAttention", 2022, arXiv:2205.14135, appendix B, written out untiled."""

from __future__ import annotations

import math
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, known
from refattn._core.score import Score
from refattn._core.state import weights


class Gradients(NamedTuple):
    """Gradients of Q, K and V, of the biased scores, and of the sink in each row."""

    dQ: Array
    dK: Array
    dV: Array
    dS: Array
    dsink: Array | None


def attention_gradient(
    Q: Array, K: Array, V: Array, O: Array, lse: Array, dO: Array, dlse: Array | None, *, score: Score, xp: Namespace
) -> Gradients:
    """Gradients of the scalar sum(dO * O) + sum(dlse * lse), from what the forward pass returned."""
    i, j = slice(0, Q.shape[-2]), slice(0, K.shape[-2])
    S, Z = score(Q, K, i, j, xp=xp), score.kept(Q, i, j, xp=xp)
    P = weights(S, lse, xp=xp)
    seen = S != -math.inf
    dO = xp.where(xp.any(seen, axis=-1, keepdims=True), dO, 0.0)  # the output of an empty row is constant

    kept = seen if Z is None else seen & (Z != 0)
    dV = _product(xp.matrix_transpose(P if Z is None else P * Z), xp.matrix_transpose(kept), dO, xp)
    dP = xp.matmul(dO, xp.matrix_transpose(V))
    dP = dP if Z is None else xp.where(Z != 0, dP * Z, 0.0)
    D = xp.sum(dO * O, axis=-1, keepdims=True)
    D = D if dlse is None else D - xp.expand_dims(dlse, axis=-1)
    dS = xp.where(seen, P * (dP - D), 0.0)

    raw = score.scale * score.before_softcap(dS, Q, K, xp=xp)
    dQ = _product(raw, seen, K, xp)
    dK = _product(xp.matrix_transpose(raw), xp.matrix_transpose(seen), Q, xp)
    return Gradients(dQ, dK, dV, dS, None if score.sink is None else _sink_gradient(score.sink, lse, D, xp))


def _sink_gradient(sink: Array, lse: Array, D: Array, xp: Namespace) -> Array:
    """The sink's weight times -D: its value is 0, so that dP = 0."""
    return xp.where(sink == -math.inf, 0.0, -xp.exp(sink - xp.expand_dims(lse, axis=-1)) * D)


def _product(A: Array, seen: Array, X: Array, xp: Namespace) -> Array:
    """A X, in which a row of X that is not seen takes no part; one that is seen and not finite makes the sum NaN."""
    finite = xp.isfinite(X)
    if known(xp.all(finite)):
        return xp.matmul(A, X)
    lost = xp.matmul(xp.astype(seen, xp.float64), xp.astype(~finite, xp.float64)) > 0
    return xp.where(lost, math.nan, xp.matmul(A, xp.where(finite, X, 0.0)))
