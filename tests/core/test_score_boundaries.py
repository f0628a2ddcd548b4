"""Stages of the score and counts of costs, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn as ra
from refattn._core.arrays import array_namespace
from refattn._core.cost import Given, Tally
from refattn._core.score import Score
from tests.namespaces import Library


def test_no_gradient_passes_a_cell_that_has_none_whatever_its_score_is(namespace: Library) -> None:
    # At a score of 0 the softcap's slope is 1; at NaN it is NaN, and counts only where a gradient meets it.
    q, k = namespace.array(np.ones((1, 1))), namespace.array(np.array([[0.0], [0.0], [math.nan], [math.nan]]))
    dS = namespace.array(np.array([[1.0, 0.0, 0.0, 1.0]]))
    score = Score(lengths=(1, 4), scale=1.0, softcap=2.0)
    got = score.before_softcap(dS, q, k, xp=array_namespace("test", q=q))
    np.testing.assert_array_equal(namespace.values(got), [[1.0, 0.0, 0.0, math.nan]])


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
