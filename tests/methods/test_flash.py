"""Tiled attention against the oracle of these tests and against exact attention: every argument, library and tile."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import contract, data
from refattn._call import prepare
from refattn._core.tiles import tiles
from tests import strategies as draws
from tests import tiny
from tests.agreement import assert_agree, rows_of
from tests.namespaces import Library, library, name_of
from tests.peers.test_onnx_attention import ATTENTION, load, node_of
from tests.strategies import Choice, Problem

pytestmark = pytest.mark.usefixtures("poisoned_empty")

NUMPY = library("numpy")
FORMS = ("reference", "flash_2022")
DTYPES = ("float64", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8")
SIZES = st.sampled_from([1, 2, 3, 15, 16, 17, 31, 32, 64, 10**6])
NOTHING = {"mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None, "dtype": None}


def check(problem: Problem, lib: Library, form: str, tile_q: int | None, tile_k: int | None) -> None:
    """Output and lse of some rows against the oracle, within twice its radius; kinds and shapes of all."""
    got = problem.call(
        ra.flash_attention, lib, return_lse=True, implementation=form, tile_q=tile_q, tile_k=tile_k
    )  # fmt: skip
    (H, _), (L, S), (_, Ev) = problem.heads, problem.lengths, problem.features
    assert tuple(got.output.shape) == (*problem.batch, H, L, Ev)
    assert tuple(got.lse.shape) == (*problem.batch, H, L)
    assert (name_of(got.output.dtype), name_of(got.lse.dtype), got.weights) == (problem.out, "float64", None)
    rows = problem.rows()
    want = problem.answer(rows, tiles=max(1, -(-S // (tile_k or 64))))
    at = tuple(np.array(rows, dtype=int).reshape(-1, got.lse.ndim).T)
    for x, name, dtype in ((got.output, "output", problem.out), (got.lse, "lse", "float64")):
        wanted, radius = getattr(want, name), 2 * getattr(want, f"{name}_radius")
        assert_agree(lib.values(x)[at], wanted, radius, held=rows_of(want.held, wanted), dtype=dtype, what=name)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=28)
def test_flash_attention_agrees_with_the_oracle(namespace: Library, form: str, data: st.DataObject) -> None:
    dtypes = tuple(name for name in DTYPES if name in namespace.dtypes)
    problem = data.draw(draws.problems(dtypes))
    check(problem, namespace, form, data.draw(st.none() | SIZES), data.draw(st.none() | SIZES))


@pytest.mark.parametrize("form", FORMS)
@given(problem=tiny.tiny_problems(), tile_q=st.integers(1, 4), tile_k=st.integers(1, 4))
@settings(max_examples=100)
def test_extreme_values_survive_the_merging_of_tiles(form: str, problem: Problem, tile_q: int, tile_k: int) -> None:
    check(problem, NUMPY, form, tile_q, tile_k)


def assert_is_attention(
    got: Any, arrays: tuple[Any, ...], *, min_tile: int = 16, merges: int = 1, **arguments: Any
) -> None:
    """Output and lse in float64 within the bound that float64 kernels of such tiles keep to."""
    arguments |= {"dtype": "float64"}
    want = ra.attention(*arrays, **arguments, return_lse=True)
    call = prepare("test", *arrays, **NOTHING | arguments)
    promised = replace(contract.flash("float64"), min_tile=min_tile, merges=merges)
    assert got.output.dtype == got.lse.dtype == np.float64
    for index in np.ndindex(call.lead):
        q, k, v, score = call.slab(index)
        problem = contract.Problem(
            q[...], k[...], v[...], score, np.arange(q.shape[0]), want.output[index], want.lse[index]
        )
        bound = contract.softmax_bound(promised, problem)
        assert_agree(got.output[index], want.output[index], bound.output, what=f"output{index}")
        assert_agree(got.lse[index], want.lse[index], bound.lse, what=f"lse{index}")


@pytest.mark.parametrize("form", FORMS)
@given(problem=draws.problems(), tile_q=SIZES, tile_k=SIZES)
@settings(max_examples=40)
def test_flash_attention_is_attention_within_the_bound_of_its_contract(
    form: str, problem: Problem, tile_q: int, tile_k: int
) -> None:
    arguments = problem.arguments(NUMPY) | {"dtype": "float64"}
    got = ra.flash_attention(
        *problem.arrays, **arguments, return_lse=True, implementation=form, tile_q=tile_q, tile_k=tile_k
    )
    # A normalisation at every step rounds as often as two merges.
    least = min(16, tile_k)
    least, merges = (least, 1) if form == "reference" else (max(1, least // 2), 1 + (tile_k == 1) * problem.lengths[1])
    assert_is_attention(got, problem.arrays, min_tile=least, merges=merges, **problem.arguments(NUMPY))


def rising(step: float, S: int = 70, scale: float = 1.0) -> tuple[np.ndarray, ...]:
    """Scores that rise by `step` from key to key, or fall for a negative one."""
    rng = np.random.default_rng(0)
    q = np.stack([np.ones(9), rng.standard_normal(9)], axis=-1)[None]
    k = np.stack([step * np.arange(S), 0.01 * rng.standard_normal(S)], axis=-1)[None]
    return q * scale, k, rng.standard_normal((1, S, 3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [300.0, -300.0, 0.5, 1e4, -1e4])
@pytest.mark.parametrize("tile_k", [1, 7, 16])
def test_maxima_that_rise_by_hundreds(form: str, step: float, tile_k: int) -> None:
    arrays = rising(step)
    got = ra.flash_attention(*arrays, return_lse=True, tile_q=4, tile_k=tile_k, implementation=form, scale=1.0)
    least, merges = (tile_k, 1) if form == "reference" else (max(1, tile_k // 2), 1 + (tile_k == 1) * 70)
    assert_is_attention(got, arrays, min_tile=least, merges=merges, scale=1.0)


GRID = [(1, 1), (1, 8), (8, 1), (15, 17), (16, 16), (17, 33), (0, 3), (3, 0), (0, 0)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("L", "S"), GRID)
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)], ids=["one", "GQA"])
def test_lengths_and_heads(namespace: Library, form: str, heads: tuple[int, int], L: int, S: int) -> None:
    check(Problem(heads=heads, lengths=(L, S), features=(4, 3)), namespace, form, 16, 16)


@pytest.mark.parametrize("batch", [(), (2,), (2, 1), (0,), (2, 0)])
def test_batch_axes(namespace: Library, batch: tuple[int, ...]) -> None:
    check(Problem(batch=batch, heads=(2, 1), lengths=(3, 4), features=(2, 5)), namespace, "reference", 2, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_keys_and_values_do_not_leak(namespace: Library, form: str, poison: float) -> None:
    seen = np.random.default_rng(1).random((9, 12)) < 0.4
    seen[:, [0, 5, 11]], seen[4] = False, False
    mask = Choice("array", seen, lambda _, i, j: bool(seen[i, j]))
    problem = Problem(lengths=(9, 12), features=(4, 3), mask=mask)
    q, k, v = (x.copy() for x in problem.arrays)
    k[:, ~seen.any(axis=0)], v[:, ~seen.any(axis=0)] = poison, poison
    drawn = {name: getattr(problem, name) for name in problem.__dataclass_fields__}
    check(tiny.Tiny(**drawn, drawn=(q, k, v)), namespace, form, 4, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sinks", [None, (0.5, -math.inf)])
def test_a_row_that_sees_nothing_is_zero(namespace: Library, form: str, sinks: tuple[float, ...] | None) -> None:
    seen = np.zeros((3, 7), bool)
    seen[0, [0, 5]], seen[2] = True, True
    mask = Choice("array", seen, lambda _, i, j: bool(seen[i, j]))
    problem = Problem(heads=(2, 1), lengths=(3, 7), features=(2, 2), mask=mask, sinks=sinks)
    check(problem, namespace, form, 1, 2)
    got = problem.call(ra.flash_attention, namespace, return_lse=True, tile_q=1, tile_k=2, implementation=form)
    assert not namespace.values(got.output)[:, 1].any()
    want = [-math.inf, -math.inf] if sinks is None else sinks
    np.testing.assert_array_equal(namespace.values(got.lse)[:, 1], want)


@pytest.mark.parametrize("sink", [-5.0, 0.0, 900.0])
@pytest.mark.parametrize("form", FORMS)
def test_a_sink_counts_once_whatever_the_number_of_tiles(form: str, sink: float) -> None:
    # Keys of weight 1 each, and the sink's own: n / (n + e^sink) of a value of 1.
    n, one = 40, np.zeros((1, 40, 1))
    for tile in (1, 3, 40):
        got = ra.flash_attention(
            one, one, one + 1, sinks=np.array([sink]), tile_q=tile, tile_k=tile, implementation=form, return_lse=True
        )
        want = np.full((1, n), np.logaddexp(math.log(n), sink))
        assert_agree(got.lse, want, 64 * 2.0**-53 * np.abs(want))
        assert_agree(got.output[..., 0], np.exp(math.log(n) - want), 1024 * 2.0**-53 * np.exp(math.log(n) - want))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile", [(64, 128), (100, 37), (None, None)], ids=str)
def test_a_model_s_queries_keys_and_values(form: str, tile: tuple[int | None, int | None]) -> None:
    capture = data.smollm2()
    layer = 2  # of the sink
    arrays = tuple(x[layer : layer + 1].astype(np.float64) for x in (capture.query, capture.key, capture.value))
    got = ra.flash_attention(
        *arrays, is_causal=True, return_lse=True, implementation=form, tile_q=tile[0], tile_k=tile[1]
    )
    assert_is_attention(got, arrays, min_tile=8, is_causal=True)


@pytest.mark.parametrize("name", ATTENTION)
def test_nodes_of_other_libraries(name: str) -> None:
    node = node_of(load(name))
    arrays = tuple(x.astype(np.float64) for x in node[:3])
    arguments = node.arguments
    for form, tile_k in (("reference", 1), ("reference", 2), ("flash_2022", 2)):
        got = ra.flash_attention(
            *arrays, **arguments, return_lse=True, tile_q=2, tile_k=tile_k, implementation=form, dtype="float64"
        )
        assert_is_attention(got, arrays, min_tile=1, **arguments)


@st.composite
def trees(draw: st.DrawFn, leaves: tuple[int, ...]) -> Any:
    """A binary tree over the leaves, in any order."""
    if len(leaves) == 1:
        return leaves[0]
    order = draw(st.permutations(leaves))
    cut = draw(st.integers(1, len(leaves) - 1))
    return draw(trees(tuple(order[:cut]))), draw(trees(tuple(order[cut:])))


@given(data=st.data())
@settings(max_examples=40)
def test_parts_merge_along_any_tree(data: st.DataObject) -> None:
    problem = data.draw(draws.problems(most=65)).but(to=None).spelled_out()
    S = problem.lengths[1]
    q, k, v = problem.arrays
    parts = list(tiles(S, max(1, -(-S // 5)))) or [slice(0, 0)]
    with_sink = data.draw(st.integers(0, len(parts) - 1))

    def part(n: int) -> ra.AttentionResult:
        own = problem.moved(lambda x: x[..., parts[n]]).but(sinks=problem.sinks if n == with_sink else None)
        arrays = (q, k[..., parts[n], :], v[..., parts[n], :])
        return ra.flash_attention(*arrays, **own.arguments(NUMPY), return_lse=True, tile_k=3)

    def merged(tree: Any) -> ra.AttentionResult:
        if isinstance(tree, int):
            return part(tree)
        results = [merged(branch) for branch in tree]
        return ra.merge_states([x.output for x in results], [x.lse for x in results])

    got = merged(data.draw(trees(tuple(range(len(parts))))))
    assert_is_attention(got, problem.arrays, min_tile=3, merges=len(parts), **problem.arguments(NUMPY))


class Watched(np.ndarray):
    """An array that notes what is read of it."""

    read: list[Any]

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, tuple) and len(item) == 3 and isinstance(item[1], slice) and hasattr(self, "read"):
            self.read.append(item[1])
        return super().__getitem__(item)

    def __array_finalize__(self, base: Any) -> None:
        if hasattr(base, "read"):
            self.read = base.read


@pytest.mark.parametrize("form", FORMS)
def test_tiles_that_no_query_sees_are_not_read(form: str) -> None:
    n, tile = 64, 16
    k = np.zeros((1, n, 2)).view(Watched)
    k.read = []
    q = v = np.zeros((1, n, 2))
    mask = ra.masks.window(0, 0) & ra.masks.lengths(2 * tile)
    ra.flash_attention(q, k, v, mask=mask, tile_q=tile, tile_k=tile, implementation=form)
    assert k.read == [slice(0, tile), slice(tile, 2 * tile)]


def traced(call: Any) -> int:
    """Most bytes that Python allocates during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def written_out(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Softmax attention as one writes it by hand."""
    S = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    P = np.exp(S - S.max(axis=-1, keepdims=True))
    return (P / P.sum(axis=-1, keepdims=True)) @ value


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_memory_is_a_twentieth_of_that_of_the_formula(dtype: str) -> None:
    n = 4096
    arrays = [x.astype(dtype) for x in np.random.default_rng(0).standard_normal((3, 1, n, 64))]
    ra.flash_attention(*(x[:, :8] for x in arrays))  # what is imported on first use
    ours = traced(lambda: ra.flash_attention(*arrays))
    by_hand = traced(lambda: written_out(*(x.astype("float64") for x in arrays)))
    assert 20 * ours < by_hand


@pytest.mark.parametrize("more", ["plain", "window", "alibi"])
@pytest.mark.parametrize("form", FORMS)
def test_memory_beyond_the_output_does_not_grow_with_the_length(form: str, more: str) -> None:
    arguments: dict[str, Any] = {
        "plain": {},
        "window": {"mask": ra.masks.window(5, 5), "softcap": 3.0},
        "alibi": {"bias": ra.biases.alibi(2), "is_causal": True},
    }[more]

    def beyond(n: int) -> int:
        arrays = [np.zeros((2, n, 8), np.float32)] * 3
        peak = traced(lambda: ra.flash_attention(*arrays, **arguments, tile_q=64, tile_k=64, implementation=form))
        # Tiles of the output in float64 (in the old algorithm, of the last step too), the whole that they are joined
        # to, and a row's m and l, two log-sum-exps and a number to spare.
        return peak - 2 * n * 8 * ((2 if form == "reference" else 3) * 8 + 5)

    beyond(64)
    assert beyond(1024) < beyond(256) + 2**15
