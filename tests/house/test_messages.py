"""The whole text of every message about wrong arguments: `{function}: {argument} {rule}; got {facts}. {What to do.}`"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from tests.messages import ANY, ONE, Case, assert_raises, attend, strict

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
    # masks, whose own messages are compared in tests/masks; those of biases in tests/core
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
