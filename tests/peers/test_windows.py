"""Local attention of three libraries: stored outputs, through masks."""

from __future__ import annotations

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.contract import eager
from tests.peers.cases import Case, budget_used, load, split_heads


@pytest.mark.parametrize("name", ["local_attention_causal_exact", "local_attention_noncausal_exact"])
def test_local_attention_counts_window_size_keys_beside_the_query(name: str) -> None:
    case = load(name)
    q, k, v = (case.inputs[x] for x in "qkv")
    W = case.meta["window_size"]
    mask = masks.window(W, 0 if case.meta["causal"] else W)
    np.testing.assert_array_equal(mask.dense(q.shape[2], k.shape[2]), case.inputs["mask"])
    assert budget_used(case.outputs["out"], q, k, v, eager("float32"), mask=mask) <= 1


def test_memory_efficient_attention() -> None:
    case = load("mem_efficient_causal")
    q, k, v = (case.inputs[x] for x in "qkv")
    assert budget_used(case.outputs["out"], q, k, v, eager("float32"), is_causal=True) <= 1


def longformer(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Longformer's output in float64: who sees what is one mask, and global queries use their own projections."""
    # The sign of the mask: negative is padding, positive is global.
    alive, everywhere = case.inputs["mask"] >= 0, case.inputs["mask"] > 0
    side = case.meta["attention_window"] // 2
    seen = masks.array(alive[:, None, None, :])
    keep = (masks.window(side, side) | masks.array(everywhere[:, None, None, :])) & seen
    local = ra.attention(*(case.inputs[x] for x in ("q", "k", "v")), mask=keep)
    whole = ra.attention(*(case.inputs[f"{x}_global"] for x in ("q", "k", "v")), mask=seen)
    output = np.where(everywhere[:, None, :, None], whole, local)
    return np.where(alive[:, None, :, None], output, 0.0), everywhere


def test_longformer_window_is_half_of_attention_window_on_each_side() -> None:
    case = load("hf_longformer_local")
    output = split_heads(case.outputs["out"], case.inputs["q"].shape[1])
    wanted, everywhere = longformer(case)
    assert not everywhere.any()
    q, k, v = (case.inputs[x] for x in ("q", "k", "v"))
    side = case.meta["attention_window"] // 2
    np.testing.assert_array_equal(wanted, ra.attention(q, k, v, mask=masks.window(side, side)))
    # The projections are stored in float64; the peer's own were float32, which `eager` allows for query and key.
    assert budget_used(output, q, k, v, eager("float32"), mask=masks.window(side, side)) <= 1
