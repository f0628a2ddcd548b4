"""How a call is split by its keys, and how the parts of a row are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refattn import biases
from refattn._call import Call
from refattn._core import numba as workers
from refattn._core.arrays import Array
from refattn._core.numba_math import VECTOR_BYTES
from refattn._core.numba_rows import QUERIES
from refattn.methods.flash.kernel_numba import decode as decodes
from refattn.methods.flash.kernel_numba.plan import LOG2E, Plan, accumulation, columns

# Keys of a tile: a processor reads ahead along one array at a time, and each turn to the other costs it the time of
# some keys; the values of a tile are read twice, the second time from a cache. 64 keys are 12 % slower, 512 as fast.
TILE = 256
PART = 8192  # keys of a part: some megabytes, so that there is work for many threads and little to merge


def decode(call: Call, splits: int | None, threads: int | None) -> tuple[Array, Array]:
    """Output (..., H, L, Ev) and log-sum-exp (..., H, L), in the dtype of accumulation, from parts of the keys."""
    kind, (L, S), Ev = accumulation(call), call.score.lengths, call.value.shape[-1]
    tiles = -(-S // TILE)
    part = PART if splits is None else max(1, -(-tiles // splits)) * TILE
    parts = max(1, -(-S // part))
    plan, n, lanes = Plan(call, decodes.JOB, (L, TILE), kind), columns(kind), VECTOR_BYTES // np.dtype(kind).itemsize
    rows, E, units = plan.group * L, call.query.shape[-1], plan.count // plan.group
    wide_e, wide_ev, padded = -(-E // lanes) * lanes, -(-Ev // lanes) * lanes, -(-rows // QUERIES) * QUERIES
    plan.sets(rows=rows, wide_e=wide_e, wide_ev=wide_ev, query_group=call.query.strides[-3])
    seen = masked(plan, call)
    plan.memory(
        {
            "w_query": padded * wide_e, "w_key": TILE * wide_e, "w_value": TILE * wide_ev, "w_score": TILE * QUERIES,
            "w_output": padded * wide_ev, "w_lost": padded * wide_ev, "w_m": padded, "w_l": padded, "w_largest": n,
            "w_sum": n, "w_alpha": n, "w_ones": n,
        },
        {"z_low": padded, "z_high": padded},
    )  # fmt: skip
    states, outputs = np.empty((units, parts, rows, 2), kind), np.empty((units, parts, rows, Ev), kind)

    def worker() -> Callable[[tuple[int, int]], None]:
        job, w, z = plan.own()

        def attend(task: tuple[int, int]) -> None:
            unit, at = task
            plan.turns_to(job, unit * plan.group)
            decodes.attend(
                job, w, z, states.reshape(-1), outputs.reshape(-1), unit * parts + at, at * part,
                min(S, (at + 1) * part),
            )  # fmt: skip

        return attend

    workers.share([[(unit, at) for at in range(parts)] for unit in range(units)], worker, workers.many(threads))
    return merged(call, states, outputs, seen, kind)


def masked(plan: Plan, call: Call) -> Any:
    """Tell which keys each row sees, by intervals or by bytes, and what dropout keeps; which rows see any key."""
    L, S = call.score.lengths
    mask: Any = call.score.mask
    dropped: Any = None if call.score.dropout is None else call.score.dropout.mask
    seen: Any = np.full((*call.lead, L), S > 0)
    shape = (*call.lead, L, S)
    if mask is not None:
        bounds = mask.bounds(L, S)
        if bounds is not None:
            ends = [np.broadcast_to(x, shape[:-1]) for x in bounds]
            seen = ends[0] < ends[1]
            for name, x in zip(("first", "stop"), ends, strict=True):
                # C-ordered in L, so that a row's ends lie 4 bytes apart.
                plan.bytes_of(name, x)
            plan.sets(bounds_group=ends[0].strides[-2])
        else:
            cells = np.broadcast_to(mask.dense(L, S), shape)
            seen = np.broadcast_to(mask.dense(L, S).any(axis=-1), shape[:-1])
            plan.bytes_of("mask", cells, inner=2)
            plan.sets(mask_group=cells.strides[-3], mask_row=cells.strides[-2], mask_column=cells.strides[-1])
    if dropped is not None:
        cells = np.broadcast_to(dropped.dense(L, S), shape)
        plan.bytes_of("drop", cells, inner=2)
        plan.sets(drop_group=cells.strides[-3], drop_row=cells.strides[-2], drop_column=cells.strides[-1])
    if isinstance(call.score.bias, biases.ArrayBias):
        plan.sets(bias_group=np.broadcast_to(call.score.bias.values, shape).strides[-3])
    elif call.score.bias is not None:
        i, j = slice(0, L), slice(0, S)
        values = np.broadcast_to(call.score.bias.tile(i, j, L, S, xp=np), shape)
        plan.reads("bias", values)
        plan.sets(bias_group=values.strides[-3])
    return seen


def merged(call: Call, states: Any, outputs: Any, seen: Any, kind: type[Any]) -> tuple[Array, Array]:
    """The parts of each row put together in float64, by their maxima, sums and outputs; the sink once."""
    (L, _), Ev = call.score.lengths, outputs.shape[-1]
    m, l = (states[..., k].astype(np.float64) for k in (0, 1))
    sink = np.full(call.lead, -np.inf)
    if call.score.sink is not None:
        sink = np.broadcast_to(np.asarray(call.score.sink, np.float64).reshape(-1) * LOG2E, call.lead)
    sink = np.repeat(sink.reshape(-1), L).reshape(m[:, 0].shape)
    top = np.maximum(m.max(axis=1), sink)
    safe = np.where(top == -np.inf, 0.0, top)
    weight = np.exp2(m - safe[:, None])
    l = (l * weight).sum(axis=1) + np.exp2(sink - safe)
    outputs = outputs.astype(np.float64)
    O = np.where(np.isfinite(outputs), outputs * weight[..., None], outputs).sum(axis=1)
    growth = 1.0 if call.score.dropout is None else call.score.dropout.factor
    shape = (*call.lead, L)
    output = np.where(seen[..., None], (O * growth / l[..., None]).reshape(*shape, Ev), 0.0)
    lse = np.where(np.isinf(top), top, top / LOG2E + np.log(l)).reshape(shape)
    return output.astype(kind), lse.astype(kind)
