"""Split keys (Flash-Decoding): few queries over a long cache, each part of the keys by itself, merged at the end.

A task is one part of one key head, for all query heads that read it, QUERIES rows at a time; it goes through the keys
in tiles. Keys and values are read from where they lie if they do in whole vectors of the accumulation dtype, else tile
by tile through a copy.

The array w holds numbers of the accumulation dtype, z holds int32: queries [block, QUERIES, E up to whole vectors],
scores [tile, key, QUERIES], output [block, QUERIES, Ev up to whole vectors]. Scores are in base 2. Of each part of a
row come its maximum, its sum, and its output before the division.

Must agree with: refattn.attention.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core.numba_math import COLUMNS, RANKS, VECTOR_BYTES, exp2, fetch, read
from refattn._core.numba_rows import (
    QUERIES,
    TOGETHER,
    WIDE,
    half_values,
    narrow_values,
    row_scores,
    upcast,
    wide_values,
)
from refattn._core.numba_tiles import kernel, part, record
from refattn._core.numba_vectors import cap_scores, exponentials, raise_maxima

DIGEST = "49524ecb5d867a29"

LOG2E = math.log2(math.e)
ROWS = 8  # of values that are gone through at a time

# One key head of a call; `rows` query rows (head of the group, query) read it. Addresses are those of the head's first
# number, or 0; strides are in bytes. Bytes say which keys each row sees (`mask`) and which weights dropout keeps.
JOB = record(
    """
    L S E Ev tile_q tile_k rows wide_e wide_ev
    query query_group query_row query_column query_code key key_row key_column key_code
    value value_row value_column value_code bias bias_group bias_row bias_column bias_code
    first stop bounds_group mask mask_group mask_row mask_column drop drop_group drop_row drop_column
    w_query w_key w_value w_score w_output w_lost w_m w_l w_largest w_sum w_alpha w_ones
    z_low z_high memory
    """,
    "factor cap growth",
)


@part
def load_queries(job: Any, w: Any, z: Any) -> None:
    """Queries in blocks, zeros beyond them; the empty state; the interval of keys that each row may see."""
    kind = w.dtype.type
    blocks = (job.rows + QUERIES - 1) // QUERIES
    for row in range(blocks * QUERIES):
        group, i = row // max(job.L, 1), row % max(job.L, 1)
        inside = row < job.rows
        address = job.query + group * job.query_group + i * job.query_row
        for e in range(job.wide_e):
            x = kind(0)
            if inside and e < job.E:
                x = kind(job.factor) * fetch(address + e * job.query_column, job.query_code, x)
            w[job.w_query + row * job.wide_e + e] = x
        low, high = np.int32(0), np.int32(job.S if inside else 0)
        if inside and job.first != 0:
            low = read(job.first + group * job.bounds_group + 4 * i, np.int32(0))
            high = min(high, read(job.stop + group * job.bounds_group + 4 * i, np.int32(0)))
        z[job.z_low + row], z[job.z_high + row] = low, high
        w[job.w_m + row], w[job.w_l + row] = kind(-np.inf), kind(0)
    for x in range(blocks * QUERIES * job.wide_ev):
        w[job.w_output + x], w[job.w_lost + x] = kind(0), kind(0)


@part
def copy_rows(
    w: Any, at: Any, wide: Any, address: Any, row: Any, column: Any, code: Any, rows: Any, columns: Any, finite: Any
) -> None:
    """Write w[at] (rows, wide): the rows at an address, zeros beyond their columns; if `finite`, without the rest."""
    zero, lanes = w.dtype.type(0), VECTOR_BYTES // w.itemsize
    for k in range(rows):
        done = 0
        if code == 2 and column == 2 and not finite:
            done = columns // lanes * lanes
            upcast(w, at + k * wide, address + k * row, columns // lanes)
        for e in range(done, wide):
            x = zero
            if e < columns:
                x = fetch(address + k * row + e * column, code, zero)
                x = zero if finite and not abs(x) < np.inf else x
            w[at + k * wide + e] = x


@part
def sees(job: Any, z: Any, row: Any, k: Any) -> Any:
    """Whether a row sees a key."""
    found = z[job.z_low + row] <= k and k < z[job.z_high + row]
    if found and job.mask != 0:
        group, i = row // job.L, row % job.L
        address = job.mask + group * job.mask_group + i * job.mask_row + k * job.mask_column
        found = read(address, np.uint8(0)) != 0
    return found


@part
def keeps(job: Any, row: Any, k: Any) -> Any:
    """Whether dropout keeps the weight of a key."""
    address = job.drop + row // job.L * job.drop_group + row % job.L * job.drop_row + k * job.drop_column
    return job.drop == 0 or read(address, np.uint8(0)) != 0


@part
def change_scores(job: Any, w: Any, z: Any, block: Any, start: Any, low: Any, high: Any, n: Any) -> None:
    """Softcap, bias and mask on the scores of a tile, of which the keys low .. high were formed."""
    kind, lowest = w.dtype.type, w.dtype.type(np.finfo(w.dtype).min)
    if job.cap != 0:
        for x in range(0, job.tile_k * QUERIES, RANKS * n):
            cap_scores(w, job.w_score + x, kind(job.cap))
    for q in range(QUERIES):
        row = block * QUERIES + q
        inside = row < job.rows
        if inside and job.bias != 0:
            address = job.bias + row // job.L * job.bias_group + row % job.L * job.bias_row
            for k in range(low, high):
                at = job.w_score + (k - start) * QUERIES + q
                x = w[at] + kind(fetch(address + k * job.bias_column, job.bias_code, 0.0) * LOG2E)
                w[at] = lowest if x < lowest else x
        first, stop = z[job.z_low + row], z[job.z_high + row]
        if first > low or stop < high or job.mask != 0:
            for k in range(low, high):
                if not (inside and sees(job, z, row, k)):
                    w[job.w_score + (k - start) * QUERIES + q] = kind(-np.inf)
    for k in range(start, start + job.tile_k):
        if k < low or k >= high:
            for q in range(QUERIES):
                w[job.w_score + (k - start) * QUERIES + q] = kind(-np.inf)


@part
def raise_rows(job: Any, w: Any, block: Any, n: Any) -> None:
    """The maxima of a block's rows take in those of a tile; what they and the state are multiplied by."""
    kind = w.dtype.type
    for q in range(n):
        w[job.w_largest + q], w[job.w_sum + q] = kind(-np.inf), kind(0)
    for x in range(0, job.tile_k * QUERIES, RANKS * n):
        raise_maxima(w, job.w_score + x, job.w_largest)
    for q in range(QUERIES):
        row = block * QUERIES + q
        before = w[job.w_m + row]
        top = before
        for x in range(q, n, QUERIES):
            top = max(top, w[job.w_largest + x])
        w[job.w_m + row] = top
        top = max(top, kind(np.finfo(w.dtype).min))
        alpha = exp2(before - top)
        w[job.w_alpha + q], w[job.w_l + row] = alpha, w[job.w_l + row] * alpha
        for x in range(q, n, QUERIES):
            w[job.w_largest + x] = top


@part
def add_values(job: Any, w: Any, block: Any, value: Any, row: Any, start: Any, low: Any, high: Any) -> None:
    """The output of a block's rows takes in the values of the keys low .. high, which begin at an address.

    A few rows at a time, so that what is done to them a second time hides behind the wait for the next.
    """
    lanes, wide, size = VECTOR_BYTES // w.itemsize, job.wide_ev, w.itemsize
    for k in range(low, high, ROWS):
        rows, address = min(ROWS, high - k), value + (k - low) * row
        for q in range(0, QUERIES, TOGETHER):
            p, output = job.w_score + (k - start) * QUERIES + q, job.w_output + (block * QUERIES + q) * wide
            e, alpha = 0, job.w_alpha + q if k == low else job.w_ones
            while e + WIDE * lanes <= wide:
                wide_values(w, address + e * size, row, p, output + e, wide, alpha, rows)
                e += WIDE * lanes
            while e + WIDE // 2 * lanes <= wide:
                half_values(w, address + e * size, row, p, output + e, wide, alpha, rows)
                e += WIDE // 2 * lanes
            while e < wide:
                narrow_values(w, address + e * size, row, p, output + e, wide, alpha, rows)
                e += lanes


@part
def collect_lost(job: Any, w: Any, z: Any, block: Any, low: Any, high: Any) -> None:
    """Sum the values that are not finite, for each row of a block that sees them."""
    for k in range(low, high):
        for e in range(job.Ev):
            v = fetch(job.value + k * job.value_row + e * job.value_column, job.value_code, w.dtype.type(0))
            if abs(v) < np.inf:
                continue
            for row in range(block * QUERIES, min(job.rows, (block + 1) * QUERIES)):
                if sees(job, z, row, k) and keeps(job, row, k):
                    w[job.w_lost + row * job.wide_ev + e] += v


@part
def go_through(job: Any, w: Any, z: Any, begin: Any, end: Any, careful: Any, n: Any) -> None:
    """All rows over the keys begin .. end; `careful` where a value may not be finite."""
    own = 0 if w.itemsize == 4 else 1
    lanes = VECTOR_BYTES // w.itemsize
    together = max(1, lanes // QUERIES)
    key_here = job.key_code == own and job.key_column == w.itemsize and job.wide_e == job.E
    value_here = job.value_code == own and job.value_column == w.itemsize and job.wide_ev == job.Ev and not careful
    load_queries(job, w, z)
    for start in range(begin, end, job.tile_k):
        stop = min(end, start + job.tile_k)
        # Fewer keys than are scored in one go are copied: what lies behind them is not ours to read.
        here = key_here and stop - start >= together
        key, key_row = job.key + start * job.key_row, job.key_row
        value, value_row = job.value + start * job.value_row, job.value_row
        copied, whole = False, (stop - start) // together * together
        for block in range((job.rows + QUERIES - 1) // QUERIES):
            low, high = stop, start
            for row in range(block * QUERIES, (block + 1) * QUERIES):
                if z[job.z_low + row] < z[job.z_high + row]:
                    low, high = min(low, z[job.z_low + row]), max(high, z[job.z_high + row])
            low, high = max(low, start), min(high, stop)
            if low >= high:
                continue
            if not copied:
                copied = True
                rows = 0 if here else stop - start
                copy_rows(w, job.w_key, job.wide_e, key, job.key_row, job.key_column, job.key_code, rows, job.E, False)
                rows = 0 if value_here else stop - start
                copy_rows(
                    w, job.w_value, job.wide_ev, value, job.value_row, job.value_column, job.value_code, rows, job.Ev,
                    careful,
                )  # fmt: skip
                if not here:
                    key, key_row = job.memory + job.w_key * w.itemsize, job.wide_e * w.itemsize
                if not value_here:
                    value, value_row = job.memory + job.w_value * w.itemsize, job.wide_ev * w.itemsize
            query = job.w_query + block * QUERIES * job.wide_e
            for k in range((low - start) // together * together, high - start, together):
                # The last keys of an array are gone through again from where as many are left.
                from_key = k if k < whole or not here else max(0, stop - start - together)
                row_scores(w, key + from_key * key_row, key_row, query, job.w_score + from_key * QUERIES, job.wide_e)
            change_scores(job, w, z, block, start, low, high, n)
            raise_rows(job, w, block, n)
            exponentials(w, job.w_score, job.w_largest, job.w_sum, job.tile_k * QUERIES // n)
            for x in range(n):
                w[job.w_l + block * QUERIES + x % QUERIES] += w[job.w_sum + x]
            if job.drop != 0:
                for k in range(low, high):
                    for q in range(QUERIES):
                        row = block * QUERIES + q
                        if row < job.rows and not keeps(job, row, k):
                            w[job.w_score + (k - start) * QUERIES + q] = 0
            add_values(job, w, block, value + (low - start) * value_row, value_row, start, low, high)
            if careful:
                collect_lost(job, w, z, block, low, high)


@kernel
def attend(jobs: Any, w: Any, z: Any, states: Any, outputs: Any, at: int, begin: int, end: int) -> None:
    """Maximum and sum (rows, 2) and output (rows, Ev) of all rows of one key head over the keys begin .. end."""
    job, n = jobs[0], COLUMNS * VECTOR_BYTES // w.itemsize
    go_through(job, w, z, begin, end, False, n)
    finite = True
    for x in range(job.rows * job.wide_ev):
        finite = finite and abs(w[job.w_output + x]) < np.inf
    if not finite:
        go_through(job, w, z, begin, end, True, n)
    for row in range(job.rows):
        place = at * job.rows + row
        states[2 * place], states[2 * place + 1] = w[job.w_m + row], w[job.w_l + row]
        for e in range(job.Ev):
            x, lost = w[job.w_output + row * job.wide_ev + e], w[job.w_lost + row * job.wide_ev + e]
            outputs[place * job.Ev + e] = x if lost == 0 or math.isnan(x) else lost
