"""A number added to all scores of a row, its sink's among them, changes no weight and adds itself to lse."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms
from tests.strategies import Choice


@forms("logit_shift")
@given(data=st.data())
@settings(max_examples=15)
def test_logit_shift(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=33)).but(to=None, sinks=None)
    shift = data.draw(st.sampled_from([1.0, -3.5, 40.0, -700.0]))
    zero = np.zeros((*problem.batch, problem.heads[0], problem.lengths[0], 1))
    # Rows move by different amounts where there is no sink, which has one logit for all rows of a head.
    amount = zero + shift
    amount[..., ::2, :] *= 2
    if data.draw(st.booleans()):
        amount = zero + shift
        problem = problem.but(sinks=(0.5,) * problem.heads[0])
    moved = problem.but(
        bias=Choice("shift", amount), sinks=None if problem.sinks is None else tuple(x + shift for x in problem.sinks)
    )
    problem = problem.but(bias=Choice("zero", zero))
    here, there = form(problem, return_lse=True), form(moved, return_lse=True)
    radii = [a + b for a, b in zip(form.radius(problem), form.radius(moved), strict=True)]
    want = here.lse + amount[..., 0]
    assert_agree(there.output, here.output, radii[0], what="output")
    finite = np.where(np.isfinite(want), want, 0.0)
    assert_agree(there.lse, want, radii[1] + 2.0**-53 * np.abs(finite), what="lse")
