"""There and back: every layout keeps every bit of every dtype on every library, and nothing of its padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refattn
from refattn import layouts
from tests.namespaces import COSTLY, NARROW, Library, library, numpy_dtype

DTYPES = ("float64", "float32", "float16", *NARROW, "int8", "int32", "int64", "uint8", "bool")
FLOATING = tuple(name for name in DTYPES if "float" in name)
NUMPY = library("numpy")


def patterns(shape: tuple[int, ...], name: str, seed: int = 0) -> np.ndarray:
    """Random bit patterns of a dtype, quiet and signalling NaN of all payloads among them."""
    rng, dtype = np.random.default_rng(seed), numpy_dtype(name)
    if name == "bool":
        return rng.integers(2, size=shape).astype(bool)
    return np.frombuffer(rng.bytes(math.prod(shape) * dtype.itemsize), dtype=dtype).reshape(shape)


def bits(x: np.ndarray) -> np.ndarray:
    """Each cell as its bytes."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def assert_same(got: Any, want: np.ndarray, lib: Library = NUMPY) -> None:
    """The same dtype and bits."""
    found = got if lib is NUMPY else refattn.to_numpy(got)
    assert found.dtype == want.dtype
    assert np.array_equal(bits(found), bits(want))


def blank(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A padded array (B, H, L, ...) whose padding is zero bits."""
    new = np.zeros_like(x)
    for b, n in enumerate(lengths):
        new[b, :, :n] = x[b, :, :n]
    return new


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A padded array (B, H, L, E), and the lengths of its sequences: none, empty ones, full ones."""
    B, H, L, E = draw(st.integers(0, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 9)), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(0, L), min_size=B, max_size=B))
    x = patterns((B, H, L, E), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    return x, np.array(lengths, dtype=np.int64)


@pytest.mark.parametrize("name", DTYPES)
def test_numpy_keeps_every_bit_of_every_dtype(name: str) -> None:
    there_and_back(NUMPY, name)


@pytest.mark.parametrize("lib", ["read-only numpy", "array_api_strict", "torch"])
def test_every_library_keeps_every_bit(lib: str) -> None:
    on = library(lib)
    for name in on.dtypes:
        there_and_back(on, name)


@pytest.mark.parametrize("lib", COSTLY)
def test_costly_libraries_keep_every_bit_of_some_dtypes(lib: str) -> None:
    for name in ("float32", "bfloat16", "int8"):
        there_and_back(library(lib), name)


def there_and_back(lib: Library, name: str) -> None:
    """Every pair of functions on one array."""
    x, lengths = patterns((3, 2, 5, 4), name), np.array([2, 0, 5])
    mine = refattn.from_numpy(x, library=lib.module)
    for order in ("bhld", "blhd", "lbhd"):
        assert_same(layouts.from_order(layouts.to_order(mine, order), order), x, lib)
    for back in layouts.unpack_qkv(layouts.pack_qkv(mine, mine, mine)):
        assert_same(back, x, lib)
    for back in layouts.unpack_kv(layouts.pack_kv(mine, mine)):
        assert_same(back, x, lib)
    packed, offsets = layouts.pack_ragged(mine, lengths)
    assert type(offsets) is type(packed) is type(lib.array(lengths))
    assert lib.values(offsets).dtype == np.int32
    assert_same(layouts.unpack_ragged(packed, offsets), blank(x, lengths), lib)
    table, pages = layouts.page_table(lengths, 2, seed=1, spare=1)
    for order in ("nhd", "hnd"):
        pool = layouts.pack_paged(mine, lengths, table, 2, order=order, pages=pages)
        assert_same(layouts.unpack_paged(pool, lib.array(table), lengths, order=order), blank(x, lengths), lib)
    padded, leftpad = layouts.pad_left(mine, lengths)
    assert_same(layouts.unpad_left(padded, leftpad), blank(x, lengths), lib)
    assert_same(layouts.poisoned(mine, fill=0), x, lib)
    assert_same(layouts.expanded(refattn.from_numpy(x[:1], library=lib.module), 0, 3), np.concatenate([x[:1]] * 3), lib)


def test_results_are_new_and_c_ordered() -> None:
    x = np.zeros((2, 3, 4, 5), np.float32)
    made = [
        layouts.to_order(x, "bhld"), layouts.to_order(x, "blhd"), layouts.from_order(x, "lbhd"),
        layouts.pack_qkv(x, x, x), *layouts.unpack_kv(x[:, 1:]), layouts.pack_ragged(x, [4, 4]).packed,
        layouts.pack_paged(x, [4, 4], [[0], [1]], 4, order="hnd"), layouts.pad_left(x, [4, 4]).padded,
    ]  # fmt: skip
    for y in made:
        assert y.flags.c_contiguous
        assert not np.shares_memory(x, y)


def test_orders_say_which_axis_is_which() -> None:
    x = np.arange(120).reshape(2, 3, 4, 5)
    assert np.array_equal(layouts.to_order(x, "blhd"), np.einsum("bhld->blhd", x))
    assert np.array_equal(layouts.to_order(x, "lbhd"), np.einsum("bhld->lbhd", x))
    assert np.array_equal(layouts.to_order(x[0], "blhd"), np.einsum("hld->lhd", x[0]))
    qkv = layouts.pack_qkv(x, x + 1000, x + 2000)
    assert np.array_equal(qkv[:, :, 1], layouts.to_order(x + 1000, "blhd"))
    assert np.array_equal(layouts.pack_kv(x, x + 1000)[:, :, 1], layouts.to_order(x + 1000, "blhd"))


@given(batches(), st.sampled_from(["thd", "th", "ht"]), st.data())
def test_ragged(batch: tuple[np.ndarray, np.ndarray], order: str, data: st.DataObject) -> None:
    x, lengths = batch
    x = x if order == "thd" else x[..., 0]
    extra = data.draw(st.lists(st.integers(0, 2), min_size=len(x), max_size=len(x)))
    room = lengths + np.array(extra, dtype=np.int64)
    packed, offsets = layouts.pack_ragged(x, lengths, order=order, capacity=room)
    assert np.array_equal(offsets, np.concatenate([[0], np.cumsum(room)]))
    tokens = packed.T if order == "ht" else packed
    assert tokens.shape == (offsets[-1], x.shape[1], *x.shape[3:])
    for b, n in enumerate(lengths):
        for i in range(n):
            assert_same(tokens[offsets[b] + i], x[b, :, i])
    assert_same(layouts.unpack_ragged(packed, offsets, used=lengths, order=order, length=x.shape[2]), blank(x, lengths))


@given(batches(), st.integers(1, 5), st.integers(0, 3), st.none() | st.integers(0, 9), st.sampled_from(["nhd", "hnd"]))
def test_paged(batch: tuple[np.ndarray, np.ndarray], page_size: int, spare: int, seed: int | None, order: str) -> None:
    x, lengths = batch
    table, pages = layouts.page_table(lengths, page_size, seed=seed, spare=spare)
    assert pages == sum(-(-n // page_size) for n in lengths) + spare
    pool = layouts.pack_paged(x, lengths, table, page_size, pages=pages, order=order)
    flat = pool if order == "nhd" else np.swapaxes(pool, 1, 2)
    assert flat.shape == (pages, page_size, x.shape[1], x.shape[3])
    for b, n in enumerate(lengths):
        for i in range(n):
            assert_same(flat[table[b, i // page_size], i % page_size], x[b, :, i])
    back = layouts.unpack_paged(pool, table, lengths, order=order, length=x.shape[2])
    assert_same(back, blank(x, lengths))


@given(batches())
def test_left_padding(batch: tuple[np.ndarray, np.ndarray]) -> None:
    x, lengths = batch
    padded, leftpad = layouts.pad_left(x, lengths)
    assert np.array_equal(leftpad, x.shape[2] - lengths)
    for b, n in enumerate(lengths):
        assert_same(padded[b, :, x.shape[2] - n :], x[b, :, :n])
    assert_same(layouts.unpad_left(padded, leftpad, length=x.shape[2]), blank(x, lengths))


@given(batches(), st.data())
def test_a_sequence_may_end_before_the_last_position(batch: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    x, stop = batch
    first = np.array([data.draw(st.integers(0, int(n))) for n in stop], dtype=np.int64)
    back = layouts.unpad_left(x, first, stop=stop)
    assert back.shape[2] == max(stop - first, default=0)
    for b, (i, j) in enumerate(zip(first, stop, strict=True)):
        assert_same(back[b, :, : j - i], x[b, :, i:j])


@given(st.lists(st.integers(0, 20), max_size=5), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_a_page_table_gives_each_page_once(lengths: list[int], page_size: int, spare: int, seed: int) -> None:
    table, pages = layouts.page_table(lengths, page_size, seed=seed, spare=spare)
    needed = [table[b, : -(-n // page_size)] for b, n in enumerate(lengths)]
    given_out = np.concatenate([*needed, np.zeros(0, np.int32)])
    assert len(set(given_out.tolist())) == len(given_out) == pages - spare
    assert set(given_out.tolist()) <= set(range(pages))
    beyond = {int(n) for b, row in enumerate(table) for n in row[len(needed[b]) :]}
    assert beyond.isdisjoint(given_out.tolist())
    assert all(0 <= n < pages for n in beyond) if spare else beyond <= {-1}
    assert table.dtype == np.int32


def test_a_seed_shuffles_pages_and_says_how() -> None:
    tables = [layouts.page_table([40, 40], 4, seed=seed).block_table.tolist() for seed in (None, 0, 0, 1)]
    assert tables[0] == np.arange(20).reshape(2, 10).tolist()
    assert tables[1] == tables[2]
    assert tables[1] != tables[3] != tables[0]
    assert layouts.page_table([1, 9], 4, beyond=77).block_table.tolist() == [[0, 77, 77], [1, 2, 3]]


def test_shared_pages_are_read_and_written_where_they_agree() -> None:
    x = patterns((2, 1, 6, 2), "float32")
    same = np.concatenate([x[:1], x[1:]])
    same[1, :, :4] = same[0, :, :4]
    table = [[0, 1], [0, 2]]
    pool = layouts.pack_paged(same, [6, 6], table, 4, shared=True)
    assert len(pool) == 3
    assert_same(layouts.unpack_paged(pool, table, [6, 6]), same)
    # A page that is full for one sequence may be the last, and not full, of another.
    pool = layouts.pack_paged(same, [6, 3], [[0, 1], [0, -1]], 4, shared=True)
    assert_same(layouts.unpack_paged(pool, [[0, 1], [0, -1]], [6, 3]), blank(same, np.array([6, 3])))


POISON: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "ragged": lambda x, n: layouts.unpack_ragged(*layouts.pack_ragged(x, n, capacity=n + 2, fill=np.nan), used=n),
    "paged": lambda x, n: layouts.unpack_paged(
        layouts.pack_paged(x, n, (t := layouts.page_table(n, 4, seed=0, spare=2)).block_table, 4, pages=t.pages,
                           fill=np.nan), t.block_table, n),
    "left": lambda x, n: layouts.unpad_left(*layouts.pad_left(x, n, fill=np.nan)),
    "margins": lambda x, n: layouts.poisoned(x),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATING)
@pytest.mark.parametrize("way", POISON)
def test_poison_never_reaches_the_logical_array(way: str, name: str) -> None:
    x = np.ones((4, 2, 9, 3)).astype(numpy_dtype(name))
    lengths = np.array([9, 1, 0, 5])
    assert not np.isnan(POISON[way](x, lengths).astype(np.float64)).any()


def test_poison_is_where_no_token_is() -> None:
    x, lengths = np.ones((3, 2, 9, 4), np.float32), np.array([5, 0, 9])
    packed, _ = layouts.pack_ragged(x, lengths, capacity=lengths + 1, fill=np.nan)
    assert np.isnan(packed).sum() == 3 * 2 * 4
    table, pages = layouts.page_table(lengths, 4, spare=2)
    pool = layouts.pack_paged(x, lengths, table, 4, pages=pages, fill=np.nan)
    assert np.isnan(pool).sum() == (pages * 4 - 14) * 2 * 4
    assert np.isnan(layouts.pad_left(x, lengths, fill=np.nan).padded).sum() == (27 - 14) * 2 * 4
    assert np.isnan(layouts.unpack_ragged(packed, [0, 6, 7, 17], used=lengths, fill=np.nan)).sum() == 13 * 2 * 4
    assert np.isnan(layouts.unpack_paged(pool, table, lengths, fill=np.nan)).sum() == 13 * 2 * 4


@pytest.mark.parametrize("lib", ["numpy", "torch"])
def test_margins_surround_a_view_and_repeats_have_no_stride(lib: str) -> None:
    on = library(lib)
    x = on.array(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    view = layouts.poisoned(x)
    strides = view.stride() if lib == "torch" else tuple(n // 4 for n in view.strides)
    assert strides == (5 * 4, 4, 1)
    assert [n // 4 for n in layouts.poisoned(np.zeros((2, 3), np.float32), margin=[1, 2]).strides] == [7, 1]
    whole = view.untyped_storage().tolist() if lib == "torch" else view.base
    assert len(np.ravel(whole)) == (4 * 5 * 4) * (4 if lib == "torch" else 1)
    if lib == "numpy":
        around = np.ones(view.base.shape, bool)
        around[1:-1, 1:-1] = False
        assert np.isnan(view.base[around]).all()
    row = layouts.expanded(x[:1], -3, 7)
    assert tuple(row.shape) == (7, 3, 4)
    assert (row.stride() if lib == "torch" else row.strides)[0] == 0
