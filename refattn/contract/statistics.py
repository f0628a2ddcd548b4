"""How large rounding errors are when they behave as if drawn at random: sections 6 and 7 of README.md, evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn._core.score import Score
from refattn._core.tiles import tiles
from refattn.contract import errors, variances
from refattn.contract.formats import FORMATS, half_ulp, unit
from refattn.contract.moments import size_of, spread_of, sums_of, weights
from refattn.contract.problem import Bound, Problem
from refattn.contract.record import Contract
from refattn.contract.softmax import TILE_ROWS, Flags
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
    return contract.accumulator == "float32" and score.dropout is None and contract.probability_scale is None


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

        sigma^2 = sum_j p_j^2 [u_p^2 / 3 max((v_j - o)^2, v_j^2) + Var(e_j) (v_j - o)^2] + accumulation

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
    Cost: E + 5 Ev multiply-adds in float32 and one exponential for each row and key, Ev more for each slope.
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


def _noise(contract: Contract, problem: Problem, count: Singles, share_of_twins: float) -> Noise:
    """README.md, section 6, for at most a tile of rows."""
    score, o, lse = problem.score, problem.output, problem.lse
    S, E = problem.key.shape
    usable = np.isfinite(o).all(axis=1) & np.isfinite(lse) & (np.abs(lse) < LARGEST_SCORE)
    center = np.where(usable[:, None], o, 0.0).sum(axis=0) / max(1, int(usable.sum()))
    size = size_of(problem, center)
    normal = _normal(contract, problem)
    sums = sums_of(contract, problem, center, size, count, normal)
    about = (o - center) / size
    u, u_p = unit(contract.accumulator), variances.deviation(contract, contract.probabilities)
    spread = spread_of(sums.P, sums.x, sums.x_square)
    of_rounding = variances.of_rounding(contract, spread)
    cut = contract.rounding == "toward_zero"
    z = -math.inf if score.sink is None else float(np.max(np.asarray(score.sink)))
    p_z = np.exp(z - lse)

    # The error of an exponent is the row sum's too and meets v - o; a rounding meets v where the row sum has it not.
    centred, walk = sums.squares.about(about) * size**2, sums.squares.about(-center / size) * size**2
    ties = errors.coarser(contract, contract.scores)
    own = of_rounding[:, None] * (centred if ties else np.maximum(centred, walk)) + sums.scatter.about(about) * size**2
    walk = np.sqrt(walk)
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
    spreads = {name: spread_of(sums.P, total, square) for name, (_, total, square) in sums.slopes.items()}
    eta = variances.lost_weight(contract, lse, sums.top) * sums.n_small
    largest = size + np.abs(center).max(initial=0.0) + np.abs(o)
    exp_error, tanh_error = 2 * u * contract.exp_ulp, 2 * u * contract.tanh_ulp
    bias = drift[:, None] * (2 * sums.centred + 4 * np.sqrt(centred))
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

    lse_variance = of_rounding * sums.squares.weight + sums.scatter.weight + u**2 / 3 * (sums.n + steps)
    lse_variance += casts**2 / 3 * (score.scale * sums.of_keys) ** 2 * variances.fourth(problem.query)
    lse_bias = drift + exp_error + 2 * scores * sums.top + u_p * (cut or ties) + eta
    lse_bias += errors.log_error(contract, sums.top, S)
    lse_bias += 0.0 if score.softcap is None else tanh_error * score.softcap
    lse_bias += 0.0 if problem.lse_radius is None else problem.lse_radius
    # The factor is room for this evaluation's own errors, in float32.
    sigma, sigma_lse = 1.002 * np.sqrt(variance), 1.002 * np.sqrt(lse_variance)
    claim = usable & (sums.n >= FEWEST_KEYS) & (spread >= LEAST_SPREAD * unit(contract.probabilities))
    claim &= (
        (share_of_twins <= MOST_TWINS)
        & (sums.top < LARGEST_SCORE)
        & (not tied(problem, LEAST_SPREAD * unit(contract.probabilities)))
    )
    claim &= np.isfinite(sigma).all(axis=1) & np.isfinite(bias).all(axis=1) & (np.abs(sums.P + p_z - 1) < 1e-2)
    return Noise(sigma, bias, sigma_lse, lse_bias, claim, slopes, spreads, normal)


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
