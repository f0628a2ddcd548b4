"""The whole text of every message about wrong arguments: `{function}: {argument} {rule}; got {facts}. {What to do.}`"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn import biases, masks

ANY = "must be an array of NumPy, PyTorch, JAX, CuPy, dask or another array API library; got"
ONE = np.zeros((1, 2, 2))
Q, K, V = np.zeros((2, 4, 3, 8)), np.zeros((2, 2, 5, 8)), np.zeros((2, 2, 5, 6))

Case = tuple[str, Callable[[], Any], type[Exception], str]


def attend(function: str = "attention", query: Any = Q, key: Any = K, value: Any = V, **arguments: Any) -> Any:
    """A call of attention or attention_rows."""
    if function == "attention_rows":
        arguments = {"rows": [(0, 0, 0)]} | arguments
    return getattr(ra, function)(query, key, value, **arguments)


class Unfit:
    """No array, though it has a shape."""

    shape = (1, 2, 2)


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


@pytest.mark.parametrize("function", ["attention", "attention_rows"])
@pytest.mark.parametrize(("arguments", "error", "text"), [x[1:] for x in SHARED], ids=[x[0] for x in SHARED])
def test_shared_argument(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_raises(lambda: attend(function, **arguments), error, f"{function}: {text}")


ROWS = "attention_rows: rows must have shape (R, 3), one index for each of query's axes (..., H, L); got"

OWN: list[Case] = [
    # attention
    (
        "an unknown implementation",
        lambda: attend(implementation="cuda"),
        ra.ImplementationError,
        "attention: implementation must be one of 'reference', or None for 'reference'; got 'cuda'.",
    ),
    (
        "an implementation that is no name",
        lambda: attend(implementation=["reference"]),
        ra.ImplementationError,
        "attention: implementation must be one of 'reference', or None for 'reference'; got ['reference'].",
    ),
    (
        "return_weights of None",
        lambda: attend(return_weights=None),
        TypeError,
        "attention: return_weights must be True or False; got NoneType.",
    ),
    (
        "a dtype that strict lacks",
        lambda: ra.attention(*[strict(ONE)] * 3, dtype="float16"),
        TypeError,
        "attention: dtype must be one that array_api_strict has; got float16.",
    ),
    (
        "two libraries",
        lambda: ra.attention(ONE, strict(ONE), ONE),
        TypeError,
        (
            "attention: query and key must come from one array library; got query from numpy and key from array_api_strict. "
            "Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    (
        "a mask of another library",
        lambda: ra.attention(*[strict(ONE)] * 3, mask=np.ones((2, 2), bool)),
        TypeError,
        (
            "attention: query and mask must come from one array library; got query from array_api_strict and mask from numpy. "
            "Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    (
        "sinks of another library",
        lambda: ra.attention(ONE, ONE, ONE, sinks=strict(np.zeros(1))),
        TypeError,
        (
            "attention: query and sinks must come from one array library; got query from numpy and sinks from "
            "array_api_strict. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    (
        "two devices",
        lambda: ra.attention(strict(ONE), strict(ONE, "device1"), strict(ONE)),
        TypeError,
        (
            "attention: query and key must be on one device; got query on array_api_strict.Device('CPU_DEVICE') and key on "
            "array_api_strict.Device('device1'). Move one of them."
        ),
    ),
    # attention_rows
    (
        "a row outside",
        lambda: attend("attention_rows", rows=[(0, 0, 0), (1, 3, 3)]),
        ValueError,
        "attention_rows: rows must lie within query's axes (..., H, L)=(2, 4, 3); got (1, 3, 3).",
    ),
    (
        "a negative row",
        lambda: attend("attention_rows", rows=[(0, -1, 0)]),
        ValueError,
        "attention_rows: rows must lie within query's axes (..., H, L)=(2, 4, 3); got (0, -1, 0).",
    ),
    ("rows of fewer axes", lambda: attend("attention_rows", rows=[(0, 0)]), ValueError, f"{ROWS} (1, 2)."),
    ("one row, not in a list", lambda: attend("attention_rows", rows=(0, 0, 0)), ValueError, f"{ROWS} (3,)."),
    ("one number", lambda: attend("attention_rows", rows=3), ValueError, f"{ROWS} ()."),
    (
        "ragged rows",
        lambda: attend("attention_rows", rows=[(0, 0, 0), (1,)]),
        ValueError,
        f"{ROWS} rows of different lengths.",
    ),
    (
        "rows of floats",
        lambda: attend("attention_rows", rows=[(0.0, 0.0, 0.0)]),
        TypeError,
        "attention_rows: rows must be integers; got float64.",
    ),
    (
        "no rows, of floats",
        lambda: attend("attention_rows", rows=np.zeros((0, 3))),
        TypeError,
        "attention_rows: rows must be integers; got float64.",
    ),
    (
        "rows of booleans",
        lambda: attend("attention_rows", rows=np.ones((2, 3), bool)),
        TypeError,
        "attention_rows: rows must be integers; got bool.",
    ),
    (
        "rows of None",
        lambda: attend("attention_rows", rows=None),
        TypeError,
        "attention_rows: rows must be integers; got object.",
    ),
    # merge_states
    (
        "no parts",
        lambda: ra.merge_states([], []),
        ValueError,
        "merge_states: outputs and lses must be of the same length, at least 1; got 0 outputs and 0 lses.",
    ),
    (
        "an lse too few",
        lambda: ra.merge_states([ONE, ONE], [ONE[..., 0]]),
        ValueError,
        "merge_states: outputs and lses must be of the same length, at least 1; got 2 outputs and 1 lses.",
    ),
    (
        "parts that are a number",
        lambda: ra.merge_states(1.0, [ONE[..., 0]]),
        TypeError,
        "merge_states: outputs must be a list or tuple of arrays, or one array with the parts along its first axis; got float.",
    ),
    (
        "a generator",
        lambda: ra.merge_states([ONE], (x for x in [ONE])),
        TypeError,
        "merge_states: lses must be a list or tuple of arrays, or one array with the parts along its first axis; got generator.",
    ),
    (
        "a part that is no array",
        lambda: ra.merge_states([ONE, 1.0], [ONE[..., 0]] * 2),
        TypeError,
        f"merge_states: outputs[1] {ANY} float.",
    ),
    (
        "an integer lse",
        lambda: ra.merge_states([ONE], [np.zeros((1, 2), int)]),
        TypeError,
        "merge_states: lses[0] must have a real floating-point dtype; got int64.",
    ),
    (
        "outputs of two shapes",
        lambda: ra.merge_states([ONE, ONE[:, :1]], [ONE[..., 0], ONE[:, :1, 0]]),
        ValueError,
        (
            "merge_states: all outputs must have one shape (..., L, Ev) and all lses (..., L); got outputs[0] (1, 2, 2), "
            "outputs[1] (1, 1, 2) and lses[1] (1, 1)."
        ),
    ),
    (
        "an lse with the features' axis",
        lambda: ra.merge_states([ONE], [ONE]),
        ValueError,
        (
            "merge_states: all outputs must have one shape (..., L, Ev) and all lses (..., L); got outputs[0] (1, 2, 2), "
            "outputs[0] (1, 2, 2) and lses[0] (1, 2, 2)."
        ),
    ),
    (
        "parts of two libraries",
        lambda: ra.merge_states([ONE, strict(ONE)], [ONE[..., 0]] * 2),
        TypeError,
        (
            "merge_states: outputs[0] and outputs[1] must come from one array library; got outputs[0] from numpy and outputs[1] "
            "from array_api_strict. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    # masks and biases, whose own messages are compared in tests/masks
    (
        "a negative window",
        lambda: masks.window(-1, 0),
        ValueError,
        "masks.window: left must be a non-negative integer or None; got -1.",
    ),
    (
        "and in place of &",
        lambda: attend(mask=masks.causal("lower_right") and masks.window(1, 0)),
        TypeError,
        "masks: a mask has no truth value. Combine masks with & | ~ instead of and, or, not.",
    ),
    (
        "no heads for slopes",
        lambda: biases.alibi(0),
        ValueError,
        "biases.alibi_slopes: heads must be at least 1; got 0.",
    ),
    (
        "half a head",
        lambda: biases.alibi_slopes(1.5),
        TypeError,
        "biases.alibi_slopes: heads must be an integer; got float.",
    ),
    ("slopes of True", lambda: biases.alibi(True), TypeError, f"biases.alibi: slopes {ANY} bool."),
    (
        "one slope, without a head axis",
        lambda: biases.alibi(np.array(0.5)),
        ValueError,
        "biases.alibi: slopes must have at least the head axis (H,); got a 0-d array.",
    ),
    (
        "a slope of infinity",
        lambda: biases.alibi(np.array([0.5, math.inf])),
        ValueError,
        "biases.alibi: slopes must be finite; got NaN or infinity.",
    ),
    (
        "no such anchor",
        lambda: biases.alibi(2, anchor="left"),
        ValueError,
        "biases.alibi: anchor must be 'lower_right', 'upper_left', an integer or None; got 'left'.",
    ),
    (
        "an anchor that is no integer",
        lambda: biases.alibi(2, anchor=0.5),
        TypeError,
        "biases.alibi: anchor must be an integer; got float.",
    ),
    (
        "an anchor of several numbers",
        lambda: biases.alibi(2, anchor=np.array([1, 2])),
        TypeError,
        "biases.alibi: anchor must be an integer; got ndarray.",
    ),
    (
        "an anchor past the exact integers",
        lambda: biases.alibi(2, anchor=2**53 + 1),
        ValueError,
        "biases.alibi: anchor must be at most 2**53, for distances to be exact; got 9007199254740993.",
    ),
    # to_numpy, from_numpy
    (
        "a list to NumPy",
        lambda: ra.to_numpy([1.0]),
        TypeError,
        "to_numpy: x must be an array; got list. Use numpy.asarray for lists and numbers.",
    ),
    (
        "a list from NumPy",
        lambda: ra.from_numpy([1.0], library="numpy"),
        TypeError,
        "from_numpy: array must be a numpy.ndarray; got list.",
    ),
    (
        "nowhere to go",
        lambda: ra.from_numpy(ONE),
        ValueError,
        "from_numpy: exactly one of like and library must be given. Pass like=x or library='torch'.",
    ),
    (
        "two ways to go",
        lambda: ra.from_numpy(ONE, like=ONE, library="numpy"),
        ValueError,
        "from_numpy: exactly one of like and library must be given. Pass like=x or library='torch'.",
    ),
    (
        "no such library",
        lambda: ra.from_numpy(ONE, library="tensorflow"),
        ValueError,
        "from_numpy: library must be one of numpy, array_api_strict, torch, jax, cupy, dask; got 'tensorflow'.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), [x[1:] for x in OWN], ids=[x[0] for x in OWN])
def test_own_argument(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    assert_raises(call, error, text)


def test_two_libraries_with_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert_raises(
        lambda: ra.attention(torch.zeros(1, 2, 2), ONE, ONE),
        TypeError,
        "attention: query and key must come from one array library; got query from torch and key from numpy. Convert one "
        "of them: refattn.from_numpy(refattn.to_numpy(x), like=y).",
    )


def test_a_dtype_that_torch_lacks() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    assert_raises(
        lambda: ra.from_numpy(np.zeros(1, np.longdouble), library="torch"),
        TypeError,
        f"from_numpy: array must have a dtype that torch has; got {np.dtype(np.longdouble).name}.",
    )


def test_jax_without_float64() -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    with jax.enable_x64(False):
        x = jax.numpy.zeros((1, 2, 2))
        assert_raises(
            lambda: ra.attention(x, x, x),
            TypeError,
            "attention: JAX arrays must be computed in float64, which this JAX session has switched off; got "
            "jax_enable_x64=False. Call inside `with jax.enable_x64():`.",
        )


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("refattn._core.arrays.find_spec", lambda name: None if name == "cupy" else find(name))
    assert_raises(
        lambda: ra.from_numpy(ONE, library="cupy"),
        ImportError,
        "from_numpy: library='cupy' is not installed: pip install cupy.",
    )


def test_np_matrix_is_refused() -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0]])
    assert_raises(lambda: attend(query=matrix), TypeError, f"attention: query {ANY} matrix.")


def test_a_sparse_array_is_refused() -> None:
    from scipy import sparse

    assert_raises(lambda: attend(query=sparse.coo_array((3, 8))), TypeError, f"attention: query {ANY} coo_array.")
    assert_raises(
        lambda: attend(mask=sparse.coo_array((3, 5))),
        TypeError,
        "attention: mask must be a Mask or a boolean array; got coo_array.",
    )


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.int8(1), Fraction(1, 2)], ids=repr)
def test_any_real_number_will_do(number: Any) -> None:
    attend(scale=number, softcap=number)


def test_there_are_enough_of_them() -> None:
    assert len(SHARED) + len(OWN) >= 40


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
