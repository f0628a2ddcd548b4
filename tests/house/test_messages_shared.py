"""The whole text of every message about the arguments that all functions of softmax attention share."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn import biases, masks
from tests.messages import ANY, K, Q, Unfit, V, assert_raises, attend

# What the functions say of the arguments that they share.
SHARED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    # kinds and dtypes of arrays
    ("a list", {"query": [[[1.0]]]}, TypeError, f"query {ANY} list."),
    ("no array at all", {"key": None}, TypeError, f"key {ANY} NoneType."),
    ("a number", {"value": 1.0}, TypeError, f"value {ANY} float."),
    ("a scalar", {"value": np.float64(1)}, TypeError, f"value {ANY} float64."),
    ("a shape without cells", {"query": Unfit()}, TypeError, f"query {ANY} Unfit."),
    ("a masked array", {"query": np.ma.masked_array(Q)}, TypeError, f"query {ANY} MaskedArray."),
    (
        "object",
        {"query": Q.astype(object)},
        TypeError,
        "query must have a real floating-point or integer dtype; got object.",
    ),
    ("complex", {"key": K + 0j}, TypeError, "key must have a real floating-point or integer dtype; got complex128."),
    ("bool", {"value": V > 0}, TypeError, "value must have a real floating-point or integer dtype; got bool."),
    (
        "string",
        {"key": np.full(K.shape, "x")},
        TypeError,
        "key must have a real floating-point or integer dtype; got str32.",
    ),
    (
        "time",
        {"key": np.zeros(K.shape, "m8[s]")},
        TypeError,
        "key must have a real floating-point or integer dtype; got timedelta64[s].",
    ),
    (
        "integer without dtype",
        {"query": Q.astype(np.int8)},
        TypeError,
        (
            "dtype must be given where query is int8, which is no dtype for a result. Pass dtype='float32' or the namespace's "
            "own dtype."
        ),
    ),
    (
        "float8 without dtype",
        {"query": Q.astype(ml_dtypes.float8_e4m3fn)},
        TypeError,
        (
            "dtype must be given where query is float8_e4m3fn, which is no dtype for a result. Pass dtype='float32' or the "
            "namespace's own dtype."
        ),
    ),
    # shapes
    (
        "a query of rank 2",
        {"query": Q[0, 0]},
        ValueError,
        "query must have at least 3 axes (..., H, L, E); got (3, 8).",
    ),
    ("a key of rank 1", {"key": K[0, 0, 0]}, ValueError, "key must have at least 3 axes (..., Hk, S, E); got (8,)."),
    (
        "a value of rank 0",
        {"value": np.zeros(())},
        ValueError,
        "value must have at least 3 axes (..., Hk, S, Ev); got ().",
    ),
    (
        "lengths of key and value",
        {"value": V[:, :, :4]},
        ValueError,
        "key and value must have the same length S (axis -2); got key (2, 2, 5, 8) and value (2, 2, 4, 6).",
    ),
    (
        "features of query and key",
        {"query": Q[..., :7]},
        ValueError,
        "query and key must have the same number of features E (axis -1); got query (2, 4, 3, 7) and key (2, 2, 5, 8).",
    ),
    (
        "no features",
        {"query": Q[..., :0], "key": K[..., :0]},
        ValueError,
        "query must have at least one feature E (axis -1); got (2, 4, 3, 0).",
    ),
    (
        "heads of key and value",
        {"value": V[:, :1]},
        ValueError,
        "key and value must have the same number of heads Hk (axis -3); got key (2, 2, 5, 8) and value (2, 1, 5, 6).",
    ),
    (
        "heads that do not divide",
        {"query": Q[:, :3]},
        ValueError,
        "the number of query heads H (axis -3) must be a positive multiple of the number of key heads Hk; got H=3 and Hk=2.",
    ),
    (
        "no heads",
        {"query": Q[:, :0]},
        ValueError,
        "the number of query heads H (axis -3) must be a positive multiple of the number of key heads Hk; got H=0 and Hk=2.",
    ),
    (
        "batch axes",
        {"query": Q[:1]},
        ValueError,
        (
            "query, key and value must have the same batch axes (all before axis -3); got query (1, 4, 3, 8), key (2, 2, 5, 8) "
            "and value (2, 2, 5, 6)."
        ),
    ),
    # numbers
    ("scale of NaN", {"scale": math.nan}, ValueError, "scale must be finite in float64; got nan."),
    ("infinite scale", {"scale": -math.inf}, ValueError, "scale must be finite in float64; got -inf."),
    ("scale past float64", {"scale": 10**400}, ValueError, "scale must be finite in float64; got inf."),
    ("scale past -float64", {"scale": -(10**400)}, ValueError, "scale must be finite in float64; got -inf."),
    ("scale of True", {"scale": True}, TypeError, "scale must be a real number or None; got bool."),
    ("scale of text", {"scale": "0.5"}, TypeError, "scale must be a real number or None; got str."),
    ("complex scale", {"scale": np.complex128(1)}, TypeError, "scale must be a real number or None; got complex128."),
    ("an array as scale", {"scale": np.array(0.5)}, TypeError, "scale must be a real number or None; got ndarray."),
    ("softcap of 0", {"softcap": 0}, ValueError, "softcap must be positive; got 0. Pass None for no softcap."),
    (
        "negative softcap",
        {"softcap": -1.5},
        ValueError,
        "softcap must be positive; got -1.5. Pass None for no softcap.",
    ),
    ("softcap of NaN", {"softcap": math.nan}, ValueError, "softcap must be finite in float64; got nan."),
    ("softcap of False", {"softcap": False}, TypeError, "softcap must be a real number or None; got bool."),
    # flags
    ("is_causal of 1", {"is_causal": 1}, TypeError, "is_causal must be True or False; got int."),
    ("is_causal of None", {"is_causal": None}, TypeError, "is_causal must be True or False; got NoneType."),
    ("return_lse of an array", {"return_lse": np.ones(2)}, TypeError, "return_lse must be True or False; got ndarray."),
    # masks
    (
        "ambiguous causal",
        {"is_causal": True},
        ValueError,
        'is_causal=True is ambiguous for L=3, S=5. Pass mask=masks.causal(anchor="lower_right") or anchor="upper_left".',
    ),
    (
        "ambiguous causal mask",
        {"mask": masks.causal()},
        ValueError,
        'masks.causal() is ambiguous for L=3, S=5. Pass anchor="lower_right" or anchor="upper_left".',
    ),
    (
        "a mask that is a list",
        {"mask": [[True] * 5] * 3},
        TypeError,
        "mask must be a Mask or a boolean array; got list.",
    ),
    ("a mask that is a word", {"mask": "causal"}, TypeError, "mask must be a Mask or a boolean array; got str."),
    (
        "a float mask",
        {"mask": np.zeros((3, 5), np.float32)},
        TypeError,
        "mask must be boolean, True where a key takes part; got float32. Pass an additive mask as bias=.",
    ),
    (
        "an integer mask",
        {"mask": np.ones((3, 5), int)},
        TypeError,
        "mask must be boolean, True where a key takes part; got int64.",
    ),
    (
        "a flat mask",
        {"mask": np.ones(5, bool)},
        ValueError,
        "mask must have the axes L and S, (..., L, S); got shape (5,).",
    ),
    (
        "a mask of other lengths",
        {"mask": np.ones((3, 4), bool)},
        ValueError,
        "mask must have the shape (..., L, S), or 1 for either, with L=3 and S=5; got (3, 4).",
    ),
    (
        "a mask of other heads",
        {"mask": np.ones((3, 3, 5), bool)},
        ValueError,
        "mask must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (3, 1, 1).",
    ),
    (
        "a mask of too many axes",
        {"mask": np.ones((1, 1, 1, 3, 5), bool)},
        ValueError,
        "mask must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (1, 1, 1, 1, 1).",
    ),
    (
        "lengths past the end",
        {"mask": masks.lengths([5, 6])},
        ValueError,
        "key of masks.lengths must be at most S=5; got 6.",
    ),
    # biases
    ("a bias that is a list", {"bias": [[0.0] * 5] * 3}, TypeError, f"bias {ANY} list."),
    ("a bias that is a Mask", {"bias": masks.window(1, 1, 0)}, TypeError, f"bias {ANY} Band."),
    (
        "an integer bias",
        {"bias": np.zeros((3, 5), int)},
        TypeError,
        "bias must have a real floating-point dtype; got int64.",
    ),
    (
        "a boolean bias",
        {"bias": np.ones((3, 5), bool)},
        TypeError,
        "bias must have a real floating-point dtype; got bool.",
    ),
    (
        "a bias with NaN",
        {"bias": np.full((3, 5), math.nan)},
        ValueError,
        "bias must be finite, or -inf where a cell is masked; got NaN or +inf. Pass mask= for cells that take no part.",
    ),
    (
        "a bias of +inf",
        {"bias": np.array([[0, 0, math.inf, 0, 0]])},
        ValueError,
        "bias must be finite, or -inf where a cell is masked; got NaN or +inf. Pass mask= for cells that take no part.",
    ),
    (
        "a bias of other lengths",
        {"bias": np.zeros((5, 3))},
        ValueError,
        "bias must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (5, 3).",
    ),
    (
        "a flat bias",
        {"bias": np.zeros(5)},
        ValueError,
        "bias must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (5,).",
    ),
    (
        "slopes of other heads",
        {"bias": biases.alibi(3, anchor=0)},
        ValueError,
        "bias must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (3, 1, 1).",
    ),
    (
        "ambiguous alibi",
        {"bias": biases.alibi(4)},
        ValueError,
        "biases.alibi() is ambiguous for L=3, S=5. Pass anchor='lower_right' or anchor='upper_left'.",
    ),
    # sinks
    (
        "sinks of other heads",
        {"sinks": np.zeros(2)},
        ValueError,
        "sinks must have one logit per query head, shape (H,)=(4,); got (2,).",
    ),
    (
        "sinks of a batch",
        {"sinks": np.zeros((2, 4))},
        ValueError,
        "sinks must have one logit per query head, shape (H,)=(4,); got (2, 4).",
    ),
    ("a number of sinks", {"sinks": 0.0}, TypeError, f"sinks {ANY} float."),
    (
        "integer sinks",
        {"sinks": np.zeros(4, int)},
        TypeError,
        "sinks must have a real floating-point dtype; got int64.",
    ),
    (
        "a sink of NaN",
        {"sinks": np.array([0, math.nan, 0, 0])},
        ValueError,
        "sinks must be finite, or -inf for a head without one; got NaN or +inf.",
    ),
    (
        "a sink of +inf",
        {"sinks": np.array([0, math.inf, 0, 0])},
        ValueError,
        "sinks must be finite, or -inf for a head without one; got NaN or +inf.",
    ),
    # dropout
    (
        "dropout without its mask",
        {"dropout_p": 0.25},
        ValueError,
        (
            "dropout_mask must be given with dropout_p=0.25: which weights a kernel drops is its own choice. Pass the mask "
            "that it used, True where the weight was kept."
        ),
    ),
    ("all dropped", {"dropout_p": 1.0}, ValueError, "dropout_p must be at least 0 and below 1; got 1.0."),
    ("a negative share", {"dropout_p": -0.5}, ValueError, "dropout_p must be at least 0 and below 1; got -0.5."),
    ("a share of NaN", {"dropout_p": math.nan}, ValueError, "dropout_p must be finite in float64; got nan."),
    ("no share", {"dropout_p": None}, TypeError, "dropout_p must be a real number; got NoneType."),
    (
        "a dropout mask of numbers",
        {"dropout_mask": np.ones((3, 5))},
        TypeError,
        "dropout_mask must be boolean, True where a key takes part; got float64. Pass an additive mask as bias=.",
    ),
    (
        "a list as dropout mask",
        {"dropout_mask": [True]},
        TypeError,
        "dropout_mask must be a Mask or a boolean array; got list.",
    ),
    (
        "a dropout mask of other lengths",
        {"dropout_mask": np.ones((5, 3), bool)},
        ValueError,
        "dropout_mask must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (5, 3).",
    ),
    (
        "a dropout rule of other heads",
        {"dropout_mask": masks.from_function(lambda b, h, q, kv: q > h, heads=3)},
        ValueError,
        "dropout_mask must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (3, 1, 1).",
    ),
    # dtypes of the output
    ("no such dtype", {"dtype": "float31"}, TypeError, "dtype must be a real floating-point dtype; got float31."),
    ("an integer dtype", {"dtype": np.int32}, TypeError, "dtype must be a real floating-point dtype; got int32."),
    ("a complex dtype", {"dtype": complex}, TypeError, "dtype must be a real floating-point dtype; got complex128."),
    (
        "an abstract dtype",
        {"dtype": np.floating},
        TypeError,
        "dtype must be a real floating-point dtype; got floating.",
    ),
    ("a number as dtype", {"dtype": 32}, TypeError, "dtype must be a real floating-point dtype; got 32."),
    (
        "a dtype of scales",
        {"dtype": "float8_e8m0fnu"},
        TypeError,
        "dtype must be a real floating-point dtype; got float8_e8m0fnu.",
    ),
]


FUNCTIONS = (
    "attention",
    "attention_rows",
    "attention_gradient",
    "flash_attention",
    "flash_attention_gradient",
    "flash_decode",
    "linear_attention",
    "linear_attention_gradient",
)
CASES = [
    pytest.param(function, *case, id=f"{name}-{function}")
    for function in FUNCTIONS
    for name, *case in SHARED
    if set(case[0]) - {"query", "key", "value"} <= set(getattr(ra, function).capabilities.arguments)
]


@pytest.mark.parametrize(("function", "arguments", "error", "text"), CASES)
def test_shared_argument(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_raises(lambda: attend(function, **arguments), error, f"{function}: {text}")
