"""FlashAttention-2, Algorithm 2, with the keys of a block side by side in vector registers.

A worker takes key tiles of one head, and for each the query tiles that see it. Line numbers are those of the paper; its
dQ is added to in the same order whoever computes it.

The array w holds numbers of the accumulation dtype, z holds int32. With n keys in a block, and queries or features in
groups of RANKS: queries and dO [group, feature, RANKS] and again [group of features, tile_q, RANKS], keys and values
[block, feature, n], keys again [block of n features, tile_k, n], scores and dP [tile_q, n], dS transposed [group of
queries, tile_k, RANKS], dK and dV [block, feature, n], dQ [block of n features, query, n]. Scores are in base 2.

Must agree with: refattn.attention_gradient.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core.numba_gradients import masked_gradients, score_gradients, weights
from refattn._core.numba_math import COLUMNS, RANKS, VECTOR_BYTES, fetch, read
from refattn._core.numba_tiles import kernel, pack_columns, pack_rows, part, record
from refattn._core.numba_vectors import add_products, cap_slopes, products

DIGEST = "49524ecb5d867a29"

LOG2E = math.log2(math.e)
SKIPPED, WHOLE, PARTIAL = 0, 1, 2  # a group of queries, for a block of keys
INTERVALS, BLOCKS = 1, 2  # mask, dropout: 0 is none

# One head of a call. Addresses are those of the head's first number, or 0; strides are in bytes. `table` holds for each
# pair of a query tile and a key tile 0 (nothing is seen), 1 (all is), or 2 and the place of its bits.
JOB = record(
    """
    L S E Ev tile_q tile_k
    query query_row query_column query_code key key_row key_column key_code
    value value_row value_column value_code grad grad_row grad_column grad_code
    bias bias_row bias_column bias_code
    mask first stop table bits dropout drop_table drop_bits
    w_query w_grad w_query_columns w_grad_columns w_key w_value w_key_columns w_dk w_dv w_dq
    w_score w_dp w_ds w_slopes w_plain w_flat w_lse w_delta w_ones
    z_rows z_first z_stop z_fewest z_most z_latest z_nearest z_words z_kept z_state z_from z_to
    memory rows keys lse bias_grad
    """,
    "factor scale cap growth",
)


@part
def load_words(job: Any, z: Any, words: Any, table: Any, bits: Any, i: Any, j: Any) -> Any:
    """The bits of a tile, [query, word], where a table tells them apart; all ones without one. Whether any is set."""
    count = job.tile_k // 32
    across = (job.S + job.tile_k - 1) // job.tile_k
    entry = read(table + 4 * (i * across + j), np.int32(0)) if table != 0 else np.int32(1)
    tile = np.int64(entry) - 2
    for x in range(job.tile_q * count):
        z[words + x] = read(bits + 4 * (tile * job.tile_q * count + x), np.int32(0)) if tile >= 0 else np.int32(-entry)
    return entry != 0


@part
def load_tile(job: Any, w: Any, z: Any, lse: Any, delta: Any, i: Any, rows: Any) -> Any:
    """Line 8: queries and dO of a query tile, each in two orders; whether all of them are finite."""
    kind, start = w.dtype.type, i * job.tile_q
    query, grad = job.query + start * job.query_row, job.grad + start * job.grad_row
    for r in range(job.tile_q):
        w[job.w_lse + r] = kind(lse[job.lse + start + r] * LOG2E) if r < rows else kind(0)
        w[job.w_delta + r] = delta[job.lse + start + r] if r < rows else kind(0)
    pack_rows(
        w,
        job.w_query,
        job.memory,
        RANKS,
        query,
        job.query_row,
        job.query_column,
        job.query_code,
        rows,
        job.tile_q,
        job.E,
        job.factor,
    )
    pack_rows(
        w,
        job.w_grad,
        job.memory,
        RANKS,
        grad,
        job.grad_row,
        job.grad_column,
        job.grad_code,
        rows,
        job.tile_q,
        job.Ev,
        1.0,
    )
    finite = pack_columns(
        w,
        job.w_query_columns,
        job.memory,
        RANKS,
        query,
        job.query_row,
        job.query_column,
        job.query_code,
        rows,
        job.tile_q,
        job.E,
    )
    return finite & pack_columns(
        w,
        job.w_grad_columns,
        job.memory,
        RANKS,
        grad,
        job.grad_row,
        job.grad_column,
        job.grad_code,
        rows,
        job.tile_q,
        job.Ev,
    )


@part
def load_keys(job: Any, w: Any, j: Any, n: Any) -> Any:
    """Lines 6 and 7: keys and values of a key tile, and empty gradients; whether all keys are finite."""
    kind, start = w.dtype.type, j * job.tile_k
    rows, key, value = min(job.S - start, job.tile_k), job.key + start * job.key_row, job.value + start * job.value_row
    pack_rows(w, job.w_key, job.memory, n, key, job.key_row, job.key_column, job.key_code, rows, job.tile_k, job.E, 1.0)
    pack_rows(
        w,
        job.w_value,
        job.memory,
        n,
        value,
        job.value_row,
        job.value_column,
        job.value_code,
        rows,
        job.tile_k,
        job.Ev,
        1.0,
    )
    for x in range(job.tile_k * ((job.E + RANKS - 1) // RANKS * RANKS)):
        w[job.w_dk + x] = kind(0)
    for x in range(job.tile_k * ((job.Ev + RANKS - 1) // RANKS * RANKS)):
        w[job.w_dv + x] = kind(0)
    return pack_columns(
        w, job.w_key_columns, job.memory, n, key, job.key_row, job.key_column, job.key_code, rows, job.tile_k, job.E
    )


@part
def classify(job: Any, w: Any, z: Any, k: Any, place: Any, n: Any, bits: Any) -> Any:
    """State of each group of queries for the keys k .. k + n, `place` in their tile; first and last group that sees."""
    low, high, count, ones = job.tile_q // RANKS, 0, job.tile_k // 32, (1 << n) - 1
    for g in range(job.tile_q // RANKS):
        state = WHOLE
        if k >= z[job.z_most + g] or k + n <= z[job.z_fewest + g]:
            state = SKIPPED
        elif k < z[job.z_latest + g] or k + n > z[job.z_nearest + g]:
            state = PARTIAL
        if bits and state != SKIPPED:
            some, every = np.int64(0), np.int64(-1)
            for r in range(g * RANKS, min((g + 1) * RANKS, z[job.z_rows])):
                word = np.int64(z[job.z_words + r * count + place // 32]) >> (place % 32)
                some, every = some | word, every & word
            state = SKIPPED if some & ones == 0 else state if every & ones == ones else PARTIAL
        z[job.z_state + g] = state
        if state == SKIPPED:
            continue
        low, high = min(low, g), g + 1
        z[job.z_from + g] = min(z[job.z_from + g], place)
        if z[job.z_to + g] > 0:  # keys between that the group does not see
            for x in range(z[job.z_to + g] * RANKS, place * RANKS):
                w[job.w_ds + g * job.tile_k * RANKS + x] = w.dtype.type(0)
        z[job.z_to + g] = place + n
    return low, high


@part
def add_bias(job: Any, w: Any, row: Any, rows: Any, k: Any, s: Any, n: Any) -> None:
    """Bias on a group of scores at s, whose queries begin at `row` and whose keys begin at k."""
    kind = w.dtype.type
    lowest = kind(np.finfo(w.dtype).min)
    for r in range(rows):
        address = job.bias + (row + r) * job.bias_row + k * job.bias_column
        for q in range(min(n, job.S - k)):
            x = w[s + r * n + q] + kind(fetch(address + q * job.bias_column, job.bias_code, 0.0) * LOG2E)
            w[s + r * n + q] = lowest if x < lowest else x


@part
def visit_block(
    job: Any, w: Any, z: Any, dbias: Any, i: Any, rows: Any, k: Any, place: Any, n: Any, keys: Any, bits: Any
) -> None:
    """Lines 10 to 13 and 15 for the queries of a tile and one block of n keys, `place` in its tile."""
    low, high = classify(job, w, z, k, place, n, bits)
    if low >= high:
        return
    kind, zero = w.dtype.type, w.dtype.type(0)
    special = job.cap != 0 or job.bias != 0 or job.dropout != 0 or job.bias_grad >= 0
    key, value = job.w_key + place * job.E, job.w_value + place * job.Ev
    for g in range(low, high):
        s, p, t = job.w_score + g * RANKS * n, job.w_dp + g * RANKS * n, job.w_ds + (g * job.tile_k + place) * RANKS
        state, r = z[job.z_state + g], g * RANKS
        if state == SKIPPED:
            for x in range(RANKS * n):
                w[s + x], w[p + x] = zero, zero
            continue
        query, grad = job.w_query + r * job.E, job.w_grad + r * job.Ev
        if state == WHOLE and not special:
            weights(w, query, key, s, job.w_lse + r, job.E)
            score_gradients(w, grad, value, p, s, t, job.w_delta + r, job.Ev)
            continue
        products(w, query, key, s, job.E)
        products(w, grad, value, p, job.Ev)
        slopes, row = job.w_flat, i * job.tile_q + r
        if job.cap != 0:
            slopes = job.w_slopes
            cap_slopes(w, s, slopes, kind(job.cap))
        if job.bias != 0:
            add_bias(job, w, row, min(RANKS, rows - r), k, s, n)
        count = job.tile_k // 32
        word = r * count + place // 32
        masked_gradients(
            w, z, s, p, t, job.w_lse + r, job.w_delta + r, slopes, job.w_plain, job.z_first + r, job.z_stop + r,
            job.z_words + word, job.z_kept + word, count, k, place % 32, kind(job.growth),
        )  # fmt: skip
        if job.bias_grad >= 0:
            for y in range(min(RANKS, rows - r)):
                for q in range(min(n, job.S - k)):
                    dbias[job.bias_grad + (row + y) * job.S + k + q] = w[job.w_plain + y * n + q]
    if keys:
        depth, at = (high - low) * RANKS, low * RANKS
        for f in range((job.Ev + RANKS - 1) // RANKS):
            grads = job.w_grad_columns + (f * job.tile_q + at) * RANKS
            into = job.w_dv + (place // n * ((job.Ev + RANKS - 1) // RANKS) + f) * RANKS * n
            add_products(w, grads, job.w_score + at * n, into, depth)
        for f in range((job.E + RANKS - 1) // RANKS):
            queries = job.w_query_columns + (f * job.tile_q + at) * RANKS
            into = job.w_dk + (place // n * ((job.E + RANKS - 1) // RANKS) + f) * RANKS * n
            add_products(w, queries, job.w_dp + at * n, into, depth)


@part
def mark_lost(job: Any, w: Any, z: Any, i: Any, rows: Any, j: Any, from_row: Any, n: Any, queries: Any) -> None:
    """NaN where a pair that is seen multiplies with a query, key or dO that is not finite."""
    kind, count, start = w.dtype.type, job.tile_k // 32, j * job.tile_k
    groups, groups_v = (job.E + RANKS - 1) // RANKS, (job.Ev + RANKS - 1) // RANKS
    for k in range(start, min(job.S, start + job.tile_k)):
        place = k - start
        for r in range(rows):
            word, bit = r * count + place // 32, np.int32(1 << (place % 32))
            inside = z[job.z_first + r] <= k and k < z[job.z_stop + r]
            if not inside or z[job.z_words + word] & bit == 0:
                continue
            row, block = i * job.tile_q + r, place // n
            for e in range(job.E):
                q = fetch(job.query + row * job.query_row + e * job.query_column, job.query_code, kind(0))
                if not abs(q) < np.inf:
                    w[job.w_dk + (block * groups * RANKS + e) * n + place % n] = kind(np.nan)
                x = fetch(job.key + k * job.key_row + e * job.key_column, job.key_code, kind(0))
                if queries and not abs(x) < np.inf:
                    w[job.w_dq + (e // n * job.rows + row - from_row) * n + e % n] = kind(np.nan)
            for e in range(job.Ev):
                d = fetch(job.grad + row * job.grad_row + e * job.grad_column, job.grad_code, kind(0))
                if not abs(d) < np.inf and z[job.z_kept + word] & bit != 0:
                    w[job.w_dv + (block * groups_v * RANKS + e) * n + place % n] = kind(np.nan)


@part
def load_bounds(job: Any, z: Any, i: Any, rows: Any, j: Any) -> Any:
    """The keys that each query of a tile may see by the intervals; whether any of key tile j is among them.

    For each group of queries also the union of its intervals and their intersection.
    """
    any_seen, start = False, j * job.tile_k
    z[job.z_rows] = rows
    for g in range(job.tile_q // RANKS):
        fewest, most, latest, nearest = np.int32(job.S), np.int32(0), np.int32(0), np.int32(job.S)
        for r in range(g * RANKS, (g + 1) * RANKS):
            first, stop = np.int32(0), np.int32(job.S if r < rows else 0)
            if job.mask == INTERVALS and r < rows:
                first = read(job.first + 4 * (i * job.tile_q + r), np.int32(0))
                stop = min(read(job.stop + 4 * (i * job.tile_q + r), np.int32(0)), stop)
            z[job.z_first + r], z[job.z_stop + r] = first, stop
            if first < stop:
                fewest, most = min(fewest, first), max(most, stop)
                latest, nearest = max(latest, first), min(nearest, stop)
            else:
                nearest = np.int32(0)
        z[job.z_fewest + g], z[job.z_most + g] = fewest, most
        z[job.z_latest + g], z[job.z_nearest + g] = latest, nearest
        any_seen = any_seen or (fewest < start + job.tile_k and most > start)
    return any_seen


@part
def write_keys(job: Any, w: Any, dk: Any, dv: Any, j: Any, n: Any, add: Any) -> None:
    """Line 17: the gradients of a key tile, added to those of the query heads before."""
    groups, groups_v = (job.E + RANKS - 1) // RANKS, (job.Ev + RANKS - 1) // RANKS
    for k in range(j * job.tile_k, min(job.S, (j + 1) * job.tile_k)):
        place = k - j * job.tile_k
        for e in range(job.E):
            x = w[job.w_dk + (place // n * groups * RANKS + e) * n + place % n] * w.dtype.type(job.scale)
            at = (job.keys + k) * job.E + e
            dk[at] = dk[at] + x if add else x
        for e in range(job.Ev):
            x = w[job.w_dv + (place // n * groups_v * RANKS + e) * n + place % n]
            at = (job.keys + k) * job.Ev + e
            dv[at] = dv[at] + x if add else x


@kernel
def row_sums(jobs: Any, output: Any, delta: Any) -> None:
    """Line 4: D = rowsum(dO O) of one head; an output of 0 takes no gradient, which in empty rows may be anything."""
    job = jobs[0]
    for r in range(job.L):
        total = 0.0
        for e in range(job.Ev):
            o = output[(job.lse + r) * job.Ev + e]
            if o != 0:
                total += np.float64(o) * fetch(job.grad + r * job.grad_row + e * job.grad_column, job.grad_code, 0.0)
        delta[job.lse + r] = total


@kernel
def differentiate(
    jobs: Any, w: Any, z: Any, lse: Any, delta: Any, dq: Any, dk: Any, dv: Any, dbias: Any, first_query: int,
    stop_query: int, first_key: int, stop_key: int, queries: bool, keys: bool, add: bool,
) -> None:  # fmt: skip
    """Gradients of one head from a range of query tiles and of key tiles: of the queries, or the keys, or both."""
    job, n, kind = jobs[0], COLUMNS * VECTOR_BYTES // w.itemsize, w.dtype.type
    from_row = first_query * job.tile_q
    blocks = (job.E + n - 1) // n
    if queries:
        for x in range(blocks * job.rows * n):
            w[job.w_dq + x] = kind(0)
    for j in range(first_key, stop_key):  # line 5
        loaded, finite_keys = False, True
        for i in range(first_query, stop_query):  # line 9
            rows = min(job.L - i * job.tile_q, job.tile_q)
            if not load_bounds(job, z, i, rows, j):
                continue
            if not load_words(job, z, job.z_words, job.table if job.mask == BLOCKS else 0, job.bits, i, j):
                continue
            load_words(job, z, job.z_kept, job.drop_table if job.dropout != 0 else 0, job.drop_bits, i, j)
            if not loaded:
                finite_keys, loaded = load_keys(job, w, j, n), True
            finite = load_tile(job, w, z, lse, delta, i, rows)
            for g in range(job.tile_q // RANKS):
                z[job.z_from + g], z[job.z_to + g] = job.tile_k, 0
            for place in range(0, min(job.tile_k, job.S - j * job.tile_k), n):
                visit_block(job, w, z, dbias, i, rows, j * job.tile_k + place, place, n, keys, job.mask == BLOCKS)
            if queries:  # line 14
                for g in range(job.tile_q // RANKS):
                    start, depth = z[job.z_from + g], z[job.z_to + g] - z[job.z_from + g]
                    for f in range(blocks if depth > 0 else 0):
                        ds = job.w_ds + (g * job.tile_k + start) * RANKS
                        into = job.w_dq + (f * job.rows + i * job.tile_q - from_row + g * RANKS) * n
                        add_products(w, ds, job.w_key_columns + (f * job.tile_k + start) * n, into, depth)
            if not finite or not finite_keys:
                mark_lost(job, w, z, i, rows, j, from_row, n, queries)
        if keys and not loaded:
            load_keys(job, w, j, n)
        if keys:
            write_keys(job, w, dk, dv, j, n, add)
    if queries:
        for r in range(from_row, min(job.L, stop_query * job.tile_q)):
            for e in range(job.E):
                x = w[job.w_dq + (e // n * job.rows + r - from_row) * n + e % n]
                dq[(job.lse + r) * job.E + e] = x * kind(job.scale)
