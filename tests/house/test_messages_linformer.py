"""The whole text of every message about arguments that only low-rank attention has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.messages import assert_raises

Q, K, V, E = np.zeros((4, 3, 8)), np.zeros((2, 6, 8)), np.zeros((2, 6, 5)), np.zeros((6, 2))
SHAPE = "must have shape (S, R) or (Hk, S, R) with S=6, Hk=2, and S and R at least 1; got"
CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("linformer_attention", {"key_projection": E[:5]}, ValueError, f"key_projection {SHAPE} (5, 2)."),
    ("linformer_attention", {"value_projection": E[:, :0]}, ValueError, f"value_projection {SHAPE} (6, 0)."),
    ("linformer_attention", {"key_projection": np.zeros((4, 6, 2))}, ValueError, f"key_projection {SHAPE} (4, 6, 2)."),
    (
        "linformer_attention",
        {"value_projection": E[:, :1]},
        ValueError,
        "key_projection and value_projection must have the same rank R (axis -1); got 2 and 1.",
    ),
    (
        "nystrom_attention",
        {"landmarks": 4},
        ValueError,
        "landmarks must not be more than the queries or keys; got 4 for L=3 and S=6.",
    ),
    ("nystrom_attention", {"landmarks": 0}, ValueError, "landmarks must be at least 1; got 0."),
    ("nystrom_attention", {"landmarks": 2, "iterations": -1}, ValueError, "iterations must be at least 0; got -1."),
    ("nystrom_attention", {"landmarks": 2, "coupled": 1}, TypeError, "coupled must be True or False; got int."),
    ("linformer_projection", {"length": 4, "rank": 0}, ValueError, "rank must be at least 1; got 0."),
    (
        "linformer_projection",
        {"length": 4, "rank": 2, "kind": "max"},
        ValueError,
        "kind must be one of 'normal', 'uniform', 'mean'; got 'max'.",
    ),
    (
        "linformer_projection",
        {"length": 5, "rank": 2, "kind": "mean"},
        ValueError,
        "rank must divide length for kind='mean'; got 2 and 5.",
    ),
    (
        "linformer_error_bound",
        {"rank": 4},
        ValueError,
        "rank must divide the number of keys S=6, at least 1; got 4.",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "error", "text"), CASES, ids=[text for *_, text in CASES])
def test_arguments(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    right = {} if function == "linformer_projection" else {"query": Q, "key": K, "value": V}
    right |= {"key_projection": E} if function == "linformer_attention" else {}
    assert_raises(lambda: getattr(ra, function)(**right | arguments), error, f"{function}: {text}")
