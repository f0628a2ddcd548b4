"""Bugs that are in no catalogue, each with what it concerns: what a diagnosis may say of them, and no more.

Tiles are 64 queries by 32 keys. `where` names, by axis, the heads, rows, keys or columns that are concerned; `same` the
catalogue's bugs that are no false name for it.
"""

from __future__ import annotations

import numpy as np

from tests.bounds.emulator import cut, rounded
from tests.judge.facts import F, matmul
from tests.judge.planting import Bug, plant
from tests.judge.tiled import Tiled

OUTSIDE: dict[str, Bug] = {}
CAUSAL = {"causal": True}
SECOND_TILE = frozenset(range(32, 64))
ANY = frozenset(range(1 << 12))
ODD = frozenset(range(1, 1 << 12, 2))


@plant(OUTSIDE, "columns", "two columns of the values are swapped in the second tile", where={
    "keys": SECOND_TILE, "columns": frozenset({2, 3}),
})  # fmt: skip
class ColumnsSwapped(Tiled):
    def load(self, p, name, j):
        x = super().load(p, name, j)
        if name == "value" and j[0] == 32:
            x[..., [2, 3]] = x[..., [3, 2]]
        return x


@plant(OUTSIDE, "lowest bit", "a warp drops the lowest bit of the indices of its values", where={
    "keys": frozenset(k for k in ANY if k % 32 >= 24),
})  # fmt: skip
class LowestBit(Tiled):
    def fetch(self, p, name, j):
        return super().fetch(p, name, np.where((j % 32 >= 24) & (name == "value"), j & ~1, j))


@plant(OUTSIDE, "row before", "in the last tile the output is rescaled by the factor of the row before", where={})
class FactorOfRowBefore(Tiled):
    def step(self, p, q, i, j, state):
        self.last = j[-1] >= self.bounds(p, i)[1] - 1
        return super().step(p, q, i, j, state)

    def rescaled(self, state, alpha):
        return state.l * alpha, state.O * (np.roll(alpha, 1, axis=-2) if self.last else alpha)


@plant(OUTSIDE, "tile twice", "the second tile of keys is accumulated twice", where={"keys": SECOND_TILE})
class TileTwice(Tiled):
    def step(self, p, q, i, j, state):
        state = super().step(p, q, i, j, state)
        return super().step(p, q, i, j, state) if j[0] == 32 else state


@plant(OUTSIDE, "sign", "one element of the output has the other sign", where={
    "heads": frozenset({1}), "rows": frozenset({0}), "columns": frozenset({5}),
})  # fmt: skip
class Sign(Tiled):
    def run(self, p):
        output, lse = super().run(p)
        output[:, 1, 0, 5] *= -1
        return output, lse


@plant(OUTSIDE, "even heads", "only even heads are causal", facts=CAUSAL, where={"heads": ODD})
class EvenHeadsCausal(Tiled):
    def bounds(self, p, i):
        return 0, p.S

    def geometry(self, p, i, j):
        return super().geometry(p, i, j) | (np.arange(p.H) % 2 == 1)[:, None, None]


@plant(OUTSIDE, "fragment", "the halves of a fragment of 16 rows are swapped", where={"rows": frozenset(range(16, 32))})
class FragmentSwapped(Tiled):
    def store(self, p, output, lse, i, part):
        if i[0] == 0 and len(i) >= 32:
            order = np.concatenate([np.arange(16), np.arange(24, 32), np.arange(16, 24), np.arange(32, len(i))])
            part = part._replace(o=part.o[:, :, order])
        super().store(p, output, lse, i, part)


@plant(OUTSIDE, "stale keys", "every third tile computes with the keys of the tile before", where={
    "keys": frozenset(k for k in ANY if k // 32 % 3 == 2),
})  # fmt: skip
class StaleKeys(Tiled):
    def load(self, p, name, j):
        stale = name == "key" and j[0] // len(j) % 3 == 2
        return super().load(p, name, j - len(j) if stale else j)


@plant(OUTSIDE, "cut off", "odd rows are cut off and not rounded where they are stored", where={"rows": ODD})
class CutOff(Tiled):
    def store(self, p, output, lse, i, part):
        narrow = "tf32" if self.facts.dtype == "float32" else self.facts.dtype
        o = np.where((i % 2 == 1)[:, None], cut(part.o, narrow), part.o)
        super().store(p, output, lse, i, part._replace(o=o))


@plant(OUTSIDE, "head not rescaled", "head 1 does not rescale its output in the second tile", same=("B2",), where={
    "heads": frozenset({1}),
})  # fmt: skip
class HeadNotRescaled(Tiled):
    def step(self, p, q, i, j, state):
        self.second = j[0] == 32
        return super().step(p, q, i, j, state)

    def rescaled(self, state, alpha):
        l, O = super().rescaled(state, alpha)
        if self.second:
            O[:, 1] = state.O[:, 1]
        return l, O


@plant(OUTSIDE, "last row", "the last row of a full tile of queries gets the output of the row before", where={
    "rows": frozenset(range(63, 1 << 12, 64)),
})  # fmt: skip
class LastRow(Tiled):
    def store(self, p, output, lse, i, part):
        if len(i) == self.facts.tile_q:
            part.o[:, :, -1] = part.o[:, :, -2]
        super().store(p, output, lse, i, part)


@plant(OUTSIDE, "short features", "the last 8 features of head 2 are left out of the scores", where={
    "heads": frozenset({2}),
})  # fmt: skip
class ShortFeatures(Tiled):
    def query(self, p, i):
        q = super().query(p, i)
        q[:, 2, :, -8:] = 0
        return q


@plant(OUTSIDE, "transposed block", "8 by 8 scores of the second tile are transposed", where={
    "rows": frozenset(range(8)), "keys": frozenset(range(32, 40)),
})  # fmt: skip
class TransposedBlock(Tiled):
    def update(self, p, state, s, v, i, j):
        if i[0] == 0 and j[0] == 32 and len(i) >= 8:
            s = np.array(np.broadcast_to(s, (*state.O.shape[:3], len(j))))
            s[..., :8, :8] = np.swapaxes(s[..., :8, :8].copy(), -1, -2)
        return super().update(p, state, s, v, i, j)


@plant(OUTSIDE, "first key twice", "the first key counts twice", where={"keys": frozenset({0})})
class FirstKeyTwice(Tiled):
    def masked(self, p, s, i, j):
        return super().masked(p, s, i, j) + np.where(j == 0, np.log(F(2)), F(0))


@plant(OUTSIDE, "crossing", "values of the second tile are read one row further in batch entry 0", where={
    "keys": SECOND_TILE,
})  # fmt: skip
class Crossing(Tiled):
    def load(self, p, name, j):
        x = super().load(p, name, j)
        if name == "value" and j[0] == 32:
            x[0] = np.roll(x[0], -1, axis=-2)
        return x


@plant(OUTSIDE, "maximum before", "the log-sum-exp is made with the maximum before the last tile", where={})
class MaximumBefore(Tiled):
    def start(self, p, i):
        state = super().start(p, i)
        self.before = state.m
        return state

    def update(self, p, state, s, v, i, j):
        new = super().update(p, state, s, v, i, j)
        self.before = np.where(state.m > -np.inf, state.m, new.m)
        return new

    def finish(self, p, state, i):
        part = super().finish(p, state, i)
        return part._replace(lse=np.where(state.l > 0, part.lse - state.m + self.before, part.lse))


@plant(OUTSIDE, "stale queries", "the second tile of queries is computed with the queries of the first", where={
    "rows": frozenset(range(64, 128)),
})  # fmt: skip
class StaleQueries(Tiled):
    def query(self, p, i):
        return super().query(p, i - 64 if i[0] == 64 else i)


@plant(OUTSIDE, "scaled twice", "the score of the last key of each tile is scaled twice", where={
    "keys": frozenset(range(31, 1 << 12, 32)),
})  # fmt: skip
class ScaledTwice(Tiled):
    def logits(self, p, q, k):
        s = super().logits(p, q, k)
        s[..., -1] *= F(self.scale(p))
        return s


@plant(OUTSIDE, "floor", "weights below exp(-4) are raised to it", where={})
class Floor(Tiled):
    def factors(self, old, m, s):
        P, alpha = super().factors(old, m, s)
        return np.where(P > 0, np.maximum(P, np.exp(F(-4))), P), alpha


@plant(OUTSIDE, "narrow sum", "the row sum is kept in bfloat16", where={})
class NarrowSum(Tiled):
    def update(self, p, state, s, v, i, j):
        state = super().update(p, state, s, v, i, j)
        return state._replace(l=rounded(state.l, "bfloat16"))


@plant(OUTSIDE, "quantised head", "the keys of head 0 are rounded to float8", where={"heads": frozenset({0})})
class QuantisedHead(Tiled):
    def logits(self, p, q, k):
        k = np.array(k)
        k[:, 0] = rounded(k[:, 0], "float8_e4m3fn")
        return matmul(self.facts.product, q, np.swapaxes(k, -1, -2)) * F(self.scale(p))


@plant(OUTSIDE, "lane", "one lane's weights are missing from the row sum", where={
    "keys": frozenset(range(17, 1 << 12, 32)),
})  # fmt: skip
class Lane(Tiled):
    def row_sum(self, P):
        return super().row_sum(np.where(np.arange(P.shape[-1]) % 32 == 17, F(0), P))
