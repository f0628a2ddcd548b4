"""What a kernel gives for a problem, how far it may be from what is right, and the text where two results differ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.arrays import quiet
from refattn.testing.inputs.problems import Inputs
from refattn.testing.running import (
    FUNCTION,
    MOST_WORK,
    TOUCHED,
    WRONG_VALUES,
    Fault,
    logical,
    prepared,
    returned,
    rows_of,
    sequences_of,
    terms_of,
)
from refattn.testing.spec import KernelSpec
from refattn.testing.verdict import sequences
from refattn.testing.verdict.judge import parts
from refattn.testing.verdict.record import Verdict, place, runs, share_text
from refattn.testing.verdict.ruling import verdict_of
from refattn.testing.verdict.sampling import Rows

Floats = npt.NDArray[np.float64]
Store = Callable[[Sequence[Any]], Sequence[Any]]


class Violation(AssertionError):
    """A kernel breaks a law.

    Parameters
    ----------
    text : str
        What is wrong.
    kind : str, default "wrong values"
        What sort of thing it is, as `Finding` says it.
    case : Case, optional
        The drawn problem that shows it.
    key : str, optional
        What faults of one kind that are one and the same fault share, whichever law meets them.
    """

    def __init__(self, text: str, kind: str = WRONG_VALUES, case: Any = None, key: str | None = None) -> None:
        """Keep the text, its kind, its problem and its key."""
        super().__init__(text)
        self.kind, self.case, self.key = kind, case, key


class NotApplicable(SkipTest):
    """A law says nothing about a kernel, or about a problem."""


class Seen(NamedTuple):
    """What a kernel returned: (B, H, L, Ev) and (B, H, L), natural or None; as it came; and what else it did wrong."""

    output: Floats
    lse: Floats | None
    host: list[npt.NDArray[Any]]
    faults: tuple[Fault, ...]


class Right(NamedTuple):
    """What is right, and how far a kernel within its contract may be from it; NaN where no row was looked at."""

    output: Floats
    output_bound: Floats
    lse: Floats
    lse_bound: Floats


class Recorder:
    """The kernel, which keeps what it returned; its operands are stored in another way where asked to."""

    def __init__(self, function: Callable[..., Any], store: Store | None = None) -> None:
        """Take the function's place, its name and its code."""
        self.function, self.store = function, store
        self.operands: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}
        self.result: Any = None
        self.__name__ = str(getattr(function, "__name__", type(function).__name__))
        self.__code__ = getattr(function, "__code__", None)

    def __call__(self, *operands: Any, **named: Any) -> Any:
        """Call the kernel."""
        self.operands, self.named = operands, named
        self.result = self.function(*(operands if self.store is None else self.store(operands)), **named)
        return self.result


def observe(spec: KernelSpec, given: Inputs, store: Store | None = None) -> Seen:
    """Run a kernel; a call that raises, or returns something else than it says, is a violation of every law."""
    named = spec if store is None else replace(spec, function=Recorder(spec.function, store))
    faults, host = returned(named, given)
    if host is None:
        fault = next(fault for fault in reversed(faults) if fault.kind != TOUCHED)
        raise Violation(fault.text, fault.kind, key=fault.key)
    held = sequences_of(spec, given)
    output, lse = logical(spec, held, [x.astype(np.float64) for x in host])
    return Seen(output, None if lse is None else lse * terms_of(spec).lse_factor, host, faults)


def verdict_on(spec: KernelSpec, given: Inputs, seen: Seen) -> Verdict:
    """What each number of a result is beside its bound; without a search for what fits."""
    output, lse = logical(spec, sequences_of(spec, given), seen.host)
    return verdict_of(_cases(spec, given), terms_of(spec), output, lse, explain=False)


def _cases(spec: KernelSpec, given: Inputs) -> list[tuple[Call, Rows]]:
    """The calls of the method, one for each sequence, and which of their rows are looked at: a sample of large ones."""
    if given.batch is None:
        call = prepared(spec, given)
        return [(call, rows_of(call))]
    held = sequences_of(spec, given)
    return sequences.chosen(FUNCTION, held, _arguments(spec, given), most=MOST_WORK)


def _arguments(spec: KernelSpec, given: Inputs) -> sequences.Arguments:
    """Keyword arguments of each sequence."""
    varied = sequences.arguments_of(FUNCTION, sequences_of(spec, given), given.arguments)
    return lambda b, l, s: {**varied(b, l, s), **spec.arguments(l, s)}


@quiet
def right_values(spec: KernelSpec, given: Inputs) -> Right:
    """Exact values and bounds of all rows of a small problem, of a sample of a large one."""
    B, H, L, _ = given.query.shape
    output, bound = (np.full((B, H, L, given.value.shape[-1]), np.nan) for _ in range(2))
    lse, lse_bound = (np.full((B, H, L), np.nan) for _ in range(2))
    for call, rows in _cases(spec, given):
        for part in parts(call, rows, terms_of(spec), np.zeros(output.shape), np.zeros(lse.shape)):
            output[part.index][part.rows], bound[part.index][part.rows] = part.output.expected, part.output.bound
            assert part.lse is not None
            lse[part.index][part.rows], lse_bound[part.index][part.rows] = part.lse.expected, part.lse.bound
    return Right(output, bound, lse, lse_bound)


def visible(spec: KernelSpec, given: Inputs) -> npt.NDArray[np.bool_]:
    """Which key each query may attend to, (B, H, L, S)."""
    score = prepared(spec, given).score
    L, S = score.lengths
    shape = (*given.query.shape[:2], L, S)
    mask: Any = score.mask
    seen: npt.NDArray[np.bool_] = np.ones((L, S), dtype=np.bool_) if mask is None else mask.dense(L, S)
    return np.array(np.broadcast_to(seen, shape))


@quiet
def differ(
    got: Floats, want: Floats, bound: Floats | float = 0.0, *, where: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """Which numbers differ by more than a bound; NaN in the bound leaves a number out, and infinity claims nothing."""
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    near = np.abs(got - want) <= bound
    wrong: npt.NDArray[np.bool_] = ~same & ~near & np.isfinite(bound)
    return wrong if where is None else wrong & where


def hold(
    what: str,
    got: Floats,
    want: Floats,
    bound: Floats | float = 0.0,
    *,
    where: npt.NDArray[np.bool_] | None = None,
    changed: str,
) -> None:
    """Two results that must be the same, or within a bound of each other; the violation says where they are not."""
    wrong = differ(got, want, bound, where=where)
    if not wrong.any():
        return
    with np.errstate(all="ignore"):
        share = np.where(wrong, np.nan_to_num(np.abs(got - want) / bound, nan=np.inf, posinf=np.inf), -1.0)
        size = np.where(wrong, np.nan_to_num(np.abs(got - want), nan=np.inf, posinf=np.inf), -1.0)
    at = np.unravel_index(int(np.argmax(size if np.isinf(share).any() else share)), wrong.shape)
    index = tuple(int(n) for n in at)
    limit = np.broadcast_to(bound, wrong.shape)[at]
    times = f"{share_text(float(share[at]))} times the bound {limit:.2g}" if limit > 0 else "it must be the same number"
    rows = np.argwhere(wrong if wrong.ndim == 3 else wrong.any(axis=-1))
    raise Violation(
        f"{changed}\n  {what}: {place(index, columns=wrong.ndim == 4)}: {got[at]:.8g} instead of {want[at]:.8g}, "
        f"|difference| {abs(got[at] - want[at]):.2g}: {times}\n  where: {len(rows):,} rows: batch {runs(rows[:, 0])}, "
        f"heads {runs(rows[:, 1])}, rows {runs(rows[:, 2])}"
    )


def later(spec: KernelSpec, given: Inputs) -> Callable[[], Right]:
    """What is right, computed where it is first asked for."""
    return functools.cache(functools.partial(right_values, spec, given))


def hold_results(
    got: Seen,
    want: Seen,
    right: Callable[[], Right] | None = None,
    *,
    rows: npt.NDArray[np.bool_] | None = None,
    changed: str,
) -> None:
    """Two results of the same numbers, or with `right` within twice the bound; of chosen rows (B, H, L) alone."""
    where = None if rows is None else rows[..., None]
    if right is None or differ(got.output, want.output, where=where).any():
        bound = 0.0 if right is None else 2 * right().output_bound
        hold("output", got.output, want.output, bound, where=where, changed=changed)
    if got.lse is not None and want.lse is not None and (right is None or differ(got.lse, want.lse, where=rows).any()):
        bound = 0.0 if right is None else 2 * right().lse_bound
        hold("lse", got.lse, want.lse, bound, where=rows, changed=changed)


def cells(spec: KernelSpec, given: Inputs) -> dict[str, Any]:
    """What the method is asked for, its masks and biases written out cell by cell, (B, H, L, S)."""
    B, H, L, _ = given.query.shape
    S = given.key.shape[2]
    keep, add = np.zeros((B, H, L, S), dtype=np.bool_), np.zeros((B, H, L, S))
    held = sequences_of(spec, given)
    arguments = _arguments(spec, given)
    found: dict[str, Any] = {}
    for b in range(B):
        l, s = int(held.queries[b]), int(held.keys[b])
        call = prepared(spec, given) if given.batch is None else held.call(FUNCTION, b, arguments)
        score: Any = call.score
        i, j = slice(0, l), slice(0, s)
        for h in range(H):
            own = score.at((b, h))
            if own.mask is not None:
                keep[b, h, i, j] = own.mask.tile(i, j, l, s, xp=np)
                found["mask"] = keep
            if own.bias is not None:
                add[b, h, i, j] = own.bias.tile(i, j, l, s, xp=np, device=None)
                found["bias"] = add
        found["scale"] = float(score.scale)
        if score.softcap is not None:
            found["softcap"] = float(score.softcap)
    for name in ("sinks", "dropout_mask", "dropout_p"):
        value = given.arguments.get(name, spec.arguments(L, S).get(name))
        if value is not None:
            found[name] = value
    return found
