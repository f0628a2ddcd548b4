"""Where packed and paged keys and values are read from: every cell of memory has a value of its own.

Queries and keys are zero and the values one-hot over the cells of the kernel's own memory, those of no token included:
the output is the share that each cell has in each row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.tiles import tiles
from refattn.contract.formats import unit
from refattn.masks import Mask
from refattn.testing.explanation import Explanation
from refattn.testing.inputs import batches
from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.problems import Inputs, input_dtype, unvaried
from refattn.testing.probes.measured import within
from refattn.testing.probes.model import Floats, Ints
from refattn.testing.probes.packed import read_rows
from refattn.testing.probes.readings import Readings
from refattn.testing.probes.setting import called_with, plain
from refattn.testing.probes.told import explained
from refattn.testing.probes.words import numbers
from refattn.testing.running import OPERANDS
from refattn.testing.spec import KernelSpec

# Sequences that are described by themselves.
FEW = 4
# Where the head axis lies in the memory of keys and values.
HEAD_AXIS = {"bhld": 1, "blhd": 2, "lbhd": 2, "packed": 1, "nhd": 2, "hnd": 1}


@dataclass(frozen=True, eq=False)
class Memory:
    """A batch of sequences as a kernel holds it; `token` (cells,) is sequence * S + place of each cell, or -1."""

    spec: KernelSpec
    lengths: tuple[tuple[int, int], ...]
    inputs: Inputs
    handed: dict[str, npt.NDArray[Any]]
    axis: int
    token: Ints

    @property
    def S(self) -> int:
        """Places that each sequence has in `token`."""
        return int(self.inputs.key.shape[2])

    def cells(self, b: int) -> Ints:
        """The cells of one sequence's tokens, in their order."""
        found = np.flatnonzero(self.token // self.S == b) if len(self.token) else np.empty(0, np.int64)
        return found[np.argsort(self.token[found])]

    def value(self, columns: slice) -> npt.NDArray[Any]:
        """Values in memory that are one-hot over some of the cells."""
        one = np.zeros((len(self.token), self.inputs.value.shape[-1]))
        at = np.arange(columns.start, columns.stop)
        one[at, at - columns.start] = 1.0
        whole = self.handed["value"]
        apart = np.delete(whole.shape, self.axis)
        return np.broadcast_to(np.expand_dims(one.reshape(apart), self.axis), whole.shape).astype(whole.dtype)


def read_pages(spec: KernelSpec, *, quick: bool) -> Readings:
    """Where the kernel reads the keys and values of sequences of different lengths.

    Parameters
    ----------
    spec : KernelSpec
        A kernel that takes tables.
    quick : bool
        Run the longest lengths alone.

    Returns
    -------
    Readings
        What was read that the tables do not ask for; of a mask nothing.
    """
    shapes = [x for x in dict.fromkeys(spec.lengths) if x[0] == x[1] or not spec.arguments(*x).get("is_causal")]
    longest = sorted(shapes, key=lambda x: x[0] * x[1])[-1:]
    told: list[Explanation] = []
    calls = 0
    for pair in longest if quick else [*longest, *(x for x in shapes if x not in longest)]:
        if told:
            break
        memory = _memory(spec, pair)
        got, fault, made = _shares(memory)
        calls += made
        told += [explained(fault)] if fault else _read(memory, got)
        if not told:
            told += read_rows(spec, memory.lengths, memory.inputs)
            calls += 1
    return Readings(explanations=tuple(told), calls=calls)


def _memory(spec: KernelSpec, lengths: tuple[int, int]) -> Memory:
    """Sequences of different lengths, and the memory that they are in."""
    square = bool(spec.arguments(*lengths).get("is_causal", False))
    rng = np.random.default_rng(0)
    # The lengths that each table is tried with, but no sequence without queries, of which there is nothing to read.
    tried = (batches.lengths_of(spec, name, 1, lengths, rng, square=square) for name in spec.tables)
    pairs = tuple(pair for found in tried for pair in found if pair[0])
    (H, Hk), (E, Ev), contract = spec.heads, spec.features[0], spec.numerics()
    B, L, S = len(pairs), max(l for l, _ in pairs), max(s for _, s in pairs)
    queries, keys = np.array(pairs, dtype=np.int64).T
    batch = Batch(queries, keys, 1)
    shapes = ((B, H, L, E), (B, Hk, S, E), (B, Hk, S, Ev))
    zeros = [
        np.zeros(shape).astype(_dtype(getattr(contract, name))) for name, shape in zip(OPERANDS, shapes, strict=True)
    ]
    inputs = Inputs(zeros[0], zeros[1], zeros[2], spec.arguments(L, S), unvaried(spec, E), batch)
    operands, tables = batches.stored(spec, batch, zeros, tails=0.0, unused=0.0)
    number = (np.arange(B)[:, None] * S + np.arange(S) + 1.0)[:, None, :, None]
    marked = [zeros[0], *(np.broadcast_to(number, x.shape).astype(np.float64) for x in zeros[1:])]
    held = batches.stored(spec, batch, marked, tails=0.0, unused=0.0)[0][1]
    packed = "packed" if "cu_seqlens_k" in spec.tables else spec.stored.order
    axis = HEAD_AXIS[spec.stored.pages if "block_table" in spec.tables else packed]
    token = np.take(held[..., 0], 0, axis=axis).reshape(-1).astype(np.int64) - 1
    return Memory(spec, pairs, inputs, {**dict(zip(OPERANDS, operands, strict=True)), **tables}, axis, token)


def _dtype(name: str) -> Any:
    """The dtype of arrays in a format."""
    import ml_dtypes

    name = input_dtype(name)
    return np.dtype(getattr(ml_dtypes, name, name))


def _shares(memory: Memory) -> tuple[Floats, str, int]:
    """The share (B, H, L, cells) of each cell in each row, or what went wrong, and the number of calls."""
    B, H, L = memory.inputs.query.shape[:3]
    cells, Ev = len(memory.token), memory.inputs.value.shape[-1]
    got = np.zeros((B, H, L, cells))
    calls = 0
    for columns in tiles(cells, Ev):
        returned = called_with(memory.spec, memory.inputs, {**memory.handed, "value": memory.value(columns)})
        calls += 1
        if returned.fault:
            return got, returned.fault, calls
        got[..., columns] = returned.output[..., : columns.stop - columns.start].reshape(B, H, L, -1)
    return got, "", calls


def _asked(memory: Memory, offset: int | None = None) -> Floats:
    """How often each cell is to take part in each row (B, H, L, cells), under masks of each sequence's own lengths.

    An offset is that of all masks in the place of each one's own.
    """
    B, H, L = memory.inputs.query.shape[:3]
    asked = np.zeros((B, H, L, len(memory.token)))
    spec = memory.spec
    for b, (l, s) in enumerate(memory.lengths):
        if l and s:
            own = spec.arguments(l, s)
            keep = np.asarray(plain(spec, 1, (l, s), spec.features[0]).model.counts)
            if offset is not None and isinstance(own.get("mask"), Mask):
                keep = own["mask"].reanchored(offset).tile(slice(0, l), slice(0, s), l, s, xp=np)
            asked[b, :, :l][..., memory.cells(b)] = keep
    return asked


def _fits(memory: Memory, got: Floats, asked: Floats) -> npt.NDArray[np.bool_]:
    """Where the shares are those of cells that take part alike."""
    contract = memory.spec.numerics()
    eps = 32 * unit(contract.accumulator) + 2 * contract.exp_ulp * unit(contract.accumulator)
    eps += 2 * unit(contract.probabilities) * contract.normalised_probabilities
    total = np.maximum(asked.sum(axis=-1, keepdims=True), 1.0)
    return within(got, asked / total, eps * asked / total, contract.output)


def _read(memory: Memory, got: Floats) -> list[Explanation]:
    """What the shares tell."""
    sinks = memory.spec.arguments(*memory.lengths[0]).get("sinks")
    if sinks is not None or any(memory.spec.arguments(*x).get("bias") is not None for x in memory.lengths):
        return []
    asked = _asked(memory)
    fits = _fits(memory, got, asked)
    if fits.all():
        return []
    for bug, name, other in _suspects(memory, asked):
        if (other != asked).any() and _fits(memory, got, other).all():
            wrong = np.flatnonzero(~fits.all(axis=(1, 2, 3)))
            return [explained(name, numbers("sequence", wrong), bug=bug, strength=1.0)]
    if (sequences := _of_query_heads(memory, got, asked, fits)) is not None:
        name = "sequences of keys start at their tokens times G: H is taken for Hk"
        return [explained(name, sequences, bug="D9", strength=1.0)]
    return list(itertools.islice(_each(memory, got, asked, fits), FEW))


def _suspects(memory: Memory, asked: Floats) -> Iterator[tuple[str | None, str, Floats]]:
    """Known mistakes, each with how often the cells take part."""
    queries, keys = (np.array(x) for x in zip(*memory.lengths, strict=True))
    offset = int(keys.max() - queries.max())
    yield (
        "A3",
        f"the mask's offset is S - L = {offset} of the padded lengths, the same for all sequences",
        _asked(memory, offset),
    )
    yield "A2", "causality takes no account of the keys before the queries: S - L is taken for 0", _asked(memory, 0)
    if "block_table" not in memory.spec.tables:
        return
    size, table = memory.spec.stored.page_size, memory.handed["block_table"]
    pages = len(memory.token) // size

    def reading(cell_of: Any) -> Floats:
        """Shares where token j of sequence b is read from a cell."""
        found = np.zeros_like(asked)
        for b, (l, s) in enumerate(memory.lengths):
            if l and s:
                own, j = memory.cells(b), np.arange(s)
                index: Any = (slice(None), slice(None), cell_of(b, j))
                np.add.at(found[b], index, asked[b][..., own])
        return found

    yield (
        None,
        "block_table is not looked at: page n of a sequence is page n of the pool",
        reading(lambda b, j: np.minimum(j // size, pages - 1) * size + j % size),
    )
    yield (
        None,
        "every sequence reads the pages of the first",
        reading(lambda b, j: table[0, j // size] * size + j % size),
    )
    yield None, "every page is read from the sequence's first", reading(lambda b, j: table[b, 0] * size + j % size)
    flat, width, ends = table.reshape(-1), table.shape[1], (keys - 1) // size
    name = "block_table is read one entry past a sequence's last"
    for words, from_end in ((", in the place of that", True), (": all entries are those behind", False)):

        def behind(b: int, j: Ints, from_end: bool = from_end) -> Ints:
            page = j // size
            entry = b * width + page + (page == ends[b] if from_end else 1)
            return np.asarray(flat[entry % len(flat)] * size + j % size)

        yield "E2", name + words, reading(behind)
    for group in (2, 4, 8):
        name = f"of each {group} pages the first is read {group} times: the page is not advanced within a tile"
        yield "E1", name, reading(lambda b, j, n=group: table[b, j // (n * size) * n] * size + j % size)
    name = "the tail of each last page takes part: its bound is in pages, not in tokens"
    tails, moved = asked.copy(), asked.copy()
    for b, (l, s) in enumerate(memory.lengths):
        if l and s % size:
            j = np.arange(-(-s // size) * size)
            cells = table[b, j // size] * size + j % size
            tails[b, :, :l][..., cells[s:]] = tails[b, :, :l].max(axis=-1, keepdims=True)
            moved[b, :, :l][..., cells] = plain(memory.spec, 1, (l, len(j)), memory.spec.features[0]).model.counts
    yield "E3", name, tails
    yield "E3", name + ", and masks are anchored there", moved


def _of_query_heads(memory: Memory, got: Floats, asked: Floats, fits: npt.NDArray[np.bool_]) -> str | None:
    """Which packed sequences begin where they would if there were as many key heads as query heads, if all do."""
    H, Hk = memory.spec.heads
    if "cu_seqlens_k" not in memory.spec.tables or "block_table" in memory.spec.tables or H == Hk:
        return None
    told = []
    for b, (l, s) in enumerate(memory.lengths):
        own = memory.cells(b)
        if not (l and s):
            continue
        cells = own[0] * (H // Hk) + np.arange(s)
        if cells[-1] >= len(memory.token):
            # What lies behind the memory is not to be known.
            if fits[b].all():
                return None
            continue
        read = np.zeros_like(asked[b : b + 1])
        read[0][..., cells] = asked[b][..., own]
        if not _fits(memory, got[b : b + 1], read).all():
            return None
        if own[0]:
            told.append(b)
    return numbers("sequence", told) if told else None


def _each(memory: Memory, got: Floats, asked: Floats, fits: npt.NDArray[np.bool_]) -> Iterator[Explanation]:
    """Sequence by sequence, tokens that are read from other cells than their own."""
    for b in np.flatnonzero(~fits.all(axis=(1, 2, 3))).tolist():
        l, s = memory.lengths[b]
        share, own, wrong = got[b, :, :l], asked[b, :, :l], ~fits[b, :, :l].all(axis=-1)
        name, (_, rows) = f"sequence {b}", np.nonzero(wrong)
        where = f"{numbers('head', np.nonzero(wrong)[0], share.shape[0])}, {numbers('row', rows, l)}"
        if not np.isfinite(share).all():
            yield explained(f"{name} gives NaN or infinity from finite cells", where)
            continue
        if s == 0:
            yield explained(f"{name}, which has no keys, gives other than zeros", where, bug="E5")
            continue
        least = np.where(share > 0, share, np.inf).min(axis=-1, keepdims=True)
        times = np.where(np.isfinite(least), np.rint(share / np.where(np.isfinite(least), least, 1.0)), 0.0)
        lost = np.flatnonzero(((times == 0) & (own > 0)).any(axis=(0, 1)))
        more = np.flatnonzero((times > own).any(axis=(0, 1)))
        tokens = np.sort(memory.token[lost] - b * memory.S)
        if len(lost) and len(lost) == len(more):
            yield explained(
                f"{name}: {numbers('token', tokens)} {'is' if len(lost) == 1 else 'are'} read from "
                f"{_places(memory, more)} instead of {_places(memory, memory.cells(b)[tokens])}",
                where,
            )
            continue
        if len(lost):
            yield explained(f"{name}: {numbers('token', tokens)} of {_places(memory, lost)} not read", where)
        if len(more):
            yield explained(f"{name}: {_places(memory, more)} read, which {_whose(memory, more, b)}", where)
        if not len(lost) and not len(more):
            yield explained(f"{name}: shares of its tokens do not sum to 1", where)


def _places(memory: Memory, cells: Ints) -> str:
    """Cells, by page and offset where there are pages."""
    if "block_table" not in memory.spec.tables:
        return numbers("cell", cells)
    size = memory.spec.stored.page_size
    pages = np.unique(cells // size)
    if len(pages) > 1 and len(cells) == len(pages) * size:
        return numbers("page", pages)
    return f"{numbers('page', pages)} {numbers('offset', cells % size)}"


def _whose(memory: Memory, cells: Ints, b: int) -> str:
    """What cells hold that a sequence reads beyond its own."""
    owners = np.where(memory.token[cells] < 0, -1, memory.token[cells] // memory.S)
    if (owners < 0).all():
        return "hold no token"
    if (owners == b).all():
        return "hold tokens that are masked, or are read more than once"
    return f"hold tokens of {numbers('sequence', owners[owners >= 0])}"
