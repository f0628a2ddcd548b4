"""Biases that are rules: every tile against a written-out definition, batches of offsets, laziness, T5's buckets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import biases
from refattn.methods.exact import rows as rows_module
from tests import bias_rules
from tests import strategies as draws
from tests.namespaces import Library

FAR = 2**52
MADE = {
    "alibi": lambda **more: biases.alibi(2, **more),
    "relative": lambda **more: biases.relative(np.array([-1.0, 0.0, 1.0]), **more),
}


@st.composite
def cuts(draw: st.DrawFn, n: int) -> Any:
    """Some positions among n: a slice, or positions in any order."""
    if draw(st.booleans()):
        start = draw(st.integers(0, n))
        return slice(start, draw(st.integers(start, n)))
    return np.array(draw(st.lists(st.integers(0, n - 1), max_size=5)) if n else [], dtype=np.int64)


@pytest.mark.parametrize("kind", bias_rules.KINDS)
def test_a_tile_is_its_definition_cell_by_cell(kind: str, namespace: Library) -> None:
    xp = ra._core.arrays.array_namespace("test", x=namespace.array(np.zeros(1)))

    @given(data=st.data())
    @settings(max_examples=25)
    def holds(data: st.DataObject) -> None:
        L, S, H = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)), data.draw(st.integers(1, 3))
        batch = data.draw(draws.batches(2))
        anchor, offset = data.draw(draws.anchors(batch, L, S, far=FAR))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
        _, bias, rule = bias_rules.made(kind, rng, batch, H, anchor, offset)
        bias.check("test", L, S)
        i, j = data.draw(cuts(L)), data.draw(cuts(S))
        rows, keys = np.arange(L)[i], np.arange(S)[j]
        shape = (*batch, H, len(rows), len(keys))
        want = np.array([rule(at[:-2], rows[at[-2]], keys[at[-1]]) for at in np.ndindex(shape)]).reshape(shape)
        tile = bias.tile(i, j, L, S, xp=xp)
        got = namespace.values(tile)
        assert got.dtype == np.float64
        assert kind == "from_function" or got.shape == (*bias.lead, *shape[-2:])
        np.testing.assert_array_equal(np.broadcast_to(got, shape), want)
        np.testing.assert_array_equal(np.broadcast_shapes((*bias.lead, 1, 1), shape), shape)
        for index in np.ndindex(*batch, H):
            own = bias.at(index)
            assert own.lead == ()
            mine = namespace.values(own.tile(i, j, L, S, xp=xp))
            np.testing.assert_array_equal(np.broadcast_to(mine, shape[-2:]), want[index])

    holds()


@pytest.mark.parametrize("kind", bias_rules.KINDS)
def test_every_library_adds_the_same_numbers(kind: str, every: Library) -> None:
    problem = draws.Problem(batch=(2,), heads=(2, 1), lengths=(3, 4), features=(2, 2))
    _, bias, rule = bias_rules.made(kind, np.random.default_rng(3), (2,), 2, np.array([0, 1]), lambda b: b[0])
    q, k, _ = map(every.array, problem.arrays)
    biased = ra.attention_scores(q, k, bias=bias)
    added = np.array([rule(at[:2], *at[2:]) for at in np.ndindex(2, 2, 3, 4)]).reshape(2, 2, 3, 4)
    plain = every.values(ra.attention_scores(q, k))
    np.testing.assert_array_equal(every.values(biased), plain + added)


@pytest.mark.parametrize("name", MADE)
def test_no_anchor_is_either_corner_where_they_agree_and_refused_elsewhere(name: str) -> None:
    make = MADE[name]
    square = slice(0, 4), slice(0, 4), 4, 4
    for anchor in ("lower_right", "upper_left"):
        np.testing.assert_array_equal(make().tile(*square, xp=np), make(anchor=anchor).tile(*square, xp=np))
    with pytest.raises(ValueError, match="is ambiguous for L=3, S=4"):
        make().check("attention", 3, 4)


@pytest.mark.parametrize("name", MADE)
def test_a_batch_of_offsets_is_each_entry_alone(name: str) -> None:
    # A padded cache: each entry's last query stands on its own last key.
    offsets = np.array([0, 3])
    q, k, v = draws.Problem(batch=(2,), heads=(2, 1), lengths=(2, 5), features=(3, 2)).arrays
    both = ra.attention(q, k, v, bias=MADE[name](anchor=offsets))
    for b in range(2):
        own = ra.attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], bias=MADE[name](anchor=int(offsets[b])))
        np.testing.assert_array_equal(both[b : b + 1], own)


def test_alibi_is_a_relative_bias_whose_table_is_long_enough() -> None:
    slopes, R = bias_rules.alibi_slopes(4), 12
    table = -slopes[:, None] * np.abs(np.arange(-R, R + 1))
    where = (slice(0, 5), slice(0, 8), 5, 8)
    np.testing.assert_array_equal(
        biases.relative(table, anchor=2).tile(*where, xp=np), biases.alibi(4, anchor=2).tile(*where, xp=np)
    )


def test_what_is_made_from_an_array_keeps_its_own_copy() -> None:
    table, offsets = np.array([1.0, 2.0, 3.0]), np.array([0, 1])
    bias = biases.relative(table, anchor=offsets)
    before = bias.tile(slice(0, 2), slice(0, 2), 2, 2, xp=np).copy()
    table[:], offsets[:] = 7.0, 7
    np.testing.assert_array_equal(bias.tile(slice(0, 2), slice(0, 2), 2, 2, xp=np), before)


class TestFromFunction:
    """The function is asked for one tile at a time, with int64 positions that broadcast."""

    def test_it_gets_int64_arrays_that_broadcast(self) -> None:
        seen = []

        def f(*where: Any) -> Any:
            seen.append(where)
            return sum(where)

        bias = biases.from_function(f, batch=2, heads=3)
        tile = bias.tile(slice(1, 3), np.array([0, 4, 2]), 5, 6, xp=np)
        assert [(x.dtype.name, x.shape) for x in seen[0]] == [
            ("int64", (2, 1, 1, 1)), ("int64", (3, 1, 1)), ("int64", (2, 1)), ("int64", (1, 3))
        ]  # fmt: skip
        assert len(seen) == 1
        assert tile.shape == (2, 3, 2, 3)

    def test_it_is_never_asked_for_more_than_a_tile(self) -> None:
        n = 2 * rows_module.TILE_KEYS + 5
        sizes = []

        def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
            sizes.append(np.broadcast(b, h, q, kv).size)
            return 0.0 * (q - kv)

        x = np.zeros((1, n, 1), dtype=np.float32)
        ra.attention_rows(x, x, x, rows=[(0, 0), (0, n - 1)], bias=biases.from_function(f))
        assert sum(sizes) == 2 * n
        assert max(sizes) <= 2 * rows_module.TILE_KEYS

    def test_tiles_that_the_mask_hides_are_not_asked_for(self) -> None:
        n = 3 * rows_module.TILE_KEYS
        first = []

        def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
            first.append(int(kv.min()))
            return 0.0

        x = np.zeros((1, n, 1), dtype=np.float32)
        more = {"bias": biases.from_function(f), "mask": ra.masks.window(1, 1)}
        ra.attention_rows(x, x, x, rows=[(0, n - 1)], **more)
        assert first == [2 * rows_module.TILE_KEYS]

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8"])
    def test_it_may_return_an_array_of_any_library(self, namespace: Library, dtype: str) -> None:
        if dtype not in (*namespace.dtypes, "int64", "uint8"):
            pytest.skip(f"{namespace.name} has no {dtype}")
        numbers = draws.numpy_dtype(dtype).type(3)
        bias = biases.from_function(lambda b, h, q, kv: namespace.array(np.full((2, 3), numbers)))
        np.testing.assert_array_equal(bias.tile(slice(0, 2), slice(0, 3), 2, 3, xp=np), np.full((2, 3), 3.0))

    @pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.int8(2)])
    def test_it_may_return_one_number(self, number: Any) -> None:
        bias = biases.from_function(lambda b, h, q, kv: number)
        assert bias.tile(slice(0, 2), slice(0, 3), 2, 3, xp=np).tolist() == [[2.0]]
        assert ra.attention(*np.zeros((3, 1, 2, 1)), bias=bias, return_lse=True).lse.tolist() == [
            [2.0 + math.log(2)] * 2
        ]

    def test_it_may_look_into_the_table_of_another_library(self) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        table = torch.arange(64.0, requires_grad=True).reshape(32, 2)
        bias = biases.from_function(
            lambda b, h, q, kv: table[biases.t5_buckets(kv - q, bidirectional=True), h], heads=2
        )
        got = bias.tile(slice(0, 3), slice(0, 4), 3, 4, xp=np)
        want = [[[2 * t5(j - i, True, 32, 128) + h for j in range(4)] for i in range(3)] for h in range(2)]
        np.testing.assert_array_equal(got, want)


def t5(distance: int, both: bool, buckets: int, farthest: int) -> int:
    """Bucket of one distance: T5's formula as its code has it, the logarithm taken in float32."""
    first, n = 0, -distance
    if both:
        buckets //= 2
        first, n = (buckets if n < 0 else 0), abs(n)
    n, exact = max(n, 0), buckets // 2
    if n < exact:
        return first + n
    share = np.log(np.float32(n) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    return first + min(exact + int(share * np.float32(buckets - exact)), buckets - 1)


class TestT5Buckets:
    """T5's own numbers, though its logarithms are replaced by integers."""

    # T5 and its kin; LongT5; WavLM; MPNet's 32 of 128 are T5's; small and odd ones.
    @pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (64, 256), (320, 800), (8, 16), (12, 20), (33, 99)])
    @pytest.mark.parametrize("both", [True, False])
    def test_every_distance_has_the_bucket_that_t5_gives_it(self, both: bool, buckets: int, farthest: int) -> None:
        distance = np.arange(-farthest - 40, farthest + 41)
        found = biases.t5_buckets(distance, bidirectional=both, num_buckets=buckets, max_distance=farthest)
        assert found.tolist() == [t5(int(n), both, buckets, farthest) for n in distance]

    @given(both=st.booleans(), buckets=st.integers(4, 70), more=st.integers(1, 300))
    @settings(max_examples=30)
    def test_buckets_follow_the_distance(self, both: bool, buckets: int, more: int) -> None:
        # One more than the last bucket of its own.
        farthest = (buckets // 2 if both else buckets) // 2 + more
        behind = biases.t5_buckets(
            -np.arange(2 * farthest), bidirectional=both, num_buckets=buckets, max_distance=farthest
        )
        side = buckets // 2 if both else buckets
        assert (np.diff(behind) >= 0).all()
        assert behind[: side // 2].tolist() == list(range(side // 2))
        assert (behind[farthest:] == side - 1).all()
        ahead = biases.t5_buckets(
            np.arange(1, 2 * farthest), bidirectional=both, num_buckets=buckets, max_distance=farthest
        )
        np.testing.assert_array_equal(ahead, behind[1:] + side if both else 0)

    def test_any_shape_and_library(self, namespace: Library) -> None:
        distance = np.array([[-3, 0], [5, 200]])
        found = biases.t5_buckets(namespace.array(distance), bidirectional=True)
        assert (found.dtype.name, found.tolist()) == ("int64", [[3, 0], [21, 31]])
        assert biases.t5_buckets(-200, bidirectional=False).tolist() == 31
