"""The way of values between array libraries, bit for bit, and the one rounding of results."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn._core import arrays
from tests.namespaces import NARROW, Library, library, name_of, numpy_dtype

WIDE = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool", "complex64")


def patterns(name: str) -> np.ndarray:
    """Every bit pattern of a dtype of one or two bytes, read-only; of a wider one, drawn patterns."""
    dtype = numpy_dtype(name)
    if dtype.itemsize <= 2 and name != "bool":
        x = np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    elif name == "bool":
        x = np.array([False, True])
    else:
        x = np.frombuffer(np.random.default_rng(0).bytes(512 * dtype.itemsize), dtype=dtype)
    x.setflags(write=False)
    return x


def bits(x: np.ndarray) -> bytes:
    """The memory of an array in C order."""
    return np.ascontiguousarray(x).tobytes()


def of_torch(name: str) -> Any:
    """Every bit pattern in a torch tensor, made from bytes."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    return torch.frombuffer(bytearray(bits(patterns(name))), dtype=getattr(torch, name))


@pytest.mark.parametrize("name", NARROW + WIDE)
def test_torch_to_numpy_keeps_every_bit(name: str) -> None:
    got = ra.to_numpy(of_torch(name))
    assert got.dtype == numpy_dtype(name)
    assert bits(got) == bits(patterns(name))


@pytest.mark.parametrize("name", NARROW + WIDE)
def test_numpy_to_torch_keeps_every_bit(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    got = ra.from_numpy(patterns(name), library="torch")
    assert name_of(got.dtype) == name
    # Compared as bytes inside torch, by no code of refattn.
    assert torch.equal(got.view(torch.uint8), of_torch(name).view(torch.uint8))


@pytest.mark.parametrize("name", NARROW + WIDE[:-1])
def test_jax_keeps_every_bit_both_ways(name: str) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with jax.enable_x64():
        x = ra.from_numpy(patterns(name), library="jax")
        assert x.dtype == numpy_dtype(name)
        assert bits(ra.to_numpy(x)) == bits(patterns(name)) == bits(np.asarray(x))


@pytest.mark.parametrize("name", ["float32", "float64", "int8", "int64", "bool", "complex64"])
def test_strict_keeps_every_bit_both_ways(name: str) -> None:
    x = ra.from_numpy(patterns(name), library="array_api_strict")
    assert name_of(x.dtype) == name
    assert bits(ra.to_numpy(x)) == bits(patterns(name))


@pytest.mark.parametrize("name", NARROW + WIDE)
def test_numpy_is_left_as_it_is(name: str) -> None:
    x = patterns(name)
    assert ra.to_numpy(x) is x
    assert ra.from_numpy(x, library="numpy") is x
    assert ra.from_numpy(x, like=np.zeros(1)) is x


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float32"])
@pytest.mark.parametrize("order", ["strided", "T", "expanded", "0-d", "empty"])
def test_strides_of_torch_do_not_matter(name: str, order: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.arange(24, dtype=torch.float32).reshape(4, 6).to(getattr(torch, name))
    x = {"strided": x[::2, 1:], "T": x.T, "expanded": x[:, :1].expand(4, 6), "0-d": x[0, 0], "empty": x[:0]}[order]
    got = ra.to_numpy(x)
    assert got.shape == tuple(x.shape)
    assert got.astype(np.float64).tolist() == x.to(torch.float64).tolist()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "float32"])
@pytest.mark.parametrize("order", ["strided", "T", "0-d", "empty", "read-only"])
def test_strides_of_numpy_do_not_matter(name: str, order: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    x = np.arange(24.0).reshape(4, 6).astype(numpy_dtype(name))
    x.setflags(write=order != "read-only")
    x = {"strided": x[::2, 1:], "T": x.T, "0-d": x[0, 0], "empty": x[:0], "read-only": x}[order]
    got = ra.from_numpy(np.asarray(x), library="torch")
    assert tuple(got.shape) == x.shape
    assert bits(ra.to_numpy(got)) == bits(np.asarray(x))


def test_gradients_and_lazy_bits_are_left_behind() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert ra.to_numpy(x).astype(float).tolist() == [1.0, 2.0]
    assert ra.to_numpy(torch.tensor([1j]).conj()).tolist() == [-1j]
    assert ra.to_numpy(torch.tensor([1.0]).to(torch.complex64).mul(1j).conj().imag).tolist() == [-1.0]


@pytest.mark.parametrize("name", ["numpy", "torch", "array_api_strict"])
def test_like_takes_library_and_device(name: str) -> None:
    lib = library(name)
    like = lib.array(np.zeros(2))
    got = ra.from_numpy(np.ones(3, dtype=np.float32), like=like)
    assert type(got) is type(like)
    assert arrays.device(got) == arrays.device(like)


def test_dask_is_computed() -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x = np.arange(6.0).reshape(2, 3)
    assert bits(ra.to_numpy(ra.from_numpy(x, library="dask"))) == bits(x)
    assert bits(ra.to_numpy(da.from_array(x, chunks=1) + 0)) == bits(x)


def test_no_library_is_imported_that_the_caller_has_not() -> None:
    code = (
        "import sys, numpy, refattn as ra\n"
        "x = numpy.ones((1, 2, 2))\n"
        "ra.to_numpy(x); ra.from_numpy(x, library='numpy'); ra.attention(x, x, x, is_causal=True)\n"
        "found = {'torch', 'jax', 'cupy', 'dask', 'array_api_strict', 'scipy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


TARGETS = ("float32", "float16", *NARROW[:5])


def finite_values(name: str) -> np.ndarray:
    """The non-negative finite values of a format in order; of float32 those around 2,000 drawn ones."""
    if name == "float32":
        drawn = np.abs(np.frombuffer(np.random.default_rng(1).bytes(8000), dtype=np.float32))
        edges = [0.0, np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).tiny, np.finfo(np.float32).max]
        x = np.concatenate([drawn[np.isfinite(drawn)], np.array(edges, np.float32)])
        with np.errstate(over="ignore"):
            x = np.concatenate([x, np.nextafter(x, np.float32(math.inf)), np.nextafter(x, np.float32(0))])
    else:
        x = patterns(name)
    with np.errstate(invalid="ignore"):  # signalling NaN among the patterns
        wide = x.astype(np.float64)
    return np.unique(np.abs(wide[np.isfinite(wide)]))


def rounding_cases(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(x, what it rounds to in float64, overflow as inf): all values, and all midpoints and what lies close to them.

    The value after the largest is the next that its exponent would hold; what rounds there overflows.
    """
    v = finite_values(name)
    if name == "float32":  # neighbours only
        with np.errstate(over="ignore"):
            after = np.nextafter(v.astype(np.float32), np.float32(math.inf)).astype(np.float64)
        after[np.isinf(after)] = 2.0**128
        low, high = v, after
    else:
        low, high = v, np.append(v[1:], 2 * v[-1] - v[-2])
    top = high.max()
    middle = (low + high) / 2
    even = (low / (high - low)) % 2 == 0  # the last bit of the lower one; the tie goes to the even one
    near = [2.0**-40, 2.0**-52]
    cases = [(v, v), (middle, np.where(even, low, high))]
    cases += [(middle * (1 - e), low) for e in near] + [(middle * (1 + e), high) for e in near]
    x, want = (np.concatenate(column) for column in zip(*cases, strict=True))
    want = np.where(want >= top, math.inf, want)
    x, want = np.append(x, [math.inf, 1e300, 5e-324, 1e-60]), np.append(want, [math.inf, math.inf, 0.0, 0.0])
    return np.concatenate([x, -x]), np.concatenate([want, -want])


def rounded(x: np.ndarray, name: str, lib: Library) -> np.ndarray:
    """round_to in the library's arrays, as float64."""
    xp = arrays.array_namespace("test", x=lib.array(x))
    with np.errstate(all="ignore"):
        got = lib.call(lambda x: arrays.round_to(x, name, xp), lib.array(x))
        assert name_of(got.dtype) == name
        return lib.values(got).astype(np.float64)


@pytest.mark.parametrize("name", TARGETS)
def test_results_are_rounded_once_and_to_even(every: Library, name: str) -> None:
    if name not in every.dtypes:
        with pytest.raises(TypeError, match=name):
            ra.attention(*[every.array(np.zeros((1, 1, 1)))] * 3, dtype=name)
        return
    x, want = rounding_cases(name)
    got = rounded(x, name, every)
    zeros_have_signs = "fnuz" not in name
    infinite = np.isinf(numpy_dtype(name).type(math.inf).astype(np.float64))
    lost = np.isinf(want)
    assert (np.isinf(got[lost]) if infinite else np.isnan(got[lost])).all()
    np.testing.assert_array_equal(got[~lost], want[~lost])
    if infinite:
        np.testing.assert_array_equal(got[lost], want[lost])
    if zeros_have_signs:
        np.testing.assert_array_equal(np.signbit(got[~lost]), np.signbit(x[~lost]))


@pytest.mark.parametrize("name", TARGETS)
def test_nan_stays_nan(every: Library, name: str) -> None:
    if name in every.dtypes:
        assert np.isnan(rounded(np.array([math.nan, -math.nan]), name, every)).all()


@given(x=st.floats(allow_nan=False), name=st.sampled_from(TARGETS))
@settings(max_examples=300)
def test_rounding_keeps_order_and_distance(x: float, name: str) -> None:
    lib = library("numpy")
    got = rounded(np.array([x]), name, lib)[0]
    if not math.isfinite(got):
        assert abs(x) >= float(ml_dtypes.finfo(numpy_dtype(name)).max)
        return
    if name == "float32":
        with np.errstate(over="ignore"):
            others = [float(np.nextafter(np.float32(got), np.float32(s))) for s in (-math.inf, math.inf)]
    else:
        others = finite_values(name) * math.copysign(1.0, x)
    assert abs(got - x) <= np.abs(np.array(others) - x).min()


def test_float64_is_not_rounded(every: Library) -> None:
    x = np.array([1 / 3, 5e-324, -0.0, math.inf])
    np.testing.assert_array_equal(rounded(x, "float64", every), x)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float32, "float32"),
        (np.dtype("int16"), "int16"),
        (np.dtype(">f4"), "float32"),
        (np.zeros(1, np.bool_), "bool"),
        (np.zeros(1, ml_dtypes.bfloat16), "bfloat16"),
        (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
        ("anything", "anything"),
        (float, "float64"),
        (np.zeros(1, object), "object"),
    ],
    ids=str,
)
def test_dtype_name(dtype: Any, name: str) -> None:
    assert arrays.dtype_name(dtype) == name


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_dtype_name_of_every_library(every: Library, name: str) -> None:
    x = every.array(np.zeros(2, dtype=name))
    assert arrays.dtype_name(x) == arrays.dtype_name(x.dtype) == name


@pytest.mark.parametrize(
    ("x", "is_one"),
    [
        (np.zeros(1), True),
        (np.zeros(()), True),
        (np.float64(1), False),
        ([1.0], False),
        (1.0, False),
        (None, False),
        ("text", False),
        (np.ma.zeros(1), False),
    ],
    ids=["array", "0-d", "scalar", "list", "number", "none", "text", "masked"],
)
def test_is_array(x: Any, is_one: bool) -> None:
    assert arrays.is_array(x) is is_one


def test_every_library_has_arrays(every: Library) -> None:
    x = every.array(np.zeros(2))
    assert arrays.is_array(x)
    assert arrays.library_of(x) == every.module


def test_a_sparse_matrix_is_no_array() -> None:
    from scipy import sparse

    # It has a shape and a dtype, but none of what an array computes with.
    assert not arrays.is_array(sparse.csr_array((2, 2)))
