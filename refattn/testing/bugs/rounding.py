"""Bugs that keep a number in a narrow format: what is rounded, and how far a kernel's own errors tip the rounding.

A number x of a kernel differs from the exact one by its own errors, up to d. Where x - d and x + d round to the same
number the result is known; elsewhere it may be off by the difference, which the room of a bug adds up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from refattn._core.arrays import round_to
from refattn.testing.bugs.cuts import Cut, cuts, parts
from refattn.testing.bugs.engine import Floats, Head, State, merge
from refattn.testing.bugs.problems import Problem

LOG2E = 1 / math.log(2)
HALVES = ("bfloat16", "float16")
HALF_MAX = 65504.0


def rounded(x: Any, dtype: str) -> Floats:
    """Numbers rounded once to a narrow format."""
    return np.asarray(round_to(np.asarray(x, np.float64), dtype, np), np.float64)


def tipped(x: Floats, doubt: Floats, dtype: str) -> Floats:
    """How far the roundings of numbers that may be off by a doubt lie apart."""
    return np.nan_to_num(rounded(x + doubt, dtype) - rounded(x - doubt, dtype), nan=0.0, posinf=0.0, neginf=0.0)


def normalised(part: State) -> State:
    """A state whose denominator is 1."""
    return State(part.lse, np.where(part.l > 0, 1.0, 0.0), part.output)


def merged(states: Iterable[State]) -> State:
    """State of the keys of all states."""
    total: State | None = None
    for part in states:
        total = part if total is None else merge(total, part)
    assert total is not None
    return total


def errors(x: Head) -> Floats:
    """A few standard deviations of the errors of scores (R, S), sums of E products of a unit roundoff."""
    products = np.linalg.norm(x.query, axis=-1)[:, None] * np.linalg.norm(x.key, axis=-1) * abs(x.scale)
    return np.asarray(x.unit * math.sqrt(x.problem.dims[0]) * np.maximum(products, np.abs(x.biased)))


def worst(x: Head) -> Floats:
    """A few standard deviations of the relative errors of sums of weights (R,)."""
    return np.asarray(2 * errors(x).max(axis=-1, initial=0.0, where=x.keep) + x.unit * math.sqrt(x.S))


# Scores.


def rounded_scores(x: Head) -> Floats:
    """Products rounded to a narrow format, before the scale, after it, or with log2(e) as well."""
    dtype, factor = factor_of(x)
    return np.asarray(rounded(x.query @ x.key.T * factor, dtype) * (x.scale / factor))


def factor_of(x: Head) -> tuple[str, float]:
    """A narrow format, and what products are multiplied by before they are rounded to it."""
    dtype, where = x.choice
    return dtype, {BEFORE: 1.0, AFTER: x.scale, IN_BASE_2: x.scale * LOG2E}[where]


def room_of_scores(x: Head) -> tuple[Floats, Floats]:
    """What scores that may be rounded either way change, to first order."""
    dtype, factor = factor_of(x)
    ratio = factor / x.scale
    apart = np.abs(tipped(x.query @ x.key.T * factor, errors(x) * abs(ratio), dtype) / ratio)
    moved = np.where(x.keep, x.weights * np.expm1(np.minimum(apart, 1.0)), 0.0)
    l = np.where(x.total.l == 0, 1.0, x.total.l)
    share = moved.sum(axis=-1) / l
    values = np.where(np.isfinite(x.value), np.abs(x.value), 0.0)
    return (moved * x.kept) @ values / l[:, None] + share[:, None] * np.abs(x.output), share


BEFORE, AFTER, IN_BASE_2 = "before the scale", "after the scale", "after scale and log2(e)"


def formats_of_scores(p: Problem) -> list[tuple[str, str]]:
    """Formats, and where scores are rounded to them."""
    return [] if p.scale == 0 else [(dtype, at) for dtype in reversed(HALVES) for at in (AFTER, BEFORE, IN_BASE_2)]


# Results of splits.


def cuts_and_formats(p: Problem) -> Iterator[tuple[Cut, str]]:
    """Splits and narrow formats."""
    return ((cut, dtype) for cut in cuts(p) for dtype in HALVES)


def rounded_partials(x: Head) -> State:
    """States of splits whose normalised output is rounded before they are merged."""
    cut, dtype = x.choice
    return merged(State(m, l, rounded(State(m, l, O).output, dtype) * l[:, None]) for m, l, O in parts(x, cut))


def room_of_partials(x: Head) -> tuple[Floats, float]:
    """What outputs of splits that may be rounded either way change."""
    cut, dtype = x.choice
    largest = np.abs(np.where(np.isfinite(x.value), x.value, 0.0)).max(axis=0, initial=0.0)
    doubt = worst(x)[:, None] * largest
    apart = [np.abs(tipped(part.output, doubt, dtype)) * weight[:, None] for part, weight in weighed(x, cut)]
    return np.sum(apart, axis=0), 0.0


def weighed(x: Head, cut: Cut) -> Iterator[tuple[State, Floats]]:
    """Each split with its share (R,) of the row's weight."""
    for part in parts(x, cut):
        yield part, np.where(part.l > 0, np.exp(part.lse - x.lse), 0.0)


def rounded_lses(x: Head) -> State:
    """Normalised splits merged by log-sum-exps in a narrow format."""
    cut, dtype = x.choice
    return merged(normalised(part)._replace(m=rounded(part.lse, dtype)) for part in parts(x, cut))


def room_of_lses(x: Head) -> tuple[Floats, Floats]:
    """What log-sum-exps of splits that may be rounded either way change, to first order."""
    cut, dtype = x.choice
    output, lse = np.zeros(x.output.shape), np.zeros(len(x.rows))
    for part, weight in weighed(x, cut):
        moved = weight * np.expm1(np.abs(tipped(part.lse, worst(x), dtype)))
        output += moved[:, None] * np.abs(part.output - x.output)
        lse += moved
    # A share that is taken without its excess is a share of less.
    return output / np.maximum(1 - lse, 0.5)[:, None], lse
