"""What came of running a kernel: findings, checks, and their text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from refattn.testing.explanation import Explanation
from refattn.testing.spec import LAW_CHECKS
from refattn.testing.verdict.record import plain, share_text

MOST_LINES = 60
# Findings that are shown in full; the others get one line.
IN_FULL = 3
# Columns of a line of names.
WIDTH = 116


@dataclass(frozen=True)
class Finding:
    """Something wrong with a kernel.

    Parameters
    ----------
    check : str
        The check that found it.
    kind : {"wrong values", "probe", "raised", "returned", "changed its inputs", "expected failure passed"}
        What sort of thing it is.
    text : str
        What is wrong, in a line or several.
    problem : dict
        A problem that shows it, one that a symptom explains before others, and then the smallest: shapes, dtype,
        arguments, law and seed. Empty where it is about no problem.
    problems : int
        How many problems show it.
    checks : tuple of str
        All checks that show the same.
    """

    check: str
    kind: str
    text: str
    problem: dict[str, Any]
    problems: int
    checks: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Parameters
    ----------
    name : str
        Name of the check, as `expected_failures` takes it.
    outcome : {"right", "WRONG", "expected failure", "not judged", "not kept", "not run"}
        What came of it. "not judged": the contract's bound claims nothing about any of its problems. "not kept": a law
        that many kernels break to no one's harm.
    reason : str
        Why it was not run or not judged, or is expected to fail.
    problems, failed, unjudged : int
        Problems that were run, that failed, and about which nothing could be said.
    budget_used, lse_budget_used : float or None
        Largest shares of the budget.
    """

    name: str
    outcome: str
    reason: str = ""
    problems: int = 0
    failed: int = 0
    unjudged: int = 0
    budget_used: float | None = None
    lse_budget_used: float | None = None


@dataclass(frozen=True)
class Report:
    """What came of running a kernel on drawn and real inputs.

    Parameters
    ----------
    passed : bool
        Whether there is no finding and something was judged.
    findings : tuple of Finding
        What is wrong, each thing once, in the order of the checks.
    checks : tuple of CheckResult
        Every check, run or not.
    kernel : str
        The function's name.
    contract : str
        The numerics it was held to, in words.
    seed : int or None
        The seed that the inputs were drawn with; None where they were given.
    diagnosis : tuple of Explanation
        What explains the findings, the most telling first; empty where there are none, or none has wrong values.
    """

    passed: bool
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]
    kernel: str
    contract: str
    seed: int | None
    diagnosis: tuple[Explanation, ...] = ()

    @property
    def text(self) -> str:
        """The report for a person, at most 60 lines."""
        run = [check for check in self.checks if check.outcome != "not run"]
        failed = [check for check in run if check.outcome == "WRONG"]
        problems = sum(check.problems for check in run)
        checks = "check" if len(run) == 1 else "checks"
        count = f"{len(failed)} of {len(run)} {checks} failed" if failed else f"{len(run)} {checks}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        lines = [
            f"{'right' if self.passed else 'WRONG'}: {self.kernel}: {count}, {counted(problems)}{seed}",
            f"  contract: {self.contract}",
            *_diagnosis_lines(self.diagnosis),
            "checks",
            *(f"  {check.name:<13} {_outcome(check)}" for check in self.checks if check.name not in LAW_CHECKS),
            *_law_lines([check for check in self.checks if check.name in LAW_CHECKS]),
        ]
        if self.findings:
            lines.append("findings")
            for number, finding in enumerate(self.findings):
                lines += _finding_lines(number, finding)
        if len(lines) > MOST_LINES:
            lines = [*lines[: MOST_LINES - 1], f"  ... and {len(lines) - MOST_LINES + 1} more lines: see findings"]
        return "\n".join(lines)

    def __str__(self) -> str:
        """The text."""
        return self.text

    def to_json(self) -> str:
        """Return all of it as JSON.

        Returns
        -------
        str
            An object with the report's fields; numbers that are not finite are the strings "inf", "-inf" and "nan".
        """
        return json.dumps(plain(self), indent=1)


def _diagnosis_lines(diagnosis: tuple[Explanation, ...]) -> Iterator[str]:
    """What is wrong: the first explanations, and where others met the first."""
    if diagnosis:
        yield "what is wrong"
    for number, explanation in enumerate(diagnosis[:IN_FULL]):
        yield f"  {number + 1}. {explanation.name}" + (f" [{explanation.bug}]" if explanation.bug else "")
        seen = f"; seen in {', '.join(explanation.links[:3])}" if explanation.links else ""
        told = {"where": explanation.where, "effect": explanation.effect, "by": explanation.instrument + seen}
        yield from (f"     {name}: {x}" for name, x in told.items() if x)
    if len(diagnosis) > IN_FULL:
        yield f"  ... and {len(diagnosis) - IN_FULL} more: see diagnosis"


def _law_lines(laws: list[CheckResult]) -> Iterator[str]:
    """The laws by what came of them: a line of text for all with one outcome and reason."""
    if laws:
        yield "laws"
    alike: dict[str, list[CheckResult]] = {}
    for law in laws:
        alike.setdefault("right" if law.outcome == "right" else _outcome(law), []).append(law)
    for outcome, found in alike.items():
        if outcome == "right":
            outcome = f"right in {counted(sum(law.problems for law in found))}"
        lines = wrap(f"{', '.join(law.name for law in found)}: {outcome}", WIDTH)
        yield from (f"  {'  ' * (n > 0)}{line}" for n, line in enumerate(lines))


def counted(problems: int) -> str:
    """A number of problems in words."""
    return f"{problems} {'problem' if problems == 1 else 'problems'}"


def _outcome(check: CheckResult) -> str:
    """A check's line."""
    if check.outcome == "not run":
        return f"not run: {check.reason}"
    if check.outcome == "WRONG" and not check.failed:
        return f"WRONG: {check.reason}"
    if check.outcome == "not judged":
        return f"not judged in {counted(check.problems)}: {check.reason}"
    used = ""
    if check.budget_used is not None:
        used = f", budget used {share_text(check.budget_used)} (output)"
        used += "" if check.lse_budget_used is None else f", {share_text(check.lse_budget_used)} (lse)"
    if check.unjudged:
        used += f", {check.unjudged} not judged"
    if check.outcome == "right":
        return f"right in {counted(check.problems - check.unjudged)}{used}"
    if check.outcome == "not kept":
        return f"not kept: {check.reason}"
    head = f"{check.outcome} in {check.failed} of {counted(check.problems)}{used}"
    return head + (f": {check.reason}" if check.reason else "")


def _finding_lines(number: int, finding: Finding) -> Iterator[str]:
    """A finding: in full for the first few."""
    first, *rest = finding.text.splitlines()
    also = f" (also in {', '.join(finding.checks[1:])})" if len(finding.checks) > 1 else ""
    yield f"  {number + 1}. {finding.check}: {first}{also}"
    if finding.problem and number < IN_FULL:
        yield f"     shown: {problem_text(finding.problem)}"
    if number < IN_FULL:
        yield from (f"     {line.strip()}" for line in rest)


def problem_text(problem: dict[str, Any]) -> str:
    """A problem in one line."""
    shapes = ", ".join(f"{name} {tuple(problem[name])}" for name in ("query", "key", "value"))
    arguments = "".join(f", {name}={value}" for name, value in problem["arguments"].items())
    if "sequences" in problem:
        shapes += f", sequences (L, S) {', '.join(str(tuple(pair)) for pair in problem['sequences'])}"
    source = problem["source"] if "source" in problem else f"law {problem['law']}, seed {tuple(problem['seed'])}"
    return f"{shapes}, {problem['dtype']}{arguments}, {source}"
