"""Under a causal mask no row feels what comes after it, not even NaN."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms


@forms("causal_prefix")
@given(data=st.data())
@settings(max_examples=15)
def test_causal_prefix(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=65)).but(to=None)
    L, S = problem.lengths
    if "is_causal" in form.arguments and S == L:
        problem = problem.but(is_causal=True)
    elif "mask" in form.arguments:
        from refattn import masks

        problem = problem.but(is_causal=False, mask=draws.Choice("causal", masks.causal("upper_left")))
    t = data.draw(st.integers(0, min(L, S)))
    poison = data.draw(st.sampled_from([np.nan, np.inf, 1e300]))
    q, k, v = (x.copy() for x in problem.arrays)
    for x in (q, k, v):
        x[..., t:, :] = poison
    here = form.full(problem)
    there = form.full_on((q, k, v), problem)
    before = (..., slice(0, t))
    for name, radius in form.radii(problem).items():
        rows = (*before, slice(None)) if name == "output" else before
        assert_agree(getattr(there, name)[rows], getattr(here, name)[rows], radius[rows], what=name)
