"""Attention over a cache in parts: against exact attention of each sequence alone, however the cache is stored."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import layouts, masks
from refattn._core.arrays import array_namespace
from refattn.methods.flash import decode as decode_module
from refattn.methods.flash import reference
from tests import strategies as draws
from tests import tiny
from tests.agreement import assert_agree, rows_of
from tests.methods.test_flash import NOTHING, assert_is_attention, prepare
from tests.namespaces import Library, library, name_of
from tests.strategies import Choice, Problem

pytestmark = pytest.mark.usefixtures("poisoned_empty")

NUMPY = library("numpy")


def check(problem: Problem, lib: Library, splits: int | None, tile_k: int) -> None:
    """The plain form on tiles of so many keys, against the oracle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "tile_sizes", lambda call, q, k: (1, tile_k))
        got = problem.call(ra.flash_decode, lib, return_lse=True, splits=splits)
    rows = problem.rows()
    want = problem.answer(rows, tiles=max(1, -(-problem.lengths[1] // tile_k)) + (splits or 8) + 1)
    at = tuple(np.array(rows, dtype=int).reshape(-1, got.lse.ndim).T)
    assert (name_of(got.output.dtype), name_of(got.lse.dtype)) == (problem.out, "float64")
    for x, name, dtype in ((got.output, "output", problem.out), (got.lse, "lse", "float64")):
        wanted, radius = getattr(want, name), 2 * getattr(want, f"{name}_radius")
        assert_agree(lib.values(x)[at], wanted, radius, held=rows_of(want.held, wanted), dtype=dtype, what=name)


@given(data=st.data(), splits=st.none() | st.integers(1, 9), tile_k=st.sampled_from([1, 2, 15, 16, 64]))
@settings(max_examples=50)
def test_flash_decode_agrees_with_the_oracle(
    namespace: Library, data: st.DataObject, splits: int | None, tile_k: int
) -> None:
    dtypes = tuple(name for name in ("float64", "float32", "bfloat16", "int8") if name in namespace.dtypes)
    check(data.draw(draws.problems(dtypes, most=65)), namespace, splits, tile_k)


@given(problem=tiny.tiny_problems(), splits=st.integers(1, 6), tile_k=st.integers(1, 3))
@settings(max_examples=100)
def test_extreme_values_survive_the_merging_of_parts(problem: Problem, splits: int, tile_k: int) -> None:
    check(problem, NUMPY, splits, tile_k)


@given(problem=draws.problems(most=129), splits=st.sampled_from([1, 2, 3, 7, 8, 200]))
@settings(max_examples=40)
def test_the_number_of_parts_changes_nothing(problem: Problem, splits: int) -> None:
    problem = problem.but(to=None)
    got = problem.call(ra.flash_decode, NUMPY, return_lse=True, splits=splits)
    assert_is_attention(got, problem.arrays, **problem.arguments(NUMPY))


@pytest.mark.parametrize("sink", [-5.0, 0.0, 900.0])
@pytest.mark.parametrize("splits", [1, 3, 50])
def test_a_sink_counts_once_whatever_the_number_of_parts(splits: int, sink: float) -> None:
    n, one = 300, np.zeros((1, 300, 1))
    got = ra.flash_decode(one[:, :1], one, one + 1, sinks=np.array([sink]), splits=splits, return_lse=True)
    want = np.full((1, 1), np.logaddexp(math.log(n), sink))
    assert_agree(got.lse, want, 64 * 2.0**-53 * np.abs(want))
    assert_agree(got.output[..., 0], np.exp(math.log(n) - want), 1024 * 2.0**-53 * np.exp(math.log(n) - want))


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_parts_that_hold_no_key_and_rows_that_see_none(splits: int) -> None:
    # Keys are visible in the last part alone, or in none.
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 400, 4))
    mask = np.zeros((2, 400), bool)
    mask[0, -3:] = True
    got = ra.flash_decode(q[:, :2], k, v, mask=mask, splits=splits, return_lse=True)
    assert_is_attention(got, (q[:, :2], k, v), mask=mask)
    assert not got.output[0, 1].any()
    assert got.lse[0, 1] == -math.inf


# Caches.

USED = np.array([33, 0, 7, 64, 1])
B, HEADS, E, EV, PAGE = len(USED), (4, 2), 5, 3, 16


def stored(lengths: np.ndarray, how: str, lib: Library, seed: int = 0) -> tuple[list[Any], dict[str, Any], np.ndarray]:
    """Keys and values of sequences of so many tokens as a cache keeps them, NaN elsewhere; and padded, NaN too."""
    rng, S = np.random.default_rng(seed), int(lengths.max(initial=0)) + 2
    padded = [rng.standard_normal((len(lengths), HEADS[1], S, n)) for n in (E, EV)]
    for x in padded:
        for b, n in enumerate(lengths):
            x[b, :, n:] = math.nan
    tables: dict[str, Any]
    match how:
        case "padded":
            found, tables = padded, {"seqused_k": lengths}
        case "packed":
            packed = [layouts.pack_ragged(x, lengths) for x in padded]
            found, tables = [x.packed for x in packed], {"cu_seqlens_k": packed[0].cu_seqlens}
        case "packed with room":
            packed = [layouts.pack_ragged(x, lengths, capacity=lengths + 3, fill=math.nan) for x in padded]
            found = [x.packed for x in packed]
            tables = {"cu_seqlens_k": packed[0].cu_seqlens, "seqused_k": lengths}
        case _:
            order = how.removeprefix("pages ")
            table, pages = layouts.page_table(lengths, PAGE, seed=seed, spare=2, beyond=10**6)
            found = [
                layouts.pack_paged(x, lengths, table, PAGE, order=order, pages=pages, fill=math.nan) for x in padded
            ]
            tables = {"block_table": table, "seqused_k": lengths, "pages": order}
    return [lib.array(np.ascontiguousarray(x)) for x in found], tables, padded


STORED = ("padded", "packed", "packed with room", "pages nhd", "pages hnd")
RNG = np.random.default_rng(7)
S_MAX = int(USED.max())
ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"mask": masks.causal(anchor="lower_right")},
    "window": {"mask": masks.window(9, 0, anchor="lower_right") & ~masks.window(2, -0, anchor="lower_right")},
    "lengths": {"mask": masks.lengths(USED)},
    "of heads": {"mask": masks.from_function(lambda b, h, q, kv: (kv + q + h + b) % 3 > 0, batch=B, heads=4)},
    "alibi": {"bias": ra.biases.alibi(4, anchor="lower_right"), "softcap": 2.0},
    "alibi of each": {"bias": ra.biases.alibi(RNG.random((B, 4)), anchor="lower_right")},
    "arrays": {
        "mask": RNG.random((B, 1, 3, S_MAX)) < 0.7,
        "bias": np.where(RNG.random((4, 3, S_MAX)) < 0.1, -math.inf, RNG.standard_normal((4, 3, S_MAX))),
        "sinks": np.array([0.5, -math.inf, 2.0, -1.0]),
    },
    "broadcast": {"mask": RNG.random((B, 4, 1, S_MAX)) < 0.7, "bias": RNG.standard_normal((B, 1, 3, 1))},
    "dropout": {"dropout_mask": masks.bernoulli(0.7, 3, batch=B, heads=4), "dropout_p": 0.3, "scale": 0.7},
}


def of_sequence(x: Any, b: int, n: int) -> Any:
    """The part of an argument that belongs to one sequence, by NumPy or the mask's own answer."""
    if isinstance(x, masks.Mask):
        lead = x.lead
        if lead and len(lead) > 1 and lead[0] > 1:
            cells = [np.broadcast_to(x.at((b, h)).dense(3, n), (3, n)) for h in range(4)]
            return np.stack(cells)
        return x
    if isinstance(x, ra.biases.Bias):
        i, j = slice(0, 3), slice(0, n)
        return np.stack([np.broadcast_to(x.at((b, h)).tile(i, j, 3, n, xp=np), (3, n)) for h in range(4)])
    if isinstance(x, np.ndarray) and x.ndim > 1:
        x = x[b] if x.ndim == 4 else x
        return x if x.shape[-1] == 1 else x[..., :n]
    return x


def assert_sequences(got: Any, query: np.ndarray, padded: Any, lib: Library, arguments: dict[str, Any]) -> None:
    """Each sequence of a result is exact attention of it alone."""
    for b, n in enumerate(USED.tolist()):
        own = {name: of_sequence(x, b, n) for name, x in arguments.items()}
        arrays = (query[b], padded[0][b, :, :n], padded[1][b, :, :n])
        part = ra.AttentionResult(lib.values(got.output)[b], lib.values(got.lse)[b])
        assert_is_attention(part, arrays, min_tile=6, **own)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("how", STORED)
def test_a_cache_s_sequences_are_problems_of_their_own(
    monkeypatch: pytest.MonkeyPatch, namespace: Library, how: str, name: str
) -> None:
    monkeypatch.setattr(decode_module, "tile_sizes", lambda call, q, k: (1, 6))  # no multiple of pages, nor part of one
    query = np.random.default_rng(1).standard_normal((B, HEADS[0], 3, E))
    (key, value), tables, padded = stored(USED, how, namespace)
    arguments = ARGUMENTS[name]
    given = {n: namespace.array(x) if isinstance(x, np.ndarray) else x for n, x in arguments.items()}
    got = ra.flash_decode(namespace.array(query), key, value, **tables, **given, return_lse=True, splits=3)
    assert_sequences(got, query, padded, namespace, arguments)


@pytest.mark.parametrize("how", ["pages nhd", "pages hnd"])
def test_the_order_of_pages_changes_nothing(how: str) -> None:
    query = np.random.default_rng(1).standard_normal((B, HEADS[0], 1, E))
    (key, value), tables, padded = stored(USED, how, NUMPY)
    want = ra.flash_decode(query, key, value, **tables, return_lse=True)
    axis_pages, table = np.random.default_rng(2).permutation(len(key)), tables["block_table"]
    moved = np.where(table < len(key), np.argsort(axis_pages)[np.minimum(table, len(key) - 1)], table)
    got = ra.flash_decode(query, key[axis_pages], value[axis_pages], **tables | {"block_table": moved}, return_lse=True)
    for x, y in zip(got[:2], want[:2], strict=True):
        np.testing.assert_array_equal(x, y)
    assert_sequences(got, query, padded, NUMPY, {})


def test_sequences_may_share_pages() -> None:
    query = np.random.default_rng(1).standard_normal((2, 1, 1, 2))
    pool = np.random.default_rng(2).standard_normal((3, 4, 1, 2))
    got = ra.flash_decode(query, pool, pool, block_table=[[2, 0], [2, 1]], seqused_k=[6, 8])
    for b, pages in enumerate(([2, 0], [2, 1])):
        whole = np.swapaxes(pool[pages].reshape(8, 1, 2), 0, 1)[:, : (6, 8)[b]]
        want = ra.attention(query[b], whole, whole)
        assert_agree(got[b], want, np.full(want.shape, 64 * 2.0**-53 * np.abs(whole).max()))


@pytest.mark.parametrize("how", STORED)
def test_no_sequence(namespace: Library, how: str) -> None:
    (key, value), tables, _ = stored(np.zeros(0, int), how, namespace)
    query = namespace.array(np.zeros((0, HEADS[0], 3, E), np.float32))
    got = ra.flash_decode(query, key, value, **tables, return_lse=True, sinks=namespace.array(np.zeros(4)))
    assert (tuple(got.output.shape), tuple(got.lse.shape)) == ((0, 4, 3, EV), (0, 4, 3))
    assert (name_of(got.output.dtype), name_of(got.lse.dtype)) == ("float32", "float64")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("how", STORED)
def test_caches_of_narrow_formats(namespace: Library, how: str, dtype: str) -> None:
    if dtype not in namespace.dtypes:
        pytest.skip(f"{namespace.name} has no {dtype}")
    query = np.random.default_rng(1).standard_normal((B, HEADS[0], 3, E))
    arrays, tables, padded = stored(USED, how, NUMPY)
    with np.errstate(invalid="ignore"):
        narrow = [draws.cast(np.nan_to_num(x), dtype) for x in (*arrays, *padded)]
    got = ra.flash_decode(namespace.array(query), *map(namespace.array, narrow[:2]), **tables, return_lse=True)
    assert_sequences(got, query, [x.astype(float) for x in narrow[2:]], namespace, {})


def test_a_long_cache_in_pages_is_read_a_tile_at_a_time() -> None:
    # In float64 the keys alone would take 32 MiB.
    n, page = 2**16, 64
    pool = np.zeros((n // page, page, 1, 64), np.float16)
    query = np.zeros((1, 8, 1, 64))
    given: dict[str, Any] = {"block_table": np.arange(n // page)[None], "seqused_k": [n]}
    ra.flash_decode(query, pool[:1], pool[:1], block_table=[[0]], seqused_k=[3])
    tracemalloc.start()
    try:
        ra.flash_decode(query, pool, pool, **given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    call = prepare("test", query, np.zeros((1, 1, n, 64)), np.zeros((1, 1, n, 64)), **NOTHING)
    _, tile_k = decode_module.tile_sizes(call, None, None)
    assert peak < 4 * 8 * tile_k * (2 * 64 + 8)


@pytest.mark.parametrize(("splits", "parts"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (99, 5)])
def test_parts_are_whole_tiles_in_order(monkeypatch: pytest.MonkeyPatch, splits: int, parts: int) -> None:
    # 10 keys in tiles of 2: each is read once, and no more parts are made than asked for.
    seen: list[slice] = []
    made: list[int] = []

    class Noted(np.ndarray):
        def __getitem__(self, item: Any) -> Any:
            if isinstance(item, tuple) and isinstance(item[1], slice):
                seen.append(item[1])
            return super().__getitem__(item)

    normalised = reference.normalised
    monkeypatch.setattr(reference, "normalised", lambda *x, **more: made.append(len(seen)) or normalised(*x, **more))
    k = np.zeros((10, 1)).view(Noted)
    call = prepare("test", *[np.zeros((1, n, 1)) for n in (1, 10, 10)], **NOTHING)
    xp = array_namespace("test", query=call.query)
    reference.flash_decode(np.zeros((1, 1)), k, np.zeros((10, 1)), score=call.score, splits=splits, tile_k=2, xp=xp)
    assert seen == [slice(n, n + 2) for n in range(0, 10, 2)]
    assert len(made) == parts


def test_masks_hold_inside_each_sequence_and_not_in_the_padded_batch() -> None:
    # Anchored at the longest sequence's end, the new token of the short one would see all 10 of its keys.
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 1, 10, 2))
    mask = Choice("window", masks.window(2, 0, anchor="lower_right"))
    got = ra.flash_decode(q[:, :, :1], k, v, seqused_k=[10, 4], mask=mask.given)
    want = ra.attention(q[1, :, :1], k[1, :, 1:4], v[1, :, 1:4])
    assert_agree(got[1], want, np.full(want.shape, 64 * 2.0**-53 * np.abs(v[1]).max()))
