"""Results of packed, paged and padded operands, judged sequence by sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import layouts, masks
from refattn.testing import Verdict, check
from refattn.testing.verdict.sequences import Sequences, pattern
from tests.messages import assert_raises
from tests.testing.stored_kernels import paged

LOWER = {"mask": masks.causal(anchor="lower_right")}
L, S = np.array([5, 0, 3, 9]), np.array([20, 4, 0, 9])


def batch(page_size: int = 8) -> dict[str, Any]:
    """Operands as vLLM's call stores them, and what the right kernel returns."""
    rng = np.random.default_rng(0)
    shapes = ((4, 4, 9, 16), (4, 2, 20, 16), (4, 2, 20, 8))
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    query, cu_seqlens_q = layouts.pack_ragged(q, L)
    table, pages = layouts.page_table(S, page_size, seed=0, spare=1)
    key, value = (layouts.pack_paged(x, S, table, page_size, pages=pages, fill=np.nan) for x in (k, v))
    tables = {"block_table": table, "seqused_k": S.astype(np.int32), "cu_seqlens_q": cu_seqlens_q}
    output, lse = paged(page_size=page_size)(query, key, value, **tables)
    return {"output": output, "query": query, "key": key, "value": value, "lse": lse, **LOWER, **tables}


def test_check_judges_a_paged_result_sequence_by_sequence() -> None:
    call = batch()
    verdict = check(**call)
    assert verdict.passed, verdict.text
    assert verdict.rows == verdict.rows_checked == 4 * L.sum()
    call["output"][7, 2, 3] += 1e-3
    verdict = check(**call)
    assert not verdict.passed
    assert verdict.wrong_rows.tolist() == [[2, 2, 2]]
    assert "where: sequence 2, heads 2, rows 2, columns 3" in verdict.text
    assert "at sequence 2, head 2, row 2, column 3" in verdict.text
    assert verdict.notes == ("wrong are exactly the sequences without keys",)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({2}, "without keys"),
        ({0, 3}, "of more than one page"),
        ({0, 2}, "of fewer than 9 queries, the longest"),
        ({0}, None),
        ({2, 3}, "after the first"),
        ({0, 2, 3}, None),
        ({3}, "whose last page is not full"),
    ],
)
def test_a_pattern_is_named_where_it_is_exact(wrong: set[int], text: str | None) -> None:
    x = np.zeros((4, 1, 9, 1))
    given = Sequences(x, x, x, L, np.array([16, 4, 0, 9]), 8)
    found = pattern(given, wrong)
    assert found is None if text is None else found.startswith(f"wrong are exactly the sequences {text}")


def test_a_symptom_fits_all_sequences_that_were_tried() -> None:
    call = batch()
    half = call["output"] / 2
    assert any("the right output times 0.5 (fits all " in text for text in judged(output=half).symptoms)
    half[: L[0]] /= 2
    assert not any("the right output times" in text for text in judged(output=half).symptoms)


def test_a_mistake_of_which_nothing_is_claimed_is_not_named() -> None:
    # Under the padded offset, row 0 of the second sequence would see key 1, whose score has no bound.
    queries, keys = np.array([0, 1, 3]), np.array([0, 4, 6])
    q, k, v = (np.ones((n, 1, 4), np.float32) for n in (3, 6, 6))
    k[5] = 1e15
    v[:, 0, 0] = np.arange(6)
    output = np.array([[1.5, 1, 1, 1], [9, 1, 1, 1], [5, 1, 1, 1]], np.float32)[:, None]
    verdict = check(output, q, k, v, cu_seqlens_q=queries, cu_seqlens_k=keys, **LOWER)
    assert verdict.wrong_rows.tolist() == [[1, 0, 0]]
    assert not any("padded lengths" in text for text in verdict.symptoms)


def test_check_agrees_with_checks_of_each_sequence() -> None:
    call = batch()
    first = call["cu_seqlens_q"]
    k, v = (layouts.unpack_paged(call[name], call["block_table"], S) for name in ("key", "value"))
    alone = []
    for b, (n, m) in enumerate(zip(L, S, strict=True)):
        at = slice(first[b], first[b] + n)
        arrays = [np.swapaxes(call[name][at], 0, 1) for name in ("output", "query")]
        alone.append(check(*arrays, k[b, :, :m], v[b, :, :m], lse=call["lse"][:, at], **LOWER))
    together = check(**call)
    assert together.budget_used == max(verdict.budget_used for verdict in alone)
    assert together.lse_budget_used == max(verdict.lse_budget_used for verdict in alone)
    assert together.elements == sum(verdict.elements for verdict in alone)


def judged(**changes: Any) -> Verdict:
    """The verdict on the batch with other arguments."""
    call = batch() | changes
    return check(**{name: x for name, x in call.items() if x is not None})


def test_check_takes_what_else_a_layout_says() -> None:
    call = batch()
    turned = {name: np.swapaxes(call[name], 1, 2) for name in ("key", "value")}
    layout = layouts.Layout(pages="hnd", lse="th")
    assert judged(**turned, lse=call["lse"].T, layout=layout).passed
    fa = ra.conventions.flash_attn(causal=True)
    assert judged(mask=None, convention=fa).passed
    assert judged(mask=None, convention=fa, layout=layout, lse=call["lse"].T, **turned).passed
    lengths = np.concatenate([[0], np.cumsum(S)]).astype(np.int32)
    assert judged(seqused_k=None, cu_seqlens_k=lengths).passed
    assert judged(mask=masks.causal(anchor=S - L)).passed
    assert not judged(mask=masks.causal(anchor=int(S.max() - L.max()))).passed


def test_check_takes_padded_masks_and_biases_and_rows() -> None:
    cells = (np.arange(20) <= np.arange(9)[:, None] + (S - L)[:, None, None])[:, None]
    assert judged(mask=cells).passed
    assert not judged(mask=cells[:1]).passed
    assert judged(bias=np.where(cells, 0.0, -np.inf), mask=None).passed
    assert judged(rows=[(0, 1, 4), (3, 0, 8), (3, 0, 8)]).rows_checked == 2
    verdict = judged(rows=40)
    assert verdict.passed
    assert 16 <= verdict.rows_checked < verdict.rows


def test_check_of_orders_and_of_lengths_alone() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 4, n, 8), dtype=np.float32) for n in (3, 9, 9))
    used = np.array([9, 5])
    right = ra.attention(q, k, v, mask=masks.causal(anchor=used - 3) & masks.lengths(used))
    for order in ("bhld", "blhd", "lbhd"):
        arrays = [layouts.to_order(x, order) for x in (right, q, k, v)]
        assert check(*arrays, seqused_k=used, layout=order, **LOWER).passed
        full = [layouts.to_order(x, order) for x in (ra.attention(q, k, v), q, k, v)]
        assert check(*full, layout=order).passed
    leaks = ra.attention(q, k, v, **LOWER)
    assert not check(leaks, q, k, v, seqused_k=used, **LOWER).passed


def test_check_of_no_sequences() -> None:
    x = np.zeros((0, 2, 4), np.float32)
    verdict = check(x, x, x, x, cu_seqlens_q=[0], cu_seqlens_k=[0])
    assert verdict.passed
    assert verdict.rows == 0


MESSAGES = [
    (
        {"cu_seqlens_q": np.array([1, 5, 5, 8, 17])},
        ValueError,
        "check: cu_seqlens_q must start at 0; got 1.",
    ),
    (
        {"cu_seqlens_q": np.array([0, 5, 5, 8, 16])},
        ValueError,
        "check: cu_seqlens_q must end at the number of tokens T=17; got 16.",
    ),
    (
        {"seqused_k": np.array([20, 4, 0])},
        ValueError,
        "check: cu_seqlens_q and seqused_k and block_table must tell of the same number B of sequences; got 4, 3, 4.",
    ),
    (
        {"seqused_k": np.array([20, 25, 0, 9])},
        ValueError,
        "check: seqused_k must fit in the pages of block_table, 3 pages of 8; got 25 for sequence 1.",
    ),
    (
        {"block_table": np.full((4, 3), 9)},
        ValueError,
        "check: block_table must lie in the pool of P=7 pages where a page is needed; got 9 for page 0 of sequence 0.",
    ),
    (
        {"seqused_k": None},
        ValueError,
        "check: block_table must come with the numbers of keys; got neither seqused_k nor cu_seqlens_k.",
    ),
    (
        {"query": np.zeros((17, 64), np.float32)},
        ValueError,
        "check: query must have 3 axes (T, H, E) beside cu_seqlens_q; got (17, 64).",
    ),
    (
        {"output": np.zeros((16, 4, 8), np.float32)},
        ValueError,
        "check: output must have shape (T, H, Ev)=(17, 4, 8); got (16, 4, 8).",
    ),
    (
        {"lse": np.zeros((17, 4), np.float32)},
        ValueError,
        "check: lse must have shape (H, T)=(4, 17); got (17, 4).",
    ),
    (
        {"mask": np.ones((4, 1, 9, 19), bool)},
        ValueError,
        "check: mask must have at least 2 axes and broadcast to (..., H, L, S)=(4, 4, 9, 20); got (4, 1, 9, 19).",
    ),
    (
        {"rows": [(2, 0, 3)]},
        ValueError,
        "check: rows must lie within their sequences; got row 3 of sequence 2, which has 3.",
    ),
    (
        {"value": np.zeros((7, 4, 2, 8), np.float32)},
        ValueError,
        "check: key and value must have pages of one size; got 8 and 4.",
    ),
    (
        {"rows": 0},
        ValueError,
        "check: rows must be at least 1; got 0.",
    ),
    (
        {"block_table": None},
        ValueError,
        "check: seqused_k must lie from 0 to S=2; got 20 for sequence 0.",
    ),
]


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case[2])
def test_what_cannot_be_judged_is_refused_in_words(case: tuple[dict[str, Any], type[Exception], str]) -> None:
    changes, error, text = case
    if "S=2" in text:
        changes = changes | {"key": np.zeros((4, 2, 2, 16)), "value": np.zeros((4, 2, 2, 8))}
    assert_raises(lambda: judged(**changes), error, text)


def test_padded_operands_agree_with_each_other_and_with_the_lengths() -> None:
    x = np.zeros((2, 4, 3, 8))
    for changes, text in (
        (
            {"value": x[:, :, :2]},
            "key and value must have the same B, Hk and S; got (B, Hk, S) (2, 4, 3) and (2, 4, 2).",
        ),
        ({"query": x[:1]}, "query and key and seqused_k must tell of the same number B of sequences; got 1, 2, 2."),
        ({"key": x[0]}, "key must have 4 axes (B, H, L, E) where a batch has tables; got (4, 3, 8)."),
    ):
        arrays = {"output": x, "query": x, "key": x, "value": x} | changes
        assert_raises(lambda arrays=arrays: check(**arrays, seqused_k=[1, 2]), ValueError, f"check: {text}")


def test_packed_keys_may_have_room() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((7, 2, 4), dtype=np.float32) for _ in range(3))
    output = np.concatenate(
        [np.swapaxes(ra.attention(*(np.swapaxes(x, 0, 1) for x in (q[i:j], k[i:n], v[i:n]))), 0, 1)
         for i, j, n in ((0, 4, 3), (4, 7, 6))]
    )  # fmt: skip
    offsets = np.array([0, 4, 7])
    tables = {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets}
    assert check(output, q, k, v, **tables, seqused_k=np.array([3, 2])).passed
    assert not check(output, q, k, v, **tables).passed
    text = "check: seqused_k must not be more than the sequence has; got 5 of 4 keys of sequence 0."
    assert_raises(lambda: check(output, q, k, v, **tables, seqused_k=np.array([5, 2])), ValueError, text)
