"""What each family of masks means: its cells against a written-out definition, anchors, batches, and permanence."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import masks
from tests.masks.cases import FAMILIES, LONG, Case, anchors, cases
from tests.namespaces import Library


def picture(mask: masks.Mask, L: int, S: int) -> list[str]:
    """Rows of the mask as strings of 1 and 0."""
    return ["".join("01"[int(x)] for x in row) for row in mask.dense(L, S)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_each_family_is_its_definition(family: Any) -> None:
    @settings(max_examples=40)
    @given(cases((family,), pairs="&|~"))
    def holds(case: Case) -> None:
        assert case.mask.dense(case.L, case.S).shape == (*case.mask.lead, case.L, case.S)
        np.testing.assert_array_equal(case.dense(), case.defined())

    holds()


@settings(max_examples=60)
@given(cases())
def test_combined_families_are_their_definition(case: Case) -> None:
    np.testing.assert_array_equal(case.dense(), case.defined())


@settings(max_examples=4)
@given(cases(sizes=LONG))
def test_long_masks_are_their_definition(case: Case) -> None:
    np.testing.assert_array_equal(case.dense(), case.defined())


# The two pictures in FlashAttention's documentation of causal for seqlen_q=2, seqlen_k=5 and for 5 and 2.
def test_lower_right_is_flash_attention_s_corner() -> None:
    assert picture(masks.causal(anchor="lower_right"), 2, 5) == ["11110", "11111"]
    assert picture(masks.causal(anchor="lower_right"), 5, 2) == ["00", "00", "00", "10", "11"]


# torch.ones(L, S).tril(diagonal=0) in PyTorch's documentation of scaled_dot_product_attention.
def test_upper_left_is_tril() -> None:
    assert np.array_equal(masks.causal(anchor="upper_left").dense(3, 5), np.tril(np.ones((3, 5), bool)))


def test_no_anchor_is_either_corner_where_they_agree() -> None:
    assert picture(masks.causal(), 4, 4) == picture(masks.causal(anchor="lower_right"), 4, 4)
    assert picture(masks.window(1, 0), 4, 4) == picture(masks.window(1, 0, anchor="upper_left"), 4, 4)


def test_window_counts_keys_beside_the_diagonal() -> None:
    assert picture(masks.window(1, 2, anchor="upper_left"), 3, 6) == ["111000", "111100", "011110"]
    assert masks.window(5, 0).dense(40, 40).sum(axis=-1).max() == 6


@settings(max_examples=30)
@given(st.integers(1, 30), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_offsets_from_lengths_anchor_a_padded_cache_at_each_entry_s_own_corner(L: int, more: list[int]) -> None:
    key = np.array(more) + L
    S = int(key.max()) + 3
    padded = (masks.causal(anchor=key - L) & masks.lengths(key)).dense(L, S)
    for b, n in enumerate(key):
        own = masks.causal(anchor="lower_right").dense(L, n)
        np.testing.assert_array_equal(padded[b, 0], np.pad(own, ((0, 0), (0, S - n))))


@pytest.mark.parametrize(
    ("mask", "lead"),
    [
        (masks.causal(), ()),
        (masks.causal(anchor=3), ()),
        (masks.causal(anchor=np.array(4)), ()),
        (masks.causal(anchor=[1, 2]), (2, 1)),
        (masks.window(1, 1, anchor=np.zeros((2, 3), int)), (2, 3, 1)),
        (masks.lengths(3), ()),
        (masks.lengths([3, 4]), (2, 1)),
        (masks.lengths(3, query=[1, 2, 3]), (3, 1)),
        (masks.lengths(np.zeros((2, 3), np.uint8)), (2, 3, 1)),
        (masks.array(np.ones((5, 4, 4), bool)), (5,)),
        (masks.from_function(lambda b, h, q, kv: q >= kv), ()),
        (masks.from_function(lambda b, h, q, kv: q >= kv, heads=3), (3,)),
        (masks.from_function(lambda b, h, q, kv: q >= kv, batch=2), (2, 1)),
        (masks.from_function(lambda b, h, q, kv: q >= kv, batch=2, heads=3), (2, 3)),
        (masks.prefix(2), ()),
        (masks.prefix([2, 3]), (2, 1)),
        (masks.prefix(2, [1, 2, 3]), (3, 1)),
        (masks.prefix([[2], [3]], [1, 2, 3]), (2, 3, 1)),
        (masks.chunked(2, 1), ()),
        (masks.chunked(2, [1, 2]), (2, 1)),
        (masks.tree([-1, 0, 0, 2]), ()),
        (masks.tree([-1, 0, 0, 2], [1, 2]), (2, 1)),
        (masks.tree([[-1, 0, 0, 2]] * 3), (3, 1)),
        (masks.tree(np.full((2, 1, 4), -1), [1, 2, 3]), (2, 3, 1)),
        (masks.bernoulli(0.5, 1), ()),
        (masks.bernoulli(0.5, 1, heads=3), (3,)),
        (masks.bernoulli(0.5, 1, batch=2), (2, 1)),
        (masks.bernoulli(0.5, 1, batch=2, heads=3), (2, 3)),
        (masks.documents([0, 0, 1, 1]), ()),
        (masks.documents([[0, 0, 1, 1]] * 2), (2, 1)),
        (masks.documents([0, 0, 1, 1], [[0, 1, 1, 1]] * 3), (3, 1)),
        (masks.documents([[0, 0, 1, 1]] * 2, inside=masks.array(np.ones((5, 1, 1), bool))), (2, 5)),
        (masks.documents([0, 0, 1, 1], inside=masks.causal([0, 1])), (2, 1)),
        (masks.lengths([3, 4]) & masks.array(np.ones((5, 4, 4), bool)), (2, 5)),
        (~masks.lengths([3, 4]) | masks.causal(), (2, 1)),
    ],
    ids=repr,
)
def test_leading_axes(mask: masks.Mask, lead: tuple[int, ...]) -> None:
    assert mask.lead == lead
    assert mask.dense(4, 4).shape == (*lead, 4, 4)


@settings(max_examples=40)
@given(st.data())
def test_boolean_algebra(data: st.DataObject) -> None:
    case = data.draw(cases())
    also = data.draw(cases(sizes=[case.L])).mask if case.L == case.S else masks.lengths(case.S)
    a, b, L, S = case.mask, also, case.L, case.S
    np.testing.assert_array_equal((~(a & b)).dense(L, S), (~a | ~b).dense(L, S))
    np.testing.assert_array_equal((~(a | b)).dense(L, S), (~a & ~b).dense(L, S))
    np.testing.assert_array_equal((a & b).dense(L, S), (b & a).dense(L, S))
    np.testing.assert_array_equal((a & (a | b)).dense(L, S), np.broadcast_to(a.dense(L, S), (a & b).dense(L, S).shape))


def test_not_not_is_the_mask_itself() -> None:
    mask = masks.causal()
    assert ~~mask is mask


def test_array_takes_every_library(namespace: Library) -> None:
    cells = np.random.default_rng(0).random((2, 3, 4)) < 0.5
    x = namespace.array(cells)
    np.testing.assert_array_equal(masks.array(x).dense(3, 4), cells)
    keep = masks.as_mask("attention", x)
    assert keep is not None
    np.testing.assert_array_equal(keep.dense(3, 4), cells)


def test_lengths_and_offsets_take_every_library(namespace: Library) -> None:
    x = namespace.array(np.array([1, 3]))
    np.testing.assert_array_equal(masks.lengths(x).dense(2, 3), masks.lengths([1, 3]).dense(2, 3))
    np.testing.assert_array_equal(masks.causal(anchor=x).dense(2, 3), masks.causal(anchor=[1, 3]).dense(2, 3))
    np.testing.assert_array_equal(masks.prefix(x, x).dense(2, 3), masks.prefix([1, 3], [1, 3]).dense(2, 3))
    np.testing.assert_array_equal(masks.documents(x).dense(2, 2), np.eye(2, dtype=bool))
    parents = namespace.array(np.array([-1, 0]))
    np.testing.assert_array_equal(masks.tree(parents, x).dense(2, 3), masks.tree([-1, 0], [1, 3]).dense(2, 3))


def test_from_function_may_answer_in_every_library(namespace: Library) -> None:
    def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return namespace.array(kv <= q + b)

    got = masks.from_function(f, batch=2)
    np.testing.assert_array_equal(got.dense(3, 4), masks.causal(anchor=[0, 1]).dense(3, 4))
    tile = got.tile(slice(1, 3), np.array([3, 0]), 3, 4, xp=array_api_strict)
    np.testing.assert_array_equal(tile._array[1, 0], [[False, True], [True, True]])


def test_from_function_gets_int64_positions_that_broadcast() -> None:
    seen = []

    def f(*positions: Any) -> Any:
        seen.append([(x.dtype, x.shape) for x in positions])
        return np.ones((1, 1), bool)

    mask = masks.from_function(f, batch=2, heads=3)
    assert mask.dense(4, 5).all()
    mask.at((1, 2)).dense(4, 5)
    assert seen == [
        [(np.int64, (2, 1, 1, 1)), (np.int64, (3, 1, 1)), (np.int64, (4, 1)), (np.int64, (1, 5))],
        [(np.int64, (1, 1)), (np.int64, (1, 1)), (np.int64, (4, 1)), (np.int64, (1, 5))],
    ]


def test_from_function_may_answer_with_a_single_bool() -> None:
    assert masks.from_function(lambda b, h, q, kv: True).dense(2, 3).all()


def test_as_mask_passes_none_and_masks_on() -> None:
    mask = masks.causal()
    assert masks.as_mask("attention", None) is None
    assert masks.as_mask("attention", mask) is mask


def test_a_mask_cannot_change_after_it_was_made() -> None:
    cells, offsets, key = np.zeros((3, 3), bool), np.zeros(2, np.int64), np.ones(2, np.int64)
    ids, parents = np.array([0, 0, 1]), np.array([-1, 0, 0])
    made = [masks.array(cells), masks.causal(anchor=offsets), masks.lengths(key), masks.prefix(key, offsets)]
    made += [masks.documents(ids, ids), masks.tree(parents, offsets), masks.chunked(2, offsets)]
    made += [masks.bernoulli(0.5, 1, heads=2)]
    before = [mask.dense(3, 3) for mask in made]
    cells[...], offsets[...], key[...], ids[...], parents[...] = True, 2, 3, 1, -1
    for mask, was in zip(made, before, strict=True):
        np.testing.assert_array_equal(mask.dense(3, 3), was)
        held = [x for x in vars(mask).values() if isinstance(x, np.ndarray)]
        assert held
        assert not any(x.flags.writeable for x in held)
        with pytest.raises(FrozenInstanceError):
            setattr(mask, next(iter(vars(mask))), None)


def test_the_dense_form_is_the_caller_s_own() -> None:
    mask = masks.array(np.zeros((3, 3), bool))
    mask.dense(3, 3)[...] = True
    assert not mask.dense(3, 3).any()
    assert masks.lengths(1).dense(3, 3).flags.writeable


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (masks.causal(), "masks.causal()"),
        (
            masks.causal(anchor="lower_right") & masks.window(3, 0),
            "masks.causal(anchor='lower_right') & masks.window(3, 0)",
        ),
        (masks.window(None, 2, anchor=-5), "masks.window(None, 2, anchor=-5)"),
        (masks.causal(anchor=[1, 2]), "masks.causal(anchor=[1, 2])"),
        (masks.causal(anchor=np.arange(9)), "masks.causal(anchor=<int array (9,)>)"),
        (masks.lengths([1, 2], query=3), "masks.lengths([1, 2], query=3)"),
        (masks.lengths(4), "masks.lengths(4)"),
        (masks.array(np.ones((2, 3), bool)), "masks.array(<bool array (2, 3)>)"),
        (masks.prefix(4), "masks.prefix(4)"),
        (masks.prefix([4, 2], "upper_left"), "masks.prefix([4, 2], anchor='upper_left')"),
        (masks.prefix([4, 2], [1, 3]).at((1, 0)), "masks.prefix(2, anchor=3)"),
        (masks.chunked(4), "masks.chunked(4)"),
        (masks.chunked(np.int8(4), [1, 2]), "masks.chunked(4, anchor=[1, 2])"),
        (masks.tree([-1, 0]), "masks.tree([-1, 0])"),
        (masks.tree(np.arange(9) - 1, 3), "masks.tree(<int array (9,)>, anchor=3)"),
        (masks.tree([[-1, 0], [-1, -1]], 3).at((1, 0)), "masks.tree([-1, -1], anchor=3)"),
        (masks.documents([1, 2]), "masks.documents([1, 2])"),
        (
            masks.documents([[1, 2]], [[2]], inside=masks.causal(1)).at((0, 0)),
            "masks.documents([1, 2], query=[2], inside=masks.causal(anchor=1))",
        ),
        (masks.bernoulli(0.5, 7), "masks.bernoulli(0.5, 7)"),
        (masks.bernoulli(1, 7, batch=2, heads=3), "masks.bernoulli(1.0, 7, batch=2, heads=3)"),
        (masks.bernoulli(1, 7, heads=3).at((2,)), "masks.bernoulli(1.0, 7, heads=3).at((2,))"),
        (masks.from_function(picture, batch=2, heads=3), "masks.from_function(picture, batch=2, heads=3)"),
        (masks.from_function(picture, heads=3).at((1,)), "masks.from_function(picture, heads=3).at((1,))"),
        (
            ~(masks.causal() | masks.lengths(1)) & ~masks.lengths(2),
            "~(masks.causal() | masks.lengths(1)) & ~masks.lengths(2)",
        ),
        (
            (masks.causal() | masks.lengths(1)) & masks.lengths(2),
            "(masks.causal() | masks.lengths(1)) & masks.lengths(2)",
        ),
        (masks.causal() | masks.lengths(1) & masks.lengths(2), "masks.causal() | masks.lengths(1) & masks.lengths(2)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_repr_is_the_call(mask: masks.Mask, text: str) -> None:
    assert repr(mask) == text


MAKERS = {
    "causal": lambda L, anchor: masks.causal(anchor),
    "window": lambda L, anchor: masks.window(2, 1, anchor),
    "prefix": lambda L, anchor: masks.prefix([1, 4], anchor),
    "chunked": lambda L, anchor: masks.chunked(3, anchor),
    "tree": lambda L, anchor: masks.tree(np.arange(L) // 2 - 1, anchor),
    "pair": lambda L, anchor: masks.causal(anchor) & ~masks.chunked(3, anchor) | masks.lengths(1),
    "inside": lambda L, anchor: masks.documents([1] * 6, [1] * L, inside=masks.causal(anchor)),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=10)
@given(data=st.data())
def test_another_anchor_is_all_that_changes(name: str, data: st.DataObject) -> None:
    L, S = data.draw(st.integers(1, 9)), 6
    (old, _), (new, _) = data.draw(anchors(L, S)), data.draw(anchors(L, S))
    got, want = MAKERS[name](L, old).reanchored(new), MAKERS[name](L, new)
    assert got.lead == want.lead
    np.testing.assert_array_equal(got.dense(L, S), want.dense(L, S))


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (masks.causal() & masks.lengths(2), "masks.causal(anchor=3) & masks.lengths(2)"),
        (masks.lengths(2) | ~masks.window(1, 2, [4, 5]), "masks.lengths(2) | ~masks.window(1, 2, anchor=3)"),
        (
            masks.documents([1, 1], inside=masks.prefix(1, "upper_left") & masks.chunked(5)),
            "masks.documents([1, 1], inside=masks.prefix(1, anchor=3) & masks.chunked(5, anchor=3))",
        ),
        (masks.tree([-1]), "masks.tree([-1], anchor=3)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_anchor_in_a_mask_is_replaced(mask: masks.Mask, text: str) -> None:
    assert repr(mask.reanchored(3)) == text


@pytest.mark.parametrize(
    "mask",
    [
        masks.lengths(2),
        masks.array(np.ones((2, 2), bool)),
        masks.bernoulli(0.5, 1),
        masks.from_function(picture),
        ~masks.lengths(2),
        masks.lengths(2) & masks.lengths(1) | ~masks.bernoulli(0.5, 1),
        masks.documents([1, 2]),
        masks.documents([1, 2], inside=masks.lengths(0)),
    ],
    ids=repr,
)
def test_a_mask_without_anchors_stays_itself(mask: masks.Mask) -> None:
    assert mask.reanchored("lower_right") is mask
