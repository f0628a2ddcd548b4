"""How far a kernel within its contract may be from exact softmax attention: the theorem of README.md, evaluated."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, quiet
from refattn._core.score import Parts, Score
from refattn._core.tiles import tiles
from refattn.contract import blocks, errors
from refattn.contract.errors import Floats
from refattn.contract.formats import FORMATS, half_ulp, unit
from refattn.contract.problem import Bound, Problem
from refattn.contract.record import Contract

Flags = npt.NDArray[np.bool_]

# 256 rows by 1024 keys of float64 are 2 MiB: the handful of such arrays below stays within the last-level cache.
TILE_ROWS, TILE_KEYS = 256, 1024


class _Maxima(NamedTuple):
    """What the first pass over the keys finds, (rows,)."""

    m: Floats  # largest visible score or sink, 0 where there is none or it is not finite
    lse: Floats  # the reference's, 0 where it is not finite
    n: Floats  # number of visible keys
    known: Flags  # both are finite


class _Sums(NamedTuple):
    """What the second pass sums over the keys, (rows, Ev) or (rows,)."""

    A: Floats  # sum p |v|, here and below with dropout's factor on v
    square: Floats  # sum p (v - center)^2
    small: Floats  # sum of |v| over the keys whose weight may lie below its format's normal range
    n_small: Floats  # number of these keys
    error: Floats  # sum p e^2
    largest: Floats  # max e
    lost: Flags  # some visible key breaks a hypothesis, (rows,)
    lost_value: Flags  # some visible value does, (rows, Ev)
    shared: Floats  # sum of |v| times the largest p of its block, over the same keys as `small`; 0 without blocks
    n_shared: Floats  # the same without |v|


@quiet
def softmax_bound(contract: Contract, problem: Problem) -> Bound:
    """Bound the error of every kernel within `contract` on softmax attention.

        |kernel - reference| <= E + half_ulp(|reference| + E),    E as README.md derives it

    Parameters
    ----------
    contract : Contract
        The kernel's numerics.
    problem : Problem
        The inputs as the kernel was given them, and the float64 reference's answer.

    Returns
    -------
    Bound
        For output and log-sum-exp, the reference's own error and the rounding of the output included.

    Notes
    -----
    Cost: 3 E + 2 Ev multiply-adds and one exponential for each row and key; memory O(R (E + Ev)) and a few tiles.

    References
    ----------
    .. [1] The theorem and its proof: refattn/contract/README.md.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import contract
    >>> from refattn._core.score import Score
    >>> one, rows = np.ones((1, 4)), np.arange(1)
    >>> problem = contract.Problem(one, one, one, Score((1, 1), scale=0.5), rows, output=one, lse=np.array([2.0]))
    >>> bound = contract.softmax_bound(contract.flash("bfloat16"), problem)
    >>> bool(2**-8 < bound.output[0, 0] < 2**-6)
    True
    """
    outputs, lses = [np.zeros((0, problem.value.shape[1]))], [np.zeros(0)]
    for part in tiles(len(problem.rows), TILE_ROWS):
        output, lse = _bound(contract, problem.part(part))
        outputs.append(output)
        lses.append(lse)
    return Bound(np.concatenate(outputs), np.concatenate(lses))


def _bound(contract: Contract, problem: Problem) -> tuple[Floats, Floats]:
    """README.md, theorem 1 (weights not normalised) and theorem 2 (normalised), row by row."""
    score, o, (S, E) = problem.score, problem.output, problem.key.shape
    u, tiny, stale = unit(contract.accumulator), errors.tiny(contract), errors.stale(contract)
    normalised = contract.normalised_probabilities
    terms = errors.exponents(contract, score, E)
    z = -math.inf if score.sink is None else float(np.max(np.asarray(score.sink)))
    maxima = _maxima(problem, z)
    m, lse, n = maxima.m, maxima.lse, maxima.n
    center = np.nan_to_num(o, nan=0.0, posinf=0.0, neginf=0.0).mean(axis=0, keepdims=True)
    sums = _sums(contract, terms, problem, maxima, center)

    # Lemma 7: common factors of the weights, the sink's among them, against the spread of the values.
    p_z, e_z = _sink(contract, terms, z, maxima)
    again = errors.feedback(terms)
    e_max = np.maximum(sums.largest, e_z) / max(1 - again, 1e-300)
    scaled = blocks.scaled(contract)
    known = maxima.known & ~sums.lost & (e_max <= (1 if scaled is None else blocks.MOST_ERROR))
    e_max = np.minimum(e_max, 1.0)
    t_max = np.expm1(e_max)
    t = (np.sqrt(sums.error + p_z * e_z**2) + again * e_max) * t_max / np.maximum(e_max, 1e-300)

    # Lemmas 3 and 4: accumulation. Lemma 8: rounding and underflow of the weights.
    steps, dropped = errors.last_steps(contract, score), score.dropout is not None
    g_l = errors.plain_sum(contract, n + steps)
    g_o = (1 + errors.product_sum(contract, n)) * (1 + errors.plain_sum(contract, steps)) - 1
    u_p, eta_p = errors.cast(contract, contract.probabilities) if scaled is None else (scaled.unit, scaled.floor)
    share_p = 0.0 if scaled is None else scaled.share
    if normalised and dropped:  # stored again after dropout
        u_p, eta_p, share_p = (1 + u_p) ** 2 - 1, (2 + u_p) * eta_p, (2 + u_p) * share_p
    u_v, eta_v = errors.operands(contract).value
    g_v = g_o + u_v + g_o * u_v
    lost_weight = eta_p if normalised else eta_p * np.exp(contract.ahead + e_max + m - lse)
    dead = 4 * tiny * math.exp(stale)
    lost_weight = lost_weight + dead
    flush = tiny * math.exp(stale) * (2 * n + steps)
    u_l = 0.0 if normalised or not contract.rounded_sum else u_p
    # What rounding costs the row sum meets o.
    n_shared = sums.n_shared if contract.rounded_sum else np.zeros_like(n)
    beta = t + (1 + t_max) * (u_l + (1 + u_l) * g_l) + flush
    beta += 2 * (lost_weight if contract.rounded_sum else dead) * sums.n_small
    beta += 2 * share_p * (1 + t_max) * (1 + g_l) * n_shared
    known &= beta <= 0.5
    beta = np.minimum(beta, 0.5)

    # Lemma 9: the reference's share. `slack` also covers the rounding errors of this evaluation.
    share = errors.share_of_reference(contract, score, E)
    known &= share * (e_max + beta) <= 0.125
    slack = 8 * (share * max(share, 1.0) * (e_max + beta) + (S + E + 64) * 2.0**-53)
    # Lemma 6: the last operations, and a merge through a stored log-sum-exp, whose weights need not add up to 1.
    last = 4 * u + contract.merges * (errors.merge_error(contract, np.abs(m), S) + steps * u)
    last = last * (1 + last)
    A, size = sums.A, np.abs(o)

    def distance(spread: Floats) -> Floats:
        """E of the theorems, for values of this spread about the output."""
        if normalised or not contract.rounded_sum:
            rounding = u_p * A
        else:
            rounding = u_p * (A + size if dropped else np.maximum(A, np.minimum(spread, A + size)))
        numerator = (
            _column(t) * spread
            + _column(1 + t_max) * (rounding + (1 + u_p) * (_column(g_v) * A + _column(g_l) * size))
            + _column((1 + t_max) * (1 + u_p) * (1 + g_o)) * eta_v
            + _column((1 + t_max) * (1 + g_v) * lost_weight) * (sums.small + _column(sums.n_small) * size)
            + _column((1 + t_max) ** 2 * (1 + g_v) * share_p) * (sums.shared + _column(n_shared) * size)
            + _column(flush) * (1 + size)
        )
        E_o: Floats = numerator * _column((1 + last) / (1 - beta)) + _column(last) * size
        E_o *= _column(1 + slack)
        return E_o

    # Lemma 7: sum p (v - o)^2, the sink (p_z, 0) included, from the sums about a common center.
    about = sums.square + np.outer(p_z, center**2)
    off = np.abs(o - center)
    inexact = _column(slack) * about + 2 * share * off * distance(np.sqrt(about))
    E_o = distance(np.sqrt(np.maximum(about - off**2, 0) + inexact))
    E_o = _with_reference(E_o, share, problem.output_radius)
    claim = _column(known) & ~sums.lost_value & np.isfinite(o) & _fits(contract, maxima, A, e_max, score)
    E_o = np.where(claim, E_o, np.inf)
    E_o = E_o + half_ulp(size + E_o, contract.output) + tiny

    E_lse = (errors.log_error(contract, np.abs(m), S) - np.log1p(-beta)) * (1 + slack)
    E_lse = _with_reference(E_lse, share, problem.lse_radius)
    E_lse = np.where(known, E_lse, np.inf)
    E_lse = E_lse + half_ulp(np.abs(lse) + E_lse, contract.lse)
    empty = n == 0
    return np.where(_column(empty), 0.0, E_o), np.where(empty & (z == -math.inf), 0.0, E_lse)


def _with_reference(E: Floats, share: float, radius: Floats | None) -> Floats:
    """Lemma 9: a distance from the exact value as one from the reference's, which is proven in two ways."""
    own = share * E
    return E + (own if radius is None else np.minimum(own, radius))


def _scores(problem: Problem, j: slice) -> tuple[Parts, Floats]:
    """The stages of one tile of scores, and the scores, -inf where masked."""
    parts = problem.score.parts(problem.query, problem.key[j], problem.rows, j, xp=np)
    s = parts.capped if parts.bias is None else parts.capped + parts.bias
    return parts, s if parts.keep is None else np.where(parts.keep, s, -np.inf)


def _maxima(problem: Problem, z: float) -> _Maxima:
    """First pass: row maxima, the sink's logit z among them, and numbers of visible keys."""
    m, n = np.full(len(problem.rows), z), np.zeros(len(problem.rows))
    for j in problem.score.tiles(problem.rows, TILE_KEYS):
        parts, s = _scores(problem, j)
        m = np.maximum(m, s.max(axis=1))
        n += j.stop - j.start if parts.keep is None else np.broadcast_to(parts.keep, s.shape).sum(axis=1)
    known = np.isfinite(m) & np.isfinite(problem.lse)
    return _Maxima(np.where(known, m, 0.0), np.where(known, problem.lse, 0.0), n, known)


def _sums(contract: Contract, terms: errors.Exponents, problem: Problem, maxima: _Maxima, center: Floats) -> _Sums:
    """Second pass: the sums over keys."""
    (R, Ev), m = problem.output.shape, _column(maxima.m)
    sums = np.zeros((R, 2 * Ev))
    small, n_small = np.zeros((R, Ev)), np.zeros(R)
    error, largest = np.zeros(R), np.zeros(R)
    lost, lost_value = np.zeros(R, dtype=bool), np.zeros((R, Ev), dtype=bool)
    shared, n_shared, scaled = np.zeros((R, Ev)), np.zeros(R), blocks.scaled(contract)
    dead, below = _thresholds(contract, maxima)
    for j in problem.score.tiles(problem.rows, TILE_KEYS):
        parts, s = _scores(problem, j)
        seen = np.broadcast_to(True if parts.keep is None else parts.keep, s.shape)
        x = s - m
        P = np.exp(s - _column(maxima.lse))
        e = _exponent_error(contract, terms, problem, j, parts, s, m)
        # Keys so far below the maximum that no accumulator holds their weight count among the small ones.
        e = np.where(x + e > dead, e, 0.0)
        error += np.einsum("ij,ij,ij->i", P, e, e)
        largest = np.maximum(largest, e.max(axis=1))
        lost |= (seen & _outside(contract, problem, j, parts, s)).any(axis=1)

        V, Z = problem.value[j], problem.score.kept(problem.query, problem.rows, j, xp=np)
        kept = seen if Z is None else seen & (Z != 0)
        usable = np.abs(V) < _limit(contract, "value")
        if not usable.all():
            lost_value |= kept.astype(float) @ (~usable).astype(float) > 0
            V = np.where(usable, V, 0.0)
        if Z is not None:  # a dropped key has its weight and the value 0
            assert problem.score.dropout is not None
            V = V * problem.score.dropout.factor
            sums[:, Ev:] += np.where(kept, 0.0, P).sum(axis=1, keepdims=True) * center**2
            P = np.where(kept, P, 0.0)
        size = np.abs(V)
        sums += P @ np.concatenate([size, (V - center) ** 2], axis=1)
        is_small = seen & (x < _column(below))
        if scaled is not None:
            top = blocks.largest(x, contract.probability_block)
            is_small = seen & blocks.small(scaled, x, top, _column(_subtracted(contract, maxima)), dead + 1.5)
            T = np.where(is_small, np.exp(top + m - _column(maxima.lse)), 0.0)
            shared += np.where(kept, T, 0.0) @ size
            n_shared += T.sum(axis=1)
        if is_small.any():
            small += (is_small & kept).astype(float) @ size
            n_small += is_small.sum(axis=1)
    return _Sums(sums[:, :Ev], sums[:, Ev:], small, n_small, error, largest, lost, lost_value, shared, n_shared)


def _exponent_error(
    contract: Contract, terms: errors.Exponents, problem: Problem, j: slice, parts: Parts, s: Floats, m: Floats
) -> Floats:
    """README.md, (3): e_j, the error of the exponent of each weight of a tile."""
    in_q, in_k, _ = errors.operands(contract)
    scale, tiny, E = abs(problem.score.scale), errors.tiny(contract), problem.key.shape[1]
    q, k = np.abs(problem.query), np.nan_to_num(np.abs(problem.key[j]), nan=0.0, posinf=0.0)
    # Underflow in operands and products rides along in two more features.
    q_1, k_1 = q.sum(axis=1, keepdims=True), k.sum(axis=1, keepdims=True)
    wide = max(1.0, scale) * (1 + terms.product)
    rest = wide * (q_1 * (in_k[1] + tiny) + 2 * E * (tiny + in_q[1] * in_k[1])) + terms.constant
    left = np.concatenate([terms.product * scale * q, np.full_like(q_1, wide * (in_q[1] + tiny)), rest], axis=1)
    e: Floats = left @ np.concatenate([k, k_1, np.ones_like(k_1)], axis=1).T
    size = np.abs(s)
    if problem.score.softcap is None and problem.score.bias is None:
        e += (terms.raw + terms.score) * size
    else:
        e += terms.raw * np.abs(parts.raw) + terms.capped * np.abs(parts.capped) + terms.score * size
        e += 0.0 if parts.bias is None else terms.bias * np.abs(parts.bias)
    e += terms.largest * np.maximum(size, np.abs(m))
    e += terms.distance * (m - s)
    return e


def _outside(contract: Contract, problem: Problem, j: slice, parts: Parts, s: Floats) -> Flags:
    """Cells (rows, keys), or (1, 1) for none, where an operand or a score may leave the range of its format."""
    outside: Flags = np.zeros((1, 1), dtype=bool)
    q, k, wide = np.abs(problem.query), np.abs(problem.key[j]), max(1.0, abs(problem.score.scale))
    limit = FORMATS[contract.accumulator].max / 4 / wide
    if not (q.sum(axis=1).max() * k.max() < limit):
        outside = ~(q @ k.T < limit)
    outside = outside | ~(wide * k.max(axis=1) < _limit(contract, "key"))
    outside = outside | ~(wide * q.max(axis=1, keepdims=True) < _limit(contract, "query"))
    if errors.coarser(contract, contract.scores):
        outside = outside | ~(np.maximum(np.abs(parts.raw), np.abs(s)) < FORMATS[contract.scores].max / 2)
    return outside


def _limit(contract: Contract, operand: str) -> float:
    """What an operand's magnitude must stay below; 1e150 keeps squares within float64."""
    return FORMATS[getattr(contract, operand)].max / 2 if operand in contract.rounded else 1e150


def _thresholds(contract: Contract, maxima: _Maxima) -> tuple[float, Floats]:
    """README.md, lemma 8: how far below m an exponent's key is dead, and (rows,) how far its weight may be small."""
    dead = math.log(errors.tiny(contract)) + errors.stale(contract)
    normal = FORMATS[contract.probabilities].min_exponent * math.log(2) + 1.5
    return dead, np.maximum(normal + _subtracted(contract, maxima), dead + 1.5)


def _subtracted(contract: Contract, maxima: _Maxima) -> Floats:
    """How far what a weight is small against lies above m: 1 for a normalised one, else the number subtracted."""
    return maxima.lse - maxima.m if contract.normalised_probabilities else np.full_like(maxima.m, contract.ahead)


def _sink(contract: Contract, terms: errors.Exponents, z: float, maxima: _Maxima) -> tuple[Floats, Floats]:
    """Weight of the sink and error of its exponent, (rows,)."""
    if z == -math.inf:
        return np.zeros_like(maxima.m), np.zeros_like(maxima.m)
    top = np.maximum(abs(z), np.abs(maxima.m))
    u = unit(contract.accumulator)
    fixed = terms.constant + (terms.score + 2 * u) * abs(z)
    e = fixed + terms.largest * top + terms.distance * (maxima.m - z)
    dead, _ = _thresholds(contract, maxima)
    return np.exp(z - maxima.lse), np.where(z - maxima.m + e > dead, e, 0.0)


def _fits(contract: Contract, maxima: _Maxima, A: Floats, e_max: Floats, score: Score) -> Flags:
    """Whether weights and unnormalised output stay within their formats, (rows, Ev)."""
    factor = 1.0 if score.dropout is None else score.dropout.factor
    if contract.normalised_probabilities:
        fits = factor <= FORMATS[contract.probabilities].max or contract.probability_scale is not None
        return np.full(A.shape, fits)
    largest = 2.0**contract.weight_shift * np.exp(contract.lazy + e_max)
    total = A * _column(largest * np.exp(maxima.lse - maxima.m + 1.0))
    # The scale of a block takes weights of any size.
    within: Flags = (largest * factor <= FORMATS[contract.probabilities].max) | (contract.probability_scale is not None)
    unbroken: Flags = _column(within) & (total < FORMATS[contract.accumulator].max / 4)
    return unbroken


def _column(x: Array) -> Array:
    """(rows,) as (rows, 1)."""
    return x[:, None]
