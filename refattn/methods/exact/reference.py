"""Scaled dot-product attention: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.2.1."""

from __future__ import annotations

import math

from refattn._core.arrays import Array, Namespace
from refattn._core.score import Score
from refattn._core.state import empty_state, finish, update


def attention(Q: Array, K: Array, V: Array, *, score: Score, xp: Namespace) -> tuple[Array, Array]:
    """Output (..., L, Ev) and log-sum-exp (..., L) of all queries at once."""
    i, j = slice(0, Q.shape[-2]), slice(0, K.shape[-2])
    S = score(Q, K, i, j, xp=xp)
    state = update(empty_state(Q, V.shape[-1], xp=xp), S, V, xp=xp)
    return finish(state, score.sink, xp=xp)  # eq. (1)


def attention_weights(Q: Array, K: Array, lse: Array, *, score: Score, xp: Namespace) -> Array:
    """Weights (..., L, S): the softmax that eq. (1) applies to the values; the sink's share is left out."""
    S = score(Q, K, slice(0, Q.shape[-2]), slice(0, K.shape[-2]), xp=xp)
    lse = xp.expand_dims(lse, axis=-1)
    P = xp.exp(S - xp.where(lse == -math.inf, 0.0, lse))
    P = xp.where(lse == -math.inf, math.nan, P)  # a row without weight though it sees keys: 0/0
    return xp.where(S == -math.inf, 0.0, P)


def attention_rows(
    Q: Array, K: Array, V: Array, *, rows: Array, score: Score, tile_k: int, xp: Namespace
) -> tuple[Array, Array]:
    """Output and log-sum-exp of the queries Q (R, E) that stand at the positions `rows`, key tile by key tile."""
    state = empty_state(Q, V.shape[-1], xp=xp)
    for j in score.tiles(rows, tile_k):
        state = update(state, score(Q, K[..., j, :], rows, j, xp=xp), V[..., j, :], xp=xp)
    return finish(state, score.sink, xp=xp)
