"""New tokens in a cache of fixed size: each cell against its definition, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import layouts
from tests.messages import ANY, assert_raises
from tests.namespaces import Library

CACHE, UPDATE = np.zeros((2, 3, 5, 4)), np.ones((2, 3, 2, 4))
SHAPE = "layouts.scatter: update must have cache's shape but for at most P=5 positions on axis -2; got cache"


@st.composite
def writes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Any, int, str]:
    """Arguments of scatter: cache, update, write_indices, axis and mode."""
    rank = draw(st.integers(2, 4))
    axis = draw(st.integers(1, rank - 1))
    shape = tuple(draw(st.integers(0, 3)) for _ in range(rank))
    P, mode = draw(st.integers(0, 6)), draw(st.sampled_from(["linear", "circular"]))
    N = draw(st.integers(0, P))
    cache = np.arange(np.prod((*shape[:axis], P, *shape[axis + 1 :]), dtype=int)).astype(np.float32)
    cache = cache.reshape(*shape[:axis], P, *shape[axis + 1 :])
    update = -1 - np.arange(np.prod((*shape[:axis], N, *shape[axis + 1 :]), dtype=int)).astype(np.float32)
    update = update.reshape(*shape[:axis], N, *shape[axis + 1 :])
    most = P - N if mode == "linear" else 2**62
    at = draw(st.none() | st.lists(st.integers(0, most), min_size=shape[0], max_size=shape[0]))
    return cache, update, at, draw(st.sampled_from([axis, axis - rank])), mode


@given(write=writes())
@settings(max_examples=60)
def test_each_cell_is_the_new_token_that_is_written_there_or_the_old_one(namespace: Library, write: Any) -> None:
    cache, update, at, axis, mode = write
    wanted = cache.copy()
    for index in np.ndindex(update.shape):
        to, P = list(index), cache.shape[axis]
        to[axis] += 0 if at is None else at[index[0]]
        to[axis] = to[axis] % P if mode == "circular" else to[axis]
        wanted[tuple(to)] = update[index]
    more = {} if at is None else {"write_indices": at}
    old = namespace.array(cache)
    present = namespace.values(layouts.scatter(old, namespace.array(update), axis=axis, mode=mode, **more))
    assert present.dtype == cache.dtype
    np.testing.assert_array_equal(present, wanted)
    np.testing.assert_array_equal(namespace.values(old), cache)


def test_a_ring_of_writes_keeps_the_last_tokens() -> None:
    # Decoding past the end of the cache: token t lies at t modulo P.
    cache, P = np.full((1, 4, 1), -1), 4
    for t in range(11):
        cache = layouts.scatter(cache, np.array([[[t]]]), [t], mode="circular")
    assert cache.ravel().tolist() == [8, 9, 10, 7]
    assert [n % P for n in cache.ravel()] == list(range(P))


def test_two_writes_are_the_write_of_both(namespace: Library) -> None:
    new = np.arange(24.0).reshape(2, 3, 4, 1) + 1
    cache, at = np.zeros((2, 3, 5, 1)), np.array([1, 4])
    first, second, both = (namespace.array(x) for x in (new[:, :, :1], new[:, :, 1:], new))
    one = layouts.scatter(namespace.array(cache), both, at, mode="circular")
    two = layouts.scatter(layouts.scatter(namespace.array(cache), first, at), second, at + 1, mode="circular")
    np.testing.assert_array_equal(namespace.values(one), namespace.values(two))


REFUSED = {
    "a list": (lambda: layouts.scatter([1.0], UPDATE), TypeError, f"layouts.scatter: cache {ANY} list."),
    "another dtype": (
        lambda: layouts.scatter(CACHE, UPDATE.astype(np.float32)),
        TypeError,
        "layouts.scatter: update must have cache's dtype float64; got float32.",
    ),
    "no such mode": (
        lambda: layouts.scatter(CACHE, UPDATE, mode="ring"),
        ValueError,
        "layouts.scatter: mode must be one of 'linear', 'circular'; got 'ring'.",
    ),
    "the batch": (
        lambda: layouts.scatter(CACHE, UPDATE, axis=0),
        ValueError,
        "layouts.scatter: axis must be one of cache's axes but the first, the batch; got 0 for (2, 3, 5, 4).",
    ),
    "the batch from behind": (
        lambda: layouts.scatter(CACHE, UPDATE, axis=-4),
        ValueError,
        "layouts.scatter: axis must be one of cache's axes but the first, the batch; got -4 for (2, 3, 5, 4).",
    ),
    "no such axis": (
        lambda: layouts.scatter(CACHE, UPDATE, axis=4),
        ValueError,
        "layouts.scatter: axis must be one of cache's axes but the first, the batch; got 4 for (2, 3, 5, 4).",
    ),
    "half an axis": (
        lambda: layouts.scatter(CACHE, UPDATE, axis=0.5),
        TypeError,
        "layouts.scatter: axis must be an integer; got float.",
    ),
    "other axes": (
        lambda: layouts.scatter(CACHE, UPDATE[..., :3]),
        ValueError,
        f"{SHAPE} (2, 3, 5, 4) and update (2, 3, 2, 3).",
    ),
    "fewer axes": (
        lambda: layouts.scatter(CACHE, UPDATE[0]),
        ValueError,
        f"{SHAPE} (2, 3, 5, 4) and update (3, 2, 4).",
    ),
    "more tokens than positions": (
        lambda: layouts.scatter(CACHE, np.ones((2, 3, 6, 4))),
        ValueError,
        f"{SHAPE} (2, 3, 5, 4) and update (2, 3, 6, 4).",
    ),
    "positions for another batch": (
        lambda: layouts.scatter(CACHE, UPDATE, [0, 1, 2]),
        ValueError,
        "layouts.scatter: write_indices must have shape (B,)=(2,); got (3,).",
    ),
    "past the end": (
        lambda: layouts.scatter(CACHE, UPDATE, [0, 4]),
        ValueError,
        "layouts.scatter: write_indices must lie from 0 to P - N=3; got 4 for sequence 1.",
    ),
    "before the start": (
        lambda: layouts.scatter(CACHE, UPDATE, [-1, 0], mode="circular"),
        ValueError,
        "layouts.scatter: write_indices must not be negative; got -1 for sequence 0.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_text(case: str) -> None:
    assert_raises(*REFUSED[case])
