"""Low-rank attention: where it is exact, what its papers promise, and how far it may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import contract
from refattn._call import prepare
from refattn.contract.averages import diameter, moved_by_scores
from refattn.methods.linformer.reference import pseudo_inverse
from tests.agreement import assert_agree
from tests.namespaces import NAMES, library

U = 2.0**-53
NOTHING = {"mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None}


def radius(*arrays: np.ndarray) -> np.ndarray:
    """How far two float64 evaluations of softmax attention may lie apart: its proven bound for each of them."""
    exact = ra.attention(*arrays, return_lse=True)
    call = prepare("test", *arrays, **NOTHING, dtype="float64")
    found = np.zeros(exact.output.shape)
    for index in np.ndindex(call.lead):
        q, k, v, score = call.slab(index)
        rows = np.arange(q.shape[0])
        problem = contract.Problem(q[...], k[...], v[...], score, rows, exact.output[index], exact.lse[index])
        found[index] = contract.softmax_bound(contract.flash("float64"), problem).output
    return 2 * found


def mixed_radius(q: np.ndarray, k: np.ndarray, v: np.ndarray, E: np.ndarray, F: np.ndarray) -> np.ndarray:
    """How far two evaluations of Linformer may lie apart: softmax attention to mixtures that err by S roundings."""
    S, (keys, values) = k.shape[-2], (np.swapaxes(P, -1, -2) @ x for P, x in ((E, k), (F, v)))
    lost, moved = (S * U * (np.swapaxes(np.abs(P), -1, -2) @ np.abs(x)) for P, x in ((E, k), (F, v)))
    G = q.shape[1] // k.shape[1]
    lost, moved, wide = (np.repeat(x, G, axis=1) for x in (lost, moved, values))
    eta = q.shape[-1] ** -0.5 * (np.abs(q) @ np.swapaxes(lost, -1, -2)).max(axis=-1, keepdims=True)
    return radius(q, keys, values) + 2 * (
        moved_by_scores(eta) * diameter(wide)[..., None] + moved.max(axis=-2, keepdims=True)
    )


def mean_radius(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far two evaluations of attention by the mean of all queries may lie apart: it errs by L roundings."""
    mean, lost = q.mean(axis=-2, keepdims=True), q.shape[-2] * U * np.abs(q).mean(axis=-2, keepdims=True)
    keys, values = (np.repeat(x, q.shape[-3] // k.shape[-3], axis=-3) for x in (k, v))
    eta = q.shape[-1] ** -0.5 * (lost @ np.swapaxes(np.abs(keys), -1, -2)).max(axis=-1, keepdims=True)
    return radius(mean, k, v) + 2 * moved_by_scores(eta) * diameter(values)[..., None]


@st.composite
def arrays(draw: st.DrawFn, block: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values; so many keys in a row are equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    (H, Hk), L, n = draw(st.sampled_from([(1, 1), (4, 2)])), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    E, Ev = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    q, k, v = (rng.standard_normal((2, h, m, e)) for h, m, e in ((H, L, E), (Hk, n, E), (Hk, n * block, Ev)))
    return q, np.repeat(k, block, axis=2), v


@given(problem=arrays())
@settings(max_examples=30)
def test_the_identity_gives_attention(problem: Any) -> None:
    S = problem[1].shape[2]
    for E in (np.eye(S), np.stack([np.eye(S)] * problem[1].shape[1])):
        got = ra.linformer_attention(*problem, key_projection=E)
        assert_agree(got, ra.attention(*problem), radius(*problem))


@given(data=st.data(), block=st.sampled_from([1, 2]))
@settings(max_examples=30)
def test_means_of_equal_keys_give_attention(data: st.DataObject, block: int) -> None:
    """Blocks of two, whose means are exact."""
    problem = data.draw(arrays(block=block))
    S = problem[1].shape[2]
    E = ra.linformer_projection(S, S // block, kind="mean")
    assert_agree(ra.linformer_attention(*problem, key_projection=E), ra.attention(*problem), radius(*problem))
    assert (ra.linformer_error_bound(*problem, rank=S // block) == 0).all()


def test_each_key_head_takes_its_own_projection() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 4, 5, 3))
    k, v = k[:, :2], v[:, :2]
    E, F = rng.standard_normal((2, 2, 5, 3))
    whole = ra.linformer_attention(q, k, v, key_projection=E, value_projection=F)
    for h in range(4):
        one = slice(h // 2, h // 2 + 1)
        alone = ra.linformer_attention(
            q[:, h : h + 1], k[:, one], v[:, one], key_projection=E[h // 2], value_projection=F[h // 2]
        )
        room = mixed_radius(q[:, h : h + 1], k[:, one], v[:, one], E[h // 2], F[h // 2])
        assert_agree(whole[:, h : h + 1], alone, room)


def test_an_output_is_of_the_projections_rank() -> None:
    q, k, v = np.random.default_rng(1).standard_normal((3, 1, 12, 12))
    E = ra.linformer_projection(12, 3, rng=0)
    singular = np.linalg.svd(ra.linformer_attention(q, k, v, key_projection=E)[0], compute_uv=False)
    assert (singular[3:] <= 12 * 12 * U * singular[0]).all()
    assert singular[2] > 1e-3 * singular[0]


def test_the_mean_square_error_of_normal_projections() -> None:
    """E |P R R^T V - P V|^2 = (|P|^2 |V|^2 + |P V|^2) / rank, at 5 sigma."""
    rng = np.random.default_rng(2)
    P, V, rank = rng.random((4, 9)), rng.standard_normal((9, 3)), 6
    got = []
    for _ in range(4000):
        R = ra.linformer_projection(9, rank, rng=rng)
        got.append(np.sum((P @ R @ (R.T @ V) - P @ V) ** 2))
    want = (np.sum(P**2) * np.sum(V**2) + np.sum((P @ V) ** 2)) / rank
    assert abs(np.mean(got) - want) <= 5 * np.std(got) / np.sqrt(len(got))


def test_normal_projections_keep_lengths_by_the_law_of_chi_square() -> None:
    """rank |R^T x|^2 / |x|^2 is chi-square of rank degrees: Kolmogorov's distance, at a level of 1e-6."""
    from scipy import stats

    rng = np.random.default_rng(3)
    x, rank = rng.standard_normal(7), 5
    got = [np.sum((ra.linformer_projection(7, rank, rng=rng).T @ x) ** 2) * rank / np.sum(x * x) for _ in range(3000)]
    assert stats.kstest(got, stats.chi2(rank).cdf).pvalue > 1e-6


def test_uniform_projections_fill_their_range() -> None:
    E = ra.linformer_projection(200, 16, kind="uniform", rng=4)
    assert np.abs(E).max() <= 0.25
    assert np.abs(E).max() > 0.249
    assert abs(E.mean()) <= 5 * 0.25 / np.sqrt(3 * E.size)


@given(data=st.data(), block=st.sampled_from([2, 3]), spread=st.floats(0.0, 3.0))
@settings(max_examples=60)
def test_means_of_blocks_keep_their_bound(data: st.DataObject, block: int, spread: float) -> None:
    q, k, v = data.draw(arrays(block=block))
    k = k + spread * np.random.default_rng(5).standard_normal(k.shape)
    S = k.shape[2]
    E = ra.linformer_projection(S, S // block, kind="mean")
    error = np.linalg.norm(ra.linformer_attention(q, k, v, key_projection=E) - ra.attention(q, k, v), axis=-1)
    room = np.linalg.norm(radius(q, k, v), axis=-1)
    assert (error <= ra.linformer_error_bound(q, k, v, rank=S // block) + room).all()


def test_two_keys_about_their_mean() -> None:
    """Their weights move from one half by tanh(eta) / 2."""
    q, v = np.ones((1, 1, 1)), np.array([[[0.0], [1.0]]])
    for eta in (1e-3, 0.5, 3.0):
        k = np.array([[[-eta], [eta]]])
        E = ra.linformer_projection(2, 1, kind="mean")
        error = ra.attention(q, k, v, scale=1.0) - ra.linformer_attention(q, k, v, key_projection=E, scale=1.0)
        bound = ra.linformer_error_bound(q, k, v, rank=1, scale=1.0)
        assert_agree(error, np.full((1, 1, 1), np.tanh(eta) / 2), 2 * radius(q, k, v) + 4 * U)
        assert error[0, 0, 0] <= bound[0, 0] <= 2 * error[0, 0, 0]


@pytest.mark.parametrize("coupled", [True, False])
def test_the_residual_of_the_iteration(coupled: bool) -> None:
    """R' = 3/4 R^3 + 1/4 R^4, step by step."""
    A = np.random.default_rng(6).random((2, 3, 5, 5))
    A /= A.sum(axis=-1, keepdims=True)
    one = np.eye(5)
    for n in range(5):
        R, R_next = (one - A @ pseudo_inverse(A, iterations=m, coupled=coupled, xp=np) for m in (n, n + 1))
        want = 0.75 * R @ R @ R + 0.25 * R @ R @ R @ R
        # Z grows to 1 / the least singular value; a step has four products of 5 x 5 matrices.
        size = np.abs(A).sum(axis=-1).max() * np.abs(pseudo_inverse(A, iterations=n + 1, coupled=coupled, xp=np)).max()
        assert np.abs(R_next - want).max() <= 400 * U * max(1.0, size) * 5


@given(problem=arrays())
@settings(max_examples=25)
def test_all_rows_as_landmarks_give_attention(problem: Any) -> None:
    q, k, v = problem
    n = min(q.shape[2], k.shape[2])
    q, k, v = q[:, :, :n], k[:, :, :n], v[:, :, :n]
    A = np.exp((q / np.sqrt(q.shape[-1])) @ np.swapaxes(np.repeat(k, q.shape[1] // k.shape[1], axis=1), -1, -2))
    A /= A.sum(axis=-1, keepdims=True)
    singular = np.linalg.svd(A, compute_uv=False)
    if singular.min() < 1e-3:
        return
    got = ra.nystrom_attention(q, k, v, landmarks=n, iterations=60)
    # Convergence is to the pseudo-inverse, whose error is the rounding of a step times the condition number.
    room = 1e3 * n * U / singular.min() ** 2 * np.abs(v).max()
    assert_agree(got, ra.attention(q, k, v), radius(q, k, v) + room)


def test_landmarks_are_means_of_segments() -> None:
    """One landmark: every query gets the average with the weights of the mean query."""
    q, k, v = np.random.default_rng(7).standard_normal((3, 1, 5, 2))
    got, want = ra.nystrom_attention(q, k, v, landmarks=1), ra.attention(q.mean(axis=1, keepdims=True), k, v)
    assert_agree(got, np.broadcast_to(want, got.shape), np.broadcast_to(mean_radius(q, k, v), got.shape))


def test_only_coupled_entries_feel_each_other() -> None:
    rng = np.random.default_rng(8)
    q, k, v = rng.standard_normal((3, 2, 1, 6, 3))
    other = q.copy()
    other[1] *= 5
    for coupled in (False, True):
        here, there = (ra.nystrom_attention(x, k, v, landmarks=3, iterations=2, coupled=coupled)[0] for x in (q, other))
        assert np.array_equal(here, there) != coupled


@given(problem=arrays(), name=st.sampled_from(NAMES))
@settings(max_examples=8)
def test_every_library_gives_the_same(problem: Any, name: str) -> None:
    lib = library(name)
    E = ra.linformer_projection(problem[1].shape[2], 2, rng=9)
    given = [lib.array(x) for x in problem]
    got = lib.values(ra.linformer_attention(*given, key_projection=lib.array(E)))
    want = ra.linformer_attention(*problem, key_projection=E)
    assert_agree(got, want, mixed_radius(*problem, E, E))
    # With one landmark all but the last product is exact, and that is attention by the mean query.
    one, other = lib.values(ra.nystrom_attention(*given, landmarks=1)), ra.nystrom_attention(*problem, landmarks=1)
    assert_agree(one, other, np.broadcast_to(mean_radius(*problem), other.shape))


@given(problem=arrays(), per_head=st.booleans(), both=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_gradients_of_linformer_are_those_of_torch(problem: Any, per_head: bool, both: bool, seed: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    shape = (*((problem[1].shape[1],) if per_head else ()), problem[1].shape[2], 3)
    leaves = dict(zip(("query", "key", "value"), problem, strict=True)) | {"key_projection": rng.standard_normal(shape)}
    leaves |= {"value_projection": rng.standard_normal(shape)} if both else {}
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in leaves.items()}
    assert_gradients(ra.linformer_attention(**tensors), tensors, leaves, ra.linformer_attention_gradient, rng)


@given(problem=arrays(), coupled=st.booleans(), iterations=st.integers(0, 4), seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_gradients_of_nystrom_are_those_of_torch(problem: Any, coupled: bool, iterations: int, seed: int) -> None:
    torch = pytest.importorskip("torch")
    leaves = dict(zip(("query", "key", "value"), problem, strict=True))
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in leaves.items()}
    more = {"landmarks": min(3, problem[0].shape[2], problem[1].shape[2])}
    more |= {"coupled": coupled, "iterations": iterations}
    output = ra.nystrom_attention(**tensors, **more)
    assert_gradients(output, tensors, leaves, ra.nystrom_attention_gradient, np.random.default_rng(seed), **more)


def assert_gradients(output: Any, tensors: Any, leaves: Any, function: Any, rng: Any, **more: Any) -> None:
    """A gradient is what torch makes of the forward pass, to a thousand roundings of the largest number about."""
    torch = pytest.importorskip("torch")
    dO = rng.standard_normal(tuple(output.shape))
    want = torch.autograd.grad((output * torch.tensor(dO)).sum(), list(tensors.values()))
    got = function(dO, **leaves, **more)
    size = max(np.abs(x.numpy()).max(initial=1.0) for x in want) * (1 + max(np.abs(x).max() for x in leaves.values()))
    for name, theirs in zip(leaves, want, strict=True):
        assert_agree(getattr(got, name), theirs.numpy(), np.full(theirs.shape, 1e3 * U * size), what=name)
