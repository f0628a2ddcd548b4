"""Kernels that write their output to an array they are given: what they leave out, and what they write beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.layouts import Layout
from refattn.testing import Case, KernelSpec
from refattn.testing.inputs import outputs
from refattn.testing.kernel import check_inputs
from tests.namespaces import NARROW, library

Kernel = Callable[..., Any]
SMALL = {"dims": (8,), "lengths": ((5, 7),), "batch": (2,), "heads": (4, 2)}


def report(kernel: Kernel, dtype: str = "float32", **more: Any) -> Any:
    """The report on one run."""
    spec = KernelSpec(kernel, accepts=("out", *more.pop("accepts", ())), contract=dtype, **SMALL, **more)
    return check_inputs(spec, Case((5, 7), (8, 8), batch=2).inputs(spec), "drawn")


def right(query: Any, key: Any, value: Any, *, out: Any) -> Any:
    """A kernel that writes all of its output."""
    out[...] = ra.attention(query, key, value)
    return out


def nothing_returned(query: Any, key: Any, value: Any, *, out: Any) -> None:
    """The same, without returning it."""
    right(query, key, value, out=out)


def last_row_left(query: Any, key: Any, value: Any, *, out: Any) -> Any:
    """The last row of the second entry is not written."""
    out[0], out[1, :, :-1] = (
        x for x in (ra.attention(query, key, value)[0], ra.attention(query, key, value)[1, :, :-1])
    )
    return out


def own_array(query: Any, key: Any, value: Any, *, out: Any) -> Any:
    """The output is returned, and out is left alone."""
    return ra.attention(query, key, value)


def one_behind(query: Any, key: Any, value: Any, *, out: Any) -> Any:
    """One cell behind the end is written too."""
    right(query, key, value, out=out)
    np.lib.stride_tricks.as_strided(out, (out.size + 1,), (out.itemsize,))[-1] = 0
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kernel", [right, nothing_returned], ids=lambda kernel: kernel.__name__)
def test_a_kernel_that_writes_all_of_it_is_right(kernel: Kernel, dtype: str) -> None:
    assert report(kernel, dtype).passed
    assert report(kernel, dtype, layout=Layout(margin=2)).passed


def test_cells_that_were_never_written_are_told() -> None:
    found = [finding.text for finding in report(last_row_left).findings]
    assert "never wrote 32 of the 320 cells of out, the first at (1, 0, 4, 0)" in found
    (finding,) = report(own_array).findings
    assert finding.text == "never wrote 320 of the 320 cells of out, the first at (0, 0, 0, 0)"


def test_cells_around_it_that_were_written_are_told() -> None:
    (finding,) = report(one_behind).findings
    assert finding.text == "changed its inputs: cells around out"


def test_a_nan_that_was_computed_was_written() -> None:
    def kernel(query: Any, key: Any, value: Any, *, out: Any) -> Any:
        out[...] = np.nan
        return out

    assert not any("never wrote" in finding.text for finding in report(kernel).findings)


def test_packed_sequences_have_packed_outputs() -> None:
    seen = []

    def kernel(query: Any, key: Any, value: Any, *, cu_seqlens_q: Any, cu_seqlens_k: Any, out: Any) -> None:
        seen.append(out.shape == query.shape)
        padded = [
            ra.layouts.unpack_ragged(x, c)
            for x, c in ((query, cu_seqlens_q), (key, cu_seqlens_k), (value, cu_seqlens_k))
        ]
        keep = masks.lengths(np.diff(cu_seqlens_k), np.diff(cu_seqlens_q))
        out[...] = ra.layouts.pack_ragged(ra.attention(*padded, mask=keep), np.diff(cu_seqlens_q)).packed

    assert report(kernel, accepts=("cu_seqlens_q", "cu_seqlens_k")).passed
    assert seen == [True]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", *(name for name in NARROW if "e8m0" not in name)])
def test_every_dtype_has_a_nan_for_what_was_not_written(dtype: str) -> None:
    library("numpy")
    for margin in (0, 1):
        given = outputs.room((2, 3), dtype, "numpy", None, margin)
        assert np.isnan(given.whole.astype(np.float64)).all()
        assert outputs.unwritten(given) == "never wrote 6 of the 6 cells of out, the first at (0, 0)"
        given.out[...] = 0
        assert outputs.unwritten(given) is None
        assert not outputs.overwritten(given)
        given.whole[...] = 0
        assert outputs.overwritten(given)


def test_torch_arrays_are_written_to() -> None:
    library("torch")
    assert report(right, "bfloat16", arrays="torch").passed
