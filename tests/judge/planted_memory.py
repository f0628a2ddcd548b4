"""Planted bugs of families D and E: heads, layout, strides, pages and sequences."""

from __future__ import annotations

import numpy as np

from refattn.layouts import Layout
from tests.judge.facts import LEFTOVER, F
from tests.judge.planting import Bug, cached, plant
from tests.judge.tiled import Tiled

MEMORY: dict[str, Bug] = {}
PAGED = ("block_table", "seqused_k")
PACKED = ("cu_seqlens_q", "cu_seqlens_k")


@plant(MEMORY, "D1", "key heads by remainder")
class Remainder(Tiled):
    def heads(self, p, name):
        return np.arange(p.H) % p.key_heads


@plant(MEMORY, "D1:value", "value heads by remainder, key heads by quotient")
class RemainderOfValues(Tiled):
    def heads(self, p, name):
        return np.arange(p.H) % p.key_heads if name == "value" else super().heads(p, name)


@plant(MEMORY, "D2", "tokens and heads are reshaped without being swapped")
class Reshaped(Tiled):
    def read(self, name, x):
        return super().read(name, x) if name == "query" else np.swapaxes(x, 1, 2).reshape(x.shape).astype(F)


@plant(MEMORY, "D3", "rows of values by the stride of keys", dims=((48, 32), (24, 40)))
class StrideOfKeys(Tiled):
    def fetch(self, p, name, j):
        if name == "key":
            return super().fetch(p, name, j)
        flat = p.value.reshape(*p.value.shape[:2], -1)
        at = (j[:, None] * p.dims[0] + np.arange(p.dims[1])) % flat.shape[2]
        return flat[:, self.heads(p, name)[:, None, None], at]


@plant(MEMORY, "D5", "strides by the shape", layout=Layout(margin=2))
class StridesOfShape(Tiled):
    def read(self, name, x):
        strides = np.empty(x.shape, x.dtype).strides
        return np.lib.stride_tricks.as_strided(x, strides=strides).astype(F)


@plant(MEMORY, "D8", "columns of values past the queries' are not written", dims=((32, 48), (24, 40)))
class ColumnsCut(Tiled):
    def finish(self, p, state, i):
        part = super().finish(p, state, i)
        part.o[..., p.dims[0] :] = 0
        return part


@plant(MEMORY, "D9", "segments of keys by the number of query heads", accepts=PACKED, lengths=cached)
class SegmentOfHeads(Tiled):
    def prepare(self, p):
        p.start *= p.group
        return p


@plant(MEMORY, "D10", "output rows land in other heads", same=("D2",))
class OutputSwapped(Tiled):
    def run(self, p):
        output, lse = super().run(p)
        return np.swapaxes(output, 1, 2).reshape(output.shape), lse


@plant(MEMORY, "D11", "the log-sum-exp is read by another stride than it was written by")
class PaddedLogs(Tiled):
    def run(self, p):
        output, lse = super().run(p)
        B, H, L = lse.shape
        padded = np.full((B, H, -(-L // 32) * 32), LEFTOVER)
        padded[:, :, :L] = lse
        return output, padded.reshape(B, -1)[:, : H * L].reshape(B, H, L)


@plant(MEMORY, "D12", "the number of queries is taken for that of keys")
class KeysOfQueries(Tiled):
    def inside(self, p, j):
        return j < min(p.L, p.S)


@plant(MEMORY, "D17", "the last of an odd number of parts is dropped", facts={"splits": 3, "tile_k": 16})
class LastPartDropped(Tiled):
    def merge(self, p, parts):
        return super().merge(p, parts[: len(parts) // 2 * 2])


@plant(MEMORY, "E1", "the second half of a tile of values is read from the first half's page", accepts=PAGED)
class PageKept(Tiled):
    def pages(self, p, name, j):
        pages = super().pages(p, name, j)
        half = self.facts.tile_k // 2
        return np.where(np.arange(len(j)) < half, pages, pages[0]) if name == "value" else pages


@plant(MEMORY, "E2", "the page behind a sequence's last is read in its place", accepts=PAGED, lengths=cached)
class PagePast(Tiled):
    def pages(self, p, name, j):
        page = j // self.page_size(p)
        last = (p.S - 1) // self.page_size(p)
        return p.table.reshape(-1)[(p.b * p.table.shape[1] + page + (page == last)) % p.table.size]


@plant(MEMORY, "E3", "keys are counted in pages", accepts=PAGED, lengths=cached)
class WholePages(Tiled):
    def inside(self, p, j):
        return j < -(-p.S // self.page_size(p)) * self.page_size(p)

    def bounds(self, p, i):
        return 0, -(-p.S // self.page_size(p)) * self.page_size(p)


@plant(MEMORY, "E5", "a sequence without keys is not written", accepts=("seqused_k",), same=("E7",))
class EmptyLeft(Tiled):
    def store(self, p, output, lse, i, part):
        if p.S > 0:
            super().store(p, output, lse, i, part)


@plant(MEMORY, "E6", "packed queries are read where padded ones would lie", accepts=PACKED, lengths=cached)
class PaddedQueries(Tiled):
    def sequence(self, query, offsets, b):
        first = b * int(np.diff(offsets).max())
        rows = np.minimum(first + np.arange(offsets[b + 1] - offsets[b]), len(query) - 1)
        return np.swapaxes(query[rows], 0, 1)[None]


@plant(MEMORY, "E7", "rows that see nothing are not written", accepts=("mask",), same=("E5",))
class RowsLeft(Tiled):
    def store(self, p, output, lse, i, part):
        seen = part.lse > -np.inf
        o = np.where(seen, part.o, output[:, :, i])
        super().store(p, output, lse, i, part._replace(o=o, lse=np.where(seen, part.lse, LEFTOVER)))
