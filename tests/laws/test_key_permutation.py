"""Keys have no order: moving keys, values, and the columns of mask and bias together changes nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms


@forms("key_permutation")
@given(data=st.data())
@settings(max_examples=15)
def test_key_permutation(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=33)).but(to=None).spelled_out()
    order = np.random.default_rng(problem.seed).permutation(problem.lengths[1])
    q, k, v = problem.arrays
    moved = problem.moved(lambda x: x[..., order])
    here = form.full(problem)
    there = form.full_on((q, k[..., order, :], v[..., order, :]), moved)
    for name, radius in form.radii(problem).items():
        assert_agree(getattr(there, name), getattr(here, name), radius, what=name)
