"""Attention of packed, paged and padded operands is attention of each sequence by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refattn as ra
from refattn import layouts, masks
from refattn._call import prepare
from refattn.contract import flash
from refattn.oracle.operands import Operand
from refattn.testing.verdict.judge import Operands, Terms, right_values
from refattn.testing.verdict.sequences import NOTHING

H, HK, E, EV = 2, 1, 3, 2
LOWER = masks.causal("lower_right")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Arrays, np.ndarray, np.ndarray]:
    """Padded operands whose padding is NaN, and the lengths of their queries and keys, 0 among them."""
    B = draw(st.integers(1, 3))
    l, s = (np.array(draw(st.lists(st.integers(0, 6), min_size=B, max_size=B))) for _ in range(2))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    arrays = tuple(
        rng.standard_normal((B, heads, max(1, n.max()), features))
        for heads, n, features in ((H, l, E), (HK, s, E), (HK, s, EV))
    )
    for x, n in zip(arrays, (l, s, s), strict=True):
        x[np.broadcast_to((np.arange(x.shape[2]) >= n[:, None])[:, None, :, None], x.shape)] = np.nan
    return arrays, l, s


def one_by_one(arrays: Arrays, l: np.ndarray, s: np.ndarray, mask: masks.Mask) -> list[tuple[Any, np.ndarray]]:
    """Result of each sequence by itself, and how far another evaluation of it in float64 may lie apart."""
    found = []
    for b, (n, m) in enumerate(zip(l, s, strict=True)):
        q, k, v = (x[b : b + 1, :, :i] for x, i in zip(arrays, (n, m, m), strict=True))
        result = ra.attention(q, k, v, mask=mask, return_lse=True)
        found.append((result, bound(q, k, v, mask)))
    return found


def bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: masks.Mask) -> np.ndarray:
    """The proven bound (H, L, Ev) of float64 arithmetic, twice: both results have an error."""
    call = prepare("test", q, k, v, dtype="float64", **{**NOTHING, "mask": mask})
    terms = Terms(flash("float64"), ra.attention.capabilities.bound)
    slabs = [call.slab((0, h)) for h in range(H)]
    rows = np.arange(q.shape[2])
    return np.stack(
        [
            2 * right_values(Operands(x.query[...], *map(Operand, (x.key, x.value)), x.score), rows, terms).output_bound
            for x in slabs
        ]
    )


def assert_each(padded: np.ndarray, lse: np.ndarray, wanted: list[tuple[Any, np.ndarray]], l: np.ndarray) -> None:
    """A padded result (B, H, L, Ev) holds those of the sequences; queries that are padding give zeros."""
    for b, (result, radius) in enumerate(wanted):
        got = padded[b, :, : l[b]]
        assert np.all(np.abs(got - result.output[0]) <= radius)
        assert np.array_equal(np.isneginf(lse[b, :, : l[b]]), np.isneginf(result.lse[0]))


@given(batches(), st.sampled_from([LOWER, masks.window(2, 1, "lower_right"), masks.causal("upper_left")]))
def test_packed_is_padded_is_one_by_one(batch: tuple[Arrays, np.ndarray, np.ndarray], mask: masks.Mask) -> None:
    arrays, l, s = batch
    wanted = one_by_one(arrays, l, s, mask)

    # One flattened stream with documents, whose inner anchors are the documents' own.
    (q, cu_q), (k, _), (v, _) = (layouts.pack_ragged(x, n) for x, n in zip(arrays, (l, s, s), strict=True))
    of_query, of_key = np.repeat(np.arange(len(l)), l), np.repeat(np.arange(len(s)), s)
    stream = masks.documents(of_key, of_query, inside=mask)
    flat = ra.attention(*(layouts.to_order(x, "blhd") for x in (q, k, v)), mask=stream, return_lse=True)
    padded = layouts.unpack_ragged(layouts.to_order(flat.output, "blhd"), cu_q, length=arrays[0].shape[2])
    lse = layouts.unpack_ragged(flat.lse, cu_q, order="ht", length=arrays[0].shape[2])
    assert_each(padded, lse, wanted, l)

    # Padded arrays, whose mask has an offset for each sequence.
    offset = np.zeros_like(l) if "upper_left" in repr(mask) else s - l
    q, k, v = (np.nan_to_num(x) for x in arrays)
    both = mask.reanchored(offset) & masks.lengths(s, l)
    result = ra.attention(q, k, v, mask=both, return_lse=True)
    assert_each(result.output, result.lse, wanted, l)


@given(batches(), st.integers(1, 3), st.integers(0, 99))
def test_paged_is_one_by_one(batch: tuple[Arrays, np.ndarray, np.ndarray], page_size: int, seed: int) -> None:
    arrays, l, s = batch
    table, pages = layouts.page_table(s, page_size, seed=seed, spare=1)
    pools = [layouts.pack_paged(x, s, table, page_size, pages=pages, fill=np.nan) for x in arrays[1:]]
    k, v = (layouts.unpack_paged(pool, table, s, length=arrays[1].shape[2]) for pool in pools)
    mask = masks.causal(s - l) & masks.lengths(s, l)
    result = ra.attention(np.nan_to_num(arrays[0]), k, v, mask=mask, return_lse=True)
    assert_each(result.output, result.lse, one_by_one(arrays, l, s, LOWER), l)


@pytest.mark.parametrize("shape", [(0, H, 5, E), (2, H, 0, E)])
def test_no_sequences_and_no_tokens(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape)
    packed, offsets = layouts.pack_ragged(x, [0] * shape[0])
    assert packed.shape == (0, H, E)
    assert offsets.tolist() == [0] * (shape[0] + 1)
    assert layouts.unpack_ragged(packed, offsets).shape == (shape[0], H, 0, E)
    table, pages = layouts.page_table([0] * shape[0], 4)
    assert pages == 0
    pool = layouts.pack_paged(x, [0] * shape[0], table, 4)
    assert pool.shape == (0, 4, H, E)
    assert layouts.unpack_paged(pool, table, [0] * shape[0]).shape == (shape[0], H, 0, E)
