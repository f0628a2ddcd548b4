"""What a kernel returned against what is right, (batch, head) by (batch, head): error, bound, and their ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.score import Score
from refattn._core.tiles import tiles
from refattn.biases import Bias
from refattn.contract import Contract, Problem
from refattn.contract.formats import FORMATS, half_ulp, unit
from refattn.masks import Mask
from refattn.methods.exact import reference
from refattn.oracle import float64
from refattn.oracle.operands import Operand
from refattn.oracle.problem import Problem as Exact
from refattn.testing.verdict.sampling import Rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# 256 rows by 2048 keys of float64 are 4 MiB: the reference and its bound hold about ten such tiles.
TILE_ROWS, TILE_KEYS = 256, 2048
# Float64 numbers of one head's keys and values, 256 MiB, up to which they are kept for its query heads; longer ones are
# cast tile by tile each time.
HELD = 2**25


@dataclass(frozen=True)
class Terms:
    """What an answer is held to: the numerics that were declared, the theorem, and the conventions of the system."""

    contract: Contract
    bound: Callable[..., Any] | None
    lse_factor: float = 1.0
    empty_row: float | None = 0.0


class Compared(NamedTuple):
    """Values against their expectation; `share` is |error| / bound, NaN where the theorem claims nothing."""

    got: Floats
    expected: Floats
    bound: Floats
    share: Floats

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Where the error is above the bound."""
        return self.share > 1

    def take(self, rows: npt.NDArray[Any]) -> Compared:
        """Chosen rows."""
        return Compared(*(x[rows] for x in self))


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of one (batch ..., head), judged."""

    index: tuple[int, ...]
    rows: Ints
    output: Compared
    lse: Compared | None


class Operands(NamedTuple):
    """Rows of the query (R, E), key (S, E), value (S, Ev) of one (batch ..., head), float64 when sliced; the score."""

    query: Floats
    key: Operand
    value: Operand
    score: Score


class Right(NamedTuple):
    """The right values of some rows, and how far a kernel within the contract may be from them."""

    output: Floats
    lse: Floats
    output_bound: Floats
    lse_bound: Floats
    overflows: npt.NDArray[np.bool_]
    problem: Problem
    natural: bool


class Watch(Protocol):
    """Who looks at each part as it is judged."""

    def add(self, part: Part, right: Right) -> None: ...


def parts(call: Call, rows: Rows, terms: Terms, output: Any, lse: Any, watch: Watch | None = None) -> Iterator[Part]:
    """Judge the chosen rows of an output (..., H, L, Ev) and log-sum-exp (..., H, L) or None."""
    for index, positions, operands in slabs(call, rows):
        right = right_values(operands, positions, terms)
        answer = compare(output[index][positions], right.output, right.output_bound, right.overflows)
        logs = None
        if lse is not None:
            natural = lse[index][positions].astype(np.float64) * terms.lse_factor
            logs = compare(natural, right.lse, right.lse_bound, right.overflows)
        part = Part(index, positions, answer, logs)
        if watch is not None:
            watch.add(part, right)
        yield part


def slabs(call: Call, rows: Rows) -> Iterator[tuple[tuple[int, ...], Ints, Operands]]:
    """Rows with their operands, a tile of rows at a time; query heads share one float64 copy of their key head."""
    groups = call.score.groups
    assert groups is not None
    held: tuple[int, ...] | None = None
    key, value = Operand(np.empty((0, 1))), Operand(np.empty((0, 1)))
    for index, positions in rows.slabs:
        slab = call.slab(index)
        of_key = (*index[:-1], index[-1] // groups[1])
        if of_key != held:
            fits = math.prod(slab.key.shape) + math.prod(slab.value.shape) <= HELD
            key, value = (Operand(x[...] if fits else x) for x in (slab.key, slab.value))
            held = of_key
        for part in tiles(len(positions), TILE_ROWS):
            chosen = positions[part]
            yield index, chosen, Operands(slab.query[chosen], key, value, slab.score)


def right_values(operands: Operands, rows: Ints, terms: Terms) -> Right:
    """Exact values and bound of some rows."""
    Q, K, V, score = operands
    output, lse, *radii = _exact(operands, rows)
    assert terms.bound is not None
    problem = Problem(Q, cast(Any, K), cast(Any, V), score, rows, output, lse, *radii)
    bound = terms.bound(terms.contract, problem)
    output_bound, lse_bound = np.array(bound.output), np.array(bound.lse)
    if terms.lse_factor != 1.0:
        # The kernel's last product, by log2(e), and its storing happen to the number in the other base.
        slack = half_ulp((np.abs(lse) + lse_bound) / terms.lse_factor, terms.contract.lse) * terms.lse_factor
        lse_bound += slack + 2 * unit(terms.contract.accumulator) * np.abs(lse)
    empty = (lse == -math.inf) & ~np.isnan(output).any(axis=-1)
    overflows = _overflows(operands, terms.contract)
    if terms.empty_row is None:
        # Nothing is claimed there, whatever the kernel writes.
        output[empty], output_bound[empty], overflows[empty] = 0.0, math.inf, True
        lse[empty], lse_bound[empty] = 0.0, math.inf
    else:
        output[empty], output_bound[empty], lse_bound[empty] = terms.empty_row, 0.0, 0.0
    return Right(output, lse, output_bound, lse_bound, overflows, problem, terms.lse_factor == 1.0)


def _exact(operands: Operands, rows: Ints) -> tuple[Floats, Floats, Floats, Floats]:
    """Output and log-sum-exp of some rows, and their radii; from the float64 reference where those are infinite."""
    Q, K, V, score = operands
    problem = Exact(
        query=Operand(Q),
        key=K,
        value=V,
        scale=score.scale,
        softcap=score.softcap,
        mask=cast(Mask | None, score.mask),
        bias=cast(Bias | None, score.bias),
        sink=-math.inf if score.sink is None else float(np.max(np.asarray(score.sink))),
        dropout=None if score.dropout is None else cast(Mask, score.dropout.mask),
        dropout_p=0.0 if score.dropout is None else score.dropout.p,
        among=(score.lengths[0], rows),
    )
    exact = float64.certify(problem, np.arange(len(rows)))
    unproven = np.isinf(exact.radius).any(axis=1) | np.isinf(exact.lse_radius)
    if unproven.any():
        exact.output[unproven], exact.lse[unproven] = reference.attention_rows(
            Q[unproven], K, V, rows=rows[unproven], score=score, tile_k=TILE_KEYS, xp=np
        )
        exact.radius[unproven], exact.lse_radius[unproven] = math.inf, math.inf
    return exact.output, exact.lse, exact.radius, exact.lse_radius


def compare(got: Any, expected: Floats, bound: Floats, overflows: npt.NDArray[np.bool_]) -> Compared:
    """Errors as shares of their bounds; a NaN or infinity that the definition calls for must be there."""
    got = np.asarray(got).astype(np.float64)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    share = np.abs(got - expected) / bound
    share[np.isnan(share)] = math.inf
    # No claim; but a kernel whose numbers cannot overflow has no excuse for a NaN.
    excused = np.isfinite(got) | overflows.reshape(-1, *[1] * (got.ndim - 1))
    share[np.isinf(bound) & np.isfinite(expected) & excused] = math.nan
    share[same & ~np.isnan(share)] = 0.0
    return Compared(got, expected, bound, share)


def _overflows(operands: Operands, contract: Contract) -> npt.NDArray[np.bool_]:
    """Rows in which a number that the kernel forms may come within a factor of 8 of the largest of its format."""
    Q, K, V, score = operands
    S = K.shape[0]
    if score.bias is not None:
        return np.ones(len(Q), dtype=np.bool_)
    longest = largest = np.float64(0)
    for j in tiles(S, TILE_KEYS):
        longest = np.maximum(longest, np.sqrt(np.sum(K[j] ** 2, axis=-1)).max())
        largest = np.maximum(largest, np.abs(V[j]).max(initial=0))
    scores = np.sqrt(np.sum(Q * Q, axis=-1)) * longest * max(1.0, abs(score.scale))
    largest *= 1.0 if score.dropout is None else score.dropout.factor
    total = largest * S * math.exp(contract.lazy + contract.ahead)
    fits = (
        (8 * scores < min(FORMATS[contract.scores].max, FORMATS[contract.accumulator].max))
        & (8 * total < FORMATS[contract.accumulator].max)
        & (8 * largest < FORMATS[contract.output].max)
    )
    return ~np.asarray(fits)
