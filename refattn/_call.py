"""A public call of softmax attention turned into one frozen record, and its results turned back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn._arguments import gather
from refattn._core.arrays import Array, Namespace, float64, round_to, taken
from refattn._core.score import Dropout, Score


class AttentionResult(NamedTuple):
    """What a call returns that asked for more than the output; what it did not ask for is None.

    Attributes
    ----------
    output : array, shape (..., H, L, Ev)
        The output.
    lse : array, shape (..., H, L), or None
        Natural log-sum-exp of the scores, float64.
    weights : array, shape (..., H, L, S), or None
        The softmax weights.
    """

    output: Array
    lse: Array | None = None
    weights: Array | None = None


class Slab(NamedTuple):
    """One batch entry and head of a call: float64 tiles of query (L, E), key (S, E), value (S, Ev), and their score."""

    query: Upcast
    key: Upcast
    value: Upcast
    score: Score


@dataclass(frozen=True, eq=False)
class Upcast:
    """An array whose cells are cast to float64 where they are read, so that no copy of the whole is made."""

    array: Array
    xp: Namespace

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.array.shape)

    def __getitem__(self, item: Any) -> Array:
        """The cells, in float64."""
        return float64(self.array[item], self.xp)

    def take(self, rows: np.ndarray[Any, Any]) -> Array:
        """The rows at an array of positions, in float64."""
        return float64(taken(self.array, rows, -2, self.xp), self.xp)


@dataclass(frozen=True, eq=False)
class Call:
    """A checked call: arrays (..., H, L, E), (..., Hk, S, E), (..., Hk, S, Ev) as they came, and their score."""

    xp: Namespace
    query: Array
    key: Array
    value: Array
    score: Score
    dtype: str

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes (..., H) of the query."""
        return tuple(self.query.shape[:-2])

    def grouped(self) -> tuple[Array, Array, Array]:
        """Float64 arrays (..., Hk, G, L, E), (..., Hk, 1, S, E) and (..., Hk, 1, S, Ev): GQA by broadcasting."""
        q, k, v = (float64(x, self.xp) for x in (self.query, self.key, self.value))
        return self.split(q, 2), self.xp.expand_dims(k, axis=-3), self.xp.expand_dims(v, axis=-3)

    def split(self, x: Array, axes: int) -> Array:
        """(..., H, *axes) as (..., Hk, G, *axes)."""
        at = len(x.shape) - axes
        groups = self.score.groups
        assert groups is not None
        return self.xp.reshape(x, (*x.shape[: at - 1], *groups, *x.shape[at:]))

    def slab(self, index: tuple[int, ...]) -> Slab:
        """One batch entry and query head, with the key head that it reads."""
        groups = self.score.groups
        assert groups is not None
        of_key = (*index[:-1], index[-1] // groups[1])
        return Slab(
            Upcast(self.query[(*index, ...)], self.xp),
            Upcast(self.key[(*of_key, ...)], self.xp),
            Upcast(self.value[(*of_key, ...)], self.xp),
            self.score.at(index),
        )

    def rounded(self, x: Array) -> Array:
        """A float64 result rounded once to the call's dtype."""
        return round_to(x, self.dtype, self.xp)

    def headed(self, x: Array, axes: int) -> Array:
        """(..., Hk, G, *axes) as (..., H, *axes)."""
        at = len(x.shape) - axes
        return self.xp.reshape(x, (*x.shape[: at - 2], x.shape[at - 2] * x.shape[at - 1], *x.shape[at:]))


def prepare(function: str, query: Array, key: Array, value: Array | None, **given: Any) -> Call:
    """Check the arguments that all of softmax attention shares, and gather them; scores alone have no value."""
    arguments = gather(function, query, key, value, **given)
    scale, kept, groups = arguments.scale, arguments.dropout_mask, arguments.groups
    sinks, xp = arguments.sinks, arguments.xp
    score = Score(
        lengths=arguments.lengths,
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        softcap=arguments.softcap,
        bias=arguments.bias,
        mask=arguments.mask,
        sink=None if sinks is None else xp.reshape(sinks, (*groups, 1, 1)),
        dropout=None if kept is None else Dropout(kept, arguments.dropout_p),
        groups=groups,
    )
    return Call(xp, query, key, value, score, arguments.dtype)
