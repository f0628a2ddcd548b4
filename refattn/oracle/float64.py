"""The float64 tier: float64 products and exponentials, and the radius that Theorems A and L of README.md give them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np

from refattn._core.tiles import tiles
from refattn.oracle.exponential import EXP_ERROR, EXP_LOST, EXP_LOWEST, TANH_ERROR, exp, exp_in_place, log, tanh
from refattn.oracle.operands import Flags, Floats, Ints
from refattn.oracle.problem import Problem, Rows, Tile
from refattn.oracle.products import exact_rows

U = 2.0**-53
ETA = 2.0**-1074

# Score cells of a tile: 1 MiB of scores and as much of errors, near what a second-level cache holds. More where there
# are many keys, up to 8 MiB, so that they are not read anew for less than TALL rows.
CELLS, MOST_CELLS, TALL = 2**17, 2**20, 16
# Keys that one product sums: the sums over all keys then err by (BLOCK + S / BLOCK) u instead of S u.
BLOCK = 128
# Keys whose values are made ready at a time where a head has too many to hold them all, and how many are too many:
# 128 MiB of float64.
CHUNK, HELD = 16 * BLOCK, 2**24

LARGEST_ERROR = 0.009  # Theorem A, (A1): of an exponent
LARGEST_LOGIT = 2.0**1000  # Theorem A, (A2): |q| |k|, so that no partial sum overflows
LARGEST_VALUE = 2.0**900  # Theorem A, (A3)
FACTOR = 1.02  # Theorem A, step 2: from the exact weights to the computed ones
SLACK = 1.02  # Theorem A, step 5: |o| against |output|, and the roundings of the radius itself


class _Scores(NamedTuple):
    """Logits of a tile, -inf where masked, and what bounds the errors of their distances x_j from the maximum.

    e_j <= constant + slope |x_j| + more_j.
    """

    s: Floats  # (rows, keys)
    maximum: Floats  # (rows,), the sink among them
    constant: Floats  # (rows,)
    slope: float
    more: Floats | None  # (rows, keys)
    known: Flags  # (rows,): (A1) and (A2) hold


class _Sums(NamedTuple):
    """Sums over the keys of a tile, (rows, Ev) or (rows,)."""

    N: Floats  # p v
    L: Floats  # p
    value_errors: Floats  # W |v|
    errors: Floats  # W


class _Held:
    """Keys and values of a head, held in float64 where they are few."""

    def __init__(self, problem: Problem) -> None:
        """Hold them, or not."""
        self.key, self.value = problem.key, problem.value
        S, E = self.key.shape
        keys = slice(0, S)
        few = S * (E + 2 * self.value.shape[1] + 2) <= HELD
        self._keys = self.key.numbers(keys) if few else None
        self._values = self._ones(keys) if few else None

    def keys(self, j: slice) -> Floats:
        """Keys j, (n, E)."""
        return self.key.numbers(j) if self._keys is None else self._keys[j]

    def values(self, j: slice) -> tuple[Floats, Floats]:
        """Values j and a column of ones, (n, Ev + 1), and their magnitudes."""
        return self._ones(j) if self._values is None else (self._values[0][j], self._values[1][j])

    def chunks(self, keys: slice) -> Iterator[slice]:
        """Parts of a range of keys, counted from its start, that are made ready at a time."""
        return tiles(keys.stop - keys.start, CHUNK if self._keys is None else max(1, self.key.shape[0]))

    def _ones(self, j: slice) -> tuple[Floats, Floats]:
        V = self.value.numbers(j)
        V = np.concatenate([V, np.ones((len(V), 1))], axis=1)
        return V, np.abs(V)


def certify(problem: Problem, rows: Ints) -> Rows:
    """Output and lse of the queries `rows`, with radii; the low parts are zero."""
    held = _Held(problem)
    R, Ev = len(rows), problem.value.shape[1]
    answer = Rows(np.zeros((R, Ev)), np.zeros((R, Ev)), np.zeros((R, Ev)), np.zeros(R), np.zeros(R), np.zeros(R))
    S = problem.key.shape[0]
    cells = max(CELLS, min(TALL * S, MOST_CELLS), S)
    buffers = np.empty((2, cells))
    with np.errstate(all="ignore"):
        for tile in problem.tiles(rows, cells):
            s, w = (x[: math.prod(tile.shape)].reshape(tile.shape) for x in buffers)
            scores = _scores(problem, held, tile, s, w)
            part = _answer(problem, tile, scores, _sums(problem, held, tile, scores, w))
            for whole, of_rows in zip(answer, part, strict=True):
                whole[tile.rows] = of_rows
    return answer


def _scores(problem: Problem, held: _Held, tile: Tile, s: Floats, w: Floats) -> _Scores:
    """Theorem A, step 1: the logits in s, and their errors, of which more_j lies in w."""
    E = problem.query.shape[1]
    of_query, of_key = problem.query.measures, problem.key.measures
    q, k, seen = tile.queries, tile.keys, tile.seen
    sigma, rounding = _sigma(problem)
    norm, quantum = of_query.norm[q], of_query.quantum[q]
    size = norm * of_key.norm[seen].max(initial=0.0)
    logit = size * abs(sigma)
    known = np.maximum(size, logit) < LARGEST_LOGIT

    Q = problem.query.numbers(q)
    scaled = Q * sigma
    folded = rounding == 0.0 and bool((scaled / sigma == Q).all())
    if folded:
        Q = scaled
        norm, quantum = np.where(norm > 0, norm * abs(sigma) + ETA, 0.0), quantum + math.frexp(sigma)[1] - 1
    for part in held.chunks(k):
        j = slice(k.start + part.start, k.start + part.stop)
        np.matmul(Q, held.keys(j).T, out=s[:, part])
    if not folded:
        s *= sigma
    exact = exact_rows(norm, quantum, of_key.norm[seen], of_key.quantum[seen])
    # A product with a power of two rounds only where it leaves the normal range.
    constant = np.where(exact, 0.0, E * U * logit * 1.001 + E * ETA * max(1.0, abs(sigma))) + ETA
    slope, more = U, None
    if rounding and (problem.softcap is not None or tile.bias is not None):
        more = np.multiply(np.abs(s, out=w), rounding * FACTOR, out=w)
    else:
        slope += rounding
    if problem.softcap is not None:
        s /= problem.softcap
        np.multiply(tanh(s), problem.softcap, out=s)
        constant += problem.softcap * (TANH_ERROR + 1.46 * U)
    if tile.bias is not None:
        s += tile.bias
        slope += U
    if tile.visible is not None:
        np.copyto(s, -np.inf, where=~tile.visible)
    m = np.maximum(s.max(axis=1, initial=-np.inf), problem.sink)
    known &= np.isfinite(m)
    m = np.where(np.isfinite(m), m, 0.0)
    # |s_j| <= |m| + |x_j|, to which each error but that of x_j itself is relative.
    constant += 1.01 * (slope - U) * np.abs(m)
    slope *= 1.01
    known &= constant + slope * -EXP_LOWEST + (0.0 if more is None else 1.01 * rounding * logit) <= LARGEST_ERROR
    return _Scores(s, m, constant, slope, more, known)


def _sums(problem: Problem, held: _Held, tile: Tile, scores: _Scores, w: Floats) -> _Sums:
    """Theorem A, steps 2 to 4: the weights p in place of the logits, their errors W in w, and the sums of both."""
    s, n = scores.s, tile.shape[1]
    s -= scores.maximum[:, None]
    lost = None
    if not s.min(initial=0.0) >= EXP_LOWEST:
        lost = ~(s >= EXP_LOWEST)
        np.copyto(s, EXP_LOWEST, where=lost)
    if scores.more is None:
        np.multiply(s, -FACTOR * scores.slope, out=w)
    else:
        w -= FACTOR * scores.slope * s
    steps = min(n, BLOCK) + math.ceil(n / BLOCK) + 2
    w += (FACTOR * (scores.constant + EXP_ERROR) + steps * U)[:, None]
    exp_in_place(s)
    if lost is not None:
        np.copyto(s, 0.0, where=lost)
    w *= s

    Ev = problem.value.shape[1]
    N, A = np.zeros((len(s), Ev + 1)), np.zeros((len(s), Ev + 1))
    L = errors = None
    if tile.kept is not None:
        L = sum((s[:, b].sum(axis=1) for b in tiles(n, BLOCK)), start=np.zeros(len(s)))
        errors = w.sum(axis=1)
        s *= tile.kept
        w *= tile.kept
    for part in held.chunks(tile.keys):
        V, size = held.values(slice(tile.keys.start + part.start, tile.keys.start + part.stop))
        for block in tiles(part.stop - part.start, BLOCK):
            N += s[:, part][:, block] @ V[block]
        A += w[:, part] @ size
    return _Sums(N[:, :-1], N[:, -1] if L is None else L, A[:, :-1], A[:, -1] if errors is None else errors)


def _answer(problem: Problem, tile: Tile, scores: _Scores, sums: _Sums) -> Rows:
    """Theorem A, step 5, and Theorem L: output and lse with their radii, infinite where a hypothesis fails."""
    n, m = tile.shape[1], scores.maximum
    N, L, errors = sums.N, sums.L, sums.errors
    if problem.sink != -np.inf:
        x = problem.sink - m
        p = np.where(x < EXP_LOWEST, 0.0, exp(np.maximum(x, EXP_LOWEST)))
        L = L + p
        errors = errors + (FACTOR * (U * np.abs(x) + EXP_ERROR) + 2 * U) * p + 2 * U * L
    known = scores.known & (0.4 <= L) & (L <= 2.0 * n + 2)
    L = np.where(known, L, 1.0)
    factor = float(problem.kept_factor)
    largest = problem.value.measures.largest[tile.seen].max(initial=0.0) * factor
    unreadable_rows, unreadable = problem.unreadable(tile)

    output = N / L[:, None]
    last = 1.01 * U
    if factor != 1.0:
        output *= factor
        last += 2.02 * U  # the factor's own rounding, and the product's
    size = np.abs(output)
    radius = factor * sums.value_errors + size * errors[:, None]
    radius += (n + 1) * (EXP_LOST * (largest + size) + ETA * factor)
    radius = SLACK * radius / L[:, None] + last * size + (1 + factor) * ETA
    claimed = known[:, None] & ~unreadable & (largest < LARGEST_VALUE) & np.isfinite(radius)
    radius = np.where(claimed, radius, np.inf)
    output = np.where(unreadable, np.nan, output)

    logarithm, log_error = log(L)
    lse = m + logarithm
    lse_radius = SLACK * (errors + (n + 1) * EXP_LOST) / L + log_error + 1.01 * U * np.abs(lse)
    lse_radius = np.where(known & ~unreadable_rows & np.isfinite(lse_radius), lse_radius, np.inf)
    lse = np.where(unreadable_rows, np.nan, lse)

    empty = tile.empty
    output[empty], radius[empty] = 0.0, 0.0
    lse[empty], lse_radius[empty] = problem.sink, 0.0
    return Rows(output, np.zeros_like(output), radius, lse, np.zeros_like(lse), lse_radius)


def _sigma(problem: Problem) -> tuple[float, float]:
    """The factor on the scores in float64, and the relative error that it and its product bring; 0 for a power of 2."""
    if problem.scale is None:
        with localcontext(prec=50):
            sigma = float(1 / Decimal(problem.query.shape[1]).sqrt())
        rounding = 2.02 * U
    else:
        sigma, rounding = problem.scale, 1.01 * U
    return sigma, 0.0 if abs(math.frexp(sigma)[0]) == 0.5 else rounding
