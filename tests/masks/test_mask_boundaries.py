"""Masks at the edges where a comparison or an index could be off by one, and cut into more pieces than one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn import ImplementationError, masks
from refattn.masks import blocks as blocks_module
from refattn.masks import forms

WINDOW = masks.window(1, 0, anchor="upper_left")
# Rows that begin after key 0, in closed form and cell by cell.
BOTH = pytest.mark.parametrize("mask", [WINDOW, masks.array(WINDOW.dense(5, 7))], ids=["closed", "cells"])


@BOTH
def test_rows_that_begin_after_the_first_key(mask: masks.Mask) -> None:
    assert mask.count(5, 7).tolist() == 9
    matrix = mask.csr(5, 7)
    assert matrix.indptr.tolist() == [0, 1, 3, 5, 7, 9]
    assert matrix.indices.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]


class Seen:
    """A function for masks that notes the shape of each tile that it is asked for."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, b: Any, h: Any, q: Any, kv: Any) -> Any:
        """A pattern without a period of a tile."""
        self.shapes.append(np.broadcast_shapes(b.shape, h.shape, q.shape, kv.shape))
        return (3 * q + 5 * kv + h) % 7 < 3


@pytest.mark.parametrize(("cells", "heads", "side"), [(1, None, 1), (4, None, 2), (9, None, 3), (9, 2, 2), (1, 3, 1)])
def test_counting_takes_square_tiles_of_as_many_cells_as_allowed(
    monkeypatch: pytest.MonkeyPatch, cells: int, heads: int | None, side: int
) -> None:
    mask = masks.from_function(seen := Seen(), heads=heads)
    want = np.count_nonzero(mask.dense(5, 6), axis=(-2, -1))
    seen.shapes.clear()
    monkeypatch.setattr(forms, "CELLS", cells)
    np.testing.assert_array_equal(mask.count(5, 6), want)
    tiles = [(min(side, 5 - q), min(side, 6 - k)) for q in range(0, 5, side) for k in range(0, 6, side)]
    assert seen.shapes == [(*mask.lead, *tile) for tile in tiles]


@pytest.mark.parametrize(("cells", "heights"), [(1, [1] * 5), (6, [1] * 5), (12, [2, 2, 1]), (13, [2, 2, 1])])
def test_csr_takes_as_many_rows_as_allowed(monkeypatch: pytest.MonkeyPatch, cells: int, heights: list[int]) -> None:
    mask = masks.from_function(seen := Seen())
    want = mask.dense(5, 6)
    seen.shapes.clear()
    monkeypatch.setattr(forms, "CELLS", cells)
    np.testing.assert_array_equal(mask.csr(5, 6).toarray(), want)
    assert seen.shapes == [(height, 6) for height in heights]


def test_csr_of_one_key_takes_as_many_rows_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = masks.from_function(seen := Seen())
    monkeypatch.setattr(forms, "CELLS", 4)
    mask.csr(8, 1)
    assert seen.shapes == [(4, 1), (4, 1)]


def test_pictures_end_at_64() -> None:
    free = masks.window(None, None, anchor=0)
    assert free.draw(64, 64).splitlines()[-1] == "63 " + "#" * 64
    for L, S in ((65, 1), (1, 65)):
        with pytest.raises(ValueError, match=f"got L={L}, S={S}"):
            free.draw(L, S)


# Blocks.


@pytest.mark.parametrize("tile", [(4, 2), (4, 3), (1, 1), (5, 33), (16, 4), (20, 20)])
@pytest.mark.parametrize("cells", [1, 5, 8, 40])
@pytest.mark.parametrize("form", ["closed", "cells"])
def test_blocks_do_not_depend_on_how_much_is_evaluated_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int], cells: int, form: str
) -> None:
    mask = masks.window(6, 3, anchor=[0, 4]) & masks.lengths(15)
    if form == "cells":
        mask = masks.array(mask.dense(14, 17))
    want = mask.blocks(14, 17, *tile)
    monkeypatch.setattr(blocks_module, "CELLS", cells)
    got = mask.blocks(14, 17, *tile)
    for name in ("indptr", "indices", "kind", "tile", "bits"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


def test_rebuilt_blocks_are_boolean_and_those_of_more_than_one_word() -> None:
    mask = masks.window(40, 3, anchor=0)
    got = mask.blocks(70, 70, 7, 67).dense(70, 70)
    assert got.dtype == np.bool_
    np.testing.assert_array_equal(got, mask.dense(70, 70))


@BOTH
def test_bits_may_take_all_that_they_are_allowed(monkeypatch: pytest.MonkeyPatch, mask: masks.Mask) -> None:
    # The window's tiles of 5 x 33 and of 5 x 1 keys hold cells in one: 5 rows of 2 words of 4 bytes.
    monkeypatch.setattr(blocks_module, "LARGEST_BITS", 40)
    assert mask.blocks(5, 7, 5, 33).bits.nbytes == 40
    monkeypatch.setattr(blocks_module, "LARGEST_BITS", 39)
    with pytest.raises(ImplementationError, match="got at least 1 of 5 x 33 cells"):
        mask.blocks(5, 7, 5, 33)


# Families.


def test_an_array_of_eight_is_shown_in_full() -> None:
    assert repr(masks.causal(anchor=np.arange(8))) == "masks.causal(anchor=[0, 1, 2, 3, 4, 5, 6, 7])"


def test_one_batch_entry_is_shown_as_the_call_that_makes_it() -> None:
    assert repr(masks.causal(anchor=[1, 2]).at((1, 0))) == "masks.causal(anchor=2)"
    assert repr(masks.window(3, None, anchor=[1, 2]).at((0, 0))) == "masks.window(3, None, anchor=1)"


# What needs more than int32.


class Free(masks.Mask):
    """A mask of intervals that hold every key, whatever their number."""

    def _interval(self, L: int, S: int) -> Any:
        return np.zeros(1, np.int64), np.full(1, S)


def test_positions_up_to_the_largest_int32_are_kept() -> None:
    largest = np.iinfo(np.int32).max
    first, stop = masks.lengths(largest).bounds(1, largest)
    assert (first.tolist(), stop.tolist()) == ([0], [largest])
    assert Free().blocks(1, largest, 1, 2**24).indices.tolist() == list(range(128))


def test_blocks_of_more_keys_than_int32_holds_are_refused() -> None:
    with pytest.raises(ImplementationError) as caught:
        Free().blocks(1, 2**31, 1, 2**24)
    assert str(caught.value) == "mask.blocks: S must fit in int32; got 2147483648."


def test_more_entries_than_int32_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a strip would say of 2**31 key tiles; nobody waits for them to be made.
    strip = np.array([2**30, 2**30]), np.zeros(0, np.int64), np.zeros(0, np.int64)
    monkeypatch.setattr(blocks_module, "_from_intervals", lambda first, stop, S, bank: [strip])
    with pytest.raises(ImplementationError) as caught:
        Free().blocks(2, 8, 1, 1)
    assert str(caught.value) == "mask.blocks: number of key tiles must fit in int32; got 2147483648."
