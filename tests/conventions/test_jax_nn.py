"""jax.nn.dot_product_attention: its rules written out, and the JAX that is installed, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn.contract import eager
from refattn.conventions import jax_nn
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]
WINDOWS = [None, 0, 1, (2, 0), (0, 3), (1, 2), (9, 9)]
QUERIES, KEYS = np.array([1, 3], np.int32), np.array([4, 2], np.int32)


def sees(i: int, j: int, causal: bool, window: int | tuple[int, int] | None) -> bool:
    """_get_causal_mask and _get_window_mask of jax/_src/nn/functions.py."""
    left, right = (10**6, 10**6) if window is None else (window, window) if isinstance(window, int) else window
    return not (causal and j > i) and i <= j + left and i >= j - right


def is_no_padding(b: int, i: int, j: int, queries: Any, keys: Any) -> bool:
    """_get_padding_mask_logits."""
    return (queries is None or i < queries[b]) and (keys is None or j < keys[b])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_mask_lies_at_the_upper_left(causal: bool, window: Any) -> None:
    call = jax_nn(is_causal=causal, local_window_size=window)
    for L, S in LENGTHS:
        wanted = loops.seen(lambda b, h, i, j: sees(i, j, causal, window), L, S)
        np.testing.assert_array_equal(loops.dense(call, L, S), wanted)


@pytest.mark.parametrize(("queries", "keys"), [(QUERIES, KEYS), (QUERIES, None), (None, KEYS)])
def test_lengths_hide_padding(queries: Any, keys: Any) -> None:
    call = jax_nn(query_seq_lengths=queries, key_value_seq_lengths=keys, is_causal=True)
    wanted = loops.seen(lambda b, h, i, j: j <= i and is_no_padding(b, i, j, queries, keys), 3, 5, B=2)
    np.testing.assert_array_equal(loops.dense(call, 3, 5, B=2), wanted)


@pytest.mark.parametrize(
    ("implementation", "masked", "empty_row"),
    [(None, False, "mean"), ("xla", True, "mean"), ("cudnn", False, "zeros"), ("cudnn", True, "mean")],
)
def test_rows_without_keys_depend_on_the_implementation(
    implementation: str | None, masked: bool, empty_row: str
) -> None:
    mask = np.ones((3, 5), bool) if masked else None
    call = jax_nn(implementation=implementation, mask=mask, is_causal=True)
    assert (call.layout, call.lse_base, call.empty_row) == ("blhd", "e", empty_row)


@pytest.mark.parametrize("window", [(2, 0), (2, 3)])
def test_cudnn_takes_windows_beside_a_causal_mask(window: tuple[int, int]) -> None:
    assert repr(jax_nn(implementation="cudnn", local_window_size=window, is_causal=True).arguments["mask"]) == (
        "masks.window(2, 0, anchor='upper_left')"
    )


def test_notes() -> None:
    assert jax_nn().notes == jax_nn(key_value_seq_lengths=KEYS).notes == ()
    assert jax_nn(query_seq_lengths=QUERIES).notes == ("The rows behind query_seq_lengths are zeros.",)
    assert jax_nn(local_window_size=2).notes == (
        "Before October 2025 the window was dropped where nothing else masked.",
    )


# What is installed. float32, for JAX forms its softmax in nothing wider.
BIAS = np.random.default_rng(1).standard_normal((2, 4, 3, 5)).astype(np.float32)
MASK = np.random.default_rng(2).random((2, 4, 3, 5)) < 0.6
MASK[..., 0] = True
CALLS: list[dict[str, Any]] = [
    {},
    {"is_causal": True},
    {"is_causal": True, "local_window_size": 1},
    {"local_window_size": (1, 2)},
    {"bias": BIAS, "scale": 0.3},
    {"mask": MASK, "bias": BIAS[:1, :1]},
    {"mask": MASK[:1], "is_causal": True},
    {"query_seq_lengths": QUERIES, "key_value_seq_lengths": KEYS},
    {"query_seq_lengths": QUERIES, "is_causal": True},
    {"key_value_seq_lengths": KEYS, "is_causal": True},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: "+".join(call) or "plain")
def test_the_jax_that_is_installed(call: dict[str, Any]) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q, k, v = (x.astype(np.float32) for x in loops.draw(np.random.default_rng(0), 3, 5))
    v = np.concatenate([v, v], axis=-1)[..., :5]
    output, lse = (
        np.swapaxes(np.asarray(x), 1, 2)
        for x in jax.nn.dot_product_attention(*(np.swapaxes(x, 1, 2) for x in (q, k, v)), **call, return_residual=True)
    )
    converted = jax_nn(**call)
    assert (converted.layout, converted.lse_base) == ("blhd", "e")
    assert budget_used(output, q, k, v, eager("float32"), **converted.arguments) <= 1
    wanted = ra.attention(q, k, v, **converted.arguments, return_lse=True).lse
    # The bits that 20 float32 operations may cost, and nothing like a factor ln 2; padded rows are JAX's own matter.
    near = np.abs(lse - wanted) <= 20 * 2.0**-23 * (1 + np.abs(wanted))
    assert np.all(near | np.isneginf(wanted))


@pytest.mark.parametrize("keys", [np.array([0, 0], np.int32), None])
def test_rows_without_keys_of_the_jax_that_is_installed(keys: Any) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q, k, v = (x.astype(np.float32) for x in loops.draw(np.random.default_rng(0), 3, 4, Hk=4))
    v = np.concatenate([v, v], axis=-1)[..., :5]
    # Small integers: the sum of four and a quarter of it are exact.
    v = np.rint(4 * v)
    hides = {"mask": np.zeros((1, 1, 3, 4), bool)} if keys is None else {"key_value_seq_lengths": keys}
    output, lse = jax.nn.dot_product_attention(
        *(np.swapaxes(x, 1, 2) for x in (q, k, v)), **hides, return_residual=True
    )
    call = jax_nn(**hides, return_residual=True)
    assert call.empty_row == "mean"
    assert not call.arguments["mask"].dense(3, 4).any()
    wanted = np.broadcast_to(v.mean(axis=2, keepdims=True), (2, 4, 3, 5))
    np.testing.assert_array_equal(np.swapaxes(np.asarray(output), 1, 2), wanted)
    assert np.asarray(lse).max() < -1e38
