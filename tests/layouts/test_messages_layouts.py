"""What the layouts refuse, word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn import layouts
from tests.messages import ANY, assert_raises

X = np.zeros((2, 3, 5, 4), np.float32)
T = np.zeros((7, 3, 4), np.float32)
POOL = np.zeros((4, 2, 3, 4), np.float32)
ragged, unragged = layouts.pack_ragged, layouts.unpack_ragged
paged, unpaged = layouts.pack_paged, layouts.unpack_paged

CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: layouts.to_order([1], "bhld"), TypeError, f"layouts.to_order: x {ANY} list."),
    (
        lambda: layouts.to_order(X, "bshd"),
        ValueError,
        "layouts.to_order: order must be one of 'bhld', 'blhd', 'lbhd'; got 'bshd'.",
    ),
    (
        lambda: layouts.to_order(X[0, 0], "blhd"),
        ValueError,
        "layouts.to_order: x must have at least 3 axes (..., H, L, E); got (5, 4).",
    ),
    (
        lambda: layouts.from_order(X[0, 0], "blhd"),
        ValueError,
        "layouts.from_order: x must have at least 3 axes (..., L, H, E); got (5, 4).",
    ),
    (
        lambda: layouts.to_order(X[0], "lbhd"),
        ValueError,
        "layouts.to_order: x must have 4 axes (B, H, L, E); got (3, 5, 4).",
    ),
    (
        lambda: layouts.from_order(X[0], "lbhd"),
        ValueError,
        "layouts.from_order: x must have 4 axes (L, B, H, E); got (3, 5, 4).",
    ),
    (
        lambda: layouts.pack_qkv(X[0, 0], X, X),
        ValueError,
        "layouts.pack_qkv: query must have at least 3 axes (..., H, L, E); got (5, 4).",
    ),
    (
        lambda: layouts.pack_qkv(X, X, X[:1]),
        ValueError,
        "layouts.pack_qkv: query and value must have one shape; got (2, 3, 5, 4) and (1, 3, 5, 4).",
    ),
    (
        lambda: layouts.pack_kv(X, X.astype(np.float64)),
        TypeError,
        "layouts.pack_kv: key and value must have one dtype and library; got float32 of numpy and float64 of numpy.",
    ),
    (
        lambda: layouts.unpack_qkv(X[:, :2]),
        ValueError,
        "layouts.unpack_qkv: qkv must have shape (..., L, 3, H, E); got (2, 2, 5, 4).",
    ),
    (
        lambda: layouts.unpack_kv(X),
        ValueError,
        "layouts.unpack_kv: kv must have shape (..., L, 2, H, E); got (2, 3, 5, 4).",
    ),
    (
        lambda: ragged(X[0], [1]),
        ValueError,
        "layouts.pack_ragged: x must have 4 axes (B, H, L, E); got 3 in (3, 5, 4).",
    ),
    (
        lambda: ragged(X, [1, 2], order="hdt"),
        ValueError,
        "layouts.pack_ragged: order must be one of 'thd', 'th', 'ht'; got 'hdt'.",
    ),
    (
        lambda: ragged(X, [1, 6]),
        ValueError,
        "layouts.pack_ragged: lengths must lie from 0 to L=5; got 6 for sequence 1.",
    ),
    (
        lambda: ragged(X, [-1, 5]),
        ValueError,
        "layouts.pack_ragged: lengths must lie from 0 to L=5; got -1 for sequence 0.",
    ),
    (
        lambda: ragged(X, [1]),
        ValueError,
        "layouts.pack_ragged: lengths must have shape (B,)=(2,); got (1,).",
    ),
    (
        lambda: ragged(X, np.ones(2, np.float32)),
        TypeError,
        "layouts.pack_ragged: lengths must be an integer array of shape (B,); got float32.",
    ),
    (
        lambda: ragged(X, [True, True]),
        TypeError,
        "layouts.pack_ragged: lengths must be an integer array of shape (B,); got bool.",
    ),
    (
        lambda: ragged(X, [1, 3], capacity=[4, 2]),
        ValueError,
        "layouts.pack_ragged: capacity must not be less than lengths; got 2 for 3 tokens of sequence 1.",
    ),
    (
        lambda: ragged(X, [0, 0], capacity=[2**30, 2**30]),
        ValueError,
        "layouts.pack_ragged: lengths must add up to less than 2**31, to fit in int32; got 2147483648.",
    ),
    (
        lambda: ragged(X.astype(np.int8), [1, 2], fill=np.nan),
        ValueError,
        "layouts.pack_ragged: fill must be a number that int8 has; got nan.",
    ),
    (
        lambda: unragged(X, [0, 7]),
        ValueError,
        "layouts.unpack_ragged: packed must have 3 axes (T, H, E); got 4 in (2, 3, 5, 4).",
    ),
    (
        lambda: unragged(T, [1, 7]),
        ValueError,
        "layouts.unpack_ragged: cu_seqlens must start at 0; got 1.",
    ),
    (
        lambda: unragged(T, [0, 5, 3, 7]),
        ValueError,
        "layouts.unpack_ragged: cu_seqlens must not decrease; got 5 and then 3 (sequence 1).",
    ),
    (
        lambda: unragged(T, [0, 5]),
        ValueError,
        "layouts.unpack_ragged: cu_seqlens must end at the number of tokens T=7; got 5.",
    ),
    (
        lambda: unragged(T, []),
        ValueError,
        "layouts.unpack_ragged: cu_seqlens must have shape (B + 1,), with at least one entry; got (0,).",
    ),
    (
        lambda: unragged(T, [[0, 7]]),
        ValueError,
        "layouts.unpack_ragged: cu_seqlens must have shape (B + 1,); got (1, 2).",
    ),
    (
        lambda: unragged(T, np.array([0.0, 7.0])),
        TypeError,
        "layouts.unpack_ragged: cu_seqlens must be an integer array of shape (B + 1,); got float64.",
    ),
    (
        lambda: unragged(T, [0, 3, 7], used=[3, 5]),
        ValueError,
        "layouts.unpack_ragged: used must not be more than the sequence has; got 5 of 4 tokens of sequence 1.",
    ),
    (
        lambda: unragged(T, [0, 3, 7], used=[3, -1]),
        ValueError,
        "layouts.unpack_ragged: used must not be negative; got -1 for sequence 1.",
    ),
    (
        lambda: unragged(T, [0, 3, 7], length=3),
        ValueError,
        "layouts.unpack_ragged: length must hold every sequence; got 3 for 4 tokens of sequence 1.",
    ),
    (
        lambda: layouts.page_table([3], 0),
        ValueError,
        "layouts.page_table: page_size must be at least 1; got 0.",
    ),
    (
        lambda: layouts.page_table([3, -3], 2),
        ValueError,
        "layouts.page_table: lengths must not be negative; got -3 for sequence 1.",
    ),
    (
        lambda: layouts.page_table([3], 2, spare=-1),
        ValueError,
        "layouts.page_table: spare must be at least 0; got -1.",
    ),
    (
        lambda: paged(X, [3, 3], [[0, 1], [1, 2]], 2),
        ValueError,
        (
            "layouts.pack_paged: block_table must give each page to one place; got page 1 for page 1 of "
            "sequence 0 and page 0 of sequence 1. Pass shared=True if they hold the same numbers."
        ),
    ),
    (
        lambda: paged(np.arange(2.0).reshape(2, 1, 1, 1), [1, 1], [[0], [0]], 1, shared=True),
        ValueError,
        (
            "layouts.pack_paged: x must hold the same numbers in all places of a shared page; got others for "
            "page 0 of sequence 0 (page 0 of the pool)."
        ),
    ),
    (
        lambda: paged(X, [3, 3], [[0, 1], [2, 4]], 2, pages=4),
        ValueError,
        (
            "layouts.pack_paged: block_table must lie in the pool of P=4 pages where a page is needed; got 4 "
            "for page 1 of sequence 1."
        ),
    ),
    (
        lambda: paged(X, [3, 3], [[0, 1], [2, -1]], 2),
        ValueError,
        (
            "layouts.pack_paged: block_table must be no negative page where a page is needed; got -1 for "
            "page 1 of sequence 1."
        ),
    ),
    (
        lambda: paged(X, [3, 5], [[0, 1], [2, 3]], 2),
        ValueError,
        "layouts.pack_paged: lengths must fit in the pages of block_table, 2 pages of 2; got 5 for sequence 1.",
    ),
    (
        lambda: paged(X, [3, 3], [[0, 1]], 2),
        ValueError,
        "layouts.pack_paged: block_table must have shape (B, max_pages) with B=2; got (1, 2).",
    ),
    (
        lambda: paged(X, [3, 3], [[0, 1], [2, 3]], 0),
        ValueError,
        "layouts.pack_paged: page_size must be at least 1; got 0.",
    ),
    (
        lambda: paged(X, [3, 3], [[0, 1], [2, 3]], 2, order="dhn"),
        ValueError,
        "layouts.pack_paged: order must be one of 'nhd', 'hnd'; got 'dhn'.",
    ),
    (
        lambda: unpaged(T, [[0]], [1]),
        ValueError,
        "layouts.unpack_paged: pages must have 4 axes (P, page_size, Hk, E); got 3 in (7, 3, 4).",
    ),
    (
        lambda: unpaged(POOL[:, :0], [[0]], [0]),
        ValueError,
        "layouts.unpack_paged: pages must have pages, (P, page_size, Hk, E); got (4, 0, 3, 4).",
    ),
    (
        lambda: unpaged(POOL, [[0, 4]], [3]),
        ValueError,
        (
            "layouts.unpack_paged: block_table must lie in the pool of P=4 pages where a page is needed; got "
            "4 for page 1 of sequence 0."
        ),
    ),
    (
        lambda: unpaged(POOL, [[0, 4]], [5]),
        ValueError,
        "layouts.unpack_paged: seqused_k must fit in the pages of block_table, 2 pages of 2; got 5 for sequence 0.",
    ),
    (
        lambda: unpaged(POOL, [[0, 1], [2]], [3, 2]),
        ValueError,
        (
            "layouts.unpack_paged: block_table must be an integer array of shape (B, max_pages); got a list whose rows "
            "differ in length."
        ),
    ),
    (
        lambda: unpaged(POOL, np.zeros((1, 2), np.float32), [3]),
        TypeError,
        "layouts.unpack_paged: block_table must be an integer array of shape (B, max_pages); got float32.",
    ),
    (
        lambda: layouts.pad_left(X, [1, 6]),
        ValueError,
        "layouts.pad_left: lengths must lie from 0 to L=5; got 6 for sequence 1.",
    ),
    (
        lambda: layouts.unpad_left(X, [1, 3], stop=[4, 2]),
        ValueError,
        "layouts.unpad_left: stop must not be less than leftpad; got 2 before 3 for sequence 1.",
    ),
    (
        lambda: layouts.unpad_left(X, [1, 6]),
        ValueError,
        "layouts.unpad_left: leftpad must lie from 0 to L=5; got 6 for sequence 1.",
    ),
    (
        lambda: layouts.poisoned(X, margin=[1, 1]),
        ValueError,
        "layouts.poisoned: margin must have an entry for each axis of x; got 2 for (2, 3, 5, 4).",
    ),
    (
        lambda: layouts.poisoned(X, margin=-1),
        ValueError,
        "layouts.poisoned: margin must be at least 0; got -1.",
    ),
    (
        lambda: layouts.poisoned(X.astype(np.int64)),
        ValueError,
        "layouts.poisoned: fill must be a number that int64 has; got nan.",
    ),
    (
        lambda: layouts.expanded(X, 1, 6),
        ValueError,
        "layouts.expanded: axis must be an axis of length 1; got axis 1 of (2, 3, 5, 4).",
    ),
    (
        lambda: layouts.expanded(X, 4, 6),
        ValueError,
        "layouts.expanded: axis must be an axis of length 1; got axis 4 of (2, 3, 5, 4).",
    ),
    (
        lambda: layouts.Layout("bshd"),
        ValueError,
        "layouts.Layout: order must be one of 'bhld', 'blhd', 'lbhd'; got 'bshd'.",
    ),
    (
        lambda: layouts.Layout(pages="NHD"),
        ValueError,
        "layouts.Layout: pages must be one of 'nhd', 'hnd'; got 'NHD'.",
    ),
    (
        lambda: layouts.Layout(lse="bhl"),
        ValueError,
        "layouts.Layout: lse must be one of 'ht', 'th'; got 'bhl'.",
    ),
    (
        lambda: layouts.Layout(page_size=0),
        ValueError,
        "layouts.Layout: page_size must be at least 1; got 0.",
    ),
    (
        lambda: layouts.Layout(margin=1.0),
        TypeError,
        "layouts.Layout: margin must be an integer; got float.",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[2])
def test_message(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    assert_raises(*case)


def test_entries_past_the_last_page_are_not_looked_at() -> None:
    assert unpaged(POOL, [[3, 99, -5]], [2]).shape == (1, 3, 2, 4)
    assert paged(X, [2, 0], [[0, 99], [-7, -7]], 2).shape == (1, 2, 3, 4)
