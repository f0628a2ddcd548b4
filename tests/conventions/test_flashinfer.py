"""FlashInfer's calls against the rules of its kernels, written out."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.biases import alibi_slopes
from refattn.contract import eager
from refattn.conventions import flashinfer
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]


def sees(L: int, S: int, i: int, j: int, causal: bool, window_left: int) -> bool:
    """DefaultAttention's LogitsMask of include/flashinfer/attention/variants.cuh, and the causal rule beside it."""
    window = window_left if window_left >= 0 else S
    # Unsigned there, so that the terms stand on the sides where they are added.
    return j + L + window >= S + i and not (causal and j + L > S + i)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window_left", [-1, 0, 2, 9])
def test_mask_is_the_kernels(causal: bool, window_left: int) -> None:
    call = flashinfer(causal=causal, window_left=window_left)
    for L, S in LENGTHS:
        # Without a window its variant is not compiled in, and S keys before the first query's are no end.
        window = window_left if window_left >= 0 else L + S
        wanted = loops.seen(lambda b, h, i, j, L=L, S=S, w=window: sees(L, S, i, j, causal, w), L, S)
        np.testing.assert_array_equal(loops.dense(call, L, S), wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_a_custom_mask_overrides_causal_and_not_the_window(causal: bool) -> None:
    L, S = 3, 5
    mask = np.random.default_rng(0).random((L, S)) < 0.6
    call = flashinfer(causal=causal, custom_mask=mask, window_left=1)
    wanted = loops.seen(lambda b, h, i, j: mask[i, j] and sees(L, S, i, j, False, 1), L, S)
    np.testing.assert_array_equal(loops.dense(call, L, S), wanted)
    assert call.notes == (("custom_mask overrides causal=True.",) if causal else ())


@pytest.mark.parametrize(("L", "S"), LENGTHS)
def test_everything_but_alibi_at_once(L: int, S: int) -> None:
    rng = np.random.default_rng(L * 10 + S)
    q, k, v = loops.draw(rng, L, S)
    sinks = rng.standard_normal(4)
    call = flashinfer(causal=True, window_left=2, logits_soft_cap=1.5, sm_scale=0.7, sinks=sinks)
    wanted = loops.attention(
        q, k, v, sees=lambda b, h, i, j: sees(L, S, i, j, True, 2), scale=0.7, cap=1.5, sinks=sinks
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("L", "S"), LENGTHS)
def test_alibi_counts_from_the_first_query_and_key(L: int, S: int, causal: bool) -> None:
    q, k, v = loops.draw(np.random.default_rng(L * 10 + S), L, S)
    slopes = alibi_slopes(4)
    call = flashinfer(causal=causal, pos_encoding_mode="ALIBI", num_qo_heads=4)
    wanted = loops.attention(
        q,
        k,
        v,
        sees=lambda b, h, i, j: sees(L, S, i, j, causal, L + S),
        adds=lambda b, h, i, j: slopes[h] * (j - i),
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1
    assert call.notes == ("Older kernels add slope * ln 2 * (j - i).",)


def test_layouts_and_bases() -> None:
    plain = flashinfer()
    assert plain.arguments == {}
    assert (plain.layout, plain.key_layout, plain.lse_base, plain.empty_row) == ("blhd", None, "2", "zeros")
    assert flashinfer(kv_layout="HND").key_layout == "bhld"
    assert flashinfer(lse_base="ln").lse_base == "e"
    assert flashinfer(return_lse=True).notes == ("The cute-dsl backend of MLA returns a natural log-sum-exp.",)


@pytest.mark.parametrize("cap", [None, 0.0, -1.0])
def test_a_soft_cap_of_zero_or_less_is_off(cap: float | None) -> None:
    assert flashinfer(logits_soft_cap=cap).arguments == {}
