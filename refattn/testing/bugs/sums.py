"""What bugs of the softmax recurrence look for in a problem, and the sums that they make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core.arrays import quiet, round_to
from refattn.testing.bugs.engine import Floats, Head, State, merge, power
from refattn.testing.bugs.problems import Problem
from refattn.testing.bugs.record import has_empty_rows, of_all_heads, sample, split_sizes, tile_sizes

LOG2E = 1 / math.log(2)
# log2(e) in bfloat16.
LOG2E_BF16 = 1.4453125
SENTINEL = -5e4
HALF_MAX = 65504.0
# A maximum is kept until it has risen by four binary orders; weights are stored times 2^8, up to 448.
LAZY, SHIFT, FP8_MAX = 4 * math.log(2), 2.0**8, 448.0
HALVES = ("bfloat16", "float16")


def normalised(part: State) -> State:
    """A state whose denominator is 1."""
    return State(part.lse, np.where(part.l > 0, 1.0, 0.0), part.output)


def rounded(x: Any, dtype: str) -> Floats:
    """Numbers rounded once to a narrow format."""
    return np.asarray(round_to(np.asarray(x, np.float64), dtype, np), np.float64)


def kept_denominator(x: Head) -> State:
    """Normalised states merged one after the other, each time as if the merged one had the denominator 1."""
    total: State | None = None
    last: State | None = None
    for part in x.states(x.choice):
        one = normalised(part)
        last = one if total is None else merge(total, one)
        total = State(last.m, np.minimum(last.l, 1.0), last.output)
    assert last is not None
    return last


def fold(x: Head, *, rescale_l: bool = True, rescale_output: bool = True) -> State:
    """Tiles one after the other, of which a sum is not rescaled when the maximum rises."""
    total: State | None = None
    for part in x.states(x.choice):
        if total is None:
            total = part
            continue
        m = np.maximum(total.m, part.m)
        alpha, beta = power(total.m, m), power(part.m, m)
        l = total.l * (alpha if rescale_l else 1.0) + part.l * beta
        O = total.O * alpha[:, None] if rescale_output else total.O
        total = State(m, l, O + part.O * beta[:, None])
    assert total is not None
    return total


def nan_prefix(x: Head) -> Floats:
    """NaN in rows whose first tile is masked."""
    return np.where(x.keep[:, : x.choice].any(axis=-1)[:, None], x.right("output"), math.nan)


def in_empty_rows(x: Head, name: str, value: Any) -> Floats:
    """A result with another value in rows that see no key."""
    seen, right = x.keep.any(axis=-1), x.right(name)
    return np.asarray(np.where(seen[:, None] if right.ndim == 2 else seen, right, value))


def absorbed(x: Head) -> Floats:
    """The lowest float32 in all cells of rows that see no key."""
    return np.where(x.keep.any(axis=-1)[:, None], x.right("scores"), float(np.finfo(np.float32).min))


def not_finite_hidden(name: str, p: Problem) -> bool:
    """An operand with numbers that are not finite, and a mask."""
    array = np.asarray(getattr(p, name))
    return p.mask is not None and not np.isfinite(array.astype(np.float32 if array.itemsize < 4 else array.dtype)).all()


def plain_product(x: Head) -> State:
    """Weights times values, of masked keys too."""
    m, l, _ = x.right("state")
    return State(m, l, (x.weights * x.kept) @ x.value)


def other_row(x: Head, step: int) -> Head:
    """The row beside each row; at the end the row itself."""
    return x.of(rows=np.clip(x.rows + step, 0, x.L - 1))


def crossed_sums(x: Head) -> State:
    """Row sums with those of the next row added."""
    m, l, O = x.right("state")
    following = np.where(x.rows + 1 < x.L, other_row(x, 1).state.l, 0.0)
    return State(m, l + following, O)


def fused_weights(x: Head) -> Floats:
    """Powers of scores that are not rounded, from a maximum that is rounded to float32."""
    exponent = x.scores * LOG2E - rounded(x.top * LOG2E, "float32")[:, None]
    return np.where(exponent >= 128, math.inf, np.exp2(exponent))


def overflowed(x: Head) -> Floats:
    """Scaled products of which those past the largest float16 are infinite."""
    product = x.query @ x.key.T
    return np.asarray(np.where(np.abs(product) > HALF_MAX, np.copysign(math.inf, product), product) * x.scale)


def saturated(x: Head) -> State:
    """Tiles one after the other with a lazy maximum, of which large weights saturate."""
    rows, Ev = len(x.rows), x.value.shape[1]
    m, l, O = np.full(rows, -math.inf), np.zeros(rows), np.zeros((rows, Ev))
    kept = np.broadcast_to(x.kept, x.scores.shape)
    for start in range(0, x.S, x.choice):
        j = slice(start, min(start + x.choice, x.S))
        S = x.scores[:, j]
        risen = np.maximum(m, S.max(axis=-1))
        taken = np.where(risen - m > LAZY, risen, np.where(m == -math.inf, risen, m))
        alpha = power(m, taken)
        P = np.exp(S - np.where(taken == -math.inf, 0.0, taken)[:, None])
        stored = np.minimum(P * SHIFT, FP8_MAX) / SHIFT
        m, l = taken, l * alpha + P.sum(axis=-1)
        O = O * alpha[:, None] + (stored * kept[:, j]) @ x.value[j]
    return State(m, l, O)


def stale_sink(x: Head) -> State:
    """The sink beside the maximum of the row before."""
    m, l, O = x.state
    stale = other_row(x, -1).top
    assert x.sink is not None
    return State(m, l + np.exp(x.sink - np.where(stale == -math.inf, 0.0, stale)), O)


def rounded_partials(x: Head) -> State:
    """States of splits whose normalised output is rounded before they are merged."""
    size, dtype = x.choice
    return merged(State(m, l, rounded(State(m, l, O).output, dtype) * l[:, None]) for m, l, O in x.states(size))


def rounded_lses(x: Head) -> State:
    """Normalised splits merged by log-sum-exps in bfloat16."""
    return merged(normalised(part)._replace(m=rounded(part.lse, "bfloat16")) for part in x.states(x.choice))


def merged(states: Any) -> State:
    """State of the keys of all states."""
    total: State | None = None
    for part in states:
        total = part if total is None else merge(total, part)
    assert total is not None
    return total


def blank_rows(p: Problem) -> bool:
    """Some row without keys and without a sink."""
    return p.sinks is None and has_empty_rows(p)


def blank_among_keys(p: Problem) -> bool:
    """Some row that sees none of several keys."""
    return bool((p.sequences[1] > 0).all()) and blank_rows(p)


@quiet
def tops(p: Problem) -> list[Floats]:
    """The maxima of a few rows."""
    return [Head(p, *at).top for at in of_all_heads(p)]


def low_sentinel(p: Problem) -> bool:
    """Some row whose scores all lie below the sentinel, as far as rows are looked at."""
    return any(((top < SENTINEL - 50) & (top > -math.inf)).any() for top in tops(p))


def huge_logits(p: Problem) -> bool:
    """Some maximum that float32 holds to more than 128 only."""
    return any(((np.abs(top) > 2.0**32) & np.isfinite(top)).any() for top in tops(p))


def two_formats(p: Problem) -> list[tuple[int, str]]:
    """Splits and narrow formats."""
    return [(size, dtype) for size in split_sizes(p) for dtype in HALVES]


def later_first_key(p: Problem) -> list[int]:
    """Sizes of key tiles of which some row sees nothing in the first."""
    heads = [Head(p, *at) for at in sample(p)]
    return [n for n in tile_sizes(p) if any(not x.keep[:, :n].any(axis=-1).all() for x in heads)]
