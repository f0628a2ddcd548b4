"""Linear attention's theorems with their constants: rounding, kernels that are off, and random Fourier features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra

Kernel = Callable[..., np.ndarray]
W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
MAPS = {"fourier": ra.fourier_features(W)}
NAMES = ("elu+1", "relu", "identity", "softmax", "taylor", "cosformer", "fourier")


def features(x: np.ndarray, name: str) -> np.ndarray:
    """Features in the arithmetic of x; elu(x) + 1 as frameworks write it."""
    one = x.dtype.type(1)
    if name == "identity":
        return x
    if name == "relu":
        return np.maximum(x, 0)
    if name == "softmax":
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)
    if name == "taylor":
        pairs = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1) / x.dtype.type(math.sqrt(2))
        return np.concatenate([np.ones_like(x[:, :1]), x, pairs], axis=-1)
    if name == "cosformer":
        angles = np.arange(1, len(x) + 1, dtype=x.dtype)[:, None] * x.dtype.type(math.pi / (2 * len(x)))
        return np.concatenate([np.maximum(x, 0) * wave(angles) for wave in (np.sin, np.cos)], axis=-1)
    if name == "fourier":
        angles = x @ W.astype(x.dtype).T
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) / x.dtype.type(math.sqrt(len(W)))
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + one


def quadratic(q: np.ndarray, k: np.ndarray, v: np.ndarray, stored: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Similarities, in the accumulator's format, stored once."""
    A = np.tril(q @ k.T)
    return stored(A) @ v / A.sum(axis=1, keepdims=True)


def recurrent(q: np.ndarray, k: np.ndarray, v: np.ndarray, stored: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Key by key; what a query reads is stored once."""
    S, z, rows = np.zeros((k.shape[1], v.shape[1]), v.dtype), np.zeros(k.shape[1], v.dtype), []
    for q_i, k_i, v_i in zip(q, k, v, strict=True):
        S, z = S + k_i[:, None] * v_i, z + k_i
        rows.append((q_i @ stored(S)) / (q_i @ z))
    return np.stack(rows)


def backward(q: np.ndarray, k: np.ndarray, v: np.ndarray, stored: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Similarities of the last key first, one product after the other."""
    N, Z = np.zeros((len(q), v.shape[1]), v.dtype), np.zeros((len(q), 1), v.dtype)
    for j in reversed(range(len(k))):
        a = np.zeros(len(q), v.dtype)
        for m in range(k.shape[1]):
            a = a + q[:, m] * k[j, m]
        a = np.where(np.arange(len(q)) >= j, a, 0)[:, None]
        N, Z = N + stored(a) * v[j], Z + a
    return N / Z


KERNELS: dict[str, Kernel] = {"quadratic": quadratic, "recurrent": recurrent, "backward": backward}


def problem(seed: int, n: int, law: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, key and value (1, n, .) in float32."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((n, m)) for m in (3, 3, 2))
    if law == "positive":  # errors that all have one sign
        q, k, v = np.abs(q) + 1, np.abs(k) + 1, np.full_like(v, 1 + 2**-12)
    elif law == "small":
        q, k = q - 8, k - 8
    return tuple(x[None].astype(np.float32) for x in (q, k, v))  # type: ignore[return-value]


def used(kernel: Kernel, seed: int, n: int, law: str, name: str, dtype: str) -> float:
    """The largest error of a kernel, as a share of its bound."""
    q, k, v = (x.astype(getattr(ml_dtypes, dtype, dtype)) for x in problem(seed, n, law))

    def stored(x: np.ndarray) -> np.ndarray:
        return x.astype(q.dtype).astype(np.float32)

    wide = [x[0].astype(np.float32) for x in (q, k, v)]
    given = [stored(features(x, name)) for x in wide[:2]]
    scaled = given if name != "taylor" else [stored(features(wide[0] * np.float32(3**-0.5), name)), given[1]]
    with np.errstate(all="ignore"):
        got = kernel(*scaled, wide[2], stored).astype(q.dtype).astype(np.float64)
    arguments: dict[str, Any] = {"feature_map": MAPS.get(name, name), "is_causal": True}
    exact = ra.linear_attention(q, k, v, **arguments, dtype="float64")[0]
    bound = ra.linear_error_bound(q, k, v, **arguments)[0]
    error = np.abs(got - exact)
    assert not np.isnan(bound).any()
    share: float = np.max(np.where(np.isinf(bound) | (error == 0), 0.0, error / bound), initial=0.0)
    return share


@given(data=st.data())
@settings(max_examples=60)
def test_no_kernel_within_its_contract_is_found_outside(data: st.DataObject) -> None:
    kernel = KERNELS[data.draw(st.sampled_from(list(KERNELS)))]
    drawn = [data.draw(st.integers(0, 9999)), data.draw(st.integers(1, 40))]
    law = data.draw(st.sampled_from(["normal", "positive", "small"]))
    name = data.draw(st.sampled_from(NAMES))
    assert used(kernel, *drawn, law, name, data.draw(st.sampled_from(["float32", "bfloat16", "float16"]))) <= 1


def one_key_short(q: np.ndarray, k: np.ndarray, v: np.ndarray, stored: Any) -> np.ndarray:
    """A wrong kernel: the second key is forgotten."""
    keep = np.arange(len(k)) != 1
    A = np.tril(q @ k.T) * keep
    return A @ v / A.sum(axis=1, keepdims=True)


def half_state(q: np.ndarray, k: np.ndarray, v: np.ndarray, stored: Any) -> np.ndarray:
    """A wrong kernel: the state itself is kept in bfloat16."""
    S, z, rows = np.zeros((k.shape[1], v.shape[1]), v.dtype), np.zeros(k.shape[1], v.dtype), []
    for q_i, k_i, v_i in zip(q, k, v, strict=True):
        S, z = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (S + k_i[:, None] * v_i, z + k_i))
        rows.append((q_i @ S) / (q_i @ z))
    return np.stack(rows)


@pytest.mark.parametrize("wrong", [one_key_short, half_state])
def test_a_wrong_kernel_is_outside(wrong: Kernel) -> None:
    assert used(quadratic, 0, 40, "normal", "elu+1", "float32") <= 1 < used(wrong, 0, 40, "normal", "elu+1", "float32")


@pytest.mark.parametrize("kernel", KERNELS)
def test_measured_errors_on_the_real_capture_are_within_the_bound(kernel: str) -> None:
    captured = ra.data.smollm2()
    q, k, v = (x[:1, :1, :96].astype(np.float32) for x in (captured.query, captured.key, captured.value))
    exact = ra.linear_attention(q, k, v, is_causal=True, dtype="float64")
    bound = ra.linear_error_bound(q, k, v, is_causal=True)[0, 0]
    given = [features(x[0, 0], "elu+1") for x in (q, k)]
    error = np.abs(KERNELS[kernel](*given, v[0, 0], lambda x: x) - exact[0, 0])
    assert (error <= bound).all()
    # Features of one sign make it a mean: no bound exceeds a few hundred roundings of the largest value.
    assert bound.max() <= 4 * (96 + 64 + 2) * 2.0**-24 * np.abs(v).max()


@pytest.mark.parametrize("where", ["query", "key", "value", "probabilities", "output"])
def test_each_format_that_a_kernel_stores_in_counts(where: str) -> None:
    narrow = ml_dtypes.bfloat16
    arrays = problem(5, 12, "normal")
    q, k, v = (x[0] for x in arrays)

    def stored(x: np.ndarray, place: str) -> np.ndarray:
        return x.astype(narrow).astype(np.float32) if place == where else x

    A = np.tril(stored(features(q, "elu+1"), "query") @ stored(features(k, "elu+1"), "key").T)
    got = stored(stored(A, "probabilities") @ stored(v, "value"), "output")
    given: dict[str, Any] = {"is_causal": True, "normalize": False}
    error = np.abs(got - ra.linear_attention(*arrays, **given, dtype="float64")[0])
    single = ra.contract.flash("float32")
    rounded = ("value",) if where == "value" else ()
    claimed = replace(single, **{where: "bfloat16"}, rounded=rounded)
    assert (error <= ra.linear_error_bound(*arrays, **given, contract=claimed)[0]).all()
    assert not (error <= ra.linear_error_bound(*arrays, **given, contract=single)[0]).all()


def test_a_map_of_the_caller_s_own_gets_arrays_of_the_caller_s_library() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    arrays = problem(8, 5, "normal")
    want = ra.linear_error_bound(*arrays, feature_map=lambda x: x * x)
    got = ra.linear_error_bound(*map(torch.tensor, arrays), feature_map=torch.square)
    assert np.array_equal(got, want)


def test_elu_plus_one_may_be_formed_as_it_is_written() -> None:
    arrays = problem(6, 1, "small")
    q, k, v = (x[0] for x in arrays)
    given: dict[str, Any] = {"normalize": False}
    bound, exact = ra.linear_error_bound(*arrays, **given)[0], ra.linear_attention(*arrays, **given, dtype="float64")[0]
    got, directly = (phi[0] @ phi[1].T @ v for phi in ([features(x, "elu+1") for x in (q, k)], np.exp([q, k])))
    # No term meets 32 roundings: of two exponentials of four ulp each, three products and two sums.
    assert (np.abs(directly - exact) <= 32 * 2.0**-24 * np.abs(exact)).all()
    assert (np.abs(got - exact) > 32 * 2.0**-24 * np.abs(exact)).any()
    assert (np.abs(got - exact) <= bound).all()


def test_sums_are_off_by_gamma_of_keys_and_features_and_two() -> None:
    # A8, T8: before the division |fl(o) - o| <= gamma_(n + m + 2) (phi(Q) phi(K)^T . M) |V|; exact features.
    rng = np.random.default_rng(1)
    q, k, v = (rng.random((1, 33, m)) for m in (5, 5, 2))
    for accumulation in ("float32", "float64"):
        u, own = {"float32": 2.0**-24, "float64": 2.0**-53}[accumulation], 2.0**-53
        given: dict[str, Any] = {"feature_map": "identity", "is_causal": True, "normalize": False, "dtype": "float64"}
        bound = ra.linear_error_bound(q, k, v, **given, contract=_wide(accumulation))[0]
        terms = np.tril(q[0] @ k[0].T) @ v[0]
        most = sum((33 + 5 + 2) * x / (1 - (33 + 5 + 2) * x) for x in (u, own)) * terms
        assert (bound <= most * (1 + 200 * own) + own * terms + 2.0**-100).all()
        assert (bound >= (33 + 5) * u * terms).all()


def _wide(accumulation: str) -> ra.Contract:
    """A contract that accumulates so, with all else in float64."""
    wide = dict.fromkeys(("query", "key", "value", "probabilities", "output"), "float64")
    return replace(ra.contract.flash(accumulation), **wide)


@given(seed=st.integers(0, 9999), delta=st.floats(1e-6, 0.4), n=st.integers(2, 12))
@settings(max_examples=60)
def test_kernels_that_are_off_by_a_factor_move_outputs_by_less_than_the_diameter(
    seed: int, delta: float, n: int
) -> None:
    # A8, T3: similarities off by factors within 1 +- e move an output by at most (1 - sqrt(1 - e^2)) / e diam(V).
    rng = np.random.default_rng(seed)
    q, k = rng.random((1, 1, 3)), rng.random((1, n, 3))
    v = rng.standard_normal((1, n, 2)) if seed % 2 else np.sign(rng.standard_normal((1, n, 1)))
    factors = 1 + delta * np.sign(rng.standard_normal((1, n, 1)))  # of each key's features, and so of its products
    here = ra.linear_attention(q, k, v, feature_map="identity")
    there = ra.linear_attention(q, k * factors, v, feature_map="identity")
    diameter = np.linalg.norm(v[0][:, None] - v[0][None], axis=-1).max()
    rounding = sum(ra.linear_error_bound(q, x, v, feature_map="identity").sum() for x in (k, k * factors))
    assert np.linalg.norm(there - here) <= (1 - math.sqrt(1 - delta**2)) / delta * diameter + rounding


def test_that_bound_is_attained_by_two_keys() -> None:
    e = 0.3  # weights a (1 + e) and b (1 - e), where they move most
    a, v = math.sqrt((1 - e) / (1 + e)), np.array([[[1.0], [0.0]]])
    here, there = (
        ra.linear_attention(np.ones((1, 1, 1)), np.array([[[x], [y]]]), v, feature_map="identity").item()
        for x, y in ((a, 1.0), (a * (1 + e), 1 - e))
    )
    most = (1 - math.sqrt(1 - e**2)) / e
    assert abs(there - here) <= most + 8 * 2.0**-53
    assert abs(there - here) >= most - 8 * 2.0**-53


REPETITIONS, FREQUENCIES = 4000, 32


def estimates(x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
    """Products of features of x and y for many draws of frequencies."""
    rng = np.random.default_rng(3)
    draws = [ra.fourier_frequencies(FREQUENCIES, len(x), rng=rng) for _ in range(REPETITIONS)]
    pair = np.stack([x, y])
    maps = (ra.fourier_features(W, scale=scale)(pair) for W in draws)
    return np.array([phi[0] @ phi[1] for phi in maps])


def test_fourier_features_are_unbiased_with_the_variance_and_the_tails_that_are_proved() -> None:
    x, y, scale = np.array([0.4, -0.2, 0.1, 0.5]), np.array([-0.3, 0.2, 0.6, -0.1]), 0.8
    D2 = scale * float(np.sum((x - y) ** 2))
    exact, variance = math.exp(-D2 / 2), (1 - math.exp(-D2)) ** 2 / 2 / FREQUENCIES
    found = estimates(x, y, scale)
    assert abs(found.mean() - exact) <= 5 * math.sqrt(variance / REPETITIONS)
    squares = (found - exact) ** 2
    assert abs(squares.mean() - variance) <= 5 * squares.std() / math.sqrt(REPETITIONS)
    for e in (0.1, 0.2, 0.3):
        beyond = np.mean(np.abs(found - exact) >= e)
        hoeffding = 2 * math.exp(-FREQUENCIES * e**2 / 2)
        bernstein = 2 * math.exp(-FREQUENCIES * e**2 / (2 * variance * FREQUENCIES + 4 * e / 3))
        for bound in (hoeffding, bernstein):
            assert beyond <= bound + 5 * math.sqrt(min(bound, 1.0) / REPETITIONS)
