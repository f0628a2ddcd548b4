"""Merging results of parts in every form in which they may be given, and what it says to the forms that it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn._core.arrays import array_namespace
from refattn._core.state import empty_state, merge_normalised
from tests.messages import assert_raises
from tests.namespaces import Library

RNG = np.random.default_rng(0)
# Four parts of two heads of three rows, one of which holds no key for the first row.
OUTPUTS, LSES = RNG.standard_normal((4, 2, 3, 5)), RNG.standard_normal((4, 2, 3))
LSES[1, :, 0] = -math.inf
LIST = "must be a list or tuple of arrays, or one array with the parts along its first axis; got"


def test_each_head_is_merged_for_itself(namespace: Library) -> None:
    whole = ra.merge_states([namespace.array(x) for x in OUTPUTS], [namespace.array(x) for x in LSES])
    for h in range(2):
        one = ra.merge_states([namespace.array(x[h]) for x in OUTPUTS], [namespace.array(x[h]) for x in LSES])
        for x, y in zip(whole[:2], one[:2], strict=True):
            np.testing.assert_array_equal(namespace.values(x)[h], namespace.values(y))


def test_parts_along_the_first_axis_of_an_array_are_a_list_of_them(namespace: Library) -> None:
    outputs, lses = namespace.array(OUTPUTS), namespace.array(LSES)
    want = ra.merge_states([namespace.array(x) for x in OUTPUTS], [namespace.array(x) for x in LSES])
    for got in (ra.merge_states(outputs, lses), ra.merge_states(tuple(map(namespace.array, OUTPUTS)), lses)):
        for x, y in zip(got[:2], want[:2], strict=True):
            np.testing.assert_array_equal(namespace.values(x), namespace.values(y))


@pytest.mark.parametrize("n", [1, 2])
def test_the_first_axis_counts_the_parts_however_long_the_others_are(n: int) -> None:
    got = ra.merge_states(np.ones((n, 7, 1)), np.zeros((n, 7)))
    assert got.output.tolist() == [[1.0]] * 7
    assert got.lse.tolist() == [math.log(n)] * 7


def test_a_part_whose_scores_were_infinite_has_no_output(namespace: Library) -> None:
    # inf/inf, alone as well as beside another part.
    output, lse = namespace.array(np.full((1, 1), 3.0)), namespace.array(np.array([math.inf]))
    for n in (1, 2):
        got = ra.merge_states([output] * n, [lse] * n)
        assert np.isnan(namespace.values(got.output)).all()


def test_the_empty_state_is_float64(namespace: Library) -> None:
    query = namespace.array(np.zeros((2, 3, 4)))
    state = empty_state(query, 5, xp=array_namespace("test", query=query))
    assert [tuple(x.shape) for x in state] == [(2, 3, 1), (2, 3, 1), (2, 3, 5)]
    assert [namespace.values(x).dtype for x in state] == [np.float64] * 3


def test_one_part_of_lowest_log_sum_exp_is_kept() -> None:
    output, lse = merge_normalised([np.full((1, 1), 3.0)], [np.array([np.finfo(np.float64).min])], xp=np)
    assert output.tolist() == [[3.0]]
    assert lse[0] > -math.inf


@pytest.mark.parametrize(
    ("outputs", "lses", "error", "text"),
    [
        (np.zeros(()), [np.zeros(1)], TypeError, f"merge_states: outputs {LIST} a 0-d array."),
        ([np.zeros((1, 1))], np.zeros(()), TypeError, f"merge_states: lses {LIST} a 0-d array."),
        (
            [np.zeros(3)],
            [np.zeros(())],
            ValueError,
            (
                "merge_states: all outputs must have one shape (..., L, Ev) and all lses (..., L); got outputs[0] "
                "(3,), outputs[0] (3,) and lses[0] ()."
            ),
        ),
        (
            np.zeros(2),
            np.zeros((2, 1)),
            ValueError,
            (
                "merge_states: all outputs must have one shape (..., L, Ev) and all lses (..., L); got outputs[0] (), "
                "outputs[0] () and lses[0] (1,)."
            ),
        ),
        (
            np.zeros((2, 1, 1)),
            np.zeros((3, 1)),
            ValueError,
            "merge_states: outputs and lses must be of the same length, at least 1; got 2 outputs and 3 lses.",
        ),
    ],
    ids=["0-d outputs", "0-d lses", "one axis", "no axis", "lengths"],
)
def test_forms_that_are_refused(outputs: Any, lses: Any, error: type[Exception], text: str) -> None:
    assert_raises(lambda: ra.merge_states(outputs, lses), error, text)
