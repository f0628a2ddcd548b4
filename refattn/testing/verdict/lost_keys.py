"""Which keys a kernel left out: one key, or one aligned tile of keys, whose loss explains all wrong rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn.testing.verdict.judge import Compared, Floats

KEY_TILES = (16, 32, 64, 128)


class Candidates(NamedTuple):
    """Sets of keys first..stop - 1 whose loss still explains all rows seen so far, and how well."""

    first: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    share: Floats


def candidates(S: int) -> Candidates:
    """Every single key and every aligned tile, the last one cut to fit."""
    firsts = [np.arange(S)]
    stops = [np.arange(S) + 1]
    for size in KEY_TILES:
        if size < S:
            firsts.append(np.arange(0, S, size))
            stops.append(np.minimum(firsts[-1] + size, S))
    first, stop = np.concatenate(firsts), np.concatenate(stops)
    return Candidates(first, stop, np.zeros(len(first)))


def narrow(left: Candidates, P: Floats, V: Floats, output: Compared) -> Candidates:
    """The candidates that also explain these rows, of weights P (R, S).

        o without the keys J = (o - sum_J p v) / (1 - sum_J p)

    The room is wide, since the bound of what remains is not at hand: the best of what is left is judged exactly.
    """
    for n, p in enumerate(P):
        if not len(left.first):
            break
        # Prefix sums, so that each candidate costs one difference; their rounding is far below any kernel's bound.
        weights = np.concatenate([[0.0], np.cumsum(p)])
        totals = np.concatenate([np.zeros((1, V.shape[1])), np.cumsum(p[:, None] * V, axis=0)])
        lost = weights[left.stop] - weights[left.first]
        rest = np.maximum(1 - lost, np.finfo(np.float64).tiny)[:, None]
        expected = (output.expected[n] - (totals[left.stop] - totals[left.first])) / rest
        judged = np.isfinite(output.bound[n])
        # Values move apart as the rest of the weight shrinks, and the bound with them.
        errors = np.abs(output.got[n] - expected)[:, judged] / (output.bound[n][judged] * np.maximum(1.0, 1 / rest))
        share = np.maximum(left.share, errors.max(axis=1, initial=0.0))
        fits = (share <= 1) & (rest[:, 0] > 2.0**-20)
        left = Candidates(left.first[fits], left.stop[fits], share[fits])
    return left


def best(left: Candidates) -> tuple[int, int] | None:
    """The candidate that fits best, first..stop - 1; of equals the fewest keys."""
    if not len(left.first):
        return None
    n = np.lexsort((left.stop - left.first, left.share))[0]
    return int(left.first[n]), int(left.stop[n])
