"""Every form of a mask says what its dense form says, on every array library, in closed form where that is promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import masks
from refattn._core.arrays import array_namespace
from refattn.masks import forms
from tests.masks.cases import BATCH, HEADS, INTERVALS, Case, cases
from tests.namespaces import Library


class OnlyIntervals(masks.Mask):
    """A causal mask with a lead that refuses to have its cells evaluated."""

    lead = (2, 1)

    def _interval(self, L: int, S: int) -> Any:
        return masks.causal(anchor=[0, 7]).interval(L, S)

    def _at(self, index: tuple[int, ...]) -> masks.Mask:
        one = OnlyIntervals()
        one.__dict__["_interval"] = masks.causal(anchor=7 * index[0]).interval
        one.__dict__["lead"] = ()
        return one


@st.composite
def positions(draw: st.DrawFn, n: int) -> Any:
    """A slice inside 0 .. n, or positions in any order, repeats included."""
    if n and draw(st.booleans()):
        return np.array(draw(st.lists(st.integers(0, n - 1), max_size=9)), np.int64)
    start, stop = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
    return slice(start, stop)


def test_tiles_are_pieces_of_the_dense_form(namespace: Library) -> None:
    xp = array_namespace("test", x=namespace.array(np.zeros(1)))

    @settings(max_examples=60)
    @given(cases(), st.data())
    def holds(case: Case, data: st.DataObject) -> None:
        L, S = case.L, case.S
        i, j = data.draw(positions(L)), data.draw(positions(S))
        want = case.mask.dense(L, S)[..., i, :][..., j]
        tile = case.mask.tile(i, j, L, S, xp=xp)
        assert isinstance(tile, type(xp.ones(1)))
        assert tile.dtype == xp.bool
        assert tuple(tile.shape[:-2]) == case.mask.lead
        np.testing.assert_array_equal(np.broadcast_to(namespace.values(tile), want.shape), want)

    holds()


def test_a_tile_has_the_leading_axes_written_out_even_where_its_cells_do_not_change() -> None:
    free = masks.window(None, None, anchor=[1, 2])
    same = masks.from_function(lambda b, h, q, kv: q >= kv, batch=2, heads=3)
    assert free.tile(slice(0, 4), slice(0, 5), 9, 9, xp=np).shape[:-2] == (2, 1)
    assert same.tile(slice(0, 4), slice(0, 5), 9, 9, xp=np).shape == (2, 3, 4, 5)


@settings(max_examples=60)
@given(cases(), st.data())
def test_at_picks_one_batch_entry_and_head(case: Case, data: st.DataObject) -> None:
    b, h = data.draw(st.integers(0, BATCH - 1)), data.draw(st.integers(0, HEADS - 1))
    one = case.mask.at((b, h))
    assert one.lead == ()
    np.testing.assert_array_equal(one.dense(case.L, case.S), case.dense()[b, h])
    np.testing.assert_array_equal(case.mask.at((5, b, h)).dense(case.L, case.S), case.dense()[b, h])


@settings(max_examples=60)
@given(cases(), st.data())
def test_rows_are_those_of_the_dense_form(case: Case, data: st.DataObject) -> None:
    b, h = data.draw(st.integers(0, BATCH - 1)), data.draw(st.integers(0, HEADS - 1))
    for r in range(min(case.L, 4)):
        row = case.mask.row(r, case.L, case.S, (b, h))
        assert row.dtype == np.int64
        np.testing.assert_array_equal(row, np.flatnonzero(case.dense()[b, h, r]))


@settings(max_examples=80)
@given(cases(), st.data())
def test_csr_is_the_dense_form(case: Case, data: st.DataObject) -> None:
    b, h = data.draw(st.integers(0, BATCH - 1)), data.draw(st.integers(0, HEADS - 1))
    matrix = case.mask.csr(case.L, case.S, (b, h))
    assert matrix.dtype == bool
    assert matrix.data.all()
    assert matrix.has_canonical_format
    np.testing.assert_array_equal(matrix.toarray(), case.dense()[b, h])


@settings(max_examples=80)
@given(cases())
def test_counts_are_those_of_the_dense_form(case: Case) -> None:
    count = case.mask.count(case.L, case.S)
    assert isinstance(count, np.ndarray)
    assert count.dtype == np.int64
    np.testing.assert_array_equal(count, np.count_nonzero(case.mask.dense(case.L, case.S), axis=(-2, -1)))


@settings(max_examples=80)
@given(cases(INTERVALS, pairs="&"))
def test_intervals_and_bounds_are_the_dense_form(case: Case) -> None:
    L, S = case.L, case.S
    interval, bounds = case.mask.interval(L, S), case.mask.bounds(L, S)
    assert interval is not None
    assert bounds is not None
    for (first, stop), dtype in ((interval, np.int64), (bounds, np.int32)):
        assert first.dtype == stop.dtype == dtype
        first, stop = (np.broadcast_to(x, (*case.mask.lead, L)) for x in (first, stop))
        assert np.all((first >= 0) & (first <= stop) & (stop <= S))
        keys = np.arange(S)
        cells = (keys >= first[..., None]) & (keys < stop[..., None])
        np.testing.assert_array_equal(cells, case.mask.dense(L, S))
    for x in bounds:
        assert x.shape == (*case.mask.lead, L)
        assert x.flags.c_contiguous


@settings(max_examples=40)
@given(cases())
def test_an_interval_form_is_right_wherever_it_is_given(case: Case) -> None:
    found = case.mask.interval(case.L, case.S)
    if found is not None:
        first, stop = (x[..., None] for x in found)
        keys = np.arange(case.S)
        shape = (*case.mask.lead, case.L, case.S)
        cells = np.broadcast_to((keys >= first) & (keys < stop), shape)
        np.testing.assert_array_equal(cells, case.mask.dense(case.L, case.S))


def test_masks_whose_rows_need_not_be_intervals_have_no_bounds() -> None:
    a, b = masks.window(1, 0), masks.causal()
    for mask in (
        a | b,
        ~a,
        masks.array(np.ones((4, 4), bool)),
        a & ~b,
        masks.from_function(lambda b, h, q, kv: q >= kv),
    ):
        assert mask.interval(4, 4) is None
        assert mask.bounds(4, 4) is None


def test_closed_forms_evaluate_no_cell() -> None:
    mask, L = OnlyIntervals(), 10**5
    # sum over i of min(i + 1 + offset, L)
    want = [L * (L + 1) // 2 + offset * L - offset * (offset + 1) // 2 for offset in (0, 7)]
    assert mask.count(L, L).ravel().tolist() == want
    assert (~mask).count(L, L).ravel().tolist() == [L * L - n for n in want]
    assert mask.csr(500, 500, (1, 0)).nnz == 500 * 501 // 2 + 7 * 500 - 28
    blocks = mask.blocks(L, L, 1000, 500)
    # Query tile t sees 2 t + 2 key tiles, and with the offset one more but for the last.
    assert np.diff(blocks.indptr)[[0, 99, 100, 199]].tolist() == [2, 200, 3, 200]


@pytest.mark.parametrize("lead", [{}, {"batch": 2, "heads": 3}])
def test_counting_and_csr_evaluate_no_more_than_a_tile_at_a_time(lead: dict[str, int]) -> None:
    largest = 0

    def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
        nonlocal largest
        largest = max(largest, np.broadcast(b, h, q, kv).size)
        return (q + kv + h) % 5 < 2

    mask, L, S = masks.from_function(f, **lead), 1200, 1300
    want = sum((q + kv) % 5 < 2 for q in range(5) for kv in range(5)) * L * S // 25
    assert mask.count(L, S).ravel().tolist() == [want] * int(np.prod(mask.lead))
    assert mask.csr(L, S, (1, 1)).nnz == want
    assert largest <= forms.CELLS < L * S


def test_a_count_beyond_int32_is_exact() -> None:
    n = 2**20
    assert masks.causal().count(n, n).tolist() == n * (n + 1) // 2
    assert masks.lengths([n, 3]).count(n, n).tolist() == [[n * n], [3 * n]]


def test_draw() -> None:
    assert masks.window(1, 0, anchor="lower_right").draw(2, 12) == "\n".join(
        [
            "  0         1",
            "  012345678901",
            "0 .........##.",
            "1 ..........##",
        ]
    )
    assert masks.causal().draw(10, 10).splitlines()[1] == "0 #........."
    assert masks.causal().draw(11, 11).splitlines()[2:5] == [" 0 #..........", " 1 ##.........", " 2 ###........"]


def test_draw_shows_each_distinct_picture_once_under_its_indices() -> None:
    cells = np.array([[[True, False]], [[False, True]], [[True, False]]])
    assert masks.array(cells).draw(1, 2) == "(0) (2)\n  01\n0 #.\n\n(1)\n  01\n0 .#"
    assert masks.lengths([1, 2]).draw(1, 2) == "(0, :)\n  01\n0 #.\n\n(1, :)\n  01\n0 ##"


def test_draw_of_nothing() -> None:
    assert masks.causal(anchor="upper_left").draw(0, 2) == "  01"
    assert masks.causal(anchor="upper_left").draw(1, 0) == "\n0"


def test_sizes_may_be_numpy_integers() -> None:
    L, S = np.int32(70000), np.int32(70000)
    assert (~masks.lengths(0)).count(L, S) == 70000**2
