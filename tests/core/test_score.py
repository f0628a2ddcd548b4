"""The score: its stages in order, tile by tile, and which tiles are asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refattn import contract, masks
from refattn._call import prepare
from refattn._core.arrays import array_namespace
from refattn._core.score import Score
from refattn._core.tiles import tiles
from tests import strategies as draws
from tests.namespaces import Library, library
from tests.strategies import Problem

NUMPY = library("numpy")


def call_of(problem: Problem, lib: Library = NUMPY) -> Any:
    """The checked call of a problem."""
    arguments = dict.fromkeys(["mask", "bias", "scale", "softcap", "sinks", "dtype"]) | {"is_causal": False}
    return prepare("test", *map(lib.array, problem.arrays), **(arguments | problem.arguments(lib)))


@given(length=st.integers(0, 300), size=st.integers(1, 130), start=st.integers(0, 300))
def test_tiles_cover_in_order_and_are_cut_to_fit(length: int, size: int, start: int) -> None:
    found = list(tiles(length, size, start=start))
    assert [n for part in found for n in range(part.start, part.stop)] == list(range(start, length))
    assert all(0 < part.stop - part.start <= size and part.step is None for part in found)


@given(data=st.data())
@settings(max_examples=80)
def test_tiles_of_a_score_are_those_that_some_query_sees(data: st.DataObject) -> None:
    problem = data.draw(draws.problems(arguments=("mask", "is_causal"), most=65))
    L, S = problem.lengths
    tile_k = data.draw(st.sampled_from([1, 2, 16, 64]))
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, L))
        i: Any = slice(start, data.draw(st.integers(start, L)))
        rows = list(range(L))[i]
    else:
        rows = data.draw(st.lists(st.integers(0, L - 1), max_size=5)) if L else []
        i = np.array(rows, dtype=np.int64)
    assume(rows and 0 not in problem.batch)  # for no rows any tiles do
    score = call_of(problem).score
    found = list(score.tiles(i, tile_k))
    every = list(tiles(S, tile_k))
    if score.mask is None:
        assert found == every
        return
    seen = score.mask.dense(L, S)[..., rows, :]
    seen = seen.any(axis=tuple(range(seen.ndim - 1)))
    needed = [part for part in every if seen[part].any()]
    if score.mask.interval(L, S) is None:
        assert [part.start for part in found] == [part.start for part in needed]
    else:
        # The rows' intervals may lie apart, with tiles between them that none sees.
        assert [part.start for part in found] == list(range(needed[0].start, needed[-1].stop, tile_k) if needed else [])
    # The last tile may end where the keys do that may be seen.
    ends = {part.start: part.stop for part in every}
    assert all(part.stop <= ends[part.start] for part in found)
    assert not seen[[j for j in range(S) if not any(part.start <= j < part.stop for part in found)]].any()


@given(data=st.data())
@settings(max_examples=60)
def test_a_tile_of_the_score_is_the_whole_cut(namespace: Library, data: st.DataObject) -> None:
    problem = data.draw(draws.problems(most=33))
    (L, S) = problem.lengths
    call = call_of(problem, namespace)
    Q, K, _ = call.grouped()

    def cut(n: int) -> Any:
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, n))
            return slice(start, data.draw(st.integers(start, n)))
        return np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=4)) if n else [], dtype=np.int64)

    i, j = cut(L), cut(S)
    with np.errstate(all="ignore"):
        whole = call.score(Q, K, slice(0, L), slice(0, S), xp=call.xp)
        Q_i, K_j = (_cut(x, n, call.xp) for x, n in ((Q, i), (K, j)))
        part = call.score(Q_i, K_j, i, j, xp=call.xp)
    want = namespace.values(whole)[..., i, :][..., j]
    got = np.broadcast_to(namespace.values(part), want.shape)
    # The masked cells are the same ones. A dot product may be summed in another order by a matrix of another shape.
    np.testing.assert_array_equal(got == -math.inf, want == -math.inf)
    seen = (want != -math.inf) & (np.abs(want) < 1e300)  # beyond, a bias has set the score
    q, k = (np.abs(namespace.values(x)) for x in (Q, K))
    size = (q @ np.swapaxes(k, -1, -2))[..., i, :][..., j] * abs(call.score.scale)
    # As tests/oracle.py derives it, for either side.
    u, c, E = 2.0**-53, call.score.softcap or 0.0, problem.features[0]
    radius = u * ((E + 4) * size + 10 * c + 4 * np.abs(np.where(seen, want, 0.0))) + E * 2.0**-1074
    assert (np.abs(got[seen] - want[seen]) <= 2 * np.broadcast_to(radius, want.shape)[seen]).all()


def _cut(x: Any, at: Any, xp: Any) -> Any:
    """Rows of x (..., n, E)."""
    return x[..., at, :] if isinstance(at, slice) else xp.take(x, xp.asarray(at), axis=-2)


def test_stages_by_hand(namespace: Library) -> None:
    q, k = np.array([[[1.0, 2.0], [3.0, 0.0]]]), np.array([[[4.0, 0.0], [0.0, 4.0], [1.0, 1.0]]])
    bias, mask = np.array([[0.5, 0.0, -1.0]]), np.array([[True, True, False], [True, False, True]])
    arrays = (namespace.array(x) for x in (q, k, np.ones((1, 3, 1))))
    call = prepare(
        "test", *arrays, mask=namespace.array(mask), bias=namespace.array(bias), is_causal=False, scale=0.25,
        softcap=2.0, sinks=None, dtype=None,
    )  # fmt: skip
    Q, K, _ = call.grouped()
    i, j = slice(0, 2), slice(0, 3)
    raw, capped, added, keep = (
        np.broadcast_to(namespace.values(x), (1, 1, 2, 3)) for x in call.score.parts(Q, K, i, j, xp=call.xp)
    )
    want = np.array([[1.0, 2.0, 0.75], [3.0, 0.0, 0.75]])
    np.testing.assert_array_equal(raw[0, 0], want)
    # Two tanh, each within what the float64 contract allows; halving and doubling are exact.
    by_hand = np.array([[2 * math.tanh(x / 2) for x in row] for row in want])
    assert (np.abs(capped[0, 0] - by_hand) <= 2 * contract.flash("float64").tanh_ulp * np.spacing(by_hand)).all()
    np.testing.assert_array_equal(added[0, 0], np.broadcast_to(bias, (2, 3)))
    np.testing.assert_array_equal(keep[0, 0], mask)
    total = namespace.values(call.score(Q, K, i, j, xp=call.xp))[0, 0]
    np.testing.assert_array_equal(total, np.where(mask, capped[0, 0] + bias, -math.inf))


def test_only_masked_cells_are_minus_infinity(namespace: Library) -> None:
    # A seen score of -inf, by an infinite key or by overflow, is the lowest number: its row is not empty.
    q = namespace.array(np.array([[[1.0], [1e200]]]))
    k = namespace.array(np.array([[[-math.inf], [-1e200], [1.0]]]))
    v = namespace.array(np.ones((1, 3, 1)))
    mask = namespace.array(np.array([[True, True, False]]))
    call = prepare(
        "test", q, k, v, mask=mask, bias=None, is_causal=False, scale=1.0, softcap=None, sinks=None, dtype=None
    )
    Q, K, _ = call.grouped()
    with np.errstate(over="ignore"):
        S = namespace.values(call.score(Q, K, slice(0, 2), slice(0, 3), xp=call.xp))[0, 0]
    lowest = np.finfo(np.float64).min
    np.testing.assert_array_equal(S, [[lowest, -1e200, -math.inf], [lowest, lowest, -math.inf]])


@given(data=st.data())
@settings(max_examples=60)
def test_the_score_of_one_head_is_that_head_of_the_score(data: st.DataObject) -> None:
    problem = data.draw(draws.problems(most=17).filter(lambda p: 0 not in (*p.batch, *p.lengths)))
    L, S = problem.lengths
    call = call_of(problem)
    Q, K, _ = call.grouped()
    index = tuple(data.draw(st.integers(0, n - 1)) for n in (*problem.batch, problem.heads[0]))
    slab = call.slab(index)
    assert slab.score.groups is None
    with np.errstate(all="ignore"):
        whole = call.headed(call.score(Q, K, slice(0, L), slice(0, S), xp=np), 2)
        one = slab.score(slab.query[:, :], slab.key[:, :], slice(0, L), slice(0, S), xp=np)
    # The same float64 products of the same shape (L, E) by (E, S): not a bit differs.
    np.testing.assert_array_equal(
        np.broadcast_to(one, (L, S)), np.broadcast_to(whole, (*whole.shape[:-2], L, S))[index]
    )
    if problem.sinks is not None:
        assert slab.score.sink.ravel().tolist() == [problem.sinks[index[-1]]]


def test_a_score_without_heads_has_no_head_to_choose() -> None:
    score = Score(lengths=(1, 1), scale=1.0, sink=np.zeros((1, 1, 1, 1)))
    with pytest.raises(ValueError, match="no head axis"):
        score.at((0,))


def test_masks_that_tell_heads_apart_meet_the_group_view() -> None:
    # One key head for each two query heads: the mask's axis of 4 heads is cut into (2, 2).
    cells = np.zeros((4, 1, 1), dtype=bool)
    cells[2] = True
    problem = Problem(heads=(4, 2), mask=draws.Choice("head 2", cells))
    call = call_of(problem)
    Q, K, _ = call.grouped()
    keep = call.score.parts(Q, K, slice(0, 1), slice(0, 1), xp=np).keep
    assert np.argwhere(keep).tolist() == [[1, 0, 0, 0]]


def test_a_tile_with_fewer_axes_than_the_mask_tells_apart() -> None:
    # The function does not look at the head, so its tile has no axis for it, though the mask was given 4 heads.
    same = masks.from_function(lambda b, h, q, kv: q >= kv, heads=4)
    problem = Problem(heads=(4, 2), lengths=(2, 2), mask=draws.Choice("function", same))
    call = call_of(problem)
    Q, K, _ = call.grouped()
    S = call.score(Q, K, slice(0, 2), slice(0, 2), xp=array_namespace("test", Q=Q))
    assert (S == -math.inf).tolist() == [[[[False, True], [False, False]]] * 2] * 2
