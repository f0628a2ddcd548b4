"""The record of a cost and the public `cost`: what follows from counts, what is looked at, and every message."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refattn as ra
from refattn._core.cost import FLOPS
from tests.messages import Case, assert_raises

COUNTS = st.integers(0, 2**80)
RATES = st.floats(1.0, 1e18)


@st.composite
def costs(draw: st.DrawFn) -> ra.Cost:
    """A record of any counts."""
    return ra.Cost("attention", "flash", {kind: draw(COUNTS) for kind in FLOPS}, draw(COUNTS), draw(COUNTS), 0)


@given(cost=costs())
def test_a_multiply_add_is_two_flops_and_a_selection_none(cost: ra.Cost) -> None:
    floating = {"multiply_add", "add", "multiply", "divide", "exp", "log", "tanh", "compare"}
    assert cost.flops == sum(cost.operations[kind] for kind in floating) + cost.operations["multiply_add"]
    assert cost.bytes_moved == cost.bytes_read + cost.bytes_written
    exact = Fraction(cost.flops, cost.bytes_moved) if cost.bytes_moved else 0
    assert cost.intensity == float(exact)


@given(cost=costs(), peak=RATES, bandwidth=RATES, exps=RATES)
def test_the_roofline_is_the_larger_of_its_bounds(cost: ra.Cost, peak: float, bandwidth: float, exps: float) -> None:
    assert cost.seconds(peak_flops=peak, bandwidth=bandwidth) == max(cost.flops / peak, cost.bytes_moved / bandwidth)
    # A ridge: the intensity at which both bounds meet tells which of them it is.
    if cost.bytes_moved and cost.intensity > peak / bandwidth * (1 + 2**-50):
        assert cost.seconds(peak_flops=peak, bandwidth=bandwidth) == cost.flops / peak
    apart = cost.seconds(peak_flops=peak, bandwidth=bandwidth, rates={"exp": exps})
    others = cost.flops - cost.operations["exp"]
    assert apart == max(others / peak, cost.bytes_moved / bandwidth, cost.operations["exp"] / exps)


SHAPES = ((2, 8, 5, 64), (2, 2, 7, 64), (2, 2, 7, 32))


def test_a_cost_shows_what_is_not_zero() -> None:
    text = str(ra.cost(ra.attention, *SHAPES, dtype="float16", form="flash", tile=(4, 4)))
    assert text == (
        "attention, flash, 4 queries x 4 keys a tile\n"
        "  operations multiply_add 53,760, add 1,440, multiply 5,840, divide 2,560, exp 720, compare 720\n"
        "  flops      118,800\n"
        "  read       20,992 bytes\n"
        "  written    5,120 bytes\n"
        "  peak       5,120 bytes beyond the operands\n"
        "  on chip    5,248 bytes a tile\n"
        "  intensity  4.55 flops a byte"
    )


def test_a_cost_without_operations_says_so() -> None:
    empty = ra.cost(ra.attention, (0, 1, 1, 1), (0, 1, 1, 1), (0, 1, 1, 1), dtype="float16", form="standard")
    assert "operations none" in str(empty)
    assert (empty.flops, empty.bytes_moved, empty.intensity) == (0, 0, 0.0)


def test_counts_cannot_be_changed() -> None:
    cost = ra.cost(ra.attention, *SHAPES, dtype="float16")
    with pytest.raises(TypeError):
        cost.operations["exp"] = 0  # type: ignore[index]
    assert set(cost.operations) == set(FLOPS)


@pytest.mark.parametrize("form", ["reference", "standard", "flash", "flash_2022"])
def test_counts_are_python_integers_of_any_size(form: str) -> None:
    N, E, B, H = 2**24, 128, 64, 128
    cost = ra.cost(ra.attention, (B, H, N, E), (B, H, N, E), (B, H, N, E), dtype="bfloat16", form=form)
    numbers = [*cost.operations.values(), cost.bytes_read, cost.bytes_written, cost.peak_bytes, cost.flops]
    assert {type(n) for n in numbers} == {int}
    assert cost.operations["multiply_add"] == 2 * B * H * N**2 * E > 2**63


@pytest.mark.parametrize("form", ["reference", "standard", "flash", "flash_2022"])
def test_arrays_shapes_and_descriptions_cost_the_same(form: str) -> None:
    given = {"form": form, "is_causal": False, "softcap": 3.0, "return_lse": True}
    by_shape = ra.cost(ra.attention, *SHAPES, dtype="float32", sinks=(8,), bias=(8, 1, 7), **given)
    arrays = [np.ones(shape, np.float32) for shape in SHAPES]
    operands = {"sinks": np.ones(8, np.float32), "bias": np.ones((8, 1, 7), np.float32)}
    assert ra.cost(ra.attention, *arrays, **operands, **given) == by_shape
    described = [SimpleNamespace(shape=list(x.shape), dtype=x.dtype) for x in arrays]
    assert ra.cost(ra.attention, *described, **operands, **given) == by_shape
    assert ra.cost(ra.attention, *map(list, SHAPES), dtype=np.float32, **operands, **given) == by_shape


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("bfloat16", 2), ("float8_e4m3fn", 1), ("int8", 1)])
def test_operands_are_moved_at_their_own_size(dtype: str, size: int) -> None:
    named = SimpleNamespace(shape=(1, 7, 64), dtype=dtype)
    cost = ra.cost(ra.attention, (1, 5, 64), named, named, dtype="float32", form="flash")
    assert cost.bytes_read == 5 * 64 * 4 + 2 * 7 * 64 * size
    assert cost.bytes_written == 5 * 64 * 4


def test_the_first_form_is_the_default() -> None:
    assert ra.cost(ra.attention, *SHAPES, dtype="float16").form == "reference"
    assert ra.cost(ra.attention_gradient, *SHAPES, dtype="float16").form == "standard"
    assert ra.cost(ra.attention, *SHAPES, dtype="float16", form="flash").tile == (128, 128)


def test_the_reference_casts_what_is_not_float64() -> None:
    double, single = (ra.cost(ra.attention, *SHAPES, dtype=dtype) for dtype in ("float64", "float32"))
    operands, output = sum(map(math.prod, SHAPES)), math.prod(SHAPES[0][:3]) * 32
    assert single.bytes_read - double.bytes_read == 4 * operands + 8 * output
    assert single.bytes_written - double.bytes_written == 8 * operands + 4 * output
    assert single.peak_bytes - double.peak_bytes == 8 * operands
    assert single.operations == double.operations


def cost(*shapes: Any, function: Any = ra.attention, **given: Any) -> ra.Cost:
    """A cost of shapes."""
    return ra.cost(function, *(shapes or SHAPES), **{"dtype": "float16", **given})


def seconds(**rates: Any) -> float:
    """A time of rates."""
    return cost().seconds(**{"peak_flops": 1.0, "bandwidth": 1.0, **rates})


NAMES = ", ".join(ra.attention.capabilities.arguments)
CASES: list[Case] = [
    (
        "a function that is not counted",
        lambda: cost(function=ra.attention_rows),
        ra.ImplementationError,
        "cost: function must be one whose cost is counted; got attention_rows.",
    ),
    (
        "no function",
        lambda: cost(function=3),
        ra.ImplementationError,
        "cost: function must be one whose cost is counted; got 3.",
    ),
    (
        "no such form",
        lambda: cost(form="tiled"),
        ra.ImplementationError,
        "cost: form must be one of 'reference', 'standard', 'flash', 'flash_2022' for attention; got 'tiled'.",
    ),
    (
        "no such argument",
        lambda: cost(causal=True),
        TypeError,
        f"cost: arguments must be those of attention, {NAMES}; got causal.",
    ),
    (
        "a shape without dtype",
        lambda: cost(dtype=None),
        TypeError,
        (
            "cost: dtype must be given where query is a shape; got None. Pass the dtype of the operands, such as "
            "dtype='bfloat16'."
        ),
    ),
    ("no shape", lambda: cost(3, 3, 3), TypeError, "cost: query must be an array or its shape; got int."),
    (
        "half a head",
        lambda: cost((1, 0.5, 2, 2), *SHAPES[1:]),
        TypeError,
        "cost: query[1] must be an integer; got float.",
    ),
    (
        "fewer than no heads",
        lambda: cost((1, -1, 2, 2), *SHAPES[1:]),
        ValueError,
        "cost: query[1] must be at least 0; got -1.",
    ),
    (
        "no numbers",
        lambda: cost(dtype="complex64"),
        TypeError,
        "cost: query must have a real floating-point or integer dtype; got complex64.",
    ),
    (
        "shapes that do not fit",
        lambda: cost((1, 2, 3), (1, 5, 3), (1, 4, 3)),
        ValueError,
        "cost: key and value must have the same length S (axis -2); got key (1, 5, 3) and value (1, 4, 3).",
    ),
    (
        "an ambiguous diagonal",
        lambda: cost(is_causal=True),
        ValueError,
        (
            'cost: is_causal=True is ambiguous for L=5, S=7. Pass mask=masks.causal(anchor="lower_right") or '
            'anchor="upper_left".'
        ),
    ),
    (
        "a bias that does not fit",
        lambda: cost(bias=(3, 5, 7)),
        ValueError,
        "cost: bias must have at least 2 axes and broadcast to (..., H, L, S)=(2, 8, 5, 7); got (3, 5, 7).",
    ),
    (
        "sinks of other heads",
        lambda: cost(sinks=(2,)),
        ValueError,
        "cost: sinks must have one logit per query head, shape (H,)=(8,); got (2,).",
    ),
    ("a flag of 1", lambda: cost(return_lse=1), TypeError, "cost: return_lse must be True or False; got int."),
    ("packing of 1", lambda: cost(pack_gqa=1), TypeError, "cost: pack_gqa must be True or False; got int."),
    (
        "tiles for a form without",
        lambda: cost(form="standard", tile=(4, 4)),
        ValueError,
        "cost: tile must be None for form='standard', which has no tiles; got (4, 4).",
    ),
    (
        "a chip for a form without tiles",
        lambda: cost(form="reference", on_chip=1024),
        ValueError,
        "cost: on_chip must be None for form='reference', which has no tiles; got 1024.",
    ),
    (
        "tiles and what they follow from",
        lambda: cost(form="flash", tile=(4, 4), on_chip=1024),
        ValueError,
        (
            "cost: tile and on_chip must not both be given; got tile=(4, 4) and on_chip=1024. on_chip is what tile "
            "follows from."
        ),
    ),
    (
        "one side of a tile",
        lambda: cost(form="flash", tile=128),
        TypeError,
        "cost: tile must be two positive integers, (queries, keys); got 128.",
    ),
    (
        "three sides of a tile",
        lambda: cost(form="flash", tile=(1, 2, 3)),
        TypeError,
        "cost: tile must be two positive integers, (queries, keys); got (1, 2, 3).",
    ),
    ("an empty tile", lambda: cost(form="flash", tile=(4, 0)), ValueError, "cost: tile[1] must be at least 1; got 0."),
    ("no chip", lambda: cost(form="flash", on_chip=0), ValueError, "cost: on_chip must be at least 1; got 0."),
    (
        "weights of a form that never has them",
        lambda: cost(form="flash_2022", return_weights=True),
        ValueError,
        "cost: return_weights must be False for form='flash_2022', which never holds the weights; got True.",
    ),
    ("no speed", lambda: seconds(peak_flops=0), ValueError, "Cost.seconds: peak_flops must be positive; got 0."),
    ("backwards", lambda: seconds(bandwidth=-1.0), ValueError, "Cost.seconds: bandwidth must be positive; got -1.0."),
    (
        "a word",
        lambda: seconds(peak_flops="1e12"),
        TypeError,
        "Cost.seconds: peak_flops must be a real number; got str.",
    ),
    (
        "no exponentials",
        lambda: seconds(rates={"exp": 0}),
        ValueError,
        "Cost.seconds: rates['exp'] must be positive; got 0.",
    ),
    (
        "a kind that is not counted",
        lambda: seconds(rates={"sin": 1e12}),
        ValueError,
        f"Cost.seconds: rates must be of the kinds {', '.join(FLOPS)}; got 'sin'.",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_messages(call: Any, error: type[Exception], text: str) -> None:
    assert_raises(call, error, text)
