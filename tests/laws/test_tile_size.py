"""How queries and keys are cut into tiles changes no answer by more than the roundings that come with it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms

SIZES = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 64, 128, 10**9])


@forms("tile_size")
@given(data=st.data())
@settings(max_examples=25)
def test_tile_size(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments)).but(to=None)
    tile_q, tile_k = data.draw(SIZES), data.draw(SIZES)
    here = form(problem, return_lse=True)
    there = form(problem, return_lse=True, tile_q=tile_q, tile_k=tile_k)
    for name, radius in zip(("output", "lse"), form.radius(problem, min_tile=min(16, tile_k)), strict=True):
        assert_agree(getattr(there, name), getattr(here, name), radius, what=name)
