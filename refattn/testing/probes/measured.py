"""What a kernel returned for probing operands, and whether a model of it gives the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn.contract.formats import FORMATS, half_subnormal, unit
from refattn.testing.probes.model import Answer, Floats, Ints, Model, Operands, rounded
from refattn.testing.probes.setting import Setting, called

Flags = npt.NDArray[np.bool_]


class ProbeError(Exception):
    """A kernel that raised, or returned what can't be read."""


@dataclass(frozen=True, eq=False)
class Slack:
    """How far from the exact answer a right kernel may be, before its output is rounded.

    `relative` is to sum p |v|, one number or one for each row (N, L, 1), and `lse` to 1. `doubt` comes on top where the
    weights are those of another model than the one asked for, because the operands were not chosen for it; `scores` is
    the part of `relative` that grows with the scores, should they be larger than asked for.
    """

    relative: Any
    lse: float
    doubt: float = 0.0
    scores: float = 0.0


@dataclass(frozen=True, eq=False)
class Stored:
    """The formats of output, log-sum-exp and weights, and the error of weights that are too small to be normal."""

    output: str
    lse: str
    weights: str
    floor: float


@dataclass(frozen=True, eq=False)
class Measured:
    """One set of operands, with what came back."""

    probe: str
    given: Operands
    output: Floats
    lse: Floats | None
    slack: Slack
    stored: Stored
    asked: Model
    answers: dict[int, tuple[Model, Answer]] = field(default_factory=dict)

    def answer(self, model: Model) -> Answer:
        """The model's answer; the last one is kept."""
        if self.answers.get(0, (None,))[0] is not model:
            self.answers[0] = (model, model.answer(self.given))
        return self.answers[0][1]

    def rows(self, rows: Ints) -> Measured:
        """Some of the L rows."""
        relative = self.slack.relative
        return replace(
            self,
            answers={},
            given=self.given._replace(query=self.given.query[:, rows]),
            output=self.output[:, rows],
            lse=None if self.lse is None else self.lse[:, rows],
            slack=self.slack if np.ndim(relative) == 0 else replace(self.slack, relative=relative[:, rows]),
        )

    def wrong(self, model: Model, *, doubt: float = 0.0) -> Flags:
        """Where (N, L, Ev) the output is not what the model gives, rounded once, with so much doubt on top."""
        relative = self.slack.relative + doubt
        if np.ndim(relative) == 0 and (total := self._total(model)) is not None:
            weight = np.where(model.counts.any(axis=-1), 1.0 / np.maximum(total, 1e-300), 0.0)[..., None]
            low, high = (rounded(weight * f, self.stored.output) for f in (1 - relative, 1 + relative))
            wrong = ~((low <= self.output) & (self.output <= high))
            return np.asarray(np.where(model.counts > 0, wrong, self.output != 0))
        answer = self.answer(model)
        # Where weights may be rounded at all, small ones may fall below the normal numbers.
        floor = self.stored.floor if np.max(relative) > 1e-4 or doubt or self.asked.bias is not None else 0.0
        return ~within(self.output, answer.output, answer.magnitude * relative + floor, self.stored.output)

    def doubt(self, model: Model) -> float:
        """The doubt in what a model gives that was not asked for."""
        uneven = model.masked != -math.inf or model.sinks is not None or not model.plain
        growth = self.slack.scores * max(0.0, larger(model, self.asked) - 1.0) if self.slack.scores else 0.0
        return self.slack.doubt + 1.1 * unit(self.stored.weights) * uneven + growth

    def fits(self, model: Model) -> bool:
        """Whether the output is what the model gives, with its doubt."""
        return not self.wrong(model, doubt=self.doubt(model)).any()

    def wrong_lse(self, model: Model, *, doubt: float = 0.0) -> Flags:
        """Where (N, L) the log-sum-exp is not what the model gives."""
        if self.lse is None:
            return np.zeros(self.output.shape[:2], dtype=np.bool_)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = None if model.lse is not None else self._total(model)
            expected = self.answer(model).lse if total is None else np.log(total)
            reach = self.slack.lse + 8 * unit(self.stored.lse) * np.abs(expected) + 2 * doubt
            # A suspect's NaN stands for what nobody wrote.
            fits = (np.abs(self.lse - expected) <= reach) | (self.lse == expected)
            # A format that does not hold the number may say infinity.
            fits |= (np.abs(expected) + reach > FORMATS[self.stored.lse].max) & (self.lse == np.sign(expected) * np.inf)
            return np.asarray(~(fits | np.isnan(expected)))

    def _total(self, model: Model) -> Floats | None:
        """The row sum (N, L) in units of the weight of every key that takes part, where that is one by construction."""
        query, key, value, _ = self.given
        even = value is None and not (query.any() and key.any()) and model.bias is None and model.masked == -math.inf
        if not even or "value" in model.reads or not model.plain or model.linear_sinks:
            return None
        if model.counts.max(initial=0) > 1:
            return None
        total: Floats = model.counts.sum(axis=-1) + model.padding
        return total if model.sinks is None else total + np.exp(model.sinks)[:, None]


def larger(model: Model, asked: Model) -> float:
    """How many times as large the scores of a model are as those asked for."""
    most = model.scale * model.base / (asked.scale * asked.base) if asked.scale > 0 else 1.0
    if model.bias is None or asked.bias is None:
        return most
    return max(most, float(np.abs(model.bias).max() / max(np.abs(asked.bias).max(), 1e-300)))


@quiet
def within(got: Floats, expected: Floats, reach: Floats | float, stored: str) -> Flags:
    """Whether numbers are what some number within reach of the expected one is rounded to."""
    return np.asarray((rounded(expected - reach, stored) <= got) & (got <= rounded(expected + reach, stored)))


def measure(setting: Setting, probe: str, given: Operands, slack: Slack) -> tuple[Measured, int]:
    """Call the kernel, more than once where the value is an identity that is wider than the output; count the calls."""
    (L, S), (_, Ev), contract = setting.lengths, setting.dims, setting.contract
    given = given._replace(width=Ev)
    output, lse, calls = np.zeros((len(given.query), L, S)), None, 0
    passes = given.identities() if given.value is None else ((given.value, slice(0, Ev)),)
    for value, columns in passes:
        returned = called(setting, given._replace(value=value))
        calls += 1
        if returned.fault:
            raise ProbeError(returned.fault)
        if given.value is None:
            output[..., columns] = returned.output[..., : columns.stop - columns.start]
        else:
            output = returned.output
        lse = returned.lse
    floor = 2 * S * half_subnormal(contract.probabilities) + half_subnormal(contract.output)
    stored = Stored(contract.output, contract.lse, contract.probabilities, floor)
    return Measured(probe, given, output, lse, slack, stored, setting.model), calls
