"""Recurrences: the stored outputs of flash-linear-attention, transformers, ONNX and ONNX Runtime.

All compute in float32 or float16 in an order of their own. What they give is held to the proven bound of a kernel that
takes the steps one by one, and to a share of 1 + |value| that a wrong rule, decay or scale is far beyond.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.peers.cases import load, names_of, split_heads

SHARE = {"float32": 2e-5, "float16": 3e-3}


def heads_first(x: np.ndarray) -> np.ndarray:
    """(B, L, H, ...) as (B, H, L, ...)."""
    return x.swapaxes(1, 2)


def assert_peer(name: str, got: dict[str, np.ndarray], arrays: list[np.ndarray], **arguments: Any) -> None:
    """What a peer gave lies within the bound and the share; a state may be of fewer heads, each once."""
    exact = ra.recurrent_attention(*arrays, **arguments, return_state=True, dtype="float64")
    kind = np.asarray(got["output"]).dtype.name
    bound = ra.recurrent_error_bound(*arrays, **arguments, accumulation=kind, dtype=kind)
    for what, x in got.items():
        field = "state" if what.endswith("state") else "output"
        want, radius = getattr(exact, field), getattr(bound, field)
        if field == "state":
            each = want.shape[1] // x.shape[1]
            want, radius = want[:, ::each], radius[:, ::each]
        assert x.shape == want.shape
        error = np.abs(x.astype(np.float64) - want)
        share = SHARE[x.dtype.name]
        assert (error <= share * (1 + np.abs(want))).all(), f"{name}, {what}: {error.max()}"
        # A float16 node may hold its state in that format, where the bound soon claims nothing.
        rounded = radius + (2.0**-11 * np.abs(want) if x.dtype == np.float16 else 0.0)
        assert (error <= rounded).all(), f"{name}, {what}: {np.max(error / radius)} of the bound"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fla_linear_recurrent", "linear"),
        ("fla_gla", "gated"),
        ("fla_delta_rule", "delta"),
        ("fla_kda", "gated_delta"),
        ("hf_gated_delta_rule", "gated_delta"),
    ],
)
def test_batches_with_heads_behind_the_length(name: str, rule: str) -> None:
    case = load(name)
    q, k, v = (heads_first(case.inputs[x]) for x in "qkv")
    if name.startswith("hf_"):
        # What the kernel does with queries and keys before its first step.
        q, k = (x / np.sqrt(np.sum(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + 1e-6) for x in (q, k))
    more = {
        argument: heads_first(case.inputs[stored])
        for argument, stored in (("decay", "gk"), ("decay", "g"), ("beta", "beta"))
        if stored in case.inputs
    }
    if "h0" in case.inputs:
        more["initial_state"] = case.inputs["h0"]
    got = {what: x if what == "state" else heads_first(x) for what, x in case.outputs.items()}
    got = {"output" if what == "out" else what: x for what, x in got.items()}
    assert_peer(name, got, [q, k, v], update_rule=rule, **more)


def test_retention() -> None:
    case = load("fla_retention")
    q, k, v = (case.inputs[x] for x in "qkv")
    gamma = 1.0 - 2.0 ** (-5.0 - np.arange(q.shape[1]))
    decay = np.broadcast_to(np.log(gamma)[:, None], q.shape[:-1]).copy()
    assert_peer("fla_retention", {"output": case.outputs["out"]}, [q, k, v], decay=decay, update_rule="gated")


@pytest.mark.parametrize("name", [*names_of("LinearAttention"), "ort_linear_attention_linear"])
def test_nodes_of_the_operator_linear_attention(name: str) -> None:
    case = load(name)
    attributes = case.meta.get("attrs", case.meta)
    Hq, Hv = attributes["q_num_heads"], attributes["kv_num_heads"]
    rule = attributes.get("update_rule", "gated_delta")
    of = {x[0]: x for x in ("query", "key", "value") if x in case.inputs} or {x: x for x in "qkv"}
    q, k, v = (split_heads(case.inputs[of[x]], heads) for x, heads in (("q", Hq), ("k", Hv), ("v", Hv)))
    H = max(Hq, Hv)
    more: dict[str, Any] = {"update_rule": rule}
    if "decay" in case.inputs:
        decay = case.inputs["decay"]
        by_feature = decay.shape[-1] != Hv
        decay = split_heads(decay, Hv) if by_feature else decay.swapaxes(1, 2)
        more["decay"] = np.repeat(decay, H // Hv, axis=1)
    if "beta" in case.inputs:
        more["beta"] = np.repeat(case.inputs["beta"].swapaxes(1, 2), H // Hv, axis=1)
    if "past_state" in case.inputs:
        more["initial_state"] = np.repeat(case.inputs["past_state"], H // Hv, axis=1)
    output, state = (next(x for what, x in case.outputs.items() if what in names) for names in (
        ("output", "out"), ("present_state", "state")
    ))  # fmt: skip
    assert_peer(name, {"output": split_heads(output, H), "state": state}, [q, k, v], **more)
