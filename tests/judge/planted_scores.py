"""Planted bugs of family C: scale, softcap, bias and position."""

from __future__ import annotations

import math

import numpy as np

from tests.bounds.emulator import rounded
from tests.judge.facts import F
from tests.judge.planting import Bug, plant
from tests.judge.tiled import Tiled

SCORES: dict[str, Bug] = {}
UNEQUAL = ((48, 32), (24, 40))
ALIBI = {"slopes": True, "causal": True}


@plant(SCORES, "C1", "exp2 without log2 e")
class NoLog2e(Tiled):
    def exp(self, x, m):
        return np.exp2(x - m)


@plant(SCORES, "C2", "the scale that is given is ignored", accepts=("scale",), same=("C3",))
class ScaleIgnored(Tiled):
    def scale(self, p):
        return 1 / math.sqrt(p.dims[0])


@plant(SCORES, "C3", "the scale of the first call is used again", accepts=("scale",), same=("C2",))
class ScaleCached(Tiled):
    def prepare(self, p):
        self.first = getattr(self, "first", {})
        p.scale = self.first.setdefault(p.dims[0], p.scale)
        return p


@plant(SCORES, "C4", "the scale is made of the values' features", dims=UNEQUAL)
class ScaleOfValues(Tiled):
    def scale(self, p):
        return 1 / math.sqrt(p.dims[1])


@plant(SCORES, "C4:heads", "the scale is made of the number of heads")
class ScaleOfHeads(Tiled):
    def scale(self, p):
        return 1 / math.sqrt(p.H)


@plant(SCORES, "C5", "the scale is missing")
class NoScale(Tiled):
    def scale(self, p):
        return 1.0


@plant(SCORES, "C5:inverted", "the scale is inverted")
class ScaleInverted(Tiled):
    def scale(self, p):
        return math.sqrt(p.dims[0])


@plant(SCORES, "C6", "a factor of the scale is not squared", facts={"scale": 1.2**2 / 8}, dims=(64,))
class NotSquared(Tiled):
    def scale(self, p):
        return 1.2 / 8


@plant(SCORES, "C7", "the softcap comes after the mask", facts={"softcap": 3.0, "causal": True})
class CapAfterMask(Tiled):
    def bounds(self, p, i):
        return 0, p.S

    def scores(self, p, q, k, i, j):
        hidden = np.where(self.visible(p, i, j), self.logits(p, q, k), F(-np.inf))
        return self.biased(p, self.capped(p, hidden), i, j)

    def masked(self, p, s, i, j):
        return np.where(self.inside(p, j), s, F(-np.inf))


@plant(SCORES, "C8", "the softcap is multiplied inside and not outside", accepts=("softcap",))
class CapInside(Tiled):
    def capped(self, p, s):
        return s if p.softcap is None else np.tanh(s * F(p.softcap))


@plant(SCORES, "C8:outer", "the softcap's tanh is multiplied by the score", accepts=("softcap",))
class CapOutside(Tiled):
    def capped(self, p, s):
        return s if p.softcap is None else s * np.tanh(s / F(p.softcap))


@plant(SCORES, "C9", "the bias is capped too", facts={"softcap": 3.0}, accepts=("bias",))
class BiasCapped(Tiled):
    def scores(self, p, q, k, i, j):
        return self.capped(p, self.biased(p, self.logits(p, q, k), i, j))


@plant(SCORES, "C11", "slopes as for a power of two", facts=ALIBI, heads=(6, 2))
class SlopesOfAnyNumber(Tiled):
    def slopes(self, p):
        return np.exp2(-8 * (np.arange(p.H) + 1) / p.H).astype(F)


@plant(SCORES, "C12", "the slopes' exponents start at 0", facts=ALIBI)
class SlopesFromZero(Tiled):
    def slopes(self, p):
        return np.exp2(-8 * np.arange(p.H) / p.H).astype(F)


@plant(SCORES, "C13", "the distance is one too long", facts=ALIBI)
class OneFurther(Tiled):
    def distance(self, p, i, j):
        return super().distance(p, i, j) + F(1)


@plant(SCORES, "C14", "the slopes are kept in bfloat16", facts={"slopes": (0.3, 0.11, 0.07, 0.9), "causal": True})
class RoundedSlopes(Tiled):
    def slopes(self, p):
        return rounded(super().slopes(p), "bfloat16")


@plant(SCORES, "C16", "the bias of the first tile of keys is added to every tile", accepts=("bias",))
class FirstTileOfBias(Tiled):
    def tile_of_bias(self, p, i, j):
        return super().tile_of_bias(p, i, j % self.facts.tile_k)
