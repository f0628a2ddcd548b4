"""A tiled flash-attention kernel in NumPy, every step a method, so that a mistake is one method written wrongly.

It shares nothing with refattn but the names of formats. All batch entries and heads of a tile are computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.bounds.emulator import rounded
from tests.judge.facts import LEFTOVER, LOG2E, F, Facts, Part, Problem, State, matmul, published_slopes
from tests.namespaces import numpy_dtype


class Tiled:
    """The kernel; a planted bug is a subclass with one step replaced."""

    key: str | None = None

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.__name__ = "tiled" if self.key is None else f"tiled_{self.key}"

    def __call__(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        *,
        mask: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: np.ndarray | None = None,
        cu_seqlens_q: np.ndarray | None = None,
        cu_seqlens_k: np.ndarray | None = None,
        seqused_k: np.ndarray | None = None,
        block_table: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Output and log-sum-exp: (B, H, L, Ev) and (B, H, L), or (T, H, Ev) and (H, T) of packed queries."""
        with np.errstate(all="ignore"):
            q, k, v = (self.read(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
            asked: dict[str, Any] = {"scale": scale, "softcap": softcap or self.facts.softcap}
            asked["causal"] = is_causal or self.facts.causal
            asked["bias"], asked["sinks"] = (None if x is None else x.astype(F) for x in (bias, sinks))
            dims = (q.shape[-1], v.shape[-1])
            if seqused_k is None and cu_seqlens_k is None:
                p = Problem(q, k, v, k.shape[2], k.shape[1], dims, mask=mask, **asked)
                output, lse = self.run(p)
                return output.astype(numpy_dtype(self.facts.dtype)), lse
            packed = cu_seqlens_q is not None
            lengths = np.diff(cu_seqlens_k) if seqused_k is None else seqused_k
            heads = k.shape[-2] if k.ndim == 3 or block_table is not None else k.shape[1]
            found = []
            for b, S in enumerate(lengths.tolist()):
                rows = self.sequence(q, cu_seqlens_q, b) if packed else q[b : b + 1]
                start = None if block_table is not None or cu_seqlens_k is None else int(cu_seqlens_k[b])
                p = Problem(rows, k, v, S, heads, dims, b=b, start=start, table=block_table, **asked)
                p.longest = int(lengths.max())
                found.append(self.run(p))
            axis = 2 if packed else 0
            output, lse = (np.concatenate([x[n] for x in found], axis=axis) for n in (0, 1))
            if packed:
                output, lse = np.swapaxes(output[0], 0, 1), lse[0]
            return output.astype(numpy_dtype(self.facts.dtype)), lse

    # Reading.

    def read(self, name: str, x: np.ndarray) -> np.ndarray:
        """An operand in float32."""
        return x.astype(F)

    def sequence(self, query: np.ndarray, offsets: np.ndarray, b: int) -> np.ndarray:
        """Queries (1, H, l, E) of sequence b of the packed ones."""
        return np.swapaxes(query[offsets[b] : offsets[b + 1]], 0, 1)[None]

    def query(self, p: Problem, i: np.ndarray) -> np.ndarray:
        """Queries of the rows i."""
        return p.query[:, :, i]

    def heads(self, p: Problem, name: str) -> np.ndarray:
        """Which key head each query head reads."""
        return np.arange(p.H) // p.group

    def pages(self, p: Problem, name: str, j: np.ndarray) -> np.ndarray:
        """Which page of the pool each key lies on."""
        return p.table[p.b, j // self.page_size(p)]

    def page_size(self, p: Problem) -> int:
        """Tokens in a page."""
        return p.key.shape[1]

    def fetch(self, p: Problem, name: str, j: np.ndarray) -> np.ndarray:
        """Keys or values (B, H, len(j), E) at the places j, whatever lies there; places past the memory are cut."""
        x, heads = getattr(p, name), self.heads(p, name)
        if p.table is not None:
            size = self.page_size(p)
            j = np.minimum(j, p.table.shape[1] * size - 1)
            return np.moveaxis(x[self.pages(p, name, j), j % size][:, heads], 1, 0)[None]
        if p.start is not None:
            return np.moveaxis(x[np.clip(p.start + j, 0, len(x) - 1)][:, heads], 1, 0)[None]
        of = x if len(x) == len(p.query) else x[p.b : p.b + 1]
        return of[:, heads[:, None], np.minimum(j, x.shape[2] - 1)]

    def load(self, p: Problem, name: str, j: np.ndarray) -> np.ndarray:
        """A tile of keys or values; zeros where there is no key."""
        inside = self.inside(p, j)
        return np.where(inside[:, None], self.fetch(p, name, np.where(inside, j, 0)), F(0))

    # Who sees whom.

    def inside(self, p: Problem, j: np.ndarray) -> np.ndarray:
        """Which of the keys of a tile there are."""
        return j < p.S

    def offset(self, p: Problem) -> int:
        """The key that query 0 stands on."""
        return p.S - p.L if self.facts.anchor == "lower_right" else 0

    def reach(self, p: Problem) -> tuple[int | None, int | None]:
        """How many keys before and behind its own a query sees."""
        left, right = self.facts.window or (None, None)
        return left, 0 if p.causal else right

    def bounds(self, p: Problem, i: np.ndarray) -> tuple[int, int]:
        """First key that the rows i see, and the end of those that they see."""
        left, right = self.reach(p)
        first = 0 if left is None else max(0, int(i[0]) + self.offset(p) - left)
        stop = p.S if right is None else min(p.S, int(i[-1]) + self.offset(p) + right + 1)
        if self.facts.prefix:
            first, stop = 0, max(stop, min(self.facts.prefix, p.S))
        return first, stop

    def tiles(self, p: Problem, i: np.ndarray) -> list[np.ndarray]:
        """The keys of each tile, in the order in which they are read."""
        size = self.facts.tile_k
        first, stop = self.bounds(p, i)
        starts = np.arange(first // size * size, stop, size)
        if self.facts.order == "backward":
            starts = starts[::-1]
        if self.facts.order == "permuted":
            starts = np.random.default_rng(self.facts.seed).permutation(starts)
        return [np.arange(start, start + size) for start in starts.tolist()]

    def geometry(self, p: Problem, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Who sees whom by causality, window and prefix."""
        left, right = self.reach(p)
        distance = j - (i[:, None] + self.offset(p))
        seen = np.ones(distance.shape, dtype=bool)
        seen &= True if left is None else distance >= -left
        seen &= True if right is None else distance <= right
        return seen | (j < self.facts.prefix)

    def kept(self, p: Problem, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The tile of the mask array."""
        return p.mask[:, :, i[:, None], np.minimum(j, p.S - 1)]

    def visible(self, p: Problem, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Who sees whom in a tile, to be broadcast to (B, H, rows, keys)."""
        seen = self.inside(p, j) & self.geometry(p, i, j)
        return seen if p.mask is None else seen & self.kept(p, i, j)

    # Scores.

    def scale(self, p: Problem) -> float:
        """What the products are multiplied by."""
        given = self.facts.scale if p.scale is None else p.scale
        return 1 / math.sqrt(p.dims[0]) if given is None else given

    def logits(self, p: Problem, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Scaled products."""
        return matmul(self.facts.product, q, np.swapaxes(k, -1, -2)) * F(self.scale(p))

    def capped(self, p: Problem, s: np.ndarray) -> np.ndarray:
        """Scores after the softcap."""
        return s if p.softcap is None else F(p.softcap) * np.tanh(s / F(p.softcap))

    def slopes(self, p: Problem) -> np.ndarray:
        """Slope of each head."""
        given = self.facts.slopes
        return published_slopes(p.H) if given is True else np.array(given, F)

    def distance(self, p: Problem, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """How far each key is, as ALiBi counts it."""
        return np.abs(j - (i[:, None] + self.offset(p))).astype(F)

    def tile_of_bias(self, p: Problem, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The tile of the bias array."""
        return p.bias[:, :, i[:, None], np.minimum(j, p.S - 1)]

    def biased(self, p: Problem, s: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Scores with what is added to them."""
        if p.bias is not None:
            s = s + self.tile_of_bias(p, i, j)
        if self.facts.slopes:
            s = s - self.slopes(p)[:, None, None] * self.distance(p, i, j)
        return s

    def scores(self, p: Problem, q: np.ndarray, k: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Scores of a tile before the mask."""
        return self.biased(p, self.capped(p, self.logits(p, q, k)), i, j)

    def masked(self, p: Problem, s: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Scores, -inf where a key is not seen."""
        return np.where(self.visible(p, i, j), s, F(-np.inf))

    # The softmax.

    def exp(self, x: np.ndarray, m: np.ndarray) -> np.ndarray:
        """exp(x - m)."""
        if self.facts.exponential == "exp":
            return np.exp(x - m)
        # A fused multiply-add: the product is exact in float64.
        return np.exp2((x.astype(np.float64) * np.float64(LOG2E) - m * LOG2E).astype(F))

    def start(self, p: Problem, i: np.ndarray) -> State:
        """The state before the first tile."""
        shape = (*p.query.shape[:2], len(i))
        m, l = np.full((*shape, 1), -np.inf, F), np.zeros((*shape, 1), F)
        return State(m, l, np.zeros((*shape, p.dims[1]), F))

    def maximum(self, m: np.ndarray, s: np.ndarray) -> np.ndarray:
        """The number to subtract from now on; a lazy kernel keeps its old one while the maximum has not risen much."""
        top = np.maximum(m, s.max(axis=-1, keepdims=True))
        return np.where((m > -np.inf) & (top - m <= F(self.facts.lazy)), m, top)

    def factors(self, old: np.ndarray, m: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the tile, and the factor of what was summed before."""
        safe = np.where(m > -np.inf, m, F(0))
        return self.exp(s, safe), self.exp(old, safe)

    def narrowed(self, P: np.ndarray) -> np.ndarray:
        """Weights in the format that multiplies the values."""
        return rounded(P, self.facts.weights or self.facts.dtype)

    def rescaled(self, state: State, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row sum and output under the new maximum."""
        return state.l * alpha, state.O * alpha

    def row_sum(self, P: np.ndarray) -> np.ndarray:
        """Sum of the weights of a tile."""
        return (self.narrowed(P) if self.facts.sum_of_rounded else P).sum(axis=-1, keepdims=True, dtype=F)

    def update(self, p: Problem, state: State, s: np.ndarray, v: np.ndarray, i: np.ndarray, j: np.ndarray) -> State:
        """The state with one more tile."""
        m = self.maximum(state.m, s)
        P, alpha = self.factors(state.m, m, s)
        l, O = self.rescaled(state, alpha)
        return State(m, l + self.row_sum(P), matmul(self.facts.product, self.narrowed(P), v, O))

    def step(self, p: Problem, q: np.ndarray, i: np.ndarray, j: np.ndarray, state: State) -> State:
        """The state after the keys j."""
        k, v = self.load(p, "key", j), self.load(p, "value", j)
        return self.update(p, state, self.masked(p, self.scores(p, q, k, i, j), i, j), v, i, j)

    # Splits and the end.

    def parts(self, p: Problem, i: np.ndarray) -> Iterator[State]:
        """The state of each split of the keys."""
        q, tiles = self.query(p, i), self.tiles(p, i)
        for split in np.array_split(np.arange(len(tiles)), self.facts.splits):
            state = self.start(p, i)
            for n in split:
                state = self.step(p, q, i, tiles[n], state)
            yield state

    def partial(self, p: Problem, state: State) -> Part:
        """A split's result as it is stored."""
        some = state.l > 0
        safe = np.where(some, state.l, F(1))
        return Part(state.O / safe, np.where(some, state.m + np.log(safe), F(-np.inf)))

    def merge(self, p: Problem, parts: list[Part]) -> State:
        """The splits' results as one state."""
        top = np.max([part.lse for part in parts], axis=0)
        weights = [np.exp(part.lse - np.where(top > -np.inf, top, F(0))) for part in parts]
        O = sum(w * part.o for w, part in zip(weights, parts, strict=True))
        return State(top, sum(weights), O)

    def sink(self, p: Problem, state: State) -> State:
        """The state with the sink's weight."""
        sink = p.sinks[:, None, None]
        top = np.maximum(state.m, sink)
        alpha = np.exp(state.m - top)
        return State(top, state.l * alpha + np.exp(sink - top), state.O * alpha)

    def finish(self, p: Problem, state: State, i: np.ndarray) -> Part:
        """Output and log-sum-exp of the rows i; zeros and -inf where they saw nothing."""
        m, l, O = state if p.sinks is None else self.sink(p, state)
        some = l > 0
        safe = np.where(some, l, F(1))
        o = O * (F(1) / safe) if self.facts.reciprocal else O / safe
        return Part(np.where(some, o, F(0)), np.where(some, m + np.log(safe), F(-np.inf)))

    def rows(self, p: Problem, i: np.ndarray) -> Part:
        """Output and log-sum-exp of one tile of queries."""
        states = list(self.parts(p, i))
        state = states[0] if len(states) == 1 else self.merge(p, [self.partial(p, state) for state in states])
        return self.finish(p, state, i)

    def store(self, p: Problem, output: np.ndarray, lse: np.ndarray, i: np.ndarray, part: Part) -> None:
        """Write the rows i."""
        output[:, :, i], lse[:, :, i] = part.o, part.lse[..., 0]

    def prepare(self, p: Problem) -> Problem:
        """The problem as the kernel understands it."""
        return p

    def run(self, p: Problem) -> tuple[np.ndarray, np.ndarray]:
        """Output (B, H, L, Ev) and log-sum-exp (B, H, L)."""
        p = self.prepare(p)
        shape = p.query.shape[:3]
        output, lse = np.full((*shape, p.dims[1]), LEFTOVER), np.full(shape, LEFTOVER)
        for first in range(0, p.L, self.facts.tile_q):
            i = np.arange(first, min(first + self.facts.tile_q, p.L))
            self.store(p, output, lse, i, self.rows(p, i))
        return output, lse
