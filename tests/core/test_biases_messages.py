"""What biases say to wrong arguments, in full."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import biases
from tests.messages import ANY, Case, assert_raises, attend

ANCHOR = 'anchor must be "lower_right", "upper_left", an integer or an integer array of batch shape; got'
FAR = "anchor must lie within -2**53 and 2**53, for distances to be exact; got"
BATCH = "anchor must broadcast against the batch axes before H; got"
FITS = "biases.from_function: f must return an array that broadcasts to the shape of b, h, q and kv together,"
TABLE = np.zeros((4, 3))
REAL = "biases.from_function: f must return an array of real numbers; got"
FINITE = "biases.from_function: f must return finite numbers; got"


def returned(x: Any, **more: Any) -> Any:
    """The call of attention for 3 queries and 5 keys, with a function that returns x."""
    return lambda: attend(bias=biases.from_function(lambda b, h, q, kv: x, **more))


def only(value: float) -> Any:
    """A call whose function returns a number that is none for one cell."""

    def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return np.where((b == 1) & (h == 3) & (q == 2) & (kv == 4), value, 0.0)

    return lambda: attend(bias=biases.from_function(f, batch=2, heads=4))


WRONG: list[Case] = [
    # slopes
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
    # tables
    ("a list for a table", lambda: biases.relative([1.0]), TypeError, f"biases.relative: table {ANY} list."),
    (
        "a table of truths",
        lambda: biases.relative(np.array([True])),
        TypeError,
        "biases.relative: table must have a real floating-point or integer dtype; got bool.",
    ),
    (
        "a number for a table",
        lambda: biases.relative(np.array(0.5)),
        ValueError,
        "biases.relative: table must have at least the axis of distances (2R + 1,); got a 0-d array.",
    ),
    (
        "a table without a middle",
        lambda: biases.relative(np.zeros((3, 4))),
        ValueError,
        "biases.relative: table must have an odd number of distances (axis -1), 2R + 1 from -R to R; got (3, 4).",
    ),
    (
        "a table of NaN",
        lambda: biases.relative(np.array([math.nan])),
        ValueError,
        "biases.relative: table must be finite; got NaN or infinity.",
    ),
    # anchors
    ("no such anchor", lambda: biases.alibi(2, anchor="left"), ValueError, f"biases.alibi: {ANCHOR} 'left'."),
    ("half an anchor", lambda: biases.alibi(2, anchor=0.5), TypeError, f"biases.alibi: {ANCHOR} 0.5."),
    (
        "anchors of fractions",
        lambda: biases.relative(TABLE, anchor=np.array([0.5])),
        TypeError,
        f"biases.relative: {ANCHOR} float64.",
    ),
    (
        "an anchor past the exact integers",
        lambda: biases.alibi(2, anchor=2**53 + 1),
        ValueError,
        f"biases.alibi: {FAR} 9007199254740993.",
    ),
    (
        "one of several anchors past the exact integers",
        lambda: biases.relative(TABLE, anchor=np.array([0, -(2**60)])),
        ValueError,
        f"biases.relative: {FAR} -1152921504606846976.",
    ),
    (
        "anchors of another batch than the slopes",
        lambda: biases.alibi(np.ones((2, 4)), anchor=[0, 1, 2]),
        ValueError,
        f"biases.alibi: {BATCH} anchor (3,) and (2, 4) for (..., H).",
    ),
    (
        "anchors of another batch than the table",
        lambda: biases.relative(np.ones((2, 4, 3)), anchor=[0, 1, 2]),
        ValueError,
        f"biases.relative: {BATCH} anchor (3,) and (2, 4) for (..., H).",
    ),
    (
        "anchors of another batch than the query",
        lambda: attend(bias=biases.relative(TABLE, anchor=[0, 1, 2])),
        ValueError,
        "attention: bias must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (3, 4, 1, 1).",
    ),
    (
        "an ambiguous table",
        lambda: attend(bias=biases.relative(TABLE)),
        ValueError,
        "attention: biases.relative() is ambiguous for L=3, S=5. Pass anchor='lower_right' or anchor='upper_left'.",
    ),
    # from_function
    (
        "no function",
        lambda: biases.from_function(0.5),
        TypeError,
        "biases.from_function: f must be a function of (b, h, q, kv); got float.",
    ),
    (
        "half a batch",
        lambda: biases.from_function(len, batch=0.5),
        TypeError,
        "biases.from_function: batch must be an integer; got float.",
    ),
    (
        "fewer than no heads",
        lambda: biases.from_function(len, heads=-1),
        ValueError,
        "biases.from_function: heads must be at least 0; got -1.",
    ),
    (
        "heads that the query lacks",
        returned(0.0, heads=3),
        ValueError,
        "attention: bias must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 5); got (3, 1, 1).",
    ),
    ("nothing returned", returned(None), TypeError, f"{REAL} NoneType."),
    ("a list returned", returned([0.0]), TypeError, f"{REAL} list."),
    ("complex numbers returned", returned(np.ones(1, complex)), TypeError, f"{REAL} complex128."),
    (
        "truths returned",
        returned(np.ones((3, 5), bool)),
        TypeError,
        f"{REAL} bool. Pass it as mask=masks.from_function(...).",
    ),
    ("a truth returned", returned(True), TypeError, f"{REAL} bool. Pass it as mask=masks.from_function(...)."),
    (
        "another shape returned",
        returned(np.ones((5, 3))),
        ValueError,
        f"{FITS} here (3, 5); got (5, 3).",
    ),
    (
        "heads returned that were not asked for",
        returned(np.ones((4, 3, 5))),
        ValueError,
        f"{FITS} here (3, 5); got (4, 3, 5).",
    ),
    *(
        (
            f"{value} returned",
            only(value),
            ValueError,
            f"{FINITE} {value} for b=1, h=3, q=2, kv=4. Hide cells with mask=masks.from_function(...).",
        )
        for value in (math.nan, math.inf, -math.inf)
    ),
    # t5_buckets
    (
        "half a distance",
        lambda: biases.t5_buckets(np.array([0.5]), bidirectional=True),
        TypeError,
        "biases.t5_buckets: distance must be an integer or an integer array; got float64.",
    ),
    (
        "which direction",
        lambda: biases.t5_buckets(1, bidirectional=None),
        TypeError,
        "biases.t5_buckets: bidirectional must be True or False; got NoneType.",
    ),
    (
        "too few buckets for two directions",
        lambda: biases.t5_buckets(1, bidirectional=True, num_buckets=3),
        ValueError,
        "biases.t5_buckets: num_buckets must be at least 4; got 3.",
    ),
    (
        "too few buckets",
        lambda: biases.t5_buckets(1, bidirectional=False, num_buckets=1),
        ValueError,
        "biases.t5_buckets: num_buckets must be at least 2; got 1.",
    ),
    (
        "a last bucket before the wide ones",
        lambda: biases.t5_buckets(1, bidirectional=True, max_distance=8),
        ValueError,
        "biases.t5_buckets: max_distance must be at least 9; got 8.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), [pytest.param(*case[1:], id=case[0]) for case in WRONG])
def test_text(call: Any, error: type[Exception], text: str) -> None:
    assert_raises(call, error, text)


def test_a_batch_of_offsets_that_fits_is_no_error() -> None:
    assert attend(bias=biases.relative(TABLE, anchor=[0, 1])).shape == (2, 4, 3, 6)
    assert isinstance(biases.alibi(np.ones((2, 4)), anchor=[0, 1]), ra.biases.Bias)
