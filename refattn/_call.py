"""A public call of softmax attention turned into one frozen record, and its results turned back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn import biases, masks
from refattn._core import checks
from refattn._core.arrays import (
    FLOATS,
    Array,
    Namespace,
    array_namespace,
    dtype_name,
    dtype_of,
    float64,
    known,
    library_of_namespace,
    round_to,
    taken,
)
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


def prepare(
    function: str,
    query: Array,
    key: Array,
    value: Array | None,
    *,
    mask: masks.Mask | Array | None,
    bias: biases.Bias | Array | None,
    is_causal: bool,
    scale: float | None,
    softcap: float | None,
    sinks: Array | None,
    dropout_mask: masks.Mask | Array | None = None,
    dropout_p: float = 0.0,
    dtype: object,
    has_value: bool = True,
) -> Call:
    """Check the arguments that all of softmax attention shares, and gather them; scores alone have no value."""
    for name, x in (("query", query), ("key", key), ("value", value))[: 3 if has_value else 2]:
        checks.check_array(function, name, x)
    if sinks is not None:
        checks.check_array(function, "sinks", sinks, FLOATS)
    if bias is not None and not isinstance(bias, biases.Bias):
        checks.check_array(function, "bias", bias, FLOATS)
    bias_array = None if isinstance(bias, biases.Bias) else bias
    keep = masks.as_mask(function, mask)
    kept = masks.as_mask(function, dropout_mask, "dropout_mask")
    xp = array_namespace(
        function,
        query=query,
        key=key,
        value=value,
        mask=None if keep is mask else mask,
        bias=bias_array,
        sinks=sinks,
        dropout_mask=None if kept is dropout_mask else dropout_mask,
    )
    checks.check_attention_shapes(function, query, key, value)
    lead, L, S = tuple(query.shape[:-2]), query.shape[-2], key.shape[-2]
    name = checks.check_output_dtype(function, dtype, query)
    if dtype_of(name, xp) is None:
        raise TypeError(f"{function}: dtype must be one that {library_of_namespace(xp)} has; got {name}.")
    keep = _mask(function, keep, is_causal, lead, L, S)
    added, keep = _bias(function, bias, keep, lead, L, S, xp)
    if not isinstance(dropout_mask, masks.Mask | None):
        checks.check_broadcast(function, "dropout_mask", tuple(dropout_mask.shape), lead, L, S)
    heads, key_heads = query.shape[-3], key.shape[-3]
    groups = (key_heads, heads // key_heads)
    sink = checks.check_sinks(function, sinks, heads, xp)
    score = Score(
        lengths=(L, S),
        scale=checks.check_scale(function, scale, query.shape[-1]),
        softcap=checks.check_softcap(function, softcap),
        bias=added,
        mask=keep,
        sink=None if sink is None else xp.reshape(sink, (*groups, 1, 1)),
        dropout=_dropout(function, kept, dropout_p, lead, L, S),
        groups=groups,
    )
    return Call(xp, query, key, value, score, name)


def _mask(
    function: str, keep: masks.Mask | None, is_causal: bool, lead: tuple[int, ...], L: int, S: int
) -> masks.Mask | None:
    """The mask of a call, held against its lengths; is_causal beside a mask means both."""
    if checks.check_flag(function, "is_causal", is_causal):
        if L != S:
            raise ValueError(
                f"{function}: is_causal=True is ambiguous for L={L}, S={S}. Pass "
                'mask=masks.causal(anchor="lower_right") or anchor="upper_left".'
            )
        keep = masks.causal() if keep is None else masks.causal() & keep
    if keep is not None:
        _check_lead(function, "mask", keep.lead, lead, L, S)
        keep.check(function, L, S)
    return keep


def _bias(
    function: str,
    bias: biases.Bias | Array | None,
    keep: masks.Mask | None,
    lead: tuple[int, ...],
    L: int,
    S: int,
    xp: Namespace,
) -> tuple[biases.Bias | None, masks.Mask | None]:
    """The bias of a call; where an array says -inf, the cell is masked instead."""
    if bias is None:
        return None, keep
    if isinstance(bias, biases.Bias):
        _check_lead(function, "bias", bias.lead, lead, L, S)
        bias.check(function, L, S)
        return bias, keep
    checks.check_broadcast(function, "bias", tuple(bias.shape), lead, L, S)
    values = float64(bias, xp) if dtype_name(bias).startswith("float8") else bias
    if known(xp.any(xp.isnan(values) | (values == math.inf))):
        raise ValueError(
            f"{function}: bias must be finite, or -inf where a cell is masked; got NaN or +inf. Pass mask= for cells "
            "that take no part."
        )
    hidden = values == -math.inf
    if not known(~xp.any(hidden)):
        seen = masks.array(~hidden)
        keep = seen if keep is None else keep & seen
    return biases.ArrayBias(values), keep


def _dropout(function: str, kept: masks.Mask | None, p: float, lead: tuple[int, ...], L: int, S: int) -> Dropout | None:
    """Dropout's mask and factor; without a mask there is none, for an oracle does not draw."""
    p = checks.check_dropout(function, p)
    if kept is None:
        if p > 0:
            raise ValueError(
                f"{function}: dropout_mask must be given with dropout_p={p}: which weights a kernel drops is its own "
                "choice. Pass the mask that it used, True where the weight was kept."
            )
        return None
    _check_lead(function, "dropout_mask", kept.lead, lead, L, S)
    kept.check(function, L, S)
    return Dropout(kept, 1.0 / (1.0 - p))


def _check_lead(function: str, name: str, own: tuple[int, ...], lead: tuple[int, ...], L: int, S: int) -> None:
    """The leading axes that a mask or bias tells apart are axes of the query."""
    checks.check_broadcast(function, name, (*own, 1, 1), lead, L, S)
