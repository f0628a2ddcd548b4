"""The gradient of tiled attention: against complex steps and against the gradient written out, whatever the tiles."""

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
from refattn import data
from tests.agreement import assert_agree
from tests.derivatives import case, cotangents
from tests.gradient_oracle import Case
from tests.methods.test_exact_gradient import LAWS, NAMES, problems
from tests.namespaces import Library, library
from tests.strategies import NONE, Choice, Problem

NUMPY = library("numpy")
SIZES = st.sampled_from([1, 2, 3, 15, 16, 17, 33, 10**6])


def gradient(function: Any, problem: Problem, lib: Library = NUMPY, **more: Any) -> ra.AttentionGradient:
    """A gradient on a library's arrays, back in NumPy."""
    dO, dlse = cotangents(problem)
    arguments: dict[str, Any] = problem.arguments(lib) | {"grad_lse": lib.array(dlse)} | more
    found = function(lib.array(dO), *map(lib.array, problem.arrays), **arguments)
    return ra.AttentionGradient(*(None if x is None else lib.values(x) for x in found))


def of_tiles(problem: Problem, tile_k: int) -> Case:
    """The oracle, for sums over tiles of so many keys."""
    return replace(case(problem), tiles=max(1, -(-problem.lengths[1] // tile_k)))


@given(data=st.data(), tile_q=SIZES, tile_k=SIZES)
@settings(max_examples=30)
def test_gradients_are_those_of_complex_steps(
    namespace: Library, data: st.DataObject, tile_q: int, tile_k: int
) -> None:
    problem = data.draw(problems())
    got = gradient(ra.flash_attention_gradient, problem, namespace, tile_q=tile_q, tile_k=tile_k)
    want = of_tiles(problem, tile_k)
    for name in NAMES:
        found = getattr(got, name)
        assert (found is None) == (getattr(want, name) is None), name
        if found is not None:
            assert_agree(found, want.gradient(name), 2 * want.radius(name), what=name)


@given(problem=problems(most=49), tile_q=SIZES, tile_k=SIZES)
@settings(max_examples=60)
def test_gradients_are_those_written_out(problem: Problem, tile_q: int, tile_k: int) -> None:
    got = gradient(ra.flash_attention_gradient, problem, tile_q=tile_q, tile_k=tile_k)
    want, radius = gradient(ra.attention_gradient, problem), of_tiles(problem, tile_k).radius
    for name in NAMES:
        if getattr(want, name) is not None:
            assert_agree(getattr(got, name), getattr(want, name), 2 * radius(name), what=name)
        else:
            assert getattr(got, name) is None


@given(problem=problems(most=9), poison=st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
@settings(max_examples=40)
def test_what_is_masked_gives_and_gets_nothing(namespace: Library, problem: Problem, poison: float) -> None:
    problem, tile = problem.but(bias=NONE), {"tile_q": 2, "tile_k": 3}
    clean = gradient(ra.flash_attention_gradient, problem, namespace, **tile)
    dO, dlse = cotangents(problem)
    q, k, v = (x.copy() for x in problem.arrays)
    seen = np.broadcast_to(problem.mask.given, (*problem.batch, problem.heads[0], *problem.lengths))
    (H, Hk), (L, S) = problem.heads, problem.lengths
    by_key = seen.reshape(*problem.batch, Hk, H // Hk, L, S).any(axis=(-3, -2))
    k[~by_key] = poison
    v[~by_key] = poison
    q[~seen.any(axis=-1)] = poison
    dO[~seen.any(axis=-1)] = poison
    arguments = problem.arguments(namespace) | {"grad_lse": namespace.array(dlse)} | tile
    found = ra.flash_attention_gradient(namespace.array(dO), *map(namespace.array, (q, k, v)), **arguments)
    for name in NAMES:
        if getattr(clean, name) is not None:
            assert np.array_equal(namespace.values(getattr(found, name)), getattr(clean, name)), name
    assert not namespace.values(found.key)[~by_key].any()
    assert not namespace.values(found.query)[~seen.any(axis=-1)].any()


@pytest.mark.parametrize("with_lse", [False, True])
def test_a_row_that_sees_nothing_is_its_sink(with_lse: bool) -> None:
    # Its output is constant, its log-sum-exp the sink; what dO holds there is not read.
    dO, x = np.full((2, 3, 1), math.nan), np.ones((2, 3, 1))
    dlse = np.arange(6.0).reshape(2, 3) if with_lse else None
    got = ra.flash_attention_gradient(
        dO, x, x, x, mask=np.zeros((3, 3), bool), sinks=np.array([0.5, -math.inf]), grad_lse=dlse, tile_q=2, tile_k=2
    )
    assert got.sinks.tolist() == ([3.0, 0.0] if with_lse else [0.0, 0.0])
    assert not any(y.any() for y in got[:3])


@pytest.mark.parametrize("bad", ["query", "key", "value", "grad_output"])
def test_what_is_seen_and_not_finite_is_nan(bad: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 5, 2)) for name in ("grad_output", "query", "key", "value")}
    arrays[bad][0, 3, 0] = math.nan
    got = ra.flash_attention_gradient(**arrays, is_causal=True, tile_q=2, tile_k=2)
    want = ra.attention_gradient(**arrays, is_causal=True)
    for x, y in zip(got[:3], want[:3], strict=True):
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))


SHAPES = [(3, 7), (4, 1, 7), (2, 1, 3, 1), (1, 1), (2, 4, 3, 7), (1, 4, 1, 1), (2, 1, 1, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (8, 8)], ids=str)
def test_a_bias_gets_the_sum_over_the_axes_it_was_broadcast_along(
    shape: tuple[int, ...], tile: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    dO, q = rng.standard_normal((2, 2, 4, 3, 5))
    k, v = rng.standard_normal((2, 2, 2, 7, 5))
    mask = ra.masks.causal("upper_left")  # no query sees the last keys
    full = ra.attention_gradient(dO, q, k, v, bias=np.zeros((2, 4, 3, 7)), mask=mask).bias
    got = ra.flash_attention_gradient(dO, q, k, v, bias=np.zeros(shape), mask=mask, tile_q=tile[0], tile_k=tile[1]).bias
    padded = (1,) * (4 - len(shape)) + shape
    axes = tuple(axis for axis, n in enumerate(padded) if n != full.shape[axis])
    want = full.sum(axis=axes, keepdims=True).reshape(shape)
    assert got.shape == shape
    assert_agree(got, want, full.size * 2.0**-53 * np.abs(full).sum(axis=axes).reshape(shape), what=str(shape))


def test_a_bias_that_is_a_rule_has_no_gradient() -> None:
    x = np.ones((1, 2, 3))
    assert ra.flash_attention_gradient(x, x, x, x, bias=ra.biases.alibi(1)).bias is None


def test_each_gradient_has_the_dtype_of_its_array() -> None:
    rng = np.random.default_rng(2)
    dO, q, k, v = (rng.standard_normal((1, 2, 3)) for _ in range(4))
    got = ra.flash_attention_gradient(dO.astype(np.float32), q.astype(np.float16), k.astype(np.float32), v)
    assert [x.dtype.name for x in got[:3]] == ["float16", "float32", "float64"]
    assert ra.flash_attention_gradient(dO, q, k, v, dtype="float32").value.dtype == np.float32


@pytest.mark.parametrize(("L", "S"), [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_axes_may_be_empty(namespace: Library, L: int, S: int) -> None:
    problem = Problem(heads=(2, 1), lengths=(L, S), features=(2, 3), sinks=(0.5, 1.0)).spelled_out()
    problem = problem.but(bias=Choice("zero", np.zeros((2, L, S))), mask=Choice("all", np.ones((2, L, S), bool)))
    got = gradient(ra.flash_attention_gradient, problem, namespace)
    want = gradient(ra.attention_gradient, problem, namespace)
    for name in NAMES:
        x, y = getattr(got, name), getattr(want, name)
        assert x.shape == y.shape
        if 0 in (L, S):
            np.testing.assert_array_equal(x, y)
        else:
            assert_agree(x, y, 2 * of_tiles(problem, S).radius(name), what=name)


def test_a_model_s_queries_keys_and_values() -> None:
    capture = data.smollm2()
    q, k, v = (x[1, :, :192].astype(np.float64) for x in (capture.query, capture.key, capture.value))
    dO = np.random.default_rng(0).standard_normal(q.shape)
    got = ra.flash_attention_gradient(dO, q, k, v, is_causal=True, tile_q=50, tile_k=37)
    want = ra.attention_gradient(dO, q, k, v, is_causal=True)
    seen = np.tril(np.ones((192, 192), bool))
    whole = Case(q, k, v, dO, np.zeros(q.shape[:-1]), np.broadcast_to(seen, (3, 192, 192)), scale=0.125, tiles=6)
    for name in NAMES[:3]:
        assert_agree(getattr(got, name), getattr(want, name), 2 * whole.radius(name), what=name)


def test_memory_beyond_the_gradients_does_not_grow_with_the_length() -> None:
    def beyond(n: int) -> int:
        arrays = [np.zeros((1, n, 8))] * 4
        tracemalloc.start()
        try:
            ra.flash_attention_gradient(*arrays, tile_q=64, tile_k=64, mask=ra.masks.window(9, 9))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # The gradients and their tiles, the output and its; D, a boolean, and the log-sum-exp of each row and its tile.
        return peak - n * 8 * (8 * 8 + 4)

    beyond(64)
    assert beyond(2048) < beyond(256) + 2**15


@pytest.mark.parametrize("law", LAWS)
def test_gradients_are_those_of_autograd_through_the_tiled_forward_pass(law: str) -> None:
    # Autograd's 1 - tanh^2 cancels where scores are large.
    softcap = 2.0 if law == "normal" else None
    torch = pytest.importorskip("torch")
    lib = library("torch")
    bias, kept = (
        np.random.default_rng(3).standard_normal((4, 5, 1)),
        np.random.default_rng(5).random((2, 4, 5, 7)) < 0.7,
    )
    mask = np.random.default_rng(4).random((2, 1, 5, 7)) < 0.6
    mask[0, :, 2] = False
    problem = Problem(
        batch=(2,), heads=(4, 2), lengths=(5, 7), features=(3, 4), law=law, softcap=softcap, mask=Choice("cells", mask),
        bias=Choice("bias", bias), sinks=(0.5,) * 4, dropout_mask=Choice("kept", kept), dropout_p=0.3,
    )  # fmt: skip
    leaves = dict(zip(("query", "key", "value"), map(lib.array, problem.arrays), strict=True))
    arguments = problem.arguments(lib)
    leaves |= {name: arguments[name] for name in ("bias", "sinks")}
    for x in leaves.values():
        x.requires_grad_()
    output, lse, _ = ra.flash_attention(
        *(leaves[x] for x in ("query", "key", "value")), **arguments, return_lse=True, tile_q=2, tile_k=3
    )
    torch.autograd.backward([output, lse], [lib.array(x) for x in cotangents(problem)])
    whole = replace(case(problem.but(bias=Choice("cells", np.broadcast_to(bias, (2, 4, 5, 7))))), tiles=3)
    got = gradient(ra.flash_attention_gradient, problem, tile_q=2, tile_k=3)
    for name, x in leaves.items():
        radius = whole.radius(name)
        radius = radius.sum(axis=0).sum(axis=-1, keepdims=True) * 2 if name == "bias" else radius
        assert_agree(getattr(got, name), x.grad.numpy(), 4 * radius, what=name)
