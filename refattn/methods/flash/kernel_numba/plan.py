"""A call as kernels read it: addresses and strides, masks as intervals or blocks, and memory for each worker."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn import biases
from refattn._call import Call
from refattn._core.arrays import dtype_name
from refattn._core.numba_math import COLUMNS, RANKS, VECTOR_BYTES
from refattn._core.numba_tiles import CODES

Ints = np.ndarray[Any, np.dtype[np.int64]]
# Addresses of each head, what must outlive them, and how many keys a row visits.
Found = tuple[dict[str, Any], list[Any], float]

LOG2E = math.log2(math.e)
INTERVALS, BLOCKS = 1, 2
SKIPPED, WHOLE, PARTIAL = 0, 1, 2  # a group of keys, for a block of queries


def accumulation(call: Call) -> type[Any]:
    """Choose float32, or float64 where some operand or the result needs it."""
    narrow = ("float32", "float16", "bfloat16", "int8", "uint8", "int16", "uint16")
    names = [dtype_name(x) for x in (call.query, call.key, call.value)] + [call.dtype]
    return np.float32 if all(x in narrow or x.startswith("float8") for x in names) else np.float64


def columns(kind: type[Any]) -> int:
    """Numbers side by side in a block."""
    return COLUMNS * VECTOR_BYTES // np.dtype(kind).itemsize


def operand(job: Any, name: str, x: np.ndarray[Any, Any], kind: type[Any]) -> tuple[Ints, Any]:
    """Tell a job how to read an array (..., rows, columns): the address of each head, and what must outlive them."""
    if dtype_name(x) not in CODES or not x.dtype.isnative:
        x = x.astype(kind)
    job[f"{name}_row"], job[f"{name}_column"], job[f"{name}_code"] = *x.strides[-2:], CODES[dtype_name(x)]
    heads = np.zeros((1,) * (x.ndim - 2), np.int64)
    for axis, (n, stride) in enumerate(zip(x.shape[:-2], x.strides[:-2], strict=True)):
        heads = heads + (np.arange(n, dtype=np.int64) * stride).reshape((-1,) + (1,) * (x.ndim - 3 - axis))
    return np.asarray(heads.reshape(-1) + address(x)), x


def address(x: np.ndarray[Any, Any]) -> int:
    """Where the first number of an array lies."""
    return int(x.__array_interface__["data"][0])


def places(lead: tuple[int, ...], heads: tuple[int, ...], rows: int) -> Ints:
    """Place of the first row of each head, among those of the leading axes that a mask tells apart."""
    at = np.arange(math.prod(lead), dtype=np.int64).reshape(lead) * rows
    return np.broadcast_to(at, heads).reshape(-1)


def intervals(mask: Any, call: Call) -> Found | None:
    """Where the intervals of each head lie, and what must outlive these addresses; None for a mask that is none."""
    L, S = call.score.lengths
    bounds = mask.bounds(L, S)
    if bounds is None:
        return None
    held = [np.ascontiguousarray(x, dtype=np.int32) for x in bounds]
    at = places(mask.lead, call.lead, L) * 4
    visited = float(np.maximum(held[1] - held[0], 0).mean()) if held[0].size else 0.0
    return {name: at + address(x) for name, x in zip(("first", "stop"), held, strict=True)}, held, visited


def blocks(mask: Any, call: Call, tile: tuple[int, int], prefix: str) -> Found:
    """Where the block lists of each head lie, and what must outlive these addresses."""
    found = mask.blocks(*call.score.lengths, *tile)
    # The bits word by word, as the queries lie side by side.
    bits = np.ascontiguousarray(found.bits.transpose(0, 2, 1))
    held = [np.ascontiguousarray(x) for x in (found.indptr, found.indices, found.tile)]
    held += [bits, states(bits, columns(accumulation(call)))]
    strips = places(mask.lead, call.lead, -(-call.score.lengths[0] // tile[0])) * 4
    names = (f"{prefix}{name}" for name in ("indptr", "indices", "tile", "bits", "states"))
    at = (address(x) + (strips if x is held[0] else np.zeros_like(strips)) for x in held)
    return dict(zip(names, at, strict=True)), held, found.indices.size * tile[1] / max(1, found.indptr.size - 1)


def states(bits: np.ndarray[Any, Any], n: int) -> np.ndarray[Any, Any]:
    """What n queries see of RANKS keys, (tile, block, group), from bits (tile, word, query)."""
    tiles, words, queries = bits.shape
    of_block = bits.view(np.uint32).reshape(tiles, words, queries // n, n)
    ones = np.uint32(2**RANKS - 1)
    groups = np.arange(0, 32, RANKS, dtype=np.uint32)
    some, every = (x.reduce(of_block, axis=-1)[..., None] >> groups & ones for x in (np.bitwise_or, np.bitwise_and))
    found = np.where(some == 0, SKIPPED, np.where(every == ones, WHOLE, PARTIAL)).astype(np.uint8)
    return np.ascontiguousarray(found.transpose(0, 2, 1, 3))


def aligned(count: int, kind: Any) -> np.ndarray[Any, Any]:
    """Memory for so many numbers that begins where a vector may."""
    size = np.dtype(kind).itemsize
    x = np.empty(count + VECTOR_BYTES // size, kind)
    skip = -address(x) // size % (VECTOR_BYTES // size)
    return x[skip : skip + count]


def laid_out(job: Any, sizes: dict[str, int]) -> int:
    """Give each part of a worker's memory its offset, at the begin of a vector; the size of all."""
    total = 0
    for name, size in sizes.items():
        job[name] = total
        total += -(-size // VECTOR_BYTES) * VECTOR_BYTES
    return total


def table(mask: Any, call: Call, tile: tuple[int, int], prefix: str) -> Found:
    """Where the table of tiles of each head lies, and the bits, and what must outlive these addresses."""
    (L, S), (tile_q, tile_k) = call.score.lengths, tile
    found, across, down = mask.blocks(L, S, tile_q, tile_k), -(-S // tile_k), -(-L // tile_q)
    strip = np.repeat(np.arange(found.indptr.size - 1), np.diff(found.indptr))
    entries = np.zeros((found.indptr.size - 1, across), np.int32)
    entries[strip, found.indices] = found.tile + 2
    held = [entries, np.ascontiguousarray(found.bits)]
    at = places(mask.lead, call.lead, down * across) * 4 + address(entries)
    visited = found.indices.size * tile_k / max(1, found.indptr.size - 1)
    return {f"{prefix}table": at, f"{prefix}bits": np.full_like(at, address(held[1]))}, held, visited


class Plan:
    """What all heads of a call share, in `job`, and what each head sets there before it runs, in `heads`."""

    def __init__(self, call: Call, layout: Any, tile: tuple[int, int], kind: type[Any]) -> None:
        score, self.kind, self.tile, self.job = call.score, kind, tile, np.zeros(1, layout)
        self.heads: dict[str, Any] = {}
        self.held: list[Any] = []
        (L, S), E, Ev = score.lengths, call.query.shape[-1], call.value.shape[-1]
        self.sets(L=L, S=S, E=E, Ev=Ev, tile_q=tile[0], tile_k=tile[1])
        assert score.groups is not None
        self.count, self.group = math.prod(call.lead), score.groups[1]
        self.keys = float(S)  # that a row visits, on average
        self.reads("query", call.query)
        self.reads("key", call.key, self.group)
        self.reads("value", call.value, self.group)
        self.rule = None if isinstance(score.bias, biases.ArrayBias) else score.bias
        self.indices = list(np.ndindex(*call.lead))
        if isinstance(score.bias, biases.ArrayBias):
            self.reads("bias", np.broadcast_to(score.bias.values, (*call.lead, L, S)))
        cap = score.softcap
        self.sets(
            factor=score.scale * LOG2E if cap is None else 2 * LOG2E * score.scale / cap,
            cap=0.0 if cap is None else cap * LOG2E,
            growth=1.0 if score.dropout is None else score.dropout.factor,
        )

    def sets(self, **fields: Any) -> None:
        """Set what all heads share."""
        for name, x in fields.items():
            self.job[0][name] = x

    def reads(self, name: str, x: Any, times: int = 1) -> None:
        """Tell where an array lies, each head of which so many query heads read."""
        at, held = operand(self.job[0], name, x, self.kind)
        self.heads[name] = np.repeat(at, times) if times > 1 else at
        self.held.append(held)

    def bytes_of(self, name: str, x: Any, inner: int = 1) -> None:
        """Tell where each head of an array (..., H, *inner axes) begins."""
        at = np.zeros((1,) * (x.ndim - inner), np.int64)
        for axis, (n, stride) in enumerate(zip(x.shape[:-inner], x.strides[:-inner], strict=True)):
            at = at + (np.arange(n, dtype=np.int64) * stride).reshape((-1,) + (1,) * (x.ndim - inner - 1 - axis))
        self.heads[name] = at.reshape(-1) + address(x)
        self.held.append(x)

    def takes(self, found: Found) -> None:
        """Addresses of each head, and what they point into."""
        self.heads |= found[0]
        self.held += found[1]

    def masks(self, call: Call, form: Any) -> None:
        """Mask and dropout, of which blocks are read in the form that the kernel reads."""
        mask, dropout = call.score.mask, call.score.dropout
        if mask is not None:
            found = intervals(mask, call)
            self.sets(mask=BLOCKS if found is None else INTERVALS)
            found = form(mask, call, self.tile, "") if found is None else found
            self.keys = found[2]
            self.takes(found)
        if dropout is not None:
            self.sets(dropout=BLOCKS)
            self.takes(form(dropout.mask, call, self.tile, "drop_"))

    def memory(self, numbers: dict[str, int], integers: dict[str, int]) -> None:
        """Lay out what a worker writes on."""
        self.numbers, self.integers = laid_out(self.job[0], numbers), laid_out(self.job[0], integers)

    def own(self) -> tuple[Any, Any, Any]:
        """A worker's copy of the job, and its memory, of which only the row of ones is set."""
        job, w, z = self.job.copy(), aligned(self.numbers, self.kind), aligned(self.integers, np.int32)
        at = int(job[0]["w_ones"])
        job[0]["memory"] = address(w)
        w[at : at + columns(self.kind)] = 1
        return job, w, z

    def turns_to(self, job: Any, head: int) -> None:
        """Set what one head has of its own."""
        for name, at in self.heads.items():
            job[0][name] = at[head]

    def writes_out(self, job: Any, head: int, i: slice, j: slice) -> Any:
        """Tell a job where the bias of these queries and keys lies, if it is a rule; what must outlive the address."""
        if self.rule is None:
            return None
        (L, S), kind = (int(job[0][name]) for name in ("L", "S")), self.kind
        tile = self.rule.at(self.indices[head]).tile(i, j, L, S, xp=np)
        values = np.array(np.broadcast_to(tile, (i.stop - i.start, j.stop - j.start)), kind, order="C")
        row, column = values.strides
        begin = address(values) - i.start * row - j.start * column
        fields = {"bias": begin, "bias_row": row, "bias_column": column, "bias_code": CODES[np.dtype(kind).name]}
        for name, x in fields.items():
            job[0][name] = x
        return values

    def groups(self, features: int) -> int:
        """Features up to whole groups."""
        return -(-features // RANKS) * RANKS


def tiles_of(call: Call, given: tuple[int | None, int | None], default: tuple[int, int]) -> tuple[int, int]:
    """Tile sizes in whole words of a mask's bits, 32, and no larger than the call needs."""
    sizes = zip(given, default, call.score.lengths, strict=True)
    tile_q, tile_k = (max(32, -(-min(own if x is None else x, n) // 32) * 32) for x, own, n in sizes)
    return tile_q, tile_k
