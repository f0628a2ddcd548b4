"""Libraries that may not be there, not without a GPU, or not after a fork: stand-ins that note what they are asked.

`make mutants` leaves out the tests that have such a library's name in theirs; none of these has.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn._core import arrays, jax_casts
from tests.messages import assert_raises


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> Any:
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
    return last


def array_of(module: str, **members: Any) -> Any:
    """An array of a type that the module defines."""
    return type("Array", (), {"__module__": module, "shape": (3,), "dtype": np.dtype("float32"), **members})()


class Zeros:
    """An array that can be of these dtypes alone."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def astype(self, dtype: Any) -> Any:
        """Refuse any other dtype."""
        if np.dtype(dtype).name not in self.names:
            raise TypeError(dtype)
        return self


def test_a_library_is_known_by_the_module_of_its_types() -> None:
    for module, library in (
        ("jaxlib._jax", "jax"),
        ("jax._src.interpreters.partial_eval", "jax"),
        ("cupy._core.core", "cupy"),
        ("dask.array.core", "dask"),
        ("torch", "torch"),
        ("other.things.deep", "other"),
    ):
        x = array_of(module)
        assert arrays.library_of(x) == library
        below = type("Mine", (type(x),), {"__module__": "mine.own"})()
        assert arrays.library_of(below) == (library if library != "other" else "mine")
        assert arrays.is_array(x) is (library != "other")


def test_an_array_of_any_library_that_shares_memory_or_computes_is_one() -> None:
    for name in ("__dlpack__", "__array_namespace__"):
        assert arrays.is_array(array_of("other", **{name: print}))
        for lacks in ("shape", "dtype"):
            assert not arrays.is_array(
                type("Other", (), {name: print, {"shape": "dtype", "dtype": "shape"}[lacks]: 1})()
            )


def test_a_dtype_without_a_name_is_what_it_is_shown_as() -> None:
    shown = type("DType", (), {"__str__": lambda self: "library.module.float32"})()
    assert arrays.dtype_name(array_of("other", dtype=shown)) == "float32"


def test_a_namespace_is_named_after_its_library() -> None:
    for name, library in (
        ("array_api_compat.cupy", "cupy"),
        ("array_api_compat.dask.array", "dask"),
        ("jax.numpy", "jax"),
        ("array_api_strict", "array_api_strict"),
    ):
        assert arrays.library_of_namespace(SimpleNamespace(__name__=name)) == library


class Tracer:
    """What a transformation puts in the place of an array."""

    __module__ = "jax._src.core"
    shape, dtype, device = (3,), np.dtype("float32"), "unknown yet"


class Device:
    """A device."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library that traces, with what refattn reads of it; devices are those that arrays say."""
    monkeypatch.setattr("array_api_compat.device", lambda x: x.device)
    monkeypatch.setattr("array_api_compat.array_namespace", lambda *xs: ("namespace of", *xs))
    config = SimpleNamespace(jax_enable_x64=True)
    return stand_in(monkeypatch, "jax", core=SimpleNamespace(Tracer=Tracer), Device=Device, config=config)


def test_values_of_traced_arrays_cannot_be_read(traced: Any) -> None:
    assert not arrays.readable(Tracer())
    assert arrays.readable(array_of("jaxlib"))
    text = (
        "to_numpy: x must have values that can be read; got one that jax is tracing. Call it outside of jit, vmap and "
        "grad."
    )
    assert_raises(lambda: ra.to_numpy(Tracer()), TypeError, text)


def test_values_of_tasks_are_read_where_they_are_asked_for_alone() -> None:
    x = array_of("dask.array.core", compute=lambda self: np.arange(3))
    assert not arrays.readable(x)
    assert ra.to_numpy(x).tolist() == [0, 1, 2]


def test_a_flag_is_true_where_it_can_be_read_and_is(traced: Any) -> None:
    for yes in (True, False):
        assert arrays.known(array_of("jaxlib", __bool__=lambda self, yes=yes: yes)) is yes
        assert arrays.known(np.asarray(yes)) is yes
        assert arrays.known(array_of("dask", __bool__=lambda self, yes=yes: yes)) is False


def test_a_device_is_none_where_it_is_not_one(traced: Any) -> None:
    one = Device()
    assert arrays.device(array_of("jaxlib", device=one)) is one
    assert arrays.device(Tracer()) is None
    # Other libraries' words are their own.
    assert arrays.device(array_of("cupy", device="gpu 1")) == "gpu 1"


def test_an_array_without_a_device_goes_with_any_other(traced: Any) -> None:
    x, y, t = array_of("jaxlib", device=Device()), array_of("jaxlib", device=Device()), Tracer()
    assert arrays.array_namespace("f", query=t, key=None, value=x) == ("namespace of", t, x)
    assert arrays.array_namespace("f", query=x, key=t) == ("namespace of", x, t)
    text = (
        f"f: query and value must be on one device; got query on {x.device} and value on {y.device}. Move one of them."
    )
    assert_raises(lambda: arrays.array_namespace("f", query=x, key=t, value=y), TypeError, text)


def test_a_session_without_float64_is_refused(traced: Any) -> None:
    traced.config.jax_enable_x64 = False
    text = (
        "f: JAX arrays must be computed in float64, which this JAX session has switched off; got "
        "jax_enable_x64=False. Call inside `with jax.enable_x64():`."
    )
    assert_raises(lambda: arrays.array_namespace("f", query=Tracer()), TypeError, text)
    x = array_of("cupy", device=0)
    assert arrays.array_namespace("f", query=x) == ("namespace of", x)


def test_positions_stay_on_the_host_for_a_library_of_tasks() -> None:
    index = np.array([2, 0])
    asked: list[Any] = []

    def take(x: Any, index: Any, axis: int) -> Any:
        asked.append((index, axis))
        return np.take(x, index, axis=axis)

    def asarray(index: Any, device: Any) -> Any:
        asked.append(device)
        return index.tolist()

    x = np.arange(6.0).reshape(2, 3)
    for name, given in (("dask.array", [(index, -1)]), ("other", ["cpu", ([2, 0], -1)])):
        asked.clear()
        xp = SimpleNamespace(__name__=f"array_api_compat.{name}", take=take, asarray=asarray)
        assert arrays.taken(x, index, -1, xp).tolist() == [[2, 0], [5, 3]]
        assert asked == given


def test_narrow_dtypes_are_those_of_numpy_where_the_library_computes_with_them() -> None:
    of_numpy = np.dtype(ml_dtypes.bfloat16)
    for library, found in (("numpy", of_numpy), ("dask.array", of_numpy), ("torch", None), ("jax.numpy", None)):
        xp = SimpleNamespace(__name__=f"array_api_compat.{library}", float32="own", zeros=lambda shape: Zeros())
        got = arrays.dtype_of("bfloat16", xp)
        assert (got if got is None else np.dtype(got)) == found
        assert arrays.dtype_of("float32", xp) == "own"
        assert arrays.dtype_of("float48", xp) is None
    # Not in ml_dtypes, but in NumPy.
    assert arrays.dtype_of("float16", SimpleNamespace(__name__="dask.array")) is np.float16


def test_a_gpu_library_has_the_dtypes_that_it_can_make() -> None:
    shapes: list[Any] = []

    def zeros(shape: Any) -> Zeros:
        shapes.append(shape)
        return Zeros("bfloat16")

    xp = SimpleNamespace(__name__="array_api_compat.cupy", zeros=zeros)
    assert arrays.dtype_of("bfloat16", xp) is ml_dtypes.bfloat16
    assert arrays.dtype_of("float8_e5m2", xp) is None
    assert set(shapes) == {(1,)}


@pytest.mark.parametrize("error", [KeyError, TypeError, ValueError])
def test_a_gpu_library_may_refuse_in_any_words(error: type[Exception]) -> None:
    def astype(dtype: Any) -> Any:
        raise error(dtype)

    xp = SimpleNamespace(__name__="array_api_compat.cupy", zeros=lambda shape: SimpleNamespace(astype=astype))
    assert arrays.dtype_of("bfloat16", xp) is None


def of_compiler(**members: Any) -> Any:
    """The namespace of a library whose casts are refattn's own, with what NumPy has."""
    return SimpleNamespace(__name__="jax.numpy", abs=np.abs, where=np.where, **members)


def test_formats_whose_small_numbers_a_compiler_loses_have_casts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(jax_casts, "to_float64", lambda name: (asked.append(name), lambda x: ("cast", x))[1])

    def astype(x: Any, dtype: Any, copy: bool) -> Any:
        return ("astype", x, dtype, copy)

    xp = of_compiler(float64="float64", astype=astype)
    x, y = np.ones(2, np.float32), np.ones(2, np.float16)
    assert arrays.float64(x, xp) == ("cast", x)
    assert asked == ["float32"]
    assert arrays.float64(y, xp) == ("astype", y, "float64", False)
    xp.__name__ = "array_api_compat.numpy"
    assert arrays.float64(x, xp) == ("astype", x, "float64", False)


def test_a_compiler_gets_what_it_rounds_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(jax_casts, "from_float64", lambda *given: (asked.append(given), lambda x: x.copy())[1])
    x = np.array([1 + 2.0**-8 + 2.0**-40, 247.9, 248.0, 460.0, 464.0, 465.0, -465.0, np.inf])
    for name, precision in (("bfloat16", 8), ("float32", 24), ("float8_e5m2", 3)):
        asked.clear()
        assert arrays.round_to(x, name, of_compiler()).tolist() == x.tolist()
        assert asked == [(name, precision)]
    # Past the tie behind the largest number these have NaN, not infinity.
    for name, most in (("float8_e4m3fn", 464.0), ("float8_e4m3fnuz", np.nextafter(248.0, 0.0))):
        got = arrays.round_to(x, name, of_compiler())
        np.testing.assert_array_equal(got, np.where(np.abs(x) > most, np.nan, x))


def refuse(*_: Any, **given: Any) -> Any:
    """What no way should lead to."""
    raise BufferError(given)


def test_arrays_come_to_the_host_in_the_librarys_own_way(traced: Any) -> None:
    x = np.arange(3.0)
    assert ra.to_numpy(array_of("cupy", get=lambda self: x)) is x
    assert ra.to_numpy(array_of("array_api_strict._array_object", _array=x)) is x
    # NumPy's exchange by DLPack has no bfloat16.
    own = array_of("jaxlib", __array__=lambda self, dtype=None, copy=None: x, __dlpack__=refuse)
    assert ra.to_numpy(own) is x
    assert ra.to_numpy(array_of("other", __array_namespace__=print, __array__=lambda self, **_: x)) is x

    def dlpack(self: Any, **given: Any) -> Any:
        return x.__dlpack__(**given)

    shared = array_of("other", __dlpack__=dlpack, __dlpack_device__=lambda self: x.__dlpack_device__())
    assert np.shares_memory(ra.to_numpy(shared), x)


def test_a_device_is_put_on_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "jax", device_put=lambda x, device: (x, device))
    x = np.ones(3)
    assert ra.from_numpy(x, library="jax", device="second") == (x, "second")
    assert ra.from_numpy(x, library="jax")[1] is None


def test_a_gpu_library_is_asked_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    on: list[Any] = []
    cuda = SimpleNamespace(Device=lambda n: (on.append(n), nullcontext())[1])
    members = {"asarray": lambda x: ("cupy", x), "cuda": cuda, "float32": np.float32, "zeros": lambda shape: Zeros()}
    stand_in(monkeypatch, "cupy", **members)
    x = np.ones(3, np.float32)
    assert ra.from_numpy(x, library="cupy", device=1) == ("cupy", x)
    assert on == [1]
    text = "from_numpy: array must have a dtype that cupy has; got bfloat16."
    assert_raises(lambda: ra.from_numpy(np.ones(3, ml_dtypes.bfloat16), library="cupy"), TypeError, text)


def test_a_library_of_tasks_is_given_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "dask.array", from_array=lambda x: ("dask", x))
    x = np.ones(3)
    assert ra.from_numpy(x, library="dask") == ("dask", x)
