"""Bugs of heads, layout and strides: which numbers are read and where results are written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refattn.masks.families import Dense
from refattn.testing.bugs.engine import Floats, Head
from refattn.testing.bugs.mask_edits import parts
from refattn.testing.bugs.problems import TILES, Problem
from refattn.testing.bugs.record import Bug, threads

Entry = partial(Bug, family="heads, layout, strides")

SMALL, LARGE = 2**15, 2**31


def modulo_head(name: str, x: Head) -> Floats:
    """Keys or values of head h % Hk."""
    return x.read(name, x.b, x.h % x.problem.heads[1], slice(0, x.S))


def interleaved(name: str, x: Head) -> Floats:
    """Tokens of an array (B, S, H, E) that is read as (B, H, S, E)."""
    heads, tokens = getattr(x.problem, name).shape[1:3]
    head, at = (x.h, x.rows) if name == "query" else (x.kv, np.arange(x.S))
    unit = head * tokens + at
    return x.read(name, x.b, unit % heads, unit // heads)


def assumed_strides(name: str, x: Head) -> Floats:
    """The operands that were chosen, read with the strides of another order."""
    return interleaved(name, x) if name in x.choice else np.asarray(x.right(name))


def several(name: str) -> Callable[[Problem], bool]:
    """More than one head and token of an operand."""
    return lambda p: getattr(p, name).shape[1] > 1 and getattr(p, name).shape[2] > 1


def scrambled(p: Problem) -> list[str]:
    """Operands that the orders of axes tell apart."""
    names = ["query"] * several("query")(p) + ["key", "value", "key and value"] * several("key")(p)
    return names


def key_stride(x: Head) -> Floats:
    """Rows of the value that lie E apart instead of Ev; 0 past its end."""
    flat, (E, Ev) = x.right("value").reshape(-1), x.problem.dims
    at = np.arange(x.S)[:, None] * E + np.arange(Ev)
    return np.where(at < flat.size, flat[np.minimum(at, flat.size - 1)], 0.0)


def beyond_features(x: Head) -> Floats:
    """Columns from E on are 0."""
    output = x.right("output")
    return np.where(np.arange(output.shape[1]) < x.problem.dims[0], output, 0.0)


def by_query_heads(name: str, x: Head) -> Floats:
    """Packed keys or values from token offset[b] H / Hk on; 0 past the last."""
    stops = np.cumsum(x.problem.sequences[1])
    start = int(stops[x.b]) - x.S
    token = start * x.problem.group + np.arange(x.S)
    inside = np.minimum(token, stops[-1] - 1)
    b = np.searchsorted(stops, inside, side="right")
    found = x.read(name, b, x.kv, inside - (stops - x.problem.sequences[1])[b])
    return np.where((token < stops[-1])[:, None], found, 0.0)


def untransposed(x: Head) -> Floats:
    """Rows of an output (B, L, H, Ev) that is read as (B, H, L, Ev)."""
    H, L = x.problem.heads[0], x.problem.lengths[0]
    unit = x.h * L + x.rows
    found = np.zeros((len(x.rows), x.problem.dims[1]))
    for head in np.unique(unit % H):
        own = unit % H == head
        rows = unit[own] // H
        found[own] = np.where((rows < x.L)[:, None], x.of(h=int(head), rows=rows % max(x.L, 1)).output, 0.0)
    return found


def padded_lse(x: Head) -> Floats:
    """Log-sum-exps that are stored with a padded row stride and read without; 0 in the padding."""
    L = x.problem.lengths[0]
    stride = -(-L // x.choice) * x.choice
    unit = x.h * L + x.rows
    found = np.zeros(len(x.rows))
    for head in np.unique(unit // stride):
        own = (unit // stride == head) & (unit % stride < x.L)
        found[own] = x.of(h=int(head), rows=unit[own] % stride).lse
    return found


def wrapped_pages(limit: Callable[[Head], float], name: str, x: Head) -> Floats:
    """0 on the pages whose place in the pool is past a limit."""
    p = x.problem
    assert p.block_table is not None
    assert p.page_size is not None
    page = p.block_table[x.b, np.arange(x.S) // p.page_size].astype(np.int64)
    return np.where((page < limit(x))[:, None], x.right(name), 0.0)


def most_pages(x: Head) -> float:
    """Pages whose first element has an index below 2^31."""
    return LARGE / ((x.problem.page_size or 1) * x.problem.heads[1] * x.problem.dims[0])


def far_pages(limit: Callable[[Head], float]) -> Callable[[Problem], bool]:
    """A table that names a page past a limit."""

    def needs(p: Problem) -> bool:
        if p.block_table is None or p.page_size is None:
            return False
        used = np.arange(p.block_table.shape[1]) < -(-p.sequences[1] // p.page_size)[:, None]
        return bool((p.block_table[used] >= limit(Head(p, 0, 0, np.arange(0)))).any())

    return needs


def short_index(x: Head) -> Any:
    """Cells of a mask whose flat index is i S + int16(j), or an int32; those before its start are masked."""
    at = np.arange(x.S)
    if x.choice == "int16":
        flat = x.rows[:, None] * x.S + (at + SMALL) % (2 * SMALL) - SMALL
    else:
        flat = (x.rows[:, None] * x.S + at + LARGE) % (2 * LARGE) - LARGE
    keep = np.zeros(flat.shape, np.bool_)
    for n, i in enumerate(flat):
        start = np.flatnonzero(i >= 0)
        for row in np.unique(i[start] // x.S):
            own = start[i[start] // x.S == row]
            cells = np.broadcast_to(x.mask.tile(np.asarray([row]), slice(0, x.S), x.L, x.S, xp=np), (1, x.S))
            keep[n, own] = cells[0, i[own] % x.S]
    return keep


def long_masks(p: Problem) -> list[str]:
    """Integers that an index into an array of cells does not fit in."""
    if not any(isinstance(part, Dense) for part in parts(p.mask)):
        return []
    L, S = p.lengths
    return [name for name, most, n in (("int16", SMALL, S), ("int32", LARGE, L * S)) if n > most]


def partial_groups(x: Head) -> Any:
    """Keys of the tiles in whole groups of 32."""
    whole = -(-x.S // x.choice) // 32 * 32
    return x.right("keep") & (np.arange(x.S) < whole * x.choice)


HEAD_BUGS = (
    Entry(
        id="D1",
        name="query heads read key heads in turns instead of in groups",
        symptom="wrong heads with grouped queries",
        formula="key head h mod Hk (should be h div (H / Hk))",
        links=threads("onnx#7274 native-sparse-attention-triton#27"),
        needs=lambda p: p.group > 1 and p.heads[1] > 1,
        steps={name: partial(modulo_head, name) for name in ("key", "value")},
    ),
    Entry(
        id="D2",
        name="packed operands (B, S, H E) are reshaped to (B, H, S, E) without a transpose",
        symptom="tokens and heads are scrambled",
        formula="x.reshape(B, H, S, E) (should be x.reshape(B, S, H, E) transposed)",
        links=threads("onnx#7118 onnx#7142"),
        needs=lambda p: several("query")(p) or several("key")(p),
        steps={name: partial(interleaved, name) for name in ("query", "key", "value")},
    ),
    Entry(
        id="D3",
        name="the row stride of the key is used for the value",
        symptom="wrong where E and Ev differ",
        formula="v[j] read from j E on (should be j Ev)",
        links=threads("MLX#1558"),
        needs=lambda p: p.dims[0] != p.dims[1] and p.lengths[1] > 1,
        steps={"value": key_stride},
    ),
    Entry(
        id="D5",
        name="strides are assumed from the shape",
        symptom="right for contiguous operands only",
        formula="x[b, h, s] of an array that is stored as (B, S, H, E) read as (B, H, S, E)",
        links=threads("FA#2541 FA#2545 FA#2665 FA#2666 FA#2670 NVTE#3216"),
        choices=scrambled,
        steps={name: partial(assumed_strides, name) for name in ("query", "key", "value")},
    ),
    Entry(
        id="D8",
        name="the columns of the output are bounded by E instead of Ev",
        symptom="columns of the value are dropped",
        formula="o[:, E:] = 0",
        links=threads("FA@e3b2400a FA@6d199aa2 native-sparse-attention-triton#27"),
        needs=lambda p: p.dims[0] < p.dims[1],
        steps={"output": beyond_features},
    ),
    Entry(
        id="D9",
        name="the offset of a packed sequence counts query heads instead of key heads",
        symptom="sequences after the first read other keys",
        formula="offset[b] H E (should be offset[b] Hk E)",
        links=threads("jax@be78ee0f"),
        needs=lambda p: p.group > 1 and len(p.query) > 1,
        steps={name: partial(by_query_heads, name) for name in ("key", "value")},
        seen_in="output",
    ),
    Entry(
        id="D10",
        name="the output is written in the order of another layout",
        symptom="rows land in other heads",
        formula="o[b, h, i] read from an output that is stored as (B, L, H, Ev)",
        links=threads("MLX#2152"),
        needs=several("query"),
        steps={"output": untransposed},
    ),
    Entry(
        id="D11",
        name="the log-sum-exp is written with a padded row stride and read without",
        symptom="the log-sum-exp of a row is that of another",
        formula="lse[h ceil(L / 128) 128 + i] (should be lse[h L + i])",
        links=threads("FA#2388 xformers#391 xformers@41646dbb"),
        choices=lambda p: [n for n in TILES if p.lengths[0] % n and p.heads[0] > 1],
        label="rows padded to {}",
        steps={"lse": padded_lse},
    ),
    Entry(
        id="D12",
        name="the number of keys is taken from the query",
        symptom="keys from L on are ignored",
        formula="S = L",
        links=threads("jax@bd9a10e4"),
        needs=lambda p: p.lengths[1] > p.lengths[0],
        steps={"keep": lambda x: x.right("keep") & (np.arange(x.S) < x.L)},
        seen_in="keep",
    ),
    Entry(
        id="D13",
        name="the product of page and stride overflows a 32-bit integer",
        symptom="pages far back in the pool are read as others, or as zeros",
        formula="int32(page * stride), so that k = v = 0 past 2^31 elements",
        links=threads("FI#3136 vllm#1514 vllm#50427 FA#2260 FA#1500 FA#2662 SageAttention#386 xformers@89d3014f"),
        needs=far_pages(most_pages),
        steps={name: partial(wrapped_pages, most_pages, name) for name in ("key", "value")},
    ),
    Entry(
        id="D14",
        name="the index into the mask overflows",
        symptom="wrong past 32768 keys, or past 2^31 cells",
        formula="m[i S + int16(j)], or m[int32(i S + j)]",
        links=threads("FI#1271 FI#1290 llama.cpp#24912 llama.cpp#23610 MLX#3361 MLX#2903 xformers@471569b4"),
        choices=long_masks,
        label="an index of {}",
        steps={"keep": short_index},
        seen_in="keep",
    ),
    Entry(
        id="D15",
        name="the number of a page is stored in 16 bits",
        symptom="garbage where the pool has more than 65536 pages",
        formula="uint16(page), so that k = v = 0 on the others",
        links=threads("ATOM#702"),
        needs=far_pages(lambda x: 2**16),
        steps={name: partial(wrapped_pages, lambda x: 2**16, name) for name in ("key", "value")},
    ),
    Entry(
        id="D17",
        name="the last reduction covers multiples of 32 partial results only",
        symptom="the last keys are lost",
        formula="sum over 32 floor(n / 32) of n partial results",
        links=threads("MLX#3875"),
        choices=lambda p: [n for n in TILES if -(-p.lengths[1] // n) > 32 and -(-p.lengths[1] // n) % 32],
        label="partial results of {} keys",
        steps={"keep": partial_groups},
        seen_in="keep",
    ),
)
