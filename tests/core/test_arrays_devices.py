"""Devices on the way between libraries."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from tests.messages import assert_raises


def test_a_device_that_is_asked_for_is_taken() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, meta = np.ones(3, dtype=np.float32), torch.ones(1, device="meta")
    assert ra.from_numpy(x, library="torch").device.type == "cpu"
    assert ra.from_numpy(x, library="torch", device="meta").device.type == "meta"
    assert ra.from_numpy(x, like=meta).device.type == "meta"
    assert ra.from_numpy(x, like=meta, device="cpu").device.type == "cpu"


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


def test_rows_may_lie_on_any_device() -> None:
    strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    x = np.arange(6.0).reshape(1, 3, 2)
    rows = strict.asarray(np.array([(0, 2)]), device=strict.Device("device1"))
    np.testing.assert_array_equal(ra.attention_rows(x, x, x, rows=rows), ra.attention_rows(x, x, x, rows=[(0, 2)]))


# Libraries that may not be there, or not without a GPU: what they are asked, by modules that only note it.


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Put a module of that name, and its parent, in the place of the library."""
    parent, _, child = name.partition(".")
    for each in {parent, name}:
        module = ModuleType(each)
        module.__spec__ = ModuleSpec(each, None)
        monkeypatch.setitem(sys.modules, each, module)
    last = sys.modules[name]
    vars(last).update(members)
    if child:
        setattr(sys.modules[parent], child, last)


def test_jax_is_asked_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "jax", device_put=lambda x, device: (x, device))
    x = np.ones(3)
    assert ra.from_numpy(x, library="jax", device="second") == (x, "second")
    assert ra.from_numpy(x, library="jax")[1] is None


class Zeros:
    """An array that can be of no other dtype."""

    def astype(self, dtype: Any) -> Any:
        """Refuse."""
        raise TypeError(dtype)


def test_cupy_is_asked_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    on: list[Any] = []
    cuda = SimpleNamespace(Device=lambda n: (on.append(n), nullcontext())[1])
    members = {"asarray": lambda x: ("cupy", x), "cuda": cuda, "float32": np.float32, "zeros": lambda shape: Zeros()}
    stand_in(monkeypatch, "cupy", **members)
    x = np.ones(3, np.float32)
    assert ra.from_numpy(x, library="cupy", device=1) == ("cupy", x)
    assert on == [1]
    text = "from_numpy: array must have a dtype that cupy has; got bfloat16."
    assert_raises(lambda: ra.from_numpy(np.ones(3, ml_dtypes.bfloat16), library="cupy"), TypeError, text)


def test_dask_is_given_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "dask.array", from_array=lambda x: ("dask", x))
    x = np.ones(3)
    assert ra.from_numpy(x, library="dask") == ("dask", x)
