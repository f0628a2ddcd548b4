"""The array libraries that tests run on, as one small record each, converting without refattn's help."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

# The namespaces that refattn promises, as its capabilities name them. On the costly ones a call with new shapes costs
# as much as a second (a compilation for each operation, or a graph of tasks), so they have tests of few shapes.
NAMES = ("numpy", "read-only numpy", "array_api_strict", "torch")
COSTLY = ("jax", "dask", pytest.param("cupy", marks=pytest.mark.gpu))
NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype of that name, or ml_dtypes'."""
    return np.dtype(getattr(ml_dtypes, name, name))


def name_of(dtype: Any) -> str:
    """Name of a dtype of any library."""
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.").removeprefix("array_api_strict.")


@dataclass(frozen=True)
class Library:
    """One array library: how a NumPy array becomes its own, and how its own are read."""

    name: str
    module: str
    dtypes: tuple[str, ...]
    array: Callable[[np.ndarray], Any]
    values: Callable[[Any], np.ndarray]
    # How a function of arrays is called where shapes are new: JAX compiles one graph faster than each operation alone.
    call: Callable[..., Any] = lambda f, *arrays: f(*arrays)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints."""
        printer.text(self.name)


def library(name: str) -> Library:
    """The library called `name`; the test is skipped, and counted as skipped, where it is not installed."""
    return {
        "numpy": _numpy,
        "read-only numpy": _frozen,
        "array_api_strict": _strict,
        "torch": _torch,
        "jax": _jax,
        "dask": _dask,
        "cupy": _cupy,
    }[name]()


def _numpy() -> Library:
    every = ("float64", "float32", "float16", "int8", *NARROW)
    return Library("numpy", "numpy", every, lambda x: x.copy(), np.asarray)


def _frozen() -> Library:
    def frozen(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x.setflags(write=False)
        return x

    return Library("read-only numpy", "numpy", _numpy().dtypes, frozen, np.asarray)


def _strict() -> Library:
    strict = _installed("array_api_strict")
    return Library(
        "array_api_strict",
        "array_api_strict",
        ("float64", "float32", "int8"),
        lambda x: strict.asarray(x, copy=True),
        lambda x: np.asarray(x._array),
    )


def _torch() -> Library:
    torch = _installed("torch")

    def array(x: np.ndarray) -> Any:
        if x.dtype.name in NARROW:  # float32 holds every value of these, NaN and infinities included
            return torch.tensor(x.astype(np.float32)).to(getattr(torch, x.dtype.name))
        return torch.tensor(x)

    def values(x: Any) -> np.ndarray:
        x = x.detach()
        narrow = name_of(x.dtype) in NARROW
        found = x.to(torch.float32).numpy() if narrow else x.numpy()
        return found.astype(numpy_dtype(name_of(x.dtype))) if narrow else found

    return Library("torch", "torch", _numpy().dtypes, array, values)


def _jax() -> Library:
    jax = _installed("jax")
    jax.config.update("jax_enable_x64", True)
    return Library("jax", "jax", _numpy().dtypes, jax.numpy.asarray, np.asarray, lambda f, *arrays: jax.jit(f)(*arrays))


def _dask() -> Library:
    dask_array = _installed("dask.array")

    def values(x: Any) -> np.ndarray:
        assert isinstance(x, dask_array.Array)  # computed by the caller's wish alone
        with np.errstate(all="ignore"):
            return np.asarray(x.compute(scheduler="synchronous"))

    return Library("dask", "dask", _numpy().dtypes, dask_array.from_array, values)


def _cupy() -> Library:
    cupy = _installed("cupy")
    if not cupy.is_available():
        pytest.skip("cupy finds no CUDA device")
    return Library("cupy", "cupy", ("float64", "float32", "float16", "int8"), cupy.asarray, cupy.asnumpy)


def _installed(module: str) -> Any:
    pytest.importorskip(module, reason=f"{module} is not installed")
    return importlib.import_module(module)
