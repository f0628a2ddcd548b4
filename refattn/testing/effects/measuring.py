"""Mistakes that are smaller than the bound of any one number, measured over all numbers together.

A score test projects the errors on the change that a known mistake makes: <err, g> / <g, g> is the size beta of the
mistake, and its distance from what the contract allows, over its standard error, says how many sigmas that is. See
refattn/contract/README.md, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.score import Score
from refattn.contract import Contract, errors
from refattn.contract.formats import FORMATS, unit
from refattn.contract.statistics import sigmas
from refattn.testing.effects.evidence import (
    EDGES,
    LARGEST,
    Evidence,
    Index,
    Keys,
    beside,
    rows_of,
    weights_without_mask,
)
from refattn.testing.effects.explaining import LOUD, SCALARS, Change, Rows, Size, Wrong, reweighed
from refattn.testing.effects.heads import heads
from refattn.testing.effects.record import EXPLAINS, Effect
from refattn.testing.effects.rows import row_noise

Floats = npt.NDArray[np.float64]

# Smallest eigenvalue of the correlations of directions that can be told apart.
LEAST_APART = 1e-3
# The chance of a false alarm is shared by this many kinds of tests.
KINDS = 8
# Rows, as effective numbers, that a mean over rows needs.
FEWEST_ROWS = 8.0
# Least change of a key's weight that is worth a word, where the contract would let less be seen.
LEAST_KEY, LEAST_CELL, LEAST_EDGE = 0.01, 0.3, 0.1
# Effects in a verdict; one that is much weaker than the strongest is most likely its shadow.
MOST, SHADOW = 4, 0.35
LOG2E = math.log2(math.e)
NOTHING: Mapping[str, float] = MappingProxyType({})


class Found(NamedTuple):
    """An effect, and what its size would make of the rows of any call; None where that cannot be said."""

    effect: Effect
    change: Change | None


def effects(evidence: Evidence, score: Score, wrong: Wrong) -> list[Found]:
    """What the evidence shows, strongest first; `wrong` are rows whose errors rounding does not explain."""
    E = wrong.call.query.shape[-1]
    read = heads(wrong, evidence.alpha)
    found = [*_scalars(evidence, score, E, wrong), *_edges(evidence, score, wrong), *_noise(evidence)]
    # A key that is wrong in all rows is wrong in one as well.
    found += list(_keys(evidence, score)) or list(_cell(evidence, score))
    found.sort(key=lambda each: -each.effect.sigmas)
    found = [each for each in found if each.effect.sigmas >= SHADOW * found[0].effect.sigmas]
    if read is not None:
        # What another head gives is no small change: other sizes are what it looks like.
        whole = not wrong.large or wrong.explained(read[1], read[0].beta) >= EXPLAINS
        found = [Found(*read)] if whole else [Found(*read), *found]
    elif not found:
        rows = sum(len(squares) for _, squares in evidence.squares)
        row = row_noise(wrong.call, evidence.loudest, rows, evidence.alpha)
        found += [] if row is None else [Found(row, None)]
    return found[:MOST]


def floors(
    contract: Contract, score: Score, E: int, spreads: Mapping[str, float] = NOTHING, top: float = 8.0
) -> dict[str, float]:
    """Largest |beta| of each test that a kernel within the contract may have.

    `spreads` are the standard deviations of what the scale, the softcap and the bias add to a score, `top` is the
    largest score: an error of all scores that looks like a change of the scale is one by its share of the former.
    """
    u, S = unit(contract.accumulator), score.lengths[1]
    u_p, _ = errors.cast(contract, contract.probabilities)
    terms = errors.exponents(contract, score, E)
    exp_error = 2 * u * contract.exp_ulp
    drift = max(0.0, terms.constant - exp_error) + terms.largest * top
    operands = {x: unit(getattr(contract, x)) for x in contract.rounded}
    cut = contract.rounding == "toward_zero"
    stored = unit(contract.scores) if errors.coarser(contract, contract.scores) else 0.0
    # Operands that are rounded shift all rows alike, and little of it lies along the scale: an eighth.
    casts = sum((x for name, x in operands.items() if name != "value"), 0.0) * (1.0 if cut else 0.125)
    bits = contract.accumulator_bits or FORMATS[contract.accumulator].precision
    tensor = 2.0 ** (1 - bits) * (contract.accumulate == "tensor_core")
    h = contract.accumulator_terms
    absolute = 16 * u * top + exp_error + drift + stored * top
    product = tensor * (E / 2 + 2 * math.ceil(E / h)) + casts + 16 * u
    gain = 16 * u + u_p * (1.0 if cut or stored else 1 / 32) + tensor * (S / 2 + 2 * math.ceil(S / h))
    gain += contract.merges * float(errors.merge_error(contract, top, S))
    tanh_error = 0.0 if score.softcap is None else 4 * u * contract.tanh_ulp
    # A row's largest weight is an exponential of 0: its rounding may take the error of that away, in all rows alike.
    gain += min(exp_error, u_p)
    # The sink's weight does not have what all others have in common.
    gain += 0.0 if score.sink is None else exp_error + drift
    # Rounded keys and values are wrong in all rows alike: that is no scatter, and may lie along any key or output.
    shared = math.inf if {"key", "value"} & set(contract.rounded) else 0.0
    # Keys of much weight have most of what a rounded query does to scores, which is by their size.
    stored += operands.get("query", 0.0)
    key = max(LEAST_KEY, 4 * u_p + 4 * exp_error + drift + 4 * stored * max(1.0, top) + 4 * casts)
    return {
        "scale": product + absolute / max(spreads.get("scale", 1.0), 1e-300),
        "gain": gain + tanh_error + shared,
        "softcap": tanh_error + (absolute + product * top) / max(spreads.get("softcap", 1.0), 1e-300),
        "bias": 16 * u + (absolute + product * top) / max(spreads.get("bias", 1.0), 1e-300),
        "key": min(0.5, key) + shared,
        "cell": max(LEAST_CELL, min(0.75, 4 * key)),
        "edge": max(LEAST_EDGE, min(0.5, 2 * key)),
    }


def element(error: float, sigma: float, bias: float, z: float, where: str) -> Effect:
    """The number that is furthest beyond what rounding explains."""
    allowed = z + bias / sigma if sigma > 0 else z
    found = error / sigma if sigma > 0 else math.inf
    return Effect(
        name="element",
        beta=error,
        sigmas=found,
        allowed=allowed,
        where=where,
        text=f"larger than rounding explains: {found:.1f} sigma where {allowed:.1f} is allowed",
    )


def _scalars(evidence: Evidence, score: Score, E: int, wrong: Wrong) -> Iterator[Found]:
    """The scale, the gain, the softcap and the bias: of all heads together, and where there is nothing, of each."""
    heads = sorted({index for index, _, _ in evidence.scalars})
    z = sigmas(len(evidence.names) * (len(heads) + 1), evidence.alpha)
    where = f"all {len(heads)} heads" if len(heads) > 1 else _head(heads[0])
    found = _scalars_of(evidence, heads, z, where, score, E, wrong)
    if found or len(heads) == 1:
        yield from found
        return
    for head in heads:
        yield from _scalars_of(evidence, [head], z, _head(head), score, E, wrong)


def _scalars_of(
    evidence: Evidence, heads: list[Index], z: float, where: str, score: Score, E: int, wrong: Wrong
) -> list[Found]:
    """All sizes at once, each in what the others leave."""
    allowed = floors(evidence.contract, score, E, evidence.spreads, evidence.top)
    chosen = [(error, products) for index, error, products in evidence.scalars if index in heads]
    error, products = (np.concatenate(x) for x in zip(*chosen, strict=True))
    fits = _fits(error, products)
    found: list[Found] = []
    for name, fit in zip(evidence.names, fits, strict=True):
        # Sizes are of first order: of a large one, its square is left to the others.
        rest = max([other.beta**2 for other in fits if other is not fit and other.deviation > 0], default=0.0)
        if not (math.isfinite(fit.deviation) and fit.deviation > 0 and fit.freedom >= FEWEST_ROWS):
            continue
        room = _student(z, fit.freedom) + (allowed[name] + 4 * rest) / fit.deviation
        if abs(fit.beta) / fit.deviation > room:
            size = wrong.fitted(SCALARS[name], fit.beta) if wrong.large else None
            found.append(Found(_scalar(name, fit, room, where, E, size), SCALARS[name]))
    return found


def _fits(error: Floats, products: Floats) -> list[_Fit]:
    """Weighted least squares over rows, (R, n) on (R, n, n); each row is one draw, whatever its columns share."""
    known = np.isfinite(error).all(axis=1) & np.isfinite(products).all(axis=(1, 2))
    error, products = error[known], products[known]
    total = products.sum(axis=0)
    size = np.sqrt(np.maximum(np.diagonal(total), 1e-300))
    correlation = total / np.outer(size, size)
    if not len(error) or np.linalg.eigvalsh(correlation)[0] < LEAST_APART:
        return [_Fit(0.0, math.inf, 0.0)] * error.shape[1]
    inverse = np.linalg.inv(correlation) / np.outer(size, size)
    beta = inverse @ error.sum(axis=0)
    shares = np.diagonal(products, axis1=1, axis2=2) / size**2
    rest = (error - products @ beta) / (1 - np.minimum(shares.max(axis=1), 0.5))[:, None]
    deviation = np.sqrt(np.diagonal(inverse @ (rest.T @ rest) @ inverse))
    freedom = 1 / (shares**2).sum(axis=0) - error.shape[1]
    return [_Fit(*(float(x) for x in each)) for each in zip(beta, deviation, freedom, strict=True)]


@dataclass(frozen=True)
class _Fit:
    """A size, its standard deviation from the scatter of the rows, and the degrees of freedom of that."""

    beta: float
    deviation: float
    freedom: float


def _student(z: float, freedom: float) -> float:
    """The number that Student's t exceeds with the probability that a normal one exceeds z."""
    return math.sqrt(freedom * math.expm1(min(600.0, z * z / (freedom - 0.5))))


def _scalar(name: str, fit: _Fit, allowed: float, where: str, E: int, size: Size | None) -> Effect:
    """The effect in words; of a size that explains errors beyond the proven bound, that size."""
    exact = size is not None and size.share >= EXPLAINS
    beta = size.beta if size is not None and exact else fit.beta
    what = {"scale": "logits", "gain": "output", "softcap": "softcap", "bias": "bias"}[name]
    found = abs(fit.beta) / fit.deviation
    text, bug = f"{what} times {1 + beta:.4f}: {found:.0f} sigma", None
    if name == "scale":
        for factor, cause, of_catalogue in (
            (math.sqrt(E / (E + 1)), f"1/sqrt({E + 1}) instead of 1/sqrt({E})", "C4"),
            (math.sqrt(E / (E - 1)) if E > 1 else math.inf, f"1/sqrt({E - 1}) instead of 1/sqrt({E})", "C4"),
            (1.44 / LOG2E, "log2(e) cut to 1.44", "B16"),
            (1.4453125 / LOG2E, "log2(e) in bfloat16", "B16"),
            (math.log(2), "exponentials of base 2", "C1"),
        ):
            # A size of first order is off by about its square.
            room = 5 * fit.deviation + 0.02 * abs(factor - 1) + (0.0 if exact else (factor - 1) ** 2)
            if abs(1 + beta - factor) <= room:
                text, bug = f"{text}, as of {cause}", of_catalogue
                break
    share = None if size is None else size.share
    return Effect(
        name=name, beta=beta, sigmas=found, allowed=allowed, where=where, text=text, bug=bug, explained=share
    )  # fmt: skip


def _edges(evidence: Evidence, score: Score, wrong: Wrong) -> Iterator[Found]:
    """Keys beside the ends of what the mask lets a row see."""
    floor = floors(evidence.contract, score, 1, evidence.spreads, evidence.top)["edge"]
    z = sigmas(len(EDGES), evidence.alpha)
    best = _best(evidence.edges, floor, z)
    if best is None:
        return
    n, beta, deviation = best
    end, d = EDGES[n]
    inside = (d < 0) == (end == "last")
    away = -d if d < 0 else d + 1
    place = f"{'inside' if inside else 'outside'} the mask's {'right' if end == 'last' else 'left'} end"
    found = abs(beta) / deviation
    # Rows that see the last key may have this end, or none.
    changes = [partial(_of_edge, n, whole) for whole in (False, True)]
    sizes = [wrong.fitted(change, beta) for change in changes] if wrong.large else [None]
    change, size = max(zip(changes, sizes, strict=False), key=lambda each: each[1].share if each[1] else 0.0)
    if size is not None and size.share >= EXPLAINS:
        beta = size.beta
    effect = Effect(
        name="edge",
        beta=beta,
        sigmas=found,
        allowed=z + floor / deviation,
        where=f"{away} key{'s' * (away > 1)} {place}",
        text=f"the key {away} {place} has its weight times {max(0.0, inside + beta):.3f}: {found:.0f} sigma",
        bug=None if _anchored(score) and end == "last" else "A4",
        explained=None if size is None else size.share,
    )
    yield Found(effect, change)


def _anchored(score: Score) -> bool:
    """Whether a mask whose rows end a key off may be one that counts from the other corner."""
    return abs(score.lengths[1] - score.lengths[0]) == 1


def _of_edge(edge: int, whole: bool, call: Call, rows: Rows, beta: float) -> Floats:
    """Change of the output where the keys beside an end of the mask get beta of their weight more."""
    problem = rows.problem(call)
    at, keys = beside(problem, edge, whole=whole)
    change = np.zeros_like(rows.output)
    if len(at):
        some = rows_of(problem, at)
        K, V = problem.key[keys], problem.value[keys]
        change[at] = reweighed(some, weights_without_mask(some, K, keys), V, beta)
    return change


def _keys(evidence: Evidence, score: Score) -> Iterator[Found]:
    """The key whose weight is wrong in all rows."""
    floor = floors(evidence.contract, score, 1, evidence.spreads, evidence.top)["key"]
    z = sigmas(sum(len(keys.norm) for keys in evidence.keys.values()), evidence.alpha)
    chosen: Effect | None = None
    for of_key, keys in evidence.keys.items():
        best = _best(keys, floor, z)
        if best is None:
            continue
        j, beta, deviation = best
        found = abs(beta) / deviation
        if chosen is not None and found <= chosen.sigmas:
            continue
        word = "lost" if abs(beta + 1) < 0.1 else "counted twice" if abs(beta - 1) < 0.1 else None
        word = word or f"weighed {1 + beta:.3f} times"
        chosen = Effect(
            name="key",
            beta=beta,
            sigmas=found,
            allowed=z + floor / deviation,
            where=_key_head(of_key),
            text=f"key {j} {word}: weight off by {beta:+.3f} of itself, {found:.0f} sigma",
        )
    if chosen is not None:
        yield Found(chosen, None)


def _best(keys: Keys, floor: float, z: float) -> tuple[int, float, float] | None:
    """The weight that explains most of the errors, of those that are off for sure: its number, beta and deviation."""
    with np.errstate(all="ignore"):
        beta, deviation = keys.error / keys.norm, np.sqrt(keys.variance) / keys.norm
        sure = (np.abs(beta) - floor > z * deviation) & (np.abs(beta) < LARGEST)
        explained = np.where(sure & np.isfinite(beta), keys.error * beta, 0.0)
    if not sure.any():
        return None
    n = int(explained.argmax())
    return n, float(beta[n]), float(deviation[n])


def _cell(evidence: Evidence, score: Score) -> Iterator[Found]:
    """One weight of one row."""
    cell = evidence.cell
    z = sigmas(max(1, evidence.cells), evidence.alpha)
    floor = floors(evidence.contract, score, 1, evidence.spreads, evidence.top)["cell"]
    if cell is None or not (1 - floor / abs(cell.beta)) * cell.sigmas > z:
        return
    effect = Effect(
        name="cell",
        beta=cell.beta,
        sigmas=cell.sigmas,
        allowed=z + floor * cell.sigmas / abs(cell.beta),
        where=f"{_head(cell.head)}, row {cell.row}, key {cell.key}",
        text=f"one weight of one row is off by {cell.beta:+.3g} of itself: {cell.sigmas:.0f} sigma",
    )
    yield Found(effect, None)


def _noise(evidence: Evidence) -> Iterator[Found]:
    """More noise than the contract's formats make."""
    squares = np.concatenate([np.zeros(0), *(x for _, x in evidence.squares)])
    if len(squares) < FEWEST_ROWS + 1:
        return
    mean = float(squares.mean())
    deviation = max(float(squares.std(ddof=1)) / math.sqrt(len(squares)), 1e-300)
    z = _student(sigmas(1, evidence.alpha), len(squares) - 1.0)
    if not mean - LOUD**2 > z * deviation:
        return
    found = (mean - 1) / deviation
    effect = Effect(
        name="noise",
        beta=math.sqrt(mean),
        sigmas=found,
        allowed=z + (LOUD**2 - 1) / deviation,
        where=f"all {len({index for index, _ in evidence.squares})} heads",
        text=f"errors are {math.sqrt(mean):.2f} times what rounding explains: {found:.0f} sigma",
    )
    yield Found(effect, None)


def _head(index: tuple[int, ...]) -> str:
    """A head in words."""
    *batch, head = index
    return ", ".join([*(f"batch {b}" for b in batch), f"head {head}"])


def _key_head(index: tuple[int, ...]) -> str:
    """A key head in words."""
    *batch, head = index
    return ", ".join([*(f"batch {b}" for b in batch), f"key head {head}"])
