"""A call of the recurrence turned into one frozen record, and its results turned back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from refattn._core import checks, recurrence
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, device, float64, round_to
from refattn.layouts.host import offsets_of
from refattn.methods.recurrent import reference

# Of each rule: the arguments that it takes, and those that it needs.
RULES = {
    "linear": (("low_rank",), ()),
    "gated": (("decay", "low_rank"), ("decay",)),
    "delta": (("beta",), ("beta",)),
    "gated_delta": (("decay", "beta"), ("decay", "beta")),
}
FORMS = ("recurrent", "chunked", "parallel")


class RecurrentResult(NamedTuple):
    """Output and final state of the recurrence.

    Attributes
    ----------
    output : array, shape (..., H, L, Ev)
        The output.
    state : array, shape (..., H, E, Ev), or (..., N, H, E, Ev) for N packed sequences
        State after the last step, float64.
    """

    output: Array
    state: Array


@dataclass(frozen=True, eq=False)
class Call:
    """A checked call in float64, with all H heads: query, key (..., H, L, E), value (..., H, L, Ev), and the steps.

    decay is (..., H, L, 1 or E), 0 where none was given; beta (..., H, L, 1); state (..., H, E, Ev), with an axis N of
    sequences in front of H where L is cut into some.
    """

    xp: Namespace
    query: Array
    key: Array
    value: Array
    decay: Array
    beta: Array | None
    low_rank: tuple[Array, Array] | None
    state: Array
    scale: float
    sequences: tuple[slice, ...] | None
    dtype: str

    @property
    def steps(self) -> recurrence.Steps:
        """What each step does to the state."""
        if self.low_rank is not None:
            return recurrence.low_rank(self.key, self.decay, *self.low_rank)
        if self.beta is not None:
            return recurrence.delta(self.key, self.decay, self.beta, xp=self.xp)
        return recurrence.additive(self.key, self.decay)

    def forward(self, form: str, chunk: int) -> tuple[Array, Array]:
        """Output (..., H, L, Ev) in float64, and the state after the last step."""
        # Products with masked cells of a chunk would carry what is not finite to steps in front of it.
        found = [call._spoiled(*call._clean()._run(form, chunk)) for call in self.each()]
        outputs, states = [O for O, _ in found], [S for _, S in found]
        return self.joined(outputs), states[0] if self.sequences is None else self.stacked(states)

    def each(self) -> Iterator[Call]:
        """The call of each sequence, with its own state."""
        if self.sequences is None:
            yield self
        for n, at in enumerate(self.sequences or ()):
            q, k, v, g, beta, a, b = (None if x is None else x[..., at, :] for x in self._arrays())
            yield replace(
                self, query=q, key=k, value=v, decay=g, beta=beta, low_rank=None if a is None else (a, b),
                state=self.state[..., n, :, :, :], sequences=None,
            )  # fmt: skip

    def joined(self, parts: list[Array]) -> Array:
        """What the sequences gave, one after the other."""
        return parts[0] if self.sequences is None else self.xp.concat(parts, axis=-2)

    def stacked(self, states: list[Array]) -> Array:
        """States of the sequences, along an axis N in front of the heads."""
        return self.xp.stack(states, axis=-4)

    def rounded(self, O: Array) -> Array:
        """A result in the dtype of the call."""
        return round_to(O, self.dtype, self.xp)

    def _arrays(self) -> tuple[Array | None, ...]:
        """All arrays with an axis L."""
        return self.query, self.key, self.value, self.decay, self.beta, *(self.low_rank or (None, None))

    def _run(self, form: str, chunk: int) -> tuple[Array, Array]:
        """One form of the recurrence."""
        Q, L = self.scale * self.query, self.query.shape[-2]
        if form == "recurrent":
            return reference.recurrent(Q, self.value, self.steps, self.state, xp=self.xp)
        size = chunk if form == "chunked" else max(1, L)
        return reference.chunked(Q, self.value, self.steps, self.state, chunk=size, xp=self.xp)

    def _clean(self) -> Call:
        """The call with 0 in the place of all that is not finite; a decay of -inf, which is a reset, stays."""
        q, k, v, g, beta, a, b = (
            None if x is None else self.xp.where(_finite(x, self.xp, reset=x is self.decay), x, 0.0)
            for x in self._arrays()
        )
        return replace(self, query=q, key=k, value=v, decay=g, beta=beta, low_rank=None if a is None else (a, b))

    def _spoiled(self, O: Array, S: Array) -> tuple[Array, Array]:
        """Output and state of one sequence, NaN where they depend on something that is not finite."""
        xp = self.xp
        asked = xp.all(xp.isfinite(self.query), axis=-1, keepdims=True)
        written = xp.isfinite(self.value)
        for x in (self.key, self.decay, self.beta, *(self.low_rank or ())):
            if x is not None:
                written = written & xp.all(_finite(x, xp, reset=x is self.decay), axis=-1, keepdims=True)
        start = ~xp.all(xp.isfinite(self.state), axis=-2, keepdims=True)
        lost = start | (xp.cumulative_sum(xp.astype(~written, xp.int64), axis=-2) > 0)
        after = lost[..., -1:, :] if lost.shape[-2] else start
        return xp.where(lost | ~asked, math.nan, O), xp.where(after, math.nan, S)


def prepare(
    function: str,
    query: Array,
    key: Array,
    value: Array,
    *,
    decay: Array | None,
    beta: Array | None,
    low_rank: tuple[Array, Array] | None,
    scale: float | None,
    initial_state: Array | None,
    update_rule: str,
    cu_seqlens: Array | None,
    dtype: object,
) -> Call:
    """Check the arguments of the recurrence, and gather them."""
    a, b = _pair(function, low_rank)
    _check_rule(function, update_rule, decay=decay, beta=beta, low_rank=low_rank)
    arrays = {"query": query, "key": key, "value": value}
    more = {"decay": decay, "beta": beta, "low_rank_a": a, "low_rank_b": b, "initial_state": initial_state}
    for name, x in (arrays | more).items():
        if x is not None:
            checks.check_array(function, name, x, *((FLOATS,) if name in more else ()))
    xp = array_namespace(function, **arrays, **more)
    to = checks.check_output_dtype(function, dtype, query)
    checks.check_held(function, to, xp)
    lead, H = _check_operands(function, query, key, value)
    L, E, Ev = query.shape[-2], query.shape[-1], value.shape[-1]
    sequences = None if cu_seqlens is None else _sequences(function, cu_seqlens, L)
    _check_steps(function, (*lead, H, L), E, decay=decay, beta=beta, low_rank_a=a, low_rank_b=b)
    shape = (*lead, *(() if sequences is None else (len(sequences),)), H, E, Ev)
    if initial_state is not None:
        axes = "(..., H, E, Ev)" if sequences is None else "(..., N, H, E, Ev)"
        checks.check_shape(function, "initial_state", initial_state, axes, shape)
    factor = checks.check_scale(function, scale)
    q, k, v = (_repeated(float64(x, xp), H, xp) for x in (query, key, value))
    g, write, a, b, S = (None if x is None else float64(x, xp) for x in (decay, beta, a, b, initial_state))
    if g is None or g.ndim == len(lead) + 2:
        g = (xp.zeros((*lead, H, L), dtype=xp.float64, device=device(query)) if g is None else g)[..., None]
    return Call(
        xp=xp,
        query=q,
        key=k,
        value=v,
        decay=g,
        beta=None if write is None else write[..., None],
        low_rank=None if a is None else (a, b),
        state=xp.zeros(shape, dtype=xp.float64, device=device(query)) if S is None else S,
        scale=1.0 / math.sqrt(E) if factor is None else factor,
        sequences=sequences,
        dtype=to,
    )


def _finite(x: Array, xp: Namespace, *, reset: bool) -> Array:
    """Where numbers are finite, or such that they reset the state."""
    return xp.isfinite(x) | (x == -math.inf) if reset else xp.isfinite(x)


def _repeated(x: Array, H: int, xp: Namespace) -> Array:
    """(..., Hx, L, E) with each head repeated, so that there are H."""
    return x if x.shape[-3] == H else xp.repeat(x, H // x.shape[-3], axis=-3)


def _pair(function: str, low_rank: object) -> tuple[Array | None, Array | None]:
    """The arrays a and b, or None for both."""
    if low_rank is None:
        return None, None
    if not isinstance(low_rank, tuple) or len(low_rank) != 2:
        raise TypeError(f"{function}: low_rank must be a tuple (a, b) of two arrays; got {type(low_rank).__name__}.")
    return low_rank


def _check_rule(function: str, rule: str, **given: object) -> None:
    """An update rule, with the arguments that it needs and no other."""
    checks.check_choice(function, "update_rule", rule, tuple(RULES))
    takes, needs = RULES[rule]
    for name, x in given.items():
        if x is None and name in needs:
            raise ValueError(f"{function}: update_rule={rule!r} needs {name}; got None.")
        if x is not None and name not in takes:
            rules = ", ".join(repr(other) for other, (taken, _) in RULES.items() if name in taken)
            raise ValueError(
                f"{function}: {name} must be None for update_rule={rule!r}; got {type(x).__name__}. It is for {rules}."
            )


def _check_operands(function: str, query: Array, key: Array, value: Array) -> tuple[tuple[int, ...], int]:
    """Leading axes, and the number of heads H = max(Hq, Hv), which those of query, key and value divide."""
    for name, x, axes in (
        ("query", query, "(..., Hq, L, E)"),
        ("key", key, "(..., Hk, L, E)"),
        ("value", value, "(..., Hv, L, Ev)"),
    ):
        if len(x.shape) < 3:
            raise ValueError(f"{function}: {name} must have at least 3 axes {axes}; got {tuple(x.shape)}.")
    lead = tuple(query.shape[:-3])
    for name, x in (("key", key), ("value", value)):
        for rule, same in (
            ("leading axes", tuple(x.shape[:-3]) == lead),
            ("length L (axis -2)", x.shape[-2] == query.shape[-2]),
            ("number of features E (axis -1)", name == "value" or x.shape[-1] == query.shape[-1]),
        ):
            if not same:
                raise ValueError(
                    f"{function}: query and {name} must have the same {rule}; got query {tuple(query.shape)} and "
                    f"{name} {tuple(x.shape)}."
                )
    heads = query.shape[-3], key.shape[-3], value.shape[-3]
    H = max(heads[0], heads[2])
    if query.shape[-1] == 0 or any(n == 0 or H % n for n in heads):
        raise ValueError(
            f"{function}: the numbers of heads (axis -3) of query, key and value must divide H = max(Hq, Hv), and "
            f"features E be at least 1; got Hq={heads[0]}, Hk={heads[1]}, Hv={heads[2]}, E={query.shape[-1]}."
        )
    return lead, H


def _check_steps(function: str, rows: tuple[int, ...], E: int, **given: Array | None) -> None:
    """What each step is given for itself: one number, or one for each feature."""
    for name, x in given.items():
        if x is None:
            continue
        one, each = tuple(x.shape) == rows, tuple(x.shape) == (*rows, E)
        fits = {"beta": one, "decay": one or each}.get(name, each)
        if not fits:
            axes = {"beta": "(..., H, L)", "decay": "(..., H, L) or (..., H, L, E)"}.get(name, "(..., H, L, E)")
            sizes = ", ".join(f"{axis}={n}" for axis, n in zip(("H", "L", "E"), (*rows[-2:], E), strict=True))
            raise ValueError(f"{function}: {name} must have shape {axes} with {sizes}; got {tuple(x.shape)}.")


def _sequences(function: str, cu_seqlens: Array, L: int) -> tuple[slice, ...]:
    """The part of the axis L that each packed sequence has."""
    ends = offsets_of(function, "cu_seqlens", cu_seqlens, L)
    if len(ends) == 1:
        raise ValueError(f"{function}: cu_seqlens must name at least one sequence; got {ends.tolist()}.")
    return tuple(slice(int(i), int(j)) for i, j in pairwise(ends))
