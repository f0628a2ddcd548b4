"""Drawn masks: what a cell depends on and what not, and that it is drawn with the probability that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import masks

SEEDS = st.sampled_from([0, 1, 2, 2**64 - 1, 2**64, 2**128 - 1])


@settings(max_examples=40)
@given(SEEDS, st.data())
def test_a_cell_depends_on_nothing_but_its_place(seed: int, data: st.DataObject) -> None:
    mask = masks.bernoulli(0.5, seed, batch=2, heads=3)
    L, S = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 70))
    whole = mask.dense(40, 300)
    np.testing.assert_array_equal(mask.dense(L, S), whole[..., :L, :S])
    start, stop = sorted((data.draw(st.integers(0, S)), data.draw(st.integers(0, S))))
    tile = mask.tile(slice(0, L), slice(start, stop), 40, 300, xp=np)
    np.testing.assert_array_equal(tile, whole[..., :L, start:stop])
    keys = np.array(data.draw(st.lists(st.integers(0, 299), max_size=5)), np.int64)
    np.testing.assert_array_equal(mask.tile(np.array([7, 3]), keys, 40, 300, xp=np), whole[..., [7, 3], :][..., keys])


def test_axes_that_are_not_told_apart_count_as_the_first() -> None:
    whole = masks.bernoulli(0.5, 3, batch=2, heads=3).dense(4, 50)
    np.testing.assert_array_equal(masks.bernoulli(0.5, 3).dense(4, 50), whole[0, 0])
    np.testing.assert_array_equal(masks.bernoulli(0.5, 3, heads=3).dense(4, 50), whole[0])
    np.testing.assert_array_equal(masks.bernoulli(0.5, 3, batch=2).dense(4, 50), whole[:, :1])
    np.testing.assert_array_equal(masks.bernoulli(0.5, 3, batch=2, heads=3).at((1, 2)).dense(4, 50), whole[1, 2])


def test_no_two_rows_share_their_numbers_not_even_shifted() -> None:
    rows = masks.bernoulli(0.5, 5, batch=2, heads=2).dense(5, 400).reshape(20, 400)
    other = masks.bernoulli(0.5, 6, batch=2, heads=2).dense(5, 400).reshape(20, 400)
    rows = np.concatenate([rows, other])
    seen = {row[start : start + 100].tobytes() for row in rows for start in range(300)}
    assert len(seen) == len(rows) * 300


@pytest.mark.parametrize("keep", [1e-3, 0.1, 0.5, 0.9])
def test_cells_are_kept_with_their_probability(keep: float) -> None:
    n = 2 * 200 * 1000
    count = int(masks.bernoulli(keep, 11, heads=2).count(200, 1000).sum())
    assert abs(count - n * keep) < 5 * math.sqrt(n * keep * (1 - keep))


def test_what_is_kept_of_less_is_kept_of_more() -> None:
    some = [masks.bernoulli(keep, 1).dense(50, 50) for keep in (0, 0.2, 0.7, 1)]
    assert not some[0].any()
    assert some[3].all()
    assert not np.any(some[1] & ~some[2])
    assert np.any(some[2] & ~some[1])


def test_a_probability_below_the_smallest_number_that_is_drawn_is_not_none() -> None:
    # u = 0 is kept by any share above 0, and no u by 0: the comparison is strict.
    u = np.random.Generator(np.random.Philox(key=1, counter=[0, 0, 0, 0])).random(1000)
    at = int(np.argmin(u))
    assert not masks.bernoulli(float(u[at]), 1).dense(1, 1000).any()
    assert masks.bernoulli(float(np.nextafter(u[at], 1)), 1).row(0, 1, 1000).tolist() == [at]
