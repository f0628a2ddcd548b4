"""Time, memory and error of every form of every method on standard normal inputs."""

from __future__ import annotations

import numpy as np

import refattn as ra

from .common import arguments, cases, drawn, forms, softmax_forms

# Rows of the first call; no fewer than the landmarks that `nystrom_attention` takes.
FIRST = 64


class Call:
    """One whole call in float32."""

    params = (forms(rows=False), list(cases()), [256, 1024])
    param_names = ("form", "case", "length")
    timeout = 120

    def setup(self, form: str, case: str, length: int) -> None:
        """Draw the inputs, and compile what compiles at the first call."""
        self.function = getattr(ra, form.partition("/")[0])
        self.arrays, self.arguments = drawn(length, "float32"), arguments(form, case, length)
        self.function(*(x[..., :FIRST, :] for x in self.arrays), **arguments(form, case, FIRST))

    def time_call(self, form: str, case: str, length: int) -> None:
        """Seconds of a call."""
        self.function(*self.arrays, **self.arguments)

    def peakmem_call(self, form: str, case: str, length: int) -> None:
        """Largest resident memory of a process that makes the call."""
        self.function(*self.arrays, **self.arguments)


class Error:
    """Largest error of one call in float32, as a share of what the contract of float32 kernels allows."""

    params = (softmax_forms(), list(cases()))
    param_names = ("form", "case")
    timeout = 120

    def track_budget_used(self, form: str, case: str) -> float:
        """One rounding of an exact value uses a small part of it; above 1 is wrong."""
        arrays, given = drawn(256, "float32"), arguments(form, case, 256)
        output = getattr(ra, form.partition("/")[0])(*arrays, **given)
        given.pop("implementation", None)
        return ra.testing.check(output, *arrays, contract="float32", **given).budget_used

    track_budget_used.unit = "share"


class Rows:
    """Sixteen rows of a long sequence, at the cost of those rows."""

    params = (forms(rows=True), [16384, 65536])
    param_names = ("form", "length")
    timeout = 120

    def setup(self, form: str, length: int) -> None:
        """Draw the inputs and spread 16 rows over one head."""
        self.function = getattr(ra, form.partition("/")[0])
        self.arrays = drawn(length, "float32")
        self.rows = np.stack([np.zeros(16), np.full(16, 3), np.linspace(0, length - 1, 16)], axis=-1).astype(np.int64)

    def time_rows(self, form: str, length: int) -> None:
        """Seconds of a call."""
        self.function(*self.arrays, rows=self.rows, is_causal=True)

    def peakmem_rows(self, form: str, length: int) -> None:
        """Largest resident memory of a process that makes the call."""
        self.function(*self.arrays, rows=self.rows, is_causal=True)
