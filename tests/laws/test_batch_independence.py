"""A batch entry's answer is what it is alone, whatever lies beside it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms


@forms("batch_independence")
@given(data=st.data())
@settings(max_examples=15)
def test_batch_independence(form: Form, data: st.DataObject) -> None:
    problem = data.draw(
        draws.problems(arguments=form.arguments, most=15).filter(lambda p: p.batch and 0 not in p.batch)
    )
    problem = problem.but(to=None).spelled_out()
    entry = tuple(data.draw(st.integers(0, n - 1)) for n in problem.batch)
    q, k, v = (np.full_like(x, np.nan) for x in problem.arrays)
    for x, whole in zip((q, k, v), problem.arrays, strict=True):
        x[entry] = whole[entry]
    together = form.full(problem)
    among_nan = form.full_on((q, k, v), problem)
    alone_problem = problem.but(batch=()).moved(lambda x: x[entry])
    alone = form.full_on(tuple(x[entry] for x in problem.arrays), alone_problem)
    for name, radius in form.radii(problem).items():
        want = getattr(together, name)[entry]
        assert_agree(getattr(alone, name), want, radius[entry], what=name)
        assert_agree(getattr(among_nan, name)[entry], want, radius[entry], what=name)
