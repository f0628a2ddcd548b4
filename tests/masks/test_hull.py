"""The hull: where it is known, that it leaves no cell out, and that no form looks outside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refattn import masks
from refattn._core.score import Score
from refattn._core.tiles import tiles
from refattn.masks import forms
from tests.masks.cases import INTERVALS, Case, cases


def ends(cells: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """First seen key and first key after the last seen one, (..., L); the same where a row is empty."""
    S = cells.shape[-1]
    stop = np.max(np.where(cells, np.arange(S) + 1, 0), axis=-1, initial=0)
    return np.minimum(stop, np.min(np.where(cells, np.arange(S), S), axis=-1, initial=S)), stop


def hull_of(mask: masks.Mask, L: int, S: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The hull, written out."""
    found = mask.hull(L, S)
    assert found is not None
    first, stop = (np.broadcast_to(x, (*mask.lead, L)) for x in found)
    assert first.dtype == stop.dtype == np.int64
    assert np.all((first >= 0) & (first <= stop) & (stop <= S))
    return first, stop


@settings(max_examples=100)
@given(cases())
def test_no_key_that_is_seen_lies_outside(case: Case) -> None:
    if case.mask.hull(case.L, case.S) is not None:
        first, stop = hull_of(case.mask, case.L, case.S)
        keys = np.arange(case.S)
        inside = (keys >= first[..., None]) & (keys < stop[..., None])
        assert not np.any(case.mask.dense(case.L, case.S) & ~inside)


@settings(max_examples=60)
@given(cases(INTERVALS, pairs="|"))
def test_of_intervals_joined_it_is_from_the_first_seen_key_to_the_last(case: Case) -> None:
    first, stop = hull_of(case.mask, case.L, case.S)
    want_first, want_stop = ends(case.mask.dense(case.L, case.S))
    np.testing.assert_array_equal(stop - first, want_stop - want_first)
    np.testing.assert_array_equal(first[first < stop], want_first[first < stop])


@settings(max_examples=60)
@given(cases(INTERVALS, pairs="&"))
def test_of_intervals_it_is_the_interval(case: Case) -> None:
    for got, want in zip(hull_of(case.mask, case.L, case.S), case.mask.interval(case.L, case.S) or (), strict=True):
        np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))


def test_it_is_known_where_any_side_of_and_or_both_sides_of_or_give_one() -> None:
    known, unknown = masks.causal(), ~masks.causal()
    for mask in (unknown, unknown & unknown, known | unknown, unknown | known, masks.bernoulli(0.5, 0)):
        assert mask.hull(4, 4) is None
    for mask in (known & unknown, unknown & known, masks.tree([-1, 0, 0, 1])):
        np.testing.assert_array_equal(hull_of(mask, 4, 4), hull_of(known, 4, 4))


def test_that_of_documents_runs_from_their_first_key_that_is_seen_to_their_last() -> None:
    ids = [3, 1, 3, 1, -1, 3]
    free = masks.documents(ids)
    assert [x.tolist() for x in hull_of(free, 6, 6)] == [[0, 1, 0, 1, 0, 0], [6, 4, 6, 4, 0, 6]]
    # In documents of three and two tokens: causal as given, and of what has no hull the whole document.
    causal = masks.documents(ids, inside=masks.causal())
    assert [x.tolist() for x in hull_of(causal, 6, 6)] == [[0, 1, 0, 1, 0, 0], [1, 2, 3, 4, 0, 6]]
    for inside in (~masks.causal(), masks.from_function(lambda b, h, q, kv: q == kv)):
        np.testing.assert_array_equal(hull_of(masks.documents(ids, inside=inside), 6, 6), hull_of(free, 6, 6))


class Watched:
    """A function for a mask that keeps how far keys were from the queries asked with them, on either side."""

    def __init__(self) -> None:
        self.behind = self.before = -(10**9)

    def __call__(self, b: Any, h: Any, q: Any, kv: Any) -> Any:
        if q.size and kv.size:
            self.behind = max(self.behind, int(kv.max()) - int(q.max()))
            self.before = max(self.before, int(q.min()) - int(kv.min()))
        return (q + kv) % 3 > 0


@pytest.mark.parametrize("form", ["count", "csr", "blocks", "score"])
def test_no_form_evaluates_a_key_tile_outside(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "CELLS", 2**12)
    n, tile, left = 700, 16, 40
    want = masks.array((masks.window(left, 0) & masks.from_function(Watched())).dense(n, n))
    f = Watched()
    mask = masks.window(left, 0) & masks.from_function(f)
    if form == "count":
        assert mask.count(n, n) == want.count(n, n)
    elif form == "csr":
        assert (mask.csr(n, n) != want.csr(n, n)).nnz == 0
    elif form == "blocks":
        got = mask.blocks(n, n, tile, tile)
        np.testing.assert_array_equal(got.dense(n, n), want.dense(n, n))
    else:
        found = list(Score((n, n), 1.0, mask=mask).tiles(slice(96, 112), tile))
        assert found == [slice(k, k + tile) for k in range(48, 112, tile)]
    # A tile's last key may lie behind the diagonal, but not its first; so on the other side.
    cut = tile - 1 if form in ("blocks", "score") else 0
    assert 0 <= f.behind <= cut
    assert left <= f.before <= left + cut


def test_no_cell_is_evaluated_where_rows_are_intervals() -> None:
    class Interval(masks.Mask):
        def _interval(self, L: int, S: int) -> Any:
            return masks.window(4, 4).interval(L, S)

    assert list(Score((90, 90), 1.0, mask=Interval()).tiles(slice(30, 40), 8)) == [
        slice(k, min(k + 8, 44)) for k in range(24, 44, 8)
    ]


@settings(max_examples=40)
@given(cases(), st.sampled_from([1, 3, 16]), st.sampled_from([1, 5, 16]))
def test_the_ends_are_asked_for_once_a_score(case: Case, tile_q: int, tile_k: int) -> None:
    asked: list[str] = []

    class Spy(masks.Mask):
        lead = case.mask.lead

        def _tile(self, *args: Any, **kwargs: Any) -> Any:
            return case.mask._tile(*args, **kwargs)

        def _interval(self, L: int, S: int) -> Any:
            asked.append("interval")
            return case.mask._interval(L, S)

        def _hull(self, L: int, S: int) -> Any:
            asked.append("hull")
            return case.mask._hull(L, S)

    L, S = case.L, case.S
    score, seen = Score((L, S), 1.0, mask=Spy()), case.mask.dense(L, S)
    for i in tiles(L, tile_q):
        found = list(score.tiles(i, tile_k))
        outside = np.ones(S, bool)
        for part in found:
            outside[part] = False
        assert not seen[..., i, :][..., outside].any()
    assert sorted(asked) == ["hull", "interval"] * bool(L)
