"""The measuring stick itself: the kernel without a bug is right, and no planted bug does nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from refattn.testing import check
from refattn.testing.explanation import Explanation
from refattn.testing.report import Report
from tests.judge import measure
from tests.judge.facts import F, Facts, legit, published_slopes
from tests.judge.planted import EVERY, OUTSIDE, PLANTED, RIGHT, kernel, right, spec
from tests.judge.planting import spec_of
from tests.judge.tiled import Tiled

DTYPES = ("float32", "bfloat16", "float16")
N = 72


@pytest.mark.parametrize(
    ("feature", "dtype"),
    [
        pytest.param(feature, dtype, marks=[pytest.mark.slow] * ((m + n) % 3 > 0))
        for m, feature in enumerate(RIGHT)
        for n, dtype in enumerate(DTYPES)
    ],
)
def test_without_a_bug_the_kernel_is_right(feature: str, dtype: str) -> None:
    rng = np.random.default_rng([DTYPES.index(dtype), list(RIGHT).index(feature)])
    base = right(feature, dtype, N)
    calls = list(measure.calls(base))
    for number in rng.permutation(len(calls))[:2]:
        operands, arguments = calls[number]
        changed = measure.numerics(rng, dtype)
        output, lse = right(feature, dtype, N, **changed).function(*operands, **arguments)
        given = {name: x for name, x in arguments.items() if x is not None}
        verdict = check(output, *operands, lse=lse, contract=dtype, **given, **base.arguments(N, N))
        assert verdict.passed, f"{changed}\n{verdict.text}"


@pytest.mark.parametrize("key", EVERY)
def test_a_planted_bug_does_something(key: str) -> None:
    bug = EVERY[key]
    wrong, plain = spec(key, "float32", N), spec_of(bug, "float32", N, right=True)
    other = spec_of(bug, "float32", N, right=True, tile_q=32, tile_k=48, exponential="exp")
    for operands, arguments in measure.calls(plain):
        got, expected, again = (x.function(*operands, **arguments) for x in (wrong, plain, other))
        if any(_apart(a, b) > 4 * _apart(b, c) for a, b, c in zip(got, expected, again, strict=True)):
            return
    pytest.fail(f"{key} changes nothing")


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference; infinite where one is finite and the other is not."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0, np.abs(a - b))
    return float(np.where(np.isnan(difference), np.inf, difference).max())


@pytest.mark.parametrize("key", EVERY)
def test_a_spec_exposes_what_its_bug_needs(key: str) -> None:
    bug, made = EVERY[key], spec(key, "bfloat16", 128)
    assert made.returns == ("output", "lse")
    assert made.function.facts == replace(Facts(dtype="bfloat16"), **bug.facts)
    assert kernel(key, dtype="bfloat16").facts == made.function.facts
    computed = made.arguments(*made.lengths[0])
    wanted = {"scale": "scale", "softcap": "softcap", "slopes": "bias", "causal": "mask", "window": "mask"}
    assert set(computed) == {wanted[name] for name in bug.facts if name in wanted}
    assert set(made.accepts) == set(bug.accepts)
    assert not set(made.accepts) & set(computed)
    assert all(
        min(abs(n - 128), abs(n - 64), abs(n - 32), abs(n - 16), abs(n - 1)) <= 3
        for n in itertools.chain(*made.lengths)
    )


def test_bugs_are_enough_and_have_ids() -> None:
    assert len(PLANTED) >= 75
    assert len(OUTSIDE) >= 20
    assert all(measure.identity(bug.id) == bug.id and bug.id in bug.acceptable for bug in PLANTED.values())
    assert all(bug.id == "" and bug.where is not None for bug in OUTSIDE.values())
    assert set("ABCDEF") == {bug.id[0] for bug in PLANTED.values()}


def test_all_orders_of_tiles_and_splits_give_one_answer() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, heads, 70, 16)).astype(F) for heads in (4, 2, 2))
    for n in range(12):
        facts = legit(np.random.default_rng(n), Facts(causal=True))
        output, lse = Tiled(facts)(q, k, v)
        verdict = check(output, q, k, v, lse=lse, contract="float32", is_causal=True)
        assert verdict.passed, (facts, verdict.text)


@pytest.mark.parametrize("product", ["truncating", "tensor_core_4", "tensor_core_16"])
def test_products_that_are_cut_off_are_right(product: str) -> None:
    spec = right("causal", "bfloat16", 40, product=product)
    operands, arguments = next(measure.calls(spec))
    output, lse = spec.function(*operands, **arguments)
    verdict = check(output, *operands, lse=lse, contract="bfloat16", **arguments, **spec.arguments(40, 40))
    assert verdict.passed, verdict.text
    assert (output != right("causal", "bfloat16", 40).function(*operands, **arguments)[0]).any()


def test_slopes_are_those_of_the_paper() -> None:
    assert published_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert published_slopes(6).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]


def test_names_and_places_are_read_off_a_report() -> None:
    first = Explanation(bug="A4", name="the window is one key too wide", instrument="probe")
    second = Explanation(bug=None, name="two columns are swapped", where="heads 0-3, keys 32-63", instrument="probe")
    report = Report(False, (), (), "tiled", "", 0, (first, second))
    assert measure.named(report, "A4")
    assert not measure.named(report, "A1")
    assert measure.wrong_name(report, "A1") == "A4"
    assert measure.wrong_name(report, "A4", "A1") is None
    assert measure.places(second.text) == {"heads": {0, 1, 2, 3}, "keys": set(range(32, 64))}
    assert measure.places("head 1: rows 0..2, 9, key tile [4,6)") == {
        "heads": {1},
        "rows": {0, 1, 2, 9},
        "keys": {4, 6},
    }
    outside = Report(False, (), (), "tiled", "", 0, (second,))
    assert measure.placed(outside, OUTSIDE["columns"])
    assert not measure.placed(outside, OUTSIDE["first key twice"])
    assert measure.wrong_name(outside) is None
    assert not measure.named(Report(True, (), (), "tiled", "", 0))


@pytest.mark.slow
def test_weights_that_are_lost_in_a_sum_are_no_key_that_weighs_more() -> None:
    """Under a steep ALiBi bias, far keys add less than half an ulp of the sum, which rounds alike in all columns."""
    assert not measure.of_control("C14", "float32", 128, seed=1).detected
