"""Scaled dot-product attention: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.2.1."""

from __future__ import annotations

import math

from refattn._core.arrays import Array, Namespace
from refattn._core.score import Score
from refattn._core.state import empty_state, finish, update, weights


def attention(Q: Array, K: Array, V: Array, *, score: Score, xp: Namespace) -> tuple[Array, Array]:
    """Output (..., L, Ev) and log-sum-exp (..., L) of all queries at once."""
    i, j = slice(0, Q.shape[-2]), slice(0, K.shape[-2])
    S, Z = score(Q, K, i, j, xp=xp), score.kept(Q, i, j, xp=xp)
    state = update(empty_state(Q, V.shape[-1], xp=xp), S, V, Z, xp=xp)
    return finish(state, score.sink, xp=xp)  # eq. (1)


def attention_scores(Q: Array, K: Array, *, stage: str, score: Score, xp: Namespace) -> Array:
    """Scores (..., L, S) at one of the stages on their way to weights."""
    i, j = slice(0, Q.shape[-2]), slice(0, K.shape[-2])
    raw, capped, bias, keep = score.parts(Q, K, i, j, xp=xp)
    if stage in ("raw", "softcapped"):
        return raw if stage == "raw" else capped
    biased = capped if bias is None else capped + bias
    biased = biased if keep is None else xp.where(keep, biased, -math.inf)
    if stage == "biased":
        return biased
    S = score(Q, K, i, j, xp=xp)
    _, lse = finish(update(empty_state(Q, 0, xp=xp), S, K[..., :0], xp=xp), score.sink, xp=xp)
    if stage == "weights":
        return weights(S, lse, xp=xp)
    lse = xp.expand_dims(lse, axis=-1)
    log_weights = xp.where(lse == -math.inf, math.nan, biased - xp.where(lse == -math.inf, 0.0, lse))
    return xp.where(S == -math.inf, -math.inf, log_weights)


def attention_rows(
    Q: Array, K: Array, V: Array, *, rows: Array, score: Score, tile_k: int, xp: Namespace
) -> tuple[Array, Array]:
    """Output and log-sum-exp of the queries Q (R, E) that stand at the positions `rows`, key tile by key tile."""
    state = empty_state(Q, V.shape[-1], xp=xp)
    for j in score.tiles(rows, tile_k):
        S, Z = score(Q, K[..., j, :], rows, j, xp=xp), score.kept(Q, rows, j, xp=xp)
        state = update(state, S, V[..., j, :], Z, xp=xp)
    return finish(state, score.sink, xp=xp)
