"""Devices on the way between libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn as ra
from refattn._core.arrays import moved, readable


def test_a_device_that_is_asked_for_is_taken() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, meta = np.ones(3, dtype=np.float32), torch.ones(1, device="meta")
    assert ra.from_numpy(x, library="torch").device.type == "cpu"
    assert ra.from_numpy(x, library="torch", device="meta").device.type == "meta"
    assert ra.from_numpy(x, like=meta).device.type == "meta"
    assert ra.from_numpy(x, like=meta, device="cpu").device.type == "cpu"


def test_what_has_no_values_that_can_be_read() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    seen: list[bool] = []
    x = torch.ones(2, requires_grad=True)
    torch.func.vmap(lambda row: (seen.append(readable(row)), row)[1])(x)
    assert seen == [False]
    assert not readable(torch.ones(2, device="meta"))
    assert readable(x)
    assert readable(x[0])


def test_the_device_of_another_array_is_taken() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    like = strict.asarray([1.0], device=strict.Device("device1"))
    assert ra.from_numpy(np.ones(3), like=like).device == like.device
    assert ra.from_numpy(np.ones(3), library="array_api_strict").device == strict.Device("CPU_DEVICE")


def test_what_pytorch_gets_is_contiguous() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert ra.from_numpy(np.ones((2, 3)).T, library="torch").is_contiguous()


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_what_is_made_shares_no_memory(library: str) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    x = np.zeros(3)
    made = ra.from_numpy(x, library=library)
    x[...] = math.inf
    assert ra.to_numpy(made).tolist() == [0.0] * 3


def test_what_is_moved_is_a_copy_on_the_device() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    x = np.arange(3.0)
    assert moved(x, strict, strict.Device("device1")).device == strict.Device("device1")
    own = moved(x, np, "cpu")
    assert own.tolist() == [0.0, 1.0, 2.0]
    assert not np.shares_memory(own, x)


def test_rows_may_lie_on_any_device() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    x = np.arange(6.0).reshape(1, 3, 2)
    rows = strict.asarray(np.array([(0, 2)]), device=strict.Device("device1"))
    np.testing.assert_array_equal(ra.attention_rows(x, x, x, rows=rows), ra.attention_rows(x, x, x, rows=[(0, 2)]))
