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
    format in which the accumulator is kept.
    """

    size: int
    output: bool = True
    total: bool = True
    stored: str | None = None
    backward: bool = False


@dataclass(frozen=True, eq=False)
class Model:
    """What is done with the operands, stage by stage.

    `counts` (N, L, S) tells how often each key takes part, `key_heads` and `value_heads` (N,) which slot is read,
    `reads` what an operand is taken for, `cap` what comes of the raw scores, `masked` the score of a masked cell,
    `base` the factor on scores before the exponential, `padding` the number of keys without value at score 0 that are
    counted, and `lse` what is made of the row's maximum and its sum.
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
    lse: Callable[[Floats, Floats], Floats] | None = None

    def rows(self, rows: Ints) -> Model:
        """The model of some of the L rows."""
        return replace(self, counts=self.counts[:, rows], bias=None if self.bias is None else self.bias[:, rows])

    @quiet
    def scored(self, given: Operands) -> Floats:
        """Scores (N, L, S), `masked` in masked cells."""
        q, k = (self._read(name, x) for name, x in (("query", given.query), ("key", given.key)))
        if self.operands is not None:
            q, k = rounded(q, self.operands), rounded(k, self.operands)
        if q.any() and k.any():
            s = self.scale * (q @ np.swapaxes(k[self.key_heads], -1, -2))
        else:
            s = np.zeros(self.counts.shape)
        s = s if self.scores is None else rounded(s, self.scores)
        if self.cap is not None and not self.capped_last:
            s = self.cap(s)
        s = s if self.bias is None else s + self.bias
        if self.cap is not None and self.capped_last:
            s = self.cap(s)
        return np.where(self.counts > 0, s * self.base if self.base != 1.0 else s, self.masked)

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
        O, A, l, m = self._summed(s, counts, value) if self.tiled is None else self._recurrence(s, counts, value)
        some = (l > 0)[..., None]
        safe = np.where(l > 0, l, 1.0)[..., None]
        lse = np.where(l > 0, m + np.log(l), -math.inf) if self.lse is None else self.lse(m, l)
        return Answer(np.where(some, O / safe, 0.0), lse, np.where(some, A / safe, 0.0))

    def _alike(self, given: Operands) -> bool:
        """Whether all slots have the same answer, by what they are made of."""
        if len(given.query) == 1 or self.reads or self.bias is not None or self.sinks is not None:
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
            safe = np.where(np.isfinite(top), top, 0.0)
            P = counts[..., j] * np.exp(s[..., j] - safe[..., None])
            alpha = np.exp(m - safe)
            l = l * (alpha if tiled.total else 1.0) + P.sum(axis=-1)
            of_output = alpha[..., None] if tiled.output else 1.0
            O, A = O * of_output + P @ v[:, j], A * of_output + P @ np.abs(v[:, j])
            O = O if tiled.stored is None else rounded(O, tiled.stored)
            m = top
        m = np.where(np.isfinite(m), m, 0.0)
        return Sums(O, A, l + self._beside(m), m)


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
