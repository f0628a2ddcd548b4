"""The gradient of exact attention: against complex steps, against PyTorch's own, and by its laws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests import strategies as draws
from tests.agreement import assert_agree
from tests.derivatives import case, cotangents
from tests.namespaces import Library, library
from tests.strategies import Choice, Problem

NUMPY = library("numpy")
LAWS = ("normal", "peaked", "offset", "rising")
NAMES = ("query", "key", "value", "bias", "sinks")


@st.composite
def problems(draw: st.DrawFn, most: int = 4, **fixed: Any) -> Problem:
    """A small problem with moderate values, all of its rules written out cell by cell, no infinite bias."""
    problem = draw(draws.problems(most=most)).but(law=draw(st.sampled_from(LAWS)), **fixed).spelled_out()
    if problem.softcap is not None:
        problem = problem.but(softcap=max(problem.softcap, 1.0))
    if problem.bias.given is not None:
        x = np.clip(problem.bias.given, -1e4, 1e4)
        problem = problem.but(bias=Choice("cells", x))
    return problem


def gradient(problem: Problem, lib: Library = NUMPY, **more: Any) -> ra.AttentionGradient:
    """`ra.attention_gradient` on a library's arrays, back in NumPy."""
    dO, dlse = cotangents(problem)
    arguments: dict[str, Any] = problem.arguments(lib) | {"grad_lse": lib.array(dlse)} | more
    found = ra.attention_gradient(lib.array(dO), *map(lib.array, problem.arrays), **arguments)
    return ra.AttentionGradient(*(None if x is None else lib.values(x) for x in found))


def per_key_head(problem: Problem, x: np.ndarray, *, columns: bool = False) -> np.ndarray:
    """The sum of (..., H, L, n) over L and the query heads of each key head, and over the columns too."""
    H, Hk = problem.heads
    return x.reshape(*x.shape[:-3], Hk, H // Hk, *x.shape[-2:]).sum(axis=(-3, -2) if columns else (-3, -2, -1))


@given(data=st.data())
@settings(max_examples=30)
def test_gradients_are_those_of_complex_steps(namespace: Library, data: st.DataObject) -> None:
    problem = data.draw(problems())
    got, want = gradient(problem, namespace), case(problem)
    for name in NAMES:
        found = getattr(got, name)
        assert (found is None) == (getattr(want, name) is None), name
        if found is not None:
            assert_agree(found, want.gradient(name), 2 * want.radius(name), what=name)


@given(problem=problems(most=9))
@settings(max_examples=30)
def test_rows_of_the_scores_gradient_add_up_to_that_of_the_lse(problem: Problem) -> None:
    # lse(s + c) = lse(s) + c, while the output does not move: with the sink's share, each row sums to dlse.
    (H, _), (L, S) = problem.heads, problem.lengths
    problem = problem.but(bias=Choice("zero", np.zeros((*problem.batch, H, L, S))), sinks=None)
    got, want = gradient(problem), case(problem)
    seen = want.seen.any(axis=-1)
    radius = want.radius("bias").sum(axis=-1)
    assert_agree(got.bias.sum(axis=-1), np.where(seen, want.grad_lse, 0.0), radius, what="row sums")


@given(problem=problems(most=9))
@settings(max_examples=30)
def test_query_and_key_see_the_same_scores(problem: Problem) -> None:
    # The scores depend on Q K^T alone, so moving Q along itself is moving K along itself.
    q, k, _ = problem.arrays
    got, want = gradient(problem), case(problem)
    of_query, of_key = per_key_head(problem, got.query * q), (got.key * k).sum(axis=(-1, -2))
    radius = per_key_head(problem, want.radius("query") * np.abs(q))
    radius = radius + (want.radius("key") * np.abs(k)).sum(axis=(-1, -2))
    assert_agree(of_query, of_key, radius, what="Q dQ and K dK")


@given(problem=problems(most=9))
@settings(max_examples=30)
def test_values_share_out_the_gradient_of_the_output(problem: Problem) -> None:
    # Without sink and dropout the weights of a row add up to 1, so all of dO arrives somewhere.
    problem = problem.but(sinks=None, dropout_mask=draws.NONE, dropout_p=0.0)
    got, want = gradient(problem), case(problem)
    dO = np.where(want.seen.any(axis=-1)[..., None], want.grad_output, 0.0)
    given, size = (per_key_head(problem, x, columns=True) for x in (dO, np.abs(dO)))
    radius = want.radius("value").sum(axis=-2) + dO.shape[-2] * problem.heads[0] * 2.0**-53 * size
    assert_agree(got.value.sum(axis=-2), given, radius, what="sum of dV")


@given(problem=problems(most=9), scale=st.sampled_from([2.0, -0.5, 2.0**30]))
@settings(max_examples=30)
def test_gradients_are_linear_in_the_cotangents(problem: Problem, scale: float) -> None:
    dO, dlse = cotangents(problem)
    whole = gradient(problem)
    of_output, of_lse = (
        ra.attention_gradient(scale * a, *problem.arrays, **problem.arguments(NUMPY), grad_lse=scale * b)
        for a, b in ((dO, 0 * dlse), (0 * dO, dlse))
    )
    want = case(problem)
    for name in NAMES:
        if getattr(whole, name) is not None:
            total = getattr(of_output, name) + getattr(of_lse, name)
            radius = 4 * abs(scale) * want.radius(name)
            assert_agree(total, scale * getattr(whole, name), radius, what=name)


@given(problem=problems(most=9), poison=st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
@settings(max_examples=40)
def test_what_is_masked_gives_and_gets_nothing(namespace: Library, problem: Problem, poison: float) -> None:
    problem = problem.but(bias=draws.NONE)
    clean = gradient(problem, namespace)
    dO, dlse = cotangents(problem)
    q, k, v = (x.copy() for x in problem.arrays)
    seen = np.broadcast_to(problem.mask.given, (*problem.batch, problem.heads[0], *problem.lengths))
    (H, Hk), (L, S) = problem.heads, problem.lengths
    by_key = seen.reshape(*problem.batch, Hk, H // Hk, L, S).any(axis=(-3, -2))
    k[~by_key] = poison
    v[~by_key] = poison
    q[~seen.any(axis=-1)] = poison
    dO[~seen.any(axis=-1)] = poison
    arguments = problem.arguments(namespace)
    found = ra.attention_gradient(
        namespace.array(dO), *map(namespace.array, (q, k, v)), grad_lse=namespace.array(dlse), **arguments
    )
    for name in NAMES:
        if getattr(clean, name) is not None:
            assert np.array_equal(namespace.values(getattr(found, name)), getattr(clean, name)), name
    assert not namespace.values(found.key)[~by_key].any()
    assert not namespace.values(found.value)[~by_key].any()
    assert not namespace.values(found.query)[~seen.any(axis=-1)].any()


@pytest.mark.parametrize("bad", ["query", "key", "value", "grad_output"])
def test_what_is_seen_and_not_finite_is_nan(bad: str) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((1, 3, 2)) for name in ("grad_output", "query", "key", "value")}
    arrays[bad][0, 1, 0] = math.nan
    got = ra.attention_gradient(**arrays, is_causal=True)
    assert np.isnan(got.query[0, 1]).all() or bad == "grad_output"
    assert np.isfinite(got.query[0, 0]).all()  # row 0 sees key 0 alone
    reached = {"query": got.key, "key": got.value, "value": got.key, "grad_output": got.value}[bad]
    assert np.isnan(reached[0, :2]).any()


def test_a_bias_gets_the_sum_over_the_axes_it_was_broadcast_along() -> None:
    rng = np.random.default_rng(1)
    dO, q, k, v = (rng.standard_normal((2, 4, 3, 5)) for _ in range(4))
    full = ra.attention_gradient(dO, q, k, v, bias=np.zeros((2, 4, 3, 3))).bias
    for shape, axes in (((3, 3), (0, 1)), ((4, 1, 3), (0, 2)), ((2, 1, 3, 1), (1, 3)), ((1, 1), (0, 1, 2, 3))):
        got = ra.attention_gradient(dO, q, k, v, bias=np.zeros(shape)).bias
        want = full.sum(axis=axes, keepdims=True).reshape(shape)
        assert got.shape == shape
        assert_agree(got, want, full.size * 2.0**-53 * np.abs(full).sum(axis=axes).reshape(shape), what=str(shape))


def test_a_bias_that_is_a_rule_has_no_gradient() -> None:
    x = np.ones((1, 2, 3))
    assert ra.attention_gradient(x, x, x, x, bias=ra.biases.alibi(1)).bias is None


def test_each_gradient_has_the_dtype_of_its_array() -> None:
    rng = np.random.default_rng(2)
    dO, q, k, v = (rng.standard_normal((1, 2, 3)) for _ in range(4))
    exact = ra.attention_gradient(dO.astype(np.float32), q.astype(np.float16), k.astype(np.float32), v)
    assert [x.dtype.name for x in exact[:3]] == ["float16", "float32", "float64"]
    assert ra.attention_gradient(dO, q, k, v, dtype="float32").value.dtype == np.float32
    with pytest.raises(TypeError) as error:
        ra.attention_gradient(dO, q, k.astype(np.int8), v)
    assert str(error.value) == (
        "attention_gradient: dtype must be given where key is int8, which is no dtype for a result. Pass "
        "dtype='float32' or the namespace's own dtype."
    )


@pytest.mark.parametrize("softcapped", [False, True])
@pytest.mark.parametrize("heads", [(3, 3), (4, 2)])
def test_gradients_are_those_of_autograd_through_the_forward_pass(heads: tuple[int, int], softcapped: bool) -> None:
    torch = pytest.importorskip("torch")
    lib = library("torch")
    bias = np.random.default_rng(3).standard_normal((heads[0], 5, 1))
    kept = np.random.default_rng(5).random((2, heads[0], 5, 7)) < 0.7
    problem = Problem(
        batch=(2,), heads=heads, lengths=(5, 7), features=(3, 4), softcap=2.0 if softcapped else None,
        mask=Choice("cells", np.random.default_rng(4).random((2, 1, 5, 7)) < 0.6), bias=Choice("bias", bias),
        sinks=(0.5,) * heads[0], dropout_mask=Choice("kept", kept), dropout_p=0.3,
    )  # fmt: skip
    leaves = dict(zip(("query", "key", "value"), map(lib.array, problem.arrays), strict=True))
    arguments = problem.arguments(lib)
    leaves |= {name: arguments[name] for name in ("bias", "sinks")}
    for x in leaves.values():
        x.requires_grad_()
    output, lse, _ = ra.attention(*(leaves[x] for x in ("query", "key", "value")), **arguments, return_lse=True)
    dO, dlse = map(torch.tensor, cotangents(problem))
    torch.autograd.backward([output, lse], [dO, dlse])
    (H, _), (L, S) = problem.heads, problem.lengths
    whole = case(problem.but(bias=Choice("cells", np.broadcast_to(bias, (2, H, L, S)))))
    got = gradient(problem)
    for name, x in leaves.items():
        radius = whole.radius(name)
        radius = radius.sum(axis=0).sum(axis=-1, keepdims=True) * 2 if name == "bias" else radius
        assert_agree(getattr(got, name), x.grad.numpy(), 4 * radius, what=name)


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_are_those_of_pytorchs_own_attention(is_causal: bool) -> None:
    torch = pytest.importorskip("torch")
    problem = Problem(batch=(2,), heads=(2, 2), lengths=(6, 6), features=(4, 4), is_causal=is_causal).spelled_out()
    leaves = [torch.tensor(x, requires_grad=True) for x in problem.arrays]
    dO, _ = cotangents(problem)
    output = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=is_causal)
    output.backward(torch.tensor(dO))
    got = gradient(problem, grad_lse=None)
    for name, x in zip(("query", "key", "value"), leaves, strict=True):
        assert_agree(getattr(got, name), x.grad.numpy(), 2 * case(problem).radius(name), what=name)
