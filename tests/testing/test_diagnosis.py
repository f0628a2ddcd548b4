"""What is said of a wrong kernel: the bug of the catalogue that gives its numbers, or that none does."""

from __future__ import annotations

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.testing import KernelSpec, bugs, check_kernel
from refattn.testing.diagnosis.fitting import fits
from refattn.testing.diagnosis.ranking import diagnose
from refattn.testing.explanation import Explanation
from refattn.testing.inputs.problems import Problem, inputs
from refattn.testing.running import run

SHAPE = {"batch": (1,), "heads": (4, 2), "dims": (16,)}


def sampled(function, law="normal", lengths=(40, 57), **fields):
    """Rows of one run of a kernel."""
    spec = KernelSpec(function, returns=("output", "lse"), lengths=(lengths,), **SHAPE, **fields)
    given = inputs(spec, Problem("normal", law, 1, lengths, (16, 16), (0, 1, 2)))
    return run(spec, given, keep="normal").sample


def upper_left(query, key, value):
    return ra.attention(query, key, value, mask=masks.causal("upper_left"), return_lse=True)[:2]


def other_heads(query, key, value):
    return ra.attention(query, key[:, [0, 1, 0, 1]], value[:, [0, 1, 0, 1]], return_lse=True)[:2]


def base_two(query, key, value):
    return ra.attention(query, key, value, scale=np.log(2) / 4, return_lse=True)[:2]


def noisy(query, key, value):
    output, lse, *_ = ra.attention(query, key, value, return_lse=True)
    return output + np.float32(0.01) * np.sin(np.arange(output.size, dtype=np.float32)).reshape(output.shape), lse


CAUSAL = {"computes": {"mask": masks.causal("lower_right")}}


@pytest.mark.parametrize(
    ("kernel", "fields", "bug"), [(upper_left, CAUSAL, "A1"), (other_heads, {}, "D1"), (base_two, {}, "C1")]
)
def test_the_bug_that_gives_the_numbers_comes_first(kernel, fields, bug):
    samples = [sampled(kernel, law, **fields) for law in ("normal", "offset")]
    first, *others = diagnose(samples)
    assert first.bug == bug
    assert first.instrument == "known bug"
    assert all(link.startswith("https://") for link in first.links)
    assert all(other.bug != bug for other in others)


def test_numbers_that_no_bug_gives_are_unknown_and_have_a_place():
    (only,) = diagnose([sampled(noisy)])
    assert only.bug is None
    assert only.name.startswith("unknown")
    assert "rows" in only.where


def test_a_bug_must_give_right_rows_as_well():
    def half(query, key, value):
        output, lse = upper_left(query, key, value)
        right, of_right, *_ = ra.attention(query, key, value, mask=masks.causal("lower_right"), return_lse=True)
        output[:, 2:], lse[:, 2:] = right[:, 2:], of_right[:, 2:]
        return output, lse

    assert all(fit.bug.id != "A1" for fit in fits([sampled(half, **CAUSAL)]))


def in_bfloat16(query, key, value):
    """Attention of weights in bfloat16, causal from the last key back."""
    narrow = value.dtype
    query, key, value = (x.astype(np.float32) for x in (query, key, value))
    key, value = (np.repeat(x, 2, axis=1) for x in (key, value))
    L, S = query.shape[2], key.shape[2]
    scores = query @ np.swapaxes(key, -1, -2) * np.float32(0.25)
    scores = np.where(np.arange(S) <= np.arange(L)[:, None] + S - L, scores, np.float32(-np.inf))
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return (weights.astype(narrow).astype(np.float32) @ value / total).astype(narrow), (top + np.log(total))[..., 0]


def test_a_row_that_sees_more_than_it_should_has_the_room_of_other_rows():
    """The right one of row 0 sees one key, and its bound is the rounding of one number."""
    sample = sampled(
        in_bfloat16, "peaked", (40, 200), computes={"mask": masks.causal("upper_left")}, contract="bfloat16"
    )
    assert min(part.output.bound[part.rows == 0].min(initial=np.inf) for part in sample.parts) < sample.typical
    assert {fit.bug.id for fit in fits([sample])} == {"A1"}


CELLS = np.random.default_rng(3).random((40, 57)) < 0.5
CELLS[::3] = False
MASKED = {"computes": {"mask": masks.array(CELLS)}}


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (lambda x: np.float32(7.5), True),
        (lambda x: np.float32(np.nan), True),
        (lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape), False),
    ],
    ids=["a number", "nan", "numbers"],
)
def test_rows_that_are_not_written_hold_one_number(left, told):
    def kernel(query, key, value):
        found = ra.attention(query, key, value, mask=CELLS, return_lse=True)[:2]
        for x in found:
            x[:, :, ::3] = left(x[:, :, ::3])
        return found

    assert ("E7" in {fit.bug.id for fit in fits([sampled(kernel, **MASKED)])}) == told


def test_a_bug_that_explains_less_than_another_one_is_not_told():
    def nothing(query, key, value):
        return np.zeros(query.shape, np.float32), np.zeros(query.shape[:3], np.float32)

    assert {fit.bug.id for fit in fits([sampled(nothing, **MASKED)])} == {"zeros", "A16"}
    assert [fit.bug.id for fit in fits([sampled(nothing), sampled(nothing, **MASKED)])] == ["zeros"]


def test_a_bug_must_fit_every_run_that_it_applies_to():
    samples = [sampled(upper_left, **CAUSAL), sampled(other_heads, "offset", **CAUSAL)]
    assert all(fit.bug.id != "A1" for fit in fits(samples))


def test_what_was_read_comes_before_what_was_measured_and_bugs_before_other_words():
    def said(bug, instrument):
        return Explanation(bug=bug, name=f"{bug} {instrument}", instrument=instrument)

    ranked = diagnose(
        (),
        read=[said(None, "probe"), said("A4", "probe")],
        measured=[said("C2", "score test"), said("A4", "score test")],
        symptoms=[said(None, "symptom")],
    )
    assert [x.name for x in ranked] == ["A4 probe", "C2 score test", "None probe", "None symptom"]


def test_a_report_tells_what_is_wrong_before_its_checks():
    spec = KernelSpec(upper_left, returns=("output", "lse"), lengths=((40, 57),), **SHAPE, **CAUSAL)
    lines = []
    report = check_kernel(spec, quick=True, progress=lines.append)
    assert report.diagnosis[0].bug == "A1"
    assert report.text.index("[A1]") < report.text.index("checks\n")
    assert lines[:2] == ["probes", "normal"]


def test_a_right_kernel_has_no_diagnosis():
    spec = KernelSpec(ra.attention, lengths=((5, 9),), **SHAPE)
    assert check_kernel(spec, quick=True).diagnosis == ()


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_bug_of_the_catalogue_is_found_again(half, monkeypatch):
    """The numbers of a bug itself fit it, whatever else they fit."""
    rng = np.random.default_rng(0)
    q, (k, v) = rng.standard_normal((1, 4, 20, 16)), rng.standard_normal((2, 1, 2, 37, 16))
    problem = bugs.problem(q, k, v, mask=masks.causal("lower_right"), softcap=3.0, sinks=rng.standard_normal(4))
    tried = 0
    for bug in bugs.BUGS[half::2]:
        if bug.family == "not in the catalogue" or not bug.applies(problem):
            continue
        wrong = bug.apply(problem)

        def kernel(query, key, value, wrong=wrong):
            return wrong.output, wrong.lse

        spec = KernelSpec(
            kernel,
            returns=("output", "lse"),
            contract="float64",
            lengths=((20, 37),),
            computes={"mask": problem.mask, "softcap": 3.0, "sinks": problem.sinks},
            **SHAPE,
        )
        sample = run(spec, _inputs(spec, q, k, v), keep="normal").sample
        if sample is not None:
            tried += 1
            monkeypatch.setattr(bugs, "BUGS", (bug,))
            assert [fit.bug.id for fit in fits([sample])] == [bug.id], bug.name
    assert tried > 10


def _inputs(spec, q, k, v):
    from refattn.testing.inputs.problems import Inputs

    return Inputs(q, k, v, dict(spec.arguments(20, 37)))


@pytest.mark.usefixtures("without_probes")
def test_what_is_measured_of_large_errors_names_no_other_bug():
    spec = KernelSpec(base_two, returns=("output", "lse"), lengths=((200, 300),), **SHAPE)
    measured = [x for x in check_kernel(spec, quick=True).diagnosis if x.instrument == "score test"]
    assert measured
    assert {x.bug for x in measured} <= {"C1", None}


@pytest.mark.usefixtures("without_laws")
def test_probes_that_are_expected_to_fail_are_no_finding():
    fields = {"returns": ("output", "lse"), "lengths": ((40, 57),), **SHAPE, **CAUSAL}
    expected = dict.fromkeys(("probes", "normal", "peaked", "offset", "rising", "coded"), "starts with the first key")
    report = check_kernel(KernelSpec(upper_left, expected_failures=expected, **fields), quick=True)
    assert report.checks[0].outcome == "expected failure"
    assert report.passed or {finding.check for finding in report.findings} == {"smollm2"}


@pytest.mark.usefixtures("without_probes")
def test_symptoms_are_told_last():
    def without_a_key(query, key, value):
        return ra.attention(query, key[:, :, :-1], value[:, :, :-1], return_lse=True)[:2]

    spec = KernelSpec(without_a_key, returns=("output", "lse"), lengths=((40, 57),), **SHAPE)
    last = check_kernel(spec, quick=True).diagnosis[-1]
    assert last.instrument == "symptom"
    assert last.name.startswith("key 56 takes no part")
