"""The laws among the checks of a kernel: what they find, what is told of them, and when they are run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn.testing import Case, KernelSpec, Readings, Report, check_kernel, laws
from refattn.testing.spec import LAW_CHECKS
from tests.conformance.kernels import tiled

FIELDS: dict[str, Any] = {"returns": ("output", "lse"), "dims": (8,), "lengths": ((1, 1), (12, 17)), "batch": (2,)}
NONE = {
    "check_layouts": "it takes none of the tables of packed and paged operands",
    "check_empty_rows": "it accepts no mask, and computes with none that leaves a query without keys",
    "check_causality": "it neither computes with a mask nor accepts mask or is_causal",
    "check_masked_nan": "it neither computes with a mask nor accepts mask or is_causal",
}


@pytest.fixture(autouse=True)
def from_the_laws_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """One problem alone before the laws."""
    monkeypatch.setattr("refattn.testing.kernel.probe", lambda spec, quick: Readings())
    plan = sys.modules["refattn.testing.kernel"].plan
    monkeypatch.setattr("refattn.testing.kernel.plan", lambda spec, **options: list(plan(spec, **options))[:1])


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Of the laws these."""
    monkeypatch.setattr("refattn.testing.kernel.CHECKS", tuple(getattr(laws, name) for name in names))


def outcomes(report: Report) -> dict[str, str]:
    """Outcome of each law."""
    return {check.name: check.outcome for check in report.checks if check.name in LAW_CHECKS}


def test_a_right_kernel_keeps_every_law_and_each_is_told_as_it_begins() -> None:
    seen: list[str] = []
    report = check_kernel(KernelSpec(tiled(), **FIELDS), quick=True, progress=seen.append)
    assert report.passed, report.text
    assert [name for name in seen if name in LAW_CHECKS] == list(LAW_CHECKS)
    told = {check.name: check.reason for check in report.checks if check.outcome == "not run"}
    assert {name: told[name] for name in NONE} == NONE
    assert all(outcomes(report)[name] == "right" for name in LAW_CHECKS if name not in NONE)
    (kept,) = (line for line in report.text.replace("\n    ", " ").splitlines() if "check_forward" in line)
    assert kept.endswith("check_inputs_untouched: right in 39 problems")


@pytest.mark.parametrize(
    ("mistake", "law"),
    [("mixed", "check_nan_containment"), ("strides", "check_strides"), ("raw", "check_logit_shift")],
)
def test_what_no_input_shows_is_found_by_its_law_on_its_smallest_case(mistake: str, law: str) -> None:
    report = check_kernel(KernelSpec(tiled(mistake), **FIELDS), quick=True)
    assert {name for name, outcome in outcomes(report).items() if outcome == "WRONG"} == {law}
    (finding,) = report.findings
    assert (finding.check, finding.kind, finding.checks) == (law, "wrong values", (law,))
    assert finding.problem["query"][2:] == [1, 8]
    call = next(line for line in finding.text.splitlines() if line.strip().startswith(f"{law}(SPEC"))
    with pytest.raises(laws.Violation):
        eval(call, {law: getattr(laws, law), "SPEC": KernelSpec(tiled(mistake), **FIELDS), "Case": Case})
    assert finding.text.splitlines()[0] in report.text
    assert len(report.text.splitlines()) <= 60


def test_reports_and_problems_of_one_seed_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "check_nan_containment")
    shapes: list[tuple[int, ...]] = []

    def kernel(*operands: np.ndarray) -> Any:
        shapes.append(operands[0].shape + operands[1].shape)
        return tiled()(*operands)

    found = []
    for seed in (3, 3, 4):
        shapes.clear()
        report = check_kernel(KernelSpec(kernel, **FIELDS), quick=True, seed=seed)
        found.append((report, list(shapes)))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


def test_an_expected_failure_is_named_by_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "check_lse", "check_strides")
    reasons = {"check_strides": "packed only, #3", "check_lse": "a guess"}
    report = check_kernel(KernelSpec(tiled("strides"), expected_failures=reasons, **FIELDS), quick=True)
    assert outcomes(report)["check_strides"] == "expected failure"
    (finding,) = report.findings
    assert finding.kind == "expected failure passed"
    assert finding.text == "was expected to fail (a guess), but no problem of 3 failed"


def test_laws_ask_for_nothing_that_is_expected_to_fail() -> None:
    def kernel(*operands: np.ndarray, bias: np.ndarray | None) -> Any:
        if bias is not None:
            raise NotImplementedError("bias")
        return tiled()(*operands)

    spec = KernelSpec(kernel, accepts=("bias",), expected_failures={"bias": "not built"}, **FIELDS)
    assert check_kernel(spec, quick=True).passed


def raising(*operands: np.ndarray) -> np.ndarray:
    """A kernel that is not there."""
    raise NotImplementedError("not built")


@pytest.mark.parametrize(("kernel", "laws_run"), [(tiled("scale"), False), (raising, False), (raising, True)])
def test_a_quick_run_has_laws_where_nothing_else_is_wrong(kernel: Callable[..., Any], laws_run: bool) -> None:
    report = check_kernel(KernelSpec(kernel, **FIELDS), quick=not laws_run)
    (finding,) = report.findings
    names = {name for name, outcome in outcomes(report).items() if outcome == "WRONG"}
    assert names == ({name for name in LAW_CHECKS if name not in NONE} if laws_run else set())
    assert set(finding.checks) == {"normal", *names}
    reasons = {check.reason for check in report.checks if check.outcome == "not run"}
    assert ("quick=True runs laws where nothing else is wrong" in reasons) != laws_run


def test_nan_times_a_weight_of_0_is_a_word_and_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "check_causality", "check_masked_nan")
    report = check_kernel(KernelSpec(tiled("nan"), accepts=("is_causal",), **FIELDS), quick=True)
    assert report.passed, report.text
    assert outcomes(report)["check_masked_nan"] == "not kept"
    assert "check_masked_nan: not kept: a NaN or infinity of a token behind the mask" in report.text


def test_laws_are_not_run_on_large_problems() -> None:
    report = check_kernel(KernelSpec(tiled(), **{**FIELDS, "lengths": ((300, 300),), "batch": (1,)}), quick=True)
    assert report.passed
    text = "lengths= allows no problem of less than 90,000 cells (query, key); here laws are run on 4,096 at most"
    assert {check.reason for check in report.checks if check.name == "check_forward"} == {text}


def test_without_hypothesis_the_laws_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    report = check_kernel(KernelSpec(tiled(), **FIELDS), quick=True)
    assert report.passed
    assert set(outcomes(report).values()) == {"not run"}
    assert 'hypothesis is needed, which is not installed: pip install "refattn[testing]".' in report.text
