"""The verdict on a result, from its parts: counts, the worst number, and what fits the wrong rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.arrays import dtype_name, quiet
from refattn.contract import Contract, eager
from refattn.contract.presets import FLASH
from refattn.testing.effects.watching import Statistics
from refattn.testing.verdict import symptoms
from refattn.testing.verdict.judge import Part, Terms, parts
from refattn.testing.verdict.record import Tally, Verdict
from refattn.testing.verdict.sampling import Rows

# Parts with wrong rows that are kept for the search for symptoms.
MOST_PARTS = 64
# Calls, of those with wrong rows, that symptoms are looked for in; and the words before the number of rows tried.
MOST_EXPLAINED = 2
FITS = " (fits all "


@quiet
def verdict_of(
    cases: Sequence[tuple[Call, Rows]],
    terms: Terms,
    output: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
    *,
    explain: bool = True,
    statistics: bool = False,
) -> Verdict:
    """Judge chosen rows of a result whose shapes were checked; where they are wrong, look for what fits.

    There are several calls where each entry of a batch is a problem of its own. `statistics` adds what the errors are
    together to what each is on its own.
    """
    axes = output.ndim - 1
    of_output, of_lse = Tally(axes, output.shape[-1]), Tally(axes, 0)
    found: list[tuple[Call, list[Part]]] = []
    watch = Statistics(terms.contract, cases) if statistics else None
    for call, rows in cases:
        wrong: list[Part] = []
        for part in parts(call, rows, terms, output, lse, None if watch is None else watch.of(call)):
            rows_wrong = of_output.add(part.index, part.rows, part.output)
            if part.lse is not None:
                rows_wrong = rows_wrong | of_lse.add(part.index, part.rows, part.lse)
            if rows_wrong.any():
                wrong = wrong[:: 1 if len(wrong) < MOST_PARTS else 2]
                wrong.append(symptoms.thinned(part, np.flatnonzero(rows_wrong)))
        if wrong:
            found.append((call, symptoms.pick(wrong)))
    elements = of_output.elements + of_lse.elements
    judged = elements - of_output.not_judged - of_lse.not_judged
    effects = () if watch is None else watch.effects(proven=not found)
    passed = not found and not effects and (judged > 0 or elements == 0)
    explain = explain and bool(found)
    return Verdict(
        passed=passed,
        budget_used=max(of_output.share, 0.0),
        lse_budget_used=None if lse is None else max(of_lse.share, 0.0),
        worst=of_output.worst,
        worst_lse=of_lse.worst,
        wrong_rows=np.unique(np.concatenate([*of_output.wrong_rows, *of_lse.wrong_rows]), axis=0),
        wrong_columns=np.flatnonzero(of_output.wrong_columns),
        wrong_elements=of_output.wrong_elements,
        elements=of_output.elements,
        not_judged=of_output.not_judged + of_lse.not_judged,
        rows_checked=sum(rows.checked for _, rows in cases),
        rows=sum(rows.total for _, rows in cases),
        contract=terms.contract,
        symptoms=_symptoms(found, terms) if explain else (),
        passes_under=_passes_under(found, cases, terms, output, lse) if explain else None,
        notes=_notes(terms.contract, output),
        effects=effects,
        statistical_budget_used=None if watch is None else watch.budget_used,
    )


def _symptoms(found: list[tuple[Call, list[Part]]], terms: Terms) -> tuple[str, ...]:
    """The mistakes that fit the wrong rows, of each call where there are several."""
    few = [found[n] for n in np.unique(np.linspace(0, len(found) - 1, MOST_EXPLAINED).astype(int))]
    told = [symptoms.find(call, terms, tried) for call, tried in few]
    if len(told) == 1:
        return told[0]
    texts = [[symptom.partition(FITS)[0] for symptom in each] for each in told]
    tried = sum(len(part.rows) for _, wrong in few for part in wrong)
    return tuple(f"{text}{FITS}{tried} wrong rows tried)" for text in texts[0] if all(text in each for each in texts))


def _passes_under(
    found: list[tuple[Call, list[Part]]],
    cases: Sequence[tuple[Call, Rows]],
    terms: Terms,
    output: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
) -> str | None:
    """Another contract that the same rows pass under: that of stored scores, where this one keeps them."""
    name = terms.contract.query
    if name not in FLASH or terms.contract == eager(name):
        return None
    other = replace(terms, contract=eager(name))
    first = [(call, Rows(tuple((part.index, part.rows) for part in tried), 0, 0)) for call, tried in found]
    for call, chosen in (*first, *cases):
        for part in parts(call, chosen, other, output, lse):
            if part.output.wrong.any() or (part.lse is not None and part.lse.wrong.any()):
                return None
    return f"eager({name!r})"


def _notes(contract: Contract, output: npt.NDArray[Any]) -> tuple[str, ...]:
    """A word where the output is of another dtype than the contract says."""
    got = dtype_name(output)
    if got == contract.output:
        return ()
    return (f"the output is {got}, the contract's is {contract.output}, whose rounding the bound allows",)
