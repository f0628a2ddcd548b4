"""The whole text of every message about arguments that only random-feature attention has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.messages import assert_raises

Q, K, V, W = np.zeros((4, 3, 8)), np.zeros((2, 3, 8)), np.zeros((2, 3, 6)), np.zeros((5, 8))
CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "performer_attention",
        {"features": "softmax"},
        ValueError,
        "features must be one of 'positive', 'hyperbolic', 'trigonometric', 'relu'; got 'softmax'.",
    ),
    (
        "performer_attention",
        {"projection": W[:, :7]},
        ValueError,
        "projection must have shape (M, E) with M >= 1 and E=8; got (5, 7).",
    ),
    (
        "performer_attention",
        {"projection": W[:0]},
        ValueError,
        "projection must have shape (M, E) with M >= 1 and E=8; got (0, 8).",
    ),
    (
        "performer_attention",
        {"scale": -1.0},
        ValueError,
        "scale must not be negative: its root goes into queries and keys; got -1.0.",
    ),
    ("performer_attention", {"eps": -1.0}, ValueError, "eps must not be negative; got -1.0."),
    (
        "performer_attention",
        {"eps": 0.0, "features": "hyperbolic"},
        ValueError,
        "eps must be None for features='hyperbolic'; got 0.0.",
    ),
    (
        "performer_attention",
        {"eps": 1e-4, "is_causal": True},
        ValueError,
        (
            "eps must be 0 for positive features with is_causal=True, since it is added after a division by the maximum "
            "over all keys, later ones among them; got 0.0001."
        ),
    ),
    ("random_projection", {"features": 0, "dim": 2}, ValueError, "features must be at least 1; got 0."),
    ("random_projection", {"features": 2, "dim": 1.0}, TypeError, "dim must be an integer; got float."),
    (
        "random_projection",
        {"features": 2, "dim": 2, "scaling": "one"},
        ValueError,
        "scaling must be one of 'chi', 'sqrt'; got 'one'.",
    ),
    (
        "random_projection",
        {"features": 2, "dim": 2, "qr": "numpy"},
        ValueError,
        "qr must be one of 'sign', 'lapack'; got 'numpy'.",
    ),
    ("performer_error_bound", {"confidence": 1.0}, ValueError, "confidence must lie between 0 and 1; got 1.0."),
    ("performer_error_bound", {"scale": -1.0}, ValueError, "scale must not be negative; got -1.0."),
    (
        "performer_error_bound",
        {"kind": "relu"},
        ValueError,
        "kind must be one of 'positive', 'hyperbolic', 'trigonometric'; got 'relu'.",
    ),
    (
        "performer_error_bound",
        {"kind": "trigonometric"},
        ValueError,
        "orthogonal must be False for kind='trigonometric': the inequality needs independent vectors.",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "error", "text"), CASES, ids=[text for *_, text in CASES])
def test_arguments(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    right = {
        "performer_attention": {"query": Q, "key": K, "value": V, "projection": W},
        "performer_error_bound": {"query": Q, "key": K, "value": V, "features": 4},
        "random_projection": {},
    }[function]
    assert_raises(lambda: getattr(ra, function)(**right | arguments), error, f"{function}: {text}")


def test_the_gradient_takes_no_eps_of_positive_features() -> None:
    assert_raises(
        lambda: ra.performer_attention_gradient(np.zeros((4, 3, 6)), Q, K, V, projection=W, eps=1e-4),
        ValueError,
        "performer_attention_gradient: eps must be 0 for positive features: a maximum has no gradient; got 0.0001.",
    )
