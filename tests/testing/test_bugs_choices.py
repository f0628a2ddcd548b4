"""What bugs have a choice of: splits, tiles, rows, heads and formats, tried or read from what a kernel returned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn import masks
from refattn.testing import bugs
from refattn.testing.bugs.cuts import Cuts
from refattn.testing.bugs.engine import Head
from refattn.testing.diagnosis import fitting
from refattn.testing.diagnosis.fitting import Sample
from refattn.testing.verdict.judge import Part, compare
from tests.testing.formulas import (
    SCALE,
    B,
    E,
    G,
    H,
    K,
    L,
    Q,
    S,
    V,
    assert_same,
    maximum,
    of_bug,
    of_rule,
    right,
    stale_maximum,
    thirds,
    window_of,
)


@pytest.mark.parametrize(
    ("id", "words", "choice", "lse"),
    [
        ("F5", "", Cuts(3, 1, False), lambda b, h, i: thirds(b, h, i)[2][1]),
        ("F6", "the merged log-sum-exp is not written: that", Cuts(3, 1, False), lambda b, h, i: thirds(b, h, i)[0][1]),
        ("F8", "", 0.0, lambda b, h, i: 0.0),
        (
            "B14",
            "the log-sum-exp",
            "first row of tiles of 2 rows",
            lambda b, h, i: right(b, h, i)[1] - maximum(b, h, i) + stale_maximum(b, h, i),
        ),
    ],
)
def test_a_log_sum_exp_is_wrong_beside_a_right_output(
    id: str, words: str, choice: Any, lse: Callable[[int, int, int], float]
) -> None:
    got = of_bug(id, words, choice, splits=3, tile_k=9, tile_q=2)
    expected = of_rule(lambda b, h, i: (right(b, h, i)[0], lse(b, h, i)))
    assert_same(got[0], expected[0])
    assert_same(got[1], expected[1])


@pytest.mark.parametrize(("words", "merged"), [("the first head is", (0,)), ("odd heads are", (1, 3))])
def test_heads_that_are_not_merged_keep_one_split(words: str, merged: tuple[int, ...]) -> None:
    choice = f"{Cuts(3, 1, False)}; {words} merged, the others keep the last"
    got = of_bug("F7", "", choice, splits=3, tile_k=9)
    expected = of_rule(lambda b, h, i: right(b, h, i) if h in merged else thirds(b, h, i)[2])
    assert_same(got[0], expected[0])
    assert_same(got[1], expected[1])


@pytest.mark.parametrize(("count", "tile"), [(4, 16), (3, 1), (8, 64), (5, 32)])
def test_even_splits_differ_by_one_tile(count: int, tile: int) -> None:
    for keys in (1, 16, 129, 200):
        parts = np.array_split(np.arange(-(-keys // tile)), count)
        expected = [0, *(min(keys, tile * (1 + int(part[-1]))) if len(part) else keys for part in parts)]
        np.testing.assert_array_equal(Cuts(count, tile, True).edges(keys), expected)
        shorter = np.diff(Cuts(count, tile, False).edges(keys))
        assert shorter.sum() == keys
        assert (shorter[1:] <= shorter[:-1]).all()


def tile_starts(rows: int, keys: int, *, backward: bool) -> np.ndarray:
    """Rows of a window of two keys, in tiles, of which the first tile of keys that their tile visits has none."""
    found = np.zeros(L, bool)
    for i in range(L):
        first = i // rows * rows
        visited = [max(0, n + S - L - d) for n in range(first, min(first + rows, L)) for d in (0, 1)]
        tile = (max(visited) if backward else min(visited)) // keys
        found[i] = not {(i + S - L) // keys, max(0, i + S - L - 1) // keys} & {tile}
    return found


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_rows_whose_first_tile_is_masked_are_lost_by_tile(value: float, backward: bool) -> None:
    (bug,) = bugs.get("B5")
    p = bugs.problem(Q, K, V, scale=SCALE, mask=masks.window(1, 0, "lower_right"), tile_q=4, tile_k=3)
    lost = tile_starts(4, 3, backward=backward)
    assert 0 < lost.sum() < L
    output, lse = of_rule(window_of(-1, 0))
    output[:, :, lost] = value
    rows = [(b, h, np.arange(L)) for b in range(B) for h in range(H)]
    seen = bugs.Seen(rows, output.reshape(-1, E), lse.reshape(-1))
    found = {x.label: x.apply().output for x in bug.variants(p, seen)}
    assert "key tiles of 3" + " from the last one on" * backward + ", query tiles of 4" in found
    for got in found.values():
        assert_same(got, output)


@pytest.mark.parametrize(
    ("entries", "expected"), [((0.5,) * 8, ["0.5"]), ((0.5, 0.25) * 4, ["0.0", "nan"]), ((2.0,), [])]
)
def test_what_was_left_in_all_log_sum_exps_is_read(entries: tuple[float, ...], expected: list[str]) -> None:
    (bug,) = bugs.get("F8")
    seen = bugs.Seen([(0, 0, np.arange(L))], np.zeros((len(entries), E)), np.array(entries))
    assert [x.label for x in bug.variants(bugs.problem(Q, K, V), seen)] == expected


@pytest.mark.parametrize(("id", "words"), [("B12", "scores are"), ("B17", ""), ("B19", "")])
def test_a_rounding_that_a_kernel_tips_has_room(id: str, words: str) -> None:
    (bug,) = (bug for bug in bugs.get(id) if bug.name.startswith(words))
    unit, middle = 2.0**-20, 1 + 2.0**-8  # between 1 and the next number of bfloat16

    def rows(key: float, unit: float) -> Head:
        """Two keys, one a split, of which one has the score and the value `key`."""
        x = np.array([[key], [0.25]])[None, None]
        p = bugs.problem(np.ones((1, 1, 1, 1)), x, x, scale=1.0, splits=2, tile_k=1)
        variant = next(x for x in bug.variants(p) if "bfloat16" in x.label)
        return variant.of(Head(p, 0, 0, np.arange(1)), unit)

    below, above = rows(middle - unit / 2, unit), rows(middle + unit / 2, unit)
    apart = np.abs(below.output - above.output)
    assert (apart > 100 * unit).all()
    # The change of key and value makes a difference of its own.
    assert (apart <= below.room[0] + 2 * unit).all()
    assert (apart <= above.room[0] + 2 * unit).all()
    assert not rows(middle - 2.0**-10, unit).room[0].any()


@pytest.mark.parametrize(
    ("choice", "counted"), [("all keys alike", S), ("all keys and zeros up to whole tiles of 16 alike", 16)]
)
def test_a_row_without_keys_is_the_mean_of_all_values(choice: str, counted: int) -> None:
    keep = np.ones((L, S), bool)
    keep[2] = False
    output, _ = of_bug("B6", "", choice, mask=masks.array(keep), tile_k=16)
    assert_same(output[:, :, 2], np.repeat(V.sum(axis=2) / counted, G, axis=1))


def test_a_row_without_keys_keeps_weights_of_its_own() -> None:
    keep = np.ones((L, S), bool)
    keep[2] = False
    output, _ = of_bug("B6", "", "all keys by their weights", mask=masks.array(keep))
    assert_same(output, of_rule(right)[0])


def test_errors_within_the_bound_are_those_of_no_bug() -> None:
    p, rng = bugs.problem(Q, K, V, scale=SCALE), np.random.default_rng(0)
    parts = []
    for h in range(H):
        head = Head(p, 0, h, np.arange(L))
        bound = np.full(head.output.shape, 2.0**-8)
        got = head.output + bound * rng.uniform(-0.5, 0.5, bound.shape)
        parts.append(Part((0, h), head.rows, compare(got, head.output, bound, np.zeros(L, bool)), None))
    sample = Sample(p, tuple(parts), "normal", 2.0**-9, 2.0**-8, 2.0**-8, 2.0**-24)
    assert fitting.fits([sample]) == []
