"""One run of a kernel: fresh arrays of its own library, the call, and what came back."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn import layouts
from refattn._call import Call, prepare
from refattn._core.arrays import Array, dtype_name, from_numpy, is_array, library_of, quiet, to_numpy
from refattn.contract.formats import unit
from refattn.testing import bugs
from refattn.testing.diagnosis.fitting import Sample
from refattn.testing.inputs import outputs
from refattn.testing.inputs.batches import stored
from refattn.testing.inputs.problems import Inputs, input_dtype, multiplied
from refattn.testing.spec import ARGUMENTS, KernelSpec
from refattn.testing.verdict import sequences
from refattn.testing.verdict.checking import LSE_BASES
from refattn.testing.verdict.judge import Terms, parts
from refattn.testing.verdict.record import Verdict
from refattn.testing.verdict.ruling import verdict_of
from refattn.testing.verdict.sampling import SAMPLE, Rows, choose_rows, work
from refattn.testing.verdict.sequences import Sequences

# Multiply-adds up to which all rows of one problem among many are checked.
MOST_WORK = 4e9
# Wrong rows of a run that are kept for the diagnosis, and as many others.
KEPT = 24

FUNCTION = "check_kernel"
# Kinds of faults.
RAISED, RETURNED, TOUCHED, WRONG_VALUES = "raised", "returned", "changed its inputs", "wrong values"
UNEXPECTED = "expected failure passed"
OPERANDS = ("query", "key", "value")
FACTORS = tuple(f"descale of {name}" for name in OPERANDS)


class Fault(NamedTuple):
    """What a kernel did that makes its values beside the point."""

    kind: str
    text: str
    key: str  # faults of one key are one finding


class Outcome(NamedTuple):
    """What came of one run, and rows of a wrong one, for the diagnosis."""

    verdict: Verdict | None
    faults: tuple[Fault, ...]
    sample: Sample | None = None


def run(spec: KernelSpec, given: Inputs, *, explain: bool = True, keep: str | None = None) -> Outcome:
    """Call the kernel on fresh copies, and judge what it returns; look for symptoms where asked to.

    `keep` is the name of a check for which rows of a wrong result are kept.
    """
    call = None if given.batch is not None else prepared(spec, given)
    faults, host = returned(spec, given)
    if host is None:
        return Outcome(None, faults)
    terms = terms_of(spec)
    if call is not None:
        output, lse = logical(spec, sequences_of(spec, given), host)
        verdict = verdict_of([(call, rows_of(call))], terms, output, lse, explain=explain, statistics=True)
        return Outcome(verdict, faults, _kept(spec, given, host, terms, verdict, keep))
    verdict = _of_sequences(spec, given, host, terms, explain=explain)
    if explain and not verdict.passed and not np.isfinite(host[0].astype(np.float64)).all():
        notes = _read_from(spec, given, terms)
        verdict = replace(verdict, notes=(*verdict.notes, *notes))
    return Outcome(verdict, faults, _kept(spec, given, host, terms, verdict, keep))


def returned(spec: KernelSpec, given: Inputs) -> tuple[tuple[Fault, ...], list[npt.NDArray[Any]] | None]:
    """What a kernel does wrong but for its values, and on the host what it returns; None where that is no result."""
    before = handed(spec, given)
    moved, host = called(spec, given, before)
    if isinstance(host, Fault) and host.kind == RAISED:
        return (host,), None
    faults = [*_touched(before, moved), *_left(moved)]
    if isinstance(host, Fault):
        return (*faults, host), None
    contract = spec.numerics()
    if dtype_name(host[0]) != contract.output:
        text = f"returned an output of {dtype_name(host[0])}; the contract says {contract.output}"
        faults.append(_returned(text))
    if (wrong := misshapen(spec, sequences_of(spec, given), host)) is not None:
        return (*faults, wrong), None
    return tuple(faults), host


def terms_of(spec: KernelSpec) -> Terms:
    """What a kernel's results are held to."""
    bound: Callable[..., Any] = spec.method.capabilities.bound  # type: ignore[attr-defined]
    return Terms(spec.numerics(), bound, LSE_BASES["2" if spec.returns[-1] == "lse2" else "e"])


def called(
    spec: KernelSpec, given: Inputs, arrays: dict[str, npt.NDArray[Any]]
) -> tuple[dict[str, Array], list[npt.NDArray[Any]] | Fault]:
    """The arrays that the kernel got, copies of the given ones, and on the host what it returned, or did instead."""
    moved: dict[str, Any] = {name: _moved(spec, x) for name, x in arrays.items()}
    named = {name: moved.get(name, x) for name, x in given.passed.items()}
    if named.get("descale") is not None:
        named["descale"] = tuple(moved[name] for name in FACTORS)
    if "out" in spec.accepts:
        named["out"], moved["out"] = _room(spec, given)
    try:
        result = spec.function(*(moved[name] for name in OPERANDS), **named)
    except Exception as error:
        text = _raised(spec.function, error)
        return moved, Fault(RAISED, text, text)
    found = _unpacked(spec, result, named.get("out"))
    return moved, found if isinstance(found, Fault) else [to_numpy(x) for x in found]


def _of_sequences(
    spec: KernelSpec, given: Inputs, host: list[npt.NDArray[Any]], terms: Terms, *, explain: bool
) -> Verdict:
    """The verdict on what the kernel returned for sequences, each a problem of its own."""
    held = sequences_of(spec, given)
    arguments = _arguments(spec, given, held)
    output, lse = logical(spec, held, host)
    cases = sequences.chosen(FUNCTION, held, arguments, most=MOST_WORK)
    verdict = verdict_of(cases, terms, output, lse, explain=explain, statistics=True)
    return sequences.told(FUNCTION, verdict, held, arguments, terms, output, explain=explain)


def _arguments(spec: KernelSpec, given: Inputs, held: Sequences) -> sequences.Arguments:
    """Keyword arguments of each sequence: those that were varied, and those that the kernel always computes with."""
    varied = sequences.arguments_of(FUNCTION, held, given.arguments)
    return lambda b, l, s: {**varied(b, l, s), **spec.arguments(l, s)}


@quiet
def _kept(
    spec: KernelSpec, given: Inputs, host: list[npt.NDArray[Any]], terms: Terms, verdict: Verdict, check: str | None
) -> Sample | None:
    """Wrong rows and others of a wrong result, judged, and the problem that bugs are computed on."""
    told = len(verdict.wrong_rows) > 0 or len(verdict.effects) > 0
    if check is None or not told:
        return None
    held = sequences_of(spec, given)
    output, lse = logical(spec, held, host)
    rows = _of_interest(verdict, held)
    if given.batch is None:
        call = prepared(spec, given)
        cases = [(call, choose_rows(FUNCTION, call, rows))]
        problem = bugs.Problem.of(call, margin=spec.stored.margin, order=spec.stored.order, **_factors(given))
    else:
        arguments = _arguments(spec, given, held)
        cases = sequences.chosen(FUNCTION, held, arguments, rows)
        problem = bugs.Problem.of_inputs(_multiplied(given), page_size=held.page_size, **_factors(given))
    judged = tuple(part for call, chosen in cases for part in parts(call, chosen, terms, output, lse))
    contract = terms.contract
    formats = (contract.probabilities, contract.output, contract.accumulator)
    bounds = np.concatenate([part.output.bound.ravel() for part in judged])
    bounds = bounds[np.isfinite(bounds) & (bounds > 0)]
    widest, typical = float(bounds.max(initial=0.0)), float(np.median(bounds)) if len(bounds) else 0.0
    return Sample(problem, judged, check, max(map(unit, formats)), widest, typical, unit(contract.accumulator))


def _factors(given: Inputs) -> dict[str, Any]:
    """The factors of the operands (B, heads), where they have some and no blocks."""
    factors = given.arguments.get("descale")
    if factors is None or any(x.shape[2:] != (1,) for x in factors):
        return {}
    return {"descale": tuple(x[..., 0] for x in factors)}


def _multiplied(given: Inputs) -> Inputs:
    """The problem without factors, of operands that are multiplied by them."""
    arguments = dict(given.arguments)
    factors = arguments.pop("descale", None)
    if factors is None:
        return given
    query, key, value = map(multiplied, (given.query, given.key, given.value), factors)
    return replace(given, query=query, key=key, value=value, arguments=arguments)


def _of_interest(verdict: Verdict, held: Sequences) -> npt.NDArray[np.int64]:
    """Wrong rows, evenly, and as many at random, by batch entry, head and row of the sequence."""
    rng = np.random.default_rng(0)
    found = []
    if len(verdict.wrong_rows):
        found.append(verdict.wrong_rows[np.unique(np.linspace(0, len(verdict.wrong_rows) - 1, KEPT).astype(int))])
    (with_queries,) = np.nonzero(held.queries)
    entries = rng.choice(with_queries, KEPT)
    heads = rng.integers(held.query.shape[1], size=KEPT)
    found.append(np.stack([entries, heads, rng.integers(held.queries[entries])], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _read_from(spec: KernelSpec, given: Inputs, terms: Terms) -> tuple[str, ...]:
    """Where NaN in a result was read: the kernel runs again with zeros in some of the cells of no token."""
    paged = "block_table" in spec.tables
    tails = "the tail of a last page" if paged else "the cells behind a sequence's keys"
    for where, fills in ((tails, {"tails": 0.0}), ("a page of no sequence", {"unused": 0.0})):
        _, host = called(spec, given, handed(spec, given, **fills))
        if isinstance(host, Fault) or misshapen(spec, sequences_of(spec, given), host) is not None:
            continue
        if _of_sequences(spec, given, host, terms, explain=False).passed:
            return (f"NaN is read from {where}: with zeros there the result is right, so they have weight 0",)
        if np.isfinite(host[0].astype(np.float64)).all():
            return (f"NaN is read from {where}: with zeros there the result is finite and wrong, so they take part",)
    return ()


def prepared(spec: KernelSpec, given: Inputs) -> Call:
    """The call of the method that the kernel is held against."""
    arguments: dict[str, Any] = dict.fromkeys(ARGUMENTS)
    arguments["is_causal"] = False
    arrays = {name: to_numpy(x) if is_array(x) else x for name, x in given.arguments.items()}
    return prepare(FUNCTION, given.query, given.key, given.value, dtype="float64", **{**arguments, **arrays})


def rows_of(call: Call) -> Rows:
    """All rows of a small problem, a sample of a large one."""
    L, S = call.score.lengths
    rows = int(np.prod(call.lead)) * L
    cheap = work(rows, S, call.query.shape[-1], call.value.shape[-1]) <= MOST_WORK
    return choose_rows(FUNCTION, call, None if cheap else SAMPLE)


def handed(spec: KernelSpec, given: Inputs, **fills: float) -> dict[str, npt.NDArray[Any]]:
    """The arrays that the kernel gets, in NumPy: operands in its layout, tables, and the arguments that are arrays."""
    operands: list[npt.NDArray[Any]] = [given.query, given.key, given.value]
    tables: dict[str, npt.NDArray[Any]] = {}
    if given.batch is not None:
        operands, tables = stored(spec, given.batch, operands, **fills)
    else:
        operands = [layouts.to_order(x, spec.stored.order) for x in operands]
    arrays = {name: x for name, x in given.passed.items() if isinstance(x, np.ndarray)}
    arrays |= dict(zip(FACTORS, given.passed.get("descale") or (), strict=False))
    return {**dict(zip(OPERANDS, operands, strict=True)), **arrays, **tables}


def _moved(spec: KernelSpec, x: npt.NDArray[Any]) -> Array:
    """A copy of the kernel's own: C-ordered, or a view with margins of NaN where the layout says so."""
    new = from_numpy(np.array(x, order="C", copy=True), library=spec.arrays, device=spec.device)
    if spec.stored.margin and dtype_name(x).startswith(("float", "bfloat")):
        return layouts.poisoned(new, margin=[spec.stored.margin] * (x.ndim - 1) + [0])
    return new


def sequences_of(spec: KernelSpec, given: Inputs) -> Sequences:
    """The operands with the lengths of their sequences, all the same where the kernel takes no tables."""
    (B, L), S = (given.query.shape[0], given.query.shape[-2]), given.key.shape[-2]
    if given.batch is None:
        return Sequences(given.query, given.key, given.value, np.full(B, L), np.full(B, S))
    page_size = spec.stored.page_size if "block_table" in spec.tables else None
    return Sequences(given.query, given.key, given.value, given.batch.queries, given.batch.keys, page_size)


def logical(
    spec: KernelSpec, held: Sequences, host: list[npt.NDArray[Any]]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Output (B, H, L, Ev) and log-sum-exp (B, H, L) of what the kernel returned."""
    packed = "cu_seqlens_q" in spec.tables
    output, lse, *_ = (
        None if x is None else sequences.result_of(FUNCTION, name, x, spec.stored, held, packed=packed)
        for name, x in zip(("output", "lse"), (*host, None), strict=False)
    )
    assert output is not None
    return output, lse


def _raised(function: Callable[..., Any], error: Exception) -> str:
    """Where an exception came from, and its last line."""
    last = " ".join(" ".join(traceback.format_exception_only(error)).split())
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    frame = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1] if frames else None)
    return f"raised {last}" + (f" (line {frame.lineno} of {frame.filename})" if frame else "")


def _touched(handed: dict[str, npt.NDArray[Any]], moved: dict[str, Array]) -> list[Fault]:
    """Which inputs the kernel changed."""
    found = [
        name
        for name, before in handed.items()
        if np.ascontiguousarray(before).tobytes() != np.ascontiguousarray(to_numpy(moved[name])).tobytes()
    ]
    text = f"{TOUCHED}: {', '.join(found)}"
    return [Fault(TOUCHED, text, text)] if found else []


def _room(spec: KernelSpec, given: Inputs) -> tuple[Array, outputs.Room]:
    """The array that the kernel is to write its output to, and what it lies in."""
    packed = "cu_seqlens_q" in spec.tables
    shape, _ = sequences.result_shape("output", spec.stored, sequences_of(spec, given), packed=packed)
    made = outputs.room(shape, input_dtype(spec.numerics().output), spec.arrays, spec.device, spec.stored.margin)
    return made.out, made


def _left(moved: dict[str, Any]) -> list[Fault]:
    """What a kernel that is to write its output to an array left out, and what it wrote beside it."""
    if "out" not in moved:
        return []
    found = []
    if (text := outputs.unwritten(moved["out"])) is not None:
        found.append(_returned(text, "out"))
    if outputs.overwritten(moved["out"]):
        text = f"{TOUCHED}: cells around out"
        found.append(Fault(TOUCHED, text, text))
    return found


def _unpacked(spec: KernelSpec, result: Any, out: Array | None) -> list[Array] | Fault:
    """The arrays that `returns` names, or what came instead; None stands for an output that was written to `out`."""
    if out is not None and result is None:
        result = out
    elif out is not None and isinstance(result, tuple | list) and result[0] is None:
        result = (out, *result[1:])
    if len(spec.returns) == 1:
        found = [result]
    elif isinstance(result, tuple | list) and len(result) == len(spec.returns):
        found = list(result)
    else:
        what = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        return _returned(f"returned {what}; returns= says ({', '.join(spec.returns)})")
    for name, x in zip(spec.returns, found, strict=True):
        if not is_array(x) or library_of(x) != spec.arrays:
            return _returned(f"returned {type(x).__name__} as {name}; it must be an array of {spec.arrays}")
        if not dtype_name(x).startswith(("float", "bfloat")):
            return _returned(f"returned {name} of dtype {dtype_name(x)}; it must be a floating-point array")
    return found


def misshapen(spec: KernelSpec, held: Sequences, host: list[npt.NDArray[Any]]) -> Fault | None:
    """A result of the wrong shape."""
    packed = "cu_seqlens_q" in spec.tables
    for name, returned, x in zip(("output", "lse"), spec.returns, host, strict=False):
        expected, _ = sequences.result_shape(name, spec.stored, held, packed=packed)
        if x.shape != expected:
            text = f"returned {returned} of shape {x.shape}; it must have shape {expected}"
            return _returned(text, f"shape of {returned}")
    return None


def _returned(text: str, key: str | None = None) -> Fault:
    """A fault of what was returned."""
    return Fault(RETURNED, text, key or text)
