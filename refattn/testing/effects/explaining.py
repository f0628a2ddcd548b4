"""What a mistake would have made of rows that are wrong, computed in full, and how much of their errors that is.

Score tests take a mistake's size to first order. Where errors are large that is neither its size nor a proof that it is
their cause; so some of the rows are computed once more, as a kernel computes them that has this mistake and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.score import Add, Score
from refattn.contract import Problem
from refattn.contract.statistics import Noise
from refattn.methods.exact import reference
from refattn.oracle.operands import Operand
from refattn.testing.verdict.judge import TILE_KEYS, Part, Right

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Index = tuple[int, ...]

# Rows kept of a part, and parts kept of a call.
ROWS, PARTS = 16, 32
# Multiply-adds that one size may take.
WORK = 10**9
# Noise this much above what the contract explains is looked into.
LOUD = 1.25
# Steps of Newton's method from a size of first order, and the relative step of its derivative.
STEPS, STEP = 4, 1e-4
# Longest step about a size of -1.
SHORT = 0.1


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of one (batch ..., head) whose errors rounding does not explain."""

    index: Index
    rows: Ints
    beyond: Flags  # (R,), some number is beyond its proven bound
    error: Floats  # (R, Ev)
    noise: Floats  # (R, Ev), mean square of what rounding does
    bound: Floats  # (R, Ev)
    output: Floats  # (R, Ev), the right one
    lse: Floats  # (R,)

    def problem(self, call: Call) -> Problem:
        """The rows as a problem."""
        return self.reading(call, self.index[-1] // _members(call), self.index[-1] // _members(call))

    def reading(self, call: Call, key: int, value: int) -> Problem:
        """The same with the keys and values of given key heads; the right output stays."""
        slab, lead = call.slab(self.index), self.index[:-1]
        keys, values = (
            Operand(call.slab((*lead, head * _members(call)))[which]) for which, head in ((1, key), (2, value))
        )
        Q = np.asarray(slab.query[self.rows])
        return Problem(Q, cast(Any, keys), cast(Any, values), slab.score, self.rows, self.output, self.lse)


# Change of the output that a mistake of a size makes, (R, Ev).
Change = Callable[[Call, Rows, float], Floats]


class Size(NamedTuple):
    """A share of squared errors, and the size that explains it."""

    beta: float
    share: float


@dataclass(eq=False)
class Wrong:
    """Rows of one call whose errors rounding does not explain."""

    call: Call
    parts: list[Rows] = field(default_factory=list)

    def add(self, part: Part, right: Right, noise: Noise, expected: Floats) -> None:
        """Look for such rows in a part; `expected` is the mean square of what rounding does."""
        got, bound = part.output.got, part.output.bound
        beyond = part.output.wrong.any(axis=1)
        with np.errstate(all="ignore"):
            error = got - part.output.expected
            loud = noise.claim & ((error**2 / expected).mean(axis=1) > LOUD**2)
            expected = np.where(noise.claim[:, None] & np.isfinite(expected), expected, bound**2 / 3)
        chosen = np.flatnonzero(beyond if beyond.any() else loud)
        if not len(chosen):
            return
        at = chosen[np.unique(np.linspace(0, len(chosen) - 1, ROWS).astype(int))]
        kept: tuple[Any, ...] = (beyond, error, expected, bound, right.output, right.lse)
        self.parts = self.parts[:: 1 if len(self.parts) < PARTS else 2]
        self.parts.append(Rows(part.index, part.rows[at], *(x[at] for x in kept)))

    @property
    def large(self) -> list[Rows]:
        """Those of parts with errors beyond the proven bound, as many as can be computed many times."""
        found = [rows for rows in self.parts if rows.beyond.any()]
        each = ROWS * self.call.score.lengths[1] * (self.call.query.shape[-1] + self.call.value.shape[-1])
        few = np.linspace(0, len(found) - 1, min(len(found), max(1, WORK // max(1, each)))).astype(int)
        return [found[n] for n in np.unique(few)]

    def explained(self, change: Change, beta: float) -> float:
        """Share of the squared errors beyond the proven bound that a change explains, what rounding adds left out."""
        return min(1.0, max(0.0, self._share(change, beta)))

    def _share(self, change: Change, beta: float) -> float:
        """The same, above 1 where less is left than rounding adds; -inf where it is no number."""
        left = total = 0.0
        with np.errstate(all="ignore"):
            for rows in self.large:
                weight = np.where(np.isfinite(rows.bound), 1 / rows.bound**2, 0.0)
                total += float((rows.error**2 * weight).sum())
                rest = (rows.error - change(self.call, rows, beta)) ** 2 - rows.noise
                left += float(np.where(weight > 0, rest * weight, 0.0).sum())
            share = 1 - left / total if total else np.nan
        return share if np.isfinite(share) else -np.inf

    def fitted(self, change: Change, beta: float) -> Size:
        """The size that explains most of the errors beyond the proven bound, from one of first order."""
        first = beta
        for _ in range(STEPS):
            along = norm = 0.0
            with np.errstate(all="ignore"):
                for rows in self.large:
                    weight = np.where(np.isfinite(rows.bound), 1 / rows.bound**2, 0.0)
                    slope = change(self.call, rows, beta + STEP) - change(self.call, rows, beta - STEP)
                    slope /= 2 * STEP
                    along += float((weight * (rows.error - change(self.call, rows, beta)) * slope).sum())
                    norm += float((weight * slope**2).sum())
            if not (np.isfinite(along) and norm > 0):
                break
            # No further than half way to the size that takes everything away.
            most = max(0.5 * abs(1 + beta), SHORT)
            beta += min(max(along / norm, -most), most)
        best = max((first, beta), key=lambda size: self._share(change, size))
        return Size(best, self.explained(change, best))


def answer(rows: Problem, score: Score | None = None) -> Floats:
    """The rows' output, with other scores where they are given."""
    score = rows.score if score is None else score
    output, _ = reference.attention_rows(
        rows.query, rows.key, rows.value, rows=rows.rows, score=score, tile_k=TILE_KEYS, xp=np
    )
    return np.asarray(output)


def of_gain(call: Call, rows: Rows, beta: float) -> Floats:
    """The output times 1 + beta."""
    return beta * rows.output


def of_scale(call: Call, rows: Rows, beta: float) -> Floats:
    """The scale times 1 + beta."""
    problem = rows.problem(call)
    return answer(problem, replace(problem.score, scale=problem.score.scale * (1 + beta))) - rows.output


def of_softcap(call: Call, rows: Rows, beta: float) -> Floats:
    """The softcap times 1 + beta."""
    problem = rows.problem(call)
    assert problem.score.softcap is not None
    return answer(problem, replace(problem.score, softcap=problem.score.softcap * (1 + beta))) - rows.output


def of_bias(call: Call, rows: Rows, beta: float) -> Floats:
    """The bias times 1 + beta."""
    problem = rows.problem(call)
    assert problem.score.bias is not None
    return answer(problem, replace(problem.score, bias=_Times(problem.score.bias, 1 + beta))) - rows.output


SCALARS: dict[str, Change] = {"scale": of_scale, "gain": of_gain, "softcap": of_softcap, "bias": of_bias}


def reweighed(rows: Problem, P: Floats, V: Floats, beta: float) -> Floats:
    """Change of the output where one key of each row, of weight P and value V, gets beta of its weight more."""
    more = (beta * P)[:, None]
    return np.asarray(more * (V - rows.output) / (1 + more))


@dataclass(frozen=True)
class _Times:
    """A bias times a factor."""

    bias: Add
    factor: float
    lead: Index = ()

    def tile(self, i: Any, j: Any, L: int, S: int, *, xp: Any, device: object = None) -> Any:
        """One tile of it."""
        return self.factor * self.bias.tile(i, j, L, S, xp=xp, device=device)

    def at(self, index: Index) -> Add:
        """It has no leading axes."""
        return self


def _members(call: Call) -> int:
    """Query heads of a key head."""
    assert call.score.groups is not None
    return call.score.groups[1]
