"""FlashAttention-2, Algorithm 1, with the queries of a block side by side in vector registers.

A worker takes query tiles of one head at a time. It packs each key tile of the head, and its values, when it first
needs them, and keeps them for the tiles that follow. Line numbers are those of the paper.

The array w holds numbers of the accumulation dtype, float32, or float64 for float64 inputs; z holds int32. With n
queries in a block, and keys or features in groups of RANKS: queries [block, E, n], keys [group, E, RANKS], values
[tile, group of features, tile_k, RANKS], scores [tile_k, n], output [block, feature, n]. Scores are in base 2.

Must agree with: refattn.attention.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn._core.numba_math import COLUMNS, RANKS, VECTOR_BYTES, exp2, fetch, read
from refattn._core.numba_tiles import kernel, pack_columns, pack_rows, part, record, spread_words, turn
from refattn._core.numba_vectors import (
    accumulate,
    cap_scores,
    divide_group,
    drop_group,
    exponentials,
    mask_group,
    raise_maxima,
    rescale,
    scores,
)

DIGEST = "49524ecb5d867a29"

LOG2E = math.log2(math.e)
SKIPPED, WHOLE, PARTIAL = 0, 1, 2  # a group of keys, for a block of queries
INTERVALS, BLOCKS = 1, 2  # mask, dropout: 0 is none
UNHELD = -2  # among words that are no tile's bits

# One head of a call. Addresses are those of the head's first number, or 0; strides are in bytes.
JOB = record(
    """
    L S E Ev tile_q tile_k
    query query_row query_column query_code key key_row key_column key_code
    value value_row value_column value_code bias bias_row bias_column bias_code
    mask first stop indptr indices tile bits states dropout drop_indptr drop_indices drop_tile drop_bits drop_states
    w_query w_key w_value w_score w_output w_lost w_m w_l w_largest w_alpha w_ones
    z_first z_stop z_seen z_state z_held z_words z_drop z_packed
    memory output output_at lse
    """,
    "factor cap growth sink",
)


@part
def start_tile(job: Any, w: Any, z: Any, start: Any, rows: Any, depth: Any, n: Any) -> None:
    """Lines 4 and 5: the queries of a tile, the keys that each may see by the intervals, and the empty state."""
    kind = w.dtype.type
    address = job.query + start * job.query_row
    pack_rows(
        w,
        job.w_query,
        job.memory,
        n,
        address,
        job.query_row,
        job.query_column,
        job.query_code,
        rows,
        depth,
        job.E,
        job.factor,
    )
    for r in range(depth):
        first, stop = np.int32(0), np.int32(job.S)
        if job.mask == INTERVALS and r < rows:
            first = read(job.first + 4 * (start + r), np.int32(0))
            stop = min(read(job.stop + 4 * (start + r), np.int32(0)), stop)
        z[job.z_first + r], z[job.z_stop + r] = first, stop
        z[job.z_seen + r] = 1 if job.mask != BLOCKS and first < stop else 0
        w[job.w_m + r], w[job.w_l + r] = kind(-np.inf), kind(0)
    w[job.w_output : job.w_output + depth * ((job.Ev + RANKS - 1) // RANKS * RANKS)] = kind(0)


@part
def classify(job: Any, z: Any, j: Any, low: Any, high: Any) -> Any:
    """The state of each group of keys of tile j for the queries low .. high, by intervals; whether one is seen."""
    fewest, most, latest, nearest = (
        np.int64(job.S),
        np.int64(0),
        np.int64(0),
        np.int64(job.S),
    )  # the union of the intervals, and their intersection
    if job.mask != INTERVALS:
        fewest, most = np.int64(0), np.int64(job.S)
    for r in range(low, high if job.mask == INTERVALS else low):
        first, stop = np.int64(z[job.z_first + r]), np.int64(z[job.z_stop + r])
        latest, nearest = max(latest, first), min(nearest, stop)
        if first < stop:
            fewest, most = min(fewest, first), max(most, stop)
        else:
            nearest = np.int64(0)
    seen = False
    for x in range(job.tile_k // RANKS):
        k, state = j * job.tile_k + x * RANKS, WHOLE
        if k >= most or k + RANKS <= fewest:
            state = SKIPPED
        elif k < latest or k + RANKS > nearest:
            state = PARTIAL
        z[job.z_state + x] = state
        seen = seen or state != SKIPPED
    return seen


@part
def look_up(job: Any, z: Any, tile: Any, block: Any, n: Any) -> Any:
    """The state of each group of keys for a block of queries of a tile of bits; whether one is seen."""
    many, seen = job.tile_k // RANKS, False
    at = job.states + (tile * ((job.tile_q + n - 1) // n) + block) * many
    for x in range(many):
        state = read(at + x, np.uint8(0))
        z[job.z_state + x] = state
        seen = seen or state != SKIPPED
    return seen


@part
def hold_words(job: Any, z: Any, tile: Any) -> None:
    """Have the bits of a tile among the words, all ones for tile -1."""
    if z[job.z_held] != tile:
        spread_words(z, job.z_words, tile, job.bits, job.tile_q * job.tile_k // 32)
        z[job.z_held] = tile


@part
def note_seen(job: Any, z: Any, at: Any, rows: Any) -> None:
    """Mark the queries of a block that some key of a tile of bits is seen by."""
    whole = False
    for x in range(job.tile_k // RANKS):
        whole = whole or z[job.z_state + x] == WHOLE
    for r in range(at, at + rows):
        some = whole
        for x in range(0 if whole else job.tile_k // 32):
            some = some or z[job.z_words + x * job.tile_q + r] != 0
        z[job.z_seen + r] |= 1 if some else 0


@part
def change_scores(job: Any, w: Any, row: Any, rows: Any, k: Any, s: Any, n: Any) -> None:
    """Softcap and bias on the scores at s of the queries from `row` and the keys from k on."""
    kind = w.dtype.type
    if job.cap != 0:
        cap_scores(w, s, kind(job.cap))
    if job.bias != 0:
        lowest = kind(np.finfo(w.dtype).min)
        for q in range(rows):
            address = job.bias + (row + q) * job.bias_row + k * job.bias_column
            for r in range(min(RANKS, job.S - k)):
                added = kind(fetch(address + r * job.bias_column, job.bias_code, 0.0) * LOG2E)
                x = w[s + r * n + q] + added
                w[s + r * n + q] = lowest if x < lowest else x


@part
def collect_lost(job: Any, w: Any, z: Any, j: Any, at: Any, rows: Any, n: Any) -> None:
    """Sum the values of tile j that are not finite, for each query of a block, `at` in its tile, that sees them."""
    kind, groups = w.dtype.type, (job.Ev + RANKS - 1) // RANKS
    lost = job.w_lost + at * groups * RANKS
    for q in range(rows):
        if z[job.z_seen + at + q] == 1:
            z[job.z_seen + at + q] = 3
            for e in range(job.Ev):
                w[lost + e * n + q] = kind(0)
    for k in range(j * job.tile_k, min(job.S, (j + 1) * job.tile_k)):
        place = (k - j * job.tile_k) // 32 * job.tile_q + at
        bit = np.int32(1 << ((k - j * job.tile_k) % 32))
        for e in range(job.Ev):
            v = fetch(job.value + k * job.value_row + e * job.value_column, job.value_code, kind(0))
            if abs(v) < np.inf:
                continue
            for q in range(rows):
                inside = z[job.z_first + at + q] <= k and k < z[job.z_stop + at + q]
                kept = job.dropout == 0 or z[job.z_drop + place + q] & bit != 0
                if inside and kept and z[job.z_words + place + q] & bit != 0:
                    w[lost + e * n + q] += v


@part
def finish_block(job: Any, w: Any, z: Any, output: Any, lse: Any, row: Any, rows: Any, at: Any, n: Any) -> None:
    """Lines 12 to 15: the sink, the division by the row sums, the log-sum-exp; what rows without a key get."""
    kind, size, groups, any_lost = w.dtype.type, w.itemsize, (job.Ev + RANKS - 1) // RANKS, False
    first, together = job.w_output + at * groups * RANKS, VECTOR_BYTES // w.itemsize
    for q in range(n):
        m, l, sink, factor = w[job.w_m + at + q], w[job.w_l + at + q], kind(job.sink), kind(job.growth)
        if sink > -np.inf:
            top = max(m, sink)
            alpha = exp2(m - top)
            m, l, factor = top, l * alpha + exp2(sink - top), factor * alpha
        seen = q < rows and z[job.z_seen + at + q] != 0
        any_lost = any_lost or (seen and z[job.z_seen + at + q] == 3)
        w[job.w_alpha + q], w[job.w_largest + q] = factor if seen else kind(0), l if seen else kind(1)
        if q < rows:
            found = -np.inf
            if m > -np.inf or math.isnan(l):
                found = m if m == np.inf else m / LOG2E + math.log(l)
            lse[job.lse + row + q] = found
    for g in range(groups):
        divide_group(w, first + g * RANKS * n, job.w_alpha, job.w_largest)
    if any_lost:
        for q in range(rows):
            for e in range(job.Ev if z[job.z_seen + at + q] == 3 else 0):
                lost = w[job.w_lost + at * groups * RANKS + e * n + q]
                if lost != 0 and not math.isnan(w[first + e * n + q]):
                    w[first + e * n + q] = lost
    target = job.output + row * job.Ev * size
    for e in range(0, job.Ev, RANKS):
        done = rows // together * together if e + RANKS <= job.Ev else 0
        for q in range(0, done, together):
            source = job.memory + (first + e * n + q) * size
            turn(kind(1), source, n * size, target + (q * job.Ev + e) * size, job.Ev * size, kind(1))
        for q in range(done, rows):
            for i in range(e, min(job.Ev, e + RANKS)):
                output[(row + q) * job.Ev + i + job.output_at] = w[first + i * n + q]


@part
def pack_tile(job: Any, w: Any, z: Any, j: Any) -> None:
    """Line 7: the keys and values of tile j."""
    start, groups = j * job.tile_k, (job.Ev + RANKS - 1) // RANKS
    rows = min(job.S - start, job.tile_k)
    pack_rows(
        w, job.w_key + start * job.E, job.memory, RANKS, job.key + start * job.key_row, job.key_row, job.key_column,
        job.key_code, rows, job.tile_k, job.E, 1.0,
    )  # fmt: skip
    finite = pack_columns(
        w, job.w_value + start * groups * RANKS, job.memory, RANKS, job.value + start * job.value_row, job.value_row,
        job.value_column, job.value_code, rows, job.tile_k, job.Ev,
    )  # fmt: skip
    z[job.z_packed + j] = 1 if finite else 2


@part
def visit(job: Any, w: Any, z: Any, start: Any, rows: Any, j: Any, tile: Any, n: Any) -> None:
    """Lines 7 to 10: one key tile, whose bits are those of `tile`, -1 for none, for all blocks of a query tile."""
    groups, many = (job.Ev + RANKS - 1) // RANKS, job.tile_k // RANKS
    changed = job.cap != 0 or job.bias != 0
    for at in range(0, rows, n):
        inside = min(n, rows - at)
        if not (look_up(job, z, tile, at // n, n) if tile >= 0 else classify(job, z, j, at, at + inside)):
            continue
        for x in range(many):
            if z[job.z_state + x] == PARTIAL:
                hold_words(job, z, tile)
                break
        if job.mask == BLOCKS:
            note_seen(job, z, at, inside)
        if z[job.z_packed + j] == 0:
            pack_tile(job, w, z, j)
        query, m, l = job.w_query + at * job.E, job.w_m + at, job.w_l + at
        for q in range(n):
            w[job.w_largest + q] = w[m + q]
        for x in range(many):  # lines 8 and 9
            k, s, state = j * job.tile_k + x * RANKS, job.w_score + x * RANKS * n, z[job.z_state + x]
            if state == SKIPPED:
                continue
            # Of scores that are still to be masked, no maximum.
            top = job.w_largest if state == WHOLE and not changed else job.w_alpha
            scores(w, job.w_key + k * job.E, query, s, top, job.E)
            if changed:
                change_scores(job, w, start + at, inside, k, s, n)
            if state == PARTIAL:
                words = job.z_words + x * RANKS // 32 * job.tile_q + at
                mask_group(w, z, s, job.z_first + at, words, job.z_stop - job.z_first, k, x * RANKS % 32)
            if changed or state == PARTIAL:
                raise_maxima(w, s, job.w_largest)
        rescale(w, m, l, job.w_largest, job.w_alpha)
        factors, x = job.w_alpha, 0
        while x < many:  # lines 9 and 10
            if z[job.z_state + x] == SKIPPED:
                x += 1
                continue
            begin = x
            while x < many and z[job.z_state + x] != SKIPPED:
                x += 1
            s, depth = job.w_score + begin * RANKS * n, (x - begin) * RANKS
            exponentials(w, s, job.w_largest, l, depth)
            if job.dropout != 0:
                for y in range(begin, x):
                    words = job.z_drop + y * RANKS // 32 * job.tile_q + at
                    drop_group(w, z, job.w_score + y * RANKS * n, words, y * RANKS % 32)
            for g in range(groups):
                value = job.w_value + ((j * groups + g) * job.tile_k + begin * RANKS) * RANKS
                accumulate(w, value, s, job.w_output + (at * groups + g * n) * RANKS, factors, depth)
            factors = job.w_ones
        if z[job.z_packed + j] == 2:
            hold_words(job, z, tile)
            collect_lost(job, w, z, j, at, inside, n)


@part
def load_dropout(job: Any, z: Any, i: Any, j: Any) -> None:
    """The bits of dropout in one tile: all zeros where its list has none, all ones where it is full."""
    count = job.tile_q * job.tile_k // 32
    begin, end = read(job.drop_indptr + 4 * i, np.int32(0)), read(job.drop_indptr + 4 * (i + 1), np.int32(0))
    for entry in range(begin, end):
        if read(job.drop_indices + 4 * entry, np.int32(0)) == j:
            spread_words(z, job.z_drop, read(job.drop_tile + 4 * entry, np.int32(0)), job.drop_bits, count)
            return
    for x in range(count):
        z[job.z_drop + x] = 0


@kernel
def attend(jobs: Any, w: Any, z: Any, output: Any, lse: Any, first_tile: int, stop_tile: int) -> None:
    """Output and log-sum-exp of the query tiles first_tile .. stop_tile of one head."""
    job, n = jobs[0], COLUMNS * VECTOR_BYTES // w.itemsize
    for i in range(first_tile, stop_tile):  # line 3
        start, rows = i * job.tile_q, min(job.L - i * job.tile_q, job.tile_q)
        start_tile(job, w, z, start, rows, (rows + n - 1) // n * n, n)
        begin, end = 0, 0
        if job.mask == BLOCKS:
            begin, end = read(job.indptr + 4 * i, np.int32(0)), read(job.indptr + 4 * (i + 1), np.int32(0))
        else:
            low, high = job.S, 0
            for r in range(rows):
                if z[job.z_first + r] < z[job.z_stop + r]:
                    low, high = min(low, z[job.z_first + r]), max(high, z[job.z_stop + r])
            begin, end = low // job.tile_k, (high + job.tile_k - 1) // job.tile_k
        for entry in range(begin, end):  # line 6
            j, tile = entry, np.int32(-1)
            if job.mask == BLOCKS:
                j, tile = read(job.indices + 4 * entry, np.int32(0)), read(job.tile + 4 * entry, np.int32(0))
            if job.dropout != 0:
                load_dropout(job, z, i, j)
            visit(job, w, z, start, rows, j, tile, n)
        for at in range(0, rows, n):
            finish_block(job, w, z, output, lse, start + at, min(n, rows - at), at, n)
