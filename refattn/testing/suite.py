"""The suite of laws run on a kernel: as a list, and as parameters of one pytest test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import SkipTest

from refattn._core.checks import check_flag, check_integer
from refattn.testing.inputs.cases import Case, limits
from refattn.testing.laws import CHECKS
from refattn.testing.laws.observing import Violation
from refattn.testing.laws.stating import Law
from refattn.testing.repro.saved import save_repro
from refattn.testing.repro.shrinking import simpler
from refattn.testing.running import UNEXPECTED, run
from refattn.testing.spec import KernelSpec

MAX_EXAMPLES, QUICK_EXAMPLES = 25, 5
# Problems that are tried to make a failing one smaller; each runs the kernel a few times.
MOST_SHRINKS = 150
# Problems about which a law says nothing, for each that is wanted, before it is given up.
MISSES = 7
NOTHING_DRAWN = "no drawn problem shows this law"
TOO_LARGE = "lengths= allows no problem of less than {:,} cells (query, key); here laws are run on {:,} at most"
FUNCTION = "parametrize_with_checks"
MISSING = '{}: {} is needed, which is not installed: pip install "refattn[testing]".'


@dataclass(frozen=True)
class Effort:
    """How much is spent on a law: problems, those that are tried to make one smaller, and cells of each problem."""

    examples: int
    shrinks: int = MOST_SHRINKS
    cells: float = math.inf


# Of the laws among the checks of a kernel, when it is quick and else: on small problems, whatever it is made for.
QUICK, THOROUGH = Effort(3, 30, 2**12), Effort(10, MOST_SHRINKS, 2**14)


@dataclass(frozen=True)
class LawResult:
    """What came of one law.

    Parameters
    ----------
    name : str
        Name of the check, as `expected_failures` takes it.
    outcome : {"right", "WRONG", "expected failure", "not run"}
        What came of it. An expected failure that passes is wrong.
    message : str
        What is wrong and how to see it again, why it is expected, or why it was not run.
    case : Case or None
        The smallest problem found that shows what is wrong.
    kind : str
        What sort of fault it is, as `Finding` says it; empty where there is none.
    problems : int
        How many problems were run before one was found that breaks the law.
    key : str or None
        What results of one kind share that tell of one fault, such as a call that raises.
    """

    name: str
    outcome: str
    message: str = ""
    case: Case | None = None
    kind: str = ""
    problems: int = 0
    key: str | None = None


def run_checks(
    spec: KernelSpec,
    *,
    quick: bool = False,
    max_examples: int | None = None,
    seed: int = 0,
    repro: str | Path | None = None,
    progress: Callable[[LawResult], None] | None = None,
) -> tuple[LawResult, ...]:
    """Run every law on a kernel, each on drawn problems that are shrunk where they fail.

    Parameters
    ----------
    spec : KernelSpec
        The kernel, how to call it, and what it claims.
    quick : bool, default False
        Draw 5 problems for each law instead of 25.
    max_examples : int, optional
        Number of problems for each law.
    seed : int, default 0
        Seed of what is drawn: two runs of one seed are the same.
    repro : str or path, optional
        A folder, for a bundle and a script of each law that is broken: see `save_repro`.
    progress : callable, optional
        Called with each result as it comes.

    Returns
    -------
    tuple of LawResult
        One for each of ``refattn.testing.laws.CHECKS``, run or not.

    Raises
    ------
    TypeError
        If `spec` is not a KernelSpec.
    ImportError
        If hypothesis is not installed.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, run_checks
    >>> spec = KernelSpec(ra.attention, dims=(8,), lengths=((1, 1), (17, 33)))
    >>> for result in run_checks(spec, max_examples=1)[:3]:
    ...     print(result.name, result.outcome)
    check_forward right
    check_lse not run
    check_tile_edges right
    """
    _check_spec("run_checks", spec)
    quick = check_flag("run_checks", "quick", quick)
    seed = check_integer("run_checks", "seed", seed)
    examples = QUICK_EXAMPLES if quick else MAX_EXAMPLES
    if max_examples is not None:
        examples = check_integer("run_checks", "max_examples", max_examples, least=1)
    effort, found = Effort(examples), []
    for check in CHECKS:
        result = result_of(spec, check, effort, seed, repro)
        found.append(result)
        if progress is not None:
            progress(result)
    return tuple(found)


def conformance(spec: KernelSpec, **options: Any) -> list[tuple[str, str, str]]:
    """Run every law on a kernel, and list what came of it.

    Parameters
    ----------
    spec : KernelSpec
        The kernel.
    **options
        Those of `run_checks`.

    Returns
    -------
    list of (str, str, str)
        Name of the check, outcome and message of each law.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, conformance
    >>> spec = KernelSpec(ra.attention, dims=(8,), lengths=((1, 1), (17, 33)))
    >>> conformance(spec, max_examples=1)[1]
    ('check_lse', 'not run', 'it returns no log-sum-exp')
    """
    return [(result.name, result.outcome, result.message) for result in run_checks(spec, **options)]


def parametrize_with_checks(
    specs: KernelSpec | Sequence[KernelSpec], *, max_examples: int = MAX_EXAMPLES, repro: str | Path | None = None
) -> Any:
    """Decorate a pytest test with every law of one or several kernels, as its argument `check`.

    Parameters
    ----------
    specs : KernelSpec or sequence of KernelSpec
        The kernels. What their `expected_failures` name is an expected failure, strictly: one that passes fails.
    max_examples : int, default 25
        Number of problems for each law.
    repro : str or path, optional
        A folder, for a bundle and a script of each law that is broken: see `save_repro`.

    Returns
    -------
    pytest.MarkDecorator
        The test is called with `check`, a function without arguments; its id is ``kernel-check``.

    Raises
    ------
    TypeError
        If something else than a KernelSpec is given.
    ImportError
        If pytest or hypothesis is not installed.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, parametrize_with_checks
    >>> @parametrize_with_checks(KernelSpec(ra.attention))
    ... def test_conformance(check):
    ...     check()
    """
    pytest = _pytest()
    kernels = [specs] if isinstance(specs, KernelSpec) else specs
    return pytest.mark.parametrize("check", parameters(kernels, max_examples=max_examples, repro=repro))


def parameters(specs: Sequence[KernelSpec], *, max_examples: int, repro: str | Path | None) -> list[Any]:
    """The parameters that pytest takes: each law of each kernel."""
    pytest = _pytest()
    examples = check_integer(FUNCTION, "max_examples", max_examples, least=1)
    found = []
    for spec in specs:
        _check_spec(FUNCTION, spec)
        for check in CHECKS:
            name = check.__name__
            reason = spec.expected_failures.get(name)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True)]
            drawn = _Drawn(spec, check, Effort(examples), repro)
            found.append(pytest.param(drawn, id=f"{spec.name}-{name}", marks=marks))
    return found


def _pytest() -> Any:
    """The module."""
    try:
        import pytest
    except ImportError:
        raise ImportError(MISSING.format(FUNCTION, "pytest")) from None
    return pytest


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A law and a kernel; it is called without arguments, and draws the problems."""

    spec: KernelSpec
    check: Law
    effort: Effort
    repro: str | Path | None = None
    seed: int | None = None
    tried: list[Case] = field(default_factory=list)

    def __call__(self) -> None:
        """Run the law on drawn problems, and raise its violation on the smallest that was found."""
        try:
            import hypothesis
            from hypothesis import errors

            from refattn.testing import strategies
        except ImportError:
            raise ImportError(MISSING.format(self.check.__name__, "hypothesis")) from None
        if (reason := self._nothing()) is not None:
            raise SkipTest(reason)
        broken: dict[Case, Violation] = {}
        shrinks = missed = 0
        self.tried.clear()

        def test(case: Case) -> None:
            nonlocal shrinks, missed
            if case in broken:
                raise broken[case]
            shrinks += bool(broken)
            if shrinks > self.effort.shrinks:
                hypothesis.reject()
            try:
                self.check(self.spec, case)
            except SkipTest:
                missed += 1
                if missed > MISSES * self.effort.examples and not self.tried:
                    raise SkipTest(NOTHING_DRAWN) from None
                hypothesis.reject()
            except Violation as error:
                error.case = case
                broken[case] = error
                raise
            if not broken:
                self.tried.append(case)

        phases = [phase for phase in hypothesis.Phase if phase.name not in ("explain", "explicit", "reuse")]
        drawn = hypothesis.given(strategies.drawn(self.spec, self.effort.cells))(test)
        if self.seed is not None:
            drawn = hypothesis.seed(self.seed)(drawn)
        searched = hypothesis.settings(
            max_examples=self.effort.examples,
            deadline=None,
            database=None,
            phases=phases,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(drawn)
        try:
            searched()
        except errors.Unsatisfiable:
            raise SkipTest(NOTHING_DRAWN) from None
        except Violation as error:
            found = self._simplest(error)
            if self.repro is not None:
                path = Path(self.repro) / f"{self.spec.name}-{self.check.__name__}.npz"
                save_repro(path, self.spec, found.case, check=self.check.__name__)
                text = f"{found}\n  saved: python -m refattn replay {path} module:SPEC"
                found = Violation(text, found.kind, found.case, found.key)
            raise found from None

    def _nothing(self) -> str | None:
        """Why no problem is drawn."""
        if (reason := self.check.unfit(self.spec)) is not None:
            return reason
        allowed = limits(self.spec)
        if not allowed.pairs:
            return "is_causal=True has no meaning for L != S, and all lengths differ"
        least = allowed.cells * min(self.spec.batch)
        return TOO_LARGE.format(least, self.effort.cells) if least > self.effort.cells else None

    def _simplest(self, error: Violation) -> Violation:
        """The violation on a case that is simpler still, where there is one."""
        if not self.effort.shrinks:
            return error
        case = simpler(self.spec, self.check, error.case, error.kind)
        try:
            self.check(self.spec, case)
        except Violation as other:
            error = Violation(str(other), other.kind, case, other.key)
        verdict = run(self.spec, error.case.inputs(self.spec)).verdict
        told = [] if verdict is None else [f"  symptom: {symptom}" for symptom in verdict.symptoms]
        return Violation("\n".join([str(error), *told]), error.kind, error.case, error.key)


def result_of(spec: KernelSpec, check: Law, effort: Effort, seed: int, repro: str | Path | None = None) -> LawResult:
    """What comes of one law."""
    name = check.__name__
    expected = spec.expected_failures.get(name)
    drawn = _Drawn(spec, check, effort, repro if expected is None else None, seed)
    try:
        drawn()
    except SkipTest as reason:
        return LawResult(name, "not run", str(reason))
    except Violation as error:
        outcome, text = ("WRONG", str(error)) if expected is None else ("expected failure", expected)
        return LawResult(name, outcome, text, error.case, error.kind, len(drawn.tried) + 1, error.key)
    if expected is not None:
        text = f"was expected to fail ({expected}), but no problem of {len(drawn.tried)} failed"
        return LawResult(name, "WRONG", text, kind=UNEXPECTED, problems=len(drawn.tried))
    return LawResult(name, "right", problems=len(drawn.tried))


def _check_spec(function: str, spec: object) -> None:
    """A KernelSpec."""
    if not isinstance(spec, KernelSpec):
        raise TypeError(f"{function}: spec must be a KernelSpec; got {type(spec).__name__}.")
