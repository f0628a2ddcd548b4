"""What a kernel gives for a problem, how far it may be from what is right, and the text where two results differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import SkipTest

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet, to_numpy
from refattn.testing.inputs.problems import Inputs
from refattn.testing.running import FUNCTION, MOST_WORK, logical, prepared, run, sequences_of
from refattn.testing.spec import KernelSpec
from refattn.testing.verdict import sequences
from refattn.testing.verdict.checking import LSE_BASES
from refattn.testing.verdict.judge import Terms, parts
from refattn.testing.verdict.record import Verdict, place, runs, share_text
from refattn.testing.verdict.sampling import choose_rows

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
    """

    def __init__(self, text: str, kind: str = "wrong values", case: Any = None) -> None:
        """Keep the text, its kind and its problem."""
        super().__init__(text)
        self.kind, self.case = kind, case


class NotApplicable(SkipTest):
    """A law says nothing about a kernel, or about a problem."""


class Seen(NamedTuple):
    """A kernel's output (B, H, L, Ev) and log-sum-exp (B, H, L), which is natural or None, and the verdict on them."""

    output: Floats
    lse: Floats | None
    verdict: Verdict
    faults: tuple[Any, ...]


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
    recorder = Recorder(spec.function, store)
    outcome = run(replace(spec, function=recorder), given, explain=False)
    if outcome.verdict is None:
        fault = next(fault for fault in reversed(outcome.faults) if fault.kind != "changed its inputs")
        raise Violation(fault.text, fault.kind)
    found = [recorder.result] if len(spec.returns) == 1 else list(recorder.result)
    held = sequences_of(spec, given)
    output, lse = logical(spec, held, [to_numpy(x).astype(np.float64) for x in found])
    return Seen(output, None if lse is None else lse * terms_of(spec).lse_factor, outcome.verdict, outcome.faults)


@quiet
def right_values(spec: KernelSpec, given: Inputs) -> Right:
    """Exact values and bounds of all rows of a small problem, of a sample of a large one."""
    B, H, L, _ = given.query.shape
    output, bound = (np.full((B, H, L, given.value.shape[-1]), np.nan) for _ in range(2))
    lse, lse_bound = (np.full((B, H, L), np.nan) for _ in range(2))
    if given.batch is None:
        call = prepared(spec, given)
        cases = [(call, choose_rows(FUNCTION, call, None))]
    else:
        held = sequences_of(spec, given)
        varied = sequences.arguments_of(FUNCTION, held, given.arguments)

        def arguments(b: int, l: int, s: int) -> dict[str, Any]:
            return {**varied(b, l, s), **spec.arguments(l, s)}

        cases = sequences.chosen(FUNCTION, held, arguments, most=MOST_WORK)
    for call, rows in cases:
        for part in parts(call, rows, terms_of(spec), np.zeros(output.shape), np.zeros(lse.shape)):
            output[part.index][part.rows], bound[part.index][part.rows] = part.output.expected, part.output.bound
            assert part.lse is not None
            lse[part.index][part.rows], lse_bound[part.index][part.rows] = part.lse.expected, part.lse.bound
    return Right(output, bound, lse, lse_bound)


def terms_of(spec: KernelSpec) -> Terms:
    """What a kernel's results are held to."""
    bound: Callable[..., Any] = spec.method.capabilities.bound  # type: ignore[attr-defined]
    return Terms(spec.numerics(), bound, LSE_BASES["2" if spec.returns[-1] == "lse2" else "e"])


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


def hold_results(
    got: Seen, want: Seen, right: Right | None = None, *, rows: npt.NDArray[np.bool_] | None = None, changed: str
) -> None:
    """Two results of the same numbers, or with `right` within twice the bound; of chosen rows (B, H, L) alone."""
    bound: Floats | float = 0.0 if right is None else 2 * right.output_bound
    hold("output", got.output, want.output, bound, where=None if rows is None else rows[..., None], changed=changed)
    if got.lse is not None and want.lse is not None:
        bound = 0.0 if right is None else 2 * right.lse_bound
        hold("lse", got.lse, want.lse, bound, where=rows, changed=changed)


def cells(spec: KernelSpec, given: Inputs) -> dict[str, Any]:
    """What the method is asked for, its masks and biases written out cell by cell, (B, H, L, S)."""
    B, H, L, _ = given.query.shape
    S = given.key.shape[2]
    keep, add = np.zeros((B, H, L, S), dtype=np.bool_), np.zeros((B, H, L, S))
    held = sequences_of(spec, given)
    varied = sequences.arguments_of(FUNCTION, held, given.arguments)
    found: dict[str, Any] = {}
    for b in range(B):
        l, s = int(held.queries[b]), int(held.keys[b])
        score: Any
        if given.batch is None:
            score = prepared(spec, given).score
        else:
            score = held.call(FUNCTION, b, lambda b, l, s: {**varied(b, l, s), **spec.arguments(l, s)}).score
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
