"""The backward pass of a call: its tiles, its tasks, and what each worker does with them.

Where there are at least as many key heads as threads, a task is one key head: for each of its tiles of keys all query
tiles of all query heads that read it, so that scores and dP are formed once. Else there are two passes, one for the
gradients of queries, one for those of keys and values, each in parts of a head. Both add in one order.

Sizes of tiles. In a core's second-level cache lie a key tile in three orders with its two gradients, tile_k times
3 E + 2 Ev numbers, and dS of a tile, tile_q tile_k: 900 KiB of float32 with E = 64. A query tile, packed anew for each
key tile, costs a few operations for each of its numbers, and is used in 5 tile_k multiply-adds for each. Measured, 64
to 256 queries by 512 to 1024 keys are within 4 % of each other; half as many keys cost 4 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn import biases
from refattn._call import Call
from refattn._core import numba as workers
from refattn._core.arrays import Array
from refattn._core.numba_math import RANKS
from refattn.methods.flash.kernel_numba import backward as compiled
from refattn.methods.flash.kernel_numba.plan import Plan, accumulation, columns, table, tiles_of

TILE = (128, 512)
PART = 512  # queries of a task of the pass that is for queries alone


class Task(NamedTuple):
    """Tiles of queries and of keys of a query head, and of which of them gradients are wanted."""

    head: int
    first_query: int
    stop_query: int
    first_key: int
    stop_key: int
    queries: bool
    keys: bool


class Found(NamedTuple):
    """What the tasks read and write, all of it flat and in the dtype of accumulation."""

    lse: Any
    delta: Any
    query: Any
    key: Any
    value: Any
    bias: Any


def backward(
    call: Call, output: Array, lse: Array, grad_output: Array, grad_lse: Array | None, tile_q: int | None,
    tile_k: int | None, threads: int | None,
) -> tuple[Array, Array, Array, Array | None, Array | None]:  # fmt: skip
    """Gradients of query, key, value, bias (..., H, L, S) and sinks (H,), in the dtype of accumulation.

    None for a bias or sinks that the call does not have, and for a bias that is a rule.
    """
    kind, (L, S), threads = accumulation(call), call.score.lengths, workers.many(threads)
    plan = Plan(call, compiled.JOB, tiles_of(call, (tile_q, tile_k), TILE), kind)
    plan.masks(call, table)
    plan.reads("grad", grad_output)
    has_bias, heads = isinstance(call.score.bias, biases.ArrayBias), np.arange(plan.count)
    plan.heads |= {"lse": heads * L, "keys": heads // plan.group * S}
    plan.heads["bias_grad"] = heads * L * S if has_bias else np.full_like(heads, -1)
    runs = tasks_of(plan, call, threads)
    tasks = (task for run in runs for chain in run for task in chain)
    lay_out(plan, call, max((task.stop_query - task.first_query for task in tasks if task.queries), default=1))
    arrays = [np.empty(x.shape, kind) for x in (call.query, call.key, call.value)]
    dbias = np.zeros((*call.lead, L, S) if has_bias else (0,), kind)
    output, lse = (np.ascontiguousarray(x, dtype=kind).reshape(-1) for x in (output, lse))
    found = Found(lse, np.empty(plan.count * L, kind), *(x.reshape(-1) for x in (*arrays, dbias)))
    workers.share([[head] for head in range(plan.count)], lambda: row_sums(plan, output, found.delta), threads)
    if grad_lse is not None:
        found.delta[...] -= np.asarray(grad_lse, dtype=kind).reshape(-1)
    workers.share(runs, lambda: worker(plan, found), threads)
    dq, dk, dv = arrays
    return dq, dk, dv, dbias if has_bias else None, sink_gradient(call, found)


def lay_out(plan: Plan, call: Call, most: int) -> None:
    """What a worker writes on; it has gradients of the queries of at most so many tiles."""
    (tile_q, tile_k), n = plan.tile, columns(plan.kind)
    E, Ev, E_n = call.query.shape[-1], call.value.shape[-1], -(-call.query.shape[-1] // n) * n
    features, features_v, words, groups = plan.groups(E), plan.groups(Ev), tile_q * tile_k // 32, tile_q // RANKS
    plan.sets(rows=most * tile_q, scale=call.score.scale)
    plan.memory(
        {
            "w_query": tile_q * E, "w_grad": tile_q * Ev, "w_query_columns": tile_q * features,
            "w_grad_columns": tile_q * features_v, "w_key": tile_k * E, "w_value": tile_k * Ev,
            "w_key_columns": tile_k * E_n, "w_dk": tile_k * features, "w_dv": tile_k * features_v,
            "w_dq": most * tile_q * E_n, "w_score": tile_q * n, "w_dp": tile_q * n, "w_ds": tile_q * tile_k,
            "w_slopes": RANKS * n, "w_plain": RANKS * n, "w_flat": RANKS * n, "w_lse": tile_q, "w_delta": tile_q,
            "w_ones": n,
        },
        {
            "z_first": tile_q, "z_stop": tile_q, "z_words": words, "z_kept": words, "z_state": groups,
            "z_from": groups, "z_to": groups, "z_rows": 1, "z_fewest": groups, "z_most": groups, "z_latest": groups,
            "z_nearest": groups,
        },
    )  # fmt: skip


def tasks_of(plan: Plan, call: Call, threads: int) -> list[list[list[Task]]]:
    """Runs of lists of tasks; those of a list are done by one worker in their order, for they add to one gradient."""
    down, across = (-(-n // size) for n, size in zip(call.score.lengths, plan.tile, strict=True))
    units = [range(first, first + plan.group) for first in range(0, plan.count, plan.group)]
    # A rule's bias is written out for parts of a head.
    if len(units) >= threads and plan.rule is None:
        return [[[Task(head, 0, down, 0, across, True, True) for head in unit]] for unit in units]
    step = max(1, PART // plan.tile[0])
    of_queries = [
        [[Task(head, i, min(i + step, down), 0, across, True, False)] for i in range(0, down, step)]
        for unit in units
        for head in unit
    ]
    of_keys = [[[Task(head, 0, down, j, j + 1, False, True) for head in unit] for j in range(across)] for unit in units]
    return of_queries + of_keys


def row_sums(plan: Plan, output: Any, delta: Any) -> Callable[[int], None]:
    """What one thread does to a head before all else."""
    job = plan.job.copy()

    def add_up(head: int) -> None:
        plan.turns_to(job, head)
        compiled.row_sums(job, output, delta)

    return add_up


def worker(plan: Plan, found: Found) -> Callable[[list[Task]], None]:
    """What one thread does with a list of tasks, in memory of its own."""
    (job, w, z), flat, lengths = plan.own(), int(plan.job[0]["w_flat"]), [int(plan.job[0][x]) for x in ("L", "S")]
    w[flat : flat + RANKS * columns(plan.kind)] = 1

    def differentiate(tasks: list[Task]) -> None:
        for task in tasks:
            plan.turns_to(job, task.head)
            ends = task[1:3], task[3:5]
            parts = zip(ends, plan.tile, lengths, strict=True)
            held = plan.writes_out(job, task.head, *(slice(a * size, min(b * size, n)) for (a, b), size, n in parts))
            add = task.head % plan.group > 0
            compiled.differentiate(job, w, z, *found, *ends[0], *ends[1], task.queries, task.keys, add)
            del held

    return differentiate


def sink_gradient(call: Call, found: Found) -> Array | None:
    """The sink's weight times -D, summed over batch and queries."""
    if call.score.sink is None:
        return None
    shape = (-1, call.lead[-1], call.score.lengths[0])
    lse, delta = (x.reshape(shape).astype(np.float64) for x in (found.lse, found.delta))
    sink = np.asarray(call.score.sink, np.float64).reshape(-1, 1)
    alive = sink > -np.inf
    weight = np.exp(np.where(alive, sink, 0.0) - np.where(alive, lse, 0.0))
    return np.asarray(np.where(alive, -weight * delta, 0.0).sum(axis=(0, 2)))
