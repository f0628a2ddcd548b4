"""How a law is stated: what it asks of a kernel and of a problem, and what its violation says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

from refattn._core.arrays import dtype_name
from refattn.testing.inputs.cases import CELLS, Case, inputs_of, limits
from refattn.testing.inputs.problems import Inputs
from refattn.testing.laws.observing import NotApplicable, Violation
from refattn.testing.spec import KernelSpec

Unfit = Callable[[KernelSpec], str | None]
Adapt = Callable[[KernelSpec, Case], Case]

PACKED = "its operands are packed, paged or padded: check_forward and check_layouts judge each sequence"


class Law(Protocol):
    """A check of one law: it returns None, or raises Violation, or NotApplicable where the law says nothing."""

    __name__: str
    __doc__: str | None
    unfit: Unfit

    def __call__(self, spec: KernelSpec, problem: Case | Inputs) -> None:
        """Check a kernel on a problem."""


def law(
    unfit: Unfit = lambda spec: None, adapt: Adapt = lambda spec, case: case
) -> Callable[[Callable[[KernelSpec, Inputs], None]], Law]:
    """Make a law of what checks arrays: `unfit` says why a kernel has none of it, `adapt` makes a case show it.

    Rows without keys are drawn for no law but theirs: systems differ in what they give there, and one who says so
    shall not hear it from every law.
    """

    def decorate(function: Callable[[KernelSpec, Inputs], None]) -> Law:
        @functools.wraps(function)
        def check(spec: KernelSpec, problem: Case | Inputs) -> None:
            if (reason := unfit(spec)) is not None:
                raise NotApplicable(reason)
            if isinstance(problem, Case):
                seeing = problem.asking("mask") if "empty_rows" in problem.asks else problem
                problem = adapt(spec, seeing)
            try:
                function(spec, inputs_of(spec, problem))
            except Violation as error:
                text = f"{function.__name__}: {error}\n{reproduction(spec, problem, function.__name__)}"
                raise Violation(text, error.kind, key=error.key) from None

        stated: Any = check
        stated.unfit = unfit
        return cast(Law, stated)

    return decorate


def reproduction(spec: KernelSpec, problem: Case | Inputs, check: str) -> str:
    """The lines that show a violation again."""
    whose = f"SPEC is the KernelSpec of {spec.name}"
    if isinstance(problem, Case):
        lines = [
            "from refattn.testing import Case",
            f"from refattn.testing.laws import {check}",
            f"{check}(SPEC, {problem})  # {whose}",
        ]
    else:
        shapes = ", ".join(f"{name} {getattr(problem, name).shape}" for name in ("query", "key", "value"))
        lines = [
            "from refattn.testing import save_repro",
            f'save_repro("repro.npz", SPEC, given, check="{check}")  # {whose}',
            f"# given: {shapes}, {dtype_name(problem.query)}; then: python -m refattn replay repro.npz module:SPEC",
        ]
    return "\n".join(["  reproduce:", *(f"    {line}" for line in lines)])


def computes(spec: KernelSpec, *names: str) -> list[str]:
    """Which of these arguments the kernel always computes with."""
    return [name for name in names if any(name in spec.arguments(L, S) for L, S in spec.lengths)]


def free(spec: KernelSpec) -> str | None:
    """Why keys of this kernel cannot be moved: it takes tables, or always computes with what tells them apart."""
    if spec.tables:
        return PACKED
    always = computes(spec, "mask", "is_causal", "bias")
    return f"it always computes with {' and '.join(always)}, which tells keys apart by place" if always else None


def unpacked(spec: KernelSpec) -> str | None:
    """Why this kernel's keys and queries are not those of one (L, S)."""
    return PACKED if spec.tables else None


def masking(spec: KernelSpec) -> str | None:
    """Why nothing is ever masked in this kernel."""
    if spec.tables:
        return PACKED
    if computes(spec, "mask", "is_causal") or {"mask", "is_causal"} & set(cells_of(spec)):
        return None
    return "it neither computes with a mask nor accepts mask or is_causal"


def masked(spec: KernelSpec, case: Case) -> Case:
    """A case in which some query does not see some key."""
    if {"mask", "empty_rows", "causal_mask", "is_causal"} & set(case.asks) or computes(spec, "mask", "is_causal"):
        return case
    L, S = case.lengths
    words = cells_of(spec)
    if "is_causal" in words and (L == S or "mask" not in words):
        side = next((n for n in sorted({L, S}) if limits(spec).allow(n, n)), None)
        return case if side is None else case.asking("is_causal").but(lengths=(side, side))
    return case.asking("causal_mask") if "mask" in words else case


def batched(spec: KernelSpec, case: Case) -> Case:
    """A case of as many batch entries as the kernel takes."""
    return case if case.batch > 1 else case.but(batch=max(spec.batch))


def without(*names: str) -> Adapt:
    """What makes a case not ask for these."""
    return lambda spec, case: case.but(asks=tuple(name for name in case.asks if name not in names))


def cells_of(spec: KernelSpec) -> list[str]:
    """The words of a case's cells that this kernel can be asked for, but those whose own check is expected to fail."""
    packed = bool({"cu_seqlens_q", "cu_seqlens_k"} & set(spec.tables))
    found = []
    for word in CELLS:
        name = "mask" if word in ("empty_rows", "causal_mask") else word
        failing = {name, word} & set(spec.expected_failures)
        if name in spec.accepts and not failing and not (packed and name != "is_causal"):
            found.append(word)
    return found
