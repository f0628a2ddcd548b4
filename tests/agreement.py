"""Whether two results agree within a radius that was computed from the data."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from tests.namespaces import numpy_dtype


def half_ulp(x: np.ndarray, dtype: str) -> np.ndarray:
    """The most that rounding to the dtype can move a number of size |x|; 0 for float64, in which results are made."""
    if dtype == "float64":
        return np.zeros(np.shape(x))
    info = ml_dtypes.finfo(numpy_dtype(dtype))
    relative = np.abs(x) * 2.0 ** -(info.nmant + 1)
    return np.maximum(relative, float(info.smallest_subnormal) / 2)


def misses(
    got: Any, want: np.ndarray, radius: np.ndarray, *, held: np.ndarray | bool = True, dtype: str = "float64"
) -> np.ndarray:
    """Where `got` is not what `want` +- `radius`, rounded to the dtype, allows.

    NaN and infinities must be where they are wanted. A finite number is wanted finite even where the radius is
    infinite; only where float64 does not hold what leads to it (`held`) anything goes.
    """
    got = np.asarray(got).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        allowed = radius + half_ulp(np.abs(want) + radius, dtype)
        off = ~(np.abs(got - want) <= allowed) | ~np.isfinite(got)
        largest = float(ml_dtypes.finfo(numpy_dtype(dtype)).max)
        overflows = (np.abs(want) + allowed > largest) & ~np.isfinite(got)
        special = ~np.isfinite(want)
        same = np.isnan(want) & np.isnan(got) | (want == got)
        # Formats without infinity turn it into NaN.
        same |= np.isinf(want) & np.isnan(got) & _no_infinity(dtype)
        off = np.where(special, ~same, off & ~overflows)
    return off & np.broadcast_to(held, off.shape)


def assert_agree(
    got: Any,
    want: np.ndarray,
    radius: np.ndarray,
    *,
    held: np.ndarray | bool = True,
    dtype: str = "float64",
    what: str = "result",
) -> None:
    """Raise with the first cell in which two results do not agree."""
    assert np.shape(got) == np.shape(want), f"{what}: shape {np.shape(got)}, wanted {np.shape(want)}"
    off = misses(got, want, radius, held=held, dtype=dtype)
    if off.any():
        at = tuple(np.argwhere(off)[0].tolist())
        raise AssertionError(
            f"{what}{list(at)}: got {np.asarray(got)[at]}, wanted {want[at]} +- "
            f"{np.broadcast_to(radius, off.shape)[at]} in {dtype}; {np.count_nonzero(off)} of {off.size} cells are off"
        )


def rows_of(held: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A statement about each row (R,), as one about each cell of (R, ...)."""
    return held.reshape(held.shape + (1,) * (like.ndim - held.ndim))


def _no_infinity(dtype: str) -> bool:
    return not math.isinf(float(np.float64(math.inf).astype(numpy_dtype(dtype))))
