"""The verdict on one set of arrays, and its text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn.contract import Contract
from refattn.testing.effects.record import Effect

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Element:
    """One number of a kernel's result against what is right.

    Parameters
    ----------
    index : tuple of int
        Place along the axes (..., H, L, Ev) of the output or (..., H, L) of the log-sum-exp.
    got, expected : float
        The kernel's number and the right one; a log-sum-exp in base e.
    bound : float
        How far a kernel within the contract may be from `expected`.
    """

    index: tuple[int, ...]
    got: float
    expected: float
    bound: float

    @property
    def error(self) -> float:
        """Distance of `got` from `expected`; 0 where both are the same infinity or NaN."""
        same = self.got == self.expected or (math.isnan(self.got) and math.isnan(self.expected))
        return 0.0 if same else abs(self.got - self.expected)


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether a result is right under its contract, where it is worst, and what the errors look like.

    Parameters
    ----------
    passed : bool
        Whether every number that was judged lies within its bound, at least one was judged, and the errors together
        are no more than rounding explains.
    budget_used : float
        Largest |error| / bound of the output; above 1 is wrong, inf is a NaN, an infinity or any error where the
        bound is 0.
    lse_budget_used : float or None
        The same for the log-sum-exp; None where there was none.
    worst, worst_lse : Element or None
        Where that largest share is.
    wrong_rows : array of int, shape (n, axes)
        Rows (..., H, L) with a wrong number, in order.
    wrong_columns : array of int, shape (m,)
        Columns of the output with a wrong number.
    wrong_elements, elements : int
        Numbers of the output that are wrong, and that were checked.
    not_judged : int
        Numbers that the bound's hypotheses leave out: scores so large, or so close to overflow, that nothing is proved.
    rows_checked, rows : int
        Rows of the output that were checked, and all of them.
    contract : Contract
        The numerics that the result was held to.
    symptoms : tuple of str
        Known mistakes whose results fit the wrong rows within the bound, each computed exactly.
    passes_under : str or None
        Another contract under which the same rows pass.
    notes : tuple of str
        What else was seen.
    entry : str
        What an entry of the batch is called: "batch", or "sequence" where each has its own L and S.
    effects : tuple of Effect
        What the errors have in common that the contract does not explain, strongest first.
    statistical_budget_used : float or None
        Largest |error| over what rounding explains, where the model makes a claim; None where it makes none.
    """

    passed: bool
    budget_used: float
    lse_budget_used: float | None
    worst: Element | None
    worst_lse: Element | None
    wrong_rows: Ints
    wrong_columns: Ints
    wrong_elements: int
    elements: int
    not_judged: int
    rows_checked: int
    rows: int
    contract: Contract
    symptoms: tuple[str, ...] = ()
    passes_under: str | None = None
    notes: tuple[str, ...] = ()
    entry: str = "batch"
    effects: tuple[Effect, ...] = ()
    statistical_budget_used: float | None = None

    @property
    def text(self) -> str:
        """All of it for a person: verdict, coverage and contract first, then the worst number and what fits."""
        return "\n".join(self.lines(contract=True))

    def __str__(self) -> str:
        """The text."""
        return self.text

    def to_json(self) -> str:
        """Return all of it as JSON.

        Returns
        -------
        str
            An object with the verdict's fields; numbers that are not finite are the strings "inf", "-inf" and "nan".
        """
        return json.dumps(plain(self), indent=1)

    def lines(self, *, contract: bool) -> list[str]:
        """Return the text's lines.

        Parameters
        ----------
        contract : bool
            Whether the first line tells the contract.

        Returns
        -------
        list of str
            The lines.
        """
        under = f"; under {self.contract.describe()}" if contract else ""
        word = "right" if self.passed else "WRONG" if len(self.wrong_rows) or self.effects else "not judged"
        found = [f"{word}: {self._headline()}{under}"]
        for name, element, used in (
            ("output", self.worst, self.budget_used),
            ("lse", self.worst_lse, self.lse_budget_used),
        ):
            if element is not None and used is not None:
                found.append(f"  {name}: {_worst(element, used, name, self.entry)}")
        if len(self.wrong_rows):
            found.append(f"  where: {self._where()}")
        # A symptom explains wrong rows; an effect may say no more than that they are wrong.
        found += [f"  symptom: {symptom}" for symptom in self.symptoms]
        found += [f"  effect: {effect.text} ({effect.where})" for effect in self.effects]
        if self.passes_under is not None:
            found.append(f"  passes under contract {self.passes_under}: declare it if the kernel stores its scores")
        if self.not_judged:
            found.append(
                f"  not judged: {self.not_judged:,} numbers, of rows whose scores are too large for the bound, or too "
                "close to overflow"
            )
        return found + [f"  note: {note}" for note in self.notes]

    def _headline(self) -> str:
        """How much is wrong, of how much."""
        every = self.rows_checked == self.rows
        rows = f"all {self.rows:,} rows" if every else f"{self.rows_checked:,} of {self.rows:,} rows"
        if self.passed:
            return f"{rows} are within the bound; budget used: {self._budgets()}"
        if self.effects and not len(self.wrong_rows):
            return (
                f"{rows} are within the bound, but their errors are not those of rounding; budget used: "
                f"{self._budgets()}"
            )
        if not len(self.wrong_rows):
            return f"of {rows} nothing is proved, so they do not pass"
        wrong = f"{len(self.wrong_rows):,} wrong among {rows}"
        return f"{wrong}, with {self.wrong_elements:,} of {self.elements:,} numbers; budget used: {self._budgets()}"

    def _budgets(self) -> str:
        """Shares of the budget of output and log-sum-exp."""
        lse = "" if self.lse_budget_used is None else f", {share_text(self.lse_budget_used)} (lse)"
        return f"{share_text(self.budget_used)} (output){lse}"

    def _where(self) -> str:
        """The pattern of the wrong rows along each axis."""
        *batch, head, row = self.wrong_rows.T
        found = [f"heads {runs(head)}", f"rows {runs(row)}"]
        if len(batch) == 1:
            found.insert(0, f"{self.entry} {runs(batch[0])}")
        elif batch:
            entries = len(np.unique(self.wrong_rows[:, :-2], axis=0))
            found.insert(0, f"{entries:,} batch entries")
        if len(self.wrong_columns):
            found.append(f"columns {runs(self.wrong_columns)}")
        return ", ".join(found)


def plain(x: Any) -> Any:
    """Records, arrays, tuples and numbers as JSON knows them."""
    if is_dataclass(x):
        return {field.name: plain(getattr(x, field.name)) for field in fields(x)}
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, np.ndarray):
        return x.tolist()
    if isinstance(x, tuple | list):
        return [plain(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def runs(numbers: Iterable[int] | Ints) -> str:
    """Integers as runs: "0..3, 7, 64..127", and how many more runs there are after the fourth."""
    found = np.unique(np.fromiter(numbers, dtype=np.int64))
    cuts = np.flatnonzero(np.diff(found) != 1) + 1
    pieces = [(int(piece[0]), int(piece[-1])) for piece in np.split(found, cuts) if len(piece)]
    shown = [str(first) if first == last else f"{first}..{last}" for first, last in pieces[:4]]
    if len(pieces) > 4:
        shown[-1:] = [shown[-1], f"and {len(pieces) - 4} more up to {pieces[-1][1]}"]
    return ", ".join(shown)


def share_text(share: float) -> str:
    """A share of the budget in at most three digits."""
    if not math.isfinite(share):
        return "inf"
    return f"{share:.2f}" if share < 100 else f"{share:,.0f}" if share < 1e6 else f"{share:.1e}"


def place(index: Sequence[int], *, columns: bool, entry: str = "batch") -> str:
    """An index in words: batch 0, head 3, row 255, column 17."""
    *batch, head, row = index[:-1] if columns else index
    words = [f"head {head}", f"row {row}"]
    if batch:
        words.insert(0, f"{entry} {batch[0] if len(batch) == 1 else tuple(batch)}")
    return ", ".join([*words, f"column {index[-1]}"] if columns else words)


def _worst(element: Element, used: float, name: str, entry: str) -> str:
    """The worst number of a result."""
    where = place(element.index, columns=name == "output", entry=entry)
    sign = "<=" if used <= 1 else ">"
    return (
        f"largest share of the budget at {where}: got {element.got:.8g}, expected {element.expected:.8g}, |error| "
        f"{element.error:.2g} {sign} bound {element.bound:.2g}"
    )


class Tally:
    """What is kept of the judged parts while they go by: counts, the worst number, and which rows are wrong."""

    def __init__(self, axes: int, columns: int) -> None:
        """Begin with nothing judged."""
        self.share = -1.0
        self.worst: Element | None = None
        self.elements = self.wrong_elements = self.not_judged = 0
        self.wrong_rows: list[Ints] = [np.zeros((0, axes), dtype=np.int64)]
        self.wrong_columns = np.zeros(columns, dtype=np.bool_)

    def add(self, index: tuple[int, ...], rows: Ints, compared: Any) -> npt.NDArray[np.bool_]:
        """Take in one part, and say which of its rows are wrong."""
        share, wrong = compared.share, compared.wrong
        self.elements += share.size
        self.not_judged += int(np.count_nonzero(np.isnan(share)))
        self.wrong_elements += int(np.count_nonzero(wrong))
        flat = wrong.reshape(len(rows), -1)
        if flat.shape[1] == len(self.wrong_columns):
            self.wrong_columns |= flat.any(axis=0)
        wrong_row: npt.NDArray[np.bool_] = flat.any(axis=1)
        if wrong_row.any():
            lead = np.broadcast_to(np.array(index, dtype=np.int64), (int(wrong_row.sum()), len(index)))
            self.wrong_rows.append(np.concatenate([lead, rows[wrong_row, None]], axis=1))
        judged = np.where(np.isnan(share), -1.0, share)
        if judged.size and judged.max() > self.share:
            at = np.unravel_index(int(judged.argmax()), judged.shape)
            self.share = float(judged[at])
            place_of = (*index, int(rows[at[0]]), *(int(x) for x in at[1:]))
            got, expected, bound, _ = (float(x[at]) for x in compared)
            self.worst = Element(place_of, got, expected, bound)
        return wrong_row
