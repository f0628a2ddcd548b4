"""The whole text of every message about arguments of the recurrences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.messages import assert_raises

Q, K, V = np.zeros((2, 4, 3, 8)), np.zeros((2, 2, 3, 8)), np.zeros((2, 1, 3, 6))
ROWS = np.zeros((2, 4, 3))
FUNCTIONS = ("recurrent_attention", "recurrent_attention_gradient", "recurrent_error_bound")
HEADS = "the numbers of heads (axis -3) of query, key and value must divide H = max(Hq, Hv), and features E be at least 1; got "
CASES: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"update_rule": "rwkv"},
        ValueError,
        "update_rule must be one of 'linear', 'gated', 'delta', 'gated_delta'; got 'rwkv'.",
    ),
    ({"update_rule": "gated"}, ValueError, "update_rule='gated' needs decay; got None."),
    ({"update_rule": "gated_delta", "decay": ROWS}, ValueError, "update_rule='gated_delta' needs beta; got None."),
    (
        {"decay": ROWS},
        ValueError,
        "decay must be None for update_rule='linear'; got ndarray. It is for 'gated', 'gated_delta'.",
    ),
    (
        {"update_rule": "delta", "beta": ROWS, "low_rank": (Q, Q)},
        ValueError,
        "low_rank must be None for update_rule='delta'; got tuple. It is for 'linear', 'gated'.",
    ),
    ({"low_rank": Q}, TypeError, "low_rank must be a tuple (a, b) of two arrays; got ndarray."),
    ({"query": Q[0, 0]}, ValueError, "query must have at least 3 axes (..., Hq, L, E); got (3, 8)."),
    ({"value": V[0, 0]}, ValueError, "value must have at least 3 axes (..., Hv, L, Ev); got (3, 6)."),
    (
        {"key": K[:, :, :2]},
        ValueError,
        "query and key must have the same length L (axis -2); got query (2, 4, 3, 8) and key (2, 2, 2, 8).",
    ),
    (
        {"value": V[:1]},
        ValueError,
        "query and value must have the same leading axes; got query (2, 4, 3, 8) and value (1, 1, 3, 6).",
    ),
    (
        {"key": K[..., :7]},
        ValueError,
        "query and key must have the same number of features E (axis -1); got query (2, 4, 3, 8) and key (2, 2, 3, 7).",
    ),
    ({"key": np.zeros((2, 3, 3, 8))}, ValueError, f"{HEADS}Hq=4, Hk=3, Hv=1, E=8."),
    ({"query": Q[..., :0], "key": K[..., :0]}, ValueError, f"{HEADS}Hq=4, Hk=2, Hv=1, E=0."),
    (
        {"update_rule": "gated", "decay": ROWS[:, :1]},
        ValueError,
        "decay must have shape (..., H, L) or (..., H, L, E) with H=4, L=3, E=8; got (2, 1, 3).",
    ),
    (
        {"update_rule": "delta", "beta": Q},
        ValueError,
        "beta must have shape (..., H, L) with H=4, L=3, E=8; got (2, 4, 3, 8).",
    ),
    (
        {"low_rank": (Q, ROWS)},
        ValueError,
        "low_rank_b must have shape (..., H, L, E) with H=4, L=3, E=8; got (2, 4, 3).",
    ),
    (
        {"initial_state": np.zeros((2, 1, 8, 6))},
        ValueError,
        "initial_state must have shape (..., H, E, Ev)=(2, 4, 8, 6); got (2, 1, 8, 6).",
    ),
    (
        {"initial_state": np.zeros((2, 4, 8, 6)), "cu_seqlens": [0, 1, 3]},
        ValueError,
        "initial_state must have shape (..., N, H, E, Ev)=(2, 2, 4, 8, 6); got (2, 4, 8, 6).",
    ),
    ({"cu_seqlens": [0, 2]}, ValueError, "cu_seqlens must end at the number of tokens T=3; got 2."),
    (
        {"cu_seqlens": [0, 2, 1, 3]},
        ValueError,
        "cu_seqlens must not decrease; got 2 and then 1 (sequence 1).",
    ),
    ({"scale": "1"}, TypeError, "scale must be a real number or None; got str."),
]
OWN: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "recurrent_attention",
        {"form": "fast"},
        ValueError,
        "form must be one of 'recurrent', 'chunked', 'parallel'; got 'fast'.",
    ),
    ("recurrent_attention", {"chunk": 0}, ValueError, "chunk must be at least 1; got 0."),
    ("recurrent_attention", {"return_state": 1}, TypeError, "return_state must be True or False; got int."),
    ("recurrent_attention_gradient", {"chunk": True}, TypeError, "chunk must be an integer; got bool."),
    (
        "recurrent_attention_gradient",
        {"grad_output": V},
        ValueError,
        "grad_output must have shape (..., H, L, Ev)=(2, 4, 3, 6); got (2, 1, 3, 6).",
    ),
    (
        "recurrent_attention_gradient",
        {"grad_state": V},
        ValueError,
        "grad_state must have shape (..., H, E, Ev)=(2, 4, 8, 6); got (2, 1, 3, 6).",
    ),
    (
        "recurrent_error_bound",
        {"accumulation": "float31"},
        ValueError,
        (
            "accumulation must be one of 'float64', 'float32', 'tf32', 'float16', 'bfloat16', 'float8_e4m3fn', "
            "'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz'; got 'float31'."
        ),
    ),
]


def call(function: str, **arguments: Any) -> Any:
    """A call, right but for what is given."""
    arrays = {"query": Q, "key": K, "value": V} | arguments
    if function.endswith("gradient"):
        arrays = {"grad_output": np.zeros((2, 4, 3, 6))} | arrays
    return getattr(ra, function)(**arrays)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("arguments", "error", "text"), CASES, ids=[text for *_, text in CASES])
def test_arguments_that_all_take(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_raises(lambda: call(function, **arguments), error, f"{function}: {text}")


@pytest.mark.parametrize(("function", "arguments", "error", "text"), OWN, ids=[text for *_, text in OWN])
def test_arguments_of_one(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_raises(lambda: call(function, **arguments), error, f"{function}: {text}")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_right_is_taken(function: str) -> None:
    call(function, initial_state=np.zeros((2, 2, 4, 8, 6)), cu_seqlens=np.array([0, 0, 3], np.int32))
