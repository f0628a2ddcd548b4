"""Scores at every stage, against loops over the definition and against attention itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests import strategies as draws
from tests.agreement import assert_agree
from tests.namespaces import Library, library, name_of
from tests.strategies import NONE, Problem
from tests.tiny import tiny_problems

NUMPY = library("numpy")
U = 2.0**-53


def scores(problem: Problem, stage: str, lib: Library = NUMPY) -> np.ndarray:
    """`ra.attention_scores` of the problem's query and key."""
    query, key, _ = problem.arrays
    arguments = problem.arguments(lib)
    found = ra.attention_scores(lib.array(query), lib.array(key), stage=stage, **arguments)
    assert name_of(found.dtype) == problem.out
    return lib.values(found)


def written_out(problem: Problem, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """The scores by loops, and how far a float64 evaluation may be from them."""
    query, key, _ = (x.astype(np.float64) for x in problem.arrays)
    (H, Hk), (L, S) = problem.heads, problem.lengths
    E = query.shape[-1]
    scale = 1 / math.sqrt(E) if problem.scale is None else problem.scale
    want, radius = np.zeros((2, *problem.batch, H, L, S))
    for *index, i, j in np.ndindex(want.shape):
        h = tuple(index)
        q, k = query[(*h, i)], key[(*h[:-1], h[-1] // (H // Hk), j)]
        s = math.fsum(q * k) * scale
        error = (E + 4) * U * abs(scale) * math.fsum(np.abs(q * k)) + E * 2.0**-1074 * (1 + abs(scale))
        if stage != "raw" and problem.softcap is not None:
            s = problem.softcap * math.tanh(s / problem.softcap)
            error += 10 * U * problem.softcap
        if stage == "biased":
            b = 0.0 if problem.bias.rule is None else problem.bias.rule(h, i, j)
            s = s + b if problem.allowed(h, i, j) else -math.inf
            error += U * (3 * abs(b) + abs(s)) if math.isfinite(s) else 0.0
        want[(*h, i, j)], radius[(*h, i, j)] = s, error
    return want, radius


@given(data=st.data(), stage=st.sampled_from(["raw", "softcapped", "biased"]))
@settings(max_examples=40)
def test_scores_are_those_of_the_definition(namespace: Library, data: st.DataObject, stage: str) -> None:
    problem = data.draw(draws.problems(("float64", "float32"), most=9)).but(dropout_mask=NONE, dropout_p=0.0)
    want, radius = written_out(problem, stage)
    assert_agree(scores(problem, stage, namespace), want, 2 * radius, dtype=problem.out, what=stage)


@given(problem=draws.problems(most=9) | tiny_problems())
@settings(max_examples=80)
def test_weights_are_those_that_attention_returns(problem: Problem) -> None:
    problem = problem.but(dropout_mask=NONE, dropout_p=0.0)
    whole = problem.call(ra.attention, NUMPY, return_weights=True, return_lse=True)
    weights = scores(problem, "weights")
    assert np.array_equal(weights, whole.weights, equal_nan=True)
    logs = scores(problem, "log_weights")
    seen = scores(problem, "biased") > -math.inf
    lost = np.isnan(weights)
    assert np.array_equal(np.isnan(logs), lost)
    # exp(S - lse), where the difference has the rounding error of its own size.
    with np.errstate(under="ignore"):
        radius = (8 * U + U * np.abs(np.where(np.isfinite(logs), logs, 0.0))) * weights + 2.0**-1070
        assert_agree(np.exp(logs)[~lost], weights[~lost], radius[~lost], what="exp of log-weights")
    assert (logs[~seen & ~lost] == -math.inf).all()


@pytest.mark.parametrize("stage", ["weights", "log_weights"])
def test_a_row_without_keys_has_no_weight(stage: str) -> None:
    found = ra.attention_scores(np.ones((1, 2, 3)), np.ones((1, 4, 3)), mask=ra.masks.lengths(0), stage=stage)
    assert (found == (0.0 if stage == "weights" else -math.inf)).all()


def test_log_weights_do_not_underflow() -> None:
    q = np.array([[[1.0]]])
    k = np.array([[[0.0], [-1e4]]])
    assert ra.attention_scores(q, k, scale=1.0, stage="log_weights").tolist() == [[[0.0, -1e4]]]


def test_a_sink_takes_its_share() -> None:
    x = np.zeros((2, 1, 1))
    found = ra.attention_scores(x, x, sinks=np.array([0.0, -math.inf]), stage="weights")
    assert found.tolist() == [[[0.5]], [[1.0]]]


def test_a_stage_does_not_see_what_comes_after_it() -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 2))
    plain = ra.attention_scores(x, x, stage="raw")
    more = ra.attention_scores(x, x, stage="raw", softcap=1.0, bias=np.ones((3, 3)), is_causal=True)
    assert np.array_equal(plain, more)
    capped = ra.attention_scores(x, x, stage="softcapped", softcap=1.0)
    assert np.array_equal(capped, ra.attention_scores(x, x, stage="biased", softcap=1.0))
    assert not np.array_equal(capped, plain)
