"""An output lies between the least and the greatest value that its row sees; a sink pulls it towards 0."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.public import Form, forms


@forms("convex_hull")
@given(data=st.data())
@settings(max_examples=15)
def test_convex_hull(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=33)).spelled_out()
    problem = problem.but(to=None, dropout_mask=draws.NONE, dropout_p=0.0)  # kept weights do not add up to 1
    _, _, v = problem.arrays
    H, Hk = problem.heads
    seen = problem.mask.given
    if problem.bias.given is not None:
        seen = seen & (problem.bias.given > -np.inf)
    v = np.repeat(v, H // Hk, axis=-3)[..., None, :, :]  # (..., H, 1, S, Ev), against cells (..., H, L, S, 1)
    low = np.where(seen[..., None], v, np.inf).min(axis=-2, initial=np.inf)
    high = np.where(seen[..., None], v, -np.inf).max(axis=-2, initial=-np.inf)
    nothing = ~seen.any(axis=-1)
    with_zero = nothing | (problem.sinks is not None)
    low, high = (np.where(with_zero[..., None], edge(x, 0.0), x) for edge, x in ((np.minimum, low), (np.maximum, high)))
    output, (radius, _) = form(problem), form.radius(problem)
    assert (output >= low - radius).all()
    assert (output <= high + radius).all()
    assert not output[nothing].any()
