"""Costs of exact attention: the formulas against the reference and the papers' algorithms, which count as they run."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn._core.score import Dropout, Score
from refattn._core.state import weights as softmax_weights
from refattn.methods.exact import reference
from tests import paper_loops as loops
from tests import strategies as draws
from tests.counted import LOOPS, PROBLEMS, assert_counted, moderate, nonzero
from tests.counting import Counter, Tile
from tests.strategies import Problem


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes and arguments of a call: lengths from 0, grouped heads, cells in every shape that broadcasts."""
    batch, (H, Hk) = draw(draws.batches(2)), draw(draws.heads(6))
    L, S = draw(st.integers(0, 5)), draw(st.integers(0, 6))
    cells = st.none() | draws.broadcastable(batch, H, L, S)
    return {
        "sizes": (batch, (H, Hk), (L, S), (draw(st.integers(1, 4)), draw(st.integers(0, 4)))),
        "softcap": draw(st.none() | st.just(2.0)),
        "sinks": draw(st.booleans()),
        "mask": draw(cells),
        "bias": draw(cells),
        "dropout_mask": draw(cells),
    }


def counted(call: dict[str, Any], *, weights: bool) -> Counter:
    """The reference, run on a counting namespace."""
    batch, (H, Hk), (L, S), (E, Ev) = call["sizes"]
    c, rng = Counter(), np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        return c.array(rng.standard_normal(shape))

    def tile(name: str) -> Tile | None:
        shape = call[name]
        cells = None if shape is None else numbers(*shape) if name == "bias" else c.array(rng.random(shape) < 0.7)
        return None if cells is None else Tile(cells)

    Q, K, V = numbers(*batch, Hk, H // Hk, L, E), numbers(*batch, Hk, 1, S, E), numbers(*batch, Hk, 1, S, Ev)
    kept = tile("dropout_mask")
    score = Score(
        lengths=(L, S),
        scale=0.3,
        softcap=call["softcap"],
        bias=tile("bias"),
        mask=tile("mask"),
        sink=numbers(Hk, H // Hk, 1, 1) if call["sinks"] else None,
        dropout=None if kept is None else Dropout(kept, 0.2),
        groups=(Hk, H // Hk),
    )
    O, lse = reference.attention(Q, K, V, score=score, xp=c)
    assert (O.shape, lse.shape) == ((*Q.shape[:-1], Ev), Q.shape[:-1])
    if weights:
        i, j = slice(0, L), slice(0, S)
        softmax_weights(score(Q, K, i, j, xp=c), lse, xp=c)
    return c


def formula(call: dict[str, Any], **more: Any) -> ra.Cost:
    """The cost of the same call."""
    batch, (H, Hk), (L, S), (E, Ev) = call["sizes"]
    mask = call["mask"]
    return ra.cost(
        ra.attention,
        (*batch, H, L, E),
        (*batch, Hk, S, E),
        (*batch, Hk, S, Ev),
        dtype="float64",
        softcap=call["softcap"],
        sinks=(H,) if call["sinks"] else None,
        mask=None if mask is None else np.ones(mask, bool),
        bias=call["bias"],
        dropout_mask=call["dropout_mask"],
        **more,
    )


@given(call=calls(), weights=st.booleans())
def test_the_reference_does_what_its_formulas_say(call: dict[str, Any], weights: bool) -> None:
    c, cost = counted(call, weights=weights), formula(call, return_weights=weights)
    assert nonzero(cost.operations) == nonzero(c.operations)
    assert (cost.bytes_read, cost.bytes_written) == (c.read, c.written)
    # Besides what the formula holds: the booleans of one test of rows or of sinks, and one boolean for all.
    batch, (H, _), (L, _), _ = call["sizes"]
    assert 0 <= c.peak - cost.peak_bytes <= math.prod(batch) * H * L + H + 1


ARGUMENTS = {
    "plain": {},
    "causal": {"mask": ra.masks.causal("lower_right")},
    "everything": {
        "mask": ra.masks.causal("lower_right"),
        "softcap": 3.0,
        "bias": np.ones((4, 128, 192)),
        "sinks": np.ones(4),
        "return_lse": True,
    },
    "dropout": {"dropout_mask": ra.masks.array(np.ones((128, 192), bool)), "dropout_p": 0.5},
    "weights": {"return_weights": True},
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_peak_memory_is_what_python_allocates(name: str, dtype: str) -> None:
    arrays = [np.ones(shape, dtype) for shape in ((2, 4, 128, 32), (2, 2, 192, 32), (2, 2, 192, 16))]
    ra.attention(*(x[..., :1, :] for x in arrays))
    tracemalloc.start()
    try:
        ra.attention(*arrays, **ARGUMENTS[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    formula = ra.cost(ra.attention, *arrays, **ARGUMENTS[name]).peak_bytes
    # Python's own objects come on top: fewer than a row of scores for each head takes.
    assert 0 <= peak - formula <= 2 * 4 * 192 * 8


@given(problem=PROBLEMS, return_lse=st.booleans(), out=st.sampled_from(["float64", "float32"]))
@LOOPS
def test_the_standard_form_is_algorithm_0(problem: Problem, return_lse: bool, out: str) -> None:
    x, c = loops.Inputs(moderate(problem), out=out, return_lse=return_lse), loops.Machine()
    output, _ = loops.algorithm_0(c, x)
    cost = ra.cost(ra.attention, x.q, x.k, x.v, form="standard", return_lse=return_lse, **x.cost_arguments)
    assert_counted(cost, c)
    x.assert_same(output, ra.attention(x.q, x.k, x.v, **x.cost_arguments))


@given(problem=PROBLEMS)
@LOOPS
def test_the_standard_gradient_is_algorithm_3(problem: Problem) -> None:
    x, c = loops.Inputs(moderate(problem)), loops.Machine()
    gradient = x.gradient()
    found = loops.algorithm_3(c, x, gradient)
    assert_counted(ra.cost(ra.attention_gradient, x.q, x.k, x.v, form="standard", **x.cost_arguments), c)
    for ours, theirs in zip(found, ra.attention_gradient(gradient, x.q, x.k, x.v, **x.cost_arguments), strict=False):
        x.assert_same(ours, theirs)


@given(N=st.integers(0, 2**24), d=st.integers(1, 512), dtype=st.sampled_from(["float32", "bfloat16", "float8_e5m2"]))
def test_the_standard_form_moves_as_in_the_proof_of_theorem_2(N: int, d: int, dtype: str) -> None:
    # Q, K in and S out; S in and P out; P, V in and O out.
    cost = ra.cost(ra.attention, (1, N, d), (1, N, d), (1, N, d), dtype=dtype, form="standard")
    assert cost.bytes_moved == (4 * N * d + 4 * N**2) * {"float32": 4, "bfloat16": 2, "float8_e5m2": 1}[dtype]


# The table of the README, for elements of 4 bytes.
A_CELL: dict[tuple[str, str], tuple[int, int, dict[str, int]]] = {
    ("attention", "reference"): (96, 24, {"multiply": 1, "compare": 2, "add": 2, "exp": 1}),
    ("attention", "standard"): (16, 8, {"multiply": 1, "compare": 1, "add": 2, "exp": 1, "divide": 1}),
    ("attention_gradient", "standard"): (40, 12, {"multiply": 4, "compare": 1, "add": 4, "exp": 1, "divide": 1}),
}


@pytest.mark.parametrize(("function", "form"), A_CELL)
@given(L=st.integers(300, 2**20), S=st.integers(300, 2**20), E=st.integers(1, 64), Ev=st.integers(1, 64))
@settings(max_examples=50)
def test_what_grows_with_the_cells_is_what_the_table_says(
    function: str, form: str, L: int, S: int, E: int, Ev: int
) -> None:
    def cost(L: int, S: int) -> ra.Cost:
        return ra.cost(getattr(ra, function), (1, L, E), (1, S, E), (1, S, Ev), dtype="float32", form=form)

    corners = cost(L + 1, S + 1), cost(L + 1, S), cost(L, S + 1), cost(L, S)

    def corner(count: Any) -> int:
        both, one, other, none = map(count, corners)
        return both - one - other + none

    moved, peak, operations = A_CELL[function, form]
    products = {"multiply_add": E + Ev if function == "attention" else 3 * E + 2 * Ev}
    assert corner(lambda x: x.bytes_moved) == moved
    assert corner(lambda x: x.peak_bytes) == peak
    for kind, count in (products | operations).items():
        assert corner(lambda x, kind=kind: x.operations[kind]) == count


@given(L=st.integers(1, 300), S=st.integers(1, 300), d=st.integers(1, 128), form=st.sampled_from(["standard", "flash"]))
def test_the_gradient_has_five_products_where_attention_has_two(L: int, S: int, d: int, form: str) -> None:
    shapes, more = ((2, 4, L, d), (2, 2, S, d), (2, 2, S, d)), {"dtype": "float32", "form": form}
    forward = ra.cost(ra.attention, *shapes, **more).operations["multiply_add"]
    assert 2 * ra.cost(ra.attention_gradient, *shapes, **more).operations["multiply_add"] == 5 * forward
