"""The gradient of tiled attention: Dao, "FlashAttention-2", 2023, arXiv:2307.08691, Algorithm 2."""

from __future__ import annotations

import math
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, device
from refattn._core.score import Score
from refattn._core.state import seen_product, sink_gradient, weights
from refattn._core.tiles import some_tiles


class Gradients(NamedTuple):
    """Gradients of Q, K and V, of the bias in its own shape, and of the sink in each row."""

    dQ: Array
    dK: Array
    dV: Array
    dB: Array | None
    dsink: Array | None


class Step(NamedTuple):
    """What one pair of tiles adds to dQ_i, dK_j and dV_j; the gradient of its biased scores, and what was seen."""

    dQ_i: Array
    dK_j: Array
    dV_j: Array
    dS: Array
    seen: Array


def flash_attention_gradient(
    Q: Array,
    K: Array,
    V: Array,
    O: Array,
    L: Array,
    dO: Array,
    dL: Array | None,
    *,
    score: Score,
    bias: tuple[int, ...] | None,
    tile_q: int,
    tile_k: int,
    xp: Namespace,
) -> Gradients:
    """Gradients of the scalar sum(dO * O) + sum(dL * L), from what the forward pass returned.

    `bias` is the shape of the bias whose gradient is asked for, each axis of (..., L, S) full or 1.
    """
    rows = list(some_tiles(Q.shape[-2], tile_q))
    dQ = [_zeros(Q, i, xp) for i in rows]  # line 3
    dB = {} if bias is None else _bias_zeros(bias, rows, list(some_tiles(K.shape[-2], tile_k)), O, xp)
    # Deviates: D also takes the gradient of the log-sum-exp, which the paper's loss does not read.
    D = [_row_sums(O[..., i, :], dO[..., i, :], _column(dL, i, xp), xp) for i in rows]  # line 4
    seen = [xp.zeros(x.shape, dtype=xp.bool, device=device(x)) for x in D]
    dK, dV = [], []
    for k, (j, visited) in enumerate(score.columns(rows, tile_k)):  # line 5
        K_j, V_j = K[..., j, :], V[..., j, :]  # line 6
        dK_j, dV_j = _zeros(K, j, xp), _zeros(V, j, xp)  # line 7
        for n, i in visited:  # line 8
            Q_i, dO_i, L_i = Q[..., i, :], dO[..., i, :], L[..., i]  # line 9
            step = _step(Q_i, K_j, V_j, dO_i, L_i, D[n], i, j, score=score, xp=xp)
            dV_j = dV_j + step.dV_j  # line 12
            dQ[n] = dQ[n] + step.dQ_i  # line 15
            dK_j = dK_j + step.dK_j  # line 16
            seen[n] = seen[n] | xp.any(step.seen, axis=-1, keepdims=True)
            if bias is not None:
                at = (0 if bias[-2] == 1 else n, 0 if bias[-1] == 1 else k)
                dB[at] = dB[at] + _summed(step.dS, bias, xp)
        dK.append(dK_j)  # line 18
        dV.append(dV_j)
    dsink = None
    if score.sink is not None:  # a row that sees no key is its sink: its output is constant
        dsink = xp.concat(
            [
                sink_gradient(score.sink, L[..., i], xp.where(seen[n], D[n], -_column(dL, i, xp)), xp=xp)
                for n, i in enumerate(rows)
            ],
            axis=-2,
        )
    return Gradients(
        xp.concat(dQ, axis=-2),
        xp.concat(dK, axis=-2),
        xp.concat(dV, axis=-2),
        None if bias is None else _joined(dB, xp),
        dsink,
    )


def _step(
    Q_i: Array,
    K_j: Array,
    V_j: Array,
    dO_i: Array,
    L_i: Array,
    D_i: Array,
    i: slice,
    j: slice,
    *,
    score: Score,
    xp: Namespace,
) -> Step:
    """Lines 10 to 16 for one pair of tiles; sums over the query heads that share a key are taken here."""
    S, Z = score(Q_i, K_j, i, j, xp=xp), score.kept(Q_i, i, j, xp=xp)  # line 10
    P = weights(S, L_i, xp=xp)  # line 11
    seen = S != -math.inf
    kept = seen if Z is None else seen & (Z != 0)
    dV_j = seen_product(xp.matrix_transpose(P if Z is None else P * Z), xp.matrix_transpose(kept), dO_i, xp=xp)
    dP = xp.matmul(dO_i, xp.matrix_transpose(V_j))  # line 13
    dP = dP if Z is None else xp.where(Z != 0, dP * Z, 0.0)
    dS = xp.where(seen, P * (dP - D_i), 0.0)  # line 14
    dR = score.scale * score.before_softcap(dS, Q_i, K_j, xp=xp)
    dQ_i = seen_product(dR, seen, K_j, xp=xp)
    dK_j = seen_product(xp.matrix_transpose(dR), xp.matrix_transpose(seen), Q_i, xp=xp)
    dK_j, dV_j = (xp.sum(x, axis=-3, keepdims=True) for x in (dK_j, dV_j))
    return Step(dQ_i, dK_j, dV_j, dS, seen)


def _zeros(X: Array, i: slice, xp: Namespace) -> Array:
    """Zeros of the shape of the rows i of X."""
    rows = X[..., i, :]
    return xp.zeros(rows.shape, dtype=xp.float64, device=device(rows))


def _row_sums(O_i: Array, dO_i: Array, dL_i: Array | float, xp: Namespace) -> Array:
    """D of the rows of a tile."""
    return xp.sum(dO_i * O_i, axis=-1, keepdims=True) - dL_i


def _column(dL: Array | None, i: slice, xp: Namespace) -> Array | float:
    """The gradient of the log-sum-exp of the rows i, one a row."""
    return 0.0 if dL is None else xp.expand_dims(dL[..., i], axis=-1)


def _bias_zeros(
    bias: tuple[int, ...], rows: list[slice], columns: list[slice], like: Array, xp: Namespace
) -> dict[tuple[int, int], Array]:
    """Zeros of the tiles of the bias, by number of row and column; one row or column where its axis is 1."""
    high, wide = (
        [1] if n == 1 else [i.stop - i.start for i in parts]
        for n, parts in zip(bias[-2:], (rows, columns), strict=True)
    )
    return {
        (a, b): xp.zeros((*bias[:-2], h, w), dtype=xp.float64, device=device(like))
        for a, h in enumerate(high)
        for b, w in enumerate(wide)
    }


def _summed(dS: Array, bias: tuple[int, ...], xp: Namespace) -> Array:
    """The gradient of a tile of scores, summed over the axes along which the bias was broadcast."""
    axes = tuple(axis for axis, n in enumerate(bias) if n == 1)
    return xp.sum(dS, axis=axes, keepdims=True) if axes else dS


def _joined(dB: dict[tuple[int, int], Array], xp: Namespace) -> Array:
    """The tiles of the bias as one array."""
    wide = [
        xp.concat([x for (row, _), x in dB.items() if row == a], axis=-1) for a in dict.fromkeys(row for row, _ in dB)
    ]
    return xp.concat(wide, axis=-2)
