"""Bugs of heads, layout and strides: which numbers are read and where results are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from refattn.masks.families import Dense
from refattn.testing.bugs.cuts import COUNTS, Cuts
from refattn.testing.bugs.engine import Floats, Head, without_nan
from refattn.testing.bugs.mask_edits import parts
from refattn.testing.bugs.problems import PADDED, SIZES, Problem
from refattn.testing.bugs.record import Bug, threads

Entry = partial(Bug, family="heads, layout, strides")

SMALL, LARGE = 2**15, 2**31
AXES = {"bhld": "bhl", "blhd": "blh", "lbhd": "lbh"}


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
    """Packed keys or values from token offset[b] H / Hk on; past the last 0, the last again, or what nobody knows."""
    stops = np.cumsum(x.problem.sequences[1])
    start = int(stops[x.b]) - x.S
    token = start * x.problem.group + np.arange(x.S)
    inside = np.minimum(token, stops[-1] - 1)
    b = np.searchsorted(stops, inside, side="right")
    found = x.read(name, b, x.kv, inside - (stops - x.problem.sequences[1])[b])
    if x.choice != "the last token":
        found = np.where((token < stops[-1])[:, None], found, 0.0 if x.choice == "0" else math.nan)
    return found


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


def lse_strides(p: Problem) -> Iterator[tuple[int, str, bool]]:
    """Row strides that L is padded to; where they are used; and whether the batch has a stride of its own."""
    L, H = p.lengths[0], p.heads[0]
    padded = [n for n in dict.fromkeys(-(-L // n) * n for n in PADDED) if n != L]
    some = [(n, where) for n in padded for where in ("written", "read")]
    yield from ((n, where, True) for n, where in some if H > 1)
    yield from ((n, where, False) for n, where in some if len(p.query) > 1)


def padded_lse(x: Head) -> Floats:
    """Log-sum-exps of which one of writing and reading has a padded row stride; NaN where none was written."""
    stride, where, apart = x.choice
    (L, _), (H, _) = x.problem.lengths, x.problem.heads
    written, read = (stride, L) if where == "written" else (L, stride)
    unit, row = np.divmod((x.h if apart else x.b * H + x.h) * read + x.rows, written)
    found = np.full(len(x.rows), math.nan)
    for u in np.unique(unit):
        b, h = (x.b, int(u)) if apart else divmod(int(u), H)
        if b < len(x.problem.query) and h < H:
            own = (unit == u) & (row < x.problem.sequences[0][b])
            found[own] = x.of(b=b, h=h, rows=row[own]).lse
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


OPERANDS = ("query", "key", "value")


def poisoned_operands(p: Problem) -> list[tuple[str, float]]:
    """Operands that lie in larger arrays of NaN, and what a row of NaN becomes."""
    some = ("query, key and value", "key and value", *OPERANDS)
    return list(itertools.product(some, (math.nan, 0.0))) if p.margin else []


def strides_of_shape(name: str, x: Head) -> Floats:
    """Rows of an operand that is stored with margins of NaN, read with the strides of its shape."""
    if name not in x.choice[0]:
        return np.asarray(x.right(name))
    h, at = (x.h, x.rows) if name == "query" else (x.kv, np.arange(x.S))
    margin, axes = x.problem.margin, AXES[x.problem.order]
    size = dict(zip("bhl", getattr(x.problem, name).shape[:3], strict=True))
    place = {"b": np.full(len(at), x.b), "h": np.full(len(at), h), "l": at}
    held, whole = [size[a] for a in axes], [size[a] + 2 * margin for a in axes]
    start = np.ravel_multi_index([margin] * 3, whole)
    unit = start + np.ravel_multi_index([place[a] for a in axes], held)
    found = [n - margin for n in np.unravel_index(np.minimum(unit, math.prod(whole) - 1), whole)]
    inside = (unit < math.prod(whole)) & np.logical_and.reduce(
        [(n >= 0) & (n < most) for n, most in zip(found, held, strict=True)]
    )
    of = {a: np.clip(n, 0, most - 1) for a, n, most in zip(axes, found, held, strict=True)}
    return np.where(inside[:, None], x.read(name, of["b"], of["h"], of["l"]), math.nan)


@dataclass(frozen=True)
class Groups:
    """Parts of the keys of which whole groups are reduced.

    Parameters
    ----------
    parts : int or Cuts
        Keys in each part, or how they are cut into splits.
    group : int
        Parts in a group.
    """

    parts: int | Cuts
    group: int

    def reduced(self, S: int) -> int:
        """Return how many keys take part.

        Parameters
        ----------
        S : int
            Number of keys.

        Returns
        -------
        int
            S where the groups are whole, or where the parts do not fill one.
        """
        edges = (
            np.minimum(np.arange(-(-S // self.parts) + 1) * self.parts, S)
            if isinstance(self.parts, int)
            else self.parts.edges(S)
        )
        whole = (len(edges) - 1) // self.group * self.group
        return int(edges[whole]) if whole else S

    def __str__(self) -> str:
        """In words."""
        return f"groups of {self.group}, " + (
            f"parts of {self.parts} keys" if isinstance(self.parts, int) else str(self.parts)
        )


def group_sizes(p: Problem) -> Iterator[Groups]:
    """Parts and groups that leave some keys out, each number of keys once."""
    lengths, seen = np.unique(p.sequences[1]).tolist(), set[tuple[int, ...]]()
    splits = itertools.starmap(Cuts, itertools.product(COUNTS, (1, *SIZES), (False, True)))
    partitions: list[int | Cuts] = [*(n for n in SIZES if n < lengths[-1]), *splits]
    for partition, group in itertools.product(partitions, (2, 4, 8, 16, 32)):
        groups = Groups(partition, group)
        left = tuple(map(groups.reduced, lengths))
        if left not in seen and left != tuple(lengths):
            seen.add(left)
            yield groups


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
        steps={name: partial(assumed_strides, name) for name in OPERANDS},
    ),
    Entry(
        id="D5",
        name="strides are assumed from the shape, though operands are views of larger arrays",
        symptom="right for contiguous operands only",
        formula="x[b, h, s] read at ((b H + h) S + s) E from the first number on",
        links=threads("FA#2541 FA#2545 FA#2665 FA#2666 FA#2670 NVTE#3216"),
        choices=poisoned_operands,
        label="of {0[0]}, where a row of NaN becomes {0[1]}",
        steps={
            **{name: partial(strides_of_shape, name) for name in OPERANDS},
            "output": lambda x: without_nan(x, x.choice[1]),
        },
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
        choices=lambda p: ("0", "the last token", "anything"),
        label="past the end: {}",
        steps={name: partial(by_query_heads, name) for name in ("key", "value")},
        leftover=True,
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
        name="the log-sum-exp is written and read with different row strides, one of them padded",
        symptom="the log-sum-exp of a row is that of another",
        formula="lse[h ceil(L / 128) 128 + i] (should be lse[h L + i])",
        links=threads("FA#2388 xformers#391 xformers@41646dbb"),
        choices=lse_strides,
        label="a stride of {0[0]} where it is {0[1]}",
        steps={"lse": padded_lse},
        leftover=True,
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
        name="the last reduction covers whole groups of partial results only",
        symptom="the last keys are lost",
        formula="sum over g floor(n / g) of n partial results, g = 32 or less",
        links=threads("MLX#3875"),
        choices=group_sizes,
        steps={"keep": lambda x: x.right("keep") & (np.arange(x.S) < x.choice.reduced(x.S))},
        seen_in="keep",
    ),
)
