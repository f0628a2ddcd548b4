"""The gated and delta recurrences: their forms agree, states carry over, and what each rule promises."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests.agreement import assert_agree
from tests.namespaces import NAMES, library

U = 2.0**-53


@dataclass(frozen=True)
class Problem:
    """Arrays of a call, and its arguments."""

    arrays: tuple[np.ndarray, np.ndarray, np.ndarray]
    arguments: dict[str, Any]

    def __call__(self, **more: Any) -> ra.RecurrentResult:
        return ra.recurrent_attention(
            *self.arrays, **self.arguments | {"return_state": True, "dtype": "float64"} | more
        )

    @property
    def radius(self) -> ra.RecurrentResult:
        """How far two evaluations in float64 may lie apart: the bound of one for each of them."""
        bound = ra.recurrent_error_bound(*self.arrays, **self.arguments, accumulation="float64", dtype="float64")
        # Chunks sum up to L decays, and a sum errs relative to the sum of the sizes.
        decay = self.arguments.get("decay")
        sums = 0.0 if decay is None else np.abs(np.where(np.isfinite(decay), decay, 0.0)).sum(axis=2).max()
        lost = 1 + decay.shape[2] * sums if decay is not None else 1.0
        return ra.RecurrentResult(2 * lost * bound.output, 2 * lost * bound.state)


@st.composite
def problems(draw: st.DrawFn, rules: tuple[str, ...] = ("linear", "gated", "delta", "gated_delta")) -> Problem:
    """Heads of all groupings, decays for heads or features, some of them resets, and a state to begin with."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    (Hq, Hk, Hv), L = draw(st.sampled_from([(1, 1, 1), (4, 2, 1), (1, 2, 4), (2, 2, 2)])), draw(st.integers(0, 9))
    H, E, Ev, rule = max(Hq, Hv), draw(st.integers(1, 4)), draw(st.integers(0, 3)), draw(st.sampled_from(rules))
    q, k, v = (rng.standard_normal((2, h, L, n)) for h, n in ((Hq, E), (Hk, E), (Hv, Ev)))
    arguments: dict[str, Any] = {"update_rule": rule}
    if rule.startswith("gated"):
        decay = -rng.exponential(
            draw(st.sampled_from([0.1, 3.0, 100.0])), (2, H, L, E)[: draw(st.sampled_from([3, 4]))]
        )
        arguments["decay"] = np.where(rng.random(decay.shape) < 0.1, -np.inf, decay)
    if rule.endswith("delta"):
        arguments["beta"] = rng.random((2, H, L))
    elif draw(st.booleans()):
        arguments["low_rank"] = tuple(rng.standard_normal((2, 2, H, L, E)) / (1 + E))
    if draw(st.booleans()):
        arguments["initial_state"] = rng.standard_normal((2, H, E, Ev))
    if draw(st.booleans()):
        arguments["scale"] = draw(st.sampled_from([0.0, -1.0, 0.3]))
    return Problem((q, k, v), arguments)


def loop(problem: Problem) -> ra.RecurrentResult:
    """The definition of each rule, written out head by head and step by step."""
    q, k, v = problem.arrays
    more = problem.arguments
    rule, H, (B, _, L, E) = more["update_rule"], max(q.shape[1], v.shape[1]), q.shape
    S_all = np.array(more.get("initial_state", np.zeros((B, H, E, v.shape[-1]))))
    O = np.zeros((B, H, L, v.shape[-1]))
    for b, h in np.ndindex(B, H):
        S = S_all[b, h]
        Q, K, V = (x[b, h * x.shape[1] // H] for x in (q, k, v))
        for t in range(L):
            old = S
            if rule.startswith("gated"):
                S = np.exp(np.broadcast_to(more["decay"][b, h, t], E))[:, None] * S
            if rule.endswith("delta"):
                S = S + more["beta"][b, h, t] * np.outer(K[t], V[t] - S.T @ K[t])
            else:
                S = S + np.outer(K[t], V[t])
                if "low_rank" in more:
                    S = S + np.outer(more["low_rank"][1][b, h, t], old.T @ more["low_rank"][0][b, h, t])
            O[b, h, t] = more.get("scale", E**-0.5) * (S.T @ Q[t])
        S_all[b, h] = S
    return ra.RecurrentResult(O, S_all)


def assert_same(got: ra.RecurrentResult, want: ra.RecurrentResult, radius: ra.RecurrentResult) -> None:
    """Outputs and states agree."""
    assert_agree(got.output, want.output, radius.output, what="output")
    assert_agree(got.state, want.state, radius.state, what="state")


@given(problem=problems(), chunk=st.integers(1, 10))
@settings(max_examples=100)
def test_every_form_is_the_definition(problem: Problem, chunk: int) -> None:
    want, radius = loop(problem), problem.radius
    assert_same(problem(form="recurrent"), want, radius)
    assert_same(problem(form="chunked", chunk=chunk), want, radius)
    assert_same(problem(form="parallel"), want, radius)


@given(problem=problems(), data=st.data(), form=st.sampled_from(["recurrent", "chunked"]))
@settings(max_examples=40)
def test_a_state_carries_over_a_cut(problem: Problem, data: st.DataObject, form: str) -> None:
    cut = data.draw(st.integers(0, problem.arrays[0].shape[2]))
    state, outputs = problem.arguments.get("initial_state"), []
    for part in (slice(None, cut), slice(cut, None)):
        more = {name: x[:, :, part] for name, x in problem.arguments.items() if name in ("decay", "beta")}
        if "low_rank" in problem.arguments:
            more["low_rank"] = tuple(x[:, :, part] for x in problem.arguments["low_rank"])
        arrays = tuple(x[:, :, part] for x in problem.arrays)
        found = Problem(arrays, {**problem.arguments, **more, "initial_state": state})(form=form, chunk=3)
        state = found.state
        outputs.append(found.output)
    assert_same(ra.RecurrentResult(np.concatenate(outputs, axis=2), state), problem(), problem.radius)


@given(problem=problems(), data=st.data(), form=st.sampled_from(["recurrent", "chunked", "parallel"]))
@settings(max_examples=40)
def test_packed_sequences_are_calls_of_their_own(problem: Problem, data: st.DataObject, form: str) -> None:
    L = problem.arrays[0].shape[2]
    ends = [0, *sorted(data.draw(st.lists(st.integers(0, L), max_size=3))), L]
    states = None
    if "initial_state" in problem.arguments:
        factors = 1.0 + np.arange(len(ends) - 1)[None, :, None, None, None]
        states = problem.arguments["initial_state"][:, None] * factors
    more = {} if states is None else {"initial_state": states}
    packed = Problem(problem.arrays, problem.arguments | more)(form=form, chunk=2, cu_seqlens=np.array(ends))
    for n, (i, j) in enumerate(pairwise(ends)):
        own = {name: x[:, :, i:j] for name, x in problem.arguments.items() if name in ("decay", "beta")}
        if "low_rank" in problem.arguments:
            own["low_rank"] = tuple(x[:, :, i:j] for x in problem.arguments["low_rank"])
        if states is not None:
            own["initial_state"] = states[:, n]
        alone = Problem(tuple(x[:, :, i:j] for x in problem.arrays), problem.arguments | own)
        found = ra.RecurrentResult(packed.output[:, :, i:j], packed.state[:, n])
        assert_same(found, alone(), alone.radius)


@given(problem=problems(), data=st.data(), form=st.sampled_from(["recurrent", "chunked", "parallel"]))
@settings(max_examples=60)
def test_no_step_feels_what_comes_after_it(problem: Problem, data: st.DataObject, form: str) -> None:
    L = problem.arrays[0].shape[2]
    t = data.draw(st.integers(0, L))
    # What overflows inside a chunk is told to make NaN of all of it.
    poison = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, *([1e300] if form == "recurrent" else [])]))
    poisoned = [x.copy() for x in problem.arrays]
    name = data.draw(st.integers(0, 2))
    poisoned[name][:, :, t:] = poison
    here, there = problem(form=form, chunk=4), Problem(tuple(poisoned), problem.arguments)(form=form, chunk=4)
    assert_agree(there.output[:, :, :t], here.output[:, :, :t], problem.radius.output[:, :, :t])
    if not np.isfinite(poison):
        assert np.isnan(there.output[:, :, t:]).all()
        if name and t < L:
            assert np.isnan(there.state).all()


def test_a_value_that_is_not_finite_stays_in_its_column() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 5, 3))
    v[0, 2, 1] = np.inf
    for form in ("recurrent", "chunked", "parallel"):
        found = ra.recurrent_attention(q, k, v, beta=np.ones((1, 5)), update_rule="delta", form=form, return_state=True)
        want = np.zeros((5, 3), bool)
        want[2:, 1] = True
        np.testing.assert_array_equal(np.isnan(found.output[0]), want)
        np.testing.assert_array_equal(np.isnan(found.state[0]).all(axis=0), [False, True, False])


@given(problem=problems(rules=("delta",)))
@settings(max_examples=30)
def test_delta_with_beta_one_and_unit_keys_writes_exactly(problem: Problem) -> None:
    q, k, v = problem.arrays
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    H, L = max(q.shape[1], v.shape[1]), q.shape[2]
    whole = Problem((q, k, v), problem.arguments | {"beta": np.ones((2, H, L))})
    if L == 0:
        return
    state, radius = whole().state, whole.radius.state
    last = np.repeat(k, H // k.shape[1], axis=1)[:, :, -1, :, None]
    held = np.sum(state * last, axis=2)
    want = np.repeat(v, H // v.shape[1], axis=1)[:, :, -1]
    # What the key was normalised by errs by E + 4 roundings, twice.
    norms = 2 * (k.shape[-1] + 4) * U * (np.abs(want) + np.sum(np.abs(state * last), axis=2))
    assert_agree(held, want, np.sum(radius * np.abs(last), axis=2) + norms)


def test_delta_with_beta_zero_writes_nothing() -> None:
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, 6, 4))
    S = np.random.default_rng(2).standard_normal((2, 4, 4))
    for form in ("recurrent", "chunked"):
        found = ra.recurrent_attention(
            q, k, v, beta=np.zeros((2, 6)), initial_state=S, update_rule="delta", form=form, chunk=4, return_state=True
        )
        np.testing.assert_array_equal(found.state, S)


def test_the_delta_rule_on_orthonormal_keys_is_linear_attention() -> None:
    rng = np.random.default_rng(3)
    k = np.eye(6)[None]
    q, v = rng.standard_normal((2, 1, 6, 6))
    linear = ra.recurrent_attention(q, k, v)
    np.testing.assert_array_equal(ra.recurrent_attention(q, k, v, beta=np.ones((1, 6)), update_rule="delta"), linear)


@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel"])
def test_a_decay_of_minus_infinity_is_a_reset(form: str) -> None:
    q, k, v = np.random.default_rng(4).standard_normal((3, 1, 7, 2))
    decay = np.full((1, 7), -0.5)
    decay[0, 3] = -np.inf
    found = ra.recurrent_attention(q, k, v, decay=decay, update_rule="gated", form=form, chunk=5)
    after = ra.recurrent_attention(q[:, 3:], k[:, 3:], v[:, 3:], decay=decay[:, 3:], update_rule="gated")
    radius = ra.recurrent_error_bound(
        q[:, 3:], k[:, 3:], v[:, 3:], decay=decay[:, 3:], update_rule="gated", accumulation="float64"
    )
    assert_agree(found[:, 3:], after, 2 * radius.output)


def test_a_strong_decay_takes_no_digits_of_those_after_it() -> None:
    """Of sums from the start of the chunk, differences would lose 1e-12 of themselves here."""
    q, k, v = np.random.default_rng(5).standard_normal((3, 1, 64, 2))
    decay = np.full((1, 64), -0.1)
    decay[0, 1] = -(2.0**13)
    one = ra.recurrent_attention(q, k, v, decay=decay, update_rule="gated")
    all_together = ra.recurrent_attention(q, k, v, decay=decay, update_rule="gated", form="parallel")
    rest = ra.recurrent_error_bound(q, k, v, decay=decay, update_rule="gated", accumulation="float64").output
    np.testing.assert_array_less(np.abs(one - all_together)[:, 2:], 2 * rest[:, 2:])


@given(problem=problems(), name=st.sampled_from(NAMES))
@settings(max_examples=30)
def test_every_library_gives_the_same(problem: Problem, name: str) -> None:
    lib = library(name)
    arrays = [lib.array(x) for x in problem.arrays]
    arguments = {
        n: tuple(map(lib.array, x)) if isinstance(x, tuple) else lib.array(x) if isinstance(x, np.ndarray) else x
        for n, x in problem.arguments.items()
    }
    for form in ("recurrent", "chunked"):
        found = ra.recurrent_attention(*arrays, **arguments, form=form, chunk=3, return_state=True)
        got = ra.RecurrentResult(lib.values(found.output), lib.values(found.state))
        assert_same(got, problem(), problem.radius)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_bound_holds_for_a_kernel_in_a_narrow_format(dtype: str) -> None:
    """A kernel that rounds after every operation, for the gated delta rule."""
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    rng = np.random.default_rng(6)
    L, E, Ev = 12, 4, 3
    q, k, v = (rng.standard_normal((1, L, n)).astype(kind) for n in (E, E, Ev))
    k = (k / np.asarray(2.0, kind)).astype(kind)
    g, beta = (-rng.exponential(1.0, (1, L))).astype(kind), rng.random((1, L)).astype(kind)
    S, O = np.zeros((E, Ev), kind), np.zeros((1, L, Ev), kind)
    for t in range(L):
        S = (np.exp(g[0, t].astype(np.float64)).astype(kind) * S).astype(kind)
        read = np.zeros(Ev, kind)
        for e in range(E):
            read = (read + k[0, t, e] * S[e]).astype(kind)
        new = (beta[0, t] * (v[0, t] - read)).astype(kind)
        S = (S + np.outer(k[0, t], new).astype(kind)).astype(kind)
        for e in range(E):
            O[0, t] = (O[0, t] + (q[0, t, e] * np.asarray(0.5, kind)).astype(kind) * S[e]).astype(kind)
    arguments = {"decay": g, "beta": beta, "update_rule": "gated_delta", "scale": 0.5}
    exact = ra.recurrent_attention(q, k, v, **arguments, dtype="float64", return_state=True)
    bound = ra.recurrent_error_bound(q, k, v, **arguments, accumulation=dtype)
    finite = np.isfinite(bound.output)
    share = np.abs(O.astype(np.float64) - exact.output)[finite] / bound.output[finite]
    assert finite.any()
    assert share.max() <= 1
    assert (np.abs(S.astype(np.float64) - exact.state[0]) <= bound.state[0]).all()
    # A kernel that forgets to decay is beyond it.
    plain = ra.recurrent_attention(q, k, v, beta=beta, update_rule="delta", scale=0.5, dtype="float64")
    assert (np.abs(plain - exact.output)[finite] > bound.output[finite]).any()


@given(problem=problems(), seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_gradients_are_those_of_torch(problem: Problem, seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    arguments = dict(problem.arguments)
    if "decay" in arguments:
        # Torch's derivative of exp at -inf is 0 as ours, but it multiplies it by what it masked.
        arguments["decay"] = np.maximum(arguments["decay"], -50.0)
    calm = Problem(problem.arrays, arguments)
    leaves = dict(zip(("query", "key", "value"), problem.arrays, strict=True))
    leaves |= {n: x for n, x in arguments.items() if n in ("decay", "beta", "initial_state")}
    tensors = {n: torch.tensor(x, requires_grad=True) for n, x in leaves.items()}
    rest = {n: x for n, x in arguments.items() if n not in leaves}
    if "low_rank" in rest:
        pair = tuple(torch.tensor(x, requires_grad=True) for x in rest["low_rank"])
        rest["low_rank"] = pair
        tensors |= {"a": pair[0], "b": pair[1]}
    arrays = [tensors[n] for n in ("query", "key", "value")]
    given = {n: x for n, x in tensors.items() if n in ("decay", "beta", "initial_state")}
    found = ra.recurrent_attention(*arrays, **given, **rest, return_state=True)
    dO, dS = rng.standard_normal(tuple(found.output.shape)), rng.standard_normal(tuple(found.state.shape))
    loss = (found.output * torch.tensor(dO)).sum() + (found.state * torch.tensor(dS)).sum()
    want = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()), allow_unused=True), strict=True))
    got = ra.recurrent_attention_gradient(dO, *problem.arrays, **arguments, grad_state=dS, chunk=3)
    ours = {n: getattr(got, n) for n in leaves} | dict(zip(("a", "b"), got.low_rank or (), strict=False))
    size = 1.0 + max((np.abs(x).max(initial=0.0) for x in ours.values()), default=0.0)
    grown = 1.0 + np.abs(calm.radius.state).max(initial=0.0) / U
    for n, x in ours.items():
        expected = np.zeros_like(x) if want[n] is None else want[n].numpy()
        # Both go back through the same L steps; each rounds as often as the forward steps do.
        assert_agree(x, expected, np.full(x.shape, U * size * grown), what=n)


def test_gradients_are_rounded_once_to_the_dtypes_of_their_arrays() -> None:
    x = np.random.default_rng(7).standard_normal((3, 1, 4, 2)).astype(np.float32)
    decay = -np.ones((1, 4), np.float16)
    got = ra.recurrent_attention_gradient(x[0], *x, decay=decay, update_rule="gated")
    exact = ra.recurrent_attention_gradient(x[0], *x, decay=decay, update_rule="gated", dtype="float64")
    assert got.beta is None
    assert got.initial_state is None
    assert got.query.dtype == np.float32
    np.testing.assert_array_equal(got.query, exact.query.astype(np.float32))
    np.testing.assert_array_equal(got.decay, exact.decay.astype(np.float16))


def test_a_decay_of_minus_infinity_has_no_gradient() -> None:
    x = np.random.default_rng(8).standard_normal((3, 1, 4, 2))
    decay = np.array([[-1.0, -np.inf, -1.0, -1.0]])
    got = ra.recurrent_attention_gradient(x[0], *x, decay=decay, update_rule="gated")
    assert got.decay[0, 1] == 0
    assert got.decay[0, 2] != 0
    np.testing.assert_array_equal(got.value[0, 0], _alone(x, decay))


def _alone(x: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """The gradient of the first value where the second step forgets it."""
    first = ra.recurrent_attention_gradient(x[0, :, :1], *x[:, :, :1], decay=decay[:, :1], update_rule="gated")
    return first.value[0, 0]


def test_jax_gives_the_same() -> None:
    lib = library("jax")
    arrays = tuple(np.random.default_rng(9).standard_normal((3, 1, 2, 5, 2)))
    problem = Problem(arrays, {"decay": -np.ones((1, 2, 5)), "beta": np.full((1, 2, 5), 0.5)})
    problem.arguments["update_rule"] = "gated_delta"

    def call(q: Any, k: Any, v: Any, decay: Any, beta: Any) -> Any:
        more = {"decay": decay, "beta": beta, "update_rule": "gated_delta", "form": "chunked", "chunk": 3}
        return ra.recurrent_attention(q, k, v, **more)

    given = (*arrays, problem.arguments["decay"], problem.arguments["beta"])
    found = lib.values(lib.call(call, *map(lib.array, given)))
    assert_agree(found, problem().output, problem.radius.output)
