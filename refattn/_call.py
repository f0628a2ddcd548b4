"""A public call of softmax attention turned into one frozen record, and its results turned back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refattn import biases
from refattn._arguments import gather
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, dtype_name, float64, round_to, taken
from refattn._core.checks import check_array, check_held, check_output_dtype, check_shape
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


class AttentionGradient(NamedTuple):
    """Gradients of a loss; what the call did not have is None.

    Attributes
    ----------
    query : array, shape (..., H, L, E)
        Of the query.
    key : array, shape (..., Hk, S, E)
        Of the key, summed over the query heads that read it.
    value : array, shape (..., Hk, S, Ev)
        Of the value, summed over the query heads that read it.
    bias : array, shape of the bias, or None
        Of the bias, summed over the axes along which it was broadcast; None for no bias or one that is a rule.
    sinks : array, shape (H,), or None
        Of the sinks, summed over batch and queries.
    """

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    sinks: Array | None = None


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

    def views(self) -> tuple[Upcast, Upcast, Upcast]:
        """The arrays of `grouped`, cast to float64 tile by tile where they are read."""
        xp = self.xp
        key, value = (Upcast(xp.expand_dims(x, axis=-3), xp) for x in (self.key, self.value))
        return Upcast(self.split(self.query, 2), xp), key, value

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
        """A result, in the dtype that it was accumulated in, rounded once to the call's dtype."""
        return _rounded(x, self.dtype, self.xp)

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
    return Call(xp, arguments.query, arguments.key, arguments.value, score, arguments.dtype)


@dataclass(frozen=True, eq=False)
class GradientCall:
    """A checked call of a gradient: the call that it is the gradient of, and the cotangents as they came.

    `arrays` are those whose gradients are asked for, by the names of `AttentionGradient`, and `dtypes` what these are
    rounded to; None for what the call did not have.
    """

    call: Call
    grad_output: Array
    grad_lse: Array | None
    arrays: Mapping[str, Array | None]
    dtypes: Mapping[str, str | None]

    def cotangents(self) -> tuple[Upcast, Upcast | None]:
        """Those of output (..., Hk, G, L, Ev) and log-sum-exp (..., Hk, G, L), cast to float64 where they are read."""
        call, dlse = self.call, self.grad_lse
        dO = Upcast(call.split(self.grad_output, 2), call.xp)
        return dO, None if dlse is None else Upcast(call.split(dlse, 1), call.xp)

    def rounded(self, found: Mapping[str, Array | None]) -> AttentionGradient:
        """Gradients as they were accumulated, summed over the axes of broadcasting, and rounded once."""
        rounded: dict[str, Array | None] = {}
        for name, x in found.items():
            array, dtype = self.arrays[name], self.dtypes[name]
            if x is None or array is None or dtype is None:
                rounded[name] = None
                continue
            xp = self.call.xp
            summed = _summed(float64(x, xp), tuple(array.shape), xp) if name == "bias" else x
            rounded[name] = _rounded(summed, dtype, xp)
        return AttentionGradient(**rounded)

    def grouped_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a bias with all axes (..., Hk, G, L, S), 1 where it is broadcast."""
        full = (1,) * (len(self.call.lead) + 2 - len(shape)) + shape
        groups = self.call.score.groups
        assert groups is not None
        return (*full[:-3], *((1, 1) if full[-3] == 1 else groups), *full[-2:])

    def of_sinks(self, dsink: Array | None) -> Array | None:
        """The gradient of the sinks (H,), from that of the sink in each row (..., Hk, G, L, 1)."""
        if dsink is None:
            return None
        return _summed(self.call.headed(dsink, 2), (self.call.lead[-1], 1, 1), self.call.xp)[:, 0, 0]


def prepare_gradient(
    function: str,
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: biases.Bias | Array | None,
    sinks: Array | None,
    grad_lse: Array | None,
    dtype: object,
    **given: Any,
) -> GradientCall:
    """Check the arguments that all gradients of softmax attention share, and gather them."""
    check_array(function, "grad_output", grad_output, FLOATS)
    call = prepare(function, query, key, value, bias=bias, sinks=sinks, dtype="float64", **given)
    bias = None if isinstance(bias, biases.Bias) else bias
    arrays = {"query": query, "key": key, "value": value, "bias": bias, "sinks": sinks}
    dtypes = {name: None if x is None else check_output_dtype(function, dtype, x, name) for name, x in arrays.items()}
    L, Ev = call.score.lengths[0], value.shape[-1]
    check_shape(function, "grad_output", grad_output, "(..., H, L, Ev)", (*call.lead, L, Ev))
    if grad_lse is not None:
        check_array(function, "grad_lse", grad_lse, FLOATS)
        check_shape(function, "grad_lse", grad_lse, "(..., H, L)", (*call.lead, L))
    xp = array_namespace(function, query=query, grad_output=grad_output, grad_lse=grad_lse)
    for name in dtypes.values():
        if name is not None:
            check_held(function, name, xp)
    return GradientCall(call, grad_output, grad_lse, arrays, dtypes)


def _rounded(x: Array, dtype: str, xp: Namespace) -> Array:
    """Numbers in the dtype called `dtype`, those that are in it already as they are."""
    accumulated = dtype_name(x)
    if accumulated == dtype:
        return x
    return round_to(x if accumulated == "float64" else float64(x, xp), dtype, xp)


def _summed(x: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """The gradient of an array that was broadcast from a shape to that of x."""
    rank, shape = len(shape), (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(axis for axis, n in enumerate(shape) if n == 1 != x.shape[axis])
    x = xp.sum(x, axis=axes, keepdims=True) if axes else x
    return xp.reshape(x, shape[x.ndim - rank :])
