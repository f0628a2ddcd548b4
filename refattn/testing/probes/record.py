"""What the probes of one kernel have shown so far: each setting held against a model that learns what it explains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from refattn.testing.explanation import Explanation
from refattn.testing.probes.decode import decoded
from refattn.testing.probes.decode_masks import SUMS_WRONG
from refattn.testing.probes.decode_needle import NOT_SUMMED, summed, weighed
from refattn.testing.probes.designs import NotPossible, groups
from refattn.testing.probes.measured import Flags, Measured, ProbeError, Slack, measure
from refattn.testing.probes.model import Ints, Model, Operands
from refattn.testing.probes.pages import read_pages
from refattn.testing.probes.plan import Step
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects import Suspect, lse_suspects, suspects
from refattn.testing.probes.told import explained
from refattn.testing.probes.words import rows_of
from refattn.testing.spec import KernelSpec

# Rows that a suspect must explain before it is held against all.
SCREENED = 12
# Rows of whole tiles, for suspects that mix rows of one tile.
BLOCK = 256
# Words of readings that need the weights of all keys to be placed.
MIXED = ("other keys", "several values", "not passed on")
# Keys for each column of the values from which on quick runs look at groups of keys first.
MANY = 4
# Probes whose queries and keys are zero: the scale is nothing to them.
SCALELESS = ("mask", "sinks", "bias", "accumulator")


@dataclass
class Bench:
    """What has been read so far."""

    quick: bool
    told: list[Explanation] = field(default_factory=list)
    described: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    applied: Flags | None = None
    asked: Flags | None = None
    calls: int = 0

    def skip(self, probe: str, reason: str) -> None:
        """Keep a reason, once."""
        if (probe, reason) not in self.skipped:
            self.skipped.append((probe, reason))

    def read_pages(self, spec: KernelSpec) -> None:
        """Where memory is read; where that is wrong, nothing else is to be learnt."""
        read = read_pages(spec, quick=self.quick)
        self.calls += read.calls
        self.told += read.explanations
        if self.told:
            self.skip("all others", "keys or values are read from the wrong places of memory")

    def run(self, step: Step) -> None:
        """All probes of one setting, each held against what the ones before it showed."""
        record = Record(step.setting, step.setting.model, clean=not self.told)
        for name, design in step.designs.items():
            if not (step.setting.model.scale > 0 or name in SCALELESS):
                self.skip(name, "scores rise with the products of query and key only where the scale is positive")
                continue
            try:
                for given, slack in design(step.setting, self.quick):
                    for measured in self._measured(step.setting, record.model, name, given, slack):
                        record.take(measured)
                if record.last:
                    break
            except NotPossible as reason:
                self.skip(name, str(reason))
            except ProbeError as fault:
                self.calls += 1
                record.told.append((name, explained(str(fault))))
                break
        record.finish()
        self.calls += record.calls
        if record.told and not self.told and step.setting.spec.stored.margin and self._right_apart(step):
            where = "all operands"
            name = "strides are taken from the shapes: what is read is right where memory is contiguous"
            self.told.append(explained(name, where, bug="D5", strength=1.0))
            return
        self._keep(step.setting, record)

    def _measured(self, setting: Setting, model: Model, name: str, given: Operands, slack: Slack) -> Iterator[Measured]:
        """One measurement; of many keys in quick runs their weights in two kinds of groups, where these are right."""
        if given.value is None and self.quick and setting.lengths[1] > MANY * setting.dims[1]:
            grouped = [measure(setting, name, given._replace(value=x), slack) for x in groups(setting)]
            self.calls += sum(calls for _, calls in grouped)
            doubts = (0.0 if model is setting.model else x.doubt(model) for x, _ in grouped)
            if not any(x.wrong(model, doubt=d).any() for (x, _), d in zip(grouped, doubts, strict=True)):
                yield from (x for x, _ in grouped)
                return
        measured, calls = measure(setting, name, given, slack)
        self.calls += calls
        yield measured

    def _right_apart(self, step: Step) -> bool:
        """Whether the kernel is right on operands that are alike and contiguous."""
        spec = step.setting.spec
        setting = replace(step.setting, spec=replace(spec, layout=replace(spec.stored, margin=0)))
        try:
            for name in ("mask", "needle"):
                given, slack = next(step.designs[name](setting, True))
                measured, calls = measure(setting, name, given, slack)
                self.calls += calls
                if measured.wrong(setting.model).any():
                    return False
        except (NotPossible, ProbeError, KeyError):
            return False
        return True

    def _keep(self, setting: Setting, record: Record) -> None:
        """What one setting showed that no other did."""
        if self.applied is None and record.applied is not None:
            heads = slice(0, setting.heads[0])
            self.applied, self.asked = record.applied[heads], setting.model.counts[heads] > 0
        known = {(x.bug, x.name) for x in self.told}
        described = frozenset(self.described)
        for name, x in record.told:
            # What no known mistake accounts for is described once for each probe.
            if (x.bug, x.name) in known or (x.bug is None and not x.strength and name in described):
                continue
            self.described.add(name)
            about = f"with {setting.varied}" if setting.varied and setting.varied not in x.name else ""
            shape = f"L = {setting.lengths[0]}, S = {setting.lengths[1]}"
            where = ", ".join(part for part in (x.where, about, shape) if part)
            self.told.append(replace(x, where=where))


@dataclass
class Record:
    """One setting: what was measured, the model that gives it, and what has been told."""

    setting: Setting
    model: Model
    told: list[tuple[str, Explanation]] = field(default_factory=list)
    history: list[Measured] = field(default_factory=list)
    clean: bool = True
    lost: bool = False
    last: bool = False
    calls: int = 0
    rivals: list[Suspect] = field(default_factory=list)
    applied: Flags | None = None

    def take(self, measured: Measured) -> None:
        """Hold one measurement against the model, and look for what explains it if it differs."""
        if self.rivals:
            self._decide(measured)
        asked = self.model is self.setting.model
        # Scores far from 0 tell formats of scores apart, which the model may have guessed.
        model = replace(self.model, scores=None) if measured.probe == "far" else self.model
        wrong = measured.wrong(model, doubt=0.0 if asked else measured.doubt(model))
        if measured.probe == "needle" and not asked and wrong.any():
            # Rows whose key is lost tell nothing more.
            wrong &= (self.model.scored(measured.given).max(axis=-1, initial=-math.inf) > -1)[..., None]
        self.history.append(measured)
        if wrong.any():
            self._explain(measured, wrong)

    def finish(self) -> None:
        """Look at the log-sum-exps, where all outputs are accounted for."""
        if self.lost:
            return
        for measured in self.history:
            asked = self.model is self.setting.model
            wrong = measured.wrong_lse(self.model, doubt=0.0 if asked else measured.doubt(self.model))
            if wrong.any():
                self._explain_lse(measured, wrong)
                return

    def _explain(self, measured: Measured, wrong: Flags) -> None:
        """A known mistake that gives all that was measured, or else a description."""
        # No known mistake is told from another by NaN, nor by rows whose scores are out of reach.
        known = measured.probe != "far" and np.isfinite(measured.output).all()
        found = list(self._fitting(measured, wrong)) if known else []
        if found:
            if self.lost:
                # The first cause of what could not be explained before.
                self.told, self.lost = [x for x in self.told if x[1].strength], False
            where = rows_of(wrong.any(axis=-1), self.setting.batch, self.setting.heads[0])
            self.rivals, self.model = found, found[0].model
            self.told.append((measured.probe, named(found, where)))
            if measured.probe == "mask":
                self._show(self.model.counts > 0)
            return
        if self.lost:
            self._locate_sum(measured)
            return
        read = decoded(self.setting, measured, self.model, wrong)
        told = self._located(measured, read.explanations)
        if read.last and self.clean and self.setting.varied.startswith("mask"):
            what = "zero" if np.isfinite(measured.output).all() else "NaN"
            name = f"all rows are {what} where a mask is given: cells that it lets in are multiplied by -inf"
            told = (explained(name, told[0].where, bug="A16", strength=1.0),)
        self.told += [(measured.probe, x) for x in told]
        self.last = read.last
        if read.applied is not None:
            self._show(read.applied)
        if read.model is None:
            self.lost = True
        else:
            self.model = read.model

    def _located(self, measured: Measured, told: tuple[Explanation, ...]) -> tuple[Explanation, ...]:
        """What was told, by keys where these can be found from the weights of all."""
        if measured.probe != "needle" or not told or not any(word in told[0].name for word in MIXED):
            return told
        try:
            given = measured.given._replace(value=None)
            weights, calls = measure(self.setting, measured.probe, given, measured.slack)
        except ProbeError:
            return told
        self.calls += calls
        found = weighed(self.setting, weights, self.model)
        return told if found is None else (found,)

    def _locate_sum(self, measured: Measured) -> None:
        """The keys that a row sum lacks, told in the place of the sum."""
        if measured.probe != "needle":
            return
        for n, (probe, x) in enumerate(self.told):
            if x.name.startswith(SUMS_WRONG) or x.name.endswith(NOT_SUMMED):
                text = summed([y for y in self.history if y.probe == "needle"], self.model)
                self.told[n] = (probe, x if text is None else replace(x, name=text))

    def _decide(self, measured: Measured) -> None:
        """Drop those of several suspects that another measurement speaks against."""
        left = [x for x in self.rivals if measured.fits(x.model)]
        if left and len(left) < len(self.rivals):
            for n, (probe, x) in enumerate(self.told):
                if x.name == named(self.rivals, "").name:
                    self.told[n] = (probe, named(left, x.where))
            self.rivals, self.model = left, left[0].model

    def _show(self, applied: Flags) -> None:
        """Keep the first mask that is not the one asked for."""
        if self.applied is None and (applied != (self.setting.model.counts > 0)).any():
            self.applied = applied

    def _fitting(self, measured: Measured, wrong: Flags) -> Iterator[Suspect]:
        """The suspects whose models give everything that was measured."""
        rows, block = _screen(wrong), np.arange(min(BLOCK, wrong.shape[1]))
        few, whole = ([x.rows(at) for x in self.history] for at in (rows, block))
        # With doubt enough, the model as it is may do: then no suspect is any better.
        far: dict[float, bool] = {}
        for suspect in suspects(self.setting, self.model):
            if suspect.model.writes is None:
                at, tried = (block, whole) if suspect.model.mixes else (rows, few)
                model = suspect.model.rows(at)
                if not all(x.fits(model) for x in reversed(tried)):
                    continue
            doubt = measured.doubt(suspect.model)
            if doubt not in far:
                far[doubt] = bool(measured.wrong(self.model, doubt=doubt).any())
            if far[doubt] and all(x.fits(suspect.model) for x in reversed(self.history)):
                yield suspect

    def _explain_lse(self, measured: Measured, wrong: Flags) -> None:
        """A wrong log-sum-exp beside a right output."""
        where = rows_of(wrong, self.setting.batch, self.setting.heads[0])
        far = measured.wrong_lse(self.model, doubt=measured.slack.doubt).any()
        for suspect in lse_suspects(self.setting, self.model) if far else ():
            if all(not x.wrong_lse(suspect.model, doubt=x.slack.doubt).any() for x in self.history):
                self.told.append(("lse", explained(suspect.name, where, bug=suspect.bug, strength=1.0)))
                return
        if self._unwritten():
            name = "the log-sum-exp is the same whatever the scores are: it is not written"
            self.told.append(("lse", explained(name, where, bug="F8", strength=1.0)))
            return
        assert measured.lse is not None
        got, right = measured.lse[wrong][0], measured.answer(self.model).lse[wrong][0]
        text = "the log-sum-exp is not that of the row, though the output is right"
        self.told.append(("lse", explained(text, where, f"{got:.6g} in the place of {right:.6g}")))

    def _unwritten(self) -> bool:
        """Whether calls whose log-sum-exps should differ all gave the same."""
        logs = [x.lse for x in self.history if x.lse is not None]
        right = [x.answer(self.model).lse for x in self.history]
        alike = all(np.array_equal(logs[0], x, equal_nan=True) for x in logs[1:])
        return len(logs) > 1 and alike and any((right[0] != x).mean() > 0.5 for x in right[1:])


def named(found: list[Suspect], where: str) -> Explanation:
    """The explanation by suspects that fit all alike: the first, unless they are different mistakes."""
    best = found[0]
    unlike = [x.name for x in found[1:] if x.bug != best.bug or (x.bug is None and x.name != best.name)]
    others = f", or {' or '.join(unlike[:2])}: these probes do not tell them apart" if unlike else ""
    return explained(best.name + others, where, bug=None if unlike else best.bug, strength=1.0)


def _screen(wrong: Flags) -> Ints:
    """Some of the rows, half of them wrong ones."""
    rows = wrong.any(axis=(0, 2))
    some = [np.flatnonzero(rows), np.flatnonzero(~rows)]
    picked = [x[np.unique(np.linspace(0, len(x) - 1, SCREENED // 2).astype(int))] for x in some if len(x)]
    return np.unique(np.concatenate(picked))
