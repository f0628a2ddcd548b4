"""Every reference form can be called as the benchmarks call it, with what it needs beside its arrays."""

from __future__ import annotations

import pytest

from benchmarks.suite import bench_methods, common

REFERENCES = [form for form in common.forms(rows=False) if form.endswith("/reference")]


@pytest.mark.parametrize("form", REFERENCES)
def test_the_plain_case_of_a_form(form: str) -> None:
    call = bench_methods.Call()
    call.setup(form, "plain", bench_methods.FIRST)
    call.time_call(form, "plain", bench_methods.FIRST)
