"""Any mixture of good and bad arguments: a result of the right shape without NaN, or a message of the function's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refattn as ra

SIZES = st.sampled_from([0, 1, 2, 3, 5])
DTYPES = st.sampled_from(["float64", "float32", "float16", "int8", "bool", "complex128", "object", "U3"])
NUMBERS = st.sampled_from([None, 0, 1, -1, 0.5, 1e4, True, float("nan"), float("inf"), "1", 10**400, np.float32(2)])


def array(draw: st.DrawFn, shape: tuple[int, ...], *, good: float = 0.9) -> Any:
    """Normal numbers of a drawn shape and dtype, mostly the ones asked for; or no array at all."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    likely = draw(st.floats(0, 1)) < good
    if not likely and draw(st.booleans()):
        return draw(st.sampled_from([None, 1.0, "x", [[1.0]], np.float64(1), object()]))
    if not likely:
        shape = tuple(draw(st.lists(SIZES, max_size=5)))
    return (3 * rng.normal(size=shape)).astype("float64" if likely else draw(DTYPES))


@st.composite
def calls(draw: st.DrawFn) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]:
    """Arrays, arguments, and the shape of the output if all is well."""
    G, Hk, L, S, E, Ev = (draw(SIZES) for _ in range(6))
    batch = tuple(draw(st.lists(SIZES, max_size=2)))
    H = G * Hk
    query, key, value = (
        array(draw, (*batch, heads, *rest)) for heads, rest in ((H, (L, E)), (Hk, (S, E)), (Hk, (S, Ev)))
    )
    choices: dict[str, Any] = {
        "mask": lambda: draw(
            st.sampled_from(
                [None, ra.masks.causal(), ra.masks.causal("lower_right"), ra.masks.window(1, 0, "upper_left")]
            )
            | st.builds(lambda x: x, st.just(np.ones((draw(SIZES), draw(SIZES)), dtype=bool)))
        ),
        "bias": lambda: array(draw, (L, S)),
        "is_causal": lambda: draw(st.sampled_from([True, False, 1, None, "yes"])),
        "scale": lambda: draw(NUMBERS),
        "softcap": lambda: draw(NUMBERS),
        "sinks": lambda: array(draw, (H,)),
        "dtype": lambda: draw(st.sampled_from([None, "float32", np.float64, "int8", "float99", 3, "float8_e4m3fn"])),
        "return_lse": lambda: draw(st.booleans()),
    }
    names = draw(st.lists(st.sampled_from(sorted(choices)), unique=True, max_size=3))
    return (query, key, value), {name: choices[name]() for name in names}, (*batch, H, L, Ev)


def result_or_message(function: str, call: Any) -> Any:
    """The result of a call, or None where it was refused in the function's own words."""
    try:
        return call()
    except (TypeError, ValueError, NotImplementedError) as error:
        if not str(error).startswith(f"{function}: "):
            raise AssertionError(f"a bare error from inside: {error!r}") from error
        return None


def numbers_of(got: Any) -> list[np.ndarray]:
    """The arrays of a result, in float64."""
    arrays = got if isinstance(got, tuple) else (got,)
    return [np.asarray(x).astype(np.float64) for x in arrays if x is not None]


@given(calls())
def test_attention(call: Any) -> None:
    arrays, arguments, shape = call
    got = result_or_message("attention", lambda: ra.attention(*arrays, **arguments))
    if got is not None:
        output, *_ = numbers = numbers_of(got)
        assert output.shape == shape or arrays[0].ndim != len(shape)
        assert not any(np.isnan(x).any() for x in numbers)


@given(calls(), st.data())
def test_attention_rows(call: Any, data: st.DataObject) -> None:
    arrays, arguments, shape = call
    place = st.tuples(*(st.integers(0, max(n - 1, 0)) for n in shape[:-1]))
    rows = data.draw(
        st.lists(place, max_size=4) | st.sampled_from([None, 3, [(0.5,)], [(-1, 0)], "rows", [[0], [0, 1]]])
    )
    got = result_or_message("attention_rows", lambda: ra.attention_rows(*arrays, rows=rows, **arguments))
    if got is not None:
        output, *_ = numbers = numbers_of(got)
        assert len(output) == len(rows)
        assert not any(np.isnan(x).any() for x in numbers)


@given(st.data())
def test_merge_states(data: st.DataObject) -> None:
    L, Ev, n = (data.draw(SIZES) for _ in range(3))
    outputs = [array(data.draw, (L, Ev), good=0.95) for _ in range(n)]
    lses = [array(data.draw, (L,), good=0.95) for _ in range(n)]
    got = result_or_message("merge_states", lambda: ra.merge_states(outputs, lses))
    if got is not None:
        assert not any(np.isnan(x).any() for x in numbers_of(got))


def test_a_bare_error_is_seen() -> None:
    def bare() -> None:
        raise ValueError("operands could not be broadcast together")

    with pytest.raises(AssertionError, match="a bare error from inside"):
        result_or_message("attention", bare)
