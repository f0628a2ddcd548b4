"""A problem that shows a fault made smaller, step by step, while the same law is broken in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import SkipTest

import numpy as np

from refattn._core.arrays import round_to
from refattn._core.checks import check_choice, check_integer
from refattn.testing.inputs.cases import Case, asked_of, inputs_of, limits, put_together
from refattn.testing.inputs.cutting import Index, cut
from refattn.testing.inputs.problems import Inputs, operand_dtypes
from refattn.testing.laws import CHECKS
from refattn.testing.laws.observing import Violation
from refattn.testing.laws.stating import Law
from refattn.testing.spec import KernelSpec

MOST_RUNS = 400


def shrink(spec: KernelSpec, problem: Case | Inputs, *, check: str = "check_forward", most: int = MOST_RUNS) -> Inputs:
    """Make a problem on which a kernel breaks a law smaller, as long as it breaks the same law in the same way.

    Parameters
    ----------
    spec : KernelSpec
        The kernel.
    problem : Case or Inputs
        A problem on which the check fails: drawn, or arrays (see `captured`).
    check : str, default "check_forward"
        Name of the check: one of ``refattn.testing.laws.CHECKS``.
    most : int, default 400
        How many smaller problems are tried.

    Returns
    -------
    Inputs
        The smallest that was found: fewer batch entries, heads, queries, keys and features, no argument that is not
        needed, and plainer numbers.

    Raises
    ------
    ValueError
        If `check` is no check, or the kernel passes it on the problem.
    unittest.SkipTest
        If the law says nothing about the kernel or the problem.

    Notes
    -----
    Smaller problems lie outside what ``spec.lengths`` and ``spec.heads`` name; one that a kernel refuses shows another
    fault, and is not kept.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import Case, KernelSpec, shrink
    >>> def wrong(query, key, value):
    ...     output = ra.attention(query, key, value)
    ...     output[:, :, 5:] = 0
    ...     return output
    >>> shrink(KernelSpec(wrong), Case((20, 30), (16, 16))).query.shape
    (1, 1, 6, 1)
    """
    law = named_check("shrink", check)
    most = check_integer("shrink", "most", most)
    given = inputs_of(spec, problem)
    kind = broken(spec, law, given)
    if kind is None:
        raise ValueError(f"shrink: the kernel must break {check} on the problem; it passes.")
    left = [most]

    def kept(smaller: Callable[[], Inputs]) -> Inputs | None:
        if left[0] <= 0:
            return None
        left[0] -= 1
        try:
            other = smaller()
            return other if broken(spec, law, other) == kind else None
        except (TypeError, ValueError, SkipTest):  # refused by refattn, so that it is no smaller problem
            return None

    size = None
    while size != (size := _size(given)):
        for step in (_fewer, _unasked, _plainer):
            given = step(spec, given, kept)
    return given


def simpler(spec: KernelSpec, law: Law, case: Case, kind: str) -> Case:
    """A case of the least lengths, and with the least asked, on which a law is broken in the same way."""

    def fails(other: Case) -> bool:
        try:
            return other != case and broken(spec, law, other) == kind
        except SkipTest:
            return False

    allowed = limits(spec)
    sizes = [sorted({allowed.side(axis)[0], *allowed.edges(axis)}) for axis in (0, 1)]
    L, S = case.lengths
    for pair in (*((min(L, n), n) for n in sizes[1] if n < S), *((n, S) for n in sizes[0] if n < L)):
        if allowed.allow(*pair) and fails(other := case.but(lengths=pair)):
            case = other
            break
    plain = Case(case.lengths, case.dims, min(spec.batch))
    changes = [{name: getattr(plain, name)} for name in ("seed", "law", "factor", "batch", "table")]
    changes += [{"asks": tuple(one for one in case.asks if one != name)} for name in case.asks]
    for change in changes:
        if fails(other := case.but(**change)):
            case = other
    return case


def named_check(function: str, name: str) -> Law:
    """The check of a name."""
    checks = {check.__name__: check for check in CHECKS}
    check_choice(function, "check", name, tuple(checks))
    return checks[name]


def broken(spec: KernelSpec, law: Law, given: Case | Inputs) -> str | None:
    """In what way a law is broken."""
    try:
        law(spec, given)
    except Violation as error:
        return error.kind
    return None


def _size(given: Inputs) -> tuple[Any, ...]:
    """What shrinking makes smaller, other than the numbers."""
    batch = () if given.batch is None else (*given.batch.queries.tolist(), *given.batch.keys.tolist())
    return (*given.query.shape, *given.value.shape, len(given.arguments), *batch)


Kept = Callable[[Callable[[], Inputs]], Inputs | None]


def _fewer(spec: KernelSpec, given: Inputs, kept: Kept) -> Inputs:
    """Fewer of each axis."""
    for axis in ("batch", "key_heads", "members", "rows", "keys", "features", "columns"):
        sizes: dict[str, Callable[[Inputs], int]] = {
            "batch": lambda x: len(x.query),
            "key_heads": lambda x: x.key.shape[1],
            "members": lambda x: x.query.shape[1] // x.key.shape[1],
            "rows": lambda x: x.query.shape[2],
            "keys": lambda x: x.key.shape[2],
            "features": lambda x: x.query.shape[3],
            "columns": lambda x: x.value.shape[3],
        }
        n = sizes[axis](given)
        first = axis in ("features", "columns") or (given.batch is not None and axis in ("rows", "keys"))
        for index in _parts(n, first=first):
            chosen: Any = len(index) if axis in ("features", "columns") else index
            smaller = kept(partial(cut, spec, given, **{axis: chosen}))
            if smaller is None and axis == "rows" and n == given.key.shape[2]:
                # Kernels that are causal by flag take as many keys as queries.
                smaller = kept(partial(cut, spec, given, rows=index, keys=index))
            if smaller is not None:
                given = smaller
                break
    return given


def _parts(n: int, *, first: bool) -> Iterator[Index]:
    """Parts of n entries: the fewest first, then those that leave less and less out."""
    if n < 2:
        return
    if first:
        yield from (np.arange(m) for m in dict.fromkeys((1, n // 4, n // 2, n - n // 4, n - n // 8, n - 1)) if m)
        return
    yield np.array([0])
    yield np.array([n - 1])
    size = n // 2
    while size:
        starts = range(0, n, size) if n // size <= 8 else (0, n - size)
        yield from (np.delete(np.arange(n), np.s_[start : start + size]) for start in starts)
        size //= 2


def _unasked(spec: KernelSpec, given: Inputs, kept: Kept) -> Inputs:
    """Without each argument that is not needed."""
    for name in asked_of(spec, given):
        asked = {other: x for other, x in asked_of(spec, given).items() if other != name}
        if name in ("dropout_mask", "dropout_p"):
            asked = {other: x for other, x in asked.items() if not other.startswith("dropout")}
        if len(asked) == len(asked_of(spec, given)):
            continue
        smaller = kept(partial(put_together, spec, given.query, given.key, given.value, asked, given.batch))
        given = given if smaller is None else smaller
    return given


def _plainer(spec: KernelSpec, given: Inputs, kept: Kept) -> Inputs:
    """Plainer numbers in each operand: all ones, signs, integers, and few digits."""
    for name, dtype in zip(("query", "key", "value"), operand_dtypes(spec), strict=True):
        x = getattr(given, name).astype(np.float64)
        for plain in (np.where(np.isnan(x), x, 1.0), np.sign(x), np.round(x), np.round(4 * x) / 4):
            if np.array_equal(plain, x, equal_nan=True):
                break
            new = round_to(plain, dtype, np)
            smaller = kept(partial(replace, given, **{name: new}))
            if smaller is not None:
                given = smaller
                break
    return given
