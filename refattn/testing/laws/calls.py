"""Laws of a call as a whole: its values, at all lengths and however its arrays are stored, and what it leaves alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import layouts
from refattn._core.arrays import from_numpy, to_numpy
from refattn.testing.inputs.cases import TILES, Case, limits
from refattn.testing.inputs.cutting import cut
from refattn.testing.inputs.problems import Inputs
from refattn.testing.laws.observing import (
    NotApplicable,
    Seen,
    Violation,
    hold,
    hold_results,
    later,
    observe,
    verdict_on,
    visible,
)
from refattn.testing.laws.stating import cells_of, computes, law, unpacked
from refattn.testing.running import RETURNED, TOUCHED
from refattn.testing.spec import KernelSpec


def random_of(given: Inputs) -> np.random.Generator:
    """Random numbers that are the same for the same arrays."""
    return np.random.default_rng(zlib.crc32(np.ascontiguousarray(given.query).tobytes()))


def judged(
    spec: KernelSpec, given: Inputs, seen: Seen, *, output: bool = True, lse: bool = True, told: str = ""
) -> None:
    """The verdict on output and log-sum-exp must not be that one of them is wrong."""
    verdict = verdict_on(spec, given, seen)
    used = (verdict.budget_used if output else 0.0, (verdict.lse_budget_used or 0.0) if lse else 0.0)
    if max(used) > 1:
        raise Violation(told + "\n".join(verdict.lines(contract=True)))


@law()
def check_forward(spec: KernelSpec, given: Inputs) -> None:
    """Each number of the output is within the bound of its contract, and of the dtype that it names."""
    seen = observe(spec, given)
    for fault in seen.faults:
        if fault.kind == RETURNED:
            raise Violation(fault.text, fault.kind, key=fault.key)
    judged(spec, given, seen, lse=False)


@law(lambda spec: None if len(spec.returns) == 2 else "it returns no log-sum-exp")
def check_lse(spec: KernelSpec, given: Inputs) -> None:
    """Each log-sum-exp is within the bound of its contract."""
    judged(spec, given, observe(spec, given), output=False)


@law(unpacked)
def check_tile_edges(spec: KernelSpec, given: Inputs) -> None:
    """Output and log-sum-exp are right one query or key before the edge of a tile, at it, and behind it."""
    found = list(_near_edges(spec, given))
    if not found:
        raise NotApplicable("lengths= allows no length at the edge of a tile below that of the problem")
    for L, S in found:
        part = cut(spec, given, rows=np.arange(L), keys=np.arange(S))
        judged(spec, part, observe(spec, part), told=f"with L={L} and S={S}: ")


def _near_edges(spec: KernelSpec, given: Inputs) -> Iterator[tuple[int, int]]:
    """Lengths on both sides of the last edge that the problem reaches, of the keys and of the queries."""
    L, S = given.query.shape[-2], given.key.shape[-2]
    allowed = limits(spec)
    reached = [tile for tile in TILES if tile - 1 <= max(L, S)]
    pairs = [
        pair
        for tile in reached[-1:]
        for n in (tile - 1, tile, tile + 1)
        for pair in ((min(L, n), min(S, n)), (L, min(S, n)), (min(L, n), S))
    ]
    square = "is_causal" in given.arguments
    yield from (pair for pair in dict.fromkeys(pairs) if allowed.allow(*pair) and not (square and pair[0] != pair[1]))


def _with_table(spec: KernelSpec, case: Case) -> Case:
    """A case of the hard sequences of one of the tables."""
    return case if case.table is not None else case.but(table=spec.tables[case.seed % len(spec.tables)])


@law(lambda spec: None if spec.tables else "it takes none of the tables of packed and paged operands", _with_table)
def check_layouts(spec: KernelSpec, given: Inputs) -> None:
    """Each sequence of packed, paged or padded operands is right: short, empty, at page edges, on shared pages."""
    judged(spec, given, observe(spec, given))


def _shows_empty_rows(spec: KernelSpec) -> str | None:
    """Why no query of this kernel is without keys."""
    if "empty_rows" in cells_of(spec) or any("seqused_k" == name or "cu_seqlens_k" == name for name in spec.tables):
        return None
    if computes(spec, "mask") and any(L > S for L, S in spec.lengths):
        return None
    return "it accepts no mask, and computes with none that leaves a query without keys"


def _with_empty_rows(spec: KernelSpec, case: Case) -> Case:
    """A case in which some query sees no key."""
    if "empty_rows" in cells_of(spec):
        return case.asking("empty_rows")
    if spec.tables:
        return case.but(table=next(name for name in spec.tables if name.endswith("_k")))
    (L, S), allowed = case.lengths, limits(spec)
    taller = ((S, L), *((n, S) for n in allowed.sizes(0)))
    return case.but(lengths=next((pair for pair in taller if pair[0] > pair[1] and allowed.allow(*pair)), (L, S)))


@law(_shows_empty_rows, _with_empty_rows)
def check_empty_rows(spec: KernelSpec, given: Inputs) -> None:
    """A query that may attend to no key gets zeros, and the log-sum-exp -inf where there is no sink."""
    if given.batch is None:
        empty: Any = ~visible(spec, given).any(axis=-1)
    else:
        rows = np.arange(given.query.shape[2]) < given.batch.queries[:, None]
        empty = np.broadcast_to((rows & (given.batch.keys == 0)[:, None])[:, None], given.query.shape[:3])
    if not empty.any():
        raise NotApplicable("each query of the problem sees a key")
    seen = observe(spec, given)
    zeros, nothing = np.zeros_like(seen.output), np.full(seen.output.shape[:-1], -np.inf)
    changed = "a query that may attend to no key must get zeros"
    hold("output", seen.output, zeros, where=empty[..., None], changed=changed)
    if seen.lse is not None and "sinks" not in given.arguments:
        hold("lse", seen.lse, nothing, where=empty, changed="the log-sum-exp of no key must be -inf")


@law()
def check_determinism(spec: KernelSpec, given: Inputs) -> None:
    """The same call gives the same numbers, at once and after another call."""
    first, again = observe(spec, given), observe(spec, given)
    hold_results(again, first, changed="the same call gave other numbers the second time")
    # Turned round as a whole, so that what shares a page still does.
    query, key, value = (np.ascontiguousarray(x[..., ::-1]) for x in (given.query, given.key, given.value))
    observe(spec, replace(given, query=query, key=key, value=value))
    hold_results(observe(spec, given), first, changed="the same call gave other numbers after a call on other arrays")


@law()
def check_inputs_untouched(spec: KernelSpec, given: Inputs) -> None:
    """A call changes none of its arguments."""
    for fault in observe(spec, given).faults:
        if fault.kind == TOUCHED:
            raise Violation(fault.text, fault.kind, key=fault.key)


def _strided(spec: KernelSpec) -> str | None:
    """Why this kernel's arrays have no strides of their own."""
    return "arrays of jax have no strides" if spec.arrays == "jax" else unpacked(spec)


@law(_strided)
def check_strides(spec: KernelSpec, given: Inputs) -> None:
    """Operands that are views give what contiguous ones give: margins of NaN, other orders, backwards, stride 0."""
    base, right = observe(spec, given), later(spec, given)
    for name, store in _stores(spec):
        changed = f"with operands stored as {name} the result is another one"
        hold_results(observe(spec, given, store), base, right, changed=changed)
    axis = spec.stored.order.index("b")
    if len(given.query) > 1:
        key, value = (np.repeat(x[:1], len(x), axis=0) for x in (given.key, given.value))
        same = replace(given, key=key, value=value)

        def one(operands: Sequence[Any]) -> Sequence[Any]:
            query, *others = operands
            entry = (slice(None),) * axis + (slice(0, 1),)
            return [query, *(layouts.expanded(x[entry], axis, x.shape[axis]) for x in others)]

        changed = "with keys and values that repeat one batch entry by stride 0 the result is another one"
        hold_results(observe(spec, same, one), observe(spec, same), later(spec, same), changed=changed)


def _stores(spec: KernelSpec) -> Iterator[tuple[str, Callable[[Sequence[Any]], Sequence[Any]]]]:
    """Ways to store the same numbers."""

    def each(view: Callable[[Any], Any]) -> Callable[[Sequence[Any]], Sequence[Any]]:
        return lambda operands: [view(x) for x in operands]

    def moved(x: Any, host: npt.NDArray[Any]) -> Any:
        return from_numpy(np.ascontiguousarray(host), like=x)

    yield "views with margins of NaN", each(layouts.poisoned)
    yield (
        "views of arrays whose two middle axes are swapped",
        each(lambda x: moved(x, np.swapaxes(to_numpy(x), 1, 2)).swapaxes(1, 2)),
    )
    if spec.arrays != "torch":
        yield (
            "views that run backwards along the third axis",
            each(lambda x: moved(x, to_numpy(x)[:, :, ::-1])[:, :, ::-1]),
        )
