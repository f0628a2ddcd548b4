"""Which bugs of the catalogue give the numbers that a kernel returned, within what its contract allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn.testing import bugs
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
MOST_VARIANTS = 48


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of one run of a kernel, wrong ones and right ones, with what bugs are computed on."""

    problem: bugs.Problem
    parts: tuple[Part, ...]
    check: str
    unit: float  # largest unit roundoff of the kernel's weights, output and sums
    widest: float  # largest finite bound of an output: it stands in for rows that have none

    @property
    def rows(self) -> list[tuple[int, int, Ints]]:
        """Batch entry, head and rows of each part."""
        return [(self._entry(part), part.index[-1], part.rows) for part in self.parts]

    def _entry(self, part: Part) -> int:
        """The batch entry of a part, the axes before the heads taken together."""
        batch = self.problem.batch
        return int(np.ravel_multi_index(part.index[:-1], batch)) if batch else 0

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
    samples: int
    share: float  # root mean square of error over bound


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
        At most one for each bug.
    """
    every = [(sample, sample.few()) for sample in samples]
    found = []
    for bug in bugs.BUGS:
        fit = _fit(bug, every)
        if fit is not None:
            found.append(fit)
    return sorted(found, key=lambda fit: (-fit.samples, fit.share))


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
    shares, label, count = [], "", 0
    for sample, few in every:
        best: tuple[float, str] | None = None
        tried = False
        for number, variant in enumerate(bug.variants(sample.problem)):
            if number == MOST_VARIANTS:
                break
            tried = True
            if _share(variant, few) is None:
                continue
            share = _share(variant, sample)
            if share is not None and (best is None or share < best[0]):
                best = share, variant.label
        if best is None and tried:
            return None
        if best is not None:
            shares.append(best[0])
            label, count = best[1], count + 1
    return Fit(bug, label, count, float(np.sqrt(np.mean(np.square(shares))))) if count else None


def _share(variant: bugs.Variant, sample: Sample) -> float | None:
    """Error over bound of what a variant gives, root mean square over all rows; None where one is beyond its bound."""
    try:
        output, lse, _ = variant.apply(sample.rows)
    except (ValueError, ZeroDivisionError, IndexError):
        return None
    # What a kernel with wrong outputs says of its log-sum-exps follows from no formula of its outputs.
    of_lse = not any(part.output.wrong.any() for part in sample.parts)
    squares, count, at = 0.0, 0, 0
    for part in sample.parts:
        rows = slice(at, at + len(part.rows))
        at = rows.stop
        found = [_shares(part.output, output[rows], sample)]
        if of_lse and part.lse is not None and lse is not None:
            found.append(_shares(part.lse, lse[rows], sample))
        for share in found:
            if not (share <= 1).all():
                return None
            squares, count = squares + float(np.sum(share * share)), count + share.size
    return float(np.sqrt(squares / count)) if count else None


def _shares(compared: Compared, expected: Floats, sample: Sample) -> Floats:
    """Errors of what was got from other values, as shares of the bound, which grows with the values."""
    right = np.abs(np.where(np.isfinite(compared.expected), compared.expected, 0.0))
    growth = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    if expected.ndim > 1:
        right, growth = (x.max(axis=-1, keepdims=True, initial=0.0) for x in (right, growth))
    bound = np.where(np.isnan(compared.share), np.inf, compared.bound)
    bound = bound * np.maximum(1.0, growth / np.maximum(right, np.finfo(np.float64).tiny))
    # A row that is to see nothing has a bound of 0, whatever a wrong kernel finds there.
    room = np.maximum(ROOM * sample.unit * growth, sample.widest)
    bound = np.where(compared.bound == 0, room, bound)
    same = (compared.got == expected) | (np.isnan(compared.got) & np.isnan(expected))
    share = np.abs(compared.got - expected) / bound
    share[np.isnan(share)] = np.inf
    share[same] = 0.0
    return share
