"""Documents, prefixes, chunks and trees: theorems about them, and the systems that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import masks

INSIDES = (
    None,
    masks.causal("lower_right"),
    masks.window(2, 1, "upper_left"),
    masks.prefix(2, "lower_right"),
    masks.chunked(3, "lower_right"),
    masks.causal("lower_right") & ~masks.window(1, 0, "upper_left"),
    masks.from_function(lambda b, h, q, kv: (q + 2 * kv) % 3 > 0),
)
SIZES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6)


def packed(sizes: list[tuple[int, int]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Ids of queries and of keys of documents that lie one behind the other."""
    q, k = (np.repeat(np.arange(len(sizes)), [pair[n] for pair in sizes]) for n in (0, 1))
    return k, q


@settings(max_examples=60)
@given(SIZES, st.sampled_from(INSIDES))
def test_packed_documents_are_block_diagonal(sizes: list[tuple[int, int]], inside: masks.Mask | None) -> None:
    key, query = packed(sizes)
    mask = masks.documents(key, query, inside=inside)
    own = [np.ones(pair, bool) if inside is None else inside.dense(*pair) for pair in sizes]
    want = scipy.linalg.block_diag(*own).astype(bool) if own else np.zeros((0, 0), bool)
    np.testing.assert_array_equal(mask.dense(query.size, key.size), want)
    # As a mask of the cells alone, which knows no documents.
    np.testing.assert_array_equal(mask.count(query.size, key.size), np.count_nonzero(want))


@settings(max_examples=60)
@given(SIZES, st.sampled_from(INSIDES), st.integers(0, 2**32))
def test_tokens_may_be_mixed_as_long_as_each_document_keeps_its_order(
    sizes: list[tuple[int, int]], inside: masks.Mask | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    key, query = packed(sizes)
    mixed = [rng.permutation(x) for x in (key, query)]
    # Where the n-th token of a document went.
    k, q = (np.argsort(np.argsort(x, kind="stable"), kind="stable") for x in mixed)
    want = masks.documents(key, query, inside=inside).dense(query.size, key.size)[q][:, k]
    names = rng.permutation(100)
    got = masks.documents(*(names[x] for x in mixed), inside=inside).dense(query.size, key.size)
    np.testing.assert_array_equal(got, want)


@settings(max_examples=30)
@given(SIZES, st.lists(st.integers(0, 3), min_size=2, max_size=2))
def test_tokens_of_no_document_see_nothing_and_are_not_seen(sizes: list[tuple[int, int]], more: list[int]) -> None:
    key, query = packed(sizes)
    L, S = query.size, key.size
    inside = masks.causal("lower_right")
    padded = (np.append(x, [-1 - n for n in range(m)]).astype(int) for x, m in zip((key, query), more, strict=True))
    got = masks.documents(*padded, inside=inside).dense(L + more[1], S + more[0])
    want = masks.documents(key, query, inside=inside).dense(L, S)
    np.testing.assert_array_equal(got, np.pad(want, ((0, more[1]), (0, more[0]))))


def test_each_batch_entry_and_head_takes_its_own_of_the_mask_inside() -> None:
    ids = [[0, 0, 0, 1], [0, 1, 1, 1]]
    inside = masks.causal([0, 1]) & masks.from_function(lambda b, h, q, kv: h != kv, heads=3)
    mask = masks.documents(ids, inside=inside)
    assert mask.lead == (2, 3)
    for b in range(2):
        for h in range(3):
            own = masks.documents(ids[b], inside=inside.at((b, h)))
            np.testing.assert_array_equal(mask.at((b, h)).dense(4, 4), own.dense(4, 4))
    # Of ids without a batch, and of a batch of one, too.
    for same in ([0, 0, 0, 1], [[0, 0, 0, 1]]):
        np.testing.assert_array_equal(masks.documents(same, inside=inside).dense(4, 4)[0], mask.dense(4, 4)[0])
        np.testing.assert_array_equal(masks.documents(same, inside=masks.causal([0, 1])).at((1, 0)).count(4, 4), 8 + 1)


def test_documents_of_documents() -> None:
    pairs = masks.documents([0, 0, 1, 1], inside=masks.causal())
    assert masks.documents([5, 5, 5, 5, 3, 3, 3, 3], inside=pairs).draw(8, 8).splitlines() == [
        "  01234567",
        "0 #.......",
        "1 ##......",
        "2 ..#.....",
        "3 ..##....",
        "4 ....#...",
        "5 ....##..",
        "6 ......#.",
        "7 ......##",
    ]


def test_documents_are_in_closed_form_and_keep_no_cells() -> None:
    n, size = 10**6, 1000
    mask = masks.documents(np.arange(n) // size, inside=masks.causal())
    assert mask.count(n, n) == n // size * (size * (size + 1) // 2)
    first, stop = mask.interval(n, n) or ()
    assert first[123456] == 123000
    assert stop[123456] == 123457
    # At tiles of a whole document each query tile has one key tile, all of one kind.
    blocks = mask.blocks(n, n, size, size)
    np.testing.assert_array_equal(blocks.indices, np.arange(n // size))
    assert blocks.bits.shape[0] == 1
    tile = mask.tile(slice(123400, 123500), slice(122990, 123110), n, n, xp=np)
    np.testing.assert_array_equal(tile, (np.arange(120) >= 10) & (np.arange(100)[:, None] >= 0))


def test_intervals_are_promised_where_keys_lie_side_by_side() -> None:
    causal = masks.causal("lower_right")
    assert masks.documents([2, 2, -1, 1, 1, -1], [1, 2, 1, 2]).interval(4, 6) is not None
    assert masks.documents([2, 2, -1, 1, 1, -1], inside=causal).interval(6, 6) is not None
    for mask in (
        masks.documents([2, -1, 2, 1]),
        masks.documents([2, 1, 2, 1]),
        masks.documents([[2, 2, 1], [2, 1, 2]]),
        masks.documents([2, 2, 1, 1], inside=~causal),
    ):
        n = mask.dense(mask.key.shape[-1], mask.key.shape[-1]).shape[-1]
        assert mask.interval(n, n) is None
        assert mask.bounds(n, n) is None
    assert masks.documents([[2, 2, 1], [2, 1, 2]]).at((0, 0)).interval(3, 3) is not None


def test_ids_have_any_integer_type_and_size() -> None:
    big = 2**63 - 1
    for ids in ([5, -(2**63), big, 5], np.array([5, -1, 7, 5], np.int8), np.array([5, 6, 7, 5], np.uint64)):
        got = masks.documents(ids).dense(4, 4)
        np.testing.assert_array_equal(got[0], [True, False, False, True])
        np.testing.assert_array_equal(got[2], [False, False, True, False])


def test_nothing_at_all() -> None:
    none = np.zeros(0, int)
    assert masks.documents(none).dense(0, 0).shape == (0, 0)
    assert masks.documents(none, [1, 2], inside=masks.causal("lower_right")).dense(2, 0).shape == (2, 0)
    assert not masks.documents([1, 2], none, inside=masks.causal("lower_right")).count(0, 2)
    assert not masks.documents([-1, -1], inside=masks.causal()).dense(2, 2).any()
    assert masks.documents(np.zeros((0, 3), int), inside=masks.causal()).dense(3, 3).shape == (0, 1, 3, 3)
    assert masks.tree(none).dense(0, 0).shape == (0, 0)
    assert masks.tree(none, 0).dense(0, 3).shape == (0, 3)
    assert masks.tree(np.zeros((0, 3), int)).dense(3, 3).shape == (0, 1, 3, 3)


# FlashAttention's documented picture of causal for seqlen_q=2, seqlen_k=5 and for 5 and 2, as one packed batch.
def test_packed_lower_right_is_flash_attention_s_varlen_corner() -> None:
    mask = masks.documents([0] * 5 + [1] * 2, [0] * 2 + [1] * 5, inside=masks.causal("lower_right"))
    assert [row[2:] for row in mask.draw(7, 7).splitlines()[1:]] == [
        "####...",
        "#####..",
        ".......",
        ".......",
        ".......",
        ".....#.",
        ".....##",
    ]


@settings(max_examples=30)
@given(st.integers(0, 20), st.integers(1, 20))
def test_a_prefix_is_causal_with_the_first_keys_joined(length: int, n: int) -> None:
    want = masks.causal().dense(n, n) | (np.arange(n) < length)
    np.testing.assert_array_equal(masks.prefix(length).dense(n, n), want)
    assert masks.prefix(length).interval(n, n) is not None


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 20))
def test_chunks_are_documents_of_one_size(size: int, S: int, offset: int) -> None:
    # Positions of the queries offset .. offset + 4 and of the keys, cut into documents.
    query, key = np.arange(offset, offset + 5) // size, np.arange(S) // size
    np.testing.assert_array_equal(masks.chunked(size, offset).dense(5, S), masks.documents(key, query).dense(5, S))


def test_a_query_before_the_first_key_is_in_no_chunk() -> None:
    assert masks.chunked(4, -2).dense(4, 4).any(axis=-1).tolist() == [False, False, True, True]
    assert masks.chunked(4, "lower_right").dense(6, 3).any(axis=-1).tolist() == [False] * 3 + [True] * 3


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 9))
def test_a_chain_is_causal_and_roots_see_the_context_and_themselves(n: int, context: int) -> None:
    chain = masks.tree(np.arange(n) - 1, "lower_right")
    np.testing.assert_array_equal(chain.dense(n, n + context), masks.causal("lower_right").dense(n, n + context))
    roots = masks.tree(np.full(n, -1), "lower_right").dense(n, n + context)
    np.testing.assert_array_equal(
        roots, np.eye(n, n + context, context, dtype=bool) | (np.arange(n + context) < context)
    )


def test_keys_behind_a_tree_are_seen_by_none() -> None:
    assert masks.tree([-1, 0], anchor=[1, 3]).dense(2, 5).tolist() == [
        [[[True, True, False, False, False], [True, True, True, False, False]]],
        [[[True, True, True, True, False], [True, True, True, True, True]]],
    ]


@pytest.mark.parametrize("n", [200])
def test_a_tree_s_ancestors_are_the_powers_of_its_parents(n: int) -> None:
    rng = np.random.default_rng(0)
    parents = np.array([rng.integers(-1, k) for k in range(n)])
    up = np.zeros((n, n), np.int64)
    up[parents >= 0, parents[parents >= 0]] = [1] * np.count_nonzero(parents >= 0)
    # (1 - up)^-1 = 1 + up + up^2 + ..., whose entries are 0 and 1: there is one way up.
    want = np.rint(np.linalg.inv(np.eye(n) - up)).astype(bool)
    np.testing.assert_array_equal(masks.tree(parents).dense(n, n), want)
