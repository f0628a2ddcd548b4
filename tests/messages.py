"""What the tests of messages share: small operands, a call, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra

ANY = "must be an array of NumPy, PyTorch, JAX, CuPy, dask or another array API library; got"
ONE = np.zeros((1, 2, 2))
Q, K, V = np.zeros((2, 4, 3, 8)), np.zeros((2, 2, 5, 8)), np.zeros((2, 2, 5, 6))

Case = tuple[str, Callable[[], Any], type[Exception], str]


def attend(function: str = "attention", query: Any = Q, key: Any = K, value: Any = V, **arguments: Any) -> Any:
    """A call of a function of query, key and value, or of its gradient."""
    if function == "attention_rows":
        arguments = {"rows": [(0, 0, 0)]} | arguments
    if function.endswith("_gradient"):
        arguments = {"grad_output": np.zeros((2, 4, 3, 6))} | arguments
        return getattr(ra, function)(arguments.pop("grad_output"), query, key, value, **arguments)
    return getattr(ra, function)(query, key, value, **arguments)


class Unfit:
    """No array, though it has a shape."""

    shape = (1, 2, 2)


def strict(x: np.ndarray, device: str | None = None) -> Any:
    """An array of array_api_strict, on one of the devices that it makes up."""
    xp = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")
    return xp.asarray(x, device=None if device is None else xp.Device(device))


def assert_raises(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    """The error is of this very type, and its text is this, character by character."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value) == text
