"""A kernel run on drawn and real inputs, check by check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from refattn import masks
from refattn._core.arrays import dtype_name
from refattn._core.checks import check_flag, check_integer
from refattn.testing.diagnosis.fitting import Sample
from refattn.testing.diagnosis.ranking import diagnose
from refattn.testing.explanation import Explanation
from refattn.testing.inputs.problems import Inputs, NotRun, inputs, plan
from refattn.testing.laws import CHECKS
from refattn.testing.probes import Readings, probe
from refattn.testing.report import CheckResult, Finding, Report, counted
from refattn.testing.running import UNEXPECTED, WRONG_VALUES, run
from refattn.testing.spec import KernelSpec
from refattn.testing.suite import QUICK, THOROUGH, LawResult, result_of

# Wrong problems of a check that symptoms are looked for in.
EXPLAINED = 4

# Runs that bugs are held against, the smallest of all that were kept.
MOST_SAMPLES = 6

PROBES = "probes"
# Laws that many kernels break to no one's harm: a word in the report, no finding.
WORD_ONLY = {
    "check_masked_nan": "a NaN or infinity of a token behind the mask, which is multiplied by its weight of 0, spreads"
}
# Kind of a fault, and what tells faults of one kind apart: wrong values by their check, others by what was done.
Key = tuple[str, str]
# What comes of the laws, by whether something is wrong already.
Laws = Callable[[bool], Iterator[tuple[CheckResult, list[tuple[Key, Finding]]]]]


def check_kernel(
    spec: KernelSpec, *, quick: bool = False, seed: int = 0, progress: Callable[[str], None] | None = None
) -> Report:
    """Run a kernel on probes, drawn and real inputs, judge all that it returns, and say what is wrong with it.

        |output - exact| <= bound(contract, inputs)    for every element, on every input

    Parameters
    ----------
    spec : KernelSpec
        The kernel, how to call it, and what it claims.
    quick : bool, default False
        Run two shapes for each input law and one for each argument, instead of all and every third.
    seed : int, default 0
        Seed of the drawn inputs. Two reports of one seed are the same.
    progress : callable, optional
        Called with a line of text when a check begins: ``print``.

    Returns
    -------
    Report
        `passed`, the `diagnosis`, the `findings`, every check with its share of the budget, and a `text`.

    Raises
    ------
    TypeError
        If `spec` is not a KernelSpec.
    ImportError
        If the library of ``spec.arrays`` is not installed.

    Notes
    -----
    The probes come first: inputs on which a right kernel's numbers are known without a tolerance, and a wrong one's
    tell what it did (`probe`). Then input laws: "normal"; "peaked" (queries times 4); "offset" (values plus 4);
    "rising" (scores that rise along the keys, so that each tile brings a new maximum); "coded" (each query aims at one
    key, so that a lost or misplaced key is lost whole); and "smollm2", captured from a model. Each runs at all
    `lengths`, `dims` and `batch` of the spec.
    Then each accepted argument is varied by itself, and each accepted table by what it is for (see `KernelSpec`). Last
    come the laws of ``refattn.testing.laws``, such as causality and the order of keys, on small problems within
    `lengths` that hypothesis draws and shrinks; a quick run has them where nothing else is wrong. `run_checks` runs
    them on larger ones. A check that is not run is listed with its reason.

    The kernel gets fresh arrays for each call, and they are compared with what they were afterwards. An exception that
    it raises is a finding. Of the rows of large problems 4,096 are checked.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, check_kernel
    >>> spec = KernelSpec(ra.attention, batch=(1,), dims=(8,), lengths=((3, 5),))
    >>> check_kernel(spec, quick=True).passed
    True
    """
    if not isinstance(spec, KernelSpec):
        raise TypeError(f"check_kernel: spec must be a KernelSpec; got {type(spec).__name__}.")
    quick = check_flag("check_kernel", "quick", quick)
    seed = check_integer("check_kernel", "seed", seed)
    say = _quietly if progress is None else progress
    say(PROBES)
    readings = probe(spec, quick=quick)
    tallies: dict[str, _Tally] = {}
    skipped: list[CheckResult] = []
    order: list[str] = []
    masked: masks.Mask | None = None
    for item in plan(spec, quick=quick, seed=seed):
        if item.check not in order:
            order.append(item.check)
            say(item.check)
        if isinstance(item, NotRun):
            skipped.append(CheckResult(item.check, "not run", item.reason))
        else:
            tally = tallies.setdefault(item.check, _Tally(item.check))
            given = inputs(spec, item)
            tally.add(spec, given, {"law": item.law, "seed": list(item.seed)}, masked)
            masked = masks.array(given.passed["mask"]) if item.varied == "mask" else masked
    laws = partial(_laws, spec, quick=quick, seed=seed, say=say)
    return _report(spec, tallies, {result.name: result for result in skipped}, order, seed, readings, laws)


def _quietly(line: str) -> None:
    """Show no progress."""


def _laws(
    spec: KernelSpec, wrong: bool, *, quick: bool, seed: int, say: Callable[[str], None]
) -> Iterator[tuple[CheckResult, list[tuple[Key, Finding]]]]:
    """Line and findings of each law; a quick run has none where something is wrong already."""
    for check in CHECKS:
        name = check.__name__
        if quick and wrong:
            yield CheckResult(name, "not run", "quick=True runs laws where nothing else is wrong"), []
            continue
        say(name)
        effort = QUICK if quick else THOROUGH
        try:
            result = result_of(spec, check, replace(effort, shrinks=0) if name in WORD_ONLY else effort, seed)
        except ImportError as error:
            result = LawResult(name, "not run", str(error).removeprefix(f"{name}: "))
        yield _of_law(spec, result)


def _of_law(spec: KernelSpec, result: LawResult) -> tuple[CheckResult, list[tuple[Key, Finding]]]:
    """The line of a law, and what it found, on the smallest problem that shows it."""
    name, failed = result.name, int(result.case is not None)
    reason = "" if result.outcome == "WRONG" and failed else result.message
    outcome = result.outcome
    if name in WORD_ONLY and outcome == "WRONG" and failed and result.kind == WRONG_VALUES:
        outcome, reason = "not kept", WORD_ONLY[name]
    line = CheckResult(name, outcome, reason, result.problems, failed)
    if outcome != "WRONG":
        return line, []
    told = {} if result.case is None else {**_told(result.case.inputs(spec)), "source": repr(result.case)}
    text = result.message.removeprefix(f"{name}: ")
    found = Finding(name, result.kind, text, told, failed or result.problems, (name,))
    return line, [((result.kind, result.key or name), found)]


def check_inputs(spec: KernelSpec, given: Inputs, source: str) -> Report:
    """Run a kernel on one set of inputs, which came from somewhere."""
    tally = _Tally("input")
    tally.add(spec, given, {"source": source})
    return _report(spec, {"input": tally}, {}, ["input"], None)


def _report(
    spec: KernelSpec,
    tallies: dict[str, _Tally],
    results: dict[str, CheckResult],
    order: list[str],
    seed: int | None,
    readings: Readings | None = None,
    laws: Laws | None = None,
) -> Report:
    """The report on what was run."""
    findings: dict[Key, Finding] = {}
    if readings is not None:
        results[PROBES], found = _of_probes(readings, spec.expected_failures.get(PROBES))
        order = [PROBES, *order]
        findings.update(found)
    for name, tally in tallies.items():
        results[name], found = tally.result(spec.expected_failures.get(name))
        _add(findings, found)
    for line, found in laws(bool(findings)) if laws is not None else ():
        results[line.name] = line
        order = [*order, line.name]
        _add(findings, found)
    return Report(
        passed=not findings and any(tally.judged for tally in tallies.values()),
        findings=tuple(findings.values()),
        checks=tuple(results[name] for name in order),
        kernel=spec.name,
        contract=spec.numerics().describe(),
        seed=seed,
        diagnosis=_diagnosis(list(findings.values()), tallies, readings),
    )


def _of_probes(readings: Readings, expected: str | None) -> tuple[CheckResult, list[tuple[Key, Finding]]]:
    """The line of the probes, and what they found."""
    calls = readings.calls
    if not readings.calls:
        reason = "; ".join(f"{name}: {why}" for name, why in readings.skipped)
        return CheckResult(PROBES, "not run", reason), []
    if readings.passed and expected is not None:
        reason = f"was expected to fail ({expected}), but every probe reads right"
        kind = UNEXPECTED
        found = Finding(PROBES, kind, reason, {}, readings.calls, (PROBES,))
        return CheckResult(PROBES, "WRONG", reason, calls), [((kind, PROBES), found)]
    if readings.passed:
        return CheckResult(PROBES, "right", "", calls), []
    if expected is not None:
        return CheckResult(PROBES, "expected failure", expected, calls, 1), []
    text = "\n".join(explanation.text for explanation in readings.explanations)
    found = Finding(PROBES, "probe", text, {}, 1, (PROBES,))
    return CheckResult(PROBES, "WRONG", "", calls, 1), [(("probe", PROBES), found)]


def _diagnosis(
    findings: list[Finding], tallies: dict[str, _Tally], readings: Readings | None
) -> tuple[Explanation, ...]:
    """What explains the findings."""
    if not findings:
        return ()
    shown = {check for finding in findings for check in finding.checks}
    samples = [sample for name, tally in tallies.items() if name in shown for sample in tally.samples]
    samples = sorted(samples, key=lambda sample: sample.problem.query.size * sample.problem.key.shape[2])[:MOST_SAMPLES]
    measured = [x for name, tally in tallies.items() if name in shown for x in tally.measured]
    return diagnose(
        samples,
        read=readings.explanations if readings is not None and PROBES in shown else (),
        measured=sorted(measured, key=lambda explanation: -explanation.strength),
        symptoms=[x for name, tally in tallies.items() if name in shown for x in tally.symptoms],
    )


def _add(findings: dict[Key, Finding], found: list[tuple[Key, Finding]]) -> None:
    """Add findings; one fault that shows in several checks is one."""
    for key, other in found:
        first = findings.get(key)
        if first is not None:
            other = replace(first, problems=first.problems + other.problems, checks=(*first.checks, *other.checks))
        findings[key] = other


@dataclass
class _Seen:
    """One kind of fault of one check: the problem that tells most, and how often."""

    text: str
    problem: dict[str, Any]
    rank: tuple[bool, int]
    problems: int = 1


@dataclass
class _Tally:
    """What is kept of the problems of one check."""

    check: str
    problems: int = 0
    failed: int = 0
    judged: int = 0
    unjudged: int = 0
    budget_used: float | None = None
    lse_budget_used: float | None = None
    seen: dict[Key, _Seen] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    measured: list[Explanation] = field(default_factory=list)
    symptoms: list[Explanation] = field(default_factory=list)

    def add(self, spec: KernelSpec, given: Inputs, source: dict[str, Any], masked: masks.Mask | None = None) -> None:
        """Run one problem, after calls of which the last one with a mask array had `masked`."""
        seen = self.seen.get((WRONG_VALUES, self.check))
        explain = seen is None or seen.problems < EXPLAINED
        verdict, faults, sample = run(spec, given, explain=explain, keep=self.check if explain else None)
        if sample is not None:
            self.samples.append(replace(sample, problem=replace(sample.problem, masked=masked)))
        self.problems += 1
        about = {**_told(given), **source}
        size = int(np.prod(given.query.shape[:-1])) * given.key.shape[-2]
        for fault in faults:
            self._keep((fault.kind, fault.key), fault.text, about, (True, size))
        if verdict is None:
            self.failed += 1
            return
        wrong = len(verdict.wrong_rows) > 0 or len(verdict.effects) > 0
        judged = verdict.passed or wrong
        self.judged += judged
        self.unjudged += not judged
        if judged:
            self.budget_used = max(self.budget_used or 0.0, verdict.budget_used)
            if verdict.lse_budget_used is not None:
                self.lse_budget_used = max(self.lse_budget_used or 0.0, verdict.lse_budget_used)
        self.measured += [effect.explanation for effect in verdict.effects]
        self.symptoms += [Explanation(bug=None, name=text, instrument="symptom") for text in verdict.symptoms]
        if wrong:
            self._keep(
                (WRONG_VALUES, self.check),
                "\n".join(verdict.lines(contract=False)),
                about,
                (not verdict.symptoms, size),
            )
        self.failed += bool(faults) or wrong

    def _keep(self, key: Key, text: str, problem: dict[str, Any], rank: tuple[bool, int]) -> None:
        """Count a fault; of its problems the one that a symptom explains, and then the smallest, is shown."""
        old = self.seen.get(key)
        if old is None:
            self.seen[key] = _Seen(text, problem, rank)
        else:
            old.problems += 1
            if rank < old.rank:
                old.text, old.problem, old.rank = text, problem, rank

    def result(self, expected: str | None) -> tuple[CheckResult, list[tuple[Key, Finding]]]:
        """The check's line, and its findings."""
        outcome, reason = ("WRONG", "") if self.failed else ("right", "")
        findings = [
            (key, Finding(self.check, key[0], self._text(key, seen), seen.problem, seen.problems, (self.check,)))
            for key, seen in self.seen.items()
        ]
        if expected is not None and self.failed:
            outcome, reason, findings = "expected failure", expected, []
        elif expected is not None:
            kind = UNEXPECTED
            outcome, reason = "WRONG", f"was expected to fail ({expected}), but no problem of {self.problems} failed"
            findings = [((kind, self.check), Finding(self.check, kind, reason, {}, self.problems, (self.check,)))]
        elif not self.failed and not self.judged:
            outcome, reason = "not judged", "the contract's bound claims nothing about scores as large as these"
        counts = (self.problems, self.failed, self.unjudged)
        return CheckResult(self.check, outcome, reason, *counts, self.budget_used, self.lse_budget_used), findings

    def _text(self, key: Key, seen: _Seen) -> str:
        """A fault's text; of wrong values the verdict on the problem shown, under a line on all of them."""
        if key[0] != WRONG_VALUES:
            return seen.text
        return f"{WRONG_VALUES} in {seen.problems} of {counted(self.problems)}\n{seen.text}"


def _told(given: Inputs) -> dict[str, Any]:
    """Shapes, dtype and arguments of a problem, for a person and for JSON."""
    told: dict[str, Any] = {name: list(getattr(given, name).shape) for name in ("query", "key", "value")}
    arguments = {}
    for name, value in given.arguments.items():
        value = given.passed.get(name, value)
        if hasattr(value, "shape"):
            arguments[name] = f"<{dtype_name(value)} {tuple(value.shape)}>"
        elif isinstance(value, tuple):
            arguments[name] = f"<{', '.join(f'{dtype_name(x)} {tuple(x.shape)}' for x in value)}>"
        else:
            arguments[name] = f"{value:.6g}" if isinstance(value, float) else repr(value)
    if given.batch is not None:
        told["sequences"] = np.stack([given.batch.queries, given.batch.keys], axis=1).tolist()
    return {**told, "dtype": dtype_name(given.query), "arguments": arguments}
