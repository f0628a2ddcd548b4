"""What masks say to wrong arguments, in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from refattn import ImplementationError, masks

ANCHOR = '"lower_right", "upper_left", an integer or an integer array of batch shape'
LENGTH = "a non-negative integer or an array of them, of batch shape"
BROADCASTS = "masks.from_function: f must return an array that broadcasts to the shape of b, h, q and kv together, here"
BOOLEAN = "must be boolean, True where a key takes part; got"


def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
    """A causal rule."""
    return q >= kv


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # anchors
    (
        lambda: masks.causal().check("attention", 1, 8),
        ValueError,
        'attention: masks.causal() is ambiguous for L=1, S=8. Pass anchor="lower_right" or anchor="upper_left".',
    ),
    (
        lambda: (masks.lengths(8) & ~masks.window(3, 0)).check("attention", 1, 8),
        ValueError,
        'attention: masks.window(3, 0) is ambiguous for L=1, S=8. Pass anchor="lower_right" or anchor="upper_left".',
    ),
    (lambda: masks.causal("bottom"), ValueError, f"masks.causal: anchor must be {ANCHOR}; got 'bottom'."),
    (lambda: masks.causal(True), TypeError, f"masks.causal: anchor must be {ANCHOR}; got True."),
    (lambda: masks.window(1, 0, 1.5), TypeError, f"masks.window: anchor must be {ANCHOR}; got 1.5."),
    (lambda: masks.causal([0.5, 1]), TypeError, f"masks.causal: anchor must be {ANCHOR}; got float64."),
    (lambda: masks.causal(np.array([True])), TypeError, f"masks.causal: anchor must be {ANCHOR}; got bool."),
    (lambda: masks.causal(np.array(1.5)), TypeError, f"masks.causal: anchor must be {ANCHOR}; got float64."),
    (
        lambda: masks.causal([[1], [2, 3]]),
        ValueError,
        f"masks.causal: anchor must be {ANCHOR}; got a list whose rows differ in length.",
    ),
    # windows
    (
        lambda: masks.window(-1, 0),
        ValueError,
        "masks.window: left must be a non-negative integer or None; got -1.",
    ),
    (
        lambda: masks.window(0, np.int64(-2)),
        ValueError,
        "masks.window: right must be a non-negative integer or None; got -2.",
    ),
    (
        lambda: masks.window(0, True),
        TypeError,
        "masks.window: right must be a non-negative integer or None; got True.",
    ),
    (
        lambda: masks.window(2.0, 0),
        TypeError,
        "masks.window: left must be a non-negative integer or None; got 2.0.",
    ),
    # lengths
    (lambda: masks.lengths(-1), ValueError, f"masks.lengths: key must be {LENGTH}; got -1."),
    (lambda: masks.lengths([3, -4]), ValueError, f"masks.lengths: key must be {LENGTH}; got -4."),
    (lambda: masks.lengths(2**63), ValueError, f"masks.lengths: key must be {LENGTH}; got 9223372036854775808."),
    (lambda: masks.lengths(3, query=1.0), TypeError, f"masks.lengths: query must be {LENGTH}; got 1.0."),
    (lambda: masks.lengths(None), TypeError, f"masks.lengths: key must be {LENGTH}; got None."),
    (
        lambda: masks.lengths([1, 2], query=[1, 2, 3]),
        ValueError,
        "masks.lengths: key and query must have the same batch shape; got (2,) and (3,).",
    ),
    (
        lambda: masks.lengths([3, 9]).check("attention", 4, 8),
        ValueError,
        "attention: key of masks.lengths must be at most S=8; got 9.",
    ),
    (
        lambda: masks.lengths(3, query=[5]).check("attention", 4, 8),
        ValueError,
        "attention: query of masks.lengths must be at most L=4; got 5.",
    ),
    # arrays
    (
        lambda: masks.array(np.ones((2, 2))),
        TypeError,
        f"masks.array: x {BOOLEAN} float64. Pass an additive mask as bias=.",
    ),
    (lambda: masks.array([[True]]), TypeError, "masks.array: x must be a Mask or a boolean array; got list."),
    (
        lambda: masks.array(np.ones(3, bool)),
        ValueError,
        "masks.array: x must have the axes L and S, (..., L, S); got shape (3,).",
    ),
    (
        lambda: masks.as_mask("attention", np.ones((2, 2), np.float32)),
        TypeError,
        f"attention: mask {BOOLEAN} float32. Pass an additive mask as bias=.",
    ),
    (lambda: masks.as_mask("attention", np.ones((2, 2), int)), TypeError, f"attention: mask {BOOLEAN} int64."),
    (
        lambda: masks.as_mask("attention", "causal"),
        TypeError,
        "attention: mask must be a Mask or a boolean array; got str.",
    ),
    (
        lambda: masks.as_mask("attention", scipy.sparse.csr_array(np.eye(3, dtype=bool))),
        TypeError,
        "attention: mask must be a Mask or a boolean array; got csr_array.",
    ),
    (
        lambda: masks.array(np.ones((2, 3, 5), bool)).check("attention", 4, 5),
        ValueError,
        "attention: mask must have the shape (..., L, S), or 1 for either, with L=4 and S=5; got (2, 3, 5).",
    ),
    # functions
    (lambda: masks.from_function(3), TypeError, "masks.from_function: f must be a function of (b, h, q, kv); got int."),
    (
        lambda: masks.from_function(f, batch=-1),
        ValueError,
        "masks.from_function: batch must be a non-negative integer; got -1.",
    ),
    (
        lambda: masks.from_function(f, heads=True),
        TypeError,
        "masks.from_function: heads must be a non-negative integer; got True.",
    ),
    (
        lambda: masks.from_function(lambda b, h, q, kv: q + kv).dense(2, 3),
        TypeError,
        "masks.from_function: f must return a boolean array; got int64.",
    ),
    (
        lambda: masks.from_function(lambda b, h, q, kv: None).dense(2, 3),
        TypeError,
        "masks.from_function: f must return a boolean array; got NoneType.",
    ),
    (
        lambda: masks.from_function(lambda b, h, q, kv: np.ones((3, 1, 1), bool), batch=2).dense(2, 3),
        ValueError,
        f"{BROADCASTS} (2, 1, 2, 3); got (3, 1, 1).",
    ),
    (
        lambda: masks.from_function(lambda b, h, q, kv: np.ones(7, bool)).dense(2, 3),
        ValueError,
        f"{BROADCASTS} (2, 3); got (7,).",
    ),
    # combining
    (
        lambda: masks.causal() & np.ones((2, 2), bool),
        TypeError,
        "masks: & takes masks; got ndarray. Wrap a boolean array in masks.array.",
    ),
    (
        lambda: np.ones((2, 2), bool) | masks.causal(),
        TypeError,
        "masks: | takes masks; got ndarray. Wrap a boolean array in masks.array.",
    ),
    (
        lambda: np.ones((2, 2), bool) & masks.causal(),
        TypeError,
        "masks: & takes masks; got ndarray. Wrap a boolean array in masks.array.",
    ),
    (
        lambda: masks.causal() and masks.lengths(3),
        TypeError,
        "masks: a mask has no truth value. Combine masks with & | ~ instead of and, or, not.",
    ),
    (
        lambda: masks.lengths([1, 2]) | masks.lengths([1, 2, 3]),
        ValueError,
        "masks: the leading axes of both sides of | must broadcast; got lead=(2, 1) and lead=(3, 1).",
    ),
    # forms
    (lambda: masks.causal().dense(-1, 3), ValueError, "mask.dense: L must be a non-negative integer; got -1."),
    (lambda: masks.causal().count(3, 2.5), TypeError, "mask.count: S must be a non-negative integer; got 2.5."),
    (
        lambda: masks.causal().blocks(3, 3, 0, 8),
        ValueError,
        "mask.blocks: tile_q must be a positive integer; got 0.",
    ),
    (
        lambda: masks.causal().blocks(3, 3, 8, "8"),
        TypeError,
        "mask.blocks: tile_k must be a positive integer; got '8'.",
    ),
    (lambda: masks.causal().row(3, 3, 3), ValueError, "mask.row: r must be a query, 0 <= r < L=3; got 3."),
    (
        lambda: masks.lengths([1, 2]).csr(3, 3),
        ValueError,
        "mask.at: index must have an entry for each axis of lead=(2, 1); got ().",
    ),
    (
        lambda: masks.lengths([1, 2]).at((2, 0)),
        ValueError,
        "mask.at: index must lie inside lead=(2, 1); got (2, 0).",
    ),
    (
        lambda: masks.causal().draw(65, 65),
        ValueError,
        "mask.draw: L and S must be at most 64 to be drawn; got L=65, S=65. Draw a smaller case, or use dense.",
    ),
    (
        lambda: masks.lengths(1).bounds(1, 2**31),
        ImplementationError,
        "mask.bounds: S must fit in int32; got 2147483648.",
    ),
]


@pytest.mark.parametrize(
    ("call", "kind", "text"), WRONG, ids=[f"{n}-{text.partition(':')[0]}" for n, (_, _, text) in enumerate(WRONG)]
)
def test_message(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == text


@pytest.mark.parametrize("form", ["dense", "count", "draw", "csr", "bounds", "interval"])
def test_every_form_checks_first(form: str) -> None:
    with pytest.raises(ValueError, match="ambiguous") as caught:
        getattr(masks.causal(), form)(3, 4)
    assert str(caught.value).startswith(f"mask.{form}: masks.causal() is ambiguous for L=3, S=4. ")


def test_tile_row_and_blocks_check_first() -> None:
    mask = masks.lengths(9)
    with pytest.raises(ValueError, match=r"^mask\.tile: key of masks\.lengths must be at most S=4; got 9\.$"):
        mask.tile(slice(0, 1), slice(0, 1), 3, 4, xp=np)
    with pytest.raises(ValueError, match=r"^mask\.row: key of masks\.lengths must be at most S=4; got 9\.$"):
        mask.row(0, 3, 4)
    with pytest.raises(ValueError, match=r"^mask\.blocks: key of masks\.lengths must be at most S=4; got 9\.$"):
        mask.blocks(3, 4, 2, 2)
