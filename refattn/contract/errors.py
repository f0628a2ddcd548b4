"""The constants of the theorem of README.md: what each stage of a kernel may do to a score, a weight and a sum."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.score import Score
from refattn.contract.formats import FORMATS, half_subnormal, unit
from refattn.contract.presets import flash
from refattn.contract.record import Contract

Floats = npt.NDArray[np.float64]

# The float64 reference that a kernel is compared with is itself a kernel, of this contract (README.md, lemma 9).
REFERENCE = replace(flash("float64"), min_tile=512, merges=0)


class Exponents(NamedTuple):
    """Coefficients of e_j, the error of one exponent, README.md (3): what each is multiplied with is in brackets."""

    product: float  # [|scale| sum_t |q_t| |k_jt|]
    raw: float  # [|r_j|], scaled scores
    capped: float  # [|c_j|], scores after the softcap
    bias: float  # [|b_j|]
    score: float  # [|s_j|], c_j + b_j
    largest: float  # [max(|s_j|, |m|)]
    distance: float  # [m - s_j]
    constant: float  # [1]


class Operands(NamedTuple):
    """Relative and absolute error of rounding each operand to its format right before the product."""

    query: tuple[float, float]
    key: tuple[float, float]
    value: tuple[float, float]


def tiny(contract: Contract) -> float:
    """Smallest normal number of the accumulator: what is below may be flushed to zero."""
    return 2.0 ** FORMATS[contract.accumulator].min_exponent


def coarser(contract: Contract, name: str) -> bool:
    """Whether storing a number in this format rounds what the accumulator holds."""
    return FORMATS[name].precision < FORMATS[contract.accumulator].precision


def cast(contract: Contract, name: str) -> tuple[float, float]:
    """Relative and absolute error of bringing an accumulator's number into an operand's format."""
    factor = 2.0 if contract.rounding == "toward_zero" else 1.0
    return (factor * unit(name), factor * half_subnormal(name)) if coarser(contract, name) else (0.0, 0.0)


def operands(contract: Contract) -> Operands:
    """What rounding the operands costs: nothing for one that enters its product as it was given."""
    formats = {"query": contract.query, "key": contract.key, "value": contract.value}
    return Operands(**{x: cast(contract, formats[x]) if x in contract.rounded else (0.0, 0.0) for x in formats})


def rescales(contract: Contract, S: int) -> int:
    """T: how often one key's weight may be rescaled or merged."""
    return 0 if contract.normalised_probabilities else -(-S // contract.min_tile) + 1


def last_steps(contract: Contract, score: Score) -> int:
    """Roundings of an unnormalised output beside those of its sum: rescaling, division, dropout's factor."""
    return 3 * rescales(contract, score.lengths[1]) + 8 + (0 if score.dropout is None else 4)


def stale(contract: Contract) -> float:
    """How far the subtracted number may lie from where a running maximum of exact scores would be.

    The 1 is room for the error of the scores: where it could be more, no claim is made.
    """
    return contract.lazy + contract.ahead + 1.0


def geometric(x: Floats) -> Floats:
    """The sum of all orders of an error of first order x, x / (1 - x); inf where it does not converge."""
    with np.errstate(divide="ignore"):
        return np.where(x < 1, x / np.maximum(1 - x, 0), np.inf)


def plain_sum(contract: Contract, n: npt.ArrayLike) -> Floats:
    """README.md, lemma 3: relative error of n roundings to nearest in the accumulator's format."""
    return geometric(np.asarray(n, dtype=np.float64) * unit(contract.accumulator))


def product_sum(contract: Contract, n: npt.ArrayLike) -> Floats:
    """README.md, lemmas 3 and 4: error of a sum of n products, as a share of the sum of their magnitudes."""
    n = np.asarray(n, dtype=np.float64)
    if contract.accumulate == "ieee":
        return plain_sum(contract, n)
    bits = contract.accumulator_bits or FORMATS[contract.accumulator].precision
    return geometric(2.0 ** (1 - bits) * (n + 2 * np.ceil(n / contract.accumulator_terms)))


def merge_error(contract: Contract, top: npt.ArrayLike, S: int) -> Floats:
    """README.md, lemma 6: error of an exponent that passes through a stored log-sum-exp, for maxima up to `top`."""
    u = unit(contract.accumulator)
    stored = unit(contract.lse) if coarser(contract, contract.lse) else 0.0
    spread = math.log(S + 1) + stale(contract)
    top = np.asarray(top, dtype=np.float64)
    return 2 * u * contract.rescale_ulp + u * (8 * top + 13 * spread + 8) + stored * (top + spread)


def log_error(contract: Contract, top: Floats, S: int) -> Floats:
    """README.md, lemma 6: error of a log-sum-exp that was formed as maximum plus logarithm."""
    return unit(contract.accumulator) * (7 * top + 6 * (math.log(S + 1) + stale(contract)) + 8)


def exponents(contract: Contract, score: Score, E: int) -> Exponents:
    """README.md, lemmas 2, 5 and 6: the coefficients of e_j."""
    u, S = unit(contract.accumulator), score.lengths[1]
    T = rescales(contract, S)
    in_q, in_k, _ = operands(contract)
    us = unit(contract.scores) if coarser(contract, contract.scores) else 0.0
    etas = half_subnormal(contract.scores) if us else 0.0
    product = (1 + in_q[0]) * (1 + in_k[0]) * (1 + float(product_sum(contract, E))) * (1 + 4 * u) - 1
    raw, stages = 2 * (u + us), 2
    capped = cap = bias = added = 0.0
    if score.softcap is not None:
        raw, stages = raw + 2 * u + us, stages + 3
        capped = 2 * u * contract.tanh_ulp + 2 * (u + us)
        cap = 8 * u * score.softcap
    if score.bias is not None:
        bias, added, stages = 4 * u, u + us, stages + 1
    # A sink beside stored scores: frameworks subtract the maximum in that format.
    shifted = us if score.sink is not None else 0.0
    largest = u * (1 + T) + contract.merges * float(merge_error(contract, 1.0, S) - merge_error(contract, 0.0, S))
    distance = 6 * u * (1 + contract.merges) + shifted
    constant = (
        2 * u * (contract.exp_ulp + T * contract.rescale_ulp)
        + (largest + 2 * distance) * (contract.lazy + contract.ahead)
        + contract.merges * float(merge_error(contract, 0.0, S))
        + cap
        + (stages + 1) * (1 + abs(score.scale) + (score.softcap or 0.0)) * etas
    )
    first = Exponents(product, raw, capped, bias, added + u, largest, distance, constant)
    # Each later rounding acts on the errors before it as well.
    grown = math.exp(sum(first[1:7]))
    return Exponents(*(grown * x for x in first))


def feedback(terms: Exponents) -> float:
    """README.md, lemma 5: how much of the largest e_j each e_j takes in, through the number that is subtracted."""
    return terms.largest + 2 * terms.distance


def share_of_reference(contract: Contract, score: Score, E: int) -> float:
    """README.md, lemma 9: the float64 reference's error as a share of the bound of the contract."""
    S = score.lengths[1]
    ours, theirs = exponents(contract, score, E), exponents(REFERENCE, score, E)
    shares = [theirs_x / ours_x for theirs_x, ours_x in zip(theirs, ours, strict=True) if theirs_x > 0]
    for n in (1, max(S, 1)):
        steps = [n + last_steps(c, score) for c in (REFERENCE, contract)]
        shares.append(float(plain_sum(REFERENCE, steps[0]) / plain_sum(contract, steps[1])))
    return max(shares)
