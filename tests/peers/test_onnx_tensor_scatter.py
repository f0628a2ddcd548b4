"""ONNX's TensorScatter: the stored outputs of its reference implementation, node by node."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import layouts
from tests.peers.cases import load, names_of

NAMES = names_of("TensorScatter")


def test_there_are_stored_nodes() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_present_cache(name: str) -> None:
    case = load(name)
    present = layouts.scatter(
        case.inputs["past_cache"], case.inputs["update"], case.inputs.get("write_indices"), **case.meta["attrs"]
    )
    np.testing.assert_array_equal(present, case.outputs["present_cache"])
