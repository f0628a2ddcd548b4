"""Planted bugs of family F: split keys, their merging, log-sum-exps and sinks."""

from __future__ import annotations

import math

import numpy as np

from tests.judge.facts import LOG2E, F, State
from tests.judge.planting import Bug, plant, taller
from tests.judge.tiled import Tiled

MERGING: dict[str, Bug] = {}
SPLIT = {"splits": 4, "tile_k": 16}
SINKS = ("sinks",)


@plant(MERGING, "F1", "log-sum-exps in base 2 are merged as natural ones", facts=SPLIT)
class BaseTwo(Tiled):
    def partial(self, p, state):
        part = super().partial(p, state)
        return part._replace(lse=part.lse * LOG2E)


@plant(MERGING, "F2", "a maximum in base 2 and a natural logarithm are added")
class MixedBases(Tiled):
    def finish(self, p, state, i):
        part = super().finish(p, state, i)
        return part._replace(lse=part.lse + state.m * (LOG2E - F(1)))


@plant(MERGING, "F3", "the log-sum-exp has another scale", facts={"scale": 0.2})
class ScaleOfLogs(Tiled):
    def finish(self, p, state, i):
        part = super().finish(p, state, i)
        return part._replace(lse=part.lse + state.m * F(1 / math.sqrt(p.dims[0]) / self.scale(p) - 1))


@plant(MERGING, "F4", "parts that all saw nothing are merged to NaN", accepts=("mask",), facts=SPLIT, same=("B3", "B7"))
class AllEmpty(Tiled):
    def merge(self, p, parts):
        top = np.max([part.lse for part in parts], axis=0)
        weights = [np.exp(part.lse - top) for part in parts]
        total = sum(weights)
        return State(top, np.where(total > 0, total, F(1)), sum(w * x.o for w, x in zip(weights, parts, strict=True)))


@plant(MERGING, "F5", "the log-sum-exp is that of the last part", facts=SPLIT, same=("F6",))
class LastLog(Tiled):
    chosen = -1

    def merge(self, p, parts):
        self.log = parts[self.chosen].lse
        return super().merge(p, parts)

    def finish(self, p, state, i):
        return super().finish(p, state, i)._replace(lse=self.log)


@plant(MERGING, "F6", "the merged log-sum-exp is not written over the first part's", facts=SPLIT, same=("F5",))
class FirstLog(LastLog):
    chosen = 0


@plant(MERGING, "F7", "odd heads are not merged", facts=SPLIT)
class OddHeadsUnmerged(Tiled):
    def merge(self, p, parts):
        odd = (np.arange(p.H) % 2 == 1)[:, None, None]
        first, every = super().merge(p, parts[:1]), super().merge(p, parts)
        return State(*(np.where(odd, a, b) for a, b in zip(first, every, strict=True)))


@plant(MERGING, "F8", "the log-sum-exp is not written")
class LogLeft(Tiled):
    def store(self, p, output, lse, i, part):
        super().store(p, output, lse.copy(), i, part)


@plant(MERGING, "F9", "the sink is added to the row sum as it is", accepts=SINKS)
class LinearSink(Tiled):
    def sink(self, p, state):
        return state._replace(l=state.l + p.sinks[:, None, None])


@plant(MERGING, "F10", "the sink counts once in each part", accepts=SINKS, facts=SPLIT)
class SinkOfEachPart(Tiled):
    def sink(self, p, state):
        for _ in range(self.facts.splits):
            state = super().sink(p, state)
        return state


@plant(MERGING, "F11", "the sink is scaled as a score", accepts=SINKS)
class ScaledSink(Tiled):
    def prepare(self, p):
        p.sinks = None if p.sinks is None else p.sinks * F(self.scale(p))
        return p


@plant(MERGING, "F12", "the sink is dropped", accepts=SINKS)
class NoSink(Tiled):
    def prepare(self, p):
        p.sinks = None
        return p


@plant(
    MERGING, "F13", "a row that sees the sink alone has no log-sum-exp", accepts=SINKS, facts={"causal": True},
    lengths=taller, same=("F11",),
)  # fmt: skip
class SinkAlone(Tiled):
    def finish(self, p, state, i):
        part = super().finish(p, state, i)
        return part._replace(lse=np.where(state.l > 0, part.lse, F(-np.inf)))
