"""The suite as a list, as parameters of a pytest test, and as a package that pytest collects."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn.testing import Case, KernelSpec, LawResult, conformance, parametrize_with_checks, run_checks, suite
from refattn.testing.laws import CHECKS
from refattn.testing.spec import LAW_CHECKS
from refattn.testing.suite import Effort
from tests.conformance.kernels import only_output, tiled
from tests.testing.stored_kernels import ragged

ROOT = Path(ra.__file__).parents[1]
FIELDS: dict[str, Any] = {"accepts": ("mask", "is_causal"), "returns": ("output", "lse"), "dims": (16,)}
KERNELS = """
from refattn.testing import KernelSpec, parametrize_with_checks
from tests.conformance.kernels import tiled

FIELDS = {"accepts": ("mask", "is_causal"), "returns": ("output", "lse"), "dims": (8,), "lengths": ((1, 1), (16, 16))}
right = KernelSpec(tiled(), **FIELDS)
wrong = KernelSpec(tiled("clipped"), **FIELDS)
number = 3
"""
TEST = """
from mine import *

failures = {"check_forward": "values are clipped, #12", "check_value_linearity": "the same", "check_lse": "a guess",
            "check_tile_edges": "the same", "check_layouts": "not run at all"}
known = KernelSpec(tiled("clipped"), **FIELDS, expected_failures=failures)

@parametrize_with_checks([right, known], max_examples=2)
def test_conformance(check):
    check()
"""


def of(mistake: str | None, **fields: Any) -> KernelSpec:
    """The spec of a kernel."""
    return KernelSpec(tiled(mistake), **{**FIELDS, **fields})


def test_a_right_kernel_passes_all_that_is_run() -> None:
    seen: list[LawResult] = []
    results = run_checks(of(None), max_examples=2, progress=seen.append)
    assert tuple(seen) == results
    assert [result.name for result in results] == list(LAW_CHECKS)
    told = {result.name: result.message for result in results if result.outcome != "right"}
    assert told == {"check_layouts": "it takes none of the tables of packed and paged operands"}
    assert {result.outcome for result in results} == {"right", "not run"}


def test_the_planted_tail_is_found_and_shrinks_to_the_first_key_of_a_tile() -> None:
    result = suite.result_of(of("tail", accepts=()), CHECKS[0], Effort(25), 0)
    assert (result.outcome, result.kind) == ("WRONG", "wrong values")
    assert result.case is not None
    assert result.case.lengths[1] == 65
    assert f"check_forward(SPEC, {result.case!r})" in result.message
    assert eval(repr(result.case), {"Case": Case}) == result.case


def test_two_runs_of_one_seed_are_the_same() -> None:
    spec = of("place", lengths=((1, 1), (40, 40)), accepts=())
    one, two = (suite.result_of(spec, CHECKS[0], Effort(5), 3) for _ in range(2))
    assert one == two
    assert one.outcome == "WRONG"
    drawn: list[tuple[int, ...]] = []

    def kernel(*operands: np.ndarray) -> np.ndarray:
        drawn.append(operands[0].shape + operands[1].shape)
        return only_output(tiled())(*operands)

    found = []
    for seed in (3, 3, 4):
        drawn.clear()
        suite.result_of(KernelSpec(kernel, dims=(8,)), CHECKS[0], Effort(5), seed)
        found.append(list(drawn))
    assert found[0] == found[1] != found[2]


def test_a_fault_that_comes_and_goes_is_a_fault() -> None:
    calls = [0]

    def kernel(*operands: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return only_output(tiled())(*operands) * np.float32(1 + (calls[0] == 3))

    spec = KernelSpec(kernel, dims=(8,), lengths=((1, 1), (9, 9)))
    result = suite.result_of(spec, CHECKS[0], Effort(5), 0)
    assert result.outcome == "WRONG"
    assert result.message.startswith("check_forward: WRONG: ")


def test_expected_failures_are_strict() -> None:
    reasons = {"check_lse": "base 2, #7", "check_forward": "a guess", "check_layouts": "no tables"}
    spec = of("lse", expected_failures=reasons, lengths=((2, 2), (9, 9)))
    results = {result.name: result for result in run_checks(spec, max_examples=2)}
    assert (results["check_lse"].outcome, results["check_lse"].message) == ("expected failure", "base 2, #7")
    assert results["check_forward"].outcome == "WRONG"
    text = "was expected to fail (a guess), but no problem of 2 failed"
    assert results["check_forward"].message == text
    assert results["check_layouts"].outcome == "not run"


def test_the_list_has_names_outcomes_and_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "CHECKS", CHECKS[-2:])
    (first, second) = conformance(of("state", lengths=((2, 2), (9, 9))), max_examples=3)
    assert first[:2] == ("check_determinism", "WRONG")
    assert first[2].startswith(
        "check_determinism: the same call gave other numbers the second time\n  output: batch 0, "
    )
    assert second == ("check_inputs_untouched", "right", "")


def test_a_bundle_is_left_where_asked_for(tmp_path: Path) -> None:
    result = suite.result_of(of("scale", lengths=((2, 2), (9, 9))), CHECKS[0], Effort(3), 0, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiled_scale-check_forward.npz",
        "tiled_scale-check_forward.py",
    }
    assert f"saved: python -m refattn replay {tmp_path / 'tiled_scale-check_forward.npz'} module:SPEC" in result.message


def test_quick_draws_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "CHECKS", CHECKS[:1])
    calls = [0]

    def kernel(*operands: np.ndarray) -> np.ndarray:
        calls[0] += 1
        return only_output(tiled())(*operands)

    spec = KernelSpec(kernel, dims=(8,), lengths=((1, 1), (5, 5)))
    for options, drawn in (({"quick": True}, 5), ({"max_examples": 7}, 7), ({}, 25)):
        calls[0] = 0
        run_checks(spec, **options)
        assert calls[0] == drawn


def test_sequences_are_drawn_for_a_kernel_that_takes_tables() -> None:
    spec = KernelSpec(
        ragged("empty"),
        computes={"mask": ra.masks.causal(anchor="lower_right")},
        accepts=("cu_seqlens_q", "cu_seqlens_k"),
        returns=("output", "lse"),
        dims=(8,),
        lengths=((1, 1), (9, 20)),
    )
    check = next(check for check in CHECKS if check.__name__ == "check_layouts")
    assert suite.result_of(spec, check, Effort(10), 0).outcome == "WRONG"


def test_what_is_no_spec_or_number_is_refused() -> None:
    for call in (run_checks, conformance, lambda spec: parametrize_with_checks([spec])):
        with pytest.raises(TypeError, match="spec must be a KernelSpec; got int"):
            call(3)
    with pytest.raises(ValueError, match="run_checks: max_examples must be"):
        run_checks(of(None), max_examples=0)
    with pytest.raises(ValueError, match="parametrize_with_checks: max_examples must be"):
        parametrize_with_checks(of(None), max_examples=0)


def test_a_kernel_whose_lengths_have_no_meaning_runs_nothing() -> None:
    spec = KernelSpec(tiled(), computes={"is_causal": True}, lengths=((3, 5),), returns=("output", "lse"))
    results = run_checks(spec)
    assert {result.outcome for result in results} == {"not run"}
    assert "is_causal=True has no meaning for L != S, and all lengths differ" in results[0].message


def pytest_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest in another project, which has this plugin and no other."""
    (folder / "mine.py").write_text(KERNELS)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HYPOTHESIS", "CI"))},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "refattn._pytest_plugin", "-p", "no:cacheprovider", "-rA", "-q"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Outcome of each test by its id."""
    lines = [line.split() for line in done.stdout.splitlines() if "::" in line]
    return {
        words[1].partition("[")[2].rstrip("]"): words[0]
        for words in lines
        if words[0] in ("PASSED", "FAILED", "XFAIL", "SKIPPED") and "[" in words[1]
    }


def test_the_decorator(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TEST)
    done = pytest_run(tmp_path, "test_mine.py", "-k", "forward or lse or linearity or layouts")
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(done) == {
        "tiled_right-check_forward": "PASSED",
        "tiled_right-check_lse": "PASSED",
        "tiled_right-check_value_linearity": "PASSED",
        "tiled_clipped-check_forward": "XFAIL",
        "tiled_clipped-check_value_linearity": "XFAIL",
        "tiled_clipped-check_lse": "FAILED",
    }
    assert "[XPASS(strict)] a guess" in done.stdout
    assert "values are clipped, #12" in done.stdout
    assert "it takes none of the tables of packed and paged operands" in done.stdout
    assert "2 skipped" in done.stdout


def test_the_package_is_collected_for_the_kernels_that_are_named(tmp_path: Path) -> None:
    options = ("--pyargs", "refattn.conformance", "--attn-max-examples", "2", "--attn-repro", "found")
    kernels = ("--attn-kernel", "mine:right", "--attn-kernel", "mine:wrong")
    done = pytest_run(tmp_path, *options, *kernels, "-k", "forward or untouched")
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(done) == {
        "tiled_right-check_forward": "PASSED",
        "tiled_right-check_inputs_untouched": "PASSED",
        "tiled_clipped-check_forward": "FAILED",
        "tiled_clipped-check_inputs_untouched": "PASSED",
    }
    assert "Violation: check_forward: WRONG: " in done.stdout
    assert (tmp_path / "found" / "tiled_clipped-check_forward.npz").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "refattn.conformance: a kernel must be named: --attn-kernel module:SPEC"),
        (("--attn-kernel", "mine:none"), "refattn.conformance: --attn-kernel: mine has no 'none'."),
        (("--attn-kernel", "mine:number"), "refattn.conformance: KernelSpec: function must be callable; got int."),
    ],
)
def test_a_kernel_that_is_not_there_is_told(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    done = pytest_run(tmp_path, "--pyargs", "refattn.conformance", *arguments)
    assert done.returncode != 0
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_plugin_is_an_entry_point_and_loads_no_numpy() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {"refattn": "refattn._pytest_plugin"}
    program = (
        "import sys, refattn._pytest_plugin\nprint(*(set(sys.modules) & {'numpy', 'refattn.testing', 'hypothesis'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "\n"


def test_without_hypothesis_the_room_loads_and_the_suite_names_it() -> None:
    program = (
        "import sys\nsys.modules['hypothesis'] = None\nimport refattn as ra\n"
        "from refattn.testing import Case, KernelSpec, laws, run_checks\n"
        "spec = KernelSpec(ra.attention, dims=(8,))\nlaws.check_forward(spec, Case((3, 3), (8, 8)))\n"
        "try:\n    run_checks(spec)\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    text = 'check_forward: hypothesis is needed, which is not installed: pip install "refattn[testing]".'
    assert done.stdout.strip() == text
