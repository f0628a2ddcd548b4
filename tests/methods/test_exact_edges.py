"""Exact attention, its gradient and its scores at edges that drawn problems seldom meet."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.messages import assert_raises, strict
from tests.namespaces import Library

RNG = np.random.default_rng(0)
Q, K, V, DO = (RNG.standard_normal((1, n, e)) for n, e in ((2, 3), (3, 3), (3, 2), (2, 2)))


def test_no_rows_come_in_float64(namespace: Library) -> None:
    rows = np.zeros((0, 2), np.int64)
    got = ra.attention_rows(*map(namespace.array, (Q, K, V)), rows=rows, return_lse=True)
    assert [namespace.values(x).dtype for x in got[:2]] == [np.float64] * 2
    assert [tuple(x.shape) for x in got[:2]] == [(0, 2), (0,)]


def test_a_score_of_infinity_leaves_the_others_no_weight(namespace: Library) -> None:
    # lse is inf: that key's weight is inf/inf, and every other's exp(s - inf).
    q, k = namespace.array(np.ones((1, 1, 1))), namespace.array(np.array([[[math.inf], [1.0]]]))
    log_weights = ra.attention_scores(q, k, stage="log_weights")
    np.testing.assert_array_equal(namespace.values(log_weights), [[[math.nan, -math.inf]]])
    np.testing.assert_array_equal(namespace.values(ra.attention_scores(q, k, stage="weights")), [[[math.nan, 0.0]]])


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_what_dropout_dropped_or_the_mask_hid_gets_nothing_of_a_spoiled_row(namespace: Library, p: float) -> None:
    # Row 0, whose gradient is NaN, sees keys 0 and 1, of which dropout kept key 1; key 2 is hidden from it alone.
    seen = np.array([[True, True, False], [True, True, True]])
    kept = np.array([[False, True, True], [True, True, True]])
    more: dict[str, Any] = {"mask": seen, "dropout_mask": kept, "dropout_p": p}
    spoiled, without = DO.copy(), DO.copy()
    spoiled[:, 0], without[:, 0] = math.nan, 0.0
    of_value, wanted = (
        namespace.values(
            ra.attention_gradient(
                *(namespace.array(x) for x in (dO, Q, K, V)),
                **{name: namespace.array(x) if isinstance(x, np.ndarray) else x for name, x in more.items()},
            ).value
        )
        for dO in (spoiled, without)
    )
    np.testing.assert_array_equal(of_value[0, [0, 2]], wanted[0, [0, 2]])
    assert np.isnan(of_value[0, 1]).all()


def test_gradients_of_integers_come_in_the_dtype_that_is_asked_for() -> None:
    grad = ra.attention_gradient(DO, Q.astype(np.int8), K, V, dtype="float32")
    assert {x.dtype for x in grad[:3]} == {np.dtype("float32")}


@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "sinks"])
def test_a_gradient_needs_a_dtype_for_each_narrow_input(name: str) -> None:
    import ml_dtypes

    arrays = {"query": Q, "key": K, "value": V, "bias": np.zeros((2, 3)), "sinks": np.zeros(1)}
    arrays[name] = arrays[name].astype(ml_dtypes.float8_e5m2)
    text = (
        f"attention_gradient: dtype must be given where {name} is float8_e5m2, which is no dtype for a result. Pass "
        "dtype='float32' or the namespace's own dtype."
    )
    assert_raises(lambda: ra.attention_gradient(DO, **arrays), TypeError, text)
    assert all(x.dtype == np.float64 for x in ra.attention_gradient(DO, **arrays, dtype="float64"))


@pytest.mark.parametrize("name", ["grad_output", "grad_lse"])
def test_what_a_gradient_is_made_from_comes_from_one_library(name: str) -> None:
    arrays = {"grad_output": DO, "grad_lse": DO[..., 0]}
    arrays[name] = strict(arrays[name])
    text = (
        f"attention_gradient: query and {name} must come from one array library; got query from numpy and {name} from "
        "array_api_strict. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
    )
    assert_raises(lambda: ra.attention_gradient(query=Q, key=K, value=V, **arrays), TypeError, text)
