"""Every family of masks at its edges: devices, dtypes of positions, two batch axes, nothing at all, far anchors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_strict
import numpy as np
import pytest

from refattn import masks
from refattn.masks.held import Held
from tests.messages import assert_raises

DEVICE = array_api_strict.Device("device1")
TWO = np.array([[0, 1, 2], [-1, 3, 0]])
IDS = np.array([[[0, 0, 1, 1], [5, 5, 5, 2], [1, -1, 1, 0]], [[0, 1, 2, 3], [0, 0, 0, 0], [2, 2, 1, 1]]])
PARENTS = np.array([[[-1, 0, 1, 2], [-1, 0, 0, 0], [-1, -1, 0, 1]], [[-1, 0, 1, 1], [-1, -1, -1, -1], [-1, 0, 0, 2]]])


def rule(b: Any, h: Any, q: Any, kv: Any) -> Any:
    """A rule without meaning."""
    return (q + 2 * kv + b + h) % 3 > 0


# Called in the tests, so that a mask is made in each of them.
FAMILIES: dict[str, Callable[[], masks.Mask]] = {
    "causal": lambda: masks.causal(TWO),
    "window": lambda: masks.window(1, 1, TWO),
    "lengths": lambda: masks.lengths(np.abs(TWO), np.abs(TWO[:, :1])),
    "prefix": lambda: masks.prefix(np.abs(TWO), TWO[:1]),
    "chunked": lambda: masks.chunked(2, TWO),
    "documents": lambda: masks.documents(IDS),
    "documents with a mask inside": lambda: masks.documents(IDS, IDS[:, :1], inside=masks.causal("lower_right")),
    "tree": lambda: masks.tree(PARENTS, TWO),
    "array": lambda: masks.array(rule(*np.ix_(*map(np.arange, (2, 3, 4, 4))))),
    "from_function": lambda: masks.from_function(rule, batch=2, heads=3),
    "bernoulli": lambda: masks.bernoulli(0.5, 7, batch=2, heads=3),
    "&": lambda: masks.causal(TWO) & masks.lengths(3),
    "|": lambda: masks.window(1, 0, 0) | masks.lengths(np.abs(TWO)),
    "~": lambda: ~masks.causal(TWO),
}
of_each = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)


@of_each
def test_a_tile_is_made_on_the_device(make: Callable[[], masks.Mask]) -> None:
    mask = make()
    for i, j in ((slice(0, 4), slice(1, 3)), (np.array([3, 0]), np.array([2, 1, 2]))):
        tile = mask.tile(i, j, 4, 4, xp=array_api_strict, device=DEVICE)
        assert tile.device == DEVICE
        want = mask.dense(4, 4)[..., i, :][..., j]
        np.testing.assert_array_equal(np.broadcast_to(tile._array, want.shape), want)


@of_each
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, np.int64], ids=lambda dtype: dtype.__name__)
def test_positions_may_be_of_any_integer_dtype(make: Callable[[], masks.Mask], dtype: Any) -> None:
    mask, i, j = make(), np.array([3, 0], dtype), np.array([2, 1, 2], dtype)
    tile = mask.tile(i, j, 4, 4, xp=array_api_strict)
    want = mask.dense(4, 4)[..., i, :][..., j]
    np.testing.assert_array_equal(np.broadcast_to(tile._array, want.shape), want)


@of_each
def test_each_of_two_batch_axes_is_told_apart(make: Callable[[], masks.Mask]) -> None:
    mask = make()
    dense = np.broadcast_to(mask.dense(4, 4), (*mask.lead, 4, 4))
    for index in np.ndindex(mask.lead):
        one = mask.at(index)
        assert one.lead == ()
        np.testing.assert_array_equal(one.dense(4, 4), dense[index])
        assert isinstance(repr(one), str)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: masks.window(3, None, TWO).at((1, 1, 0)), "masks.window(3, None, anchor=3)"),
        (lambda: masks.prefix([4, 5], anchor=1).at((1, 0)), "masks.prefix(5, anchor=1)"),
        (lambda: masks.chunked(3, [4, 5]).at((0, 0)), "masks.chunked(3, anchor=4)"),
        (lambda: masks.lengths([4, 5], 2).at((1, 0)), "masks.lengths(5, query=2)"),
        (lambda: masks.documents([[1, 2], [3, 4]], [5, 6]).at((1, 0)), "masks.documents([3, 4], query=[5, 6])"),
        (lambda: masks.tree([[-1, 0], [-1, -1]]).at((1, 0)), "masks.tree([-1, -1])"),
        (lambda: masks.from_function(rule), "masks.from_function(rule)"),
        (lambda: masks.from_function(rule, batch=2, heads=3), "masks.from_function(rule, batch=2, heads=3)"),
        (lambda: masks.from_function(rule, batch=2).at((1, 0)), "masks.from_function(rule, batch=2).at((1, 0))"),
        (lambda: masks.from_function(partial(rule, 0)), f"masks.from_function({partial(rule, 0)!r})"),
        (lambda: masks.bernoulli(0.5, 7, heads=2), "masks.bernoulli(0.5, 7, heads=2)"),
        (lambda: masks.bernoulli(0.5, 7, heads=2).at((1,)), "masks.bernoulli(0.5, 7, heads=2).at((1,))"),
        (lambda: masks.causal(np.arange(8)), "masks.causal(anchor=[0, 1, 2, 3, 4, 5, 6, 7])"),
        (lambda: masks.causal(np.arange(9)), "masks.causal(anchor=<int array (9,)>)"),
    ],
    ids=range(14),
)
def test_what_a_mask_shows(make: Callable[[], masks.Mask], text: str) -> None:
    assert repr(make()) == text


# Nothing.


@pytest.mark.parametrize(("L", "S"), [(3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: masks.from_function(rule),
        lambda: masks.from_function(rule, heads=2),
        lambda: masks.lengths(0) | masks.lengths(0),
        lambda: masks.causal("lower_right") | masks.window(0, 0, "upper_left"),
    ],
    ids=["function", "heads", "lengths", "bands"],
)
def test_of_no_keys_or_queries_none_is_seen(make: Callable[[], masks.Mask], L: int, S: int) -> None:
    mask = make()
    assert not mask.count(L, S).any()
    assert mask.csr(L, S, (0,)).nnz == 0
    assert mask.blocks(L, S, 2, 2).indices.size == 0
    hull = mask.hull(L, S)
    if hull is not None:
        first, stop = (np.broadcast_to(x, (*mask.lead, L)) for x in hull)
        assert ((first >= 0) & (first <= stop) & (stop <= S)).all()


def test_of_no_batch_entries_nothing_is_made() -> None:
    for mask in (masks.from_function(rule, batch=0), masks.from_function(rule, batch=0) & masks.causal()):
        assert mask.count(3, 3).shape == (0, 1)
        assert mask.blocks(3, 3, 2, 2).indptr.tolist() == [0]
        assert mask.dense(3, 3).shape == (0, 1, 3, 3)
    none = masks.documents(np.zeros((0, 3), np.int64))
    assert none.tile(slice(0, 3), slice(0, 3), 3, 3, xp=np).dtype == np.bool_
    interval = none.interval(3, 3)
    assert interval is not None
    assert [(x.dtype, x.shape) for x in interval] == [(np.int64, (0, 1, 3))] * 2


# Far, and tight.


@pytest.mark.parametrize("anchor", [-10, -1, 0, 3, 10**30])
def test_ends_stay_among_the_keys_wherever_the_anchor_is(anchor: int) -> None:
    L, S = 4, 5
    made = [masks.causal, partial(masks.window, 1, 1), partial(masks.prefix, 0), partial(masks.chunked, 2)]
    for mask in [*(make(anchor=anchor) for make in made), masks.tree([-1, 0, 1, 2], anchor=anchor)]:
        for found in (mask.interval(L, S), mask.hull(L, S)):
            if found is not None:
                first, stop = (np.broadcast_to(x, (L,)) for x in found)
                assert ((first >= 0) & (first <= stop) & (stop <= S)).all()


def test_the_hull_of_a_tree_ends_at_the_node_itself() -> None:
    hull = masks.tree([-1, 0, 1, 2], anchor=-1).hull(4, 5)
    assert hull is not None
    assert [np.broadcast_to(x, (4,)).tolist() for x in hull] == [[0, 0, 0, 0], [0, 1, 2, 3]]


def test_the_hull_inside_documents_is_that_of_the_mask_inside() -> None:
    mask = masks.documents([0, 0, 0, 1, 1, 1], inside=masks.window(1, 0) | masks.window(0, 0))
    hull = mask.hull(6, 6)
    assert hull is not None
    assert [x.tolist() for x in hull] == [[0, 0, 1, 3, 3, 4], [1, 2, 3, 4, 5, 6]]


def test_offsets_in_arrays_are_whole_numbers_of_any_size() -> None:
    # As float64 the offset is 2**62, and the window begins at the query's own place.
    mask = masks.window(2**62, None, anchor=[2**62 + 1])
    np.testing.assert_array_equal(mask.dense(4, 5)[0, 0], np.triu(np.ones((4, 5), bool), 1))


# What is said.


class Odd:
    """It has all that an array has but cells."""

    shape, ndim, dtype = (2, 2), 2, np.dtype(bool)

    def __array_namespace__(self) -> Any:
        """As arrays have it."""


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: (masks.causal() & masks.lengths(1)).check("attention", 1, 8),
            ValueError,
            'attention: masks.causal() is ambiguous for L=1, S=8. Pass anchor="lower_right" or anchor="upper_left".',
        ),
        (
            lambda: masks.causal() | np.ones((2, 2), bool),
            TypeError,
            "masks: | takes masks; got ndarray. Wrap a boolean array in masks.array.",
        ),
        (
            lambda: masks.lengths(np.array([1, 2**63], np.uint64)),
            ValueError,
            (
                "masks.lengths: key must be a non-negative integer or an array of them, of batch shape; got "
                "9223372036854775808."
            ),
        ),
        (
            lambda: masks.lengths(np.array([0, 2**63], np.uint64)),
            ValueError,
            (
                "masks.lengths: key must be a non-negative integer or an array of them, of batch shape; got "
                "9223372036854775808."
            ),
        ),
        (
            lambda: masks.lengths(2**63 - 1).check("attention", 1, 8),
            ValueError,
            "attention: key of masks.lengths must be at most S=8; got 9223372036854775807.",
        ),
        (
            lambda: masks.tree([[[-1, 0], [-1, 1]]]),
            ValueError,
            "masks.tree: parents must each be an earlier node, or -1 for none; got 1 for node 1 of batch entry (0, 1).",
        ),
        (
            lambda: masks.from_function(lambda b, h, q, kv: [True]).dense(2, 3),
            TypeError,
            "masks.from_function: f must return a boolean array; got list.",
        ),
        (lambda: masks.array(Odd()), TypeError, "masks.array: x must be a Mask or a boolean array; got Odd."),
    ],
    ids=range(8),
)
def test_messages(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    assert_raises(call, error, text)


def test_an_array_that_is_mapped_over_is_held_and_not_read() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    made = []

    def of_one(cells: Any) -> Any:
        made.append(masks.array(cells))
        return cells

    cells = torch.ones((2, 3, 4), dtype=torch.bool)
    torch.func.vmap(of_one)(cells)
    assert [(type(mask), mask.readable, mask.lead) for mask in made] == [(Held, False, ())]
    assert masks.array(cells).readable


@pytest.mark.parametrize("anchor", [2**63 - 1, 2**63, 2**62, -(2**62), -(2**63)])
def test_a_query_beyond_the_first_of_the_largest_chunks_sees_nothing(anchor: int) -> None:
    mask = masks.chunked(2**62, anchor=anchor)
    first, stop = mask.interval(1, 3)
    assert np.broadcast_arrays(first, stop)[0].tolist() == np.broadcast_arrays(first, stop)[1].tolist()
    assert not mask.dense(1, 3).any()
    assert masks.chunked(2**62, anchor=2**62 - 1).dense(1, 3).all()
