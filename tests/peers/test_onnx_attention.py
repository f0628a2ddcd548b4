"""ONNX's Attention and FlexAttention: the stored outputs of its reference implementation, node by node.

The reference computes in the dtype of its inputs: each array operation rounds to it, those of the softmax too. `eager`
is this contract but for the softmax, which it takes in float32. In the half formats the difference is added here: one
rounding of the scores less their maximum, one of the exponentials, and S - 1 additions of weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

import refattn as ra
from refattn import conventions
from refattn.contract import Contract, eager
from refattn.contract.formats import unit
from tests.peers.cases import DATA, Case, budget_used, load, names_of, split_heads

ATTENTION = names_of("Attention")
FLEX = names_of("FlexAttention")
INPUTS = ("attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")


class Node(NamedTuple):
    """One node in refattn's words: arrays (B, H, L, E), the arguments, the dtype."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    arguments: dict[str, Any]
    heads: int | None
    dtype: str
    stage: str


def node_of(case: Case) -> Node:
    """An Attention node, through `conventions.onnx`."""
    inputs, attributes = case.inputs, case.meta["attrs"]
    q, k, v = inputs["Q"], inputs["K"], inputs["V"]
    heads = attributes.get("q_num_heads")
    if q.ndim == 3:
        q, k, v = (
            split_heads(x, attributes[n]) for x, n in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
        )
    if "past_key" in inputs:
        k, v = np.concatenate([inputs["past_key"], k], axis=2), np.concatenate([inputs["past_value"], v], axis=2)
    call = conventions.onnx(
        opset=case.meta["opset"][""],
        L=q.shape[2],
        S=k.shape[2],
        **attributes,
        **{name: inputs[name] for name in INPUTS if name in inputs},
    )
    assert call.layout == ("blhd" if inputs["Q"].ndim == 3 else "bhld")
    assert call.scores_stage is not None
    return Node(q, k, v, dict(call.arguments), heads, q.dtype.name, call.scores_stage)


def budget(node: Node, softmax: str) -> tuple[Contract, float]:
    """The contract of the reference, and what it needs beyond, as a share of the output."""
    contract, u = eager(node.dtype), unit(softmax)
    if softmax not in ("float16", "bfloat16"):
        return contract, 0.0
    S, s = node.key.shape[2], ra.attention_scores(*node[:2], **node.arguments, dtype="float64")
    seen = s[np.isfinite(s)]
    spread = seen.max(initial=0.0) - seen.min(initial=0.0)
    return replace(contract, exp_ulp=contract.exp_ulp + (1 + spread) * u / (2 * unit("float32"))), S * u / (1 - S * u)


def softmax_dtype(case: Case, node: Node) -> str:
    """The dtype that the softmax runs in."""
    return "float32" if case.meta["attrs"].get("softmax_precision") == 1 else node.dtype


def test_all_stored_nodes_are_here() -> None:
    manifest = [line.split("\t") for line in (DATA / "MANIFEST.tsv").read_text(encoding="utf-8").splitlines()]
    for op, names in (("Attention", ATTENTION), ("FlexAttention", FLEX)):
        assert sorted(names) == sorted(row[0].removesuffix(".npz") for row in manifest if row[3] == op)


@pytest.mark.parametrize("name", ATTENTION)
def test_output_is_within_the_contract_of_its_dtype(name: str) -> None:
    case = load(name)
    node = node_of(case)
    y = case.outputs["Y"]
    y = y if node.heads is None else split_heads(y, node.heads)
    contract, more = budget(node, softmax_dtype(case, node))
    assert budget_used(y, *node[:3], contract, more=more, **node.arguments) <= 1


@pytest.mark.parametrize("name", [name for name in ATTENTION if "present_key" in load(name).outputs])
def test_present_is_past_and_new(name: str) -> None:
    case = load(name)
    node = node_of(case)
    np.testing.assert_array_equal(case.outputs["present_key"], node.key)
    np.testing.assert_array_equal(case.outputs["present_value"], node.value)


@pytest.mark.parametrize("name", [name for name in ATTENTION if "qk_matmul_output" in load(name).outputs])
def test_fourth_output(name: str) -> None:
    case = load(name)
    node = node_of(case)
    stored = case.outputs["qk_matmul_output"]
    if node.stage == "weights":
        # The weights are the output for the value that is the identity.
        S = node.key.shape[2]
        value = np.broadcast_to(np.eye(S, dtype=node.value.dtype), (*node.key.shape[:3], S))
        contract, more = budget(node, softmax_dtype(case, node))
        assert budget_used(stored, node.query, node.key, value, contract, more=more, **node.arguments) <= 1
        return
    wanted, error = scores(node)
    assert stored.shape == wanted.shape
    assert np.array_equal(np.isneginf(stored), np.isneginf(wanted))
    seen = np.isfinite(wanted)
    assert np.all(np.abs(stored[seen].astype(np.float64) - wanted[seen]) <= error[seen])


def scores(node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Scores at the node's stage before the softmax, and what the reference's roundings may change in them."""
    q, k = node.query.astype(np.float64), node.key.astype(np.float64)
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1).swapaxes(-1, -2)
    u, E = unit(node.dtype), q.shape[-1]
    scale = node.arguments.get("scale", 1 / math.sqrt(E))
    # The square root of scale, twice, its products with Q and K, and the sum of E products.
    n = E + 6
    error = n * u / (1 - n * u) * (np.abs(q) @ np.abs(k) * scale)
    at = {
        stage: ra.attention_scores(node.query, node.key, stage=stage, **node.arguments, dtype="float64")
        for stage in ("raw", "softcapped", "biased")
    }
    if node.stage != "raw" and "softcap" in node.arguments:
        error = error + 4 * u * np.abs(at["softcapped"])
    if node.stage == "biased":
        b = at["biased"]
        error = error + u * (np.abs(np.where(np.isneginf(b), 0.0, b)) + error)
    return at[node.stage], np.broadcast_to(error, at["raw"].shape)


# The graphs are not stored. These constants are what they must hold for the stored outputs to be right, to five digits.
SOFTCAP, FACTOR = 20.0, 0.5


@pytest.mark.parametrize("name", FLEX)
def test_flex_attention(name: str) -> None:
    case = load(name)
    q, k, v = (case.inputs[x] for x in "QKV")
    attributes = case.meta["attrs"]
    arguments = dict(conventions.onnx_flex(scale=attributes.get("scale")).arguments)
    if "score_mod" in attributes:
        arguments["softcap"] = SOFTCAP
    # A factor on the weights is one on the output; powers of two are exact.
    factor = FACTOR if "prob_mod" in attributes else 1.0
    assert budget_used(case.outputs["Y"] / factor, q, k, v, eager(q.dtype.name), **arguments) <= 1
