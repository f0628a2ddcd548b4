"""Results come back in the query's dtype (or the one asked for), library and device; lse always in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from refattn._core.arrays import device
from tests.namespaces import Library, name_of
from tests.public import Form, forms
from tests.strategies import Problem


@forms("dtype_kept")
def test_dtype_kept(namespace: Library, form: Form) -> None:
    for number, (dtype, results) in enumerate(dtypes(namespace, form)):
        # All of the first, and of the others two that take turns: each dtype is seen on both sides.
        few = [results[(number + k) % len(results)] for k in range(min(2, len(results)))]
        check(namespace, form, dtype, few if number else results)


@pytest.mark.slow
@forms("dtype_kept")
def test_dtype_kept_of_every_pair(namespace: Library, form: Form) -> None:
    for dtype, results in dtypes(namespace, form):
        check(namespace, form, dtype, results)


def dtypes(namespace: Library, form: Form) -> list[tuple[str, list[str | None]]]:
    """The dtypes of query that a form takes in a namespace, and those that a result may have; none where it refuses."""
    if not form.serves(namespace):
        form.refuses(namespace)
        return []
    taken = [name for name in form.function.capabilities.dtypes if name in namespace.dtypes]
    assert "float64" in taken
    asked: list[str | None] = [to for to in ("float64", "float32", "bfloat16") if to in namespace.dtypes]
    implied = {dtype: [] if dtype == "int8" or dtype.startswith("float8") else [None] for dtype in taken}
    return [(dtype, [*implied[dtype], *asked]) for dtype in taken]


def check(namespace: Library, form: Form, dtype: str, results: Sequence[str | None]) -> None:
    """One dtype of query, into dtypes that a result may have."""
    problem = Problem(heads=(2, 1), lengths=(3, 3), features=(2, 2), dtype=dtype)
    query = namespace.array(problem.arrays[0])
    for to in results:
        got = form.full(problem.but(to=to), namespace)
        assert name_of(got.output.dtype) == (to or dtype)
        assert got.lse is None or name_of(got.lse.dtype) == "float64"
        for x in (x for x in got if x is not None):
            assert type(x) is type(query)
            assert device(x) == device(query)
        assert np.isfinite(namespace.values(got.output).astype(float)).all()
