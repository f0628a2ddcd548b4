"""Every form of a function gives what its reference gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import NUMPY, Form, forms


@forms("forms_agree")
@given(data=st.data())
@settings(max_examples=40)
def test_forms_agree(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments)).but(to=None)
    here, there = problem.call(form.function, NUMPY, return_lse=True), form(problem, return_lse=True)
    for name, radius in zip(("output", "lse"), form.radius(problem), strict=True):
        same = form.implementation == "reference"
        assert_agree(getattr(there, name), getattr(here, name), np.zeros(radius.shape) if same else radius, what=name)
