"""Tiled softmax attention, and the softmax in one pass that it rests on.

FlashAttention-2: Dao 2023, arXiv:2307.08691. FlashAttention: Dao et al. 2022, arXiv:2205.14135. Flash-Decoding: Dao,
Haziza, Massa & Sizov 2023. Online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867.
"""

from __future__ import annotations

import math

from refattn._core.arrays import Array, Namespace, device
from refattn._core.score import Score
from refattn._core.state import State, empty_state, finish, merge, normalised, update
from refattn._core.tiles import some_tiles, tiles


def flash_attention(
    Q: Array, K: Array, V: Array, *, score: Score, tile_q: int, tile_k: int, xp: Namespace
) -> tuple[Array, Array]:
    """FlashAttention-2, Algorithm 1: output (..., L, Ev) and log-sum-exp (..., L)."""
    O, L = [], []
    for i in some_tiles(Q.shape[-2], tile_q):  # line 3
        Q_i = Q[..., i, :]  # line 4
        state = empty_state(Q_i, V.shape[-1], xp=xp)  # line 5
        # Deviates: key tiles that no query of the tile sees are left out (the paper's section 3.1.1 on causal masks).
        for j in score.tiles(i, tile_k):  # line 6
            K_j, V_j = K[..., j, :], V[..., j, :]  # line 7
            S = score(Q_i, K_j, i, j, xp=xp)  # line 8
            Z = score.kept(Q_i, i, j, xp=xp)
            # Deviates: line 10 prints the inverse of diag(exp(m_old - m_new)), with which O would not keep up with l.
            state = update(state, S, V_j, Z, xp=xp)  # lines 9, 10
        O_i, L_i = finish(state, score.sink, xp=xp)  # lines 12, 13
        O.append(O_i)  # line 14
        L.append(L_i)  # line 15
    return xp.concat(O, axis=-2), xp.concat(L, axis=-1)


def flash_attention_2022(
    Q: Array, K: Array, V: Array, *, score: Score, tile_q: int, tile_k: int, xp: Namespace
) -> tuple[Array, Array]:
    """FlashAttention, Algorithm 1: the same, key tile by key tile; the output is normalised at every step."""
    rows = list(some_tiles(Q.shape[-2], tile_q))
    states = [empty_state(Q[..., i, :], V.shape[-1], xp=xp) for i in rows]  # line 2
    for j, visited in score.columns(rows, tile_k):  # line 5
        if not visited:
            continue
        K_j, V_j = K[..., j, :], V[..., j, :]  # line 6
        for n, i in visited:  # line 7
            Q_i, (m, l, O_i) = Q[..., i, :], states[n]  # line 8
            S = score(Q_i, K_j, i, j, xp=xp)  # line 9
            Z = score.kept(Q_i, i, j, xp=xp)
            tile = update(empty_state(Q_i, V.shape[-1], xp=xp), S, V_j, Z, xp=xp)  # line 10
            m, l, O_i = merge(State(m, l, l * O_i), tile, xp=xp)  # lines 11, 12
            states[n] = State(m, l, O_i / xp.where(l == 0, 1.0, l))  # lines 12, 13
    O, L = zip(*(finish(State(m, l, l * O_i), score.sink, xp=xp) for m, l, O_i in states), strict=True)
    return xp.concat(O, axis=-2), xp.concat(L, axis=-1)


def flash_decode(
    Q: Array, K: Array, V: Array, *, score: Score, splits: int, tile_k: int, xp: Namespace
) -> tuple[Array, Array]:
    """Flash-Decoding: parts of the keys each for itself, merged by their log-sum-exps; a part may hold no key."""
    i, S = slice(0, Q.shape[-2]), K.shape[-2]
    Q_i, visited = Q[..., i, :], list(score.tiles(i, tile_k))
    whole = empty_state(Q_i, V.shape[-1], xp=xp)
    for split in tiles(S, max(1, -(-S // (tile_k * splits))) * tile_k):  # step 1
        part = empty_state(Q_i, V.shape[-1], xp=xp)
        for j in (j for j in visited if split.start <= j.start < split.stop):  # step 2
            S_j, Z = score(Q_i, K[..., j, :], i, j, xp=xp), score.kept(Q_i, i, j, xp=xp)
            part = update(part, S_j, V[..., j, :], Z, xp=xp)
        whole = merge(whole, normalised(part, xp=xp), xp=xp)  # step 3
    return finish(whole, score.sink, xp=xp)


def online_softmax(x: Array, *, tile: int, xp: Namespace) -> tuple[Array, Array, Array]:
    """Milakov & Gimelshein, Algorithm 3, `tile` scores at a time: y, m_V and d_V, the latter two (..., 1)."""
    m = xp.full((*x.shape[:-1], 1), -math.inf, dtype=xp.float64, device=device(x))  # line 1
    d = xp.zeros((*x.shape[:-1], 1), dtype=xp.float64, device=device(x))  # line 2
    for j in tiles(x.shape[-1], tile):  # line 3
        m_old, m = m, xp.maximum(m, xp.max(x[..., j], axis=-1, keepdims=True))  # line 4
        # Deviates: before the first score that is not -inf, where the paper's m is no number to subtract.
        finite = xp.where(m == -math.inf, 0.0, m)
        d = d * xp.exp(m_old - finite) + xp.sum(xp.exp(x[..., j] - finite), axis=-1, keepdims=True)  # line 5
    y = xp.exp(x - xp.where(m == -math.inf, 0.0, m)) / xp.where(d == 0, 1.0, d)  # lines 7, 8
    return y, m, d
