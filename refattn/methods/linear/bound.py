"""How far a kernel of linear attention may be from exact arithmetic: the theorem of README.md, evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet
from refattn.contract import Contract, errors, flash
from refattn.contract.errors import Floats
from refattn.contract.formats import half_subnormal, half_ulp, unit
from refattn.contract.problem import Bound
from refattn.methods.linear.features import FeatureMap

Flags = npt.NDArray[np.bool_]
REFERENCE = flash("float64")


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """One (batch, head) of a call: NumPy float64.

    `query` (L, E) is times the scale, of which `scaled` says whether it is not 1; `phi_q` and `phi_k` are the features.
    `keep` (L, S) is None where all is seen. `memory` is (S, z), (M, Ev) and (M, 1), of the state that came in.
    """

    phi: FeatureMap
    query: Floats
    key: Floats
    phi_q: Floats
    phi_k: Floats
    value: Floats
    scaled: bool
    positions: tuple[Floats, Floats]
    keep: Flags | None
    memory: tuple[Floats, Floats] | None
    normalize: bool
    eps: float
    least: float | None


class _Absolute(NamedTuple):
    """Features in magnitude, and how far a kernel's may be off."""

    size: Floats
    error: Floats


@quiet
def linear_bound(contract: Contract, problem: LinearProblem) -> Bound:
    """Bound on |kernel - reference| of the output (L, Ev); there is no log-sum-exp and no claim on gradients."""
    exact, E, seen = _distance(contract, problem)
    own = _distance(REFERENCE, problem)[1]
    slack = 1 + (sum(problem.key.shape) + len(problem.query) + 64) * unit("float64")
    E = (E + own) * slack
    E = E + half_ulp(np.abs(exact) + E, contract.output)
    E = np.where(np.isnan(E), np.inf, E)
    return Bound(np.where(seen, E, 0.0), np.zeros(0))


def _distance(contract: Contract, problem: LinearProblem) -> tuple[Floats, Floats, Flags]:
    """Output, how far a kernel may be from the exact one, and which rows see anything."""
    Q, K = _features(contract, problem, of_query=True), _features(contract, problem, of_query=False)
    phi_q, phi_k, (S, M), V = problem.phi_q, problem.phi_k, problem.phi_k.shape, problem.value
    keep = np.ones((len(phi_q), S), dtype=bool) if problem.keep is None else problem.keep
    A = np.where(keep, Q.size @ K.size.T, 0.0)
    inexact = np.where(keep, Q.error @ (K.size + K.error).T + Q.size @ K.error.T, 0.0)
    g, (u_v, eta_v) = _sums(contract, S, M), errors.operands(contract).value
    u_p, eta_p = errors.cast(contract, contract.probabilities)
    G, tiny = _joined(g, u_p, u_v), errors.tiny(contract)
    E_A, lost = G * A + (1 + G) * inexact, (M * tiny + eta_p, S * tiny + eta_p)
    parts = keep.astype(float)
    ones = np.ones((S, 1))
    N, Z = (np.where(keep, phi_q @ phi_k.T, 0.0) @ X for X in (V, ones))
    E_N, E_Z = (
        E_A @ np.abs(X)
        + 2 * (lost[0] * (parts @ np.abs(X)) + lost[1] * Q.size.sum(axis=1, keepdims=True) + (S + M) * tiny)
        + eta * (A + E_A).sum(axis=1, keepdims=True)
        for X, eta in ((V, eta_v), (ones, 0.0))
    )
    if problem.memory is not None:
        state, z = problem.memory
        N, Z = N + phi_q @ state, Z + phi_q @ z
        E_N, E_Z = (E + G * (Q.size @ np.abs(X)) + (1 + G) * (Q.error @ np.abs(X)) for E, X in ((E_N, state), (E_Z, z)))
    seen: Flags = np.logical_or.reduce(keep, axis=1, keepdims=True) | (problem.memory is not None)
    if not problem.normalize:
        return N, E_N + tiny, seen
    u = unit(contract.accumulator)
    D = np.maximum(Z, problem.least) if problem.least is not None else Z + problem.eps
    E_D = E_Z + (u * (np.abs(D) + E_Z) if problem.least is None and problem.eps else 0.0)
    o: Floats = N / D
    E: Floats = np.where(np.abs(D) > E_D, (E_N + np.abs(o) * E_D) / (np.abs(D) - E_D), np.inf)
    return o, E + u * (np.abs(o) + E) + tiny, seen


def _sums(contract: Contract, S: int, M: int) -> float:
    """README.md, lemma 1: gamma_(S + M + 2) where sums are rounded one by one."""
    merges = 2 if contract.accumulate == "ieee" else S + 2
    sums = (errors.product_sum(contract, S), errors.product_sum(contract, M), errors.plain_sum(contract, merges))
    return _joined(*(float(x) for x in sums))


def _joined(*relative: float) -> float:
    """Relative errors one after the other: the product of all (1 + x), minus 1."""
    return math.expm1(math.fsum(math.log1p(x) for x in relative))


def _features(contract: Contract, problem: LinearProblem, *, of_query: bool) -> _Absolute:
    """Features of queries or keys in magnitude, and how far a kernel's are off: README.md, lemma 2 and its table."""
    x, phi = (problem.query, problem.phi_q) if of_query else (problem.key, problem.phi_k)
    u = unit(contract.accumulator)
    dx = u * np.abs(x) if of_query and problem.scaled else np.zeros_like(x)
    at = problem.positions[0 if of_query else 1]
    error = feature_error(problem.phi, x, dx, phi, u, 2 * u * contract.exp_ulp, at, of_query=of_query)
    rounding, eta = errors.cast(contract, contract.query if of_query else contract.key)
    size = np.abs(phi)
    return _Absolute(size, error + rounding * (size + error) + eta + half_subnormal(contract.accumulator))


def feature_error(
    phi: FeatureMap, x: Floats, dx: Floats, made: Floats, u: float, e: float, positions: Floats, *, of_query: bool
) -> Floats:
    """How far features of x +- dx may be from those of x, where an operation errs by u and an exponential by e."""
    size = np.abs(x)
    match phi.name:
        case "relu":
            return np.where(x > -dx, dx, 0.0)
        case "elu+1":  # elu(x) + 1 may be formed as it is written: the error of exp(x) - 1 is one against 1
            return dx + u * (made + dx) + np.where(x <= dx, e, 0.0)
        case "softmax" | "efficient":
            axis = -1 if phi.name == "softmax" or of_query else -2
            far = (dx + u * (size + np.max(size, axis=axis, keepdims=True, initial=0.0))).max(
                axis=axis, keepdims=True, initial=0.0
            )
            relative: Floats = np.expm1(2 * far + 2 * e + (x.shape[axis] + 2) * u)
            return made * relative
        case "taylor" | "squared":
            pairs = _outer(size, dx) + _outer(dx, size + dx) + 4 * u * _outer(size + dx, size + dx)
            if phi.name == "squared":
                return pairs
            return np.concatenate([np.zeros_like(x[..., :1]), dx, pairs / np.sqrt(2.0)], axis=-1)
        case "cosformer":
            r = np.maximum(x, 0.0)
            wave = 4 * u * (positions * (np.pi / (2 * phi.numbers)) + 1)
            each = np.where(x > -dx, dx + (r + dx) * (wave + u), 0.0)
            return np.concatenate([each, each], axis=-1)
        case "fourier":
            W, scale = phi.numbers
            W = np.abs(W) * np.sqrt(scale)
            angle = (size * ((x.shape[-1] + 4) * u) + dx) @ W.T
            each = (angle + 8 * u) / np.sqrt(len(W))
            return np.concatenate([each, each], axis=-1)
    return np.zeros_like(made) if phi.name == "callable" else np.broadcast_to(dx, made.shape)


def _outer(x: Floats, y: Floats) -> Floats:
    """All products x_a y_b."""
    return (x[..., :, None] * y[..., None, :]).reshape(*x.shape[:-1], x.shape[-1] ** 2)
