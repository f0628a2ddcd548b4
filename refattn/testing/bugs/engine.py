"""One float64 attention in steps, of which a bug replaces some.

raw = scale Q K^T,  capped = softcap tanh(raw / softcap),  biased = capped + bias,  scores = biased or -inf
top = max scores,  state = (top, sum e^(scores - top), sum e^(scores - top) V),  total = state with the sink
output = O / l,  lse = m + ln l
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._call import AttentionResult
from refattn._core.arrays import quiet
from refattn._core.state import seen_product
from refattn._core.tiles import some_tiles, tiles
from refattn.biases import Bias
from refattn.masks import Mask
from refattn.testing.bugs.mask_edits import cut
from refattn.testing.bugs.problems import Problem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Change = Callable[["Head"], Any]
Some = Sequence[tuple[int, int, Ints]]

# Scores of one head that are held at a time where all rows are computed.
CELLS = 2**22


class State(NamedTuple):
    """Softmax state of some keys: maximum m (R,), sum of exponentials l (R,), unnormalised output O (R, Ev)."""

    m: Floats
    l: Floats
    O: Floats

    @property
    def output(self) -> Floats:
        """Normalised output; zeros where there is no weight."""
        return np.where(self.l[:, None] == 0, 0.0, self.O / np.where(self.l == 0, 1.0, self.l)[:, None])

    @property
    def lse(self) -> Floats:
        """Natural log-sum-exp."""
        return self.m + np.log(self.l)


def power(a: Floats, m: Floats) -> Floats:
    """Weight that a state of maximum a has beside the maximum m; none where it is empty."""
    return np.where(a == -math.inf, 0.0, np.exp(a - m))


def merge(a: State, b: State) -> State:
    """State of the keys of both states."""
    m = np.maximum(a.m, b.m)
    alpha, beta = power(a.m, m), power(b.m, m)
    return State(m, a.l * alpha + b.l * beta, a.O * alpha[:, None] + b.O * beta[:, None])


def without_nan(x: Head, value: float) -> Floats:
    """The output, whose rows of NaN have become a number: 0 where a kernel divides by sums above 0 alone."""
    output: Floats = x.right("output")
    return np.where(np.isnan(output).any(axis=-1, keepdims=True), value, output)


class Step:
    """A number or array that a head computes once, by its own rule or by that of a bug."""

    def __init__(self, rule: Change) -> None:
        self.rule = rule
        self.__doc__ = rule.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Keep the name that changes are found by."""
        self.name = name

    def __get__(self, head: Head | None, owner: type) -> Any:
        """The value, computed when it is first asked for."""
        if head is None:
            return self
        value = head.__dict__[self.name] = head.changes.get(self.name, self.rule)(head)
        return value


class Head:
    """Some rows (R,) of one batch entry and head, computed step by step.

    `choice` is what a bug has a choice of, `unit` the unit roundoff of a kernel's sums.
    """

    def __init__(
        self,
        problem: Problem,
        b: int,
        h: int,
        rows: Ints,
        changes: Mapping[str, Change] | None = None,
        choice: Any = None,
        unit: float = 0.0,
    ) -> None:
        self.problem, self.b, self.h, self.rows = problem, b, h, np.asarray(rows, np.int64)
        self.changes, self.choice, self.unit = changes or {}, choice, unit
        self.held: dict[Any, Any] = {}  # what serves several bugs, of the scores without one
        self.kv = h // problem.group
        self.index = problem.index(b, h)
        queries, keys = problem.sequences
        self.L, self.S = int(queries[b]), int(keys[b])

    def right(self, name: str) -> Any:
        """A step by its own rule, from steps that a bug may have changed."""
        step: Step = getattr(Head, name)
        return step.rule(self)

    def changed(self, changes: Mapping[str, Change], choice: Any, unit: float) -> Head:
        """The same rows with a bug, which share the steps before the first one that it changes."""
        x = Head(self.problem, self.b, self.h, self.rows, changes, choice, unit)
        names = [name for name, step in vars(Head).items() if isinstance(step, Step)]
        for name in names[: min(map(names.index, changes), default=0)]:
            x.__dict__[name] = getattr(self, name)
        x.held = self.held
        return x

    def of(self, *, b: int | None = None, h: int | None = None, rows: Ints | None = None) -> Head:
        """Other rows, another head or batch entry, without a bug."""
        b, h = self.b if b is None else b, self.h if h is None else h
        return Head(self.problem, b, h, self.rows if rows is None else rows)

    def read(self, name: str, b: Any, h: Any, at: Any) -> Floats:
        """Tokens of an operand at batch entries, heads and positions, in float64."""
        return np.asarray(getattr(self.problem, name)[b, h, at], np.float64)

    @Step
    def query(self) -> Floats:
        """Rows of the query (R, E)."""
        return self.read("query", self.b, self.h, self.rows)

    @Step
    def key(self) -> Floats:
        """Keys (S, E)."""
        return self.read("key", self.b, self.kv, slice(0, self.S))

    @Step
    def value(self) -> Floats:
        """Values (S, Ev)."""
        return self.read("value", self.b, self.kv, slice(0, self.S))

    @Step
    def scale(self) -> float:
        """Factor of the scores."""
        return self.problem.scale

    @Step
    def raw(self) -> Floats:
        """Scaled products (R, S)."""
        return np.asarray(self.query @ self.key.T * self.scale)

    @Step
    def capped(self) -> Floats:
        """Products after softcap."""
        cap = self.problem.softcap
        return np.asarray(self.raw if cap is None else cap * np.tanh(self.raw / cap))

    @Step
    def bias(self) -> Floats | float:
        """What is added, (R, S) or broadcastable to it."""
        bias = self.problem.bias
        return 0.0 if bias is None else self.tile(bias.at(self.index))

    @Step
    def biased(self) -> Floats:
        """Scores before the mask."""
        return np.asarray(self.capped + self.bias)

    @Step
    def mask(self) -> Mask | None:
        """Mask of this batch entry and head."""
        return self.own(self.problem.mask)

    @Step
    def keep(self) -> npt.NDArray[np.bool_]:
        """Which keys take part (R, S)."""
        shape = (len(self.rows), self.S)
        return np.broadcast_to(True if self.mask is None else self.tile(self.mask), shape)

    @Step
    def scores(self) -> Floats:
        """Scores (R, S), -inf where masked."""
        return np.where(self.keep, self.biased, -math.inf)

    @Step
    def top(self) -> Floats:
        """Number (R,) that is subtracted before the exponential."""
        return np.asarray(self.scores.max(axis=-1, initial=-math.inf))

    @Step
    def kept(self) -> Floats | float:
        """Dropout's factors of the weights."""
        mask, p = self.own(self.problem.dropout_mask), self.problem.dropout_p
        return 1.0 if mask is None else self.tile(mask) / (1.0 - p)

    @Step
    def weights(self) -> Floats:
        """Unnormalised weights (R, S)."""
        m = np.where(self.top == -math.inf, 0.0, self.top)
        return np.asarray(np.exp(self.scores - m[:, None]))

    @Step
    def state(self) -> State:
        """State of all keys."""
        return self.state_of(slice(0, self.S), self.top, self.weights)

    @Step
    def sink(self) -> float | None:
        """Logit that takes weight and has no value."""
        return None if self.problem.sinks is None else float(self.problem.sinks[self.h])

    @Step
    def total(self) -> State:
        """State of all keys and the sink."""
        return self.state if self.sink is None else merge(self.state, self.sunk(self.sink))

    @Step
    def output(self) -> Floats:
        """Output (R, Ev)."""
        return np.asarray(self.total.output)

    @Step
    def lse(self) -> Floats:
        """Log-sum-exp (R,)."""
        return np.asarray(self.total.lse)

    @Step
    def room(self) -> tuple[Floats, Floats]:
        """How far output (R, Ev) and log-sum-exp (R,) are from a kernel's where its own errors tip a rounding."""
        return np.zeros_like(self.output), np.zeros_like(self.lse)

    def own(self, mask: Mask | None) -> Mask | None:
        """The mask of this batch entry and head, without padding."""
        return None if mask is None else cut(mask.at(self.index), self.L, self.S)

    def tile(self, cells: Mask | Bias) -> Any:
        """Cells of these rows and all keys."""
        return np.asarray(cells.tile(self.rows, slice(0, self.S), self.L, self.S, xp=np))

    def sunk(self, sink: float, count: float = 1.0) -> State:
        """State of a sink, counted so many times."""
        rows, Ev = len(self.rows), self.problem.dims[1]
        weight = 0.0 if sink == -math.inf else count
        return State(np.full(rows, sink), np.full(rows, weight), np.zeros((rows, Ev)))

    def state_of(self, j: slice, m: Floats, P: Floats) -> State:
        """State of the keys j, of weights P (R, len j) that have the maximum m taken out."""
        Z = np.broadcast_to(self.kept, (len(self.rows), self.S))[:, j]
        seen = (self.scores[:, j] != -math.inf) & (Z != 0)
        return State(m, P.sum(axis=-1), np.asarray(seen_product(P * Z, seen, self.value[j], xp=np)))

    def states(self, size: int | Iterable[slice]) -> Iterator[State]:
        """State of each tile of so many keys, or of some keys, by itself."""
        for j in some_tiles(self.S, size) if isinstance(size, int) else size:
            S = self.scores[:, j]
            m = S.max(axis=-1, initial=-math.inf)
            yield self.state_of(j, m, np.exp(S - np.where(m == -math.inf, 0.0, m)[:, None]))


@quiet
def run(
    problem: Problem, changes: Mapping[str, Change], choice: Any = None, rows: Some | None = None
) -> AttentionResult:
    """Output and log-sum-exp of a problem with some steps changed: all rows, or some one after the other."""
    if rows is not None:
        heads = [Head(problem, b, h, at, changes, choice) for b, h, at in rows]
        outputs = [np.empty((0, problem.dims[1])), *(x.output for x in heads)]
        return AttentionResult(np.concatenate(outputs), np.concatenate([np.empty(0), *(x.lse for x in heads)]))
    B, H, L, _ = problem.query.shape
    output, lse = np.zeros((B, H, L, problem.dims[1])), np.full((B, H, L), -math.inf)
    for b, h in np.ndindex(B, H):
        for i in tiles(int(problem.sequences[0][b]), max(1, CELLS // max(1, problem.lengths[1]))):
            x = Head(problem, b, h, np.arange(i.start, i.stop), changes, choice)
            output[b, h, i], lse[b, h, i] = x.output, x.lse
    return AttentionResult(output, lse)
