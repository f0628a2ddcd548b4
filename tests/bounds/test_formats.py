"""Units and half ulps against the formats themselves: all values of the narrow ones, neighbours of the wide ones."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refattn.contract.formats import FORMATS, half_subnormal, half_ulp, unit
from tests.bounds.emulator import cut, rounded

NARROW = ("float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn")
WIDE = ("float64", "float32")


def _numbers(name):
    """All finite non-negative numbers of a narrow format, in order."""
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    bits = np.arange(2 ** (ml_dtypes.finfo(dtype).bits - 1), dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        x = bits.view(dtype).astype(np.float64)
    return x[np.isfinite(x)]


@pytest.mark.parametrize("name", NARROW)
def test_narrow_formats_number_by_number(name):
    x, form = _numbers(name), FORMATS[name]
    assert (np.diff(x) > 0).all()
    assert x[-1] == form.max
    smallest_normal = 2.0**form.min_exponent
    assert smallest_normal in x
    gaps = np.diff(x)
    assert np.array_equal(half_ulp(x[:-1], name), gaps / 2)
    assert half_subnormal(name) == x[1] / 2
    # The relative error of rounding the middle of two normal neighbours, at its worst.
    normal = x[:-1] >= smallest_normal
    assert (gaps / 2 <= unit(name) * x[:-1])[normal].all()
    assert (gaps / 2 == unit(name) * x[:-1])[normal].any()
    assert (gaps[x[:-1] < smallest_normal] == x[1]).all()


@pytest.mark.parametrize("name", NARROW)
def test_half_ulp_is_what_a_conversion_costs(name):
    rng = np.random.default_rng(0)
    x = _numbers(name)
    top = x[-1] + half_ulp(x[-1], name)
    samples = np.concatenate([rng.choice(x, 2000) * rng.uniform(0.5, 1.5, 2000), (x[:-1] + x[1:]) / 2])
    samples = samples[np.abs(samples) < top].astype(np.float32).astype(np.float64)
    error = np.abs(rounded(samples, name) - samples)
    assert (error <= half_ulp(samples, name)).all()


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "float64"])
def test_half_ulp_is_infinite_where_rounding_overflows(name):
    form = FORMATS[name]
    limit = form.max + half_ulp(form.max, name)
    assert half_ulp(np.nextafter(limit, 0), name) == half_ulp(form.max, name)
    assert half_ulp(limit, name) == math.inf
    if name not in ("tf32", "float32"):
        with np.errstate(over="ignore"):
            assert rounded(np.float32(form.max), name) == form.max
            past = rounded(np.float32(limit) * np.float32(1.001), name)
            # A format without infinity and NaN saturates.
            assert past == form.max if name == "float4_e2m1fn" else not abs(past) <= form.max
    assert half_ulp([math.inf, math.nan, -math.inf], name).tolist() == [math.inf] * 3


@given(st.sampled_from(WIDE), st.floats(0, 1e300))
def test_wide_formats_by_their_neighbours(name, x):
    dtype = np.dtype(name).type
    x = dtype(min(x, float(np.finfo(dtype).max) / 2))
    gap = float(np.nextafter(x, dtype(np.inf))) - float(x)
    assert half_ulp(float(x), name) == max(gap / 2, half_subnormal(name))


@pytest.mark.parametrize("name", WIDE)
def test_wide_formats_by_their_records(name):
    info, form = np.finfo(name), FORMATS[name]
    assert (form.precision, form.min_exponent, form.max) == (info.nmant + 1, info.minexp, float(info.max))
    assert unit(name) == float(info.eps) / 2
    assert half_subnormal(name) == max(float(info.smallest_subnormal) / 2, 5e-324)


@given(st.floats(2.0**-126, 2.0**127, width=32), st.booleans())
def test_tf32_is_float32_with_eleven_bits(x, negative):
    x = np.float32(-x if negative else x)
    near, toward_zero = (float(f(x, "tf32")) for f in (rounded, cut))
    assert abs(near - x) <= unit("tf32") * abs(x)
    assert abs(near - x) <= half_ulp(x, "tf32")
    assert abs(toward_zero) <= abs(x)
    assert abs(toward_zero - x) <= 2 * unit("tf32") * abs(x)
    assert abs(toward_zero) <= FORMATS["tf32"].max
