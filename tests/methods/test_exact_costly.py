"""Exact attention on the libraries on which a call is costly: JAX, dask and CuPy, against the oracle of these tests.

All problems have one shape, so that JAX compiles each operation once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refattn as ra
from refattn import biases, masks
from refattn.methods.exact import rows as rows_module
from tests.agreement import assert_agree, rows_of
from tests.derivatives import case, cotangents
from tests.namespaces import COSTLY, NAMES, Library, library, name_of
from tests.strategies import ADDED, EXTREME, NONE, Choice, Problem, cell, sink_logits
from tests.tiny import Tiny

SHAPE: dict[str, Any] = {"batch": (2,), "heads": (4, 2), "lengths": (3, 5), "features": (2, 3)}
FULL = (2, 4, 3, 5)
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
# No number below 2**-1022, which JAX takes for 0 on a CPU, and none whose products or quotients are.
NORMAL = tuple(x for x in EXTREME if not 0 < abs(x) < 0.5)


def cells(text: str, x: np.ndarray) -> Choice:
    """An array of cells with the rule that it stands for."""
    return Choice(text, x, lambda *at: cell(x, *at).item())


def called(problem: Problem, lib: Library) -> Any:
    """The library's way of calling a function once: JAX compiles it."""
    arguments = problem.arguments(lib) | {"return_lse": True, "return_weights": True}
    return lib.call(lambda *x: ra.attention(*x, **arguments), *map(lib.array, problem.arrays))


def check(problem: Problem, got: Any, lib: Library) -> None:
    """Output, lse and weights of all rows against the oracle."""
    rows = problem.rows(math.prod(FULL[:-1]))
    want = problem.answer(rows)
    for x, name, dtype in zip(got, ("output", "lse", "weights"), (problem.out, "float64", problem.out), strict=True):
        assert name_of(x.dtype) == dtype
        wanted = getattr(want, name)
        values = lib.values(x).reshape(wanted.shape)
        radius, held = 2 * getattr(want, f"{name}_radius"), rows_of(want.held, wanted)
        assert_agree(values, wanted, radius, held=held, dtype=dtype, what=name)


def drawn(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


SEEN = drawn(1, FULL[1:]) > 0
SEEN[1, 2] = False  # a row that sees nothing
BIAS = np.where(drawn(2, FULL) > 1, -math.inf, drawn(3, FULL))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "array": {"mask": cells("seen", SEEN)},
    "window": {"mask": Choice("window", masks.window(1, 0, "lower_right"), lambda _, i, j: i + 1 <= j <= i + 2)},
    "both": {
        "mask": cells("seen", SEEN),
        "bias": cells("bias", BIAS),
        "softcap": 2.0,
        "sinks": (0.3, -math.inf, 2, -1),
    },
    "alibi": {
        "bias": Choice(
            "alibi",
            biases.alibi(4, anchor="upper_left"),
            lambda index, i, j: -(2.0 ** (-2 * index[-1] - 2)) * abs(i - j),
        )
    },
    "dropout": {"dropout_mask": cells("kept", drawn(4, FULL) > 0), "dropout_p": 0.25, "scale": 0.7},
    "large": {"law": "large"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(costly: Library, options: dict[str, Any]) -> None:
    problem = Problem(**SHAPE, **options)
    check(problem, called(problem, costly), costly)


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "int8", *(pytest.param(x, marks=pytest.mark.slow) for x in ("float16", *FLOAT8))],
)
def test_formats_of_input_and_output(costly: Library, dtype: str) -> None:
    if dtype not in costly.dtypes:
        pytest.skip(f"{costly.name} has no {dtype}")
    problem = Problem(**SHAPE, dtype=dtype, to="float32" if dtype == "int8" else dtype)
    check(problem, called(problem, costly), costly)


@pytest.mark.parametrize(("L", "S"), [(0, 4), (3, 0), (0, 0)])
def test_axes_may_be_empty(costly: Library, L: int, S: int) -> None:
    problem = Problem(heads=(2, 1), lengths=(L, S), features=(2, 3))
    output, lse, weights = map(costly.values, called(problem, costly))
    assert (output.shape, lse.shape, weights.shape) == ((2, L, 3), (2, L), (2, L, S))
    assert not output.any()
    assert np.isneginf(lse).all()


@st.composite
def extreme_problems(draw: st.DrawFn, values: tuple[float, ...] = NORMAL) -> Problem:
    """A problem of extreme values, an arbitrary mask and an arbitrary bias, of one shape."""
    shapes = ((1, 3, 2), (1, 4, 2), (1, 4, 2))
    arrays = tuple(draw(hnp.arrays(np.float64, shape, elements=st.sampled_from(values))) for shape in shapes)
    seen = draw(hnp.arrays(np.bool_, (3, 4)))
    added = draw(hnp.arrays(np.float64, (3, 4), elements=st.sampled_from(ADDED)))
    return Tiny(
        lengths=(3, 4),
        features=(2, 2),
        mask=cells(f"{seen.tolist()}", seen),
        bias=draw(st.sampled_from([NONE, cells(f"{added.tolist()}", added)])),
        scale=draw(st.sampled_from([None, 0.0, 1.0, -2.0])),
        softcap=draw(st.sampled_from([None, 1.0])),
        sinks=draw(st.none() | st.tuples(sink_logits())),
        drawn=arrays,
    )


@given(problem=extreme_problems())
@settings(max_examples=12)
def test_extreme_values_agree_with_the_oracle(costly: Library, problem: Problem) -> None:
    check(problem, problem.call(ra.attention, costly, return_lse=True, return_weights=True), costly)


def test_rows(costly: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "TILE_ROWS", 2)
    monkeypatch.setattr(rows_module, "TILE_KEYS", 3)
    problem = Problem(**SHAPE, **OPTIONS["both"])
    rows = np.array([(1, 3, 2), (0, 1, 0), (0, 1, 2), (1, 3, 2)])
    got = problem.call(ra.attention_rows, costly, rows=rows, return_lse=True)
    want = problem.answer([tuple(row) for row in rows.tolist()], tiles=2)
    assert_agree(costly.values(got.output), want.output, 2 * want.output_radius)
    assert_agree(costly.values(got.lse), want.lse, 2 * want.lse_radius)


def test_states_merge(costly: Library) -> None:
    problem = Problem(**SHAPE)
    q, k, v = map(costly.array, problem.arrays)

    def merged(q: Any, k: Any, v: Any) -> Any:
        parts = [ra.attention(q, k[..., j, :], v[..., j, :], return_lse=True) for j in (slice(0, 2), slice(2, 5))]
        return ra.merge_states([x.output for x in parts], [x.lse for x in parts])

    got = costly.call(merged, q, k, v)
    want = problem.answer(problem.rows(24), tiles=2)
    assert_agree(costly.values(got.output).reshape(want.output.shape), want.output, 2 * want.output_radius)
    assert_agree(costly.values(got.lse).reshape(want.lse.shape), want.lse, 2 * want.lse_radius)


def test_gradients(costly: Library) -> None:
    problem = Problem(**SHAPE, **OPTIONS["both"] | OPTIONS["dropout"] | {"bias": cells("finite", drawn(5, FULL))})
    dO, dlse = map(costly.array, cotangents(problem))
    arguments = problem.arguments(costly)
    got = costly.call(
        lambda *x: ra.attention_gradient(*x, **arguments, grad_lse=dlse), dO, *map(costly.array, problem.arrays)
    )
    want = case(problem)
    for name in ("query", "key", "value", "bias", "sinks"):
        assert_agree(costly.values(getattr(got, name)), want.gradient(name), 2 * want.radius(name), what=name)


def test_scores(costly: Library) -> None:
    problem = Problem(**SHAPE, **OPTIONS["both"])
    arguments = problem.arguments(costly)
    q, k, _ = map(costly.array, problem.arrays)
    got = costly.values(costly.call(lambda q, k: ra.attention_scores(q, k, stage="weights", **arguments), q, k))
    want = problem.answer(problem.rows(24))
    assert_agree(got.reshape(want.weights.shape), want.weights, 2 * want.weights_radius)


def test_what_is_promised_is_tested() -> None:
    names = {getattr(name, "values", (name,))[0] for name in (*NAMES, *COSTLY)} - {"read-only numpy"}
    for function in (ra.attention, ra.attention_rows, ra.attention_scores, ra.attention_gradient, ra.merge_states):
        assert set(function.capabilities.namespaces) == names


@pytest.mark.parametrize("argument", ["mask", "bias", "sinks"])
def test_numpy_beside_another_library_is_refused(costly: Library, argument: str) -> None:
    problem = Problem(**SHAPE, **OPTIONS["both"])
    given = problem.arguments(library("numpy"))[argument]
    with pytest.raises(TypeError) as error:
        ra.attention(*map(costly.array, problem.arrays), **{argument: given})
    assert str(error.value) == (
        f"attention: query and {argument} must come from one array library; got query from {costly.module} and "
        f"{argument} from numpy. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
    )


WRONG: list[tuple[str, Callable[[], dict[str, np.ndarray]], str]] = [
    (
        "bias",
        lambda: {"bias": np.full((3, 5), math.nan)},
        (
            "attention: bias must be finite, or -inf where a cell is masked; got NaN or +inf. Pass mask= for cells "
            "that take no part."
        ),
    ),
    (
        "sinks",
        lambda: {"sinks": np.full((4,), math.inf)},
        "attention: sinks must be finite, or -inf for a head without one; got NaN or +inf.",
    ),
]


@pytest.mark.parametrize(("made", "message"), [x[1:] for x in WRONG], ids=[x[0] for x in WRONG])
def test_values_are_checked_where_they_can_be_read(
    costly: Library, made: Callable[[], dict[str, np.ndarray]], message: str
) -> None:
    arguments = {name: costly.array(x) for name, x in made().items()}
    arrays = [costly.array(x) for x in Problem(**SHAPE).arrays]
    if costly.name == "dask":  # nothing is read before the caller computes
        assert np.isnan(costly.values(ra.attention(*arrays, **arguments))).all()
        return
    with pytest.raises(ValueError, match="must be finite") as error:
        ra.attention(*arrays, **arguments)
    assert str(error.value) == message
