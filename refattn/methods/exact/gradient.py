"""The gradient of attention: Dao et al., "FlashAttention", 2022, arXiv:2205.14135, appendix B, written out untiled."""

from __future__ import annotations

import math
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace
from refattn._core.score import Score
from refattn._core.state import seen_product, sink_gradient, weights


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
    dV = seen_product(xp.matrix_transpose(P if Z is None else P * Z), xp.matrix_transpose(kept), dO, xp=xp)
    dP = xp.matmul(dO, xp.matrix_transpose(V))
    dP = dP if Z is None else xp.where(Z != 0, dP * Z, 0.0)
    D = xp.sum(dO * O, axis=-1, keepdims=True)
    D = D if dlse is None else D - xp.expand_dims(dlse, axis=-1)
    dS = xp.where(seen, P * (dP - D), 0.0)

    raw = score.scale * score.before_softcap(dS, Q, K, xp=xp)
    dQ = seen_product(raw, seen, K, xp=xp)
    dK = seen_product(xp.matrix_transpose(raw), xp.matrix_transpose(seen), Q, xp=xp)
    return Gradients(dQ, dK, dV, dS, None if score.sink is None else sink_gradient(score.sink, lse, D, xp=xp))
