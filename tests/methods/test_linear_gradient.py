"""The gradient of linear attention: against complex steps, against PyTorch's own, and across a cut of the sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests.agreement import assert_agree
from tests.namespaces import Library

FORMS = ("quadratic", "recurrent", "chunked")
E, EV, M = 3, 2, 4
W = np.random.default_rng(5).standard_normal((M, E))
PLACES = np.arange(1, 30)[:, None] * math.pi / 18


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """exp(x) / sum exp(x), of complex numbers too."""
    e = np.exp(x)
    return e / e.sum(axis=axis, keepdims=True)


def outer(x: np.ndarray) -> np.ndarray:
    """All products."""
    return (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], E * E)


def relu(x: np.ndarray) -> np.ndarray:
    """The positive part, by the sign of the real one."""
    return np.where(x.real > 0, x, 0.0)


def waves(x: np.ndarray) -> np.ndarray:
    """CosFormer's, of 9 positions."""
    at = PLACES[: x.shape[-2]]
    return np.concatenate([relu(x) * np.sin(at), relu(x) * np.cos(at)], axis=-1)


# Features of complex x (..., n, E): a derivative is the imaginary part of a step.
PHI: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "elu+1": ("elu+1", lambda x: np.where(x.real > 0, x + 1, np.exp(np.where(x.real > 0, 0, x)))),
    "relu": ("relu", relu),
    "identity": ("identity", lambda x: x),
    "softmax": ("softmax", lambda x: softmax(x, -1)),
    "taylor": ("taylor", lambda x: np.concatenate([np.ones_like(x[..., :1]), x, outer(x) / math.sqrt(2)], axis=-1)),
    "squared": ("squared", outer),
    "cosformer": (ra.cosformer_features(9), waves),
    "fourier": (
        ra.fourier_features(W, scale=0.6),
        lambda x: np.concatenate([f(x @ W.T * 0.6**0.5) for f in (np.cos, np.sin)], axis=-1) / M**0.5,
    ),
}


class Problem(NamedTuple):
    """A call with its cotangents; heads 2 and 1."""

    arrays: tuple[np.ndarray, np.ndarray, np.ndarray]
    dO: np.ndarray
    keep: np.ndarray
    scale: float
    eps: float
    clamp: bool
    normalize: bool
    state: ra.LinearState | None
    grad_state: ra.LinearState | None

    def loss(self, phi: Callable[[np.ndarray], np.ndarray], q: Any, k: Any, v: Any, S: Any, z: Any) -> Any:
        """sum(dO * O) + sum(dS * S) + sum(dz * z), of complex arrays, quadratic."""
        f_q, f_k = phi(self.scale * q), phi(k)
        A = np.where(self.keep, f_q @ np.swapaxes(f_k, -1, -2), 0.0)
        N, Z = A @ v + f_q @ S, A.sum(axis=-1, keepdims=True) + f_q @ z[..., None]
        D = np.where(Z.real < self.eps, self.eps, Z) if self.clamp else Z + self.eps
        O = N / D if self.normalize else N
        loss = (self.dO * O).sum()
        if self.grad_state is not None:
            loss += (self.grad_state.S * (S + np.swapaxes(f_k, -1, -2) @ v)).sum()
            loss += (self.grad_state.z * (z + f_k.sum(axis=-2))).sum()
        return loss


def problem(seed: int, L: int, S: int, features: int, **changes: Any) -> Problem:
    """Normal numbers; `changes` are fields, of which `state` and `grad_state` may be True."""
    rng = np.random.default_rng(seed)
    states = [ra.LinearState(rng.standard_normal((1, features, EV)), rng.random((1, features))) for _ in range(2)]
    named = zip(("state", "grad_state"), states, strict=True)
    given = {name: state if changes.pop(name, False) else None for name, state in named}
    arrays = tuple(rng.standard_normal(shape) for shape in ((2, L, E), (1, S, E), (1, S, EV)))
    fields: dict[str, Any] = {"scale": 1.0, "eps": 0.3, "clamp": False, "normalize": True}
    return Problem(
        arrays, dO=rng.standard_normal((2, L, EV)), **{"keep": np.ones((L, S), bool)} | fields | given | changes
    )


def by_steps(p: Problem, phi: Callable[[np.ndarray], np.ndarray], features: int) -> list[np.ndarray]:
    """Gradients of q, k, v, S and z: the loss with a step of 1e-200 i in each number."""
    given = [*p.arrays, *(p.state or (np.zeros((1, features, EV)), np.zeros((1, features))))]
    found = []
    for n, x in enumerate(given):
        slopes = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            moved = [y.astype(complex) for y in given]
            moved[n][at] += 1e-200j
            slopes[at] = p.loss(phi, *moved).imag / 1e-200
        found.append(slopes)
    return found


def radii(p: Problem, phi: Callable[[np.ndarray], np.ndarray], features: int) -> list[np.ndarray]:
    """First-order rounding errors, twice: every product and sum of the chain rule in magnitude, times their number."""
    q, k, v = p.arrays
    S, z = p.state or (np.zeros((1, features, EV)), np.zeros((1, features)))
    after = p.grad_state or (np.zeros_like(S), np.zeros_like(z))
    f_q, f_k = np.abs(phi(p.scale * q)), np.abs(phi(k))
    signed = np.where(p.keep, phi(p.scale * q) @ np.swapaxes(phi(k), -1, -2), 0.0)
    Z = signed.sum(axis=-1, keepdims=True) + phi(p.scale * q) @ z[..., None]
    D = np.abs(np.maximum(Z, p.eps) if p.clamp else Z + p.eps) if p.normalize else np.ones_like(Z)
    A = np.where(p.keep, f_q @ np.swapaxes(f_k, -1, -2), 0.0)
    worse = 1 + (A.sum(axis=-1, keepdims=True) + f_q @ np.abs(z)[..., None] + p.eps) / D  # of the division
    O = (A @ np.abs(v) + f_q @ np.abs(S)) / D
    dN = worse * np.abs(p.dO) / D
    dZ = worse * (dN * O).sum(axis=-1, keepdims=True) if p.normalize else np.zeros_like(Z)
    dA = np.where(p.keep, dN @ np.abs(np.swapaxes(v, -1, -2)) + dZ, 0.0)
    df_q = dA @ f_k + dN @ np.abs(np.swapaxes(S, -1, -2)) + dZ * np.abs(z)[:, None, :]
    df_k = (np.swapaxes(dA, -1, -2) @ f_q).sum(axis=0, keepdims=True)
    df_k = df_k + np.abs(v) @ np.abs(np.swapaxes(after[0], -1, -2)) + np.abs(after[1])[:, None, :]
    dv = (np.swapaxes(A, -1, -2) @ dN).sum(axis=0, keepdims=True) + f_k @ np.abs(after[0])
    T = np.swapaxes(f_q, -1, -2)
    dS = (T @ dN).sum(axis=0, keepdims=True) + np.abs(after[0])
    dz = (T @ dZ)[..., 0].sum(axis=0, keepdims=True) + np.abs(after[1])
    dq, dk = abs(p.scale) * _through(phi, p.scale * q, df_q), _through(phi, k, df_k)
    steps = 2 * (q.shape[-2] + k.shape[-2] + features + EV + E) + 60
    return [2 * steps * 2.0**-53 * x for x in (dq, dk, dv, dS, dz)]


def _through(phi: Callable[[np.ndarray], np.ndarray], x: np.ndarray, df: np.ndarray) -> np.ndarray:
    """sum_m |df_m| (|d phi_m / d x| + |phi_m|): the second term is room for what phi itself rounds."""
    found = np.zeros(x.shape)
    for e in range(E):
        step = x.astype(complex)
        step[..., e] += 1e-200j
        slope = np.abs(phi(step).imag / 1e-200)
        found[..., e] = (df * (slope + np.abs(phi(x)) + 1)).sum(axis=-1)
    return found


def gradients(p: Problem, feature_map: Any, lib: Library | None = None, **more: Any) -> list[np.ndarray]:
    """What refattn finds, in the order of `by_steps`; no state where none was given."""
    array = (lambda x: x) if lib is None else lib.array
    values = (lambda x: x) if lib is None else lib.values
    states = {
        name: ra.LinearState(*map(array, x))
        for name, x in (("state", p.state), ("grad_state", p.grad_state))
        if x is not None
    }
    found = ra.linear_attention_gradient(
        array(p.dO), *map(array, p.arrays), feature_map=feature_map, scale=p.scale, eps=p.eps,
        eps_rule="clamp" if p.clamp else "add", normalize=p.normalize, **states, **more,
    )  # fmt: skip
    assert (found.state is None) == (p.state is None)
    return [values(x) for x in (*found[:3], *(found.state or ()))]


NAMES = ("query", "key", "value", "S", "z")


def assert_gradients(got: list[np.ndarray], p: Problem, name: str, features: int) -> None:
    """All of them are those of complex steps."""
    wanted, allowed = by_steps(p, PHI[name][1], features), radii(p, PHI[name][1], features)
    for x, want, radius, what in zip(got, wanted, allowed, NAMES, strict=False):
        assert_agree(x, want, radius, what=what)


@given(data=st.data())
@settings(max_examples=25)
def test_gradients_are_those_of_complex_steps(data: st.DataObject) -> None:
    name, causal = data.draw(st.sampled_from(list(PHI))), data.draw(st.booleans())
    L = data.draw(st.integers(1, 4))
    S = L if causal else data.draw(st.integers(1, 4))
    flags = {x: data.draw(st.booleans()) for x in ("clamp", "normalize", "state", "grad_state")}
    features = PHI[name][1](np.zeros((1, E))).shape[-1]
    p = problem(
        data.draw(st.integers(0, 999)), L, S, features, **flags, scale=data.draw(st.sampled_from([1.0, -0.4])),
        keep=np.tri(L, dtype=bool) if causal else np.ones((L, S), bool),
    )  # fmt: skip
    form, chunk = data.draw(st.sampled_from(FORMS)), data.draw(st.integers(1, 4))
    assert_gradients(gradients(p, PHI[name][0], is_causal=causal, form=form, chunk=chunk), p, name, features)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("keys", [False, True], ids=["cells", "keys"])
def test_what_is_masked_gives_and_gets_nothing(namespace: Library, form: str, keys: bool) -> None:
    if form != "quadratic" and not keys:
        return
    keep = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)[0 if keys else slice(None)].reshape(-1, 4)
    p = problem(1, 3, 4, E, keep=np.broadcast_to(keep, (3, 4)), eps=0.0)
    q, k, v = p.arrays
    for poisoned in (k, v):
        poisoned[:, ~keep.any(axis=0)] = math.nan
    clean = p._replace(arrays=(q, np.nan_to_num(k), np.nan_to_num(v)))
    if not keys:
        q[:, 1], p.dO[:, 1] = math.nan, math.nan
        clean = clean._replace(arrays=(np.nan_to_num(q), *clean.arrays[1:]), dO=np.nan_to_num(p.dO), eps=1e-300)
    got = gradients(p, "elu+1", namespace, mask=namespace.array(keep), form=form, chunk=2)
    assert_gradients(got, clean, "elu+1", E)
    assert not got[1][:, ~keep.any(axis=0)].any()


@pytest.mark.parametrize("normalize", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_query_does_not_see_and_a_key_is_not_seen_by_is_not_felt(form: str, normalize: bool) -> None:
    p = problem(7, 6, 6, E, keep=np.tri(6, dtype=bool), normalize=normalize)
    given: dict[str, Any] = {"is_causal": True, "form": form, "chunk": 4}
    clean = gradients(p, "elu+1", **given)
    for x in (*p.arrays, p.dO):
        x[:, 2] = math.nan
    got = gradients(p, "elu+1", **given)
    assert np.array_equal(got[0][:, :2], clean[0][:, :2])
    for n in (1, 2):  # of keys behind the third query, but for what the third key does to queries after it
        assert np.isnan(got[n][:, :3]).all()
    for x in p.arrays[1:]:
        x[:, 2] = 1.0
    got, clean = gradients(p, "elu+1", **given), gradients(_without_nan(p), "elu+1", **given)
    for n in (1, 2):
        assert np.array_equal(got[n][:, 3:], clean[n][:, 3:]), NAMES[n]


def _without_nan(p: Problem) -> Problem:
    """The problem with 0 in the place of NaN."""
    q, k, v = map(np.nan_to_num, p.arrays)
    return p._replace(arrays=(q, k, v), dO=np.nan_to_num(p.dO))


def test_efficient_attention_s_features_are_normalised_over_keys() -> None:
    p = problem(2, 3, 4, E, eps=0.0)
    got = gradients(p, "efficient")
    given = [x.astype(complex) for x in p.arrays]
    radius = radii(p, lambda x: softmax(x, -2), E)
    for n, x in enumerate(p.arrays):
        for at in np.ndindex(x.shape):
            q, k, v = (y.copy() for y in given)
            (q, k, v)[n][at] += 1e-200j
            A = softmax(q, -1) @ np.swapaxes(softmax(k, -2), -1, -2)
            slope = (p.dO * (A @ v / A.sum(axis=-1, keepdims=True))).sum().imag / 1e-200
            assert abs(got[n][at] - slope) <= 64 * radius[n].max(), NAMES[n]


@pytest.mark.parametrize("form", FORMS)
def test_a_state_s_gradient_carries_over_a_cut(form: str) -> None:
    p = problem(3, 7, 7, E, keep=np.tri(7, dtype=bool))
    whole = gradients(p, "elu+1", is_causal=True, form=form, chunk=3)
    head, tail = ([x[:, at] for x in (p.dO, *p.arrays)] for at in (slice(0, 4), slice(4, 7)))
    given: dict[str, Any] = {"is_causal": True, "eps": p.eps, "form": form, "chunk": 2}
    state = ra.linear_attention(*head[1:], **given, return_state=True).state
    after = ra.linear_attention_gradient(*tail, **given, state=state)
    before = ra.linear_attention_gradient(*head, **given, grad_state=after.state)
    for n, radius in enumerate(radii(p, PHI["elu+1"][1], E)[:3]):
        assert_agree(np.concatenate([before[n], after[n]], axis=1), whole[n], 2 * radius, what=NAMES[n])


@pytest.mark.parametrize("form", FORMS)
def test_pytorch_s_own_gradient_goes_through_every_form(form: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    p = problem(4, 5, 5, E, keep=np.tri(5, dtype=bool))
    arrays = [torch.tensor(x, requires_grad=True) for x in p.arrays]
    output = ra.linear_attention(*arrays, is_causal=True, eps=p.eps, form=form, chunk=2)
    output.backward(torch.tensor(p.dO))
    got = gradients(p, "elu+1", is_causal=True)
    for x, want, radius, name in zip(arrays, got, radii(p, PHI["elu+1"][1], E), NAMES, strict=False):
        assert_agree(x.grad.numpy(), want, 2 * radius, what=name)


@pytest.mark.slow
def test_gradients_on_costly_libraries(costly: Library) -> None:
    p = problem(5, 3, 3, E, keep=np.tri(3, dtype=bool))
    got = costly.call(
        lambda *x: ra.linear_attention_gradient(*x, is_causal=True, eps=p.eps)[:3],
        *map(costly.array, (p.dO, *p.arrays)),
    )
    assert_gradients([costly.values(x) for x in got], p, "elu+1", E)


def test_gradients_are_rounded_once_to_the_dtype_of_each() -> None:
    p = problem(6, 3, 3, E)
    q, k, v = (x.astype(t) for x, t in zip(p.arrays, ("float32", "float16", "float64"), strict=True))
    exact = ra.linear_attention_gradient(p.dO, q, k, v, dtype="float64")
    got = ra.linear_attention_gradient(p.dO, q, k, v)
    for x, want, dtype in zip(got[:3], exact[:3], ("float32", "float16", "float64"), strict=True):
        assert x.dtype == dtype
        assert np.array_equal(x, want.astype(dtype))
