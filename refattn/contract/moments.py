"""Sums over keys that section 6 of README.md is made of: one pass in float32, which is enough for statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.score import Parts
from refattn._core.tiles import tiles
from refattn.contract import variances
from refattn.contract.problem import Problem
from refattn.contract.record import Contract
from refattn.contract.softmax import TILE_KEYS

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


class Squares(NamedTuple):
    """Sums of squares over keys, w their weights: twins count as often as they are there."""

    square: Floats  # sum w^2 (v - center)^2, (R, Ev)
    cross: Floats  # sum w^2 (v - center)
    weight: Floats  # sum w^2, (R,)

    def about(self, x: Floats) -> Floats:
        """Sum of w^2 (v - center - x)^2."""
        return np.maximum(self.square - 2 * x * self.cross + x**2 * self.weight[:, None], 0)


class Sums(NamedTuple):
    """Sums over keys of one part of the rows, in units of the values' scale about their center."""

    squares: Squares  # of p
    scatter: Squares  # of p times the deviation of its exponent
    P: Floats  # sum p, (R,)
    running: Floats  # largest |sum p v| over the keys up to a tile's end, (R, Ev), in the values' own units
    centred: Floats  # largest |sum p (v - o)| over them
    x: Floats  # sum p (s - lse), (R,)
    x_square: Floats  # sum p (s - lse)^2
    n: Floats  # visible keys
    n_small: Floats  # those whose weight may lie below its format's normal range
    top: Floats  # largest |s|
    of_keys: Floats  # sum p |k|_4
    # sum p d (v - center), sum p d and sum p d^2, d the derivative of the score
    slopes: dict[str, tuple[Floats, Floats, Floats]]


class Tile(NamedTuple):
    """One tile of keys, in float32: weights, scores (-inf where masked), and the stages of the scores."""

    keys: slice
    weights: Singles
    scores: Singles
    parts: Parts


def weights(problem: Problem) -> Iterator[Tile]:
    """Weights and scores of the problem's rows, a tile of keys at a time, in float32.

    Parameters
    ----------
    problem : Problem
        At most a tile of rows.

    Yields
    ------
    Tile
        Of the keys that some row may see.
    """
    Q = problem.query.astype(np.float32)
    lse = problem.lse.astype(np.float32)[:, None]
    for j in problem.score.tiles(problem.rows, TILE_KEYS):
        parts = problem.score.parts(Q, problem.key[j].astype(np.float32), problem.rows, j, xp=np)
        s = parts.capped if parts.bias is None else (parts.capped + parts.bias).astype(np.float32)
        if parts.keep is not None:
            s = np.where(parts.keep, s, np.float32(-np.inf))
        yield Tile(j, np.exp(s - lse), s, parts)


def sums_of(contract: Contract, problem: Problem, center: Floats, size: float, count: Singles, normal: Floats) -> Sums:
    """The one pass over the keys."""
    (R, Ev), score = problem.output.shape, problem.score
    names = [name for name, x in (("scale", True), ("softcap", score.softcap), ("bias", score.bias)) if x is not None]
    slopes = {name: (np.zeros((R, Ev)), np.zeros(R), np.zeros(R)) for name in names}
    second, first = np.zeros((2 * R, 2 * Ev + 1)), np.zeros((R, Ev + 1))
    running, centred = np.zeros((R, Ev)), np.zeros((R, Ev))
    about = (problem.output - center) / size
    x_mean, x_square, n, n_small, top, mean_key = (np.zeros(R) for _ in range(6))
    lse = problem.lse.astype(np.float32)[:, None]
    row, of_keys = variances.of_exponents(contract, problem)
    below = normal.astype(np.float32)[:, None]
    for j, P, s, parts in weights(problem):
        V = _values(problem, j, center, size)
        ones = np.ones((len(V), 1), dtype=np.float32)
        squares = np.concatenate([V, V * V, ones], axis=1) * count[j, None]
        magnitude = np.abs(np.where(P > 0, s, np.float32(0)))
        variance = row[:, :1] * of_keys[j] + row[:, 1:2] * magnitude**2 + row[:, 2:]
        both = P * P
        second += np.concatenate([both, both * variance]) @ squares
        first += P @ np.concatenate([V, ones], axis=1)
        total = first[:, -1:]
        running = np.maximum(running, np.abs(first[:, :Ev] * size + center * total))
        centred = np.maximum(centred, np.abs(first[:, :Ev] - about * total) * size)
        x = np.where(P > 0, s - lse, np.float32(0))
        Px = P * x
        x_mean += Px.sum(axis=1)
        x_square += np.einsum("ij,ij->i", Px, x)
        keep = parts.keep
        n += P.shape[1] if keep is None else np.broadcast_to(keep, P.shape).sum(axis=1)
        low = s - lse < below
        n_small += (low if keep is None else low & keep).sum(axis=1)
        mean_key += P @ np.sqrt(of_keys[j])
        top = np.maximum(top, magnitude.max(axis=1, initial=0.0))
        for name in names:
            # The logarithm of a weight by that of the scale, the softcap, the bias.
            d = _slope(name, score.softcap, parts)
            Pd = np.where(P > 0, P * d, np.float32(0))
            along = Pd @ V, Pd.sum(axis=1), np.einsum("ij,ij->i", Pd, np.where(P > 0, d, np.float32(0)))
            slopes[name] = tuple(x + more for x, more in zip(slopes[name], along, strict=True))
    return Sums(
        _squares(second[:R], Ev), _squares(second[R:], Ev),
        first[:, -1], running, centred,
        x_mean, x_square, n, n_small, top, mean_key, slopes,
    )  # fmt: skip


def _squares(x: Floats, Ev: int) -> Squares:
    """The columns of sums of w^2 (v, v^2, 1)."""
    return Squares(x[:, Ev : 2 * Ev], x[:, :Ev], x[:, -1])


def spread_of(P: Floats, first: Floats, second: Floats) -> Floats:
    """Standard deviation from sums of p, p x and p x^2."""
    P = np.maximum(P, 1e-300)
    return np.asarray(np.sqrt(np.maximum(second / P - (first / P) ** 2, 0)))


def _slope(name: str, cap: float | None, parts: Parts) -> Singles:
    """Derivative of the scores by the logarithm of the scale, the softcap or the size of the bias."""
    if name == "bias":
        return np.asarray(parts.bias, dtype=np.float32)
    raw = np.asarray(parts.raw, dtype=np.float32)
    if cap is None:
        return raw
    along = raw * (1 - (parts.capped / np.float32(cap)) ** 2)
    return np.asarray(along if name == "scale" else parts.capped - along, dtype=np.float32)


def _values(problem: Problem, j: slice, center: Floats, size: float) -> Singles:
    """Values of a tile about their center, in units of their size; 0 where they are not finite."""
    V = ((problem.value[j] - center) / size).astype(np.float32)
    return V if np.isfinite(V).all() else np.where(np.isfinite(V), V, np.float32(0))


def size_of(problem: Problem, center: Floats) -> float:
    """Largest finite distance of a value from the center."""
    largest = 0.0
    for j in tiles(problem.value.shape[0], 4 * TILE_KEYS):
        V = np.nan_to_num(np.abs(problem.value[j] - center), nan=0.0, posinf=0.0)
        largest = max(largest, float(V.max(initial=0.0)))
    return largest if largest > 0 else 1.0
