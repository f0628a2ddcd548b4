"""The constants of section 6 of README.md: how errors scatter that `errors` bounds, and which of them do not."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refattn._core.score import Score
from refattn._core.tiles import tiles
from refattn.contract import errors
from refattn.contract.formats import FORMATS, half_subnormal, unit
from refattn.contract.problem import Problem
from refattn.contract.record import Contract
from refattn.contract.softmax import TILE_KEYS

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

# Of the mean over mantissas: beyond these nothing is left where the mean is below 1.
HARMONICS = np.arange(1, 33)


def deviation(contract: Contract, name: str) -> float:
    """Half the width of a cast's errors about their mean: 0 where the cast is exact."""
    return unit(name) if errors.coarser(contract, name) else 0.0


def operand_deviation(contract: Contract) -> float:
    """The same for the products of rounded queries and keys."""
    rounded = (getattr(contract, x) for x in ("query", "key") if x in contract.rounded)
    return math.hypot(*(deviation(contract, name) for name in rounded))


def of_rounding(contract: Contract, spread: Floats) -> Floats:
    """Variance of the relative error of a rounded weight, (R,), for scores of these standard deviations.

    To nearest it is u^2 / (3 y^2) for a mantissa y in [1, 2): the mean of y^-2, were the scores normal, and the worst
    that the number which is subtracted from the scores can make of it.
    """
    u = deviation(contract, contract.probabilities)
    if contract.rounding == "toward_zero":
        return np.full_like(spread, u**2 / 3)
    turns = math.pi / math.log(2) * HARMONICS
    waves = np.exp(-2 * (spread[:, None] * turns) ** 2) / np.hypot(1, turns)
    return np.asarray(u**2 / 3 * np.minimum(1.0, 3 / (8 * math.log(2)) * (1 + 2 * waves.sum(axis=1))))


def of_exponential(contract: Contract) -> float:
    """The part of the variance of an exponent that is the same for all keys: the exponential's error, a wave."""
    return float((2 * unit(contract.accumulator) * contract.exp_ulp) ** 2 / 2 + unit(contract.accumulator) ** 2)


def of_exponents(contract: Contract, problem: Problem) -> tuple[Singles, Singles]:
    """Variance of the error of an exponent: rows (R, 3) times (that of the key (S,), s_j^2, 1)."""
    E, score, u = problem.key.shape[1], problem.score, unit(contract.accumulator)
    bits = contract.accumulator_bits or FORMATS[contract.accumulator].precision
    tensor = contract.accumulate == "tensor_core"
    u_sum = 2.0**-bits * (2 if tensor else 1)
    stored = unit(contract.scores) if errors.coarser(contract, contract.scores) else 0.0
    stages = 2 + (0 if score.softcap is None else 3) + (0 if score.bias is None else 1)
    casts = operand_deviation(contract) ** 2 / 3
    # sum q^2 k^2 <= |q|_4^2 |k|_4^2; each of E partial sums is rounded.
    of_query = fourth(problem.query)
    of_keys = np.empty(problem.key.shape[0])
    for j in tiles(len(of_keys), 4 * TILE_KEYS):
        of_keys[j] = np.nan_to_num(fourth(problem.key[j]), nan=0.0, posinf=0.0)
    product = (u_sum**2 / 3 * E / 2 + casts) * score.scale**2 * of_query
    of_score = (u_sum**2 * E / 9 + 3 * u**2) + stages * stored**2 / 3
    if score.softcap is not None:
        of_score += (2 * u * contract.tanh_ulp) ** 2
    # Beside a sink, the distance from the maximum is stored as well; it is at most that from the log-sum-exp.
    sink = 0.0 if score.sink is None else 2 * stored**2 / 3
    of_score += sink
    about = np.abs(problem.lse) + math.log(problem.key.shape[0] + 1)
    cap = 0.0 if score.softcap is None else 8 * u * score.softcap
    always = of_exponential(contract) + cap**2
    row = np.stack(
        [product, np.full_like(product, of_score), always + 2 * u**2 * about**2 + sink * problem.lse**2], axis=1
    )
    # Past float32 there is no claim: the sums are not finite.
    return row.astype(np.float32), of_keys.astype(np.float32)


def fourth(x: Floats) -> Floats:
    """Square of the 4-norm of each row."""
    squares = x * x
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", squares, squares)))


def drift_of(contract: Contract, score: Score, E: int, top: Floats) -> Floats:
    """What rescaling and merging may do to all keys before a tile alike, (R,)."""
    terms = errors.exponents(contract, score, E)
    own = 2 * unit(contract.accumulator) * contract.exp_ulp
    return np.asarray(max(0.0, terms.constant - own) + terms.largest * top)


def shares_cut(contract: Contract, E: int, n: Floats) -> tuple[float, Floats]:
    """Mean relative error of a score, and (R,) of a sum of values: of casts and sums that cut off."""
    cut = contract.rounding == "toward_zero"
    scores = sum((unit(getattr(contract, x)) for x in ("query", "key") if x in contract.rounded and cut), 0.0)
    if contract.accumulate == "ieee":
        return scores, np.zeros_like(n)
    bits = contract.accumulator_bits or FORMATS[contract.accumulator].precision
    step = 2.0 ** (1 - bits)
    terms = contract.accumulator_terms
    return scores + step * (E / 2 + 2 * math.ceil(E / terms)), step * (n / 2 + 2 * np.ceil(n / terms))


def lost_weight(contract: Contract, lse: Floats, top: Floats) -> Floats:
    """Error of a weight below its format's normal range, as a share of the row sum, (R,)."""
    eta = half_subnormal(contract.probabilities) if errors.coarser(contract, contract.probabilities) else 0.0
    if contract.rounding == "toward_zero":
        eta *= 2
    if contract.normalised_probabilities:
        return np.full_like(lse, eta)
    return eta * np.exp(contract.ahead + np.minimum(top - lse, 0.0))
