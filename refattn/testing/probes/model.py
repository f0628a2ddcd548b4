"""What a kernel does with its operands, exactly: the right thing, or what a known mistake makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet, round_to
from refattn._core.tiles import tiles
from refattn.contract.formats import FORMATS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Transform = Callable[[Floats], Floats]


class Operands(NamedTuple):
    """Query (N, L, E), key (M, S, E) and value (M, S, Ev) over slots: batch entry by head, the head running faster.

    A value of None stands for the S columns of the identity, `width` at a time: the output is then the weights.
    """

    query: Floats
    key: Floats
    value: Floats | None
    width: int = 0

    def identities(self) -> Iterator[tuple[Floats, slice]]:
        """Values (M, S, width) that are some columns of the identity, and which."""
        M, S, _ = self.key.shape
        for columns in tiles(S, self.width):
            value = np.zeros((M, S, self.width))
            at = np.arange(columns.start, columns.stop)
            value[:, at, at - columns.start] = 1.0
            yield value, columns


class Answer(NamedTuple):
    """Output (N, L, Ev), log-sum-exp (N, L), and for slacks sum p |v| (N, L, Ev)."""

    output: Floats
    lse: Floats
    magnitude: Floats


class Sums(NamedTuple):
    """Unnormalised output, its magnitude, row sum and the number subtracted from the scores."""

    O: Floats
    A: Floats
    l: Floats
    m: Floats


@dataclass(frozen=True)
class Tiled:
    """A recurrence over tiles of keys with a mistake in what is done to earlier tiles.

    `output` and `total` tell whether accumulator and row sum are rescaled when the maximum rises; `stored` is the
    format in which the accumulator is kept. The maximum stays while scores are above it by no more than `lazy`; weights
    that multiply values, and those of the row sum where `sum_cut` says so, are cut off at `most`.
    """

    size: int
    output: bool = True
    total: bool = True
    stored: str | None = None
    backward: bool = False
    lazy: float = 0.0
    most: float = math.inf
    sum_cut: bool = False


@dataclass(frozen=True)
class Split:
    """Parts of the keys that are computed by themselves and merged, with a mistake in how.

    The parts end before the keys `stops`; `parts` and `logs` are the formats of outputs and log-sum-exps in between,
    `factor` is what the latter are multiplied by, `kept` says that the row sum stays that of one part.
    """

    stops: tuple[int, ...]
    parts: str = "float64"
    logs: str = "float64"
    factor: float = 1.0
    kept: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """What is done with the operands, stage by stage.

    `counts` (N, L, S) tells how often each key takes part, `key_heads` and `value_heads` (N,) which slot is read,
    `reads` what an operand is taken for, `cap` what comes of the raw scores, `masked` the score of a masked cell,
    `base` the factor on scores before the exponential, `padding` the number of keys without value at score 0 that are
    counted, and `lse` what is made of the row's maximum and its sum. `takes` (L, S) is the key whose weight each value
    gets, -1 for none; `prescaled` the format of queries that were multiplied by the scale and by a number. `row_sum` is
    what is made of the row's maximum and its sum before it divides, `writes` where the output goes: both may mix rows.
    """

    counts: Floats
    key_heads: Ints
    value_heads: Ints
    scale: float
    cap: Transform | None = None
    bias: Floats | None = None
    capped_last: bool = False
    sinks: Floats | None = None
    linear_sinks: bool = False
    padding: int = 0
    masked: float = -math.inf
    base: float = 1.0
    reads: Mapping[str, Transform] = field(default_factory=dict)
    operands: str | None = None
    scores: str | None = None
    tiled: Tiled | None = None
    split: Split | None = None
    takes: Ints | None = None
    prescaled: tuple[str, float] | None = None
    row_sum: Callable[[Floats, Floats], Floats] | None = None
    writes: Transform | None = None
    lse: Callable[[Floats, Floats], Floats] | None = None

    @property
    def mixes(self) -> bool:
        """Whether a row's answer is made of other rows too."""
        return self.row_sum is not None or self.writes is not None

    @property
    def plain(self) -> bool:
        """Whether weights are those of the scores, over their sum."""
        return self.tiled is None and self.split is None and self.takes is None and not self.mixes

    def rows(self, rows: Ints) -> Model:
        """The model of some of the L rows."""
        bias, takes = self.bias, self.takes
        return replace(
            self,
            counts=self.counts[:, rows],
            bias=None if bias is None else bias[:, rows],
            takes=None if takes is None else takes[rows],
        )

    @quiet
    def scored(self, given: Operands) -> Floats:
        """Scores (N, L, S), `masked` in masked cells."""
        q, k = (self._read(name, x) for name, x in (("query", given.query), ("key", given.key)))
        if self.operands is not None:
            q, k = rounded(q, self.operands), rounded(k, self.operands)
        if q.any() and k.any():
            s = self._scaled(q) @ np.swapaxes(k[self.key_heads], -1, -2)
            s = s if self.prescaled is not None else self.scale * s
        else:
            s = np.zeros(self.counts.shape)
        s = s if self.scores is None else rounded(s, self.scores)
        if self.cap is not None and not self.capped_last:
            s = self.cap(s)
        s = s if self.bias is None else s + self.bias
        if self.cap is not None and self.capped_last:
            s = self.cap(s)
        return np.where(self.counts > 0, s * self.base if self.base != 1.0 else s, self.masked)

    def _scaled(self, q: Floats) -> Floats:
        """Queries, with the scale in them where it is applied there."""
        if self.prescaled is None:
            return q
        name, factor = self.prescaled
        return rounded(q * (self.scale * factor), name) / factor

    @quiet
    def answer(self, given: Operands) -> Answer:
        """Output and log-sum-exp of this model."""
        if self._alike(given):
            one = replace(self, **{name: getattr(self, name)[:1] for name in ("counts", "key_heads", "value_heads")})
            query, key, value, width = given
            found = one.answer(Operands(query[:1], key[:1], None if value is None else value[:1], width))
            return Answer(*(np.broadcast_to(x, (len(query), *x.shape[1:])) for x in found))
        s = self.scored(given)
        value = self._values(given)
        counts = self.counts if self.masked == -math.inf else np.maximum(self.counts, 1.0)
        O, A, l, m = self._sums(s, counts, value)
        l = l if self.row_sum is None else self.row_sum(m, l)
        some = (l > 0)[..., None]
        safe = np.where(l > 0, l, 1.0)[..., None]
        lse = np.where(l > 0, m + np.log(l), -math.inf) if self.lse is None else self.lse(m, l)
        output, magnitude = (np.where(some, x / safe, 0.0) for x in (O, A))
        if self.writes is not None:
            output, magnitude = self.writes(output), self.writes(magnitude)
        return Answer(output, lse, magnitude)

    def _sums(self, s: Floats, counts: Floats, value: Floats | None) -> Sums:
        """Sums over the keys, in the way that the model goes about it."""
        if self.split is not None:
            return self._merged(s, counts, value, self.split)
        return self._summed(s, counts, value) if self.tiled is None else self._recurrence(s, counts, value)

    def _alike(self, given: Operands) -> bool:
        """Whether all slots have the same answer, by what they are made of."""
        if len(given.query) == 1 or self.reads or self.mixes or self.bias is not None or self.sinks is not None:
            return False
        operands = (x for x in given[:3] if x is not None)
        return self.counts.strides[0] == 0 and all(bool((x == x[:1]).all()) for x in operands)

    def _values(self, given: Operands) -> Floats | None:
        """The values that each query slot reads; None where they are the identity."""
        if given.value is not None:
            return self._read("value", given.value)[self.value_heads]
        if "value" not in self.reads:
            return None
        parts = [self._read("value", x)[..., : j.stop - j.start] for x, j in given.identities()]
        return np.concatenate(parts, axis=-1)[self.value_heads]

    def _read(self, name: str, x: Floats) -> Floats:
        """An operand as it is read."""
        return self.reads[name](x) if name in self.reads else x

    def _summed(self, s: Floats, counts: Floats, value: Floats | None) -> Sums:
        """Sums over all keys at once."""
        m = s.max(axis=-1, initial=-math.inf)
        if self.padding:
            m = np.maximum(m, 0.0)
        if self.sinks is not None and not self.linear_sinks:
            m = np.maximum(m, self.sinks[:, None])
        m = np.where(np.isfinite(m), m, 0.0)
        P = counts * np.exp(s - m[..., None])
        l = P.sum(axis=-1) + self._beside(m)
        if self.takes is not None:
            index = np.broadcast_to(np.maximum(self.takes, 0), P.shape)
            P = np.where(self.takes < 0, 0.0, np.take_along_axis(P, index, axis=-1))
        if value is None:
            return Sums(P, P, l, m)
        O = P @ value
        return Sums(O, O if (value >= 0).all() else P @ np.abs(value), l, m)

    def _beside(self, m: Floats) -> Floats:
        """What enters the row sum without a value."""
        l = self.padding * np.exp(-m) if self.padding else np.zeros_like(m)
        if self.sinks is None:
            return l
        sinks = self.sinks[:, None]
        return l + (sinks if self.linear_sinks else np.exp(sinks - m))

    def _recurrence(self, s: Floats, counts: Floats, value: Floats | None) -> Sums:
        """Sums tile by tile, as `tiled` says."""
        tiled = self.tiled
        assert tiled is not None
        S = s.shape[-1]
        v = np.eye(S)[None] if value is None else value
        m = np.full(s.shape[:-1], -math.inf)
        l = np.zeros_like(m)
        O, A = np.zeros((*m.shape, v.shape[-1])), np.zeros((*m.shape, v.shape[-1]))
        order = list(tiles(S, tiled.size))
        for j in reversed(order) if tiled.backward else order:
            top = np.maximum(m, s[..., j].max(axis=-1))
            top = np.where(np.isfinite(m) & (top - m <= tiled.lazy), m, top)
            safe = np.where(np.isfinite(top), top, 0.0)
            P = counts[..., j] * np.exp(s[..., j] - safe[..., None])
            alpha = np.exp(m - safe)
            cut = np.minimum(P, tiled.most)
            l = l * (alpha if tiled.total else 1.0) + (cut if tiled.sum_cut else P).sum(axis=-1)
            of_output = alpha[..., None] if tiled.output else 1.0
            O, A = O * of_output + cut @ v[:, j], A * of_output + cut @ np.abs(v[:, j])
            O = O if tiled.stored is None else rounded(O, tiled.stored)
            m = top
        m = np.where(np.isfinite(m), m, 0.0)
        return Sums(O, A, l + self._beside(m), m)

    def _merged(self, s: Floats, counts: Floats, value: Floats | None, split: Split) -> Sums:
        """Sums of the parts of the keys, merged as `split` says."""
        S = s.shape[-1]
        v = np.eye(S)[None] if value is None else value
        found = []
        for start, stop in zip((0, *split.stops[:-1]), split.stops, strict=True):
            m = s[..., start:stop].max(axis=-1, initial=-math.inf)
            m = np.where(np.isfinite(m), m, 0.0)
            P = counts[..., start:stop] * np.exp(s[..., start:stop] - m[..., None])
            l = P.sum(axis=-1)
            P = P / np.where(l > 0, l, 1.0)[..., None]
            parts = rounded(P @ v[:, start:stop], split.parts), P @ np.abs(v[:, start:stop])
            found.append((*parts, rounded(split.factor * (m + np.log(l)), split.logs)))
        top = np.max([lse for *_, lse in found], axis=0)
        top = np.where(np.isfinite(top), top, 0.0)
        weights = [np.exp(lse - top) for *_, lse in found]
        O, A = (sum((w[..., None] * x[n] for w, x in zip(weights, found, strict=True)), np.zeros(1)) for n in (0, 1))
        total = np.add.reduce(weights)
        l = np.where(total > 0, 1.0, 0.0) if split.kept else total
        return Sums(O, A, l + self._beside(top), top)


def rounded(x: npt.ArrayLike, name: str) -> Floats:
    """Numbers rounded to a format, in float64; past its largest they are inf or NaN, as the format has them."""
    x = np.asarray(x, dtype=np.float64)
    if name == "float64":
        return x
    if name == "tf32":
        (fraction, exponent), precision = np.frexp(x), FORMATS[name].precision
        short: Floats = np.ldexp(np.rint(np.ldexp(fraction, precision)), exponent - precision)
        return short
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(round_to(x, name, np)).astype(np.float64)
