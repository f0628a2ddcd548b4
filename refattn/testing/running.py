"""One run of a kernel: fresh arrays of its own library, the call, and what came back."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._call import Call, prepare
from refattn._core.arrays import Array, dtype_name, from_numpy, is_array, library_of, to_numpy
from refattn.testing.checking import LSE_BASES, verdict_of
from refattn.testing.judge import Terms
from refattn.testing.problems import Inputs
from refattn.testing.sampling import SAMPLE, Rows, choose_rows, work
from refattn.testing.spec import ARGUMENTS, KernelSpec
from refattn.testing.verdict import Verdict

# Multiply-adds up to which all rows of one problem among many are checked.
MOST_WORK = 4e9

FUNCTION = "check_kernel"


class Fault(NamedTuple):
    """What a kernel did that makes its values beside the point."""

    kind: str
    text: str
    key: str  # faults of one key are one finding


class Outcome(NamedTuple):
    """What came of one run."""

    verdict: Verdict | None
    faults: tuple[Fault, ...]


def run(spec: KernelSpec, given: Inputs, *, explain: bool = True) -> Outcome:
    """Call the kernel on fresh copies, and judge what it returns; look for symptoms where asked to."""
    call = prepared(spec, given)
    operands = [_moved(spec, x, spec.layout) for x in (given.query, given.key, given.value)]
    named = {name: _moved(spec, x, "bhld") if isinstance(x, np.ndarray) else x for name, x in given.passed.items()}
    try:
        result = spec.function(*operands, **named)
    except Exception as error:
        text = _raised(spec.function, error)
        return Outcome(None, (Fault("raised", text, text),))
    faults = list(_touched(spec, given, operands, named))
    arrays = _unpacked(spec, result)
    if isinstance(arrays, Fault):
        return Outcome(None, (*faults, arrays))
    contract = spec.numerics()
    if dtype_name(arrays[0]) != contract.output:
        text = f"returned an output of {dtype_name(arrays[0])}; the contract says {contract.output}"
        faults.append(_returned(text))
    host = [to_numpy(x) for x in arrays]
    if (wrong := _misshapen(spec, call, host)) is not None:
        return Outcome(None, (*faults, wrong))
    output = np.swapaxes(host[0], -2, -3) if spec.layout == "blhd" else host[0]
    bound: Callable[..., Any] = spec.method.capabilities.bound  # type: ignore[attr-defined]
    terms = Terms(contract, bound, LSE_BASES["2" if spec.returns[-1] == "lse2" else "e"])
    lse = host[1] if len(host) > 1 else None
    verdict = verdict_of(call, _rows(call), terms, output, lse, explain=explain)
    return Outcome(verdict, tuple(faults))


def prepared(spec: KernelSpec, given: Inputs) -> Call:
    """The call of the method that the kernel is held against."""
    arguments: dict[str, Any] = dict.fromkeys(ARGUMENTS)
    arguments["is_causal"] = False
    arrays = {name: to_numpy(x) if is_array(x) else x for name, x in given.arguments.items()}
    return prepare(FUNCTION, given.query, given.key, given.value, dtype="float64", **{**arguments, **arrays})


def _rows(call: Call) -> Rows:
    """All rows of a small problem, a sample of a large one."""
    L, S = call.score.lengths
    rows = int(np.prod(call.lead)) * L
    cheap = work(rows, S, call.query.shape[-1], call.value.shape[-1]) <= MOST_WORK
    return choose_rows(FUNCTION, call, None if cheap else SAMPLE)


def _moved(spec: KernelSpec, x: npt.NDArray[Any], layout: str) -> Array:
    """A copy of the kernel's own, C-ordered in its layout."""
    ordered = np.array(np.swapaxes(x, -2, -3) if layout == "blhd" else x, order="C", copy=True)
    return from_numpy(ordered, library=spec.arrays, device=spec.device)


def _raised(function: Callable[..., Any], error: Exception) -> str:
    """Where an exception came from, and its last line."""
    last = " ".join(" ".join(traceback.format_exception_only(error)).split())
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    frame = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1] if frames else None)
    return f"raised {last}" + (f" (line {frame.lineno} of {frame.filename})" if frame else "")


def _touched(spec: KernelSpec, given: Inputs, operands: list[Array], named: dict[str, Any]) -> list[Fault]:
    """Which inputs the kernel changed."""
    pairs = [
        *zip(("query", "key", "value"), (given.query, given.key, given.value), operands, strict=True),
        *((name, x, named[name]) for name, x in given.passed.items() if isinstance(x, np.ndarray)),
    ]
    found = []
    for name, before, after in pairs:
        layout = spec.layout if name in ("query", "key", "value") else "bhld"
        asked = np.ascontiguousarray(np.swapaxes(before, -2, -3) if layout == "blhd" else before)
        if asked.tobytes() != np.ascontiguousarray(to_numpy(after)).tobytes():
            found.append(name)
    text = f"changed its inputs: {', '.join(found)}"
    return [Fault("changed its inputs", text, text)] if found else []


def _unpacked(spec: KernelSpec, result: Any) -> list[Array] | Fault:
    """The arrays that `returns` names, or what came instead."""
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


def _misshapen(spec: KernelSpec, call: Call, host: list[npt.NDArray[Any]]) -> Fault | None:
    """A result of the wrong shape."""
    *batch, H = call.lead
    L, Ev = call.score.lengths[0], call.value.shape[-1]
    output = (*batch, L, H, Ev) if spec.layout == "blhd" else (*batch, H, L, Ev)
    for name, expected, x in zip(spec.returns, (output, (*call.lead, L)), host, strict=False):
        if x.shape != expected:
            return _returned(f"returned {name} of shape {x.shape}; it must have shape {expected}", f"shape of {name}")
    return None


def _returned(text: str, key: str | None = None) -> Fault:
    """A fault of what was returned."""
    return Fault("returned", text, key or text)
