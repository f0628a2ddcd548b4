"""Stages of the score and counts of costs, number by number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn._core.arrays import array_namespace
from refattn._core.cost import Given, Tally
from refattn._core.score import Score
from refattn.masks.held import Held
from tests.namespaces import Library


def test_no_gradient_passes_a_cell_that_has_none_whatever_its_score_is(namespace: Library) -> None:
    # At a score of 0 the softcap's slope is 1; at NaN it is NaN, and counts only where a gradient meets it.
    q, k = namespace.array(np.ones((1, 1))), namespace.array(np.array([[0.0], [0.0], [math.nan], [math.nan]]))
    dS = namespace.array(np.array([[1.0, 0.0, 0.0, 1.0]]))
    score = Score(lengths=(1, 4), scale=1.0, softcap=2.0)
    got = score.before_softcap(dS, q, k, xp=array_namespace("test", q=q))
    np.testing.assert_array_equal(namespace.values(got), [[1.0, 0.0, 0.0, math.nan]])


def starts(mask: masks.Mask, i: Any, tile_k: int = 2) -> list[int]:
    """Where the tiles begin that the queries i of 8 need of 8 keys."""
    return [j.start for j in Score(lengths=(8, 8), scale=1.0, mask=mask).tiles(i, tile_k)]


@pytest.mark.parametrize("i", [slice(3, 3), np.array([], np.int64)], ids=["slice", "positions"])
def test_no_queries_need_no_tiles(i: Any) -> None:
    for mask in (masks.causal(), masks.array(np.ones((8, 8), bool)), masks.causal(anchor=[0, 1])):
        assert starts(mask, i) == []


def test_no_batch_entries_need_no_tiles() -> None:
    assert starts(masks.causal(anchor=np.zeros(0, np.int64)), slice(0, 8)) == []


@pytest.mark.parametrize("i", [slice(5, 7), np.array([6, 5])], ids=["slice", "positions"])
def test_all_batch_entries_and_heads_have_their_tiles(i: Any) -> None:
    assert starts(masks.window(1, 0, anchor=[0, -4]), i) == [0, 2, 4, 6]
    assert starts(masks.window(0, 0, anchor=[0, -4]) & masks.array(np.ones((2, 3, 1, 1), bool)), i) == [0, 2, 4, 6]
    cells = np.zeros((3, 8, 8), bool)
    cells[0, 5, 3], cells[2, 6, 7] = True, True
    assert starts(masks.array(cells), i) == [2, 6]


class Closed(masks.Mask):
    """Intervals, and cells that nobody may ask for."""

    def _interval(self, L: int, S: int) -> Any:
        return masks.window(1, 0).interval(L, S)


def test_the_tiles_of_intervals_are_found_without_a_look_at_cells() -> None:
    assert starts(Closed(), slice(3, 6)) == [2, 4]


def test_a_mask_that_cannot_be_read_needs_all_tiles() -> None:
    assert starts(Held(np.zeros((8, 8), bool)), slice(3, 6)) == [0, 2, 4, 6]
    assert starts(Held(np.zeros((8, 8), bool)) & masks.causal(), slice(3, 6)) == [0, 2, 4]


@pytest.mark.parametrize(("rule", "stored"), [(False, 24), (True, 0)])
def test_a_rule_takes_no_memory(rule: bool, stored: int) -> None:
    given = Given((2, 3), 4, rule)
    assert (given.size, given.stored) == (6, stored)


def test_a_count_begins_at_nothing() -> None:
    tally = Tally()
    tally.moves()
    tally.moves(written=2)
    tally.moves(3)
    assert (tally.read, tally.written) == (3, 2)
    assert not any(tally.operations.values())


def test_a_form_without_tiles_shows_none() -> None:
    shapes = ((1, 1, 1),) * 3
    plain = ra.cost(ra.attention, *shapes, dtype="float16", form="standard")
    assert (plain.on_chip_bytes, plain.tile) == (0, None)
    assert str(plain).splitlines()[0] == "attention, standard"
    assert [line.split()[0] for line in str(plain).splitlines()[1:]] == [
        "operations",
        "flops",
        "read",
        "written",
        "peak",
        "intensity",
    ]
    tiled = ra.cost(ra.attention, *shapes, dtype="float16", form="flash", tile=(4, 8))
    assert str(tiled).splitlines()[0] == "attention, flash, 4 queries x 8 keys a tile"
