"""Exact attention on a device that is not the library's first: everything it makes is made there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra

strict = pytest.importorskip("array_api_strict", reason="array_api_strict is not installed")

RNG = np.random.default_rng(0)
Q, K, V, DO = (RNG.standard_normal((2, h, n, e)) for h, n, e in ((4, 5, 3), (2, 6, 3), (2, 6, 2), (4, 5, 2)))
MASK = RNG.random((2, 1, 5, 6)) < 0.8
CALLS: list[tuple[str, tuple[np.ndarray, ...], dict[str, Any]]] = [
    ("attention", (Q, K, V), {"return_lse": True, "return_weights": True}),
    ("attention", (Q, K, V), {"dropout_mask": RNG.random((4, 5, 6)) < 0.5, "dropout_p": 0.5, "return_lse": True}),
    ("attention_gradient", (DO, Q, K, V), {"dropout_mask": ra.masks.bernoulli(0.5, 1, heads=4), "dropout_p": 0.5}),
    ("attention_rows", (Q, K, V), {"rows": np.array([(1, 3, 4), (0, 0, 0), (1, 3, 0)]), "return_lse": True}),
    ("attention_rows", (Q, K, V), {"rows": np.zeros((0, 3), np.int64), "return_lse": True}),
    ("attention_gradient", (DO, Q, K, V), {"grad_lse": DO[..., 0]}),
    ("attention_scores", (Q, K), {"stage": "log_weights"}),
]
CHANGES: list[dict[str, Any]] = [
    {},
    {"mask": MASK, "bias": RNG.standard_normal((4, 1, 6)), "sinks": np.zeros(4), "softcap": 2.0},
    {"mask": ra.masks.window(3, 1, anchor=[0, 1]), "bias": ra.biases.alibi(np.ones(4), anchor=0)},
    {"mask": ra.masks.documents([0, 0, 1, 1, 1, 2], query=[0, 1, 1, 1, 2]) | ra.masks.lengths([3, 6])},
    {"mask": ra.masks.from_function(lambda b, h, q, kv: (q + kv + h) % 3 > 0, heads=4)},
]


def moved(x: Any) -> Any:
    """A NumPy array on the second device; anything else as it is."""
    return strict.asarray(x, device=strict.Device("device1")) if isinstance(x, np.ndarray) else x


@pytest.mark.parametrize("change", CHANGES, ids=["plain", "arrays", "rules", "documents", "function"])
@pytest.mark.parametrize(("function", "arrays", "more"), CALLS, ids=[f"{n}-{f}" for n, (f, *_) in enumerate(CALLS)])
def test_another_device(
    function: str, arrays: tuple[np.ndarray, ...], more: dict[str, Any], change: dict[str, Any]
) -> None:
    arguments = more | change
    want = getattr(ra, function)(*arrays, **arguments)
    got = getattr(ra, function)(*map(moved, arrays), **{name: moved(x) for name, x in arguments.items()})
    for x, y in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
        if y is None:
            assert x is None
            continue
        assert x.device == strict.Device("device1")
        # The same operations on the same NumPy underneath.
        np.testing.assert_array_equal(x._array, y)
