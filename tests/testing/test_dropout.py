"""A kernel that drops the weights that it is told to drop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn.testing import KernelSpec, Report, check_kernel
from refattn.testing.inputs import problems
from refattn.testing.spec import DROPOUT

pytestmark = pytest.mark.usefixtures("without_probes", "without_fit")

SMALL: dict[str, Any] = {"accepts": DROPOUT, "dims": (16, (24, 8)), "lengths": ((1, 33), (16, 16), (31, 65))}
PACKED = ("cu_seqlens_q", "cu_seqlens_k")


def dropping(mistake: str | None = None) -> Callable[..., Any]:
    """Attention in float32, whole rows at a time, that can be given one mistake."""

    def kernel(query: Any, key: Any, value: Any, dropout_mask: Any, dropout_p: float) -> tuple[Any, Any]:
        key, value = (np.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
        scores = query @ np.swapaxes(key, -1, -2) / np.float32(math.sqrt(query.shape[-1]))
        top = scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        counted, weights = weights, weights / total
        if dropout_mask is not None and mistake != "ignores":
            seen = dropout_mask[:, :1] if mistake == "one head's" else dropout_mask
            seen = ~seen if mistake == "inverts" else seen
            counted, weights = counted * seen, weights * seen
            if mistake == "renormalises":
                weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
            elif mistake != "forgets 1/(1-p)":
                weights /= np.float32(dropout_p if mistake == "takes p for 1-p" else 1 - dropout_p)
        if mistake == "lse of the kept":
            total = np.maximum(counted.sum(axis=-1, keepdims=True), np.finfo(np.float32).tiny)
        return weights @ value, (top + np.log(total))[..., 0]

    return kernel


MISTAKES = ("ignores", "forgets 1/(1-p)", "renormalises", "inverts", "takes p for 1-p", "one head's", "lse of the kept")


def wrong(report: Report) -> set[str]:
    """The checks that found something."""
    return {check.name for check in report.checks if check.outcome == "WRONG"}


def test_a_kernel_that_drops_as_told_is_right() -> None:
    report = check_kernel(KernelSpec(dropping(), returns=("output", "lse"), **SMALL))
    assert report.passed, report.text
    (check,) = (check for check in report.checks if check.name == "dropout_mask")
    assert check.problems == 2
    assert check.unjudged == 0
    assert 0 < check.budget_used < 1


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_the_reference_drops_as_told_in_every_format(name: str) -> None:
    def kernel(query: Any, key: Any, value: Any, **dropout: Any) -> Any:
        return ra.attention(query, key, value, **dropout)

    report = check_kernel(KernelSpec(kernel, contract=name, **SMALL), quick=True)
    assert report.passed, report.text


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_kernel_that_does_not_is_found_by_this_check_alone(mistake: str, *, quick: bool) -> None:
    report = check_kernel(KernelSpec(dropping(mistake), returns=("output", "lse"), **SMALL), quick=quick)
    assert wrong(report) == {"dropout_mask"}


@pytest.mark.parametrize(
    ("mistake", "symptom"), [("ignores", "no dropout"), ("forgets 1/(1-p)", "the right output times 0.7")]
)
def test_a_report_names_the_mistake(mistake: str, symptom: str) -> None:
    report = check_kernel(KernelSpec(dropping(mistake), returns=("output", "lse"), **SMALL), quick=True)
    assert f"symptom: {symptom} (fits all " in report.text


def test_weights_are_dropped_independently() -> None:
    spec = KernelSpec(dropping(), returns=("output", "lse"), **SMALL | {"lengths": ((127, 257),)})
    plan = problems.plan(spec, quick=True, seed=0)
    (problem,) = (x for x in plan if isinstance(x, problems.Problem) and x.check == "dropout_mask")
    given = problems.inputs(spec, problem)
    kept, p = given.passed["dropout_mask"], given.passed["dropout_p"]
    assert kept.dtype == np.bool_
    assert kept.shape == (*given.query.shape[:3], given.key.shape[2])
    assert given.arguments == {"dropout_mask": kept, "dropout_p": p}
    # 5 sigma, for all cells and for products of neighbours along each axis.
    drops = (~kept - p) / math.sqrt(p * (1 - p))
    assert abs(drops.mean()) < 5 / math.sqrt(drops.size)
    for axis in range(1, 4):
        first, second = (np.delete(drops, end, axis=axis) for end in (0, -1))
        assert abs((first * second).mean()) < 5 / math.sqrt(first.size)


def test_what_is_not_varied_drops_nothing() -> None:
    calls = []

    def kernel(query: Any, key: Any, value: Any, dropout_mask: Any, dropout_p: float) -> Any:
        calls.append((dropout_mask is None, dropout_p))
        return dropping()(query, key, value, dropout_mask, dropout_p)[0]

    assert check_kernel(KernelSpec(kernel, **SMALL), quick=True).passed
    assert set(calls) == {(True, 0.0), (False, problems.DROPPED)}


def test_the_cells_of_padded_sequences_are_cut() -> None:
    def kernel(query: Any, key: Any, value: Any, seqused_k: Any, dropout_mask: Any, dropout_p: float) -> Any:
        output = np.zeros((*query.shape[:3], value.shape[-1]), np.float32)
        for b, n in enumerate(seqused_k):
            own = None if dropout_mask is None else dropout_mask[b, :, :, :n]
            cut = (query[b], key[b, :, :n], value[b, :, :n])
            output[b] = ra.attention(*cut, dropout_mask=own, dropout_p=dropout_p)
        return output

    fields: dict[str, Any] = {"dims": (8,), "lengths": ((3, 9), (12, 7))}
    report = check_kernel(KernelSpec(kernel, accepts=("seqused_k", *DROPOUT), **fields), quick=True)
    assert report.passed, report.text
    assert {check.name: check.outcome for check in report.checks}["dropout_mask"] == "right"


def test_packed_sequences_have_no_cells() -> None:
    spec = KernelSpec(print, **SMALL | {"accepts": (*PACKED, *DROPOUT)})
    told = {x.check: x.reason for x in problems.plan(spec, quick=True, seed=0) if isinstance(x, problems.NotRun)}
    assert told["dropout_mask"] == "packed sequences have no array (B, H, L, S)"
    assert "dropout_p" not in told


@pytest.mark.parametrize("name", DROPOUT)
def test_the_mask_and_the_share_come_together(name: str) -> None:
    with pytest.raises(ValueError, match="accepts") as caught:
        KernelSpec(print, accepts=("scale", name))
    text = f'KernelSpec: accepts must name "dropout_mask" and "dropout_p" together; got scale, {name}.'
    assert str(caught.value) == text
