"""Kernels that take factors of quantised operands: right ones pass, and misread factors are found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import contract, layouts
from refattn.layouts import Layout
from refattn.testing import KernelSpec, check, check_kernel
from refattn.testing.inputs.problems import inputs, plan
from refattn.testing.kernel import check_inputs

Factors = tuple[np.ndarray, np.ndarray, np.ndarray]
CONTRACTS = {"float32": contract.flash("float32"), "float8": contract.fp8("bfloat16")}


def judged(kernel: Callable[..., Any], numerics: contract.Contract, **more: Any) -> Any:
    """The report on the runs of a kernel in which factors are varied."""
    fields = {"accepts": ("descale",), "lengths": ((17, 17),), "dims": (16,), "batch": (1,)} | more
    spec = KernelSpec(kernel, contract=numerics, **fields)
    (problem,) = (item for item in plan(spec, quick=True, seed=0) if item.check == "descale")
    given = inputs(spec, problem)
    query, key, _ = given.arguments["descale"]
    assert len({*query.ravel(), *key.ravel()}) == query.size + key.size > 4
    return check_inputs(spec, given, "drawn")


def reading(change: Callable[[Factors], Any], dtype: str) -> Callable[..., np.ndarray]:
    """A kernel that reads its factors in some way."""

    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, *, descale: Factors) -> np.ndarray:
        return ra.attention(query, key, value, descale=change(descale), dtype=dtype)

    return kernel


WAYS: dict[str, tuple[Callable[[Factors], Any], str | None]] = {
    "right": (lambda x: x, None),
    "the first head's": (lambda x: (x[0], np.broadcast_to(x[1][:, :1], x[1].shape), x[2]), "E10"),
    "the first of all": (lambda x: (x[0], x[1], np.broadcast_to(x[2][:1, :1], x[2].shape)), "E10"),
    "no factor of the value": (lambda x: (x[0], x[1], None), "E8"),
    "no factor of the key": (lambda x: (x[0], None, x[2]), "E8"),
    "batch for head": (lambda x: (x[0], np.swapaxes(x[1], 0, 1), x[2]), None),
}


@pytest.mark.parametrize(
    ("way", "numerics"), [*((way, "float32") for way in WAYS), ("right", "float8"), ("the first head's", "float8")]
)
def test_factors_that_are_misread_are_found_and_named(way: str, numerics: str) -> None:
    change, bug = WAYS[way]
    report = judged(reading(change, CONTRACTS[numerics].output), CONTRACTS[numerics])
    assert report.passed == (way == "right"), report.text
    assert bug in (None, report.diagnosis[0].bug if report.diagnosis else None)
    if way == "batch for head":
        assert not any(x.bug in ("E8", "E10") for x in report.diagnosis)


def test_factors_of_sequences_in_pages() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, **given: Any) -> np.ndarray:
        return ra.flash_decode(query, key, value, dtype="float32", **given)

    def dropped(query: np.ndarray, key: np.ndarray, value: np.ndarray, **given: Any) -> np.ndarray:
        given["descale"] = (*given["descale"][:2], None)
        return kernel(query, key, value, **given)

    stored = {"accepts": ("block_table", "seqused_k", "descale"), "layout": Layout(page_size=4)}
    assert judged(kernel, CONTRACTS["float32"], **stored).passed
    assert judged(dropped, CONTRACTS["float32"], **stored).diagnosis[0].bug == "E8"


def test_factors_that_are_written_to_are_told() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, *, descale: Factors) -> np.ndarray:
        output = ra.attention(query, key, value, descale=descale)
        descale[1][...] = 1.0
        return output

    (finding,) = judged(kernel, CONTRACTS["float32"]).findings
    assert finding.text == "changed its inputs: descale of key"


def test_operands_without_exact_products_are_not_run() -> None:
    spec = KernelSpec(ra.attention, accepts=("descale",), contract="float64")
    (item,) = (item for item in plan(spec, quick=True, seed=0) if item.check == "descale")
    assert item.reason == "products of float64 operands and factors are not exact"


def test_operands_in_blocks_are_judged_as_what_they_stand_for() -> None:
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((1, heads, 64, 32)) * np.exp2(rng.integers(-2, 3, (64, 1))) for heads in (2, 1, 1)]
    query, key, value = *(layouts.quantise_mx(y) for y in x[:2]), layouts.quantise_mx(x[2], axis=-2)
    scales = tuple(part.scales for part in (query, key, value))
    narrow = [part.values for part in (query, key, value)]
    output = ra.attention(*(layouts.dequantise(*part) for part in (query, key, value)), dtype="bfloat16")
    numerics = contract.mxfp8()
    assert check(output, *narrow, descale=scales, contract=numerics).passed
    assert check(output, *(layouts.dequantise(*part) for part in (query, key, value)), contract=numerics).passed
    # Scales of keys that are off by one token; scales of values that are read along the other axis.
    assert not check(
        output, *narrow, descale=(scales[0], np.roll(scales[1], 1, -2), scales[2]), contract=numerics
    ).passed
    turned = scales[2].reshape(1, 1, 32, 2).swapaxes(2, 3).repeat(32, axis=2)
    assert not check(output, *narrow, descale=(*scales[:2], turned), contract=numerics).passed
    four = [layouts.quantise_nvfp4(x[0]), layouts.quantise_nvfp4(x[1]), layouts.quantise_nvfp4(x[2], axis=-2)]
    whole = [layouts.dequantise(*part) for part in four]
    right = ra.attention(*whole, dtype="bfloat16")
    assert check(right, *whole, contract=contract.nvfp4()).passed
    assert not check(2 * right.astype(np.float32), *whole, contract=contract.nvfp4("float32")).passed


def test_the_call_of_flashattention_3_is_judged_with_its_factors() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal((2, heads, 9, 8)) for heads in (4, 2, 2)]
    parts = [layouts.quantise(x, "float8_e4m3fn") for x in drawn]
    # FlashAttention's query has the factor of its key head.
    of_query = parts[0].scales[:, ::2]
    query = layouts.dequantise(parts[0].values, np.repeat(of_query, 2, axis=1))
    output = ra.attention(query, *(layouts.dequantise(*part) for part in parts[1:]), dtype="bfloat16")
    factors = [x[..., 0, 0] for x in (of_query, parts[1].scales, parts[2].scales)]
    names = ("q_descale", "k_descale", "v_descale")
    stored = [np.swapaxes(x, 1, 2) for x in (output, *(part.values for part in parts))]
    call = ra.conventions.flash_attn(**dict(zip(names, factors, strict=True)))
    assert check(*stored, convention=call, contract=contract.fp8()).passed
    other = ra.conventions.flash_attn(**dict(zip(names, (factors[0], factors[1][::-1], factors[2]), strict=True)))
    assert not check(*stored, convention=other, contract=contract.fp8()).passed


@pytest.mark.parametrize(
    ("blocks", "shapes"),
    [
        (((None, None), (8, None), (None, 1)), ((2, 4, 1), (2, 2, 3), (2, 2, 1, 16))),
        (((4, 8), (1, 8), (8, 4)), ((2, 4, 6, 2), (2, 2, 24, 2), (2, 2, 3, 4))),
    ],
    ids=["tokens and channels", "both axes"],
)
def test_blocks_of_the_layout_have_factors_of_their_own(blocks: Any, shapes: Any) -> None:
    seen = []

    def right(query: np.ndarray, key: np.ndarray, value: np.ndarray, *, descale: Factors) -> np.ndarray:
        seen.append(tuple(x.shape for x in descale))
        return ra.attention(query, key, value, descale=descale)

    layout = Layout(descale=blocks)
    assert judged(right, CONTRACTS["float32"], layout=layout).passed
    assert seen == [shapes]
    turned = reading(lambda x: (x[0], np.roll(x[1], 1, axis=2), x[2]), "float32")
    assert not judged(turned, CONTRACTS["float32"], layout=layout).passed


def test_blocks_that_no_problem_has_are_not_run() -> None:
    def reason(**fields: Any) -> str:
        (item,) = (x for x in plan(KernelSpec(ra.attention, **fields), quick=True, seed=0) if x.check == "descale")
        return str(item.reason)

    layout = Layout(descale=((None, None), (None, 24), (None, None)))
    assert reason(accepts=("descale",), dims=(16,), layout=layout) == "blocks of features divide none of dims"
    layout = Layout(descale=((None, None), (8, None), (None, None)))
    assert (
        reason(accepts=("descale", "seqused_k"), layout=layout)
        == "sequences of lengths of their own have no blocks of one size"
    )


def test_a_right_kernel_in_float8_is_right_in_everything() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, *, descale: Factors | None) -> np.ndarray:
        return ra.attention(query, key, value, descale=descale, dtype="bfloat16")

    spec = KernelSpec(kernel, accepts=("descale",), contract=CONTRACTS["float8"], lengths=((9, 33),), dims=(16,))
    report = check_kernel(spec, quick=True)
    assert report.passed, report.text
    assert "descale" in [x.name for x in report.checks if x.outcome == "right"]
