"""GroupQueryAttention against its rules, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn.contract import eager
from refattn.conventions import onnxruntime_gqa
from tests.conventions import loops
from tests.peers.cases import budget_used

B, H, Hk = 2, 4, 2


def share(call: Any, L: int, S: int, **loop: Any) -> float:
    """How much of a float64 budget the written-out node uses."""
    q, k, v = loops.draw(np.random.default_rng(L * 10 + S), L, S, B=B, H=H, Hk=Hk)
    return budget_used(loops.attention(q, k, v, **loop), q, k, v, eager("float64"), **call.arguments)


@pytest.mark.parametrize("window", [-1, 1, 3])
@pytest.mark.parametrize(("L", "S"), [(5, 5), (2, 6), (1, 6)])
def test_full_batch_stands_at_its_end(L: int, S: int, window: int) -> None:
    call = onnxruntime_gqa(num_heads=H, kv_num_heads=Hk, local_window_size=window)

    def sees(b: int, h: int, i: int, j: int) -> bool:
        p = i + S - L
        return j <= p and (window < 0 or p - window < j)

    assert share(call, L, S, sees=sees) <= 1


@pytest.mark.parametrize(("L", "total"), [(6, 6), (1, 6)])
def test_lengths_place_each_batch_entry(L: int, total: int) -> None:
    lengths = np.array([4, 6])
    call = onnxruntime_gqa(
        num_heads=H,
        kv_num_heads=Hk,
        L=L,
        total_sequence_length=total,
        seqlens_k=(lengths - 1).astype(np.int32),
        local_window_size=3,
    )

    def sees(b: int, h: int, i: int, j: int) -> bool:
        p = i + (0 if total == L else int(lengths[b]) - L)
        return p - 3 < j <= p and j < lengths[b]

    assert share(call, L, 8, sees=sees) <= 1


def test_cap_comes_before_the_bias_and_the_sink_after() -> None:
    rng = np.random.default_rng(0)
    bias, sinks = rng.standard_normal((1, H, 4, 4)), rng.standard_normal(H)
    call = onnxruntime_gqa(
        num_heads=H, kv_num_heads=Hk, scale=0.4, softcap=1.5, attention_bias=bias, head_sink=sinks, smooth_softmax=1
    )
    used = share(
        call,
        4,
        4,
        sees=lambda b, h, i, j: j <= i,
        adds=lambda b, h, i, j: bias[0, h, i, j],
        scale=0.4,
        cap=1.5,
        sinks=sinks,
    )
    assert used <= 1


def test_smooth_softmax_is_a_sink_of_zero() -> None:
    call = onnxruntime_gqa(num_heads=H, kv_num_heads=Hk, causal=0, smooth_softmax=1)
    assert share(call, 4, 4, sinks=np.zeros(H)) <= 1
    assert "sinks" not in onnxruntime_gqa(num_heads=H, kv_num_heads=Hk, smooth_softmax=0).arguments


def test_record() -> None:
    call = onnxruntime_gqa(num_heads=H, kv_num_heads=Hk, qk_output=2, local_window_size=4)
    assert (call.layout, call.lse_base, call.empty_row) == ("blhd", "e", "zeros")
    assert call.notes == ("Before September 2025 the window was one key wider.", "The fourth output is the weights.")
    assert onnxruntime_gqa(num_heads=H, kv_num_heads=Hk, qk_output=1).notes == ("The fourth output is the scores.",)
    assert "scale" not in call.arguments
