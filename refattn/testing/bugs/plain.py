"""Mistakes that are no entry of the catalogue: what any kernel does wrong at first."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from refattn.testing.bugs.engine import Floats, Head, State
from refattn.testing.bugs.record import Bug, several_keys

Entry = partial(Bug, family="not in the catalogue")


def mean_of_values(x: Head) -> Floats:
    """The mean of all values, in every row."""
    return np.broadcast_to(x.value.mean(axis=0), (len(x.rows), x.value.shape[1]))


def row_before(x: Head) -> Floats:
    """The output of the row before; the first row's own."""
    return np.asarray(x.of(rows=np.maximum(x.rows - 1, 0)).output)


def previous_output(x: Head) -> Floats:
    """The output of the call before."""
    before = x.problem.previous
    assert before is not None
    return np.asarray(Head(before, x.b, x.h, x.rows).output)


def unnormalised(x: Head) -> Floats:
    """The sum of weighted values, not divided."""
    total: State = x.total
    return total.O


def without_last_tile(x: Head) -> Floats:
    """Cells before the last tile of keys."""
    return np.asarray(x.right("keep") & (np.arange(x.S) < (x.S - 1) // x.choice * x.choice))


PLAIN_BUGS = (
    Entry(
        id="zeros",
        name="the output is not written",
        symptom="all zeros",
        formula="o = 0",
        steps={"output": lambda x: np.zeros((len(x.rows), x.problem.dims[1]))},
    ),
    Entry(
        id="mean-of-values",
        name="all keys have the same weight",
        symptom="every row is the mean of the values",
        formula="o = mean of v",
        needs=lambda p: bool((p.sequences[1] > 1).all()),
        steps={"output": mean_of_values},
    ),
    Entry(
        id="stale-row",
        name="a row holds the output of the row before",
        symptom="rows are shifted by one",
        formula="o_i = o_(i-1)",
        needs=lambda p: p.lengths[0] > 1,
        steps={"output": row_before},
    ),
    Entry(
        id="stale-call",
        name="the output is that of the call before",
        symptom="a second call returns the first one's output",
        formula="o = o of the previous call",
        needs=lambda p: p.previous is not None and p.previous.query.shape == p.query.shape,
        steps={"output": previous_output},
    ),
    Entry(
        id="unnormalised",
        name="the output is not divided by the denominator",
        symptom="too large an output, more so with many keys",
        formula="o = sum e^(s - m) v",
        steps={"output": unnormalised},
    ),
    Entry(
        id="scale-of-e-plus-1",
        name="the scale is 1/sqrt(E + 1)",
        symptom="attention is a little too flat",
        formula="1/sqrt(E + 1) (should be 1/sqrt(E))",
        steps={"scale": lambda x: 1 / math.sqrt(x.problem.dims[0] + 1)},
        seen_in="scale",
    ),
    Entry(
        id="scale-of-1-over-e",
        name="the scale is 1/E",
        symptom="attention is too flat",
        formula="1/E (should be 1/sqrt(E))",
        steps={"scale": lambda x: 1 / x.problem.dims[0]},
        seen_in="scale",
    ),
    Entry(
        id="log2e-twice",
        name="scores are multiplied by log2(e) and then by it again",
        symptom="attention is too sharp",
        formula="p = e^(s log2(e))",
        steps={"scale": lambda x: x.problem.scale / math.log(2)},
    ),
    Entry(
        id="no-mask",
        name="the mask is ignored",
        symptom="all keys take part",
        formula="allow all j",
        needs=lambda p: p.mask is not None,
        steps={"mask": lambda x: None},
        seen_in="keep",
    ),
    Entry(
        id="no-bias",
        name="the bias is ignored",
        symptom="positions do not matter",
        formula="s (should be s + b)",
        needs=lambda p: p.bias is not None,
        steps={"bias": lambda x: 0.0},
    ),
    Entry(
        id="no-softcap",
        name="softcap is ignored",
        symptom="large scores are not cut",
        formula="s (should be cap tanh(s / cap))",
        needs=lambda p: p.softcap is not None,
        steps={"capped": lambda x: x.raw},
    ),
    Entry(
        id="no-dropout",
        name="dropout is ignored",
        symptom="no weight is dropped",
        formula="p_ij (should be p_ij z_ij / (1 - p))",
        needs=lambda p: p.dropout_mask is not None,
        steps={"kept": lambda x: 1.0},
    ),
    Entry(
        id="last-tile",
        name="the last tile of keys is lost",
        symptom="the last keys take no part",
        formula="keys up to floor((S - 1) / tile) tile",
        choices=several_keys,
        label="key tiles of {}",
        steps={"keep": without_last_tile},
        seen_in="keep",
    ),
)
