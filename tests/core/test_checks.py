"""Checks of arguments, at the edges of what they let through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn._core.checks import check_attention_shapes, check_integer, check_sinks
from tests.messages import assert_raises


@pytest.mark.parametrize("x", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_what_is_an_integer_becomes_pythons(x: Any) -> None:
    found = check_integer("f", "n", x)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("x", [True, False, np.True_, 3.0, "3", None, np.ones(3, np.int64)])
def test_what_merely_counts_as_one_is_none(x: Any) -> None:
    assert_raises(lambda: check_integer("f", "n", x), TypeError, f"f: n must be an integer; got {type(x).__name__}.")


def test_the_least_is_allowed_and_nothing_below_it() -> None:
    assert check_integer("f", "n", 0) == 0
    assert check_integer("f", "n", -1, least=-1) == -1
    assert_raises(lambda: check_integer("f", "n", -1), ValueError, "f: n must be at least 0; got -1.")
    assert_raises(lambda: check_integer("f", "n", 1, least=2), ValueError, "f: n must be at least 2; got 1.")


def test_sinks_are_float64_and_a_head_may_have_none() -> None:
    found = check_sinks("f", np.array([-np.inf, 0.0, 3.0], np.float32), 3, np)
    assert found.dtype == np.float64
    assert found.tolist() == [-np.inf, 0.0, 3.0]
    assert check_sinks("f", None, 3, np) is None


def test_heads_that_do_not_divide_are_told_by_their_own_numbers() -> None:
    q, k = np.zeros((5, 3, 4, 8)), np.zeros((5, 2, 6, 8))
    text = (
        "f: the number of query heads H (axis -3) must be a positive multiple of the number of key heads Hk; got H=3 "
        "and Hk=2."
    )
    assert_raises(lambda: check_attention_shapes("f", q, k, k), ValueError, text)


@pytest.mark.parametrize("lead", [(), (7,), (7, 5)])
def test_lengths_are_told_apart_on_their_axis(lead: tuple[int, ...]) -> None:
    q, k, v = (np.zeros((*lead, *shape)) for shape in ((4, 3, 8), (2, 6, 8), (2, 5, 9)))
    text = f"f: key and value must have the same length S (axis -2); got key {k.shape} and value {v.shape}."
    assert_raises(lambda: check_attention_shapes("f", q, k, v), ValueError, text)
    check_attention_shapes("f", q, k, np.zeros((*lead, 2, 6, 9)))
