"""The forward pass of a call: its tiles, its tasks, and what each worker does with them.

Sizes of tiles. In a core's first-level cache lie the queries of one block, E n numbers, and its scores, tile_k n: 8 and
16 KiB with n = 32 columns of float32 and E = 64, all of 32 KiB with E = 128. In its second-level cache lie the queries
and the output of a query tile, tile_q (E + Ev), and one key tile, tile_k (E + Ev): 192 KiB, 384 KiB for E = 128. A key
tile is read from further away once for tile_q queries: 4 bytes for 2 tile_q operations. Measured, all of 128 to 384
queries by 96 to 256 keys are within 2 % of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refattn._call import Call
from refattn._core import numba as workers
from refattn._core.arrays import Array
from refattn._core.numba_math import RANKS
from refattn.methods.flash.kernel_numba import forward as compiled
from refattn.methods.flash.kernel_numba.plan import LOG2E, Plan, accumulation, address, blocks, columns, tiles_of

TILE = (256, 128)
# Multiply-adds of one task: about a millisecond, so that an interrupt is heard and the last task is waited for briefly.
TASK = 0.5e8


class Task(NamedTuple):
    """Query tiles first .. stop of a query head."""

    head: int
    first: int
    stop: int


def forward(call: Call, tile_q: int | None, tile_k: int | None, threads: int | None) -> tuple[Array, Array]:
    """Output (..., H, L, Ev) and log-sum-exp (..., H, L), in the dtype of accumulation."""
    kind, L, Ev = accumulation(call), call.score.lengths[0], call.value.shape[-1]
    plan = Plan(call, compiled.JOB, tiles_of(call, (tile_q, tile_k), TILE), kind)
    plan.masks(call, blocks)
    heads = np.arange(plan.count)
    output, lse = np.empty((*call.lead, L, Ev), kind), np.empty((*call.lead, L), kind)
    plan.heads |= {"sink": sinks_of(call), "lse": heads * L, "output_at": heads * L * Ev}
    plan.heads["output"] = heads * L * Ev * output.itemsize + address(output)
    lay_out(plan, call)
    workers.share(tasks_of(plan, call), lambda: worker(plan, output, lse), workers.many(threads))
    return output, lse


def sinks_of(call: Call) -> Any:
    """The sink of each head of each batch entry, in base 2; -inf for none."""
    if call.score.sink is None:
        return np.full(call.lead, -np.inf).reshape(-1)
    return np.broadcast_to(np.asarray(call.score.sink, np.float64).reshape(-1) * LOG2E, call.lead).reshape(-1)


def lay_out(plan: Plan, call: Call) -> None:
    """What a worker writes on: keys and values of a whole head, and all else of one tile."""
    (tile_q, tile_k), n, S = plan.tile, columns(plan.kind), call.score.lengths[1]
    E, features, keys = call.query.shape[-1], plan.groups(call.value.shape[-1]), -(-S // tile_k) * tile_k
    plan.memory(
        {
            "w_query": tile_q * E, "w_key": keys * E, "w_value": keys * features, "w_score": tile_k * n,
            "w_output": tile_q * features, "w_lost": tile_q * features, "w_m": tile_q, "w_l": tile_q,
            "w_largest": n, "w_alpha": n, "w_ones": n,
        },
        {
            "z_first": tile_q, "z_stop": tile_q, "z_seen": tile_q, "z_state": tile_k // RANKS,
            "z_held": 1, "z_words": tile_q * tile_k // 32, "z_drop": tile_q * tile_k // 32, "z_packed": keys // tile_k,
        },
    )  # fmt: skip


def tasks_of(plan: Plan, call: Call) -> list[list[Task]]:
    """Tasks of about one size; those of the query heads that read one key head are one run."""
    count, features = -(-call.score.lengths[0] // plan.tile[0]), call.query.shape[-1] + call.value.shape[-1]
    step = max(1, int(TASK / (plan.tile[0] * max(plan.keys, 1.0) * features)))
    return [
        [Task(head, i, min(i + step, count)) for head in range(unit, unit + plan.group) for i in range(0, count, step)]
        for unit in range(0, plan.count, plan.group)
    ]


def worker(plan: Plan, output: Any, lse: Any) -> Callable[[Task], None]:
    """What one thread does with a task, in memory of its own."""
    (job, w, z), unit, (L, S) = plan.own(), -1, (int(plan.job[0][name]) for name in ("L", "S"))
    z[job[0]["z_held"]] = compiled.UNHELD

    def attend(task: Task) -> None:
        nonlocal unit
        plan.turns_to(job, task.head)
        if unit != task.head // plan.group:
            unit = task.head // plan.group
            z[job[0]["z_packed"] :] = 0
        # A rule's bias is written out for one query tile at a time.
        step = task.stop - task.first if plan.rule is None else 1
        for first in range(task.first, task.stop, step):
            rows = slice(first * plan.tile[0], min(L, (first + step) * plan.tile[0]))
            held = plan.writes_out(job, task.head, rows, slice(0, S))
            compiled.attend(job, w, z, output.reshape(-1), lse.reshape(-1), first, first + step)
            del held

    return attend
