"""Any mixture of arguments of linear attention gives a result of the right kind, or is refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn._core.arrays import dtype_name
from tests import mixtures
from tests.house.test_fuzz import result_or_message

MAPS = (
    "elu+1", "relu", "identity", "softmax", "efficient", "taylor", "squared", "cosformer", ra.cosformer_features(4),
    ra.fourier_features(np.ones((2, 2))), np.exp, np.sum, len, "", None, 3,
)  # fmt: skip
CHOICES: dict[str, tuple[Any, ...]] = {
    "feature_map": MAPS,
    "normalize": mixtures.FLAGS,
    "eps": mixtures.NUMBERS,
    "eps_rule": ("add", "clamp", "", None),
    "position": (0, 3, 2**31, -1, 0.5, None),
    "form": ("quadratic", "recurrent", "chunked", "", None),
    "chunk": mixtures.SIZES,
    "return_state": mixtures.FLAGS,
    "return_normalizer": mixtures.FLAGS,
}


@st.composite
def calls(draw: st.DrawFn, function: str) -> dict[str, Any]:
    """A call as `mixtures` draws it, with arguments of linear attention's own: good ones, and up to two others."""
    call = mixtures.given_arguments(draw(mixtures.calls(function)))
    declared = getattr(ra, function).capabilities.arguments
    if draw(st.booleans()):  # else few calls have the mask that the streaming forms serve
        call["mask"] = None
    for name in draw(st.lists(st.sampled_from(sorted(set(CHOICES) & set(declared))), unique=True, max_size=4)):
        few = 3 if name in ("position", "form", "chunk") else 2
        call[name] = draw(st.sampled_from(CHOICES[name][:few] if draw(st.integers(0, 3)) else CHOICES[name]))
    if function.endswith("gradient"):
        shape = (*np.shape(call["query"])[:-1], *np.shape(call["value"])[-1:])
        call["grad_output"] = draw(st.sampled_from([np.ones(shape), np.ones(shape), np.ones((1, 2, 2)), None]))
    if draw(st.booleans()) and "state" in declared:
        call["state"] = draw(st.sampled_from([None, (), (1.0, 2.0), (np.ones((1, 2, 2)), np.ones((1, 2)))]))
    return call


@pytest.mark.parametrize("function", ["linear_attention", "linear_attention_gradient"])
@given(data=st.data())
@settings(max_examples=settings.default.max_examples // 10)
def test_linear_attention(function: str, data: st.DataObject) -> None:
    call = data.draw(calls(function))
    got = result_or_message(function, lambda: getattr(ra, function)(**call))
    if got is None:
        return
    query, key, value = (call[name] for name in ("query", "key", "value"))
    if function == "linear_attention":
        more = bool(call.get("return_state", False)), bool(call.get("return_normalizer", False))
        assert isinstance(got, ra.LinearResult) == any(more)
        output = got.output if any(more) else got
        assert tuple(output.shape) == (*query.shape[:-1], value.shape[-1])
        assert dtype_name(output) == dtype_name(query if call.get("dtype") is None else call["dtype"])
        if any(more):
            assert [got.state is not None, got.normalizer is not None] == list(more)
        return
    for x, of in zip(got[:3], (query, key, value), strict=True):
        assert tuple(x.shape) == tuple(of.shape)
        assert dtype_name(x) == dtype_name(of if call.get("dtype") is None else call["dtype"])
