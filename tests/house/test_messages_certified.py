"""The whole text of every message about arguments that only the certified oracle has."""

from __future__ import annotations

import numpy as np
import pytest

from refattn import oracle
from tests.messages import ANY, Case, K, Q, V, assert_raises

CASES: list[Case] = [
    (
        "no such tier",
        lambda: oracle.certified(Q, K, V, tier="float32"),
        ValueError,
        "certified: tier must be one of 'float64', 'double-double'; got 'float32'.",
    ),
    ("no array", lambda: oracle.certified(Q, [1.0], V), TypeError, f"certified: key {ANY} list."),
    (
        "an integer that float64 does not hold",
        lambda: oracle.certified(np.full_like(Q, 2**53 + 2, dtype=np.int64), K, V),
        ValueError,
        "certified: query must hold integers up to 2**53, as float64 does; got 9007199254740994.",
    ),
    (
        "a row outside",
        lambda: oracle.certified(Q, K, V, rows=[(0, 0, 3)]),
        ValueError,
        "certified: rows must lie within query's axes (..., H, L)=(2, 4, 3); got (0, 0, 3).",
    ),
    (
        "values of other keys",
        lambda: oracle.certified(Q, K, V[:, :, :4]),
        ValueError,
        (
            "certified: key and value must have the same length S (axis -2); got key (2, 2, 5, 8) and value "
            "(2, 2, 4, 6)."
        ),
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_message(call, error, text) -> None:
    assert_raises(call, error, text)
