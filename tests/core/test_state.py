"""The softmax state: any cut of the keys into tiles, merged in any order and tree, is the softmax of them all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn._core.arrays import array_namespace
from refattn._core.state import State, empty_state, finish, merge, update
from tests import oracle
from tests.agreement import assert_agree
from tests.namespaces import Library, library

NUMPY = library("numpy")
ODD = (-math.inf, math.inf, math.nan)


@dataclass(frozen=True)
class Keys:
    """Scores (L, S), -inf where masked, and values (S, Ev) of a few rows, with a sink or without, in tiles."""

    L: int
    S: int
    Ev: int
    seed: int
    law: str
    sink: float | None
    cuts: tuple[int, ...]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and values."""
        rng = np.random.default_rng(self.seed)
        S, V = rng.standard_normal((self.L, self.S)), rng.standard_normal((self.S, self.Ev))
        match self.law:
            case "rising":
                S = np.sort(50 * S, axis=-1)
            case "falling":
                S = np.sort(50 * S, axis=-1)[:, ::-1].copy()
            case "far apart":
                S = 1e4 * S
            case "infinite values":
                V = np.where(rng.random(V.shape) < 0.3, rng.choice(ODD, size=V.shape), V)
        if self.law != "full":
            S = np.where(rng.random(S.shape) < 0.4, -math.inf, S)
        if self.law == "empty tiles" and self.S:
            S[:, : self.S // 2 + 1] = -math.inf
        return S, V

    @property
    def parts(self) -> list[slice]:
        """The tiles."""
        edges = [0, *sorted(min(c, self.S) for c in self.cuts), self.S]
        return [slice(a, b) for a, b in itertools.pairwise(edges)]

    def check(self, got: tuple[Any, Any], lib: Library) -> None:
        """Output and lse against the oracle, for any order of at most that many tiles."""
        S, V = self.arrays
        sink = -math.inf if self.sink is None else self.sink
        output, lse = map(lib.values, got)
        for i in range(self.L):
            seen = np.flatnonzero(S[i] > -math.inf)
            row = oracle.softmax(
                S[i, seen].tolist(), [0.0] * len(seen), V[seen].tolist(), self.Ev, sink, tiles=len(self.parts) + 2
            )
            assert_agree(output[i], np.array(row.output), 2 * np.array(row.output_radius), what=f"output of row {i}")
            assert_agree(lse[i], np.array(row.lse), 2 * np.array(row.lse_radius), what=f"lse of row {i}")


LAWS = ("normal", "full", "rising", "falling", "far apart", "infinite values", "empty tiles")


def keys(most: int = 12) -> st.SearchStrategy[Keys]:
    """A few rows of a few keys in a few tiles, empty ones among them."""
    return st.builds(
        Keys,
        L=st.integers(0, 3),
        S=st.integers(0, most),
        Ev=st.integers(0, 3),
        seed=st.integers(0, 2**20),
        law=st.sampled_from(LAWS),
        sink=st.none() | st.sampled_from([0.3, 100.0, -math.inf]),
        cuts=st.lists(st.integers(0, most), max_size=5).map(tuple),
    )


class On:
    """The state's functions on the arrays of one library."""

    def __init__(self, case: Keys, lib: Library) -> None:
        self.lib, self.case = lib, case
        self.S, self.V = map(lib.array, case.arrays)
        self.xp = array_namespace("test", S=self.S)
        self.empty = empty_state(lib.array(np.zeros((case.L, 1))), case.Ev, xp=self.xp)

    def of(self, part: slice, state: State | None = None) -> State:
        """State after one more tile."""
        return update(state or self.empty, self.S[:, part], self.V[part, :], xp=self.xp)

    def finish(self, state: State) -> tuple[Any, Any]:
        """Output and lse."""
        sink = None if self.case.sink is None else self.lib.array(np.array([[self.case.sink]]))
        with np.errstate(all="ignore"):
            return finish(state, sink, xp=self.xp)


@given(case=keys(), data=st.data())
@settings(max_examples=80)
def test_tiles_in_any_order(namespace: Library, case: Keys, data: st.DataObject) -> None:
    on, state = On(case, namespace), None
    with np.errstate(all="ignore"):
        for part in data.draw(st.permutations(case.parts)):
            state = on.of(part, state)
    case.check(on.finish(state), namespace)


@given(case=keys(), data=st.data())
@settings(max_examples=80)
def test_states_merged_in_any_tree(namespace: Library, case: Keys, data: st.DataObject) -> None:
    on = On(case, namespace)
    with np.errstate(all="ignore"):
        states = [on.of(part) for part in case.parts] + [on.empty]
        while len(states) > 1:
            states = data.draw(st.permutations(states))
            states = [merge(states[0], states[1], xp=on.xp), *states[2:]]
    case.check(on.finish(states[0]), namespace)


@given(case=keys())
@settings(max_examples=60)
def test_the_empty_state_is_neutral(case: Keys) -> None:
    on = On(case, NUMPY)
    with np.errstate(all="ignore"):
        state = on.of(slice(0, case.S))
        for merged in (merge(state, on.empty, xp=np), merge(on.empty, state, xp=np)):
            for got, want in zip(merged, state, strict=True):
                np.testing.assert_array_equal(got, want)


@given(case=keys())
@settings(max_examples=60)
def test_merging_commutes_bit_for_bit(case: Keys) -> None:
    on = On(case, NUMPY)
    with np.errstate(all="ignore"):
        a, b = on.of(slice(0, case.S // 2)), on.of(slice(case.S // 2, case.S))
        for one, other in zip(merge(a, b, xp=np), merge(b, a, xp=np), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_sink_takes_weight_once(namespace: Library) -> None:
    # Scores of 0 and a sink of 0: each of the n keys and the sink weigh 1/(n + 1), in however many tiles.
    case = Keys(1, 3, 1, 0, "full", 0.0, (1, 2))
    on = On(case, namespace)
    on.S, on.V = namespace.array(np.zeros((1, 3))), namespace.array(np.ones((3, 1)))
    state = None
    for part in case.parts:
        state = on.of(part, state)
    output, lse = map(namespace.values, on.finish(state))
    assert output.tolist() == [[0.75]]
    assert lse.tolist() == [math.log(4)]


def test_a_rising_maximum_rescales_what_came_before(namespace: Library) -> None:
    # exp(0) 1 + exp(1) 2 + exp(2) 4 over exp(0) + exp(1) + exp(2), tile by tile.
    case = Keys(1, 3, 1, 0, "full", None, (1, 2))
    on = On(case, namespace)
    on.S, on.V = namespace.array(np.array([[0.0, 1.0, 2.0]])), namespace.array(np.array([[1.0], [2.0], [4.0]]))
    state = None
    for part in case.parts:
        state = on.of(part, state)
    row = oracle.softmax([0.0, 1.0, 2.0], [0.0] * 3, [[1.0], [2.0], [4.0]], 1, tiles=3)
    output, lse = map(namespace.values, on.finish(state))
    assert_agree(output[0], np.array(row.output), 2 * np.array(row.output_radius))
    assert_agree(lse[0], np.array(row.lse), 2 * np.array(row.lse_radius))


# The public merge: parts that were each normalised alone.


def part_results(case: Keys, make: Callable[[np.ndarray], Any]) -> tuple[list[Any], list[Any]]:
    """Output and lse of each part, from the oracle."""
    S, V = case.arrays
    outputs, lses = [], []
    for part in case.parts:
        rows = []
        for i in range(case.L):
            seen = [j for j in range(part.start, part.stop) if S[i, j] > -math.inf]
            rows.append(oracle.softmax(S[i, seen].tolist(), [0.0] * len(seen), V[seen].tolist(), case.Ev))
        outputs.append(make(np.array([r.output for r in rows]).reshape(case.L, case.Ev)))
        lses.append(make(np.array([r.lse for r in rows]).reshape(case.L)))
    return outputs, lses


@given(case=keys(), data=st.data())
@settings(max_examples=60)
def test_merge_states_of_any_parts_in_any_order(namespace: Library, case: Keys, data: st.DataObject) -> None:
    outputs, lses = part_results(case, namespace.array)
    order = data.draw(st.permutations(range(len(outputs))))
    got = ra.merge_states([outputs[n] for n in order], [lses[n] for n in order])
    assert got.weights is None
    without_sink = Keys(case.L, case.S, case.Ev, case.seed, case.law, None, case.cuts)
    without_sink.check((got.output, got.lse), namespace)


@given(case=keys())
@settings(max_examples=60)
def test_merge_states_is_associative(case: Keys) -> None:
    outputs, lses = part_results(case, np.array)
    got = ra.merge_states(outputs[:1], lses[:1])
    for output, lse in zip(outputs[1:], lses[1:], strict=True):
        got = ra.merge_states([got.output, output], [got.lse, lse])
    without_sink = Keys(case.L, case.S, case.Ev, case.seed, case.law, None, case.cuts)
    without_sink.check((got.output, got.lse), NUMPY)


@pytest.mark.parametrize("leftover", [math.nan, math.inf, 1e300])
def test_what_a_part_without_keys_left_behind_is_not_read(namespace: Library, leftover: float) -> None:
    outputs = [namespace.array(np.array([[1.0, 2.0]])), namespace.array(np.full((1, 2), leftover))]
    lses = [namespace.array(np.array([0.5])), namespace.array(np.array([-math.inf]))]
    for order in (1, -1):
        got = ra.merge_states(outputs[::order], lses[::order])
        assert namespace.values(got.output).tolist() == [[1.0, 2.0]]
        assert namespace.values(got.lse).tolist() == [0.5]


def test_parts_that_are_all_empty_give_zero(namespace: Library) -> None:
    output, lse = namespace.array(np.full((2, 1), math.nan)), namespace.array(np.full(2, -math.inf))
    got = ra.merge_states([output, output], [lse, lse])
    assert namespace.values(got.output).tolist() == [[0.0], [0.0]]
    assert namespace.values(got.lse).tolist() == [-math.inf, -math.inf]


def test_equal_parts_average(namespace: Library) -> None:
    parts = [namespace.array(np.array([[x]])) for x in (1.0, 2.0, 3.0, 6.0)]
    got = ra.merge_states(parts, [namespace.array(np.array([7.0]))] * 4)
    assert namespace.values(got.output).tolist() == [[3.0]]
    assert namespace.values(got.lse).tolist() == [7.0 + math.log(4)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_merge_states_rounds_once_to_the_first_output(dtype: str) -> None:
    from tests.namespaces import numpy_dtype

    low = [np.array([[x]]).astype(numpy_dtype(dtype)) for x in (1.0, 1.3)]
    got = ra.merge_states(low, [np.array([0.0]), np.array([1.0])])
    exact = ra.merge_states([x.astype(np.float64) for x in low], [np.array([0.0]), np.array([1.0])])
    assert got.output.dtype == numpy_dtype(dtype)
    assert got.lse.dtype == np.float64
    assert_agree(got.output, exact.output, np.zeros((1, 1)), dtype=dtype)
    np.testing.assert_array_equal(got.lse, exact.lse)
