"""Certified answers of a case held against balls: violations, what the radius leaves open, and how wide it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from flint import arb

from refattn import oracle
from tests.certified import kinds
from tests.certified.balls import Head, Row, raised, within
from tests.certified.kinds import Case

TIERS = ("float64", "double-double")
U = 2.0**-53


class Answer(NamedTuple):
    """What is claimed of the rows of a case: (R, Ev) and (R,)."""

    output: np.ndarray
    output_low: np.ndarray
    radius: np.ndarray
    lse: np.ndarray
    lse_low: np.ndarray
    lse_radius: np.ndarray


Certify = Callable[[Case, str], Answer]


def certified(case: Case, tier: str) -> Answer:
    """The oracle's answer."""
    found = oracle.certified(case.query, case.key, case.value, tier=tier, rows=case.rows, **case.arguments)
    R = len(case.asked())
    wide, flat = (R, case.value.shape[-1]), (R,)
    return Answer(*(x.reshape(shape) for x, shape in zip(found, [wide] * 3 + [flat] * 3, strict=True)))


@dataclass
class Tally:
    """Counts over elements of outputs, and the widths of radii."""

    elements: int = 0
    lses: int = 0
    wrong: list[str] = field(default_factory=list)
    inside: int = 0  # in the domain where a radius is promised
    infinite_inside: int = 0
    infinite_outside: int = 0
    ratios: list[float] = field(default_factory=list)  # radius / error, where there is an error
    lse_ratios: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)  # radius / max |v|, in the domain

    def add(self, other: Tally) -> None:
        """Count what another has counted too."""
        for name, x in vars(other).items():
            setattr(self, name, getattr(self, name) + x)


def domain(head: Head, tier: str) -> np.ndarray:
    """Elements (R, Ev) for which the oracle promises a finite radius."""
    seen = head.seen()
    used = seen.any(axis=0)
    query, key, value = head.query, head.key[used], head.value[used]
    scale = 1 / math.sqrt(query.shape[1]) if head.scale is None else head.scale

    def in_range(x: np.ndarray) -> np.ndarray:
        size = np.abs(x)
        return (size == 0) | ((size >= 2.0**-900) & (size < 2.0**900))

    with np.errstate(all="ignore"):
        # No key that some row sees may be out of range, since rows may share what bounds their errors.
        factors = np.array([scale, head.softcap or 0.0])
        good = in_range(query).all(axis=1) & in_range(key).all() & in_range(factors).all()
        reach = np.linalg.norm(query, axis=1) * np.linalg.norm(key, axis=1).max(initial=0.0) * abs(scale)
        added = 0.0 if head.bias is None else np.abs(head.bias[..., used]).max(initial=0.0)
        others = added + (abs(head.sink) if math.isfinite(head.sink) else 0.0) + (head.softcap or 0.0)
        # Theorem A wants errors of exponents below 0.009, Theorem O a largest logit below 2^43.
        if tier == "float64":
            good = good & ((query.shape[1] + 6) * U * reach + 12 * U * others < 0.006)
        else:
            good = good & (reach + others < 1e12)
        of_value = (np.abs(value) < 2.0**900).all() & np.isfinite(value).all(axis=0)
    return good[:, None] & np.broadcast_to(of_value, (1, head.value.shape[1]))


def hunt(case: Case, name: str, certify: Certify = certified, tiers: tuple[str, ...] = TIERS) -> dict[str, Tally]:
    """Hold each tier's answer against balls; `name` says in reports where the case came from."""
    answers = {tier: certify(case, tier) for tier in tiers}
    tallies = {tier: Tally() for tier in tiers}
    for places, head in case.heads():
        parts = {tier: Answer(*(x[places] for x in answer)) for tier, answer in answers.items()}
        _hold(head, parts, name, tallies)
    return tallies


def of_kind(
    kind: Callable[[kinds.Rng], Case],
    elements: int,
    first: int = 0,
    certify: Certify = certified,
    tiers: tuple[str, ...] = TIERS,
    to_first: bool = False,
) -> dict[str, Tally]:
    """Hunt with the cases of a kind, by seeds from `first` on, until so many elements have been looked at.

    `to_first`: or until one is wrong.
    """
    tallies, seed = {tier: Tally() for tier in tiers}, first
    while tallies[tiers[0]].elements < elements and not (to_first and any(x.wrong for x in tallies.values())):
        case = kind(kinds.kind_rng(kind, seed))
        for tier, tally in hunt(case, f"{kind.__name__} {seed}", certify, tiers).items():
            tallies[tier].add(tally)
        seed += 1
    return tallies


def _hold(head: Head, answers: Mapping[str, Answer], name: str, tallies: dict[str, Tally]) -> None:
    """Hold the answers for one head against its balls."""
    finite = np.where(head.seen().any(axis=0)[:, None] & np.isfinite(head.value), np.abs(head.value), 0.0)
    largest = finite.max(initial=0.0)

    def decide(i: int, row: Row) -> list[tuple[str, int, bool, float]] | None:
        checks = []
        for tier, answer in answers.items():
            for c, exact in enumerate([*row.output, row.lse]):
                fields = answer[:3] if c < len(row.output) else answer[3:]
                high, low, radius = (float(x[i, c] if x.ndim == 2 else x[i]) for x in fields)
                holds, ratio = _one(high, low, radius, exact)
                if holds is None:
                    return None
                checks.append((tier, c, holds, ratio))
        return checks

    inside = {tier: domain(head, tier) for tier in answers}
    for i, found in enumerate(raised(head, decide)):
        for tier, answer in answers.items():
            tally, Ev = tallies[tier], head.value.shape[1]
            tally.elements += Ev
            tally.lses += 1
            if found is None:
                tally.wrong.append(f"{name} {tier} row {i}: undecided")
                continue
            for _, c, holds, ratio in (x for x in found if x[0] == tier):
                if not holds:
                    what = f"output[{c}]" if c < Ev else "lse"
                    tally.wrong.append(f"{name} {tier} row {i} {what}: radius / error = {ratio:.3g}")
                elif not math.isnan(ratio):
                    (tally.ratios if c < Ev else tally.lse_ratios).append(ratio)
            known = np.isfinite(answer.radius[i])
            tally.inside += int(inside[tier][i].sum())
            tally.infinite_inside += int((inside[tier][i] & ~known).sum())
            tally.infinite_outside += int((~inside[tier][i] & ~known).sum())
            if largest > 0:
                with np.errstate(all="ignore"):
                    tally.widths += (answer.radius[i][known & inside[tier][i]] / largest).tolist()


def _one(high: float, low: float, radius: float, exact: arb | None) -> tuple[bool | None, float]:
    """Whether a number with a radius is right, and radius / error; NaN where there is no error, or no radius."""
    if exact is None:
        return math.isnan(high) and radius == math.inf, math.nan
    if radius == math.inf:
        return True, math.nan
    if not radius >= 0:
        return False, math.nan
    holds = within(high, low, radius, exact)
    if not (math.isfinite(high) and math.isfinite(low)):
        return holds, 0.0 if holds is False else math.nan
    error = abs(arb(high) + arb(low) - exact)
    return holds, float((arb(radius) / error).mid()) if error > 0 else math.nan
