"""How well the judge tells wrong kernels from right ones, and which bug it names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refattn import layouts
from refattn.testing import KernelSpec, Report, check_kernel
from refattn.testing.inputs.batches import stored
from refattn.testing.inputs.problems import NotRun, inputs, plan
from tests.judge.facts import Facts, legit
from tests.judge.planted import EVERY, RIGHT, right, spec
from tests.judge.planting import Bug, spec_of

IDENTITY = re.compile(r"[A-G]\d+")
PLACES = re.compile(r"\b(head|row|key|column)s?\s+(?:tiles?\s+(?=\[))?\[?((?:\d+(?:\s*(?:-|,|to|and|\.\.)\s*)?)+)")

# Facts that a legitimate kernel is free in.
NUMERICS = (
    "weights", "tile_q", "tile_k", "order", "splits", "product", "exponential", "lazy", "sum_of_rounded", "reciprocal",
    "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the judge said of one kernel."""

    key: str
    detected: bool
    named: bool  # at rank one
    listed: bool  # at any rank
    wrong_name: str | None  # an id at rank one that is not true of the kernel
    placed: bool | None  # of bugs outside the catalogue that concern some places: whether these are told
    checks: tuple[str, ...]
    seconds: float
    raised: str | None = None


def detected(report: Report) -> bool:
    """Whether the judge found wrong values; a kernel that raises would be a fault of these tests."""
    broken = [finding.text for finding in report.findings if finding.kind not in ("wrong values", "probe")]
    if broken:
        raise AssertionError(f"{report.kernel}: {broken[0]}")
    return bool(report.findings)


def identity(name: str | None) -> str | None:
    """The catalogue's id that a bug's name begins with, or the whole name."""
    found = None if name is None else IDENTITY.match(name)
    return name if found is None else found.group()


def named(report: Report, *bugs: str) -> bool:
    """Whether the first explanation is one of these bugs."""
    return bool(report.diagnosis) and identity(report.diagnosis[0].bug) in bugs


def listed(report: Report, *bugs: str) -> bool:
    """Whether any explanation is one of these bugs."""
    return any(identity(explanation.bug) in bugs for explanation in report.diagnosis)


def wrong_name(report: Report, *bugs: str) -> str | None:
    """The first explanation's bug, where it is none of these."""
    first = identity(report.diagnosis[0].bug) if report.diagnosis else None
    return None if first in bugs else first


def places(text: str) -> dict[str, set[int]]:
    """Heads, rows, keys and columns that a text names."""
    found: dict[str, set[int]] = {}
    for axis, numbers in PLACES.findall(text):
        for first, _, last in re.findall(r"(\d+)(\s*(?:-|to|\.\.)\s*(\d+))?", numbers):
            found.setdefault(f"{axis}s", set()).update(range(int(first), int(last or first) + 1))
    return found


def placed(report: Report, bug: Bug) -> bool:
    """Whether the first explanation names places, at least half of which a bug outside the catalogue concerns."""
    if not report.diagnosis or bug.where is None:
        return False
    told = places(report.diagnosis[0].text)
    concerned = [2 * len(found & bug.where[axis]) >= len(found) for axis, found in told.items() if axis in bug.where]
    return bool(concerned) and all(concerned)


def outcome(key: str, report: Report, bug: Bug | None, seconds: float) -> Outcome:
    """What a report says of a kernel."""
    known = () if bug is None else tuple(bug.acceptable)
    checks = tuple(check.name for check in report.checks if check.outcome == "WRONG")
    where = placed(report, bug) if bug is not None and bug.where else None
    return Outcome(
        key, detected(report), named(report, *known), listed(report, *known), wrong_name(report, *known), where, checks,
        seconds,
    )  # fmt: skip


def numerics(rng: np.random.Generator, dtype: str, bug: Bug | None = None) -> dict[str, Any]:
    """Drawn numerics of a legitimate kernel; around a bug they leave alone what it needs, the tiles and the splits."""
    fixed = () if bug is None else (*bug.facts, "tile_q", "tile_k", "splits")
    drawn = asdict(legit(rng, Facts(dtype=dtype)))
    return {name: drawn[name] for name in NUMERICS if name not in fixed}


def of_bug(
    key: str, dtype: str, n: int, facts: Mapping[str, Any] | None = None, *, seed: int = 0, quick: bool = True
) -> Outcome:
    """The judge on a planted bug, in a kernel of the numerics given."""
    return _judged(key, spec(key, dtype, n, **(facts or {})), EVERY[key], seed, quick=quick)


def of_control(key: str, dtype: str, n: int, *, seed: int = 0, quick: bool = True) -> Outcome:
    """The judge on the kernel without the bug, called as with it."""
    return _judged(f"without {key}", spec_of(EVERY[key], dtype, n, right=True), None, seed, quick=quick)


def controls(keys: Iterable[str]) -> list[str]:
    """Of bugs whose kernels are called alike and compute the same, one."""
    alike: dict[str, str] = {}
    for key in keys:
        bug = EVERY[key]
        called = (dict(bug.facts), bug.accepts, bug.heads, bug.dims, bug.lengths.__name__, bug.batch, bug.layout)
        alike.setdefault(repr(called), key)
    return list(alike.values())


def of_variant(rng: np.random.Generator, dtype: str, n: int, *, seed: int = 0, quick: bool = True) -> Outcome:
    """The judge on a drawn variant of a kernel without a bug."""
    feature = str(rng.choice(list(RIGHT)))
    changed = numerics(rng, dtype)
    told = ", ".join(f"{name}={x}" for name, x in changed.items())
    return _judged(f"{feature}: {told}", right(feature, dtype, n, **changed), None, seed, quick=quick)


def _judged(key: str, given: KernelSpec, bug: Bug | None, seed: int, *, quick: bool) -> Outcome:
    """What the judge says of a kernel; a judge that raises says nothing."""
    start = time.perf_counter()
    try:
        report = check_kernel(given, quick=quick, seed=seed)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
        return Outcome(key, False, False, False, None, None, (), time.perf_counter() - start, raised)
    return outcome(key, report, bug, time.perf_counter() - start)


def calls(given: KernelSpec, seed: int = 0) -> Iterator[tuple[list[np.ndarray], dict[str, Any]]]:
    """Operands and arguments of each call that `check_kernel` makes when it is quick."""
    for item in plan(given, quick=True, seed=seed):
        if isinstance(item, NotRun):
            continue
        drawn = inputs(given, item)
        operands, tables = [drawn.query, drawn.key, drawn.value], {}
        if drawn.batch is not None:
            operands, tables = stored(given, drawn.batch, operands)
        if margin := given.stored.margin:
            operands = [layouts.poisoned(x, margin=[margin] * (x.ndim - 1) + [0]) for x in operands]
        yield operands, {**drawn.passed, **tables}
