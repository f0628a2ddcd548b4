"""The bound is a theorem: no kernel within its contract leaves it. And it is sharp enough that wrong kernels do."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refattn import contract
from refattn._core.score import Score
from refattn.contract import softmax
from tests.bounds.cases import FAMILIES, OPERANDS, Case, cases, eager_kernels, gaussian, inputs, kernels
from tests.bounds.emulator import Eager, Kernel, cut, rounded

FLASH = {
    "bfloat16": Kernel(
        operand="bfloat16",
        weights="bfloat16",
        output="bfloat16",
        tile=64,
        exponential="exp2_fma",
        matmul="tensor_core_16",
    ),
    "float16": Kernel(operand="float16", weights="float16", output="float16", tile=64, matmul="tensor_core_16"),
    "float32": Kernel(tile=64),
}


# The theorem


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_no_tiled_kernel_leaves_its_bound(data, family):
    stays_within(data, family)


@pytest.mark.parametrize("family", ["mxfp8", "nvfp4"])
@settings(max_examples=30)
@given(data=st.data())
def test_no_kernel_with_scales_in_blocks_leaves_its_bound(data, family):
    stays_within(data, family)


def stays_within(data, family):
    """Draw a problem and a kernel of a family, and hold it against its bound."""
    case = data.draw(cases(OPERANDS.get(family, family)))
    kernel, claim = data.draw(kernels(family))
    # A fused exponent of a finite bias of -1e9 overflows FP8: outside the hypotheses, and only the kernel knows.
    fused = kernel.exponential == "exp2_fma" and case.bias is not None
    assume(not (OPERANDS.get(family, family) == "float8_e4m3fn" and fused and np.abs(case.bias).max() > 1e8))
    assert max(case.used(kernel, claim)) <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@given(data=st.data())
def test_no_plain_implementation_leaves_its_bound(data, dtype):
    case = data.draw(cases(dtype))
    kernel, claim = data.draw(eager_kernels(dtype))
    assert max(case.used(kernel, claim)) <= 1


@pytest.mark.parametrize("make", [contract.flash, contract.eager])
@pytest.mark.parametrize("law", ["normal", "hot", "offset_v", "rising", "cancel"])
def test_float64_itself_stays_within_a_float64_contract(make, law):
    rng = np.random.default_rng(1)
    q, k, v, scale = inputs(rng, law, 8, 300, 32, 4, "float64")
    case = Case(q, k, v, scale, sink=1.0)
    assert max(case.judged(*case.exact(np.float64), make("float64"))) <= 1


def test_more_rows_and_keys_than_a_tile():
    rng = np.random.default_rng(2)
    R, S = softmax.TILE_ROWS + 3, softmax.TILE_KEYS + 5
    keep = rng.random((R, S)) < 0.5
    keep[:, : softmax.TILE_KEYS] &= rng.random((R, 1)) < 0.8
    case = Case(*gaussian(rng, R, S, 16, 4, "float32"), 0.25, keep=keep)
    assert max(case.used(FLASH["float32"], contract.flash("float32"))) <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pytorch_stays_within_its_contracts(dtype):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rng = np.random.default_rng(3)
    worst = {"flash": 0.0, "eager": 0.0, "eager as flash": 0.0}
    for law in ("normal", "hot", "offset_v", "offset_k", "sign", "rising", "tie"):
        q, k, v, scale = inputs(rng, law, 70, 130, 32, 32, dtype)
        q, k, v = (rounded(x, dtype).astype(float) for x in (q, k, v))
        case = Case(q, k, v, abs(scale), keep=np.tril(np.ones((70, 130), dtype=bool)) if law == "hot" else None)
        tensors = [torch.from_numpy(x).to(getattr(torch, dtype))[None, None] for x in (q, k, v)]

        def run(backend, tensors=tensors, case=case):
            with sdpa_kernel(backend):
                out = torch.nn.functional.scaled_dot_product_attention(
                    *tensors, scale=case.scale, is_causal=case.keep is not None
                )
            return out[0, 0].double().numpy()

        lse = case.exact()[1]
        used = case.judged(run(SDPBackend.FLASH_ATTENTION), lse, contract.flash(dtype))
        worst["flash"] = max(worst["flash"], *used)
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            out = run(SDPBackend.MATH)
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
        worst["eager"] = max(worst["eager"], *case.judged(out, lse, contract.eager(dtype)))
        worst["eager as flash"] = max(worst["eager as flash"], *case.judged(out, lse, contract.flash(dtype)))
    assert worst["flash"] <= 1
    assert worst["eager"] <= 1
    # Scores stored in half precision are no flash kernel's.
    assert (worst["eager as flash"] > 1) == (dtype != "float32")


# Where nothing is claimed


def test_a_row_that_sees_nothing_must_be_exact():
    q, k, v = gaussian(np.random.default_rng(4), 2, 5, 4, 3, "float32")
    case = Case(q, k, v, 0.5, keep=np.array([[False] * 5, [True] * 5]))
    bound = case.bound(contract.flash("float32"))
    assert (bound.output[0] == 0).all()
    assert bound.lse[0] == 0
    with_sink = replace(case, sink=2.0).bound(contract.flash("float32"))
    assert (with_sink.output[0] == 0).all()
    assert 0 < with_sink.lse[0] < math.inf
    assert (bound.output[1] > 0).all()


def _reference(q, k, v, keep=None):
    """A problem whose reference answer is not asked for."""
    from tests.bounds.cases import Whole

    score = Score((len(q), len(k)), 0.5, mask=None if keep is None else Whole(keep))
    return contract.Problem(q, k, v, score, np.arange(len(q)), np.zeros((len(q), v.shape[1])), np.zeros(len(q)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_claim_for_values_that_are_not_finite(bad):
    q, k, v = gaussian(np.random.default_rng(5), 3, 6, 4, 3, "float32")
    keep = np.ones((3, 6), dtype=bool)
    keep[2, 1] = False
    claim = contract.flash("bfloat16")
    spoilt = v.copy()
    spoilt[1, 2] = bad
    bound = contract.softmax_bound(claim, _reference(q, k, spoilt, keep)).output
    assert np.isinf(bound).tolist() == [[False, False, True], [False, False, True], [False, False, False]]
    spoilt = k.copy()
    spoilt[1, 2] = bad
    bound = contract.softmax_bound(claim, _reference(q, spoilt, v, keep))
    assert np.isinf(bound.output).all(axis=1).tolist() == [True, True, False]
    assert np.isinf(bound.lse).tolist() == [True, True, False]
    spoilt = q.copy()
    spoilt[0, 3] = bad
    assert np.isinf(contract.softmax_bound(claim, _reference(spoilt, k, v)).output).all(axis=1).tolist() == [
        True, False, False,
    ]  # fmt: skip


def test_masked_keys_do_not_enter():
    q, k, v = gaussian(np.random.default_rng(6), 3, 6, 4, 3, "float32")
    keep = np.arange(6)[None] < np.array([[3], [2], [4]])
    poisoned = [np.where(np.arange(6)[:, None] < 4, x, np.nan) for x in (k, v)]
    zeroed = [np.where(np.arange(6)[:, None] < 4, x, 0.0) for x in (k, v)]
    for claim in (contract.flash("float16"), contract.eager("float16"), contract.tf32()):
        one, other = (contract.softmax_bound(claim, _reference(q, *kv, keep)) for kv in (poisoned, zeroed))
        assert np.array_equal(one.output, other.output)
        assert np.array_equal(one.lse, other.lse)


@pytest.mark.parametrize("low", [-1e4, -1e9, -1e38])
def test_keys_hidden_by_a_large_negative_bias_cost_nothing(low):
    q, k, v = gaussian(np.random.default_rng(14), 3, 40, 4, 3, "float32")
    seen = np.arange(40) % 3 > 0
    case = Case(q, k, v, 0.5, bias=np.where(seen, 0.0, low) * np.ones((3, 1)))
    hidden = case.bound(contract.flash("bfloat16")).output
    masked = replace(case, bias=np.zeros((3, 40)), keep=seen * np.ones((3, 1), dtype=bool)).bound(
        contract.flash("bfloat16")
    )
    # What is left of the cost: 40 instead of 26 terms in each sum, a rounding or two a term.
    assert (hidden <= masked.output + 8 * 14 * 2.0**-24 * np.abs(v).max()).all()


def test_no_claim_where_errors_may_be_of_the_size_of_the_answer():
    q, k, v = gaussian(np.random.default_rng(7), 4, 8, 4, 3, "float32")
    assert np.isinf(Case(1e7 * q, k, v, 1.0).bound(contract.flash("float32")).output).any()
    assert np.isinf(Case(q, k, 1e5 + v, 1.0).bound(contract.flash("float16")).output).all()
    assert np.isinf(Case(1e6 * q, k, v, 1.0).bound(contract.eager("float16")).output).all()
    # A key of next to no weight whose score is lost in the rounding of its products.
    lost = Case(np.ones((1, 2)), np.array([[0.0, 0.0], [2.0**25, -(2.0**25) - 30]]), np.ones((2, 1)), 1.0)
    assert np.isinf(lost.bound(contract.flash("float32")).output).all()
    # 300 rises above what e4m3 holds once it carries 2**8.
    lazy = replace(contract.fp8(), lazy=1.0)
    assert np.isinf(Case(q, k, v, 1.0).bound(lazy).output).all()


# How sharp it is


def _opposed(scores, rows=1):
    """Keys of these scores (in one feature) for queries of 1, whose values are +1 and -1 in turn."""
    k = np.asarray(scores, dtype=np.float32).astype(float)[:, None]
    return Case(np.ones((rows, 1)), k, (-1.0) ** np.arange(len(k))[:, None], 1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_of_weights_is_attained(dtype):
    # Every weight but the first is the same and lies just above the middle of two numbers of its format.
    p = contract.formats.FORMATS[dtype].precision
    k = np.zeros((65, 1))
    k[1:] = np.float32(math.log(0.25 * (1 + 2.0**-p)) + 2.0**-20)
    v = np.ones((65, 2))
    v[0] = 0
    case = Case(np.ones((1, 1)), k, v, 1.0)
    claim = replace(contract.flash(dtype), output="float32", exp_ulp=2.0)
    assert 0.8 < case.used(Kernel(weights=dtype), claim)[0] <= 1


def test_underflow_of_weights_is_attained():
    # A thousand weights just below half of float16's smallest number are lost.
    k = np.full((1001, 1), np.log(0.999 * 2.0**-25))
    k[0] = 0
    case = Case(np.ones((1, 1)), k, np.where(k < 0, 1.0, 0.0), 1.0)
    claim = replace(contract.flash("float16"), output="float32", exp_ulp=2.0, lazy=0.0)
    assert 0.8 < case.used(Kernel(weights="float16", tile=64), claim)[0] <= 1


def test_rounding_of_the_output_is_attained():
    case = Case(np.ones((1, 1)), np.ones((1, 1)), np.full((1, 1), 1 + 2.0**-8 + 2.0**-20), 1.0)
    claim = replace(contract.flash("float32"), output="bfloat16")
    assert 0.95 < case.used(Kernel(output="bfloat16"), claim)[0] <= 1


def test_error_of_the_exponential_is_attained():
    claim = replace(contract.flash("float32"), exp_ulp=2048.0)
    assert 0.95 < _opposed([0.0, 0.0], rows=16).used(Kernel(noise=2.0**-12), claim)[0] <= 1


def test_rounding_of_operands_is_attained():
    # Both operands lie just above the middle of two bfloat16 numbers.
    beside = 1 + 2.0**-8 + 2.0**-20
    case = replace(_opposed([0.125 * beside, -0.125 * beside]), q=np.full((1, 1), beside))
    claim = replace(contract.flash("float32"), query="bfloat16", key="bfloat16", rounded=("query", "key"))
    assert 0.95 < case.used(Kernel(prescale="sqrt", operand="bfloat16"), claim)[0] <= 1


def test_storage_of_scores_is_attained():
    # Product and scaled product both lie far from their neighbours in bfloat16, on the same side.
    q = np.linspace(1, 2, 500)[:, None].astype(np.float32).astype(float)
    case = replace(_opposed([0.125, -0.125]), q=q, scale=0.7)
    claim = replace(contract.flash("float32"), scores="bfloat16")
    assert 0.7 < case.used(Kernel(scores="bfloat16"), claim)[0] <= 1


def test_rescaling_at_large_scores_is_felt():
    # exp2(fma(m, c, -fl(m c))) is not 1: a kernel that forms its rescale factor so loses a little in every tile.
    v = np.where(np.arange(1024) < 512, 1.0, -1.0)[:, None]
    claim = replace(contract.flash("float32"), merges=0)
    case = replace(_opposed(np.full(1024, 1000.0)), q=1 + np.arange(16)[:, None] / 1024, v=v)
    assert 0.1 < case.used(Kernel(tile=16, exponential="exp2_fma"), claim)[0] <= 1


def test_merging_by_rounded_log_sum_exps_is_felt():
    case = Case(1 + np.arange(16)[:, None] / 16, 1000 + np.arange(32)[:, None] / 32, np.ones((32, 1)), 1.0)
    assert 0.05 < case.used(Kernel(splits=2, tile=16), contract.flash("float32"))[0] <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_right_half_precision_kernel_uses_a_fair_part_of_its_budget(dtype):
    rng = np.random.default_rng(8)
    for S in (64, 256):
        case = Case(*gaussian(rng, 64, S, 64, 64, dtype), 1 / 8)
        assert 0.1 <= case.used(FLASH[dtype], contract.flash(dtype))[0] <= 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_kernels_are_outside(dtype):
    rng = np.random.default_rng(9)
    R, S, claim, kernel = 64, 256, contract.flash(dtype), FLASH[dtype]
    q, k, v = gaussian(rng, R, S, 64, 64, dtype)
    case = Case(q, k, v, 1 / 8)
    output, lse = case.run(kernel)
    assert max(case.judged(output, lse, claim)) <= 1
    assert case.judged(0 * output, lse, claim)[0] > 1
    assert case.judged(output, lse / math.log(2), claim)[1] > 1
    assert case.judged(*replace(case, scale=1.02 / 8).run(kernel), claim)[0] > 1
    # Head 1 of 4 over 2 key heads: h % 2 instead of h // 2 reads the other key head.
    _, other_k, other_v = gaussian(rng, R, S, 64, 64, dtype)
    assert case.judged(*replace(case, k=other_k, v=other_v).run(kernel), claim)[0] > 1
    lower_right = replace(case, keep=np.tril(np.ones((R, S), dtype=bool), S - R))
    upper_left = replace(case, keep=np.tril(np.ones((R, S), dtype=bool)))
    assert lower_right.judged(*upper_left.run(kernel), claim)[0] > 1
    dropped = np.ones((R, S), dtype=bool)
    dropped[:, S - 3] = False
    for offset in (0, 4):
        moved = replace(case, v=rounded(v + offset, dtype).astype(float))
        assert moved.judged(*replace(moved, keep=dropped).run(kernel), claim)[0] > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_garbage_is_outside_of_every_preset(dtype):
    rng = np.random.default_rng(10)
    case = Case(*gaussian(rng, 64, 256, 64, 64, dtype), 1 / 8)
    claims = [contract.flash(dtype), contract.eager(dtype)] + ([contract.tf32()] if dtype == "float32" else [])
    for claim in claims:
        output, lse = case.run(Eager(dtype))
        assert case.judged(0 * output, lse, claim)[0] > 1
        assert case.judged(output[::-1], lse, claim)[0] > 1
        assert case.judged(output, lse / math.log(2), claim)[1] > 1


LOOSER = (
    {"exp_ulp": 4000.0}, {"rescale_ulp": 64.0}, {"min_tile": 1}, {"lazy": 8.0}, {"merges": 5}, {"ahead": 2.0},
    {"rounded": ("query",)}, {"rounded": ("key",)}, {"rounded": ("value",)}, {"scores": "bfloat16"},
    {"scores": "float16"}, {"probabilities": "float8_e5m2"}, {"accumulator_bits": 20}, {"output": "float8_e5m2"},
    {"accumulator_terms": 1}, {"rounded": ("query",), "rounding": "toward_zero"}, {"tanh_ulp": 1e5},
    {"lse": "bfloat16"},
)  # fmt: skip


@pytest.mark.parametrize("fields", LOOSER, ids=str)
def test_a_looser_contract_allows_more(fields):
    q, k, v = gaussian(np.random.default_rng(11), 8, 40, 16, 3, "float16")
    case = Case(4 * q, k, v, 0.25, softcap=20.0)
    strict = replace(contract.flash("float16"), exp_ulp=2.0, tanh_ulp=4.0, lazy=0.0)
    before, after = case.bound(strict), case.bound(replace(strict, **fields))
    assert (after.output >= before.output).all()
    assert (after.lse >= before.lse).all()
    assert (after.output > before.output).any() or (after.lse > before.lse).any()


def test_cut_off_operands_cost_twice_what_rounded_ones_do():
    q, k, v, scale = inputs(np.random.default_rng(12), "normal", 8, 40, 16, 3, "float32")
    case = Case(q, k, v, scale)
    cutting = Kernel(operand="tf32", recast=True, cast=cut, weights="tf32", matmul="tensor_core_4")
    cut_off, nearest = contract.tf32(), replace(contract.tf32(), rounding="nearest")
    assert case.used(cutting, cut_off)[0] <= 1
    share = case.bound(cut_off).output / case.bound(nearest).output
    assert ((share > 1.8) & (share < 2.2)).all()


def test_memory_does_not_grow_with_the_number_of_keys():
    rng = np.random.default_rng(13)
    peaks = []
    for S in (2**13, 2**15):
        q, k, v = (rng.standard_normal((n, 4)) for n in (32, S, S))
        problem = _reference(q, k, v)
        tracemalloc.start()
        contract.softmax_bound(contract.flash("float16"), problem)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
