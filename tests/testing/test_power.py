"""Which bugs a test lets through, said of somebody's own inputs and criterion."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.testing import power
from refattn.testing.probes.tells import TELLS
from tests.messages import assert_raises


def drawn(L=33, S=48, heads=(4, 2), **given):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, heads[0], L, 16), dtype=np.float32)
    k, v = rng.standard_normal((2, 1, heads[1], S, 16), dtype=np.float32)
    return {"query": q, "key": k, "value": v, **given}


def test_a_criterion_that_takes_everything_lets_everything_through():
    found = power(drawn(), lambda output, expected: True)
    assert found.caught == ()
    assert found.passes == ("zeros", "stale output", "mean of values")
    assert found.probe in TELLS


def test_a_criterion_that_takes_nothing_catches_everything_and_refuses_the_right_answer():
    found = power(drawn(), lambda output, expected: False)
    assert found.let_through == found.passes == ()
    assert not found.right_passes
    assert found.probe is None
    assert "refuses the right answer" in found.text


def test_a_tight_tolerance_catches_what_shows_in_the_output():
    found = power(drawn(), {"atol": 1e-5, "rtol": 1e-5})
    assert found.right_passes
    assert found.passes == ()
    assert any(name.startswith("D1:") for name in found.caught)
    assert any(name.startswith("F5:") for name in found.let_through), "its outputs are right: only lse is wrong"


@pytest.mark.parametrize(("given", "reached"), [({"heads": (2, 2)}, False), ({}, True)])
def test_inputs_without_a_feature_do_not_reach_its_bugs(given, reached):
    found = power(drawn(**given), {"atol": 1e-5})
    assert any(name.startswith("D1:") for name in found.not_reached) != reached


def test_the_probe_to_add_is_the_one_that_names_most_of_what_is_let_through():
    found = power(drawn(), {"atol": 1e-5, "rtol": 1e-5})
    ids = {name.partition(":")[0] for name in (*found.let_through, *found.not_reached)}
    told = {name: len(ids & set(bugs)) for name, bugs in TELLS.items()}
    assert told[found.probe] == max(told.values()) > 0
    assert f'the probe "{found.probe}"' in found.text


def test_a_loose_tolerance_lets_more_through_than_a_tight_one():
    tight, loose = (power(drawn(), {"atol": x}) for x in (1e-5, 0.3))
    assert set(tight.let_through) < set(loose.let_through)


def test_the_criterion_is_given_what_it_is_promised():
    seen = []

    def criterion(output, expected):
        seen.append((output.shape, output.dtype, expected.dtype))
        return True

    power(drawn(), criterion)
    assert set(seen) == {((1, 4, 33, 16), np.dtype(np.float64), np.dtype(np.float64))}


@pytest.mark.parametrize(
    ("inputs", "criterion", "error", "text"),
    [
        ([1], {}, TypeError, "power: inputs must be a mapping of attention's arguments; got list."),
        ({"query": 1}, {}, ValueError, "power: inputs must have query, key and value; got no key and no value."),
        (drawn(), {"tol": 1}, ValueError, "power: criterion must have atol and rtol; got tol."),
        (drawn(), 3, TypeError, "power: criterion must be a mapping or callable; got int."),
    ],
)
def test_bad_arguments_are_told(inputs, criterion, error, text):
    assert_raises(lambda: power(inputs, criterion), error, text)
