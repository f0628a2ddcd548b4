"""Random-feature attention: what its paper promises, and that no key is seen before its time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests.agreement import assert_agree
from tests.namespaces import NAMES, library

U = 2.0**-53
KINDS = ("positive", "hyperbolic", "trigonometric", "relu")


def logs(X: np.ndarray, W: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Factors and logarithms of features, written out."""
    U_, half = X @ W.T, np.sum(X * X, axis=-1, keepdims=True) / 2
    if kind == "positive":
        return np.ones_like(U_), U_ - half
    if kind == "hyperbolic":
        both = np.concatenate([U_, -U_], axis=-1)
        return np.ones_like(both), both - half
    if kind == "trigonometric":
        both = np.concatenate([np.cos(U_), np.sin(U_)], axis=-1)
        return both, np.broadcast_to(half, both.shape)
    return np.maximum(U_, 0) + 1e-3, np.zeros_like(U_)


def dense(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, W: np.ndarray, kind: str, *, causal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The estimate by its whole matrix of similarities, and how far another way to it may be."""
    H, E = q.shape[-3], q.shape[-1]
    k, v = (np.repeat(x, H // x.shape[-3], axis=-3) for x in (k, v))
    (Fq, Gq), (Fk, Gk) = (logs(x * E**-0.25, W, kind) for x in (q, k))
    G = Gq[..., :, None, :] + Gk[..., None, :, :]
    A = Fq[..., :, None, :] * Fk[..., None, :, :]
    keep = np.tril(np.ones(G.shape[-3:-1], bool)) if causal else np.ones(G.shape[-3:-1], bool)
    G = np.where(keep[..., None], G, -np.inf)
    top = G.max(axis=(-2, -1), keepdims=True, initial=-1e300)
    weights, sizes = (np.sum(x * np.exp(G - top), axis=-1) for x in (A, np.abs(A)))
    total, size = weights.sum(axis=-1, keepdims=True), sizes.sum(axis=-1, keepdims=True)
    out = weights @ v / total
    # Sums of M S products and exponentials of numbers as large as G, in numerator and normaliser.
    n = 2 * (G.shape[-1] * (G.shape[-2] + 8) + 4 * E * np.abs(np.where(np.isfinite(G), G, 0)).max(initial=1.0))
    radius = n * U * (sizes @ np.abs(v) + size * np.abs(out)) / np.abs(total)
    return out, radius


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Arrays of moderate or of large entries, whose features overflow where nothing divides them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    (H, Hk), L = draw(st.sampled_from([(1, 1), (4, 2)])), draw(st.integers(1, 7))
    causal = draw(st.booleans())
    S = L if causal else draw(st.integers(1, 7))
    E, Ev, M = draw(st.integers(1, 4)), draw(st.integers(0, 3)), draw(st.integers(1, 9))
    kind, size = draw(st.sampled_from(KINDS)), draw(st.sampled_from([1.0, 1.0, 60.0]))
    size = 1.0 if kind == "trigonometric" else size
    q, k, v = (rng.standard_normal((2, h, n, e)) for h, n, e in ((H, L, E), (Hk, S, E), (Hk, S, Ev)))
    W = ra.random_projection(M, E, rng=rng)
    return {"query": size * q, "key": size * k, "value": v, "projection": W, "features": kind, "is_causal": causal}


@given(problem=problems())
@settings(max_examples=100)
def test_the_estimate_is_the_quotient_of_its_sums(problem: dict[str, Any]) -> None:
    q, k, v, W, kind, causal = problem.values()
    out, radius = dense(q, k, v, W, kind, causal=causal)
    assert_agree(ra.performer_attention(**problem), out, radius)


@given(problem=problems(), data=st.data())
@settings(max_examples=60)
def test_no_query_feels_a_later_key(problem: dict[str, Any], data: st.DataObject) -> None:
    """Bit for bit: not through a maximum, not through an underflow, and not through what is not finite."""
    L = min(problem["query"].shape[2], problem["key"].shape[2])
    problem |= {"is_causal": True} | {name: problem[name][:, :, :L] for name in ("query", "key", "value")}
    t, poison = data.draw(st.integers(0, L)), data.draw(st.sampled_from([np.nan, np.inf, 1e3, -1e3, 1e200]))
    later = {name: problem[name].copy() for name in ("query", "key", "value")}
    for x in later.values():
        x[:, :, t:] = poison
    here, there = (ra.performer_attention(**given)[:, :, :t] for given in (problem, problem | later))
    np.testing.assert_array_equal(here, there)


@given(problem=problems())
@settings(max_examples=40)
def test_nonnegative_features_give_convex_combinations(problem: dict[str, Any]) -> None:
    if problem["features"] == "trigonometric":
        problem["features"] = "positive"
    q, k, v, W, kind, causal = problem.values()
    out, (_, radius) = ra.performer_attention(**problem), dense(q, k, v, W, kind, causal=causal)
    values = np.repeat(v, q.shape[1] // v.shape[1], axis=1)
    assert (out <= values.max(axis=2, keepdims=True) + radius).all()
    assert (out >= values.min(axis=2, keepdims=True) - radius).all()


def test_large_keys_neither_overflow_nor_vanish() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 6, 4))
    W = ra.random_projection(16, 4, rng=1)
    for kind in ("positive", "hyperbolic"):
        for causal in (False, True):
            out = ra.performer_attention(q, 200 * k, v, projection=W, features=kind, is_causal=causal)
            assert np.isfinite(out).all()


def test_no_keys_give_zeros() -> None:
    q, none = np.ones((1, 3, 2)), np.ones((1, 0, 2))
    for kind in KINDS:
        out = ra.performer_attention(q, none, none, projection=np.ones((4, 2)), features=kind)
        np.testing.assert_array_equal(out, np.zeros((1, 3, 2)))


@given(problem=problems(), name=st.sampled_from(NAMES))
@settings(max_examples=12)
def test_every_library_gives_the_same(problem: dict[str, Any], name: str) -> None:
    lib = library(name)
    q, k, v, W, kind, causal = problem.values()
    out, radius = dense(q, k, v, W, kind, causal=causal)
    given = {n: lib.array(x) if isinstance(x, np.ndarray) else x for n, x in problem.items()}
    assert_agree(lib.values(ra.performer_attention(**given)), out, 2 * radius)


@given(problem=problems(), seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_gradients_are_those_of_torch(problem: dict[str, Any], seed: int) -> None:
    torch = pytest.importorskip("torch")
    calm = {name: problem[name] / max(1.0, np.abs(problem[name]).max() / 3) for name in ("query", "key")}
    problem |= calm
    leaves = {name: torch.tensor(problem[name], requires_grad=True) for name in ("query", "key", "value")}
    output = ra.performer_attention(**problem | leaves | {"projection": torch.tensor(problem["projection"])})
    dO = np.random.default_rng(seed).standard_normal(tuple(output.shape))
    want = torch.autograd.grad((output * torch.tensor(dO)).sum(), list(leaves.values()))
    got = ra.performer_attention_gradient(dO, **problem)
    q, k, v, W, kind, causal = problem.values()
    out, radius = dense(q, k, v, W, kind, causal=causal)
    # A gradient has the factors of the output, and do, and W or x for each feature; each rounds as often.
    worst = np.max(radius / (np.abs(out) + 1e-300), initial=0.0) + U
    for name, theirs in zip(leaves, want, strict=True):
        ours, theirs = getattr(got, name), theirs.numpy()
        size = 1 + np.abs(dO).max(initial=0) * (1 + np.abs(v).max(initial=0)) * (1 + np.abs(W).max()) * 3 * dO.size
        assert_agree(ours, theirs, np.full(ours.shape, 64 * worst * size), what=name)


def test_gradients_of_large_keys_are_finite() -> None:
    q, k, v, dO = np.random.default_rng(12).standard_normal((4, 1, 6, 4))
    W = ra.random_projection(16, 4, rng=1)
    for kind in ("positive", "hyperbolic"):
        for causal in (False, True):
            found = ra.performer_attention_gradient(dO, q, 200 * k, v, projection=W, features=kind, is_causal=causal)
            assert all(np.isfinite(x).all() for x in found[:3])


@pytest.mark.parametrize(("M", "E"), [(3, 8), (8, 8), (20, 8), (1, 1)])
def test_vectors_of_a_block_are_orthogonal(M: int, E: int) -> None:
    for qr in ("sign", "lapack"):
        W = ra.random_projection(M, E, scaling="sqrt", qr=qr, rng=0)
        assert W.shape == (M, E)
        for start in range(0, M, E):
            block = W[start : start + E]
            error = np.abs(block @ block.T - E * np.eye(len(block)))
            # Householder QR: the columns of Q are orthonormal to a small multiple of E sqrt(E) u.
            assert error.max() <= 16 * E**1.5 * E * U


def estimates(kind: str, z: tuple[np.ndarray, np.ndarray], draws: int, M: int, **more: Any) -> np.ndarray:
    """Estimates of exp(x.y) from so many projections."""
    x, y = z
    rng = np.random.default_rng(11)
    found = []
    for _ in range(draws):
        W = ra.random_projection(M, len(x), rng=rng, **more)
        (Fx, Gx), (Fy, Gy) = (logs(p[None], W, kind) for p in (x, y))
        found.append(np.sum(Fx * Fy * np.exp(Gx + Gy)) / (2 * M if kind == "hyperbolic" else M))
    return np.array(found)


PAIR = (np.full(8, 0.25), np.array([0.25] * 4 + [-0.1] * 4))


@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "trigonometric"])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_lemma_1_unbiased(kind: str, orthogonal: bool) -> None:
    """At 5 sigma of the estimates' own scatter."""
    got = estimates(kind, PAIR, 4000, 8, orthogonal=orthogonal)
    want = np.exp(PAIR[0] @ PAIR[1])
    assert abs(got.mean() - want) <= 5 * got.std() / np.sqrt(len(got))


def test_the_uncorrected_qr_is_biased() -> None:
    """The published programs' projection: far beyond 5 sigma below exp(x.y)."""
    x = np.full(8, 0.5 / np.sqrt(8))
    got = estimates("positive", (x, x), 4000, 8, qr="lapack")
    want = np.exp(0.25)
    assert got.mean() < want - 20 * got.std() / np.sqrt(len(got))


@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "trigonometric"])
def test_lemma_2_variances(kind: str) -> None:
    """The relative variances of independent features: exp(s) - 1, cosh(s) - 1 and cosh(d) - 1 over M."""
    M, draws = 8, 6000
    got = estimates(kind, PAIR, draws, M, orthogonal=False) / np.exp(PAIR[0] @ PAIR[1])
    s, d = np.sum((PAIR[0] + PAIR[1]) ** 2), np.sum((PAIR[0] - PAIR[1]) ** 2)
    want = {"positive": np.expm1(s), "hyperbolic": np.cosh(s) - 1, "trigonometric": np.cosh(d) - 1}[kind] / M
    squares = (got - 1) ** 2
    assert abs(squares.mean() - want) <= 5 * squares.std() / np.sqrt(draws)


def test_theorem_2_orthogonal_vectors_vary_less() -> None:
    """By at least 2 (M - 1) / (M (d + 2)) (1 - exp(-s/2))^2 of the square, for M <= d."""
    M = d = 32
    x = y = np.full(d, 0.5 / np.sqrt(d))
    s = np.sum((x + y) ** 2)
    got = estimates("positive", (x, y), 8000, M) / np.exp(x @ y)
    squares = (got - 1) ** 2
    gap = 2 * (M - 1) / (M * (d + 2)) * (1 - np.exp(-s / 2)) ** 2
    assert squares.mean() <= np.expm1(s) / M - gap + 5 * squares.std() / np.sqrt(len(squares))


@pytest.mark.parametrize(
    ("kind", "orthogonal"),
    [("positive", True), ("positive", False), ("hyperbolic", True), ("trigonometric", False)],
)
def test_the_error_keeps_its_bound(kind: str, orthogonal: bool) -> None:
    """Of 200 projections at confidence 1/2 so many that keep it that fewer would be no chance."""
    rng = np.random.default_rng(3)
    q, k, v = 0.3 * rng.standard_normal((3, 1, 3, 4))
    exact = ra.attention(q, k, v)
    given = {"features": 256, "kind": kind, "orthogonal": orthogonal, "confidence": 0.5}
    bound = ra.performer_error_bound(q, k, v, **given)
    assert (bound < 2 * np.abs(v).max() * 2).all()
    kept = [
        (
            np.linalg.norm(
                ra.performer_attention(
                    q, k, v, projection=ra.random_projection(256, 4, orthogonal=orthogonal, rng=rng), features=kind
                )
                - exact,
                axis=-1,
            )
            <= bound
        ).all()
        for _ in range(200)
    ]
    # Binomial of 200 halves: 5 sigma below its mean.
    assert np.sum(kept) >= 100 - 5 * np.sqrt(50)


def test_the_bound_says_no_more_than_it_knows() -> None:
    q = np.full((1, 1, 4), 9.0)
    v = np.array([[[0.0, 0.0], [3.0, 4.0]]])
    k = np.stack([q[:, 0], -q[:, 0]], axis=1)
    assert ra.performer_error_bound(q, k, v, features=8)[0, 0] == 5
    given = {"features": 8, "kind": "trigonometric", "orthogonal": False}
    assert ra.performer_error_bound(q, k, v, **given)[0, 0] == np.inf
