"""Softmax attention of other libraries with rules of their own: each through masks and biases, and refused without.

Projections are stored in float64; the peers' own were float32, which `eager` allows for query and key.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn import biases, masks
from refattn.contract import eager
from tests.peers.cases import Case, budget_used, load, split_heads


def used(case: Case, output: np.ndarray, *arrays: np.ndarray, **arguments: Any) -> float:
    """Share of the budget that an output (B, L, H*E) uses."""
    return budget_used(split_heads(output, arrays[0].shape[1]), *arrays, eager("float32"), **arguments)


@pytest.mark.parametrize(("name", "radius", "scale", "fits"), [
    ("hf_longt5_local_n24_pad0", 5, 1.0, True),
    ("hf_longt5_local_n24_pad0", 4, 1.0, False),
    ("hf_longt5_local_n24_pad0", 5, None, False),
])  # fmt: skip
def test_longt5_sees_its_radius_on_each_side_and_has_no_scale(
    name: str, radius: int, scale: float | None, fits: bool
) -> None:
    case = load(name)
    arrays = (case.inputs[x] for x in "qkv")
    mask = masks.window(radius, radius)
    share = used(case, case.outputs["heads"], *arrays, mask=mask, bias=case.inputs["bias"], scale=scale)
    assert (share <= 1) == fits


@pytest.mark.parametrize(("farthest", "fits"), [(128, True), (64, False)])
def test_longt5_s_bias_is_a_table_of_t5_s_buckets(farthest: int, fits: bool) -> None:
    bias = load("hf_longt5_local_n24_pad0").inputs["bias"]
    H, L, _ = bias.shape
    buckets = biases.t5_buckets(
        np.arange(L)[None, :] - np.arange(L)[:, None], bidirectional=True, max_distance=farthest
    )
    table = np.zeros((32, H))
    table[buckets] = np.moveaxis(bias, 0, -1)  # any one of the cells of a bucket
    made = biases.from_function(
        lambda b, h, q, kv: table[biases.t5_buckets(kv - q, bidirectional=True, max_distance=farthest), h], heads=H
    )
    assert np.array_equal(made.tile(slice(0, L), slice(0, L), L, L, xp=np), bias) == fits


@pytest.mark.parametrize(("radius", "fits"), [(5, True), (6, False)])
def test_longt5_s_global_tokens_are_further_keys_with_a_bias_of_their_own(radius: int, fits: bool) -> None:
    case = load("hf_longt5_tglobal_n24_pad0")
    given = case.inputs
    key, value = (np.concatenate([given[x], given[f"{x}_global"]], axis=2) for x in "kv")
    L = given["q"].shape[2]
    bias = np.concatenate([np.broadcast_to(given["bias"], (2, 2, L, L)), given["side_bias"]], axis=-1)
    mask = masks.from_function(lambda b, h, q, kv: (abs(q - kv) <= radius) | (kv >= L))
    assert (used(case, case.outputs["heads"], given["q"], key, value, mask=mask, bias=bias, scale=1.0) <= 1) == fits


@pytest.mark.parametrize(("name", "window"), [("out", None), ("window9", 9)])
@pytest.mark.parametrize(("forgets", "fits"), [(True, True), (False, False)])
def test_forgetting_attention_adds_the_gates_between_key_and_query(
    name: str, window: int | None, forgets: bool, fits: bool
) -> None:
    case = load("fla_forgetting")
    q, k, v = (case.inputs[x].swapaxes(1, 2) for x in "qkv")
    gates = np.cumsum(case.inputs["g"].astype(np.float64), axis=1)
    bias = biases.from_function(lambda b, h, i, j: gates[b, i, h] - gates[b, j, h], batch=2, heads=2)
    mask = masks.causal() if window is None else masks.window(window - 1, 0)
    output = case.outputs[name].swapaxes(1, 2)
    share = budget_used(output, q, k, v, eager("float32"), mask=mask, bias=bias if forgets else None)
    assert (share <= 1) == fits


@pytest.mark.parametrize(("counted", "fits"), [(True, True), (False, False)])
def test_bigbird_counts_a_block_as_often_as_it_is_reached(counted: bool, fits: bool) -> None:
    case = load("hf_bigbird_n64_b8_r1_train_pad0")
    counts = case.inputs["block_counts"] if counted else np.ones_like(case.inputs["block_counts"])
    size = case.meta["block_size"]
    with np.errstate(divide="ignore"):
        bias = np.log(np.kron(counts, np.ones((size, size))))  # -inf where a block is not seen
    arrays = (case.inputs[x] for x in "qkv")
    assert (used(case, case.outputs["out"], *arrays, bias=bias) <= 1) == fits


@pytest.mark.parametrize(("circular", "fits"), [(True, True), (False, False)])
def test_reformer_sees_its_chunk_and_the_one_before_in_the_order_of_buckets(circular: bool, fits: bool) -> None:
    case = load("hf_reformer_lsh_bidir_r1")
    qk, v = case.inputs["qk"], case.inputs["v"]
    key = qk / np.sqrt(np.mean(qk**2, axis=-1, keepdims=True) + 1e-6) / np.sqrt(qk.shape[-1])
    order = np.argsort(case.inputs["buckets"][:, :, 0], axis=-1, kind="stable")
    chunk = np.argsort(order, axis=-1) // case.meta["chunk"]
    chunks = chunk.max() + 1

    def sees(b: Any, h: Any, i: Any, j: Any) -> Any:
        behind = chunk[b, h, i] - chunk[b, h, j]
        return ((behind % chunks if circular else behind) == 1) | (behind == 0)

    arguments = {
        "mask": masks.from_function(sees, batch=2, heads=2),
        "bias": biases.from_function(lambda b, h, i, j: np.where(i == j, -1e5, 0.0)),
        "scale": 1.0,
    }
    assert (used(case, case.outputs["out"], qk, key, v, **arguments) <= 1) == fits
