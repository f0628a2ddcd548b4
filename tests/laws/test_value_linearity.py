"""The output is linear in the values: a sum of values gives the sum of outputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms


@forms("value_linearity")
@given(data=st.data())
@settings(max_examples=15)
def test_value_linearity(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=33)).but(to=None)
    q, k, v = problem.arrays
    # Values of 24 bits and factors that are powers of two: the combination is exact in float64.
    one, other = np.random.default_rng(problem.seed).standard_normal((2, *v.shape), dtype=np.float32).astype(np.float64)
    values = (one, other, 2.0 * one - 0.5 * other)
    outputs = [form.on((q, k, x), problem) for x in values]
    radii = [form.radius(problem, (q, k, x))[0] for x in values]
    want = 2.0 * outputs[0] - 0.5 * outputs[1]
    # The last term: the rounding of this very sum.
    radius = 2.0 * radii[0] + 0.5 * radii[1] + radii[2] + 2.0**-53 * np.abs(want)
    assert_agree(outputs[2], want, radius)
