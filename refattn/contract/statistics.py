"""How large rounding errors are when they behave as if drawn at random: sections 6 and 7 of README.md, evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn._core.score import Parts, Score
from refattn._core.tiles import tiles
from refattn.contract import errors, variances
from refattn.contract.formats import FORMATS, half_ulp, unit
from refattn.contract.record import Contract
from refattn.contract.softmax import TILE_KEYS, TILE_ROWS, Bound, Flags, Problem
from refattn.contract.ties import FEWEST_KEYS, tied, twins

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

# Chance of a false alarm that a verdict as a whole takes, were the errors as the model has them.
ALPHA = 1e-9
# Rows are left to the proven bound where errors cannot average out: few keys, scores that hardly differ, equal keys.
LEAST_SPREAD = 8.0  # standard deviations of the scores, in units of the weights' format
MOST_TWINS = 0.02  # share of keys that repeat another key
# Scores and log-sum-exps past this have no more than four digits behind the point in float32.
LARGEST_SCORE = 512.0
# Formats that hold weights of exp(-FAR) need no look at the row's maximum: less weighs nothing.
FAR = 60.0


@dataclass(frozen=True, eq=False)
class Noise:
    """What rounding does to each number of a right kernel, if its errors are as good as random.

    Attributes
    ----------
    output : array, shape (R, Ev)
        Sigma: the error is a sum of independent terms for which exp(t^2 sigma^2 / 2) bounds the mean of exp(t error);
        the output's own rounding apart.
    output_bias : array, shape (R, Ev)
        What comes on top and does not average out.
    lse : array, shape (R,)
        Sigma of the log-sum-exp.
    lse_bias : array, shape (R,)
        What comes on top.
    claim : boolean array, shape (R,)
        Rows for which the model is held to be meaningful.
    slopes : dict of str to array, shape (R, Ev)
        Derivatives of the exact output by the logarithm of "scale", "softcap" and the size of the "bias", as far as
        the score has them.
    spreads : dict of str to array, shape (R,)
        Standard deviation, under the weights, of the derivative of a score by the same logarithms.
    normal : array, shape (R,)
        Least logarithm of an exact weight that is in the normal range of its format for sure.
    """

    output: Floats
    output_bias: Floats
    lse: Floats
    lse_bias: Floats
    claim: Flags
    slopes: dict[str, Floats]
    spreads: dict[str, Floats]
    normal: Floats


class _Sums(NamedTuple):
    """Sums over keys of one part of the rows, in units of the values' scale about their center."""

    square: Floats  # sum W^2 (v - center)^2, (R, Ev), W^2 the variance of p; twins count as often as they are there
    cross: Floats  # sum W^2 (v - center)
    weight: Floats  # sum W^2, (R,)
    P: Floats  # sum p, (R,)
    running: Floats  # largest |sum p v| over the keys up to a tile's end, (R, Ev), in the values' own units
    centred: Floats  # largest |sum p (v - o)| over them
    x: Floats  # sum p (s - lse), (R,)
    x_square: Floats  # sum p (s - lse)^2
    n: Floats  # visible keys
    n_small: Floats  # those whose weight may lie below its format's normal range
    top: Floats  # largest |s|
    of_keys: Floats  # sum p |k|_4
    # sum p d (v - center), sum p d and sum p d^2, d the derivative of the score
    slopes: dict[str, tuple[Floats, Floats, Floats]]


class Tile(NamedTuple):
    """One tile of keys, in float32: weights, scores (-inf where masked), and the stages of the scores."""

    keys: slice
    weights: Singles
    scores: Singles
    parts: Parts


def applies(contract: Contract, score: Score) -> bool:
    """Whether sigma is defined for the contract and the score: float32 accumulation, and no dropout.

    Parameters
    ----------
    contract : Contract
        The kernel's numerics.
    score : Score
        What changes the scores.

    Returns
    -------
    bool
        False where only the proven bound applies.
    """
    return contract.accumulator == "float32" and score.dropout is None


def sigmas(count: int, alpha: float = ALPHA) -> float:
    """How many sigmas none of `count` errors exceeds but with probability alpha: sqrt(2 ln(2 count / alpha)).

    Parameters
    ----------
    count : int
        Numbers that are judged together.
    alpha : float, optional
        Chance that any of them exceeds it.

    Returns
    -------
    float
        The factor z of the statistical bound.

    Examples
    --------
    >>> from refattn.contract.statistics import sigmas
    >>> round(sigmas(10**6), 2)
    8.39
    """
    return math.sqrt(2 * math.log(2 * max(count, 1) / alpha))


def statistical_bound(contract: Contract, noise: Noise, problem: Problem, proven: Bound, z: float) -> Bound:
    """Bound the errors of a right kernel at z sigmas, never above the proven bound.

        min(proven, z sigma + bias + half_ulp(|reference| + z sigma + bias))

    Parameters
    ----------
    contract : Contract
        The kernel's numerics.
    noise : Noise
        What `softmax_noise` says of the problem.
    problem : Problem
        The inputs and the reference's answer.
    proven : Bound
        What `softmax_bound` says.
    z : float
        Number of sigmas; `sigmas` chooses it.

    Returns
    -------
    Bound
        The proven bound in rows where the model makes no claim.
    """
    with np.errstate(all="ignore"):
        E = z * noise.output + noise.output_bias
        E += half_ulp(np.abs(problem.output) + E, contract.output)
        E_lse = z * noise.lse + noise.lse_bias
        E_lse += half_ulp(np.abs(problem.lse) + E_lse, contract.lse)
        claim = noise.claim
        return Bound(
            np.where(claim[:, None], np.fmin(proven.output, E), proven.output),
            np.where(claim, np.fmin(proven.lse, E_lse), proven.lse),
        )


@quiet
def softmax_noise(contract: Contract, problem: Problem) -> Noise:
    """Sigma and bias of the errors of a kernel within `contract`, and the rows where they mean something.

        sigma^2 = sum_j Var(p_j) (v_j - o)^2 + accumulation,    Var(p_j) = p_j^2 (u_p^2 / 3 + Var(e_j))

    Parameters
    ----------
    contract : Contract
        The kernel's numerics; `applies` must hold.
    problem : Problem
        The inputs as the kernel was given them, and the float64 reference's answer.

    Returns
    -------
    Noise
        For the rows of the problem.

    Notes
    -----
    Cost: E + 3 Ev multiply-adds in float32 and one exponential for each row and key, Ev more for each slope.
    """
    count, share = twins(problem)
    limits = [_noise(contract, problem.part(part), count, share) for part in tiles(len(problem.rows), TILE_ROWS)]
    if not limits:
        zeros = np.zeros_like(problem.output)
        none = np.zeros(0)
        return Noise(zeros, zeros, none, none, np.zeros(0, dtype=bool), {}, {}, none)
    if len(limits) == 1:
        return limits[0]
    fields = ("output", "output_bias", "lse", "lse_bias", "claim", "normal")
    whole: dict[str, Any] = {name: np.concatenate([getattr(x, name) for x in limits]) for name in fields}
    both, names = [(x.slopes, x.spreads) for x in limits], tuple(limits[0].slopes)
    slopes, spreads = ({n: np.concatenate([x[n] for x in each]) for n in names} for each in zip(*both, strict=True))
    return Noise(**whole, slopes=slopes, spreads=spreads)


def weights(problem: Problem) -> Iterator[Tile]:
    """Weights and scores of the problem's rows, a tile of keys at a time, in float32.

    Parameters
    ----------
    problem : Problem
        At most a tile of rows.

    Yields
    ------
    Tile
        Of the keys that some row may see.
    """
    Q = problem.query.astype(np.float32)
    lse = problem.lse.astype(np.float32)[:, None]
    for j in problem.score.tiles(problem.rows, TILE_KEYS):
        parts = problem.score.parts(Q, problem.key[j].astype(np.float32), problem.rows, j, xp=np)
        s = parts.capped if parts.bias is None else (parts.capped + parts.bias).astype(np.float32)
        if parts.keep is not None:
            s = np.where(parts.keep, s, np.float32(-np.inf))
        yield Tile(j, np.exp(s - lse), s, parts)


def _noise(contract: Contract, problem: Problem, count: Singles, share_of_twins: float) -> Noise:
    """README.md, section 6, for at most a tile of rows."""
    score, o, lse = problem.score, problem.output, problem.lse
    S, E = problem.key.shape
    usable = np.isfinite(o).all(axis=1) & np.isfinite(lse) & (np.abs(lse) < LARGEST_SCORE)
    center = np.where(usable[:, None], o, 0.0).sum(axis=0) / max(1, int(usable.sum()))
    size = _size(problem, center)
    normal = _normal(contract, problem)
    sums = _sums(contract, problem, center, size, count, normal)
    about = (o - center) / size
    u, u_p = unit(contract.accumulator), variances.deviation(contract, contract.probabilities)
    cut = contract.rounding == "toward_zero"
    z = -math.inf if score.sink is None else float(np.max(np.asarray(score.sink)))
    p_z = np.exp(z - lse)

    # Weights: errors of the exponent meet v - o; their rounding meets v where the row sum adds them unrounded.
    centred = np.maximum(sums.square - 2 * about * sums.cross + about**2 * sums.weight[:, None], 0) * size**2
    own = centred
    ties = errors.coarser(contract, contract.scores)
    if u_p and not ties:
        off = center / size
        own = np.maximum(centred, (sums.square + 2 * off * sums.cross + off**2 * sums.weight[:, None]) * size**2)
    least = u_p**2 / 3 + variances.of_exponential(contract)
    walk = np.sqrt(np.maximum(sums.square + 2 * (center / size) * sums.cross, 0) * size**2 / least)
    walk = np.hypot(walk, np.abs(center) * np.sqrt(sums.weight / least)[:, None])
    running = np.abs(o) + sums.running + 4 * walk
    steps = errors.last_steps(contract, score)
    variance = own + u**2 / 3 * (sums.n + steps)[:, None] * running**2 + 4 * u**2 * o**2
    u_v = variances.deviation(contract, contract.value) if "value" in contract.rounded else 0.0
    variance += u_v**2 / 3 * walk**2
    variance += (p_z**2 * (variances.of_exponential(contract) + 4 * u**2 * (sums.top**2 + 1)))[:, None] * o**2

    # What does not average out.
    slopes = {name: (along - about * total[:, None]) * size for name, (along, total, _) in sums.slopes.items()}
    drift = variances.drift_of(contract, score, E, sums.top)
    casts = variances.operand_deviation(contract)
    scores, values = variances.shares_cut(contract, E, sums.n)
    spread = _spread(sums.P, sums.x, sums.x_square)
    spreads = {name: _spread(sums.P, total, square) for name, (_, total, square) in sums.slopes.items()}
    eta = variances.lost_weight(contract, lse, sums.top) * sums.n_small
    largest = size + np.abs(center).max(initial=0.0) + np.abs(o)
    exp_error, tanh_error = 2 * u * contract.exp_ulp, 2 * u * contract.tanh_ulp
    bias = drift[:, None] * (2 * sums.centred + 4 * np.sqrt(centred / least))
    bias += ((drift + exp_error) * p_z)[:, None] * np.abs(o)
    # A query's rounding is one for all keys: where it lies along the query, it is one of the scale.
    bias += (2 * scores + casts) * np.abs(slopes["scale"]) + values[:, None] * running + eta[:, None] * largest
    if score.softcap is not None:
        bias += tanh_error * np.abs(slopes["scale"] + slopes["softcap"])
    bias += (contract.merges * errors.merge_error(contract, sums.top, S))[:, None] * np.abs(o)
    bias += (u_v * cut + u_p * (cut or ties)) * np.abs(o)
    tiny = errors.tiny(contract) * math.exp(errors.stale(contract))
    bias += tiny * (2 * sums.n + steps)[:, None] * (1 + np.abs(o))
    radius = problem.output_radius
    bias += 0.0 if radius is None else radius

    lse_variance = sums.weight + u**2 / 3 * (sums.n + steps)
    lse_variance += casts**2 / 3 * (score.scale * sums.of_keys) ** 2 * variances.fourth(problem.query)
    lse_bias = drift + exp_error + 2 * scores * sums.top + u_p * (cut or ties) + eta
    lse_bias += errors.log_error(contract, sums.top, S)
    lse_bias += 0.0 if score.softcap is None else tanh_error * score.softcap
    lse_bias += 0.0 if problem.lse_radius is None else problem.lse_radius
    # The factor is room for this evaluation's own errors, in float32.
    sigma, sigma_lse = 1.002 * np.sqrt(variance), 1.002 * np.sqrt(lse_variance)
    claim = usable & (sums.n >= FEWEST_KEYS) & (spread >= LEAST_SPREAD * unit(contract.probabilities))
    claim &= (share_of_twins <= MOST_TWINS) & (sums.top < LARGEST_SCORE) & (not tied(problem))
    claim &= np.isfinite(sigma).all(axis=1) & np.isfinite(bias).all(axis=1) & (np.abs(sums.P + p_z - 1) < 1e-2)
    return Noise(sigma, bias, sigma_lse, lse_bias, claim, slopes, spreads, normal)


def _sums(contract: Contract, problem: Problem, center: Floats, size: float, count: Singles, normal: Floats) -> _Sums:
    """The one pass over the keys."""
    (R, Ev), score = problem.output.shape, problem.score
    names = [name for name, x in (("scale", True), ("softcap", score.softcap), ("bias", score.bias)) if x is not None]
    slopes = {name: (np.zeros((R, Ev)), np.zeros(R), np.zeros(R)) for name in names}
    second, first = np.zeros((R, 2 * Ev + 1)), np.zeros((R, Ev + 1))
    running, centred = np.zeros((R, Ev)), np.zeros((R, Ev))
    about = (problem.output - center) / size
    x_mean, x_square, n, n_small, top, mean_key = (np.zeros(R) for _ in range(6))
    lse = problem.lse.astype(np.float32)[:, None]
    row, of_keys = variances.of_exponents(contract, problem)
    below = normal.astype(np.float32)[:, None]
    for j, P, s, parts in weights(problem):
        V = _values(problem, j, center, size)
        ones = np.ones((len(V), 1), dtype=np.float32)
        squares = np.concatenate([V, V * V, ones], axis=1) * count[j, None]
        magnitude = np.abs(np.where(P > 0, s, np.float32(0)))
        variance = row[:, :1] * of_keys[j] + row[:, 1:2] * magnitude**2 + row[:, 2:]
        second += (P * P * variance) @ squares
        first += P @ np.concatenate([V, ones], axis=1)
        total = first[:, -1:]
        running = np.maximum(running, np.abs(first[:, :Ev] * size + center * total))
        centred = np.maximum(centred, np.abs(first[:, :Ev] - about * total) * size)
        x = np.where(P > 0, s - lse, np.float32(0))
        Px = P * x
        x_mean += Px.sum(axis=1)
        x_square += np.einsum("ij,ij->i", Px, x)
        keep = parts.keep
        n += P.shape[1] if keep is None else np.broadcast_to(keep, P.shape).sum(axis=1)
        low = s - lse < below
        n_small += (low if keep is None else low & keep).sum(axis=1)
        mean_key += P @ np.sqrt(of_keys[j])
        top = np.maximum(top, magnitude.max(axis=1, initial=0.0))
        for name in names:
            # The logarithm of a weight by that of the scale, the softcap, the bias.
            d = _slope(name, score.softcap, parts)
            Pd = np.where(P > 0, P * d, np.float32(0))
            along = Pd @ V, Pd.sum(axis=1), np.einsum("ij,ij->i", Pd, np.where(P > 0, d, np.float32(0)))
            slopes[name] = tuple(x + more for x, more in zip(slopes[name], along, strict=True))
    return _Sums(
        second[:, Ev : 2 * Ev], second[:, :Ev], second[:, -1],
        first[:, -1], running, centred,
        x_mean, x_square, n, n_small, top, mean_key, slopes,
    )  # fmt: skip


def _spread(P: Floats, first: Floats, second: Floats) -> Floats:
    """Standard deviation from sums of p, p x and p x^2."""
    P = np.maximum(P, 1e-300)
    return np.asarray(np.sqrt(np.maximum(second / P - (first / P) ** 2, 0)))


def _slope(name: str, cap: float | None, parts: Parts) -> Singles:
    """Derivative of the scores by the logarithm of the scale, the softcap or the size of the bias."""
    if name == "bias":
        return np.asarray(parts.bias, dtype=np.float32)
    raw = np.asarray(parts.raw, dtype=np.float32)
    if cap is None:
        return raw
    along = raw * (1 - (parts.capped / np.float32(cap)) ** 2)
    return np.asarray(along if name == "scale" else parts.capped - along, dtype=np.float32)


def _values(problem: Problem, j: slice, center: Floats, size: float) -> Singles:
    """Values of a tile about their center, in units of their size; 0 where they are not finite."""
    V = ((problem.value[j] - center) / size).astype(np.float32)
    return V if np.isfinite(V).all() else np.where(np.isfinite(V), V, np.float32(0))


def _size(problem: Problem, center: Floats) -> float:
    """Largest finite distance of a value from the center."""
    largest = 0.0
    for j in tiles(problem.value.shape[0], 4 * TILE_KEYS):
        V = np.nan_to_num(np.abs(problem.value[j] - center), nan=0.0, posinf=0.0)
        largest = max(largest, float(V.max(initial=0.0)))
    return largest if largest > 0 else 1.0


def _normal(contract: Contract, problem: Problem) -> Floats:
    """Least s - lse, (R,), of a weight that is in the normal range of its format for sure."""
    least = FORMATS[contract.probabilities].min_exponent * math.log(2) + 1.5
    lse = problem.lse
    if contract.normalised_probabilities:
        return np.full_like(lse, least)
    if least < -FAR:
        return np.full_like(lse, least + contract.ahead)
    sink = problem.score.sink
    m = np.full(len(lse), -math.inf if sink is None else float(np.max(np.asarray(sink))))
    for tile in weights(problem):
        m = np.maximum(m, tile.scores.max(axis=1, initial=-np.inf))
    return least + contract.ahead + np.where(np.isfinite(m), m - lse, 0.0)
