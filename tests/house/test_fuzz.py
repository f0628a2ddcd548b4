"""Any mixture of good and bad arguments gives what the oracle says, NaN included, or is refused in words.

200 examples of each function in `make test`; 20,000 under `--hypothesis-profile=long`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn._core.arrays import dtype_name
from tests import mixtures, oracle
from tests.agreement import assert_agree, rows_of
from tests.namespaces import library

NUMPY = library("numpy")
DOCUMENTED = (TypeError, ValueError, ra.ImplementationError)


def result_or_message(function: str, call: Callable[[], Any]) -> Any:
    """The result of a call, or None where it was refused in its own words, or in those of its mask or bias."""
    try:
        return call()
    except DOCUMENTED as error:
        if not str(error).startswith((f"{function}: ", "masks.from_function: ", "biases.from_function: ")):
            raise AssertionError(f"a bare error from inside: {error!r}") from error
        return None


def check(function: str, call: dict[str, Any]) -> str:
    """Run a call; what became of it."""
    arguments = mixtures.given_arguments(call)
    got = result_or_message(function, lambda: getattr(ra, function)(**arguments))
    if got is None:
        return "refused"
    arrays = [call[name] for name in ("query", "key", "value")]
    if not all(isinstance(x, np.ndarray) for x in arrays):
        # Arrays of one other library, which the tests of that library look at.
        return "of another library"
    query, key, value = arrays
    shape, Ev, S = query.shape[:-1], value.shape[-1], key.shape[-2]
    lse = bool(call.get("return_lse", False))
    weights = function == "attention" and bool(call.get("return_weights", False))
    assert isinstance(got, ra.AttentionResult) == (lse or weights)
    output, *rest = got if isinstance(got, ra.AttentionResult) else (got, None, None)
    assert [x is not None for x in rest] == [lse, weights]
    dtype = dtype_name(query if call.get("dtype") is None else call["dtype"])
    assert dtype_name(output) == dtype
    if function != "attention_rows":
        rows = [tuple(int(n) for n in at) for at in np.ndindex(shape)]
        rows = rows if len(rows) <= 4 else [rows[0], rows[len(rows) // 2], rows[-1]]
        at = tuple(np.array(rows, dtype=int).reshape(-1, len(shape)).T)
        assert output.shape == (*shape, Ev)
        found = [x if x is None else x[at] for x in (output, *rest)]
    else:
        rows = [tuple(int(n) for n in at) for at in call["rows"]]
        found = [output, *rest]
    for x, axes in zip(found, [(Ev,), (), (S,)], strict=True):
        assert x is None or x.shape == (len(rows), *axes)
    tiles = 2 * S + 2 if function.startswith("flash") else 1
    want = mixtures.answer(call, rows, tiles)
    if want is None or call.get("implementation") not in (None, "reference"):  # kernels have roundings of their own
        return "passed"
    compare(found, want, dtype)
    return "agreed"


def compare(found: list[Any], want: oracle.Answer, dtype: str) -> None:
    """Output, lse and weights of some rows: NaN and infinities where the definition has them, else in the radius."""
    for x, name, held_in in zip(found, ("output", "lse", "weights"), (dtype, "float64", dtype), strict=True):
        if x is not None:
            wanted, radius = getattr(want, name), 2 * getattr(want, f"{name}_radius")
            assert_agree(x, wanted, radius, held=rows_of(want.held, wanted), dtype=held_in, what=name)


FUNCTIONS = ("attention", "attention_rows", "flash_attention", "flash_decode")


@pytest.mark.parametrize("function", FUNCTIONS)
@given(data=st.data())
def test_functions_of_query_key_and_value(function: str, data: st.DataObject) -> None:
    check(function, data.draw(mixtures.calls(function)))


def moderate(arguments: dict[str, Any]) -> bool:
    """Whether all numbers are of a size at which nothing overflows; a bias may be lower than that, or mask."""
    for name, x in arguments.items():
        if hasattr(x, "dtype") and not isinstance(x, np.ndarray | np.generic):
            return False
        if isinstance(x, int | float | np.ndarray | np.number) and not isinstance(x, bool):
            x = np.asarray(x).astype(float)
            if np.any(x > 100) or np.any(np.isnan(x)) or (name != "bias" and np.any(x < -100)):
                return False
    return True


GRADIENTS = ("attention_gradient", "flash_attention_gradient")


@pytest.mark.parametrize("function", GRADIENTS)
@given(data=st.data())
def test_gradients(function: str, data: st.DataObject) -> None:
    arguments = mixtures.given_arguments(data.draw(mixtures.calls(function)))
    got = result_or_message(function, lambda: getattr(ra, function)(**arguments))
    if got is None:
        return
    for name, x in zip(got._fields, got, strict=True):
        given_x = arguments[name]
        assert (x is None) == (given_x is None or isinstance(given_x, ra.biases.Bias)), name
        if x is not None:
            assert tuple(x.shape) == tuple(given_x.shape), name
            assert dtype_name(x) == dtype_name(given_x if arguments["dtype"] is None else arguments["dtype"]), name
    if moderate(arguments):
        assert all(np.all(np.isfinite(x)) for x in got if x is not None and x.dtype == np.float64)


@given(call=mixtures.calls("attention_scores"))
def test_attention_scores(call: dict[str, Any]) -> None:
    arguments = mixtures.given_arguments(call)
    got = result_or_message("attention_scores", lambda: ra.attention_scores(**arguments))
    if got is None:
        return
    query, key = arguments["query"], arguments["key"]
    assert tuple(got.shape) == (*query.shape[:-1], key.shape[-2])
    assert dtype_name(got) == dtype_name(query if arguments["dtype"] is None else arguments["dtype"])
    if moderate(arguments) and got.dtype == np.float64:
        assert not np.any(np.isnan(got))


LOWEST = float(np.finfo(np.float64).min)
NUMBERS = st.sampled_from([0.0, 1.0, -2.5, 1e4, -1e4, 1e300, -1e300, LOWEST, math.inf, -math.inf, math.nan])


@given(data=st.data())
def test_merge_states(data: st.DataObject) -> None:
    draw = data.draw
    n, L, Ev = draw(st.integers(0, 4)), draw(st.integers(0, 3)), draw(st.integers(0, 3))
    values = draw(st.lists(NUMBERS, min_size=n * L * (Ev + 1), max_size=n * L * (Ev + 1)))
    cells = np.array(values).reshape(n, L, Ev + 1)
    parts: dict[str, Any] = {"outputs": [x[:, 1:] for x in cells], "lses": [x[:, 0] for x in cells]}
    spoiled = draw(st.lists(st.sampled_from(["outputs", "lses", "a part", "a part"]), max_size=2))
    for what in spoiled:
        name = draw(st.sampled_from(["outputs", "lses"])) if what == "a part" else what
        if what == "a part" and isinstance(parts[name], list) and parts[name]:
            k = draw(st.integers(0, len(parts[name]) - 1))
            if isinstance(parts[name][k], np.ndarray) and parts[name][k].dtype == np.float64:
                parts[name][k] = mixtures.other_array(draw, parts[name][k])
        else:
            parts[name] = draw(st.sampled_from([*mixtures.NO_ARRAYS, [], [np.zeros((2, 2))] * 2, np.zeros((2, 2, 2))]))
    got = result_or_message("merge_states", lambda: ra.merge_states(**parts))
    if got is None or spoiled:
        assert got is None or (got.output.shape[:-1] == got.lse.shape and got.weights is None)
        return
    # The merge of parts is a softmax over them: their lse are the scores, their outputs the values.
    for row in range(L):
        seen = [k for k in range(n) if cells[k, row, 0] != -math.inf]
        want = oracle.softmax(
            [float(cells[k, row, 0]) for k in seen], [0.0] * len(seen), [cells[k, row, 1:].tolist() for k in seen], Ev,
            tiles=n,
        )  # fmt: skip
        for x, name in ((got.output[row], "output"), (got.lse[row], "lse")):
            radius = 2 * np.array(getattr(want, f"{name}_radius"))
            assert_agree(x, np.array(getattr(want, name)), radius, held=want.held, what=name)


def test_a_bare_error_is_seen() -> None:
    def bare() -> None:
        raise ValueError("operands could not be broadcast together")

    with pytest.raises(AssertionError, match="a bare error from inside"):
        result_or_message("attention", bare)


@pytest.mark.parametrize("function", [FUNCTIONS[0], *(pytest.param(x, marks=pytest.mark.slow) for x in FUNCTIONS[1:])])
def test_the_mixtures_are_mixed(function: str) -> None:
    # Neither side is starved: calls that agree with the oracle, and refusals of many kinds.
    became: Counter[str] = Counter()

    @given(call=mixtures.calls(function))
    @settings(max_examples=100, derandomize=True, database=None)
    def run(call: dict[str, Any]) -> None:
        became[check(function, call)] += 1

    run()
    assert min(became["agreed"], became["refused"]) >= 20


@pytest.mark.parametrize(
    "function", [GRADIENTS[0], *(pytest.param(x, marks=pytest.mark.slow) for x in (GRADIENTS[1], "attention_scores"))]
)
def test_the_mixtures_are_moderate_often_enough(function: str) -> None:
    # Where nothing can overflow, no NaN is let through: that must not be a rare case. What is drawn depends on the
    # constants in all modules that are loaded, so that the counts differ from run to run.
    became: Counter[str] = Counter()

    @given(call=mixtures.calls(function))
    @settings(max_examples=150, derandomize=True, database=None)
    def run(call: dict[str, Any]) -> None:
        arguments = mixtures.given_arguments(call)
        got = result_or_message(function, lambda: getattr(ra, function)(**arguments))
        became["refused" if got is None else "moderate" if moderate(arguments) else "passed"] += 1

    run()
    assert min(became["moderate"], became["refused"]) >= 20
