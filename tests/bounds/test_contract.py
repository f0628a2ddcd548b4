"""The record of a kernel's numerics: what it refuses, what its presets are, and how it is chosen."""

from __future__ import annotations

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest

from refattn import contract
from refattn.contract import Contract
from refattn.contract.presets import FLASH, preset_calls

PLAIN = contract.flash("float32")

FORMAT_NAMES = (
    "'float64', 'float32', 'tf32', 'float16', 'bfloat16', 'float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', "
    "'float8_e5m2fnuz' or 'float4_e2m1fn'"
)
STORED_NAMES = (
    "'float64', 'float32', 'tf32', 'float16', 'bfloat16', 'float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2' or "
    "'float8_e5m2fnuz'"
)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"accumulate": "rn"}, ValueError, "accumulate must be 'ieee' or 'tensor_core'; got 'rn'."),
        ({"accumulator": "float16"}, ValueError, "accumulator must be 'float32' or 'float64'; got 'float16'."),
        ({"rounding": "up"}, ValueError, "rounding must be 'nearest' or 'toward_zero'; got 'up'."),
        ({"query": "bf16"}, ValueError, f"query must be {FORMAT_NAMES}; got 'bf16'."),
        ({"output": "float4_e2m1fn"}, ValueError, f"output must be {STORED_NAMES}; got 'float4_e2m1fn'."),
        (
            {"probability_scale": "float32"},
            ValueError,
            "probability_scale must be 'e8m0 down', 'e8m0 up' or 'e4m3'; got 'float32'.",
        ),
        ({"probability_block": 0}, ValueError, "probability_block must be at least 1; got 0."),
        ({"rounded_sum": None}, TypeError, "rounded_sum must be True or False; got NoneType."),
        ({"probabilities": None}, ValueError, f"probabilities must be {FORMAT_NAMES}; got None."),
        (
            {"rounded": "query"},
            ValueError,
            "rounded must be a tuple of names among 'query', 'key' and 'value'; got 'query'.",
        ),
        (
            {"rounded": ("q",)},
            ValueError,
            "rounded must be a tuple of names among 'query', 'key' and 'value'; got ('q',).",
        ),
        ({"normalised_probabilities": 1}, TypeError, "normalised_probabilities must be True or False; got int."),
        ({"min_tile": 0}, ValueError, "min_tile must be at least 1; got 0."),
        ({"min_tile": 16.0}, TypeError, "min_tile must be an integer; got float."),
        ({"merges": -1}, ValueError, "merges must be at least 0; got -1."),
        ({"accumulator_bits": 25}, ValueError, "accumulator_bits must be from 2 to 24; got 25."),
        ({"accumulator_terms": 0}, ValueError, "accumulator_terms must be at least 1; got 0."),
        ({"weight_shift": 65}, ValueError, "weight_shift must be from 0 to 64; got 65."),
        ({"exp_ulp": -1.0}, ValueError, "exp_ulp must be finite and at least 0; got -1.0."),
        ({"tanh_ulp": float("inf")}, ValueError, "tanh_ulp must be finite and at least 0; got inf."),
        ({"rescale_ulp": float("nan")}, ValueError, "rescale_ulp must be finite and at least 0; got nan."),
        ({"lazy": 65}, ValueError, "lazy must be from 0 to 64; got 65."),
        ({"ahead": "1"}, TypeError, "ahead must be a number; got str."),
    ],
)
def test_refuses_what_no_kernel_can_have(fields, error, message):
    with pytest.raises(error, match=f"^{re.escape('Contract: ' + message)}$"):
        dataclasses.replace(PLAIN, **fields)


def test_is_frozen_and_compares_by_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.query = "float64"
    assert contract.flash("float32") == PLAIN
    assert hash(contract.flash("float32")) == hash(PLAIN)


def test_every_field_is_documented():
    text = Contract.__doc__
    for field in dataclasses.fields(Contract):
        assert re.search(rf"^ +(\w+, )*{field.name}(, \w+)* : ", text, re.MULTILINE), field.name


@pytest.mark.parametrize("dtype", FLASH)
def test_presets_keep_the_dtype_at_both_ends(dtype):
    for claim in (contract.flash(dtype), contract.eager(dtype)):
        assert {claim.query, claim.key, claim.value, claim.output} == {dtype}
        assert claim.accumulator == ("float64" if dtype == "float64" else "float32")
    assert not contract.flash(dtype).normalised_probabilities
    assert contract.eager(dtype).normalised_probabilities
    assert contract.eager(dtype).scores == dtype


def test_presets_take_dtypes_of_libraries():
    assert contract.flash(ml_dtypes.bfloat16) == contract.flash("bfloat16")
    assert contract.eager(np.dtype("float16")) == contract.eager("float16")


def test_preset_messages():
    with pytest.raises(
        ValueError,
        match=r"^contract\.flash: dtype must be one of float64, float32, float16, bfloat16; got fp16\. For other "
        r"kernels there is tf32\(\), fp8\(output=\), mxfp8\(output=\) and nvfp4\(output=\)\.$",
    ):
        contract.flash("fp16")
    with pytest.raises(
        ValueError, match=r"^contract\.fp8: dtype must be one of .*; got int8\. For other kernels there is "
    ):
        contract.fp8(output="int8")


def test_resolve():
    assert contract.resolve(PLAIN, "bfloat16") is PLAIN
    assert contract.resolve("float16", "bfloat16") == contract.flash("float16")
    assert contract.resolve(None, np.float32) == PLAIN
    assert contract.resolve(None, ml_dtypes.float8_e5m2) == contract.fp8(output="float8_e5m2")
    with pytest.raises(ValueError, match=r"^contract\.flash: dtype must be one of .*; got tf32\."):
        contract.resolve("tf32", "float32")
    with pytest.raises(TypeError, match=r"^contract must be a Contract, a string or None; got float\. Pass one of "):
        contract.resolve(1e-3, "float32")


def test_describe_names_the_preset_once():
    lines = [claim.describe() for _, claim in preset_calls()]
    for (call, _), line in zip(preset_calls(), lines, strict=True):
        assert line.startswith(f"{call}: ")
        assert "\n" not in line
    assert len(set(lines)) == len(lines)


def test_describe_says_what_differs():
    assert contract.tf32().describe() == (
        "tf32(): q, k, v tf32 (q, k, v cut off), scores float32, weights tf32, tensor_core float32, output float32"
    )
    mixed = dataclasses.replace(contract.fp8(), value="bfloat16", normalised_probabilities=True)
    assert mixed.describe() == (
        "q, k, v float8_e4m3fn, float8_e4m3fn, bfloat16, scores float32, normalised weights float8_e4m3fn, "
        "tensor_core float32 of 14 bits, output bfloat16"
    )
