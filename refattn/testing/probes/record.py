"""What the probes of one kernel have shown so far: each setting held against a model that learns what it explains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from refattn.testing.explanation import Explanation
from refattn.testing.probes.decode import decoded, explained
from refattn.testing.probes.designs import NotPossible
from refattn.testing.probes.measured import Flags, Measured, ProbeError, measure
from refattn.testing.probes.model import Ints, Model
from refattn.testing.probes.pages import read_pages
from refattn.testing.probes.plan import Step
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects import Suspect, lse_suspects, suspects
from refattn.testing.probes.words import rows_of
from refattn.testing.spec import KernelSpec

# Rows that a suspect must explain before it is held against all.
SCREENED = 24
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
        record = Record(step.setting, step.setting.model)
        for name, design in step.designs.items():
            if not (step.setting.model.scale > 0 or name in SCALELESS):
                self.skip(name, "scores rise with the products of query and key only where the scale is positive")
                continue
            try:
                for given, slack in design(step.setting, self.quick):
                    measured, calls = measure(step.setting, name, given, slack)
                    self.calls += calls
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
        self._keep(step.setting, record)

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
    lost: bool = False
    last: bool = False
    rivals: list[Suspect] = field(default_factory=list)
    applied: Flags | None = None

    def take(self, measured: Measured) -> None:
        """Hold one measurement against the model, and look for what explains it if it differs."""
        if self.rivals:
            self._decide(measured)
        asked = self.model is self.setting.model
        wrong = measured.wrong(self.model, doubt=0.0 if asked else measured.doubt(self.model))
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
        # No known mistake is told from another by NaN.
        found = list(self._fitting(measured, wrong)) if np.isfinite(measured.output).all() else []
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
            return
        read = decoded(self.setting, measured, self.model, wrong)
        self.told += [(measured.probe, x) for x in read.explanations]
        self.last = read.last
        if read.applied is not None:
            self._show(read.applied)
        if read.model is None:
            self.lost = True
        else:
            self.model = read.model

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
        rows = _screen(wrong)
        few = [x.rows(rows) for x in self.history]
        # With doubt enough, the model as it is may do: then no suspect is any better.
        far: dict[float, bool] = {}
        for suspect in suspects(self.setting, self.model):
            model = suspect.model.rows(rows)
            if not all(x.fits(model) for x in reversed(few)):
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
        assert measured.lse is not None
        got, right = measured.lse[wrong][0], measured.answer(self.model).lse[wrong][0]
        text = "the log-sum-exp is not that of the row, though the output is right"
        self.told.append(("lse", explained(text, where, f"{got:.6g} in the place of {right:.6g}")))


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
