"""How far the gradients of a kernel may be from the exact ones, given the arithmetic of `contract.numba`.

As for the output, errors go from the logits through weights, dP and D to dS, and from there through the sums of the
products; all are bounded by their magnitudes, of any order, without cancellation. u is the accumulator's unit roundoff.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn import contract
from refattn._call import Call
from refattn._core.arrays import quiet
from refattn._core.state import empty_state, finish, update

Floats = np.ndarray[Any, np.dtype[np.float64]]


@quiet
def gradient_bound(call: Call, dO: Floats, dlse: Floats | None, dtype: str) -> tuple[Floats, ...]:
    """Radii of the gradients of query, key, value, of the biased scores (..., H, L, S), and of the sinks (H,)."""
    (L, S), group = call.score.lengths, call.query.shape[-3] // call.key.shape[-3]
    dQ, dK, dV = (np.zeros(x.shape) for x in (call.query, call.key, call.value))
    dB, dz = np.zeros((*call.lead, L, S)), np.zeros(call.lead[-1])
    for index in np.ndindex(*call.lead):
        of_key = (*index[:-1], index[-1] // group)
        radii = _of_head(call, index, np.nan_to_num(dO[index]), None if dlse is None else dlse[index], dtype)
        dQ[index] = radii[0]
        dK[of_key] += radii[1]
        dV[of_key] += radii[2]
        dB[index] = radii[3]
        dz[index[-1]] += radii[4]
    # Sums over the heads of a group, of rows and batch entries for the sinks: one more rounding each.
    return dQ, dK, dV, dB, dz


def _of_head(call: Call, index: tuple[int, ...], dO: Floats, dlse: Floats | None, dtype: str) -> tuple[Any, ...]:
    """The radii of one head."""
    claim, u = contract.numba(dtype), float(np.finfo(dtype).eps) / 2
    q, k, v, score = call.slab(index)
    (L, S), rows = score.lengths, np.arange(call.score.lengths[0])
    q, k, v, i, j = q[...], k[...], v[...], slice(0, L), slice(0, S)
    o, lse = answer(q, k, v, score)
    allowed = contract.softmax_bound(claim, contract.Problem(q, k, v, score, rows, o, lse))
    parts, s = score.parts(q, k, i, j, xp=np), score(q, k, i, j, xp=np)
    seen, Z = s > -np.inf, score.kept(q, i, j, xp=np)
    Z = np.ones_like(s) if Z is None else Z
    q, k, v, o = (np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for x in (q, k, v, o))
    E, Ev, safe = q.shape[-1], v.shape[-1], np.where(seen, s, 0.0)
    level = np.where(np.isfinite(lse), lse, 0.0)[:, None]
    P = np.where(seen, np.exp(safe - level), 0.0)
    # Lemma 2 of the contract, with the scale's and log2 e's roundings in the query's.
    raw = (E + 6) * u * abs(score.scale) * (np.abs(q) @ np.abs(k).T) + 6 * u * np.abs(parts.raw)
    logit = raw + 8 * u * np.abs(safe)
    if score.softcap is not None:
        logit = logit + 16 * u * score.softcap
    if parts.bias is not None:
        logit = logit + 8 * u * np.abs(parts.bias)
    common = np.where(np.isfinite(allowed.lse), allowed.lse, 0.0)[:, None] + 2 * u * np.abs(level)
    tau = np.expm1(logit + common + 8 * u * (np.abs(safe - level) + np.abs(level)) + 2 * u * claim.exp_ulp + 4 * u)
    dP, e_dP = dO @ v.T * Z, (Ev + 6) * u * (np.abs(dO) @ np.abs(v).T) * Z
    D = (dO * o).sum(axis=-1) - (0.0 if dlse is None else dlse)
    e_D = (np.abs(dO) * (np.where(np.isfinite(allowed.output), allowed.output, 0.0) + (Ev + 6) * u * np.abs(o))).sum(-1)
    e_D = e_D + 4 * u * np.abs(D) + (0.0 if dlse is None else 4 * u * np.abs(dlse))
    y, e_y = np.abs(dP - D[:, None]), e_dP + e_D[:, None]
    B = P * (tau * y + (1 + tau) * e_y + 4 * u * (1 + tau) * (y + e_y))
    slope, e_slope = np.ones_like(P), np.zeros_like(P)
    if score.softcap is not None:
        slope = np.cosh(parts.raw / score.softcap) ** -2.0
        e_slope = slope * (np.expm1(2 * raw / score.softcap) + 12 * u)
    dS, e_dS = P * y * slope, B * (slope + e_slope) + P * y * e_slope + 2 * u * P * y * slope
    gamma = lambda n: (2 * n + 16) * u  # noqa: E731  # a sum of n products, its last factors, and parts added up
    dropped = P * Z
    dV = (tau * dropped + gamma(L) * dropped * (1 + tau)).T @ np.abs(dO)
    dQ = abs(score.scale) * ((e_dS + gamma(S) * (dS + e_dS)) @ np.abs(k))
    dK = abs(score.scale) * ((e_dS + gamma(L) * (dS + e_dS)).T @ np.abs(q))
    dz = 0.0
    if score.sink is not None:
        z = float(np.asarray(score.sink).max())
        p = np.exp(z - level[:, 0]) if z > -np.inf else np.zeros(L)
        dz = float((p * (np.expm1(common[:, 0]) * np.abs(D) + e_D + gamma(L) * np.abs(D))).sum())
    tiny = 4 * (L + S) * float(np.finfo(dtype).tiny) * (1 + np.abs(dO).max(initial=0.0)) ** 2
    return dQ + tiny, dK + tiny, dV + tiny, B + tiny, dz


def answer(q: Floats, k: Floats, v: Floats, score: Any) -> tuple[Floats, Floats]:
    """The float64 answer of one head."""
    i, j = (slice(0, n) for n in score.lengths)
    S, Z = score(q, k, i, j, xp=np), score.kept(q, i, j, xp=np)
    return finish(update(empty_state(q, v.shape[-1], xp=np), S, v, Z, xp=np), score.sink, xp=np)
