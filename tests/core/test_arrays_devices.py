"""Devices on the way between libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn as ra


def test_a_device_that_is_asked_for_is_taken() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, meta = np.ones(3, dtype=np.float32), torch.ones(1, device="meta")
    assert ra.from_numpy(x, library="torch").device.type == "cpu"
    assert ra.from_numpy(x, library="torch", device="meta").device.type == "meta"
    assert ra.from_numpy(x, like=meta).device.type == "meta"
    assert ra.from_numpy(x, like=meta, device="cpu").device.type == "cpu"


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_what_is_made_shares_no_memory(library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    x = np.zeros(3)
    made = ra.from_numpy(x, library=library)
    x[...] = math.inf
    assert ra.to_numpy(made).tolist() == [0.0] * 3


def test_rows_may_lie_on_any_device() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    x = np.arange(6.0).reshape(1, 3, 2)
    rows = strict.asarray(np.array([(0, 2)]), device=strict.Device("device1"))
    np.testing.assert_array_equal(ra.attention_rows(x, x, x, rows=rows), ra.attention_rows(x, x, x, rows=[(0, 2)]))
