"""The whole text of every message that only correctly rounded results have."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.oracle.climb import rounded
from refattn.oracle.hashing import digest
from refattn.oracle.named import NAMES, named_problem
from tests.messages import ANY, Case, K, Q, V, assert_raises

KINDS = "float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, float8_e4m3fnuz, float8_e5m2fnuz"  # in order
SATURATED = np.array([[[1e5], [2e5]]])


def poisoned(x: np.ndarray, at: tuple[int, ...], number: float) -> np.ndarray:
    """A copy with one number that is not finite."""
    x = x.copy()
    x[at] = number
    return x


CASES: list[Case] = [
    (
        "a dtype of integers",
        lambda: rounded(Q, K, V, dtype="int8"),
        TypeError,
        f"rounded: dtype must be one of {KINDS}; got int8.",
    ),
    (
        "scales only",
        lambda: digest(Q, K, V, dtype="float8_e8m0fnu"),
        TypeError,
        f"digest: dtype must be one of {KINDS}; got float8_e8m0fnu.",
    ),
    (
        "no dtype",
        lambda: rounded(Q, K, V, dtype=None),
        TypeError,
        f"rounded: dtype must be one of {KINDS}; got None.",
    ),
    ("no array", lambda: rounded(Q, [1.0], V, dtype="float32"), TypeError, f"rounded: key {ANY} list."),
    (
        "a row outside",
        lambda: digest(Q, K, V, dtype="float32", rows=[(0, 0, 3)]),
        ValueError,
        "digest: rows must lie within query's axes (..., H, L)=(2, 4, 3); got (0, 0, 3).",
    ),
    (
        "a query that is not finite",
        lambda: rounded(poisoned(Q, (1, 3, 2, 5), np.inf), K, V, dtype="bfloat16"),
        ValueError,
        "rounded: query must be finite where it is seen; got inf in query (1, 3, 2). Hide it with mask=.",
    ),
    (
        "a key that is not finite",
        lambda: rounded(Q, poisoned(K, (1, 0, 4, 0), np.nan), V, dtype="float64"),
        ValueError,
        (
            "rounded: key must be finite where it is seen; got nan in key 4, which query (1, 0, 0) sees. Hide it with "
            "mask=."
        ),
    ),
    (
        "a value that is not finite, in chosen rows",
        lambda: digest(Q, K, poisoned(V, (0, 1, 2, 5), -np.inf), dtype="float16", rows=[(0, 1, 1), (0, 2, 1)]),
        ValueError,
        (
            "digest: value must be finite where it is seen; got -inf in value 2, which query (0, 2, 1) sees. Hide it "
            "with mask=."
        ),
    ),
    (
        "digits that do not tell",
        lambda: rounded(
            SATURATED[:, :1] * 0 + 1, SATURATED, SATURATED * 0 + [[1], [1 + 2**-7]], dtype="bfloat16", softcap=1.0
        ),
        ArithmeticError,
        (
            "rounded: output[0, 0, 0] could not be rounded to bfloat16: with softcap=1.0, 2003 digits do not tell to "
            "which side of a rounding boundary it lies. Pass rows= without (0, 0), or take certified's radius."
        ),
    ),
    (
        "no problem of that name",
        lambda: named_problem("plain-float128"),
        ValueError,
        f"digest: NAME must be one of {', '.join(NAMES)}; got 'plain-float128'.",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[x[0] for x in CASES])
def test_rounded(case: Case) -> None:
    _, call, error, text = case
    assert_raises(call, error, text)
