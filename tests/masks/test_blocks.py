"""The block form: the tiles it names, their kinds, and the cells it keeps of the partial ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import ImplementationError, masks
from refattn.masks import forms
from tests.masks.cases import INTERVALS, LONG, TILES, Case, cases

TILE_SIZES = st.tuples(st.sampled_from(TILES), st.sampled_from(TILES))


def expected(dense: np.ndarray[Any, Any], tile_q: int, tile_k: int) -> list[list[tuple[int, int]]]:
    """(key tile, kind) of each query tile of one leading index, from the cells."""
    L, S = dense.shape
    rows = []
    for q in range(0, L, tile_q):
        pieces = [dense[q : q + tile_q, k : k + tile_k] for k in range(0, S, tile_k)]
        rows.append([(k, int(not piece.all())) for k, piece in enumerate(pieces) if piece.any()])
    return rows


@settings(max_examples=150)
@given(cases(), TILE_SIZES)
def test_rebuilt_blocks_are_the_dense_form(case: Case, tile: tuple[int, int]) -> None:
    blocks = case.mask.blocks(case.L, case.S, *tile)
    np.testing.assert_array_equal(blocks.dense(case.L, case.S), case.mask.dense(case.L, case.S))


@settings(max_examples=40)
@given(cases(sizes=LONG), TILE_SIZES)
def test_rebuilt_blocks_of_long_masks_are_the_dense_form(case: Case, tile: tuple[int, int]) -> None:
    blocks = case.mask.blocks(case.L, case.S, *tile)
    np.testing.assert_array_equal(blocks.dense(case.L, case.S), case.mask.dense(case.L, case.S))


@settings(max_examples=150)
@given(cases(), TILE_SIZES)
def test_entries_name_the_tiles_that_have_a_cell_and_whether_all_take_part(case: Case, tile: tuple[int, int]) -> None:
    blocks = case.mask.blocks(case.L, case.S, *tile)
    dense = case.mask.dense(case.L, case.S).reshape(math.prod(case.mask.lead), case.L, case.S)
    want = [row for one in dense for row in expected(one, *tile)]
    pairs = list(zip(blocks.indices.tolist(), blocks.kind.tolist(), strict=True))
    assert [pairs[a:b] for a, b in zip(blocks.indptr[:-1], blocks.indptr[1:], strict=True)] == want


@settings(max_examples=150)
@given(cases(), TILE_SIZES)
def test_each_distinct_partial_tile_is_kept_once_and_packed_with_zeros_around(
    case: Case, tile: tuple[int, int]
) -> None:
    tile_q, tile_k = tile
    blocks = case.mask.blocks(case.L, case.S, tile_q, tile_k)
    assert blocks.bits.shape == (blocks.bits.shape[0], tile_q, -(-tile_k // 32))
    assert [x.dtype for x in (blocks.indptr, blocks.indices, blocks.kind, blocks.tile, blocks.bits)] == [
        np.int32,
        np.int32,
        np.uint8,
        np.int32,
        np.uint32,
    ]
    assert len({x.tobytes() for x in blocks.bits}) == len(blocks.bits)
    assert np.array_equal(blocks.tile == -1, blocks.kind == 0)
    # In order of first use, each used.
    used = blocks.tile[blocks.kind == 1].tolist()
    assert list(dict.fromkeys(used)) == list(range(len(blocks.bits)))
    # Bit c % 32 of word c // 32 is key c; the cells beyond L, S and the tile are 0.
    rows = -(-case.L // tile_q)
    dense = case.mask.dense(case.L, case.S).reshape(math.prod(case.mask.lead), case.L, case.S)
    for r in range(blocks.indptr.size - 1):
        for entry in range(blocks.indptr[r], blocks.indptr[r + 1]):
            if blocks.kind[entry] == 1:
                q, k = r % rows * tile_q, blocks.indices[entry] * tile_k
                cells = dense[r // rows, q : q + tile_q, k : k + tile_k]
                words = np.zeros((tile_q, -(-tile_k // 32)), np.uint64)
                for row, c in zip(*np.nonzero(cells), strict=True):
                    words[row, c // 32] += 2 ** (c % 32)
                np.testing.assert_array_equal(blocks.bits[blocks.tile[entry]], words)


@settings(max_examples=60)
@given(cases(INTERVALS, pairs="&"), TILE_SIZES)
def test_closed_form_and_cell_by_cell_agree_in_every_array(case: Case, tile: tuple[int, int]) -> None:
    L, S = case.L, case.S
    closed = case.mask.blocks(L, S, *tile)
    by_cells = masks.array(case.mask.dense(L, S)).blocks(L, S, *tile)
    for name in ("indptr", "indices", "kind", "tile", "bits"):
        np.testing.assert_array_equal(getattr(closed, name), getattr(by_cells, name), err_msg=name)


@pytest.mark.parametrize(("tile_q", "tile_k"), [(64, 64), (128, 64), (192, 512), (48, 80)])
def test_causal_has_as_many_distinct_tiles_as_the_diagonal_can_cut(tile_q: int, tile_k: int) -> None:
    n = math.lcm(tile_q, tile_k) * 2
    blocks = masks.causal().blocks(n, n, tile_q, tile_k)
    # A tile at (a, b) is told by d = a - b: it is partial while -tile_q < d < tile_k - 1, and d is any multiple of the
    # greatest common divisor.
    step = math.gcd(tile_q, tile_k)
    assert len(blocks.bits) == len([d for d in range(-n, n, step) if -tile_q < d < tile_k - 1])


def test_intervals_with_a_gap_between_rows_leave_the_tiles_between_out() -> None:
    class Apart(masks.Mask):
        def _interval(self, L: int, S: int) -> Any:
            first = np.where(np.arange(L) % 2 == 0, 0, S - 2)
            return first, first + 2

    blocks = Apart().blocks(4, 100, 4, 10)
    assert blocks.indices.tolist() == [0, 9]
    assert blocks.kind.tolist() == [1, 1]


def test_a_cut_tile_whose_cells_all_take_part_is_full() -> None:
    for mask in (masks.lengths(10), masks.array(np.ones((9, 10), bool))):
        blocks = mask.blocks(9, 10, 8, 8)
        assert blocks.kind.tolist() == [0, 0, 0, 0]
        assert blocks.bits.shape == (0, 8, 1)


def test_query_tiles_lie_in_c_order_of_batch_head_and_position() -> None:
    cells = np.zeros((2, 3, 4, 8), bool)
    cells[1, 2, 2:, 6:] = True
    blocks = masks.array(cells).blocks(4, 8, 2, 2)
    assert np.flatnonzero(np.diff(blocks.indptr)).tolist() == [np.ravel_multi_index((1, 2, 1), (2, 3, 2))]
    assert blocks.indices.tolist() == [3]


def test_blocks_from_cells_evaluate_no_more_than_a_strip_at_a_time() -> None:
    largest = 0

    def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
        nonlocal largest
        largest = max(largest, q.size * kv.size)
        return (q // 100 + kv // 70) % 3 == 0

    mask, L, S = masks.from_function(f), 300, 10000
    blocks = mask.blocks(L, S, 300, 64)
    assert largest <= forms.CELLS < L * S
    np.testing.assert_array_equal(blocks.dense(L, S), mask.dense(L, S))


@pytest.mark.parametrize("mask", [masks.causal(), masks.array(np.tri(2, dtype=bool))], ids=["closed", "cells"])
def test_bits_beyond_256_mib_are_refused_before_they_are_made(mask: masks.Mask) -> None:
    with pytest.raises(ImplementationError) as caught:
        mask.blocks(2, 2, 2**26 + 1, 32)
    assert str(caught.value) == (
        "mask.blocks: the distinct partial tiles must fit in 256 MiB of bits; got at least 1 of 67108865 x 32 cells. "
        "Use sparse_attention."
    )


def test_blocks_are_rebuilt_at_the_lengths_they_were_made_for_only() -> None:
    blocks = masks.causal().blocks(8, 8, 4, 4)
    for L, S in ((9, 8), (8, 4)):
        with pytest.raises(ValueError, match="L and S must") as caught:
            blocks.dense(L, S)
        assert str(caught.value) == (
            f"blocks.dense: L and S must be those the blocks were made for; got L={L}, S={S} for 2 query tiles with "
            "lead=(), tile_q=4, tile_k=4."
        )
