"""The verdict on arrays: what it accepts, what it refuses, and what it says."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import masks
from refattn.testing import Verdict, assert_attention, check
from tests import strategies as draws
from tests.namespaces import Library, library, numpy_dtype
from tests.strategies import Problem
from tests.testing.kernels import drawn, normal, output_of, tiled

NUMPY = library("numpy")
CAUSAL = masks.causal(anchor="lower_right")
HEADS = (
    "check: the number of query heads H (axis -3) must be a positive multiple of the number of key heads Hk; "
    "got H=3 and Hk=2."
)


def right(arrays: tuple[Any, ...], **arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """The reference's output in the query's dtype, and its log-sum-exp."""
    return ra.attention(*arrays, return_lse=True, **arguments)[:2]


@given(problem=draws.problems(dtypes=("float64", "float32", "float16", "bfloat16"), most=40))
@settings(max_examples=60)
def test_what_plain_loops_compute_is_right(problem: Problem) -> None:
    arguments = problem.arguments(NUMPY)
    dtype = numpy_dtype(arguments.pop("dtype", problem.dtype))
    answer, rows = problem.answer(), problem.rows()
    output = np.full((*problem.batch, problem.heads[0], problem.lengths[0], problem.features[1]), np.nan)
    lse = np.full(output.shape[:-1], np.nan)
    for at, o, z in zip(rows, answer.output, answer.lse, strict=True):
        output[at], lse[at] = o, z
    with np.errstate(over="ignore"):
        output = output.astype(np.float64).astype(dtype)
    if not rows or not np.all(answer.held):
        return
    verdict = check(output, *problem.arrays, lse=lse, rows=rows, **arguments)
    assert not len(verdict.wrong_rows), verdict.text
    assert verdict.passed or verdict.not_judged > 0, verdict.text


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_an_element_is_wrong_past_its_bound_and_right_within(name: str) -> None:
    arrays = drawn(dtype=name)
    output, lse = right(arrays)
    at = (1, 2, 5, 3)
    verdict = check(output, *arrays, lse=lse)
    assert verdict.passed
    exact = ra.attention(*arrays, dtype="float64")
    bound = _bound_of(verdict, exact, arrays, at)
    for share, passed in ((0.99, True), (1.01, False)):
        moved = exact.copy()
        moved[at] += share * bound
        found = check(moved, *arrays, contract=verdict.contract, statistics=False)
        assert found.passed is passed, found.text
        assert found.worst is not None
        assert found.worst.index == at
        assert (found.worst.error <= found.worst.bound) is passed
    assert found.wrong_rows.tolist() == [list(at[:-1])]
    assert found.wrong_columns.tolist() == [at[-1]]


def _bound_of(verdict: Verdict, exact: np.ndarray, arrays: tuple[Any, ...], at: tuple[int, ...]) -> float:
    """Bound of one element, read out of a verdict on an output that is wrong there alone."""
    broken = exact.copy()
    broken[at] = 1e6
    worst = check(broken, *arrays, contract=verdict.contract).worst
    assert worst is not None
    return worst.bound


def test_a_wrong_log_sum_exp_is_refused_where_the_output_is_right() -> None:
    arrays = drawn()
    output, lse = right(arrays)
    lse[0, 3, 7] += 1e-2
    verdict = check(output, *arrays, lse=lse)
    assert not verdict.passed
    assert verdict.budget_used < 1 < verdict.lse_budget_used
    assert verdict.worst_lse is not None
    assert verdict.worst_lse.index == (0, 3, 7)


def test_rows_that_see_nothing_must_be_zeros_with_lse_minus_infinity() -> None:
    arrays = drawn(lengths=(40, 30))
    output, lse = right(arrays, mask=CAUSAL)
    assert check(output, *arrays, lse=lse, mask=CAUSAL).passed
    for wrong, value in ((output, 1e-30), (output, np.nan), (lse, -1e30), (lse, np.nan)):
        broken = wrong.copy()
        broken[0, 1, 9] = value
        pair = (broken, lse) if wrong is output else (output, broken)
        verdict = check(pair[0], *arrays, lse=pair[1], mask=CAUSAL)
        assert not verdict.passed
        assert verdict.wrong_rows.tolist() == [[0, 1, 9]]


def test_a_convention_of_nan_in_empty_rows_is_held_to() -> None:
    arrays = drawn(lengths=(40, 30))
    output = right(arrays, mask=CAUSAL)[0]
    assert not check(output, *arrays, mask=CAUSAL, empty_row="nan").passed
    output[:, :, :10] = np.nan
    assert check(output, *arrays, mask=CAUSAL, empty_row="nan").passed
    assert not check(output, *arrays, mask=CAUSAL).passed


def test_a_nan_is_right_only_where_the_definition_calls_for_it() -> None:
    arrays = drawn()
    arrays[2][0, 0, 60] = np.nan  # seen by the rows i + 30 >= 60
    arrays[2][0, 1, 69, 2] = np.inf  # seen by the last row alone
    output = right(arrays, mask=CAUSAL)[0]
    assert np.isnan(output[0, 0, 30:]).all()
    assert output[0, 3, 39, 2] == np.inf
    assert check(output, *arrays, mask=CAUSAL).passed
    for at, value in (((0, 1, 35, 4), 0.0), ((0, 1, 5, 4), np.nan), ((0, 3, 39, 2), -np.inf), ((0, 3, 39, 2), 1e30)):
        broken = output.copy()
        broken[at] = value
        verdict = check(broken, *arrays, mask=CAUSAL)
        assert verdict.wrong_rows.tolist() == [list(at[:-1])]
        assert verdict.budget_used == math.inf


def test_what_the_bound_leaves_out_is_counted_and_alone_is_no_pass() -> None:
    q, k, v = drawn()
    output = right((1e7 * q, k, v))[0]
    verdict = check(output, 1e7 * q, k, v)
    assert not verdict.passed
    assert verdict.not_judged == verdict.elements
    assert verdict.text.startswith(
        "not judged: of all 320 rows nothing is proved, so they do not pass; under flash('float32'): "
    )
    q[0, :, 0] *= 1e7
    verdict = check(right((q, k, v))[0], q, k, v)
    assert verdict.passed
    assert 0 < verdict.not_judged < verdict.elements
    assert f"not judged: {verdict.not_judged:,} numbers" in verdict.text


def test_a_nan_without_overflow_is_wrong_even_where_the_bound_claims_nothing() -> None:
    q, k, v = drawn()
    output = right((1e7 * q, k, v))[0]
    output[0, 0, 3] = np.nan
    assert check(output, 1e7 * q, k, v).wrong_rows.tolist() == [[0, 0, 3]]
    # Here a float32 product overflows on the way: the NaN is none of the kernel's doing.
    q, k = 1e20 * q, 1e20 * k
    output = right((q, k, v))[0]
    output[0, 0, 3] = np.nan
    assert not len(check(output, q, k, v).wrong_rows)


@pytest.mark.parametrize("contract", ["flash", "eager"])
def test_scores_stored_in_bfloat16_are_refused_under_flash_which_points_to_eager(contract: str) -> None:
    q, k, v = drawn(dtype="bfloat16", lengths=(128, 128), dims=(64, 64))
    q = (4 * q.astype(np.float32)).astype(q.dtype)
    output = output_of(tiled("bfloat16", stored=True))(q, k, v)
    verdict = check(output, q, k, v, mask=CAUSAL, contract=getattr(ra.contract, contract)("bfloat16"))
    if contract == "eager":
        assert verdict.passed
        return
    assert not verdict.passed
    assert verdict.passes_under == "eager('bfloat16')"
    assert "passes under contract eager('bfloat16'): declare it if the kernel stores its scores" in verdict.text


def test_a_wrong_kernel_is_not_pointed_to_another_contract() -> None:
    arrays = drawn(dtype="bfloat16")
    assert check(0 * arrays[0], *arrays).passes_under is None


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_tiled_kernel_is_right_in_any_layout_and_base(name: str) -> None:
    arrays = drawn(dtype=name, dims=(16, 8))
    output, lse = tiled(name)(*arrays)
    assert check(output, *arrays, lse=lse, mask=CAUSAL).passed
    turned = [np.swapaxes(x, -2, -3) for x in (output, *arrays)]
    assert check(*turned, lse=lse, mask=CAUSAL, layout="blhd").passed
    assert check(output, *arrays, lse=lse / np.float32(math.log(2)), mask=CAUSAL, lse_base="2").passed
    assert not check(output, *arrays, lse=lse, mask=CAUSAL, lse_base="2").passed


def test_base_2_has_room_for_its_own_product_and_rounding() -> None:
    arrays = drawn()
    output, lse = right(arrays)
    stored = (lse / math.log(2)).astype(np.float32)
    lse[0, 0, 0] += 1  # so that this is the worst one, whose bound is told
    stored[0, 0, 0] += 2
    natural = check(output, *arrays, lse=lse).worst_lse
    binary = check(output, *arrays, lse=stored, lse_base="2").worst_lse
    assert natural is not None
    assert binary is not None
    assert natural.index == binary.index == (0, 0, 0)
    rounding = math.log(2) * float(np.spacing(np.float32(natural.expected / math.log(2)))) / 2
    product = 2 * 2.0**-24 * abs(natural.expected)
    assert binary.bound - natural.bound > max(product + rounding / 2, product / 2 + rounding)


def test_arrays_of_any_library_are_judged_alike_and_mixed(namespace: Library) -> None:
    arrays = drawn()
    output, lse = right(arrays, mask=CAUSAL)
    dense = np.tri(40, 70, 30, dtype=bool)
    sinks = normal((4,))
    want = check(output, *arrays, lse=lse, mask=dense, sinks=sinks)
    q, v, o = (namespace.array(x) for x in (arrays[0], arrays[2], output))
    got = check(o, q, arrays[1], v, lse=namespace.array(lse), mask=namespace.array(dense), sinks=namespace.array(sinks))
    assert got.text == want.text
    assert not want.passed  # the sinks were no part of it


def test_a_tensor_on_the_graph_is_judged() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in drawn(heads=(2, 2)))
    assert check(torch.nn.functional.scaled_dot_product_attention(q, k, v), q, k, v).passed


def test_a_convention_brings_layout_base_empty_rows_and_arguments() -> None:
    arrays = drawn()
    call = ra.conventions.flash_attn(causal=True, softcap=5.0)
    output, lse = right(arrays, mask=CAUSAL, softcap=5.0)
    turned = [np.swapaxes(x, -2, -3) for x in (output, *arrays)]
    assert check(*turned, lse=lse, convention=call).passed
    assert check(*turned, lse=lse, convention=call, **call.arguments).passed
    assert not check(*turned, lse=lse, layout="blhd", mask=CAUSAL).passed
    with pytest.raises(
        ValueError, match=r"check: softcap must be left out or the same where convention= says it; got 6.0"
    ):
        check(*turned, convention=call, softcap=6.0)


def test_the_text_says_what_a_person_needs() -> None:
    arrays = drawn(dtype="bfloat16")
    output = right(arrays)[0]
    assert check(output, *arrays).text.startswith("right: all 320 rows are within the bound; budget used: 0.")
    output[1, 2:, 8:16] *= 2
    lines = check(output, *arrays).text.splitlines()
    assert lines[0].startswith("WRONG: 16 wrong among all 320 rows, with ")
    assert "; under flash('bfloat16'): q, k, v bfloat16, scores float32, " in lines[0]
    assert lines[1].startswith("  output: largest share of the budget at batch 1, head ")
    assert lines[2] == "  where: batch 1, heads 2..3, rows 8..15, columns 0..15"
    assert lines[3] == "  symptom: the right output times 2 (fits all 16 wrong rows tried)"


def test_an_output_of_another_dtype_than_the_contract_says_is_noted() -> None:
    arrays = drawn()
    verdict = check(ra.attention(*arrays, dtype="float64"), *arrays, contract="float32")
    assert verdict.notes == ("the output is float64, the contract's is float32, whose rounding the bound allows",)


def test_json_holds_all_of_it() -> None:
    arrays = drawn()
    told = json.loads(check(np.nan * arrays[0], *arrays).to_json())
    assert told["passed"] is False
    assert told["budget_used"] == "inf"
    assert told["worst"]["got"] == "nan"
    assert len(told["wrong_rows"]) == 320


def test_nothing_to_judge_is_right() -> None:
    q, k, v = drawn(lengths=(0, 5))
    assert check(q, q, k, v).passed
    q, k, v = drawn(lengths=(5, 0))
    assert check(0 * q, q, k, v, lse=np.full(q.shape[:-1], -np.inf)).passed
    assert not check(0 * q + 1e-30, q, k, v).passed


def test_assert_attention_raises_with_the_text() -> None:
    arrays = drawn()
    output = right(arrays)[0]
    assert assert_attention(output, *arrays).passed
    with pytest.raises(AssertionError) as caught:
        assert_attention(-output, *arrays)
    assert str(caught.value) == check(-output, *arrays).text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"output": normal((2, 4, 40, 15))},
            ValueError,
            "check: output must have shape (..., H, L, Ev)=(2, 4, 40, 16); got (2, 4, 40, 15).",
        ),
        (
            {"output": normal((4, 40, 16)), "layout": "blhd", "query": normal((2, 40, 4, 16))},
            ValueError,
            "check: output must have shape (..., L, H, Ev)=(2, 40, 4, 16); got (4, 40, 16).",
        ),
        ({"lse": normal((2, 40, 4))}, ValueError, "check: lse must have shape (..., H, L)=(2, 4, 40); got (2, 40, 4)."),
        (
            {"layout": "bshd"},
            ValueError,
            "check: layout must be one of 'bhld', 'blhd', 'lbhd' or a layouts.Layout; got 'bshd'.",
        ),
        ({"lse_base": "10"}, ValueError, "check: lse_base must be one of 'e', '2'; got '10'."),
        (
            {"empty_row": "ones"},
            ValueError,
            "check: empty_row must be one of 'zeros', 'nan', 'mean', 'undefined'; got 'ones'.",
        ),
        (
            {"convention": "torch"},
            TypeError,
            "check: convention must be a Convention, what a function of refattn.conventions returns; got str.",
        ),
        (
            {"output": np.zeros((2, 4, 40, 16), int)},
            TypeError,
            "check: output must have a real floating-point dtype; got int64.",
        ),
        ({"rows": 0}, ValueError, "check: rows must be at least 1; got 0."),
        (
            {"rows": [(0, 0, 40)]},
            ValueError,
            "check: rows must lie within query's axes (..., H, L)=(2, 4, 40); got (0, 0, 40).",
        ),
        (
            {"query": normal((2, 3, 40, 16))},
            ValueError,
            HEADS,
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_in_words(changes: dict[str, Any], error: type, message: str) -> None:
    q, k, v = drawn()
    arguments = {"output": q, "query": q, "key": k, "value": v, **changes}
    if changes.get("layout") == "blhd":
        arguments |= {"key": np.swapaxes(k, -2, -3), "value": np.swapaxes(v, -2, -3)}
    with pytest.raises(error) as caught:
        check(**arguments)
    assert str(caught.value) == message


@given(rows=st.integers(1, 400))
@settings(max_examples=20)
def test_a_number_of_rows_is_that_many(rows: int) -> None:
    arrays = drawn()
    verdict = check(ra.attention(*arrays), *arrays, rows=rows)
    assert verdict.rows_checked == min(rows, 320)
    words = "all 320 rows" if rows >= 320 else f"{rows} of 320 rows"
    assert verdict.text.startswith(f"right: {words} are within the bound")
