"""A kernel that is run: what is varied, what is found, and what is told."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.testing import KernelSpec, Report, check_kernel
from refattn.testing.inputs import problems
from refattn.testing.spec import ARGUMENTS, LAWS
from tests.testing.kernels import MISTAKES, TILE, output_of, tiled

pytestmark = pytest.mark.usefixtures("without_probes", "without_fit")

LOWER = {"mask": masks.causal(anchor="lower_right")}
# Short of a tile, a tile, past it, and both lengths at odds.
LENGTHS = ((1, 33), (16, 16), (31, 65), (64, 64))
SMALL: dict[str, Any] = {"dims": (16, (24, 8)), "lengths": LENGTHS}


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, **arguments: Any) -> np.ndarray:
    """A kernel that is right, whatever it is asked."""
    return ra.attention(query, key, value, **arguments)


def outcomes(report: Report) -> dict[str, str]:
    """Outcome of each check."""
    return {check.name: check.outcome for check in report.checks}


@pytest.mark.parametrize("name", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_a_right_kernel_passes_every_law_and_the_capture(name: str) -> None:
    dims = (64, (24, 8))
    spec = KernelSpec(tiled(name), computes=LOWER, returns=("output", "lse"), contract=name, dims=dims, lengths=LENGTHS)
    report = check_kernel(spec)
    assert report.passed, report.text
    assert report.findings == report.diagnosis == ()
    run = {check.name: check for check in report.checks if check.outcome == "right"}
    assert set(run) == {*LAWS, "smollm2"}
    assert all(check.problems == len(LENGTHS) * len(dims) for law, check in run.items() if law in LAWS)
    assert all(0 < check.budget_used < 1 and check.lse_budget_used < 1 for check in run.values())


@pytest.mark.parametrize(
    "mistake", [pytest.param(x, marks=[pytest.mark.slow] * (n % 3 > 0)) for n, x in enumerate(MISTAKES)]
)
def test_a_wrong_kernel_is_refused(mistake: str) -> None:
    kernel = tiled("bfloat16", mistake)
    spec = KernelSpec(kernel, computes=LOWER, returns=("output", "lse"), contract="bfloat16", **SMALL)
    report = check_kernel(spec, quick=True)
    assert not report.passed
    assert report.text.startswith(f"WRONG: {mistake}: ")


@pytest.mark.parametrize(
    ("mistake", "symptom"),
    [
        ("zeros", "all zeros"),
        ("anchor", 'the mask anchored "upper_left"'),
        ("tail", f"key {TILE} takes no part"),
        ("scale", "the scores are multiplied by 0.98"),
        ("heads", "key heads by h % 2 instead of h // 2"),
        ("lse", "the log-sum-exp fits base 2, not the base e"),
    ],
)
def test_a_report_names_the_mistake(mistake: str, symptom: str) -> None:
    fields = SMALL | {"dims": (16,)}
    spec = KernelSpec(tiled("float32", mistake), computes=LOWER, returns=("output", "lse"), **fields)
    assert f"symptom: {symptom}" in check_kernel(spec, quick=True).text


def test_a_kernel_that_stores_its_scores_is_pointed_to_its_contract() -> None:
    kernel = output_of(tiled("bfloat16", stored=True))
    fields = {"computes": LOWER, "dims": (64,), "lengths": ((64, 64), (31, 129))}
    report = check_kernel(KernelSpec(kernel, contract="bfloat16", **fields), quick=True)
    assert not report.passed
    assert "passes under contract eager('bfloat16')" in report.text
    assert check_kernel(KernelSpec(kernel, contract=ra.contract.eager("bfloat16"), **fields), quick=True).passed


def test_each_accepted_argument_is_varied_alone() -> None:
    calls: list[dict[str, Any]] = []

    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, **arguments: Any) -> np.ndarray:
        calls.append(arguments)
        return ra.attention(query, key, value, **arguments)

    report = check_kernel(KernelSpec(kernel, accepts=ARGUMENTS, contract="bfloat16", **SMALL))
    assert report.passed, report.text
    assert {name for name, outcome in outcomes(report).items() if outcome == "right"} == {
        *LAWS,
        *ARGUMENTS,
        "empty_rows",
    }
    assert all(set(call) == set(ARGUMENTS) for call in calls)
    usual = {1 / math.sqrt(E) for E in (16, 24)}
    varied = [
        {name for name, x in call.items() if not (x is None or x is False or (name == "scale" and x in usual))}
        for call in calls
    ]
    assert all(len(names) <= 1 for names in varied)
    assert set().union(*varied) == set(ARGUMENTS)
    seen = [call["mask"] for call in calls if call["mask"] is not None]
    assert any(not mask.any(axis=-1).all() for mask in seen)
    assert any(mask.any(axis=-1).all() and not mask.all() for mask in seen)


@pytest.mark.parametrize("ignored", ARGUMENTS)
def test_an_argument_that_the_kernel_ignores_is_found(ignored: str) -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, **arguments: Any) -> np.ndarray:
        del arguments[ignored]
        return ra.attention(query, key, value, **arguments)

    report = check_kernel(KernelSpec(kernel, accepts=ARGUMENTS, **SMALL | {"dims": (16,)}), quick=True)
    wrong = {name for name, outcome in outcomes(report).items() if outcome == "WRONG"}
    assert wrong == ({"mask", "empty_rows"} if ignored == "mask" else {ignored})


def test_what_is_not_run_is_listed_with_its_reason() -> None:
    spec = KernelSpec(
        tiled(),
        computes=LOWER,
        returns=("output", "lse"),
        backward=print,
        **SMALL,
    )
    told = {check.name: check.reason for check in check_kernel(spec, quick=True).checks if check.outcome == "not run"}
    assert told == {
        "probes": "",
        "smollm2": "its heads have E = Ev = 64, which dims does not name",
        "mask": "function does not accept mask; all checks compute with it",
        **{name: f"function does not accept {name}" for name in (*ARGUMENTS, "dropout_mask") if name != "mask"},
        "empty_rows": "function does not accept mask",
        "gradients": "gradients are not judged yet",
    }


def test_a_kernel_that_is_causal_by_flag_runs_where_that_has_a_meaning() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        return ra.attention(query, key, value, is_causal=True)

    report = check_kernel(KernelSpec(kernel, computes={"is_causal": True}, **SMALL))
    assert report.passed
    assert {check.problems for check in report.checks if check.name in LAWS} == {4}
    report = check_kernel(KernelSpec(kernel, computes={"is_causal": True}, dims=(16,), lengths=((3, 5),)))
    assert not report.passed  # nothing was judged
    assert report.findings == ()
    assert "is_causal=True has no meaning for L != S, and all lengths differ" in report.text


@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (9, 3), (3, 1), (6, 2)])
def test_the_capture_fits_the_heads_that_it_has(heads: tuple[int, int]) -> None:
    spec = KernelSpec(reference, heads=heads, dims=(64,), lengths=((2, 2),))
    found = [item for item in problems.plan(spec, quick=True, seed=0) if item.check == "smollm2"]
    given = problems.inputs(spec, found[0])
    capture = ra.data.smollm2()
    for h in range(heads[0]):
        key_head, member = divmod(h, heads[0] // heads[1])
        assert np.array_equal(given.query[0, h], capture.query[key_head, member].astype(np.float32))
        assert np.array_equal(given.key[0, key_head], capture.key[key_head, 0].astype(np.float32))


@pytest.mark.parametrize("heads", [(4, 1), (4, 4)])
def test_heads_that_the_capture_lacks_are_told(heads: tuple[int, int]) -> None:
    report = check_kernel(KernelSpec(reference, heads=heads, dims=(64,), lengths=((2, 2),)), quick=True)
    assert outcomes(report)["smollm2"] == "not run"
    assert "it has 3 key heads of 3 query heads each; heads asks for more" in report.text


def test_a_report_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    fields = {"dims": (8,), "lengths": ((1, 33), (16, 16))}
    spec = KernelSpec(tiled("float32", "heads"), computes=LOWER, returns=("output", "lse"), **fields)
    one, two, other = (check_kernel(spec, quick=True, seed=seed) for seed in (5, 5, 6))
    assert one.to_json() == two.to_json()
    assert one.to_json() != other.to_json()


def test_every_batch_size_dims_and_length_is_run() -> None:
    spec = KernelSpec(reference, batch=(1, 2, 5), dims=(8, (4, 2)), lengths=((3, 3), (3, 4)))
    for quick in (False, True):
        found = [item for item in problems.plan(spec, quick=quick, seed=0) if isinstance(item, problems.Problem)]
        assert {item.dims for item in found} == {(8, 8), (4, 2)}
        assert {item.lengths for item in found} == {(3, 3), (3, 4)}
        assert {item.batch for item in found} == {1, 2, 5}
        assert {item.law for item in found} == set(LAWS)
        assert len({item.seed for item in found}) == len(found)


def test_the_problem_shown_is_one_that_a_symptom_explains_and_then_the_smallest() -> None:
    lengths = ((64, 64), (3, 5), (16, 16))
    spec = KernelSpec(tiled("float32", "zeros"), computes=LOWER, returns=("output", "lse"), dims=(16,), lengths=lengths)
    for finding in check_kernel(spec).findings:
        assert finding.problem["query"][-2] == 3
    # With one query and one key the output is the value, whatever the scale: nothing to explain there.
    spec = KernelSpec(
        tiled("float32", "scale"), computes=LOWER, returns=("output", "lse"), dims=(16,), lengths=((1, 1), (16, 16))
    )
    for finding in check_kernel(spec).findings:
        assert finding.problem["query"][-2] == 16


def raises(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Refuses some shapes."""
    if query.shape[-1] == 24:
        raise NotImplementedError("no head of\n24 features")
    return ra.attention(query, key, value)


def scribbles(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Scales its own input."""
    output = ra.attention(query, key, value)
    key *= 2
    return output


@pytest.mark.parametrize(
    ("kernel", "fields", "kind", "text"),
    [
        (raises, {}, "raised", "raised NotImplementedError: no head of 24 features (line "),
        (scribbles, {}, "changed its inputs", "changed its inputs: key"),
        (
            lambda q, k, v: ra.attention(q, k, v)[..., :-1],
            {},
            "returned",
            "returned output of shape (1, 4, 1, 15); it ",
        ),
        (
            lambda q, k, v: ra.attention(q, k, v).tolist(),
            {},
            "returned",
            "returned list as output; it must be an array",
        ),
        (lambda q, k, v: None, {}, "returned", "returned NoneType as output; it must be an array of numpy"),
        (tiled(), {}, "returned", "returned tuple as output; it must be an array of numpy"),
        (reference, {"returns": ("output", "lse")}, "returned", "returned ndarray; returns= says (output, lse)"),
        (
            lambda q, k, v: ra.attention(q, k, v, dtype="float64"),
            {},
            "returned",
            "returned an output of float64; the contract says float32",
        ),
        (lambda q, k, v: q.astype(int), {}, "returned", "returned output of dtype int64; it must be a floating-point"),
    ],
)
def test_what_else_a_kernel_does_wrong_is_one_finding(
    kernel: Any, fields: dict[str, Any], kind: str, text: str
) -> None:
    report = check_kernel(KernelSpec(kernel, **SMALL, **fields))
    assert not report.passed
    (finding,) = report.findings
    assert finding.kind == kind
    assert finding.text.startswith(text)
    assert finding.checks == LAWS
    assert finding.problems == sum(check.failed for check in report.checks)
    assert finding.problem["dtype"] == "float32"
    assert len(report.text.splitlines()) <= 60


def test_a_problem_that_was_shown_can_be_made_again() -> None:
    spec = KernelSpec(tiled("float32", "tail"), computes=LOWER, returns=("output", "lse"), **SMALL)
    finding = check_kernel(spec, quick=True).findings[0]
    found = [item for item in problems.plan(spec, quick=True, seed=0) if isinstance(item, problems.Problem)]
    (again,) = [item for item in found if list(item.seed) == finding.problem["seed"]]
    given = problems.inputs(spec, again)
    assert list(given.query.shape) == finding.problem["query"]
    output, lse = spec.function(given.query, given.key, given.value)
    verdict = ra.testing.check(output, given.query, given.key, given.value, lse=lse, **LOWER)
    assert "\n".join(verdict.lines(contract=False)) == finding.text.partition("\n")[2]


def test_an_expected_failure_is_no_finding_and_one_that_passes_is() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, softcap: float | None) -> np.ndarray:
        return ra.attention(query, key, value)

    def spec(*names: str) -> KernelSpec:
        return KernelSpec(kernel, accepts=("softcap",), expected_failures=dict.fromkeys(names, "not built"), **SMALL)

    assert not check_kernel(spec(), quick=True).passed
    report = check_kernel(spec("softcap"), quick=True)
    assert report.passed
    assert "softcap       expected failure in 1 of 1 problem" in report.text
    report = check_kernel(spec("softcap", "rising"), quick=True)
    assert not report.passed
    (finding,) = report.findings
    assert finding.text == "was expected to fail (not built), but no problem of 2 failed"


def test_layout_library_and_base_are_the_kernels_own() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert all(x.flags.c_contiguous for x in (query, key, value))
        output, lse = tiled("bfloat16")(*(np.swapaxes(x, 1, 2) for x in (query, key, value)))
        return np.swapaxes(output, 1, 2), (lse / np.log(2)).astype(np.float32)

    fields = {"computes": LOWER, "returns": ("output", "lse2"), "contract": "bfloat16", **SMALL}
    report = check_kernel(KernelSpec(kernel, layout="blhd", **fields), quick=True)
    assert report.passed, report.text


def test_a_large_problem_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refattn.testing.running.MOST_WORK", 0)
    monkeypatch.setattr("refattn.testing.running.SAMPLE", 8)
    wrong = KernelSpec(tiled("float32", "zeros"), computes=LOWER, returns=("output", "lse"), **SMALL)
    assert "8 wrong among 8 of " in check_kernel(wrong, quick=True).text


def test_scores_beyond_the_bound_are_told_and_no_failure() -> None:
    report = check_kernel(KernelSpec(lambda q, k, v: reference(q, k, v, scale=1e9), computes={"scale": 1e9}, **SMALL))
    assert report.findings == ()
    assert not report.passed
    assert {outcomes(report)[law] for law in LAWS} == {"not judged"}


def test_json_holds_the_whole_report() -> None:
    spec = KernelSpec(tiled("float32", "anchor"), computes=LOWER, returns=("output", "lse"), **SMALL)
    report = check_kernel(spec, quick=True)
    told = json.loads(report.to_json())
    assert told["passed"] is False
    assert [check["name"] for check in told["checks"]] == [check.name for check in report.checks]
    assert [finding["text"] for finding in told["findings"]] == [finding.text for finding in report.findings]
    assert told["findings"][0]["problem"]["arguments"] == {"mask": "masks.causal(anchor='lower_right')"}


def test_a_report_stays_short() -> None:
    lengths = tuple((n, n) for n in range(1, 40))

    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, **arguments: Any) -> np.ndarray:
        raise ValueError(f"{query.shape}")

    report = check_kernel(KernelSpec(kernel, dims=(2, 3), lengths=lengths))
    assert len(report.findings) > 60
    lines = report.text.splitlines()
    assert len(lines) == 60
    assert lines[-1].endswith("more lines: see findings")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spec": tiled()}, TypeError, "check_kernel: spec must be a KernelSpec; got function."),
        ({"quick": 1}, TypeError, "check_kernel: quick must be True or False; got int."),
        ({"seed": -1}, ValueError, "check_kernel: seed must be at least 0; got -1."),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        check_kernel(**{"spec": KernelSpec(reference), **arguments})
    assert str(caught.value) == message
