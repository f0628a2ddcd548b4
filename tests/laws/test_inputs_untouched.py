"""A call writes into none of its arguments, and hands none of their memory out."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies as draws
from tests.namespaces import Library
from tests.public import Form, forms


def snapshot(x: Any, lib: Library) -> tuple[bytes, Any]:
    """An array's bytes, and PyTorch's own count of writes."""
    return np.ascontiguousarray(lib.values(x)).tobytes(), getattr(x, "_version", None)


@forms("inputs_untouched")
@given(data=st.data())
@settings(max_examples=12)
def test_inputs_untouched(namespace: Library, form: Form, data: st.DataObject) -> None:
    if not form.serves(namespace):
        form.refuses(namespace)
        return
    problem = data.draw(draws.problems(arguments=form.arguments, most=17)).but(to=None).spelled_out()
    arguments = problem.arguments(namespace)
    inputs = [
        *map(namespace.array, problem.arrays),
        *(arguments[n] for n in ("mask", "bias", "sinks") if n in arguments),
    ]
    before = [snapshot(x, namespace) for x in inputs]
    lse = {"return_lse": True} if "return_lse" in form.arguments else {}
    got = form.function(*inputs[:3], **arguments, **form.named(), **lse)
    assert [snapshot(x, namespace) for x in inputs] == before
    results = [namespace.values(x) for x in (got if lse else [got]) if x is not None]
    assert not any(np.shares_memory(x, namespace.values(y)) for x in results for y in inputs)
