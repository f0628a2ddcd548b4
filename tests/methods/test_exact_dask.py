"""Exact attention on dask arrays: nothing is computed before the caller asks, and chunks change no answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from tests.agreement import assert_agree
from tests.namespaces import library
from tests.strategies import Choice, Problem, cell

da = pytest.importorskip("dask.array", reason="dask is not installed")
DASK = library("dask")
RNG = np.random.default_rng(0)
SEEN = RNG.random((2, 1, 3, 5)) < 0.6
BIAS = np.where(RNG.random((4, 3, 5)) < 0.2, -np.inf, RNG.standard_normal((4, 3, 5)))


def cells(x: np.ndarray) -> Choice:
    """An array of cells with the rule that it stands for."""
    return Choice("cells", x, lambda *at: cell(x, *at).item())


PROBLEM = Problem(
    batch=(2,), heads=(4, 2), lengths=(3, 5), features=(2, 3), mask=cells(SEEN), bias=cells(BIAS),
    sinks=(0.3, -np.inf, 2.0, -1.0), softcap=3.0,
)  # fmt: skip


def fails(block: np.ndarray) -> np.ndarray:
    """A block that must not be computed."""
    raise AssertionError("computed")


def lazy(x: np.ndarray) -> Any:
    """A dask array that cannot be computed."""
    return da.from_array(x).map_blocks(fails, dtype=x.dtype, meta=x[:0])


def assert_right(output: Any, lse: Any, rows: list[tuple[int, ...]]) -> None:
    """Against the oracle, within twice its radius."""
    want = PROBLEM.answer(rows)
    for x, wanted, radius in ((output, want.output, want.output_radius), (lse, want.lse, want.lse_radius)):
        assert_agree(DASK.values(x).reshape(wanted.shape), wanted, 2 * radius)


@pytest.mark.parametrize("chunk", [2, (1, -1, -1, -1), (-1, 1, -1, -1), (-1, -1, 2, -1), (-1, -1, -1, 1)], ids=str)
def test_chunks_change_no_answer(chunk: Any) -> None:
    arrays = [da.from_array(x, chunks=chunk) for x in PROBLEM.arrays]
    got = ra.attention(*arrays, **PROBLEM.arguments(DASK), return_lse=True)
    assert_right(got.output, got.lse, PROBLEM.rows(24))


def test_chunks_of_the_batch_stay_apart() -> None:
    arrays = [da.from_array(x, chunks=(1, -1, -1, -1)) for x in PROBLEM.arrays]
    assert ra.attention(*arrays).chunks[0] == (1, 1)


def test_nothing_is_computed() -> None:
    arrays = [lazy(x) for x in PROBLEM.arrays]
    arguments = {name: lazy(x) for name, x in PROBLEM.arguments(library("numpy")).items() if name != "softcap"}
    rows = [(0, 0, 0), (1, 3, 2)]
    results = [
        *ra.attention(*arrays, **arguments, return_lse=True, return_weights=True),
        *ra.attention_rows(*arrays, **arguments, rows=rows, return_lse=True)[:2],
        *ra.merge_states([arrays[0]], [arrays[0][..., 0]])[:2],
        ra.attention_scores(*arrays[:2], **arguments),
        *ra.attention_gradient(ra.attention(*arrays, **arguments), *arrays, **arguments),
    ]
    assert all(isinstance(x, da.Array) for x in results)
    with pytest.raises(AssertionError, match="computed"):
        results[0].compute(scheduler="synchronous")


def test_rows() -> None:
    # dask itself takes row 0 alone in a wrong shape where the position is a dask array.
    rows = [(0, 0, 0), (1, 3, 2), (0, 1, 0), (0, 1, 2)]
    arrays = map(DASK.array, PROBLEM.arrays)
    got = ra.attention_rows(*arrays, **PROBLEM.arguments(DASK), rows=rows, return_lse=True)
    assert got.output.shape == (4, 3)
    assert_right(got.output, got.lse, rows)


def test_a_mask_is_computed_where_its_cells_are_asked_for() -> None:
    mask = masks.array(DASK.array(SEEN)) & masks.window(2, None, anchor=1)
    want = masks.array(SEEN) & masks.window(2, None, anchor=1)
    assert mask.lead == want.lead
    np.testing.assert_array_equal(mask.dense(3, 5), want.dense(3, 5))
    np.testing.assert_array_equal(mask.at((1, 0)).dense(3, 5), want.dense(3, 5)[1, 0])
    assert repr(mask) == repr(want)


@pytest.mark.parametrize("shape", [(2, 5), (3, 4)])
def test_a_mask_of_the_wrong_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="mask must") as error:
        ra.attention(*map(DASK.array, PROBLEM.arrays), mask=masks.array(da.ones(shape, dtype=bool)))
    assert str(error.value) == (
        f"attention: mask must have the shape (..., L, S), or 1 for either, with L=3 and S=5; got {shape}."
    )
