"""How far an average moves where its weights do: the bounds hold and are attained."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refattn.contract.averages import diameter, moved_by_factors, moved_by_scores

U = 2.0**-53


def test_two_weights_that_err_in_opposite_directions_attain_the_bound_on_factors() -> None:
    for e in (1e-9, 0.1, 0.5, 0.99):
        # At odds of sqrt((1 - e) / (1 + e)) the weight moves most.
        p = 1 / (1 + np.sqrt((1 + e) / (1 - e)))
        a, b = p * (1 + e), (1 - p) * (1 - e)
        room = 16 * U
        assert abs(abs(a / (a + b) - p) - moved_by_factors(np.array(e))) <= room
        for q in np.linspace(0.01, 0.99, 99):
            assert abs(q * (1 + e) / (q * (1 + e) + (1 - q) * (1 - e)) - q) <= moved_by_factors(np.array(e)) + room


def test_two_scores_that_move_apart_attain_the_bound_on_scores() -> None:
    for eta in (1e-9, 0.1, 1.0, 5.0):
        # From -eta to eta about equal scores, of which one rises and the other falls: log-odds move by 2 eta.
        before, after = 1 / (1 + np.exp(eta)), 1 / (1 + np.exp(-eta))
        assert abs((after - before) - moved_by_scores(np.array(eta))) <= 16 * U


@given(seed=st.integers(0, 2**32), S=st.integers(0, 6), Ev=st.integers(1, 3))
def test_no_two_values_are_further_apart_than_the_diameter(seed: int, S: int, Ev: int) -> None:
    values = np.random.default_rng(seed).standard_normal((2, S, Ev))
    apart = np.linalg.norm(values[:, :, None] - values[:, None], axis=-1).max(axis=(1, 2), initial=0.0)
    found = diameter(values)[:, 0]
    # Each norm is a root of Ev squares.
    assert (apart <= found * (1 + (Ev + 4) * U)).all()
    if Ev == 1:
        assert (found <= apart * (1 + 8 * U) + 8 * U * np.abs(values).max(initial=0.0)).all()
