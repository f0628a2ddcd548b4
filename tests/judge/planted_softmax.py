"""Planted bugs of family B: the softmax's recurrence and its numerics."""

from __future__ import annotations

import math

import numpy as np

from tests.bounds.emulator import rounded
from tests.judge.facts import LOG2E, F, Part, State, matmul
from tests.judge.planting import Bug, cached, plant
from tests.judge.tiled import Tiled

SOFTMAX: dict[str, Bug] = {}
SPLIT = {"splits": 4, "tile_k": 16}
ODD = (80, (48, 32))  # features whose scale is no power of two


@plant(SOFTMAX, "B1", "the row sum is not updated where parts are merged", facts=SPLIT)
class SumKept(Tiled):
    def merge(self, p, parts):
        O, m = parts[0]
        l = np.ones_like(m)
        for o, lse in parts[1:]:
            top = np.maximum(m, lse)
            safe = np.where(top > -np.inf, top, F(0))
            O = O * np.exp(m - safe) + o * np.exp(lse - safe)
            m = top
        return State(m, l, O)


@plant(SOFTMAX, "B2", "the output is not rescaled by a new maximum")
class OutputKept(Tiled):
    def rescaled(self, state, alpha):
        return state.l * alpha, state.O


@plant(SOFTMAX, "B2:sum", "the row sum is not rescaled by a new maximum")
class RowSumKept(Tiled):
    def rescaled(self, state, alpha):
        return state.l, state.O * alpha


@plant(SOFTMAX, "B3", "a row that sees nothing divides 0 by 0", accepts=("mask",), same=("B7",))
class ZeroByZero(Tiled):
    def finish(self, p, state, i):
        return Part(state.O / state.l, state.m + np.log(state.l))


@plant(SOFTMAX, "B4", "the maximum starts at -50000", facts={"causal": True, "scale": 1e4})
class Sentinel(Tiled):
    def start(self, p, i):
        state = super().start(p, i)
        return state._replace(m=np.full_like(state.m, -5e4))


@plant(SOFTMAX, "B5", "a tile without a visible key makes -inf - -inf", facts={"window": (19, 0)})
class InfMinusInf(Tiled):
    def factors(self, old, m, s):
        return np.exp(s - m), np.exp(old - m)


@plant(SOFTMAX, "B6", "masked scores get the lowest float added", accepts=("mask",), same=("B7",), facts={
    "exponential": "exp",
})  # fmt: skip
class Lowest(Tiled):
    def masked(self, p, s, i, j):
        return s + np.where(self.visible(p, i, j), F(0), np.finfo(F).min)


@plant(SOFTMAX, "B7", "a row that sees nothing gets the mean of the values", accepts=("mask",), same=("B6",))
class MeanOfValues(Tiled):
    def finish(self, p, state, i):
        part = super().finish(p, state, i)
        mean = self.load(p, "value", np.arange(p.S)).mean(axis=2, keepdims=True)
        return Part(np.where(state.l > 0, part.o, mean), part.lse)


@plant(SOFTMAX, "B8", "NaN behind the keys is multiplied by 0", accepts=("seqused_k",), lengths=cached, same=(
    "A11", "B9",
))  # fmt: skip
class Poisoned(Tiled):
    def load(self, p, name, j):
        return self.fetch(p, name, j) if name == "value" else super().load(p, name, j)


@plant(SOFTMAX, "B9", "-inf is added to the scores of garbage", accepts=("seqused_k",), lengths=cached, same=("B8",))
class Added(Tiled):
    def load(self, p, name, j):
        return self.fetch(p, name, j) if name == "key" else super().load(p, name, j)

    def masked(self, p, s, i, j):
        return s + np.where(self.visible(p, i, j), F(0), F(-np.inf))


@plant(SOFTMAX, "B11", "the row sum takes in the next row's")
class NextRow(Tiled):
    def finish(self, p, state, i):
        return super().finish(p, state._replace(l=state.l + np.roll(state.l, -1, axis=-2)), i)


@plant(SOFTMAX, "B12", "the output is accumulated in float16")
class HalfOutput(Tiled):
    def update(self, p, state, s, v, i, j):
        state = super().update(p, state, s, v, i, j)
        return state._replace(O=rounded(state.O, "float16"))


@plant(SOFTMAX, "B12:scores", "the scores are kept in float16")
class HalfScores(Tiled):
    def logits(self, p, q, k):
        return rounded(super().logits(p, q, k), "float16")


@plant(SOFTMAX, "B13", "weights saturate under a maximum that lags", facts={"lazy": 8 * math.log(2)})
class Saturated(Tiled):
    def narrowed(self, P):
        return super().narrowed(np.minimum(P, F(448 / 256)))


@plant(SOFTMAX, "B14", "the sink is taken against another row's maximum", accepts=("sinks",))
class SinkOfAnotherRow(Tiled):
    def sink(self, p, state):
        return state._replace(l=state.l + np.exp(p.sinks[:, None, None] - state.m[:, :, :1]))


@plant(SOFTMAX, "B15", "the query is scaled and rounded to half precision", dims=ODD, same=("B20",))
class RoundedQuery(Tiled):
    def logits(self, p, q, k):
        q = rounded(q * F(self.scale(p)), self.facts.half)
        return matmul(self.facts.product, q, np.swapaxes(k, -1, -2))


@plant(SOFTMAX, "B16", "the bias is multiplied by log2 e in half precision", accepts=("bias",))
class RoundedConstant(Tiled):
    def tile_of_bias(self, p, i, j):
        return super().tile_of_bias(p, i, j) * F(1.4453125) / LOG2E


@plant(SOFTMAX, "B17", "partial outputs are rounded to half precision before they are merged", facts=SPLIT)
class RoundedParts(Tiled):
    def partial(self, p, state):
        part = super().partial(p, state)
        return part._replace(o=rounded(part.o, self.facts.half))


@plant(SOFTMAX, "B19", "partial log-sum-exps are rounded to bfloat16 before they are merged", facts=SPLIT)
class RoundedLogs(Tiled):
    def partial(self, p, state):
        part = super().partial(p, state)
        return part._replace(lse=rounded(part.lse, "bfloat16"))


@plant(SOFTMAX, "B20", "scale and log2 e are applied to the query in half precision", same=("B15",))
class RoundedScale(Tiled):
    def logits(self, p, q, k):
        q = rounded(q * F(self.scale(p)) * LOG2E, self.facts.half)
        return matmul(self.facts.product, q, np.swapaxes(k, -1, -2)) / LOG2E
