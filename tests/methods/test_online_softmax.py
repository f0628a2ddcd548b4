"""The softmax in one pass: against the oracle's softmax, whatever is taken at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refattn as ra
from tests import oracle
from tests.agreement import assert_agree
from tests.namespaces import NARROW, Library, library, name_of

NUMPY = library("numpy")
NUMBERS = st.sampled_from([0.0, 1.0, -2.5, 300.0, -300.0, 1e4, -1e4, 1e300, -1e300, 5e-324, -math.inf])


def check(x: np.ndarray, got: ra.AttentionResult, lib: Library, tile: int) -> None:
    """Weights, maximum and sum of every row."""
    weights, maximum, total = (lib.values(a) for a in got)
    assert (weights.shape, maximum.shape, total.shape) == (x.shape, x.shape[:-1], x.shape[:-1])
    for at in np.ndindex(x.shape[:-1]):
        kept = np.flatnonzero(x[at] > -math.inf)
        scores = x[at][kept].tolist()
        want = oracle.softmax(scores, [0.0] * len(scores), [[]] * len(scores), 0, tiles=max(1, -(-x.shape[-1] // tile)))
        assert maximum[at] == max(scores, default=-math.inf)
        wanted, radius = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
        wanted[kept], radius[kept] = want.weights, want.weights_radius
        assert_agree(weights[at], wanted, 2 * radius, what="weights")
        if not scores:
            assert total[at] == 0
        else:
            lse = maximum[at] + np.log(total[at])
            assert_agree(lse, np.asarray(want.lse), np.asarray(2 * want.lse_radius + 8 * 2.0**-53 * abs(want.lse)))


@given(
    x=hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9), elements=NUMBERS),
    tile=st.integers(1, 10),
)
@settings(max_examples=100)
def test_one_pass_finds_the_softmax(namespace: Library, x: np.ndarray, tile: int) -> None:
    check(x, ra.online_softmax(namespace.array(x), tile=tile), namespace, tile)


@pytest.mark.parametrize("S", [1024, 1025, 5000])
def test_long_rows(S: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, S)) * 20
    check(x, ra.online_softmax(x), NUMPY, 1 if S <= 1024 else 1024)


def test_the_sum_is_relative_to_the_maximum() -> None:
    # 1 + e^-1 + e^-2 in every order, though the maximum comes first, last or between.
    want = math.fsum(math.exp(-n) for n in range(3))
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        _, maximum, total = ra.online_softmax(700.0 - np.array(order), tile=1)
        assert maximum == 700.0
        assert abs(total - want) <= 64 * 2.0**-53 * want


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_of_no_numbers_is_nan_and_no_other_is(namespace: Library, bad: float) -> None:
    x = np.zeros((2, 4))
    x[0, 2] = bad
    weights = namespace.values(ra.online_softmax(namespace.array(x), tile=2).weights)
    assert np.isnan(weights[0]).all()
    assert weights[1].tolist() == [0.25] * 4


def test_weights_are_rounded_once(namespace: Library) -> None:
    x = np.random.default_rng(0).standard_normal((3, 7))
    exact = namespace.values(ra.online_softmax(namespace.array(x)).weights)
    for dtype in ("float32", "float16", *NARROW[:3]):
        if dtype in namespace.dtypes:
            got = ra.online_softmax(namespace.array(x), dtype=dtype)
            assert [name_of(a.dtype) for a in got] == [dtype, "float64", "float64"]
            assert_agree(namespace.values(got.weights), exact, np.zeros(x.shape), dtype=dtype)


def test_the_parts_of_tiled_attention_are_its() -> None:
    # The statistics of the pass are those that attention's log-sum-exp is made of.
    q, k, v = np.random.default_rng(1).standard_normal((3, 1, 40, 8))
    scores = ra.attention_scores(q, k, is_causal=True)
    _, m, d = ra.online_softmax(scores, tile=7)
    lse = ra.flash_attention(q, k, v, is_causal=True, tile_k=7, return_lse=True).lse
    assert_agree(m + np.log(d), lse, 64 * 2.0**-53 * (np.abs(lse) + 1))
