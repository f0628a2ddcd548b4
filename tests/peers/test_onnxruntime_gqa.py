"""ONNX Runtime's GroupQueryAttention: stored outputs of its CPU kernel, judged as a user would judge them."""

from __future__ import annotations

from typing import Any

import pytest

from refattn import conventions, testing
from refattn.contract import eager
from tests.peers.cases import load, names_of

NAMES = names_of("com.microsoft.GroupQueryAttention")
ATTRIBUTES = ("local_window_size", "softcap", "smooth_softmax", "scale")
# Not stored with the node. Other widths of a head do not give the stored output.
HEAD_SIZE = 16


def verdict(name: str, **changed: Any) -> testing.Verdict:
    """The judge's word on one node, with attributes changed."""
    case = load(name)
    H, Hk = (case.inputs[x].shape[-1] // HEAD_SIZE for x in "qk")
    call = conventions.onnxruntime_gqa(
        num_heads=H,
        kv_num_heads=Hk,
        head_sink=case.inputs.get("head_sink"),
        **{key: case.meta[key] for key in ATTRIBUTES if key in case.meta} | changed,
    )
    out, q, k, v = (
        x.reshape(*x.shape[:2], -1, HEAD_SIZE) for x in (case.outputs["out"], *(case.inputs[n] for n in "qkv"))
    )
    return testing.check(out, q, k, v, convention=call, contract=eager("float32"))


def test_there_are_stored_nodes() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_output_is_within_the_contract(name: str) -> None:
    assert verdict(name).passed


@pytest.mark.parametrize("name", [name for name in NAMES if load(name).meta["local_window_size"] > 1])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_key_more_or_less_in_the_window_is_refused(name: str, step: int) -> None:
    assert not verdict(name, local_window_size=load(name).meta["local_window_size"] + step).passed
