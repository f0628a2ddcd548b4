"""Tiled attention on the libraries on which a call is costly: JAX, dask and CuPy, of one shape, against the oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import layouts
from tests.agreement import assert_agree, rows_of
from tests.derivatives import case, cotangents
from tests.methods.test_exact_costly import FULL, OPTIONS, SHAPE, cells, drawn
from tests.namespaces import COSTLY, NAMES, Library, library, name_of
from tests.strategies import Problem

CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "flash_attention": (ra.flash_attention, {"tile_q": 2, "tile_k": 2}),
    "flash_2022": (ra.flash_attention, {"tile_q": 2, "tile_k": 2, "implementation": "flash_2022"}),
    "flash_decode": (ra.flash_decode, {"splits": 2}),
}


def called(function: Any, problem: Problem, lib: Library, **more: Any) -> Any:
    """The library's way of calling a function once: JAX compiles it."""
    arguments = problem.arguments(lib) | {"return_lse": True} | more
    return lib.call(lambda *x: function(*x, **arguments), *map(lib.array, problem.arrays))


def check(problem: Problem, got: Any, lib: Library) -> None:
    """Output and lse of all rows against the oracle."""
    want = problem.answer(problem.rows(math.prod(FULL[:-1])), tiles=4)
    for x, name, dtype in ((got.output, "output", problem.out), (got.lse, "lse", "float64")):
        assert name_of(x.dtype) == dtype
        wanted = getattr(want, name)
        radius, held = 2 * getattr(want, f"{name}_radius"), rows_of(want.held, wanted)
        assert_agree(lib.values(x).reshape(wanted.shape), wanted, radius, held=held, dtype=dtype, what=name)


EACH: list[Any] = [("flash_attention", name) for name in ("window", "both")]
EACH += [pytest.param("flash_attention", name, marks=pytest.mark.slow) for name in ("alibi", "dropout", "large")]
EACH += [("flash_2022", "both"), ("flash_decode", "both"), ("flash_decode", "dropout")]


@pytest.mark.parametrize(("call", "options"), EACH)
def test_options(costly: Library, call: str, options: str) -> None:
    problem, (function, more) = Problem(**SHAPE, **OPTIONS[options]), CALLS[call]
    check(problem, called(function, problem, costly, **more), costly)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "int8", *(pytest.param(x, marks=pytest.mark.slow) for x in ("float32", "float8_e4m3fn"))]
)
def test_formats_of_input_and_output(costly: Library, dtype: str) -> None:
    if dtype not in costly.dtypes:
        pytest.skip(f"{costly.name} has no {dtype}")
    problem = Problem(**SHAPE, dtype=dtype, to="float32" if dtype == "int8" else dtype)
    check(problem, called(ra.flash_attention, problem, costly, tile_q=2, tile_k=2), costly)


@pytest.mark.parametrize(("L", "S"), [(0, 4), (3, 0)])
@pytest.mark.parametrize("call", CALLS)
def test_axes_may_be_empty(costly: Library, call: str, L: int, S: int) -> None:
    problem, (function, more) = Problem(heads=(2, 1), lengths=(L, S), features=(2, 3)), CALLS[call]
    got = called(function, problem, costly, **more)
    output, lse = costly.values(got.output), costly.values(got.lse)
    assert (output.shape, lse.shape) == ((2, L, 3), (2, L))
    assert not output.any()
    assert np.isneginf(lse).all()


def test_gradients(costly: Library) -> None:
    problem = Problem(**SHAPE, **OPTIONS["both"] | OPTIONS["dropout"] | {"bias": cells("finite", drawn(5, FULL))})
    dO, dlse = map(costly.array, cotangents(problem))
    arguments = problem.arguments(costly)
    got = costly.call(
        lambda *x: ra.flash_attention_gradient(*x, **arguments, grad_lse=dlse, tile_q=2, tile_k=3),
        dO,
        *map(costly.array, problem.arrays),
    )
    want = replace(case(problem), tiles=2)
    for name in ("query", "key", "value", "bias", "sinks"):
        assert_agree(costly.values(getattr(got, name)), want.gradient(name), 2 * want.radius(name), what=name)


def test_pages(costly: Library) -> None:
    problem, used = Problem(**SHAPE), [5, 3]
    q, *rest = problem.arrays
    table, pages = layouts.page_table(used, 2, seed=0, spare=1)
    pools = [costly.array(layouts.pack_paged(x, used, table, 2, pages=pages, fill=math.nan)) for x in rest]
    given: dict[str, Any] = {"block_table": table, "seqused_k": used}
    got = costly.call(lambda *x: ra.flash_decode(*x, **given, splits=2), costly.array(q), *pools)
    for b, n in enumerate(used):
        alone = problem.but(batch=(), lengths=(3, n))
        alone.__dict__["arrays"] = (q[b], *(x[b, :, :n] for x in rest))
        want = alone.answer(alone.rows(12), tiles=4)
        assert_agree(costly.values(got)[b].reshape(want.output.shape), want.output, 2 * want.output_radius)


@pytest.mark.parametrize("tile", [1, 2])
def test_online_softmax(costly: Library, tile: int) -> None:
    x = np.where(drawn(6, (3, 4)) > 1, -math.inf, drawn(7, (3, 4)))
    want = ra.online_softmax(x, tile=tile)
    got = costly.call(lambda x: ra.online_softmax(x, tile=tile), costly.array(x))
    for a, b in zip(got, want, strict=True):
        assert_agree(costly.values(a), b, 64 * 2.0**-53 * np.abs(np.nan_to_num(b)))


def test_dask_computes_nothing() -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    problem = Problem(**SHAPE, **OPTIONS["both"])

    def fails(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    def lazy(x: Any) -> Any:
        return da.from_array(x).map_blocks(fails, dtype=x.dtype, meta=x[:0]) if isinstance(x, np.ndarray) else x

    arrays = [lazy(x) for x in problem.arrays]
    arguments = {name: lazy(x) for name, x in problem.arguments(library("numpy")).items()}
    results = [
        *ra.flash_attention(*arrays, **arguments, return_lse=True, tile_q=2, tile_k=2)[:2],
        *ra.flash_decode(*arrays, **arguments, return_lse=True, splits=2)[:2],
        *ra.flash_attention_gradient(lazy(cotangents(problem)[0]), *arrays, **arguments, tile_q=2, tile_k=2),
        *ra.online_softmax(arrays[0]),
    ]
    assert all(isinstance(x, da.Array) for x in results)
    with pytest.raises(AssertionError, match="computed"):
        results[0].compute(scheduler="synchronous")


def test_what_is_promised_is_tested() -> None:
    names = {getattr(name, "values", (name,))[0] for name in (*NAMES, *COSTLY)} - {"read-only numpy"}
    for function in (ra.flash_attention, ra.flash_attention_gradient, ra.flash_decode, ra.online_softmax):
        assert set(function.capabilities.namespaces) == names
