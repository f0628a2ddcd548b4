"""Which bugs of the catalogue give the numbers that a kernel returned, within what its contract allows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn.testing import bugs
from refattn.testing.bugs.engine import Head
from refattn.testing.explanation import Explanation
from refattn.testing.verdict.judge import Compared, Part
from refattn.testing.verdict.record import runs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Ids of the catalogue; plain mistakes beside it have words.
CATALOGUED = re.compile(r"[A-G]\d+")
# Rows that a variant must explain before it is held against all.
SCREENED = 4
# Unit roundoffs of the largest number of a row that rows without a bound are given.
ROOM = 16
# Variants of one bug that are tried on one problem: sizes of tiles by places would be many.
MOST_VARIANTS = 512
# Variants that give all rows of a problem, of which the best is taken: sizes of tiles past its lengths are alike.
MOST_ALIKE = 16
# Share of the mean square error beside the right values that is left beside a bug's: less is gained by chance, where no
# row is wrong and one of a thousand variants happens to lie nearer.
LEFT = 0.9


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of one run of a kernel, wrong ones and right ones, with what bugs are computed on."""

    problem: bugs.Problem
    parts: tuple[Part, ...]
    check: str
    unit: float  # largest unit roundoff of the kernel's weights, output and sums
    widest: float  # largest finite bound of an output: it stands in for rows that have none
    typical: float  # median bound of an output: rows that a bug changes have it where their own is less
    sums: float  # unit roundoff of the kernel's sums

    @property
    def rows(self) -> list[tuple[int, int, Ints]]:
        """Batch entry, head and rows of each part."""
        return [(self._entry(part), part.index[-1], part.rows) for part in self.parts]

    def _entry(self, part: Part) -> int:
        """The batch entry of a part, the axes before the heads taken together."""
        batch = self.problem.batch
        return int(np.ravel_multi_index(part.index[:-1], batch)) if batch else 0

    @cached_property
    def heads(self) -> list[Head]:
        """The rows of each part, of which what is computed serves all bugs."""
        return [Head(self.problem, *at) for at in self.rows]

    @cached_property
    def seen(self) -> bugs.Seen:
        """What the kernel returned for the rows."""
        logs = [part.lse for part in self.parts]
        lse = None if None in logs else np.concatenate([x.got for x in logs if x is not None])
        return bugs.Seen(self.rows, np.concatenate([part.output.got for part in self.parts]), lse)

    @cached_property
    def plain(self) -> float:
        """Error over bound of the right values, root mean square over all outputs, over the rest where these hold."""
        shares = [_shares(part.output, part.output.expected, self) for part in self.parts]
        if not any(part.output.wrong.any() for part in self.parts):
            shares += [_shares(part.lse, part.lse.expected, self) for part in self.parts if part.lse is not None]
        return float(np.sqrt(np.mean(np.square(np.concatenate([x.ravel() for x in shares])))))

    def few(self) -> Sample:
        """Return the sample with a few of its rows, wrong ones first.

        Returns
        -------
        Sample
            SCREENED rows.
        """
        found, left = [], SCREENED
        for part in sorted(self.parts, key=lambda part: -int(wrong(part).sum())):
            order = np.argsort(~wrong(part), kind="stable")[:left]
            if len(order):
                lse = None if part.lse is None else part.lse.take(order)
                found.append(Part(part.index, part.rows[order], part.output.take(order), lse))
                left -= len(order)
        return replace(self, parts=tuple(found))


@dataclass(frozen=True)
class Fit:
    """How well a bug gives what a kernel returned."""

    bug: bugs.Bug
    label: str
    explained: frozenset[int]  # numbers of the samples
    share: float  # root mean square of error over bound

    @property
    def samples(self) -> int:
        """How many samples it explains."""
        return len(self.explained)


class Held(NamedTuple):
    """How the numbers of a sample are those of a bug."""

    share: float  # root mean square of error over bound
    told: bool  # some wrong row is given by numbers
    constant: bool  # what is given by no number is wrong, and the same number everywhere


def wrong(part: Part) -> npt.NDArray[np.bool_]:
    """Which rows of a part are wrong."""
    found: npt.NDArray[np.bool_] = np.logical_or.reduce(part.output.wrong, axis=-1)
    return found if part.lse is None else np.logical_or(found, part.lse.wrong)


@quiet
def fits(samples: Iterable[Sample]) -> list[Fit]:
    """Return the bugs that give all rows of some samples, those that explain most first.

    Parameters
    ----------
    samples : iterable of Sample
        Rows of several runs; a bug must give every row of each run that it applies to, and apply to one at least.

    Returns
    -------
    list of Fit
        At most one for each bug; none that explains some of what another one explains and nothing else.
    """
    every = [(sample, sample.few()) for sample in samples]
    found = []
    for bug in bugs.BUGS:
        fit = _fit(bug, every)
        if fit is not None:
            found.append(fit)
    most = [fit for fit in found if not any(fit.explained < other.explained for other in found)]
    return sorted(most, key=lambda fit: (-fit.samples, fit.share))


def explanations(found: Iterable[Fit], samples: int) -> Iterator[Explanation]:
    """Say which bugs fit.

    Parameters
    ----------
    found : iterable of Fit
        The bugs.
    samples : int
        How many runs they were tried on.

    Yields
    ------
    Explanation
        One for each bug.
    """
    for fit in found:
        of = f"{fit.samples} of {samples} wrong runs" if samples > 1 else "the wrong run"
        yield Explanation(
            bug=fit.bug.id if CATALOGUED.fullmatch(fit.bug.id) else None,
            name=fit.bug.name + (f" ({fit.label})" if fit.label else ""),
            effect=f"its numbers are those of {of}, with {fit.share:.2g} of the budget left over as error",
            instrument="known bug",
            links=fit.bug.links,
            strength=fit.samples / (1 + fit.share),
        )


def places(samples: Iterable[Sample]) -> str:
    """Heads and rows that are wrong in some samples, in words.

    Parameters
    ----------
    samples : iterable of Sample
        The runs.

    Returns
    -------
    str
        "heads 0..3, rows 64..127".
    """
    heads: list[int] = []
    rows: list[int] = []
    for sample in samples:
        for part in sample.parts:
            at = part.rows[wrong(part)]
            heads += [part.index[-1]] * bool(len(at))
            rows += at.tolist()
    return f"heads {runs(heads)}, rows {runs(rows)}" if rows else ""


def _fit(bug: bugs.Bug, every: list[tuple[Sample, Sample]]) -> Fit | None:
    """The best variant of a bug, or None where it does not give what it should."""
    found: dict[int, tuple[Held, str]] = {}
    for at, (sample, few) in enumerate(every):
        best: tuple[Held, str] | None = None
        tried, alike = False, 0
        for variant in itertools.islice(bug.variants(sample.problem, sample.seen), MOST_VARIANTS):
            tried = True
            held = None if _held(variant, few) is None else _held(variant, sample)
            if held is not None:
                best = (held, variant.label) if best is None or held < best[0] else best
                alike += 1
            if alike == MOST_ALIKE:
                break
        if best is None and tried:
            return None
        if best is not None:
            found[at] = best
    every_held = [held for held, _ in found.values()]
    # What no formula tells may be anything beside numbers that are told; alone it must at least be one number.
    if not any(held.told for held in every_held) and not all(held.constant for held in every_held):
        return None
    share = float(np.sqrt(np.mean([held.share**2 for held in every_held]))) if found else 0.0
    right = np.mean([every[at][0].plain ** 2 for at in found]) if found else 0.0
    if share**2 > LEFT * right:
        return None
    return Fit(bug, next(reversed(found.values()))[1], frozenset(found), share) if found else None


def _held(variant: bugs.Variant, sample: Sample) -> Held | None:
    """A sample against what a variant gives; None where a row is beyond its bound."""
    # What a kernel with wrong outputs says of its log-sum-exps follows from no formula of its outputs.
    of_lse = not any(part.output.wrong.any() for part in sample.parts)
    squares, count, told, missed = 0.0, 0, False, False
    unknown: tuple[list[Floats], ...] = ([], [])
    for part, right in zip(sample.parts, sample.heads, strict=True):
        head = variant.of(right, sample.sums)
        try:
            pairs = [(part.output, head.output)]
            if of_lse and part.lse is not None:
                pairs.append((part.lse, head.lse))
        except (ValueError, ZeroDivisionError, IndexError):
            return None
        for number, (compared, expected) in enumerate(pairs):
            share = _shares(compared, expected, sample)
            if "room" in variant.bug.steps and (share > 1).any():
                # A rounding is tipped in few of all numbers.
                if (share > 1).mean() > 0.5:
                    return None
                share = _shares(compared, expected, sample, head.room[number])
            left = np.isnan(expected) & variant.bug.leftover
            share[left] = 0.0
            if not (share <= 1).all():
                return None
            squares, count = squares + float(np.sum(share * share)), count + share.size
            told = told or bool((compared.wrong & ~left).any())
            unknown[number].append(compared.got[left])
            missed = missed or not wrong(part)[left if left.ndim == 1 else left.any(axis=-1)].all()
    constant = not missed and all(_one(np.concatenate([np.empty(0), *numbers])) for numbers in unknown)
    return Held(float(np.sqrt(squares / count)), told, constant) if count else None


def _one(numbers: Floats) -> bool:
    """Whether numbers are all the same, or all NaN."""
    return bool(np.isnan(numbers).all() or (numbers == numbers[0]).all())


def _shares(compared: Compared, expected: Floats, sample: Sample, more: Floats | float = 0.0) -> Floats:
    """Errors of what was got from other values, as shares of the bound, which grows with the values, and more room."""
    right = np.abs(np.where(np.isfinite(compared.expected), compared.expected, 0.0))
    growth = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    if expected.ndim > 1:
        right, growth = (x.max(axis=-1, keepdims=True, initial=0.0) for x in (right, growth))
    bound = np.where(np.isnan(compared.share), np.inf, compared.bound)
    if expected.ndim > 1:
        changed = (np.abs(expected - compared.expected) > bound).any(axis=-1, keepdims=True)
        bound = np.where(changed & (bound > 0), np.maximum(bound, sample.typical), bound)
    bound = bound * np.maximum(1.0, growth / np.maximum(right, np.finfo(np.float64).tiny))
    # A row that is to see nothing has a bound of 0, whatever a wrong kernel finds there.
    room = np.maximum(ROOM * sample.unit * growth, sample.widest)
    bound = np.where(compared.bound == 0, room, bound) + more
    same = (compared.got == expected) | (np.isnan(compared.got) & np.isnan(expected))
    share = np.abs(compared.got - expected) / bound
    share[np.isnan(share)] = np.inf
    share[same] = 0.0
    return share
