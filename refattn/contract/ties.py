"""Where rounding errors cannot be as good as random: keys that repeat one another, and scores that do."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refattn._core.tiles import tiles
from refattn.contract.problem import Problem

# A row of fewer keys is left to the proven bound, whatever they are.
FEWEST_KEYS = 32
# Mean number of keys that share a key's score.
LARGEST_GROUP = 1.5
# Rows of a problem whose scores are searched for ties, and how near two scores are that count as one.
TRIED, NEAR = 4, 2.0**-40
# Weight of a row, as a share, that may lie among scores which 8 units of the weights' format hold, and the fewest keys
# that it lies on: of normal scores whose deviation is as little as that, the middle one has so much.
CROWD, FEW = math.erf(0.5 / math.sqrt(2)), 8
# Keys that are read at a time.
KEYS = 4096


def twins(problem: Problem) -> tuple[npt.NDArray[np.float32], float]:
    """How often each key is there, (S,), and the share of keys that repeat another, of those that some row sees."""
    S, E = problem.key.shape
    direction = np.random.default_rng(0).standard_normal(E)
    along = np.zeros(S)
    for j in tiles(S, KEYS):
        along[j] = np.where(_seen(problem, j), problem.key[j] @ direction, np.nan)
    count = np.ones(S, dtype=np.float32)
    order = np.argsort(along)[: np.count_nonzero(np.isfinite(along))]
    if not len(order):
        return count, 0.0
    sizes = _groups(along[order])
    count[order] = np.repeat(sizes, sizes)
    return count, 1.0 - len(sizes) / len(order)


def tied(problem: Problem, width: float) -> bool:
    """Whether rows have many keys of the same score, though the keys differ: small integers, for one.

    Scores that crowd together, most of the row's weight within the `width`, are as good as equal: a softcap's ends.
    """
    few = np.unique(np.linspace(0, len(problem.rows) - 1, TRIED).astype(int))
    Q, rows = problem.query[few], problem.rows[few]
    found = []
    for j in tiles(problem.key.shape[0], KEYS):
        parts = problem.score.parts(Q, problem.key[j], rows, j, xp=np)
        s = np.array(parts.capped if parts.bias is None else parts.capped + parts.bias)
        found.append(s if parts.keep is None else np.where(parts.keep, s, np.nan))
    for s in np.concatenate([np.zeros((len(few), 0)), *found], axis=1):
        seen = np.sort(s[np.isfinite(s)])
        if len(seen) < FEWEST_KEYS:
            continue
        if (_groups(seen) ** 2.0).sum() > LARGEST_GROUP * len(seen):
            return True
        if _crowded(seen, width):
            return True
    return False


def _crowded(scores: npt.NDArray[np.float64], width: float) -> bool:
    """Whether most of the weight of scores in order lies on many of them that are all but equal."""
    weight = np.exp(scores - scores[-1])
    stop = np.searchsorted(scores, scores + width, side="right")
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (weight, weight**2))
    held = sums[stop] - sums[:-1]
    many = held**2 >= FEW * (squares[stop] - squares[:-1])
    return bool((many & (held >= CROWD * sums[-1])).any())


def _seen(problem: Problem, j: slice) -> npt.NDArray[np.bool_]:
    """Which keys some row sees, (keys,)."""
    mask = problem.score.mask
    if mask is None:
        return np.ones(j.stop - j.start, dtype=bool)
    keep = mask.tile(problem.rows, j, *problem.score.lengths, xp=np)
    return np.asarray(np.broadcast_to(keep, (len(problem.rows), j.stop - j.start)).any(axis=0))


def _groups(x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Sizes of the groups of numbers that are all but the same, of numbers in order."""
    apart = np.diff(x) > NEAR * np.maximum(np.abs(x[1:]), np.abs(x[:-1]))
    return np.diff(np.flatnonzero(np.concatenate([[True], apart, [True]])))
