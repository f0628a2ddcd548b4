"""Bugs of masks, layouts and caches against plain attention of what the wrong kernel reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import biases, layouts, masks
from refattn.testing import bugs
from refattn.testing.bugs.heads import Groups
from tests.testing.kernels import normal

B, H, HK, L, S, E, EV = 2, 4, 2, 5, 12, 4, 6
Q, K, V = (normal(shape, "float64", n) for n, shape in enumerate(((B, H, L, E), (B, HK, S, E), (B, HK, S, EV))))
LOWER = masks.causal("lower_right")
TREE = masks.tree([-1, 0, 0, 1, 2], "lower_right")
Result = tuple[np.ndarray, np.ndarray]


def right(q: Any = Q, k: Any = K, v: Any = V, **given: Any) -> Result:
    """Attention of some operands."""
    result = ra.attention(q, k, v, return_lse=True, **given)
    return result.output, result.lse


def of(id: str, words: str = "", *, choice: Any = None, arrays: Any = (Q, K, V), **given: Any) -> Result:
    """What the bug of an id computes, whose name begins with some words."""
    (bug,) = (bug for bug in bugs.get(id) if bug.name.startswith(words))
    variants = [x for x in bug.variants(bugs.problem(*arrays, **given)) if choice is None or x.choice == choice]
    result = variants[0].apply()
    return result.output, result.lse


def same(got: Result, expected: Result) -> None:
    """Both results are alike."""
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)


def test_the_offset_of_a_padded_batch() -> None:
    got = of("A3", mask=masks.causal([1, 4]) & masks.lengths([6, 9]))
    same(got, right(mask=masks.causal(S - L) & masks.lengths([6, 9])))


@pytest.mark.parametrize(
    ("choice", "at"),
    [
        # The prefix has 7 keys, of which the last three are in the window; four where the diagonal's is counted.
        (("cached keys", 3), [0, 1, 2, 3, 0, 1, 2, *range(7, 12)]),
        (("cached keys", 4), [0, 1, 2, 0, 1, 2, 3, *range(7, 12)]),
        (("all keys", 3), [0, 1, 2, 3, *range(8)]),
    ],
)
def test_a_window_gathered_from_the_start(choice: Any, at: list[int]) -> None:
    window = masks.window(3, 0, "lower_right")
    same(of("A5", choice=choice, mask=window), right(Q, K[:, :, at], V[:, :, at], mask=window))


def test_a_mask_read_with_the_row_stride_of_a_padded_length() -> None:
    cells = np.random.default_rng(1).random((2, H, L, S)) < 0.6
    flat = cells.reshape(2, H, L * S)
    output, lse = of("A6", "the mask's rows", choice=16, mask=masks.array(cells) & LOWER)
    for i in range(L):
        if i * 16 + S > L * S:
            assert np.isnan(output[:, :, i]).all()  # cells that are not those of the head
            continue
        keep = flat[:, :, None, i * 16 : i * 16 + S] & LOWER.dense(L, S)[i]
        expected = right(Q[:, :, i : i + 1], mask=masks.array(keep))
        same((output[:, :, i : i + 1], lse[:, :, i : i + 1]), expected)
    # A padded batch, each of whose rows is read with the stride of the sequence's own length.
    short = np.stack([flat[0, :, 9 * i : 9 * i + 9] for i in range(L)], axis=1)
    choice = "each sequence's own length"
    got = of("A6", "the mask's rows", choice=choice, mask=masks.array(cells), keys=np.array([9, S]))
    same((got[0][:1], got[1][:1]), right(Q[:1], K[:1, :, :9], V[:1, :, :9], mask=short))


def test_a_tree_read_with_the_stride_of_the_window() -> None:
    flat = TREE.dense(L, S).reshape(-1)
    keep = np.zeros((L, S), bool)
    for i, t in np.ndindex(L, 3 + L):
        keep[i, S - L - 3 + t] = flat[i * (3 + L) + t]
    same(of("A6", "the tree", mask=TREE & masks.window(3, 0, "lower_right")), right(mask=keep))


def test_a_window_over_a_tree_by_rows() -> None:
    levels = np.concatenate([np.arange(S - L), S - L + np.array([0, 1, 1, 2, 2])])
    deep = masks.array(levels[S - L :, None] - levels < 3)
    got = of("A7", mask=TREE & deep, tree_window=3)
    same(got, right(mask=TREE & masks.window(2, 0, "lower_right")))


@pytest.mark.parametrize(("tile_q", "tile_k"), [(2, 2), (4, 3)])
def test_values_of_the_first_tiles(tile_q: int, tile_k: int) -> None:
    window = masks.window(3, 0, "lower_right")
    output, lse = right(mask=window)
    weights = ra.attention(Q, K, V, mask=window, return_weights=True).weights
    for i in range(L):
        start = (S - L + i // tile_q * tile_q - 3) // tile_k * tile_k
        for h in range(H):
            output[:, h, i] = np.einsum("bj,bje->be", weights[:, h, i, start:], V[:, h // 2, : S - start])
    same(of("A10", tile_q=tile_q, tile_k=tile_k, mask=window), (output, lse))


def test_a_loop_that_ends_at_the_diagonal() -> None:
    keep = masks.prefix(8, "upper_left").dense(L, S)
    # Tiles of two rows and two keys: rows 0 and 1 see keys 0 and 1, rows 2 and 3 see 0 .. 3, row 4 sees 0 .. 5.
    stops = np.array([2, 2, 4, 4, 6])
    got = of("A12", tile_q=2, tile_k=2, mask=masks.prefix(8, "upper_left"))
    same(got, right(mask=keep & (np.arange(S) < stops[:, None])))
    # Tiles of three keys: rows 0 and 1 see keys 0 .. 2, the others keys 0 .. 5, for row 3 reaches the second tile.
    got = of("A12", tile_q=2, tile_k=3, mask=masks.prefix(8, "upper_left"))
    same(got, right(mask=keep & (np.arange(S) < np.array([3, 3, 6, 6, 6])[:, None])))


@pytest.mark.parametrize(
    ("tile_q", "end", "counts"),
    [
        # Tiles of 8 keys end at 16, and at 24: padding of 4 and 12 keys before or on the diagonal of a tile of rows.
        (8, "the last key's tile", [0] * 16 + [4] * 9),
        (8, "the diagonal", [0] * 16 + [4] * 8 + [12]),
        (5, "the diagonal", [0] * 15 + [4] * 10),
    ],
)
def test_padding_behind_the_diagonal(tile_q: int, end: str, counts: list[int]) -> None:
    q = normal((B, H, len(counts), E), "float64")
    mask = masks.causal("upper_left")
    output, lse = right(q, mask=mask)
    more = np.exp(lse) + np.array(counts)
    expected = output * (np.exp(lse) / more)[..., None], np.log(more)
    same(of("A13", arrays=(q, K, V), tile_q=tile_q, tile_k=8, choice=((tile_q, 8), end), mask=mask), expected)


def test_a_mask_of_heads_by_batch_entry() -> None:
    keep = np.random.default_rng(0).random((2, H, L, S)) < 0.6
    q, k, v = Q[:, :2], K[:, :1], V[:, :1]
    got = of("A15", arrays=(q, k, v), mask=masks.array(keep[0, :2]))
    same(got, right(q, k, v, mask=keep[0, :2, None]))
    got = of("A15", arrays=(q, k, v), choice="(H, B, L, S)", mask=masks.array(keep[:, :2]))
    same(got, right(q, k, v, mask=np.swapaxes(keep[:, :2], 0, 1)))
    got = of("A15", choice="(H, B, L, S)", mask=masks.array(keep))
    same(got, right(mask=np.swapaxes(keep.reshape(H, B, L, S), 0, 1)))


@pytest.mark.parametrize("becomes", [np.nan, 0.0])
def test_a_mask_times_minus_infinity(becomes: float) -> None:
    keep = np.random.default_rng(0).random((L, S)) < 0.6
    (bug,) = bugs.get("A16")
    variants = {x.label: x for x in bug.variants(bugs.problem(Q, K, V, mask=keep))}
    np.testing.assert_array_equal(variants[f"a row of NaN becomes {becomes}"].apply().output, becomes)
    assert not bug.applies(bugs.problem(Q, K, V, mask=LOWER))


def test_the_mask_of_an_earlier_call() -> None:
    cells = np.random.default_rng(2).random((B, H, L, S)) < 0.6
    masked = masks.array(cells)
    same(of("A18", masked=masked), right(mask=cells))
    same(of("A18", choice="the first entry's", masked=masked), right(mask=cells[:1]))
    assert not bugs.get("A18")[0].applies(bugs.problem(Q, K, V, masked=masks.array(cells[..., :-1])))


@pytest.mark.parametrize(("order", "axes"), [("bhld", (0, 1, 2, 3)), ("blhd", (0, 2, 1, 3)), ("lbhd", (2, 0, 1, 3))])
def test_strides_of_the_shape(order: str, axes: tuple[int, ...]) -> None:
    read = []
    for x in (Q, K, V):
        view = layouts.poisoned(np.ascontiguousarray(x.transpose(axes)), margin=[1, 1, 1, 0])
        flat = np.lib.stride_tricks.as_strided(view, strides=np.empty(view.shape).strides)
        read.append(flat.transpose(np.argsort(axes)))
    words = "strides are assumed from the shape, though"
    assert np.isnan(read[0]).any()
    same(of("D5", words, margin=1, order=order), right(*read))
    some = right(v=read[2])
    got = of("D5", words, choice=("value", 0.0), margin=1, order=order)
    same(got, (np.where(np.isnan(some[0]).any(axis=-1, keepdims=True), 0.0, some[0]), some[1]))


def test_partial_results_in_whole_groups() -> None:
    (bug,) = bugs.get("D17")
    p = bugs.problem(*(normal((1, 1, n, 4), "float64", seed) for seed, n in enumerate((2, 1100, 1100))))
    left = {x.choice.reduced(1100): x for x in bug.variants(p)}
    # Of 69 parts of 16 keys two groups of 32 or 34 of two are whole, of five parts of 256 none of eight.
    for parts, group, reduced in ((16, 32, 1024), (16, 2, 1088), (256, 2, 1024), (256, 8, 1100)):
        assert Groups(parts, group).reduced(1100) == reduced
    assert {1024, 768} <= set(left)
    assert 1100 not in left
    result = left[1024].apply()
    same((result.output, result.lse), right(p.query, p.key[:, :, :1024], p.value[:, :, :1024]))


def test_a_bias_of_other_rows_heads_and_scores() -> None:
    bias = normal((H, L, S), "float64", 4)
    same(of("A17", "the head stride", bias=bias), right(bias=bias[:1]))
    same(of("C16", tile_q=2, tile_k=4, bias=bias), right(bias=bias[:, [0, 1, 0, 1, 0]]))
    of_keys = right(bias=np.concatenate([bias[..., :4]] * 3, axis=-1))
    same(of("C16", tile_q=2, tile_k=4, choice=("keys", 4), bias=bias), of_keys)
    scores = 1.5 * np.tanh((Q @ np.swapaxes(K[:, [0, 0, 1, 1]], -1, -2) / 2 + bias) / 1.5)
    same(of("C9", bias=bias, softcap=1.5), right(0 * Q, bias=scores))
    alibi = biases.alibi(3, anchor="lower_right")
    q, k, v = Q[:, :3], K[:, :1], V[:, :1]
    slopes = 2.0 ** (-8 * np.arange(1, 4) / 3)
    steep = -slopes[:, None, None] * np.abs(np.arange(S) - np.arange(L)[:, None] - (S - L))
    same(of("C11", arrays=(q, k, v), bias=alibi), right(q, k, v, bias=steep))


def test_rows_of_low_logits_are_zeros() -> None:
    bias = np.zeros((L, S))
    bias[2] = -6e4
    output, lse = right(bias=bias)
    output[:, :, 2], lse[:, :, 2] = 0, -np.inf
    same(of("B4", bias=bias), (output, lse))


def test_a_value_read_with_the_stride_of_the_key() -> None:
    flat = V.reshape(B, HK, S * EV)
    value = np.stack([flat[..., E * j : E * j + EV] for j in range(S)], axis=2)
    same(of("D3"), right(v=value))


def test_a_packed_query_read_as_padded() -> None:
    queries = np.array([3, 5])
    output, lse = right()
    tokens = np.concatenate([Q[0, :, :3], Q[1]], axis=1)
    # The second request starts at token 5 in place of 3; behind the last token it is read again.
    second = right(tokens[:, [5, 6, 7, 7, 7]][None], K[1:], V[1:])
    output[1], lse[1] = second[0][0], second[1][0]
    output[0, :, 3:], lse[0, :, 3:] = 0, -np.inf
    same(of("E6", queries=queries, keys=np.array([S, S])), (output, lse))


def test_new_tokens_that_are_not_where_they_are_read() -> None:
    new = np.arange(S)[:, None] >= S - L
    same(of("E4"), right(k=np.where(new, 0, K), v=np.where(new, 0, V)))


@pytest.mark.parametrize(
    ("id", "choice", "key", "value"),
    [
        ("E8", "key", [2.0, 0.5], [1.0, 1.0]),
        ("E8", "value", [1.0, 1.0], [4.0, 10.0]),
        ("E8", "key and value", [2.0, 0.5], [4.0, 10.0]),
        ("E10", None, [1.0, 0.25], [1.0, 2.5]),
    ],
)
def test_scales_of_quantised_operands(id: str, choice: Any, key: list[float], value: list[float]) -> None:
    descale = (1.0, np.array([0.5, 2.0]), np.array([0.25, 0.1]))
    k, v = (x * np.reshape(factors, (2, 1, 1)) for x, factors in ((K, key), (V, value)))
    same(of(id, choice=choice, descale=descale), right(k=k, v=v))


def test_an_index_of_none_reads_the_key_before() -> None:
    keep = np.zeros((L, S), bool)
    keep[:, :2], keep[3, 2] = True, True
    # Three places: row 3 fills them, the others read one key before the tensor.
    before = [np.concatenate([x, np.zeros_like(x[:, :, :1])], axis=2) for x in (K, V)]
    for x in before:
        x[:, 1, S] = x[:, 0, S - 1]
    wide = np.concatenate([keep, keep.sum(axis=1, keepdims=True) < 3], axis=1)
    same(of("E13", mask=keep, top_k=3), right(Q, *before, mask=wide))


def test_heads_that_are_not_merged() -> None:
    output, lse = right()
    first = right(k=K[:, :, :6], v=V[:, :, :6])
    for x, y in zip((output, lse), first, strict=True):
        x[:, 1:] = y[:, 1:]
    same(of("F7", splits=2, tile_k=12), (output, lse))
    same(of("F5", splits=2, tile_k=12), (right()[0], right(k=K[:, :, 6:], v=V[:, :, 6:])[1]))


def test_what_the_call_before_left() -> None:
    before = bugs.problem(Q[:, :, ::-1], K, V, mask=LOWER, scale=0.9)
    for id, expected in (
        ("C3", right(scale=0.9)),
        ("stale-call", (right(Q[:, :, ::-1], mask=LOWER, scale=0.9)[0], right()[1])),
    ):
        same(of(id, previous=before), expected)
