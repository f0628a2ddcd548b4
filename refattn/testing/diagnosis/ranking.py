"""What is wrong with a kernel: the words of all instruments in one order, the most telling first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refattn.testing.diagnosis import fitting
from refattn.testing.diagnosis.fitting import Sample
from refattn.testing.explanation import INSTRUMENTS, Explanation

# Explanations that a report keeps.
MOST = 8
UNKNOWN = "unknown: no known bug gives these numbers"


def diagnose(
    samples: Sequence[Sample],
    *,
    read: Iterable[Explanation] = (),
    measured: Iterable[Explanation] = (),
    symptoms: Iterable[Explanation] = (),
) -> tuple[Explanation, ...]:
    """Rank what may be wrong with a kernel.

    Parameters
    ----------
    samples : sequence of Sample
        Rows of runs that were wrong.
    read : iterable of Explanation, optional
        What the probes read, first causes first.
    measured : iterable of Explanation, optional
        What the score tests measured, the most significant first.
    symptoms : iterable of Explanation, optional
        What fits the wrong rows of single runs.

    Returns
    -------
    tuple of Explanation
        The most telling first: what is a bug of the catalogue before what is none, and among these what was read
        before what was measured, and that before what merely fits. Where nothing explains wrong rows, one explanation
        named "unknown" says where they are.

    Notes
    -----
    A bug that only fits must give every row of every run that was kept, right rows as well, and is told with its share
    of the budget: two bugs may give the same numbers.
    """
    read, measured, symptoms = list(read), list(measured), list(symptoms)
    found = fitting.fits(samples) if samples else []
    fitted = list(fitting.explanations(found, len(samples)))
    ranked = _once([*read, *measured, *fitted, *symptoms])
    ranked.sort(key=_rank)
    where = fitting.places(samples)
    if not ranked and where:
        return (Explanation(bug=None, name=UNKNOWN, where=where, instrument="symptom"),)
    return tuple(ranked[:MOST])


def _rank(explanation: Explanation) -> tuple[bool, int]:
    """Bugs of the catalogue first, then by instrument; the sort keeps the order of each instrument's own."""
    return explanation.bug is None, INSTRUMENTS.index(explanation.instrument)


def _once(explanations: list[Explanation]) -> list[Explanation]:
    """Each bug once, in the words of the first that names it."""
    seen: set[tuple[str | None, str]] = set()
    kept = []
    for explanation in explanations:
        key = (explanation.bug, "" if explanation.bug else explanation.name)
        if key not in seen:
            seen.add(key)
            kept.append(explanation)
    return kept
