"""Each law finds the mistake that it is for, says where and how large, and lets right kernels pass."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import SkipTest

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn import layouts, masks
from refattn.testing import Case, KernelSpec, captured, laws
from refattn.testing.laws import CHECKS, Violation
from refattn.testing.spec import LAW_CHECKS
from tests.conformance.kernels import MISTAKES, TILE, only_output, tiled
from tests.testing.stored_kernels import PAGED, RAGGED, paged, ragged

LOWER = masks.causal(anchor="lower_right")
FIELDS: dict[str, Any] = {"accepts": ("mask", "is_causal"), "returns": ("output", "lse"), "dims": (16,)}
CASE = Case((70, 70), (16, 16), batch=2)
# What each mistake breaks first of all: its check, and words of the text.
BROKEN = {
    "scale": ("check_forward", "expected"),
    "lse": ("check_lse", "lse: largest share of the budget at batch 0"),
    "tail": ("check_tile_edges", "with L=65 and S=65: WRONG: "),
    "empty": ("check_empty_rows", "a query that may attend to no key must get zeros"),
    "leak": ("check_causality", "on, which these rows do not see, change them"),
    "nan": ("check_masked_nan", "NaN in the values from key "),
    "place": ("check_key_permutation", "the keys in another order change the result"),
    "raw": ("check_logit_shift", "added to all scores of a row changes its output"),
    "heads": ("check_head_independence", "does not read change it"),
    "batch": ("check_batch_independence", "other numbers in the batch entries beside "),
    "mixed": ("check_nan_containment", ", reaches other rows"),
    "clipped": ("check_value_linearity", "do not give exactly twice the output"),
    "strides": ("check_strides", "with operands stored as views with margins of NaN the result is another one"),
    "state": ("check_determinism", "the same call gave other numbers the second time"),
    "scribble": ("check_inputs_untouched", "changed its inputs: query"),
}


def passes(check: str, spec: KernelSpec, case: Case) -> bool:
    """Whether a law holds, or says nothing."""
    try:
        getattr(laws, check)(spec, case)
    except SkipTest:
        return True
    except Violation:
        return False
    return True


def test_the_names_are_those_of_the_checks_and_each_has_a_mistake() -> None:
    names = [check.__name__ for check in CHECKS]
    assert names == list(LAW_CHECKS)
    assert set(names) | {"CHECKS", "Law", "NotApplicable", "Violation"} == set(laws.__all__)
    assert set(BROKEN) == set(MISTAKES)
    assert {check for check, _ in BROKEN.values()} | {"check_layouts", "check_split_merge"} == set(names)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_law_finds_its_mistake(mistake: str) -> None:
    check, words = BROKEN[mistake]
    with pytest.raises(Violation) as caught:
        getattr(laws, check)(KernelSpec(tiled(mistake), **FIELDS), CASE)
    text = str(caught.value)
    assert text.startswith(f"{check}: ")
    assert words in text
    assert f"from refattn.testing.laws import {check}\n" in text
    assert f"# SPEC is the KernelSpec of tiled_{mistake}" in text


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (x != "check_empty_rows" and n % 3 > 0))
        for n, x in enumerate(LAW_CHECKS)
    ],
)
def test_what_a_kernel_gives_for_rows_without_keys_breaks_one_law_alone(check: str) -> None:
    spec = KernelSpec(tiled("empty"), **FIELDS)
    for case in (CASE.asking("empty_rows"), Case((33, 16), (16, 16), asks=("causal_mask",))):
        assert passes(check, spec, case) == (check != "check_empty_rows")


@pytest.mark.parametrize("check", LAW_CHECKS)
@pytest.mark.parametrize("case", [CASE, Case((1, 3), (16, 16)), Case((65, 130), (16, 16), asks=("mask",), law="coded")])
def test_a_right_kernel_keeps_it(check: str, case: Case) -> None:
    assert passes(check, KernelSpec(tiled(), **FIELDS), case)


@pytest.mark.parametrize("check", LAW_CHECKS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("attention", "float32"),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in (("attention", "bfloat16"), ("flash_attention", "float32"))
        ),
    ],
)
def test_the_functions_of_refattn_keep_it(check: str, name: str, dtype: str) -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, **asked: Any) -> tuple[np.ndarray, np.ndarray]:
        output, lse, *_ = getattr(ra, name)(query, key, value, return_lse=True, **asked)
        return output, lse.astype(np.float32)

    accepts = ("mask", "bias", "is_causal", "scale", "softcap", "sinks")
    spec = KernelSpec(kernel, accepts=accepts, returns=("output", "lse"), contract=dtype, dims=(8,))
    for case in (Case((17, 33), (8, 4), law="peaked"), Case((16, 16), (8, 8), batch=2, asks=("softcap", "sinks"))):
        assert passes(check, spec, case)


@pytest.mark.slow
@pytest.mark.parametrize("check", LAW_CHECKS)
def test_pytorch_keeps_all_but_that_of_nan(check: str) -> None:
    torch = pytest.importorskip("torch")

    def sdpa(query: Any, key: Any, value: Any, mask: Any, is_causal: bool) -> Any:
        function = torch.nn.functional.scaled_dot_product_attention
        return function(query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=True)

    spec = KernelSpec(sdpa, arrays="torch", accepts=("mask", "is_causal"), contract="bfloat16", dims=(16,))
    # PyTorch's kernel for processors multiplies values that a row does not see by weights of 0.
    assert passes(check, spec, CASE) == (check != "check_masked_nan")


@pytest.mark.parametrize(
    "mistake", [None, *(pytest.param(x, marks=[pytest.mark.slow] * (n > 0)) for n, x in enumerate(RAGGED))]
)
def test_packed_sequences(mistake: str | None) -> None:
    spec = KernelSpec(
        ragged(mistake),
        computes={"mask": LOWER},
        accepts=("cu_seqlens_q", "cu_seqlens_k"),
        returns=("output", "lse"),
        dims=(16,),
    )
    found = {check: passes(check, spec, Case((20, 40), (16, 16), table="cu_seqlens_k")) for check in LAW_CHECKS}
    assert found["check_layouts"] == (mistake is None)
    assert all(found.values()) == (mistake is None)


@pytest.mark.parametrize("mistake", [None, *PAGED])
def test_pages(mistake: str | None) -> None:
    spec = KernelSpec(
        paged(mistake),
        computes={"mask": LOWER},
        accepts=("block_table", "seqused_k"),
        returns=("output", "lse"),
        layout="blhd",
        dims=(16,),
    )
    cases = [Case((4, 40), (16, 16), table=name) for name in ("block_table", "seqused_k")]
    assert all(passes("check_layouts", spec, case) for case in cases) == (mistake is None)


def test_a_log_sum_exp_that_does_not_merge_is_found() -> None:
    right = tiled()

    def kernel(*operands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output, lse = right(*operands)
        return output, lse + np.float32(0.01) * operands[1].shape[2]

    spec = KernelSpec(kernel, returns=("output", "lse"), dims=(16,))
    with pytest.raises(Violation, match="merged by log-sum-exp, are not that over all"):
        laws.check_split_merge(spec, CASE)
    laws.check_split_merge(KernelSpec(right, returns=("output", "lse"), dims=(16,)), CASE)


def test_stride_0_is_told_apart() -> None:
    right = only_output(tiled())

    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        output = right(query, key, value)
        return output * np.float32(1 + (key.strides[0] == 0))

    with pytest.raises(Violation, match="repeat one batch entry by stride 0"):
        laws.check_strides(KernelSpec(kernel, dims=(16,)), CASE)


@pytest.mark.parametrize(
    ("check", "spec", "reason"),
    [
        ("check_lse", KernelSpec(only_output(tiled())), "it returns no log-sum-exp"),
        ("check_causality", KernelSpec(only_output(tiled())), "it neither computes with a mask nor accepts mask or "),
        ("check_key_permutation", KernelSpec(tiled(), computes={"mask": LOWER}), "it always computes with mask, which"),
        ("check_layouts", KernelSpec(tiled()), "it takes none of the tables of packed and paged operands"),
        ("check_head_independence", KernelSpec(tiled(), heads=(1, 1)), "it has one head"),
        ("check_batch_independence", KernelSpec(tiled(), batch=(1,)), "batch= allows one entry"),
        ("check_strides", KernelSpec(tiled(), arrays="jax"), "arrays of jax have no strides"),
        ("check_empty_rows", KernelSpec(tiled()), "it accepts no mask, and computes with none that leaves a query"),
    ],
)
def test_a_law_that_says_nothing_tells_why(check: str, spec: KernelSpec, reason: str) -> None:
    with pytest.raises(SkipTest) as caught:
        getattr(laws, check)(spec, CASE)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize("check", LAW_CHECKS)
def test_a_kernel_that_raises_breaks_every_law_that_it_has(check: str) -> None:
    def kernel(*operands: np.ndarray, **named: Any) -> np.ndarray:
        raise NotImplementedError("not built")

    spec = KernelSpec(kernel, **FIELDS)
    if check == "check_layouts":
        return
    with pytest.raises(Violation, match=f"{check}: raised NotImplementedError: not built") as caught:
        getattr(laws, check)(spec, CASE)
    assert caught.value.kind == "raised"


def test_captured_activations_are_checked_and_named() -> None:
    real = ra.data.smollm2()
    arrays = [x[:1] for x in (real.query, real.key, real.value)]
    spec = KernelSpec(tiled("leak"), contract="float32", **FIELDS)
    given = captured(spec, *arrays, is_causal=True)
    assert given.query.dtype == np.float32
    laws.check_key_permutation(KernelSpec(tiled(), **FIELDS), captured(spec, *arrays))
    with pytest.raises(Violation, match=r'save_repro\("repro.npz", SPEC, given, check="check_causality"\)'):
        laws.check_causality(spec, given)
    with pytest.raises(ValueError, match="captured: query must have 4 axes"):
        captured(spec, *(x[0] for x in arrays))
    with pytest.raises(ValueError, match="the kernel must accept each argument; got softcap, which it does not"):
        captured(spec, *arrays, softcap=2.0)


def test_captured_arrays_come_in_the_order_of_the_layout() -> None:
    spec = KernelSpec(tiled(), layout="blhd", contract="bfloat16")
    given = captured(spec, *(np.zeros((2, 5, h, 8)) for h in (4, 2, 2)))
    assert (given.query.shape, given.key.shape) == ((2, 4, 5, 8), (2, 2, 5, 8))
    assert given.query.dtype == ml_dtypes.bfloat16


def test_captured_sequences_are_checked() -> None:
    real = ra.data.smollm2()
    fields: dict[str, Any] = {
        "computes": {"mask": LOWER}, "accepts": ("cu_seqlens_q", "cu_seqlens_k"), "returns": ("output", "lse"),
    }  # fmt: skip
    arrays = [np.swapaxes(x[:2], 1, 2) for x in (real.query, real.key, real.value)]
    for mistake in (None, "padded"):
        spec = KernelSpec(ragged(mistake), layout="blhd", **fields)
        given = captured(spec, arrays[0][:, :40], *(x[:, :40] for x in arrays[1:]))
        assert given.batch is not None
        laws.check_layouts(spec, given)  # of one length they lie where padded ones do


@pytest.mark.parametrize("check", LAW_CHECKS)
def test_base_2_and_margins(check: str) -> None:
    right = tiled()

    def kernel(*operands: np.ndarray, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        output, lse = right(*operands, **named)
        return output, lse * np.float32(np.log2(np.e))

    fields: dict[str, Any] = {**FIELDS, "layout": layouts.Layout(margin=1)}
    assert passes(check, KernelSpec(kernel, **{**fields, "returns": ("output", "lse2")}), CASE)
    if check == "check_split_merge":
        with pytest.raises(Violation, match="merged by log-sum-exp"):
            laws.check_split_merge(KernelSpec(kernel, **fields), CASE)


def test_a_row_may_move_where_the_contract_lets_others_have_a_say() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray, *, is_causal: bool) -> np.ndarray:
        # What is subtracted is the maximum over all keys, the unseen ones too, up to 30 above the row's own.
        s = query @ np.swapaxes(np.repeat(key, 2, axis=1), -1, -2) * np.float32(0.25)
        seen = np.tri(*s.shape[-2:], dtype=bool) | (not is_causal)
        own = np.where(seen, s, -np.inf).max(axis=-1, keepdims=True).astype(np.float32)
        p = np.exp(np.where(seen, s - np.minimum(s.max(axis=-1, keepdims=True), own + 30), -np.inf))
        return (p @ np.repeat(value, 2, axis=1)) / p.sum(axis=-1, keepdims=True)

    exact = KernelSpec(kernel, accepts=("is_causal",), dims=(16,))
    with pytest.raises(Violation, match="it must be the same number"):
        laws.check_causality(exact, CASE)
    ahead = dataclasses.replace(exact, contract=dataclasses.replace(ra.contract.flash("float32"), ahead=30.0))
    laws.check_causality(ahead, CASE)


def test_the_planted_tail_is_no_matter_elsewhere() -> None:
    spec = KernelSpec(tiled("tail"), **FIELDS)
    for n in (TILE, TILE + 2, 1):
        laws.check_forward(spec, Case((n, n), (16, 16)))
