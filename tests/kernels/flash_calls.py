"""What the tests of the compiled flash kernels share: drawn problems, calls, and the verdict on a result."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import refattn as ra
from refattn._call import Call, prepare
from refattn._core.arrays import quiet
from refattn.methods.flash import kernel_numba
from tests.kernels.gradient_bound import gradient_bound

Arrays = tuple[np.ndarray, ...]
DEFAULTS = {
    "mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None,
    "dropout_mask": None, "dropout_p": 0.0, "dtype": None,
}  # fmt: skip


def drawn(seed: int, lengths=(33, 65), heads=(2, 1), features=(16, 16), batch=(1,), dtype="float32") -> Arrays:
    """Query, key, value and a gradient of the output, N(0, 1)."""
    rng, (L, S), (H, Hk), (E, Ev) = np.random.default_rng(seed), lengths, heads, features
    kind = getattr(ml_dtypes, dtype, dtype)
    shapes = (*batch, H, L, E), (*batch, Hk, S, E), (*batch, Hk, S, Ev), (*batch, H, L, Ev)
    return tuple(rng.standard_normal(shape).astype(kind) for shape in shapes)


def call_of(arrays: Arrays, **given: Any) -> Call:
    """The arguments of a call, checked."""
    return prepare("test", *arrays[:3], **(DEFAULTS | given))


@quiet
def forward(arrays: Arrays, tile=(None, None), threads=2, **given: Any) -> Any:
    """Output and log-sum-exp."""
    return kernel_numba.forward(call_of(arrays, **given), *tile, threads)


@quiet
def decode(arrays: Arrays, splits=None, threads=2, **given: Any) -> Any:
    """Output and log-sum-exp, the keys in parts."""
    return kernel_numba.decode(call_of(arrays, **given), splits, threads)


@quiet
def backward(arrays: Arrays, tile=(None, None), threads=2, grad_lse=None, **given: Any) -> Any:
    """Gradients of query, key, value, bias and sinks."""
    call = call_of(arrays, **given)
    output, lse = kernel_numba.forward(call, None, None, threads)
    return kernel_numba.backward(call, output, lse, arrays[3], grad_lse, *tile, threads)


def assert_within_the_bound(result: Any, arrays: Arrays, **given: Any) -> None:
    """The result is what the contract of these kernels allows it to be, in its accumulation dtype."""
    output, lse = result
    name = output.dtype.name
    verdict = ra.testing.check(output, *arrays[:3], lse=lse, contract=ra.contract.numba(name), **given)
    assert verdict.passed, verdict.text
    assert max(verdict.budget_used, verdict.lse_budget_used or 0) <= 1


def assert_same_bits(a: Any, b: Any) -> None:
    """Two results are the same arrays, NaN where the other is NaN."""
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(x, y)


def assert_gradients(found: Any, arrays: Arrays, *, grad_lse=None, **given: Any) -> None:
    """Gradients within the bound that follows from the kernels' contract."""
    wide = [x.astype(np.float64) for x in arrays]
    grad_lse = None if grad_lse is None else grad_lse.astype(np.float64)
    want = ra.attention_gradient(wide[3], *wide[:3], grad_lse=grad_lse, **given)
    allowed = gradient_bound(call_of(wide, **given), wide[3], grad_lse, found[0].dtype.name)
    for name, x, y, radius in zip(want._fields, found, want, allowed, strict=True):
        if y is None:
            continue
        x, radius = summed(x, y.shape), summed(radius, y.shape)
        assert np.array_equal(np.isnan(x), np.isnan(y)), name
        used = np.nan_to_num(np.abs(x - y) / np.maximum(radius, 1e-300), nan=0.0)
        assert used.max(initial=0.0) <= 1, (name, used.max())


def summed(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of an array that was broadcast from a shape."""
    full = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(axis for axis, n in enumerate(full) if n == 1 != x.shape[axis])
    return x.sum(axis=axes, keepdims=True).reshape(shape)
