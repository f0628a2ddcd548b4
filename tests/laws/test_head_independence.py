"""A query head reads its own query and the key head of its group, h // (H // Hk), and nothing of the others."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms


@forms("head_independence")
@given(data=st.data())
@settings(max_examples=15)
def test_head_independence(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=15)).but(to=None)
    H, Hk = problem.heads
    h = data.draw(st.integers(0, H - 1))
    q, k, v = (np.full_like(x, np.nan) for x in problem.arrays)
    for x, whole, own in zip((q, k, v), problem.arrays, (h, h // (H // Hk), h // (H // Hk)), strict=True):
        x[..., own, :, :] = whole[..., own, :, :]
    here = form.full(problem)
    there = form.full_on((q, k, v), problem)
    for name, radius in form.radii(problem).items():
        rows = (..., h, slice(None), slice(None)) if name == "output" else (..., h, slice(None))
        assert_agree(getattr(there, name)[rows], getattr(here, name)[rows], radius[rows], what=name)
