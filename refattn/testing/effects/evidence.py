"""What errors have in common, gathered part by part: sums of errors along the changes that known mistakes make.

An error is weighed by the inverse of its expected square. Along a direction g it gives <err, g> and <g, g>, and their
quotient is the size beta of the mistake; `refattn.testing.effects.measuring` judges these. Everything here is
statistics, for which float32 is enough; errors are taken in float64 before they get here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn.contract import Contract, Problem
from refattn.contract.formats import half_ulp, unit
from refattn.contract.moments import weights
from refattn.contract.statistics import Noise
from refattn.masks import Mask
from refattn.testing.effects.rows import Loudest

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Index = tuple[int, ...]

# Keys whose values show which directions a row's error prefers, and fewest of them that a row must see.
SAMPLED, FEWEST = 256, 16
# Share of a row's squared error that one key must explain to be named.
EXPLAINED = 0.6
# Largest change of a weight, as a multiple of it, that is looked for.
LARGEST = 4.0
# Squared distance of a value from the output, as a share of their squares, below which float32 does not know it.
SAME = 1e-5
# Share of the rows whose noise a single cell is compared with: wrong cells are in few rows.
QUANTILE = 0.9
# By how much a row's noise along one key may exceed its mean along all, for one key over many rows and in one row.
UNEVEN_KEY, UNEVEN_CELL = 1.5, 2.0
# Keys beside the ends of the keys that a row sees: d counts from the first key after the last one, or from the first.
EDGES = tuple((end, d) for end in ("last", "first") for d in (-2, -1, 0, 1))


class Along(NamedTuple):
    """Errors of some rows along one direction: <err, g> and <g, g>, (R,)."""

    error: Floats
    norm: Floats


class Cell(NamedTuple):
    """The weight of one key in one row that fits the row's error best."""

    sigmas: float
    beta: float
    head: Index
    row: int
    key: int


@dataclass(eq=False)
class Keys:
    """Errors along weights, one sum over all rows for each."""

    error: Floats
    norm: Floats
    variance: Floats


@dataclass(eq=False)
class Evidence:
    """All that is kept: O(rows) numbers for each direction, O(S) for each key head."""

    contract: Contract
    members: int
    least_cell: float
    alpha: float
    names: tuple[str, ...] = ()
    # Errors along each of these directions, (R, n), and products of the directions, (R, n, n).
    scalars: list[tuple[Index, Floats, Floats]] = field(default_factory=list)
    edges: Keys = field(default_factory=lambda: Keys(*np.zeros((3, len(EDGES)))))
    squares: list[tuple[Index, Floats]] = field(default_factory=list)
    keys: dict[Index, Keys] = field(default_factory=dict)
    loudest: Loudest | None = None
    cell: Cell | None = None
    cells: int = 0
    spreads: dict[str, float] = field(default_factory=dict)
    top: float = 0.0
    seen: set[tuple[Index, int]] = field(default_factory=set)

    def add(self, index: Index, problem: Problem, noise: Noise, got: Floats, expected: Floats) -> None:
        """Take in the errors of some rows of one head; `expected` is what `mean_squares` says of them."""
        use = np.flatnonzero(noise.claim & np.isfinite(got).all(axis=1))
        of_key = (*index[:-1], index[-1] // self.members)
        use = use[[self._new(of_key, problem.query[r]) for r in use]]
        if not len(use):
            return
        error = got[use] - problem.output[use]
        expected = expected[use]
        w = np.where(expected > 0, 1 / np.maximum(expected, 1e-300), 0.0)
        self.top = max(self.top, float(np.abs(problem.lse[use]).max()))
        for name, spread in noise.spreads.items():
            self.spreads[name] = min(self.spreads.get(name, math.inf), float(np.median(spread[use])))
        self.squares.append((index, (error**2 * w).mean(axis=1)))
        self._hear(index, problem, use, error, expected, noise)
        self.names = (*noise.slopes, "gain")
        g = np.stack([*(noise.slopes[name][use] for name in noise.slopes), problem.output[use]], axis=1)
        products = g @ np.swapaxes(w[:, None] * np.concatenate([g, error[:, None]], axis=1), 1, 2)
        self.scalars.append((index, products[:, :, -1], products[:, :, :-1]))
        # What a change of scale or gain explains is no key's doing, be it within the contract or not.
        along, norm = products[:, :, -1].sum(axis=0), products[:, :, :-1].sum(axis=0)
        if np.isfinite(along).all() and np.isfinite(norm).all():
            error = error - np.einsum("n,rnc->rc", np.linalg.pinv(norm, hermitian=True) @ along, g)
        rows = rows_of(problem, use)
        whitened = _whitened(rows, error, expected)
        if whitened is None:
            return
        along_keys = _noise_along_values(rows, whitened)
        for n, along in _edges(rows, whitened):
            self.edges.error[n] += along.error.sum()
            self.edges.norm[n] += along.norm.sum()
            self.edges.variance[n] += UNEVEN_KEY**2 * (along_keys * along.norm).sum()
        self._keys(of_key, index, rows, noise.normal[use], whitened, along_keys)

    def _hear(
        self,
        index: Index,
        problem: Problem,
        use: npt.NDArray[np.intp],
        error: Floats,
        expected: Floats,
        noise: Noise,
    ) -> None:
        """Keep the loudest row."""
        if not error.shape[1]:
            return
        bias = noise.output_bias[use]
        variance = expected - bias**2
        beyond = np.maximum(np.abs(error) - bias, 0.0)
        means = np.where(variance > 0, beyond**2 / np.maximum(variance, 1e-300), 0.0).mean(axis=1)
        r = int(means.argmax())
        if self.loudest is None or means[r] > self.loudest.mean:
            at = use[r]
            of_row = problem.output[at], float(problem.lse[at]), np.sqrt(np.maximum(variance[r], 0.0))
            self.loudest = Loudest(float(means[r]), index, int(problem.rows[at]), *of_row)

    def _new(self, of_key: Index, query: Floats) -> bool:
        """Whether no row of the key head had this query: equal queries make equal errors."""
        name = (of_key, hash(query.tobytes()))
        if name in self.seen:
            return False
        self.seen.add(name)
        return True

    def _keys(
        self, of_key: Index, index: Index, rows: Problem, normal: Floats, white: _Whitened, noise: Floats
    ) -> None:
        """Errors along the weight of each key, and the single weight that fits a row best."""
        S = rows.key.shape[0]
        sums = self.keys.setdefault(of_key, Keys(np.zeros(S), np.zeros(S), np.zeros(S)))
        level = UNEVEN_CELL**2 * float(np.quantile(noise, QUANTILE))
        every, best = np.arange(len(noise)), np.zeros(len(noise))
        key, size = np.zeros(len(noise), dtype=np.int64), np.zeros(len(noise))
        both = np.stack([np.ones_like(noise), UNEVEN_KEY**2 * noise]).astype(np.float32)
        # What is added to a sum far above it is rounded in all columns alike, which is no chance and no key's doing.
        top = np.max([tile.scores.max(axis=1) for tile in weights(rows)], axis=0) - rows.lse
        lost = top + math.log(S * unit(self.contract.accumulator))
        lse, least = rows.lse.astype(np.float32)[:, None], np.maximum(normal, lost).astype(np.float32)[:, None]
        for tile in weights(rows):
            X, D = white.products(rows, tile.keys)
            P = np.where(tile.scores - lse >= least, tile.weights, np.float32(0))
            PD = P * P * D
            sums.error[tile.keys] += np.einsum("ij,ij->j", P, X)
            norm, variance = both @ PD
            sums.norm[tile.keys] += norm
            sums.variance[tile.keys] += variance
            self.cells += P.size
            fit = X * X
            fit /= np.maximum(D, np.float32(1e-30))
            fit *= tile.weights > 0
            at = fit.argmax(axis=1)
            these = fit[every, at]
            better = np.flatnonzero(these > best)
            best[better], key[better] = these[better], tile.keys.start + at[better]
            with np.errstate(all="ignore"):
                size[better] = (X[every, at] / (D[every, at].astype(np.float64) * P[every, at]))[better]
        # A key that fits a row's error best, by a change of its weight that is neither rounding nor beyond reason.
        fits = (best > EXPLAINED * white.size) & (np.abs(size) > self.least_cell) & (np.abs(size) < LARGEST)
        if fits.any():
            r = int(np.where(fits, best, 0).argmax())
            sigmas = math.sqrt(float(best[r]) / max(level, 1e-300))
            if self.cell is None or sigmas > self.cell.sigmas:
                self.cell = Cell(sigmas, float(size[r]), index, int(rows.rows[r]), int(key[r]))


@dataclass(frozen=True, eq=False)
class _Whitened:
    """Rows in units in which each number's noise is about 1: w e and w o for errors e and outputs o."""

    center: Floats  # (Ev,), of the values
    column: Floats  # (Ev,), noise of a column; columns that have none count as 0
    row: Singles  # (R, 1), 1 / noise of a row
    error: Singles  # (R, Ev)
    output: Singles  # (R, Ev), about the center, in units of the column's noise

    @property
    def size(self) -> Singles:
        """Squared error of each row, (R,)."""
        return np.asarray(np.einsum("ij,ij->i", self.error, self.error))

    def products(self, rows: Problem, j: slice | Ints) -> tuple[Singles, Singles]:
        """<err, v_j - o> and |v_j - o|^2 of each row and key, (R, keys)."""
        V = ((rows.value[j] - self.center) * self.column).astype(np.float32)
        if not np.isfinite(V).all():
            V = np.where(np.isfinite(V), V, np.float32(0))
        o, R = self.output, len(self.error)
        along = np.concatenate([self.error, o]) @ V.T
        X = self.row * (along[:R] - np.einsum("ij,ij->i", self.error, o)[:, None])
        both = np.einsum("ij,ij->i", V, V) + np.einsum("ij,ij->i", o, o)[:, None]
        D = both - 2 * along[R:]
        # A value that is the output, to the last bits of float32, is no direction.
        known = D > SAME * both
        return np.where(known, X, np.float32(0)), np.where(known, self.row**2 * D, np.float32(0))


def mean_squares(contract: Contract, noise: Noise, problem: Problem) -> Floats:
    """Mean squares of what rounding does to the output, (R, Ev)."""
    with np.errstate(all="ignore"):
        half = half_ulp(problem.output, contract.output)
        return np.asarray(noise.output**2 + noise.output_bias**2 + half**2 / 3)


def rows_of(problem: Problem, use: npt.NDArray[np.intp]) -> Problem:
    """The problem of some of its rows."""
    return Problem(
        problem.query[use], problem.key, problem.value, problem.score, problem.rows[use], problem.output[use],
        problem.lse[use],
    )  # fmt: skip


def _whitened(rows: Problem, error: Floats, expected: Floats) -> _Whitened | None:
    """Errors and outputs in units of a row's noise times a column's; None where there is no noise."""
    each = expected.mean(axis=1, keepdims=True)
    if not (each > 0).all():
        return None
    columns = np.sqrt((expected / each).mean(axis=0))
    inverse = np.where(columns > 0, 1 / np.maximum(columns, 1e-300), 0.0)
    noise = np.sqrt((expected * inverse**2).mean(axis=1, keepdims=True))
    center = rows.output.mean(axis=0)
    with np.errstate(all="ignore"):
        white = (error * inverse / noise).astype(np.float32)
        output = ((rows.output - center) * inverse).astype(np.float32)
        row = (1 / noise).astype(np.float32)
    if not all(np.isfinite(x).all() for x in (white, output, row)):
        return None
    return _Whitened(center, inverse, row, white, output)


def _noise_along_values(rows: Problem, white: _Whitened) -> Floats:
    """Variance of <err, v_j - o> over |v_j - o|^2 in each row, (R,), from a sample of the keys."""
    S = rows.key.shape[0]
    lengths, mask = rows.score.lengths, rows.score.mask
    keys = np.unique(np.linspace(0, S - 1, SAMPLED).astype(np.int64))
    X, D = white.products(rows, keys)
    keep = np.ones(X.shape, dtype=bool)
    if mask is not None:
        keep = np.broadcast_to(mask.tile(rows.rows, keys, *lengths, xp=np), X.shape)
    squares, norms = (np.where(keep, x, 0).sum(axis=1, dtype=np.float64) for x in (X * X, D))
    noise = squares / np.maximum(norms, 1e-300)
    known = (keep.sum(axis=1) >= min(FEWEST, S)) & (norms > 0)
    return np.where(known, noise, np.median(noise[known]) if known.any() else 1.0)


def _edges(rows: Problem, white: _Whitened) -> Iterator[tuple[int, Along]]:
    """Errors along the weights of keys beside the first and the last one that a row sees, as if there were no mask."""
    for n in range(len(EDGES)):
        at, key = beside(rows, n)
        if not len(at):
            continue
        some = rows_of(rows, at)
        unique, which = np.unique(key, return_inverse=True)
        X, D, P = (np.zeros(len(rows.rows)) for _ in range(3))
        part = _Whitened(white.center, white.column, white.row[at], white.error[at], white.output[at])
        K, V = rows.key[unique][which], rows.value[unique][which]
        X[at], D[at] = _rowwise(part, V)
        P[at] = weights_without_mask(some, K, key)
        usable = np.isfinite(P) & np.isfinite(X) & np.isfinite(D) & (P < 10)
        P = np.where(usable, P, 0.0)
        yield n, Along(np.where(usable, P * X, 0.0), np.where(usable, P * P * D, 0.0))


def beside(rows: Problem, edge: int, *, whole: bool = False) -> tuple[npt.NDArray[np.intp], Ints]:
    """Which rows have a key beside an end of the keys that they see, as EDGES counts it, and that key.

    An end of all keys is no edge of the mask, except where it is taken as a `whole`.
    """
    mask, (L, S) = rows.score.mask, rows.score.lengths
    ends = mask.interval(L, S) if isinstance(mask, Mask) else None
    if ends is None:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.int64)
    end, d = EDGES[edge]
    first, stop = (np.broadcast_to(np.asarray(x), (L,))[rows.rows] for x in ends)
    key = (stop if end == "last" else first) + d
    there = (key >= 0) & (key < S)
    there &= whole | (stop < S if end == "last" else first > 0)
    at = np.flatnonzero(there & (stop > first))
    return at, key[at]


def _rowwise(white: _Whitened, V: Floats) -> tuple[Floats, Floats]:
    """<err, v - o> and |v - o|^2 for one value of each row."""
    apart = (V - white.center) * white.column - white.output
    row = white.row[:, 0].astype(np.float64)
    return row * (white.error * apart).sum(axis=1), row**2 * (apart**2).sum(axis=1)


def weights_without_mask(rows: Problem, K: Floats, keys: Ints) -> Floats:
    """Weight that one key of each row would have if the row saw it, (R,)."""
    score, (L, S) = rows.score, rows.score.lengths
    s = np.einsum("ij,ij->i", rows.query, K) * score.scale
    if score.softcap is not None:
        s = score.softcap * np.tanh(s / score.softcap)
    if score.bias is not None:
        unique, which = np.unique(keys, return_inverse=True)
        cells = np.asarray(score.bias.tile(rows.rows, unique, L, S, xp=np))
        s = s + np.broadcast_to(cells, (len(keys), len(unique)))[np.arange(len(keys)), which]
    return np.asarray(np.exp(s - rows.lse))
