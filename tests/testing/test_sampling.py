"""Which rows are checked: all while that is cheap, else a sample that covers heads, edges and the mask's turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import masks
from refattn._call import Call, prepare
from refattn.testing import check
from refattn.testing.verdict import sampling
from tests.testing.kernels import drawn, normal


def call_of(batch: int, H: int, L: int, S: int, mask: masks.Mask | None = None) -> Call:
    """A call whose arrays take no memory."""
    q, k = (np.broadcast_to(np.float32(0), (batch, H, n, 4)) for n in (L, S))
    arguments = dict.fromkeys(["bias", "scale", "softcap", "sinks"])
    return prepare("check", q, k, k, mask=mask, is_causal=False, dtype="float64", **arguments)


@given(
    batch=st.integers(1, 9),
    heads=st.integers(1, 9),
    length=st.integers(1, 3000),
    wanted=st.integers(1, 5000),
)
@settings(max_examples=100)
def test_a_sample_is_of_its_size_without_repetition_and_over_all_heads(
    batch: int, heads: int, length: int, wanted: int
) -> None:
    rows = sampling.choose_rows("check", call_of(batch, heads, length, 8), wanted)
    assert rows.total == batch * heads * length
    assert rows.checked == sum(len(positions) for _, positions in rows.slabs) == min(wanted, rows.total)
    for index, positions in rows.slabs:
        assert all(0 <= x < n for x, n in zip(index, (batch, heads), strict=True))
        assert np.all(np.diff(positions) > 0)
        assert len(positions) == 0 or 0 <= positions[0] <= positions[-1] < length
    assert len({index[1] for index, _ in rows.slabs}) == min(heads, wanted)
    assert sorted(index for index, _ in rows.slabs) == [index for index, _ in rows.slabs]


def test_a_sample_looks_at_first_and_last_rows_and_both_sides_of_tile_edges() -> None:
    rows = sampling.choose_rows("check", call_of(4, 32, 4096, 4096), 4096)
    seen = set(np.concatenate([positions for _, positions in rows.slabs]).tolist())
    assert seen >= {0, 1, 4094, 4095, *(n for tile in (16, 32, 64, 128, 256) for n in (tile - 1, tile))}
    assert seen >= {4096 - tile - side for tile in (16, 32, 64, 128, 256) for side in (0, 1)}
    # The rest is spread over the whole length.
    assert np.histogram(sorted(seen), bins=16, range=(0, 4096))[0].min() > 64


def test_a_sample_looks_at_the_turns_of_a_mask() -> None:
    lengths = masks.lengths([900, 700], query=[1901, 37])
    rows = sampling.choose_rows("check", call_of(2, 8, 2000, 1000, lengths), 800)
    for batch, turn in ((0, 1901), (1, 37)):
        of_entry = [positions for index, positions in rows.slabs if index[0] == batch]
        assert {turn - 1, turn} <= set(np.concatenate(of_entry).tolist())


def test_a_sample_is_the_same_every_time() -> None:
    one, two = (sampling.choose_rows("check", call_of(2, 8, 2000, 8), 300) for _ in range(2))
    for (a, x), (b, y) in zip(one.slabs, two.slabs, strict=True):
        assert a == b
        assert x.tolist() == y.tolist()


def test_all_rows_are_checked_up_to_the_work_that_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = drawn()
    output = ra.attention(*arrays)
    monkeypatch.setattr(sampling, "SAMPLE", 100)
    monkeypatch.setattr(sampling, "MOST_WORK", sampling.work(320, 70, 16, 16))
    assert check(output, *arrays).rows_checked == 320
    monkeypatch.setattr(sampling, "MOST_WORK", math.nextafter(sampling.work(320, 70, 16, 16), 0))
    verdict = check(output, *arrays)
    assert verdict.text.startswith("right: 100 of 320 rows are within the bound")
    assert (verdict.rows_checked, verdict.rows) == (100, 320)


def test_the_work_of_all_rows_at_the_sampled_size_is_above_what_is_checked_whole() -> None:
    assert sampling.work(4 * 32 * 4096, 4096, 128, 128) > sampling.MOST_WORK
    assert sampling.MOST_WORK == 2e11
    assert sampling.SAMPLE == 4096


def test_chosen_rows_are_judged_and_no_others() -> None:
    arrays = drawn()
    output = ra.attention(*arrays)
    output[0, 1, 9] += 1
    assert check(output, *arrays, rows=[(0, 1, 8), (1, 3, 39), (0, 1, 8)]).rows_checked == 2
    assert check(output, *arrays, rows=[(0, 1, 8), (1, 3, 39)]).passed
    verdict = check(output, *arrays, rows=[(0, 1, 8), (0, 1, 9)])
    assert verdict.wrong_rows.tolist() == [[0, 1, 9]]


@pytest.mark.slow
def test_a_large_tensor_is_sampled_within_a_gibibyte() -> None:
    import tracemalloc

    shape = (4, 32, 4096, 128)
    q, k, v = (np.empty(shape, dtype=np.float16) for _ in range(3))
    for seed, x in enumerate((q, k, v)):
        for entry in range(4):
            x[entry] = normal(shape[1:], "float16", 4 * seed + entry)
    tracemalloc.start()
    verdict = check(np.broadcast_to(np.float16(0), shape), q, k, v)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert verdict.text.startswith("WRONG: 4,096 wrong among 4,096 of 524,288 rows")
    assert {tuple(row) for row in verdict.wrong_rows[:, :2].tolist()} == set(np.ndindex(4, 32))
    assert peak < 2**30


def test_keys_that_are_not_held_are_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = drawn()
    output = ra.attention(q, np.delete(k, 69, axis=-2), np.delete(v, 69, axis=-2))
    held = check(output, q, k, v)
    monkeypatch.setattr("refattn.testing.verdict.judge.HELD", 0)
    assert check(output, q, k, v).text == held.text
    assert held.symptoms == ("key 69 takes no part (fits all 32 wrong rows tried)",)
