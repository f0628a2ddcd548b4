"""Results come back in the query's dtype (or the one asked for), library and device; lse always in float64."""

from __future__ import annotations

import numpy as np

from refattn._core.arrays import device
from tests.namespaces import Library, name_of
from tests.public import Form, forms
from tests.strategies import Problem


@forms("dtype_kept")
def test_dtype_kept(namespace: Library, form: Form) -> None:
    if not form.serves(namespace):
        form.refuses(namespace)
        return
    taken = [name for name in form.function.capabilities.dtypes if name in namespace.dtypes]
    assert "float64" in taken
    for dtype in taken:
        check(namespace, form, dtype)


def check(namespace: Library, form: Form, dtype: str) -> None:
    """One dtype of query, into every dtype that a result may have."""
    problem = Problem(heads=(2, 1), lengths=(3, 3), features=(2, 2), dtype=dtype)
    query = namespace.array(problem.arrays[0])
    asked = [to for to in ("float64", "float32", "bfloat16") if to in namespace.dtypes]
    implied = [] if dtype == "int8" or dtype.startswith("float8") else [None]
    for to in asked + implied:
        got = form(problem.but(to=to), namespace, return_lse=True)
        assert name_of(got.output.dtype) == (to or dtype)
        assert name_of(got.lse.dtype) == "float64"
        for x in (got.output, got.lse):
            assert type(x) is type(query)
            assert device(x) == device(query)
        assert np.isfinite(namespace.values(got.output).astype(float)).all()
