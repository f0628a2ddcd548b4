"""Planted bugs of family A: who sees whom."""

from __future__ import annotations

import numpy as np

from tests.judge.facts import F
from tests.judge.planting import Bug, cached, plant, taller
from tests.judge.tiled import Tiled

MASKS: dict[str, Bug] = {}
CAUSAL = {"causal": True}
PAGED = ("block_table", "seqused_k")


@plant(MASKS, "A1", "the causal mask is anchored upper left", facts=CAUSAL, same=("A2",))
class UpperLeft(Tiled):
    def offset(self, p):
        return 0


@plant(MASKS, "A2", "causality ignores the cache", facts=CAUSAL, accepts=("seqused_k",), lengths=cached, same=("A1",))
class NoPast(Tiled):
    def offset(self, p):
        return 0


@plant(MASKS, "A3", "offset from the padded length", facts=CAUSAL, accepts=("seqused_k",), lengths=cached)
class PaddedOffset(Tiled):
    def offset(self, p):
        return p.longest - p.L


@plant(MASKS, "A4", "the window is one key too wide", facts={"window": (37, 0)})
class Wider(Tiled):
    def reach(self, p):
        left, right = super().reach(p)
        return left + 1, right


@plant(MASKS, "A4:narrow", "the window is one key too narrow", facts={"window": (37, 0)})
class Narrower(Tiled):
    def reach(self, p):
        left, right = super().reach(p)
        return left - 1, right


@plant(MASKS, "A4:right", "the window reaches one key too far ahead", facts={"window": (37, 5)})
class Ahead(Tiled):
    def reach(self, p):
        left, right = super().reach(p)
        return left, right + 1


@plant(MASKS, "A5", "the keys of the window are gathered from the start of the cache", facts={"window": (19, 0)})
class FromTheStart(Tiled):
    def fetch(self, p, name, j):
        return super().fetch(p, name, np.maximum(0, j - max(0, p.S - p.L - 19)))


@plant(MASKS, "A6", "the mask's rows are read with the stride of a padded length", accepts=("mask",))
class MaskStride(Tiled):
    def kept(self, p, i, j):
        flat = p.mask.reshape(*p.mask.shape[:2], -1)
        stride = -(-p.S // 16) * 16
        return flat[:, :, (i[:, None] * stride + np.minimum(j, p.S - 1)) % flat.shape[-1]]


@plant(MASKS, "A8", "the causal bound of packed heads is rounded down", facts=CAUSAL, heads=(6, 2))
class Floored(Tiled):
    def geometry(self, p, i, j):
        packed = i * p.group + (np.arange(p.H) % p.group)[:, None]
        end = np.minimum((packed // self.facts.tile_q + 1) * self.facts.tile_q, p.L * p.group)
        return super().geometry(p, i, j) & (j < (self.offset(p) + end // p.group)[..., None])


@plant(MASKS, "A9", "the window is dropped where no mask is given", facts={"window": (37, 11)})
class NoWindow(Tiled):
    def reach(self, p):
        return None, None


@plant(MASKS, "A10", "the second product takes its first tile without the window", facts={"window": (19, 0)})
class ValuesFromTileZero(Tiled):
    def step(self, p, q, i, j, state):
        k = self.load(p, "key", j)
        first = self.bounds(p, i)[0] // self.facts.tile_k * self.facts.tile_k
        v = self.load(p, "value", j - first)
        return self.update(p, state, self.masked(p, self.scores(p, q, k, i, j), i, j), v, i, j)


@plant(
    MASKS, "A11", "values of keys with weight 0 are read and multiplied", accepts=PAGED, same=("B8",), lengths=cached
)
class ZeroTimes(Tiled):
    def load(self, p, name, j):
        return self.fetch(p, name, j) if name == "value" else super().load(p, name, j)


@plant(MASKS, "A12", "the loop ends at the causal bound though a prefix is seen whole", facts={
    "causal": True, "prefix": 70, "tile_q": 16,
})  # fmt: skip
class PrefixCut(Tiled):
    def bounds(self, p, i):
        return 0, min(p.S, int(i[-1]) + self.offset(p) + 1)


@plant(MASKS, "A13", "tiles before the diagonal are not masked, past the last key either", lengths=taller, facts={
    "causal": True, "anchor": "upper_left", "tile_q": 16,
})  # fmt: skip
class OnlyTheDiagonal(Tiled):
    def bounds(self, p, i):
        return 0, int(i[-1]) + 1

    def visible(self, p, i, j):
        return np.ones((len(i), len(j)), bool) if j[-1] <= i[0] else super().visible(p, i, j)


@plant(MASKS, "A14", "the keys that fill the last tile count in the row sum")
class PadCounted(Tiled):
    def visible(self, p, i, j):
        seen = self.geometry(p, i, j)
        return seen if p.mask is None else seen & self.kept(p, i, j)


@plant(MASKS, "A15", "the mask's heads are read as batch entries", accepts=("mask",), batch=(2,), heads=(2, 2))
class HeadsForBatch(Tiled):
    def kept(self, p, i, j):
        same = p.mask.shape[0] == p.mask.shape[1]
        return np.swapaxes(super().kept(p, i, j), 0, 1) if same else super().kept(p, i, j)


@plant(MASKS, "A16", "the mask is multiplied by -inf and added", accepts=("mask",))
class Multiplied(Tiled):
    def masked(self, p, s, i, j):
        hidden = 1 - self.visible(p, i, j).astype(F)
        return super().masked(p, s, i, j) if p.mask is None else s + hidden * F(-np.inf)


@plant(MASKS, "A17", "rows are counted after heads were folded into them", facts=CAUSAL)
class Folded(Tiled):
    def bounds(self, p, i):
        return 0, p.S

    def geometry(self, p, i, j):
        row = i * p.group + (np.arange(p.H) % p.group)[:, None]
        return j <= row[..., None] + self.offset(p)


@plant(MASKS, "A18", "the mask of an earlier call is applied", accepts=("mask", "bias"))
class StaleMask(Tiled):
    stale = None

    def prepare(self, p):
        if p.mask is not None:
            self.stale = p.mask[:1]
        elif self.stale is not None and self.stale.shape[1:] == (p.H, p.L, p.S):
            p.mask = self.stale
        return p
