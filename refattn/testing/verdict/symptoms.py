"""What wrong rows look like: a handful of known mistakes, each computed exactly and held against the bound.

A symptom is named only if it explains every wrong row that was tried. It says which mistake gives these numbers, not
that the kernel makes it: two mistakes can give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from typing import cast

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.arrays import quiet
from refattn._core.score import Parts
from refattn.masks import Mask, array
from refattn.masks.bands import Band
from refattn.masks.combine import Not, Pair
from refattn.methods.exact import reference
from refattn.oracle.operands import Operand
from refattn.testing.verdict import lost_keys
from refattn.testing.verdict.judge import (
    TILE_KEYS,
    Compared,
    Floats,
    Ints,
    Operands,
    Part,
    Terms,
    compare,
    right_values,
    slabs,
)
from refattn.testing.verdict.sampling import Rows

TRIED = 32
# Keys up to which the weights of the wrong rows are written out, and key by value numbers up to which lost ones are
# looked for.
MOST_KEYS, MOST_CELLS = 2**17, 2**24


@dataclass(frozen=True, eq=False)
class Case:
    """Wrong rows of one (batch ..., head), with what they were computed from."""

    index: tuple[int, ...]
    rows: Ints
    operands: Operands
    output: Compared
    lse: Compared | None


@dataclass(frozen=True)
class Swap:
    """A mistake that is right attention of other operands."""

    text: str
    operands: Callable[[Case], Operands]


def thinned(part: Part, rows: npt.NDArray[np.intp]) -> Part:
    """At most TRIED of the given rows of a part, evenly."""
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, TRIED).astype(int))]
    return Part(part.index, part.rows[rows], part.output.take(rows), None if part.lse is None else part.lse.take(rows))


def pick(wrong: list[Part]) -> list[Part]:
    """At most TRIED rows, evenly over the parts and over the rows of each."""
    if not wrong:
        return []
    chosen = [wrong[n] for n in np.unique(np.linspace(0, len(wrong) - 1, TRIED).astype(int))]
    each = max(1, TRIED // len(chosen))
    return [thinned(part, np.unique(np.linspace(0, len(part.rows) - 1, each).astype(int))) for part in chosen]


@quiet
def find(call: Call, terms: Terms, wrong: list[Part]) -> tuple[str, ...]:
    """The mistakes that fit all of some wrong rows."""
    rows = Rows(tuple((part.index, part.rows) for part in wrong), 0, 0)
    cases = [
        Case(index, chosen, operands, part.output, part.lse)
        for (index, chosen, operands), part in zip(slabs(call, rows), wrong, strict=True)
    ]
    tried = sum(len(case.rows) for case in cases)
    if not tried:
        return ()
    found: list[str] = []
    if any(case.output.wrong.any() for case in cases):
        found += _of_output(call, terms, cases)
    if all(case.lse is not None and case.lse.wrong.any(axis=-1) for case in cases):
        found += _of_lse(terms, cases)
    return tuple(f"{text} (fits all {tried} wrong rows tried)" for text in found)


def _of_output(call: Call, terms: Terms, cases: list[Case]) -> Iterator[str]:
    """Mistakes that show in the output."""
    got = np.concatenate([case.output.got.ravel() for case in cases])
    expected = np.concatenate([case.output.expected.ravel() for case in cases])
    if np.isnan(got).all():
        yield "every number is NaN"
    if not got.any():
        yield "all zeros: the output was not written"
    if not np.isfinite(got).all() or not got.any():
        return
    if (factor := _factor(got, expected)) is not None and all(
        _within(case, factor * case.output.expected, max(1.0, abs(factor)) * case.output.bound) for case in cases
    ):
        yield f"the right output times {factor:.4g}"
    fitting = [swap.text for swap in _swaps(call, cases) if all(_fits(swap, case, terms) for case in cases)]
    yield from fitting
    S = call.score.lengths[1]
    if S == 0 or S > MOST_KEYS:
        return
    if not fitting:
        yield from _scale(terms, cases)
    if S * call.value.shape[-1] <= MOST_CELLS:
        yield from _lost_keys(terms, cases, S)


def _factor(got: Floats, expected: Floats) -> float | None:
    """Least-squares factor between two results, where it is one."""
    norm = float(expected @ expected)
    factor = float(got @ expected) / norm if norm > 0 else math.nan
    return factor if math.isfinite(factor) and factor != 0 else None


def _of_lse(terms: Terms, cases: list[Case]) -> Iterator[str]:
    """Mistakes that show in the log-sum-exp."""
    asked = "e" if terms.lse_factor == 1.0 else "2"
    for factor, base in ((math.log(2), "2"), (1 / math.log(2), "e")):
        if base != asked and all(_lse_within(case, factor) for case in cases):
            yield f"the log-sum-exp fits base {base}, not the base {asked} that it was held to"
    if all(case.lse is not None and not case.lse.got.any() for case in cases):
        yield "the log-sum-exp is all zeros: it was not written"


def _lse_within(case: Case, factor: float) -> bool:
    """Whether the log-sum-exp is right but for a factor."""
    if case.lse is None:
        return False
    share = np.abs(case.lse.got * factor - case.lse.expected) / case.lse.bound
    # Changing the base is one more rounding, whose room the bound of base e does not have.
    return bool(np.all(share <= 2))


def _within(case: Case, expected: Floats, bound: Floats) -> bool:
    """Whether what was got lies around other values."""
    share = compare(case.output.got, expected, bound, np.ones(len(expected), dtype=np.bool_)).share
    return bool(np.all(np.isnan(share) | (share <= 1)) and not np.isnan(share).all())


def _fits(swap: Swap, case: Case, terms: Terms) -> bool:
    """Whether what was got is right for the operands that the mistake would have used."""
    right = right_values(swap.operands(case), case.rows, terms)
    return _within(case, right.output, right.output_bound)


def _swaps(call: Call, cases: list[Case]) -> Iterator[Swap]:
    """The mistakes that this call can have."""
    score = call.score
    assert score.groups is not None
    key_heads, members = score.groups
    if key_heads > 1 and members > 1:
        yield Swap(f"key heads by h % {key_heads} instead of h // {members}", lambda case: _modulo_head(call, case))
    mask = score.mask
    if isinstance(mask, Mask):
        for anchor in ("upper_left", "lower_right"):
            if mask.reanchored(anchor) is not mask:
                yield _remasked(f'the mask anchored "{anchor}"', methodcaller("reanchored", anchor))
        for step, word in ((1, "later"), (-1, "earlier")):
            if _moved(mask, step) is not mask:
                yield _remasked(f"the mask ends one key {word}", partial(_moved, step=step))
        yield _without("mask", "no mask at all")
    for name in ("bias", "softcap", "sink", "dropout"):
        if getattr(score, name) is not None:
            yield _without(name, f"no {'sinks' if name == 'sink' else name}")
    E = call.query.shape[-1]
    for text, scale in (
        ("scale 1/sqrt(E), whatever was asked for", 1 / math.sqrt(E)),
        ("scale 1: the scores were not scaled", 1.0),
        ("scale 1/E", 1 / E),
        ("exponentials of base 2 where scores are in base e", score.scale * math.log(2)),
        ("log2(e) applied twice", score.scale / math.log(2)),
    ):
        if abs(scale - score.scale) > 1e-9 * abs(score.scale):
            yield Swap(text, lambda case, x=scale: _changed(case, scale=x))  # type: ignore[misc]


def _changed(case: Case, **fields: object) -> Operands:
    """The case's operands with another score."""
    return case.operands._replace(score=replace(case.operands.score, **fields))  # type: ignore[arg-type]


def _without(name: str, text: str) -> Swap:
    """A mistake that leaves something out."""
    return Swap(text, lambda case: _changed(case, **{name: None}))


def _modulo_head(call: Call, case: Case) -> Operands:
    """Keys and values of head h % Hk."""
    groups = call.score.groups
    assert groups is not None
    key_heads, members = groups
    slab = call.slab((*case.index[:-1], case.index[-1] % key_heads * members))
    return case.operands._replace(key=Operand(slab.key[...]), value=Operand(slab.value[...]))


def _remasked(text: str, change: Callable[[Mask], Mask]) -> Swap:
    """A mistake that changes the mask."""
    return Swap(text, lambda case: _changed(case, mask=change(cast(Mask, case.operands.score.mask))))


def _moved(mask: Mask, step: int) -> Mask:
    """The mask with the right ends of its bands moved; the mask itself where there are none."""
    if isinstance(mask, Band):
        return mask if mask.right is None else replace(mask, right=mask.right + step)
    if isinstance(mask, Not):
        inner = _moved(mask.mask, step)
        return mask if inner is mask.mask else Not(inner)
    if isinstance(mask, Pair):
        a, b = _moved(mask.a, step), _moved(mask.b, step)
        return mask if a is mask.a and b is mask.b else type(mask)(a, b)
    return mask


def _lost_keys(terms: Terms, cases: list[Case], S: int) -> Iterator[str]:
    """One key or one tile of keys that takes no part."""
    left = lost_keys.candidates(S)
    for case in cases:
        _, P, _ = _weights(case.operands, case.rows)
        left = lost_keys.narrow(left, P, case.operands.value[...], case.output)
    found = lost_keys.best(left)
    if found is None:
        return
    first, stop = found
    seen = np.ones((1, S), dtype=np.bool_)
    seen[:, first:stop] = False
    swap = Swap(
        f"key {first} takes no part" if stop - first == 1 else f"keys {first}..{stop - 1} take no part",
        lambda case: _changed(case, mask=_both(case.operands.score.mask, array(seen))),
    )
    if all(_fits(swap, case, terms) for case in cases):
        yield swap.text


def _both(mask: object, other: Mask) -> Mask:
    """Two masks together, of which the first may be missing."""
    return mask & other if isinstance(mask, Mask) else other


def _scale(terms: Terms, cases: list[Case]) -> Iterator[str]:
    """The scores times one factor, found by Gauss-Newton steps along the derivative sum_j p_j s_j (v_j - o)."""
    factor = 1.0
    for _ in range(8):
        along = total = 0.0
        for case in cases:
            score = case.operands.score
            moved = case.operands._replace(score=replace(score, scale=score.scale * factor))
            expected, slope = _slope(moved, case.rows)
            weight = 1 / np.maximum(case.output.bound, 1e-300) ** 2
            along += float(np.nansum(weight * (case.output.got - expected) * slope))
            total += float(np.nansum(weight * slope * slope))
        if not total > 0:
            return
        factor *= 1 + max(-0.5, min(0.5, along / total))
    if abs(factor - 1) < 1e-7:
        return
    swap = Swap("", lambda case: _changed(case, scale=case.operands.score.scale * factor))
    if all(_fits(swap, case, terms) for case in cases):
        yield f"the scores are multiplied by {factor:.4g}"


def _slope(operands: Operands, rows: Ints) -> tuple[Floats, Floats]:
    """Output and its derivative by the logarithm of the scale."""
    output, P, parts = _weights(operands, rows)
    cap = operands.score.softcap
    s = parts.raw if cap is None else parts.raw * (1 - (parts.capped / cap) ** 2)
    weighted = np.where(P > 0, P * s, 0.0)
    return output, weighted @ operands.value[...] - weighted.sum(axis=-1, keepdims=True) * output


def _weights(operands: Operands, rows: Ints) -> tuple[Floats, Floats, Parts]:
    """Output, weights and stages of the scores of some rows over all keys."""
    Q, V, score = operands.query, operands.value, operands.score
    K = operands.key[...]
    j = slice(0, len(K))
    S = score(Q, K, rows, j, xp=np)
    output, lse = reference.attention_rows(Q, K, V, rows=rows, score=score, tile_k=TILE_KEYS, xp=np)
    P = np.where(S > -math.inf, np.exp(S - lse[:, None]), 0.0)
    return output, P, score.parts(Q, K, rows, j, xp=np)
