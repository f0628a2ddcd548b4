"""The whole text of every message about arguments that only gradients or attention_scores have."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn as ra
from tests.messages import ANY, Case, K, Q, V, assert_raises, attend, strict

DO = np.zeros((2, 4, 3, 6))

GRADIENT: list[Case] = [
    ("no cotangent", lambda: attend("attention_gradient", grad_output=None), TypeError, f"grad_output {ANY} NoneType."),
    (
        "integers",
        lambda: attend("attention_gradient", grad_output=DO.astype(int)),
        TypeError,
        "grad_output must have a real floating-point dtype; got int64.",
    ),
    (
        "the query's features",
        lambda: attend("attention_gradient", grad_output=Q),
        ValueError,
        "grad_output must have shape (..., H, L, Ev)=(2, 4, 3, 6); got (2, 4, 3, 8).",
    ),
    (
        "a cotangent that would broadcast",
        lambda: attend("attention_gradient", grad_output=DO[:1]),
        ValueError,
        "grad_output must have shape (..., H, L, Ev)=(2, 4, 3, 6); got (1, 4, 3, 6).",
    ),
    (
        "a number for the lse",
        lambda: attend("attention_gradient", grad_lse=0.0),
        TypeError,
        f"grad_lse {ANY} float.",
    ),
    (
        "integers for the lse",
        lambda: attend("attention_gradient", grad_lse=np.zeros((2, 4, 3), int)),
        TypeError,
        "grad_lse must have a real floating-point dtype; got int64.",
    ),
    (
        "an lse with an axis too many",
        lambda: attend("attention_gradient", grad_lse=np.zeros((2, 4, 3, 1))),
        ValueError,
        "grad_lse must have shape (..., H, L)=(2, 4, 3); got (2, 4, 3, 1).",
    ),
    (
        "two libraries",
        lambda: attend("attention_gradient", grad_output=strict(DO)),
        TypeError,
        (
            "query and grad_output must come from one array library; got query from numpy and grad_output from "
            "array_api_strict. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    (
        "a dtype that strict lacks",
        lambda: ra.attention_gradient(*map(strict, (DO, Q, K, V)), dtype="float16"),
        TypeError,
        "dtype must be one that array_api_strict has; got float16.",
    ),
    (
        "a form that does not exist",
        lambda: attend("attention_gradient", implementation="flash"),
        ra.ImplementationError,
        "implementation must be one of 'reference', or None for 'reference'; got 'flash'.",
    ),
]

SCORES: list[Case] = [
    (
        "no such stage",
        lambda: ra.attention_scores(Q, K, stage="softmax"),
        ValueError,
        "stage must be one of 'raw', 'softcapped', 'biased', 'weights', 'log_weights'; got 'softmax'.",
    ),
    (
        "a stage that is no word",
        lambda: ra.attention_scores(Q, K, stage=np.array(["raw", "raw"])),
        ValueError,
        (
            "stage must be one of 'raw', 'softcapped', 'biased', 'weights', 'log_weights'; got array(['raw', 'raw'], "
            "dtype='<U3')."
        ),
    ),
    ("no key", lambda: ra.attention_scores(Q, None), TypeError, f"key {ANY} NoneType."),
    (
        "other batch axes",
        lambda: ra.attention_scores(Q, K[:1]),
        ValueError,
        "query and key must have the same batch axes (all before axis -3); got query (2, 4, 3, 8) and key (1, 2, 5, 8).",
    ),
    (
        "other features",
        lambda: ra.attention_scores(Q, K[..., :7]),
        ValueError,
        "query and key must have the same number of features E (axis -1); got query (2, 4, 3, 8) and key (2, 2, 5, 7).",
    ),
    (
        "a key of rank 2",
        lambda: ra.attention_scores(Q, K[0, 0]),
        ValueError,
        "key must have at least 3 axes (..., Hk, S, E); got (5, 8).",
    ),
    (
        "a scale of NaN",
        lambda: ra.attention_scores(Q, K, scale=math.nan),
        ValueError,
        "scale must be finite in float64; got nan.",
    ),
    (
        "a form that does not exist",
        lambda: ra.attention_scores(Q, K, implementation="numba"),
        ra.ImplementationError,
        "implementation must be one of 'reference', or None for 'reference'; got 'numba'.",
    ),
]


@pytest.mark.parametrize("case", GRADIENT, ids=[x[0] for x in GRADIENT])
def test_attention_gradient(case: Case) -> None:
    _, call, error, text = case
    assert_raises(call, error, f"attention_gradient: {text}")


@pytest.mark.parametrize("case", SCORES, ids=[x[0] for x in SCORES])
def test_attention_scores(case: Case) -> None:
    _, call, error, text = case
    assert_raises(call, error, f"attention_scores: {text}")
