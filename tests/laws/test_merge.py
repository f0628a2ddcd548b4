"""Attention over parts of the keys, merged by log-sum-exp, is attention over all of them; the sink counts once."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests import strategies as draws
from tests.agreement import assert_agree
from tests.public import Form, forms


@forms("merge")
@given(data=st.data())
@settings(max_examples=15)
def test_merge(form: Form, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=form.arguments, most=33)).but(to=None).spelled_out()
    S = problem.lengths[1]
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, S), max_size=3))), S]
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    with_sink = data.draw(st.sampled_from(parts))
    q, k, v = problem.arrays
    results = []
    for part in parts:
        own = problem.moved(lambda x, part=part: x[..., part])
        own = own.but(sinks=problem.sinks if part is with_sink else None)
        results.append(form.on((q, k[..., part, :], v[..., part, :]), own, return_lse=True))
    whole = form(problem, return_lse=True)
    merged = ra.merge_states([r.output for r in results], [r.lse for r in results])
    for name, radius in zip(("output", "lse"), form.radius(problem), strict=True):
        assert_agree(getattr(merged, name), getattr(whole, name), radius, what=name)
