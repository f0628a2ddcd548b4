"""ONNX's RotaryEmbedding: the stored outputs of its reference implementation, node by node."""

from __future__ import annotations

import numpy as np
import pytest

import refattn as ra
from refattn import conventions
from refattn.contract.formats import unit
from tests.peers.cases import Case, load, names_of, split_heads

NAMES = names_of("RotaryEmbedding")


def node(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stored output, exact output, and how far roundings to the inputs' dtype may take them apart: (B, H, L, E)."""
    inputs, attributes = case.inputs, case.meta["attrs"]
    call = conventions.onnx_rotary_embedding(
        opset=case.meta["opset"][""], position_ids=inputs.get("position_ids"), **attributes
    )
    x, y = inputs["X"], case.outputs["Y"]
    if call.layout == "blhd":
        x, y = (split_heads(z, attributes["num_heads"]) for z in (x, y))
    caches = inputs["cos_cache"], inputs["sin_cache"]
    exact = ra.rotary_embedding(x, *caches, **call.arguments, dtype="float64")
    # Two products and their sum, each rounded: of |cos x| + |sin y|, which is this with all signs alike.
    absolute = ra.rotary_embedding(np.abs(x), np.abs(caches[0]), np.abs(caches[1]), **call.arguments, dtype="float64")
    other = ra.rotary_embedding(np.abs(x), np.abs(caches[0]), -np.abs(caches[1]), **call.arguments, dtype="float64")
    u = unit(x.dtype.name)
    return y, exact, 2 * u * (1 + u) * np.maximum(np.abs(absolute), np.abs(other))


def test_there_are_stored_nodes() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_output_is_within_the_roundings_of_its_dtype(name: str) -> None:
    stored, exact, error = node(load(name))
    assert stored.shape == exact.shape
    assert (np.abs(stored.astype(np.float64) - exact) <= error).all()


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_turned_stay_bit_for_bit(name: str) -> None:
    case = load(name)
    R = case.meta["attrs"].get("rotary_embedding_dim", 0)
    stored, exact, _ = node(case)
    kept = slice(R or stored.shape[-1], None)
    np.testing.assert_array_equal(stored[..., kept], exact[..., kept])
