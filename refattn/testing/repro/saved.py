"""A problem that shows a fault, as two files: the arrays with all that is needed to judge them, and a short script."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import numpy.typing as npt

from refattn import layouts
from refattn._core.arrays import dtype_name, dtype_of, from_numpy, to_numpy
from refattn.contract import Contract
from refattn.layouts import Layout
from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.cases import Case, asked_of, captured, inputs_of, put_together
from refattn.testing.inputs.problems import Inputs
from refattn.testing.laws.observing import Recorder, Violation, cells, right_values
from refattn.testing.repro.scripts import script
from refattn.testing.repro.shrinking import named_check
from refattn.testing.running import run
from refattn.testing.spec import TABLES, KernelSpec

FORMAT = 1
OPERANDS = ("query", "key", "value")
ABOUT = "about"


@dataclass(frozen=True)
class Replayed:
    """What came of a problem that was run again.

    Parameters
    ----------
    passed : bool
        Whether the law holds.
    text : str
        The verdict, or what is wrong.
    check : str
        Name of the check that was run.
    """

    passed: bool
    text: str
    check: str = "check_forward"

    def __str__(self) -> str:
        """The text."""
        return self.text


def save_repro(
    path: str | Path, spec: KernelSpec, problem: Case | Inputs, *, check: str = "check_forward"
) -> tuple[Path, Path]:
    """Save a problem with what is right and what the kernel returned, and a script that shows the difference.

    Parameters
    ----------
    path : str or path
        The bundle, an .npz file; the script lies beside it and is named like it, with .py.
    spec : KernelSpec
        The kernel, which is run once.
    problem : Case or Inputs
        The problem: drawn, captured (see `captured`), or made smaller (see `shrink`).
    check : str, default "check_forward"
        Name of the check that fails on it.

    Returns
    -------
    tuple of path
        The bundle and the script. The script needs NumPy and the kernel alone.

    Raises
    ------
    ValueError
        If `path` does not end in .npz, or `check` is no check.

    Notes
    -----
    A file is written under another name and then renamed, so that there is never half of one. It holds no pickled
    objects: arrays, and a JSON text.

    Examples
    --------
    >>> import tempfile
    >>> import refattn as ra
    >>> from refattn.testing import Case, KernelSpec, replay, save_repro
    >>> spec = KernelSpec(ra.attention)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle, program = save_repro(f"{folder}/seen.npz", spec, Case((3, 5), (4, 4)))
    ...     print(program.name, replay(bundle).passed)
    seen.py True
    """
    bundle = Path(path)
    if bundle.suffix != ".npz":
        raise ValueError(f"save_repro: path must end in .npz; got {os.fspath(path)!r}.")
    named_check("save_repro", check)
    given = inputs_of(spec, problem)
    recorder = Recorder(spec.function)
    outcome = run(_with(spec, recorder), given, explain=True)
    verdict = "\n".join(fault.text for fault in outcome.faults)
    if outcome.verdict is not None:
        verdict = "\n".join([*filter(None, [verdict]), outcome.verdict.text])
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(given, name) for name in OPERANDS}
    numbers: dict[str, dict[str, Any]] = {"asked": {}, "argument": {}, "handed": {}}
    _sort(arrays, numbers, "asked", asked_of(spec, given))
    _sort(arrays, numbers, "argument", cells(spec, given))
    handed = dict(zip(OPERANDS, map(to_numpy, recorder.operands), strict=True)) | recorder.named
    _sort(arrays, numbers, "handed", handed)
    right = right_values(spec, given)
    arrays |= {
        name: _returned(spec, given, x) for name, x in (("expected", right.output), ("bound", right.output_bound))
    }
    result = recorder.result if isinstance(recorder.result, tuple | list) else (recorder.result,)
    if outcome.verdict is not None:
        arrays |= {name: to_numpy(x) for name, x in zip(("output", "lse"), result, strict=False)}
    if given.batch is not None:
        arrays |= {"queries": given.batch.queries, "keys": given.batch.keys}
    function = spec.function
    about = {
        "format": FORMAT,
        "check": check,
        "name": spec.name,
        "kernel": f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', spec.name)}",
        "verdict": verdict,
        "contract": asdict(spec.numerics()),
        "layout": asdict(spec.stored),
        "returns": spec.returns,
        "arrays": spec.arrays,
        "device": None if spec.device is None else str(spec.device),
        "tables": spec.tables,
        "seed": 0 if given.batch is None else given.batch.seed,
        "prefix": None if given.batch is None else given.batch.prefix,
        "numbers": numbers,
        "dtypes": {name: dtype_name(x) for name, x in arrays.items() if x.dtype.kind not in "biuf"},
        "case": repr(problem) if isinstance(problem, Case) else None,
    }
    plain: dict[str, Any] = {
        name: x if x.dtype.kind in "biuf" else x.view(f"u{x.dtype.itemsize}") for name, x in arrays.items()
    }
    stored: dict[str, Any] = {ABOUT: np.array(json.dumps(about)), **plain}
    bundle.parent.mkdir(parents=True, exist_ok=True)
    _write(bundle, lambda file: np.savez(file, **stored))
    program = bundle.with_suffix(".py")
    text = script(bundle.name, about, [name for name in recorder.named if f"handed.{name}" in arrays])
    _write(program, lambda file: file.write(text.encode()))
    return bundle, program


def replay(path: str | Path, spec: KernelSpec | None = None, *, check: str | None = None) -> Replayed:
    """Run a saved problem again; without a kernel, judge the result that was saved with it.

    Parameters
    ----------
    path : str or path
        What `save_repro` made; with a kernel also an .npz file with query, key and value, and arguments that the kernel
        accepts, such as a model's activations.
    spec : KernelSpec, optional
        The kernel.
    check : str, optional
        Name of the check to run. Default: the one that was saved.

    Returns
    -------
    Replayed
        Whether it passed, and a text.

    Raises
    ------
    ValueError
        If the file is no bundle, or holds what does not fit together.
    OSError
        If it cannot be read.

    Examples
    --------
    See `save_repro`.

    >>> from refattn.testing import replay
    >>> replay("nowhere.npz")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.npz'
    """
    about, arrays = _read(path)
    if spec is None:
        if about is None or "output" not in arrays:
            what = "no bundle of save_repro" if about is None else "no result, since the kernel returned none"
            raise ValueError(f"replay: a kernel (module:SPEC) must be named for {path}, which holds {what}.")
        spec, given = _stored(path, about, arrays)
        outcome = run(spec, given, explain=True)
        if outcome.verdict is None:
            raise ValueError(f"replay: {path} holds a result that does not fit its inputs: {outcome.faults[0].text}.")
        return Replayed(outcome.verdict.passed, outcome.verdict.text)
    law = named_check("replay", check or ("check_forward" if about is None else about["check"]))
    given = load_inputs(path, spec)
    try:
        law(spec, given)
    except SkipTest as reason:
        raise ValueError(f"replay: {law.__name__} says nothing about this kernel or problem: {reason}.") from None
    except Violation as error:
        return Replayed(False, f"WRONG: {error}", law.__name__)
    return Replayed(True, f"right: {law.__name__} passes for {spec.name} on {path}", law.__name__)


def load_inputs(path: str | Path, spec: KernelSpec) -> Inputs:
    """Read the problem of a bundle, or of an .npz file with query, key and value, for a kernel.

    Parameters
    ----------
    path : str or path
        The file.
    spec : KernelSpec
        The kernel.

    Returns
    -------
    Inputs
        What the checks, `shrink` and `save_repro` take.

    Raises
    ------
    ValueError
        If the file is no bundle, or the kernel does not accept what it holds.

    Examples
    --------
    >>> import tempfile
    >>> import refattn as ra
    >>> from refattn.testing import Case, KernelSpec, load_inputs, save_repro
    >>> spec = KernelSpec(ra.attention)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bundle, _ = save_repro(f"{folder}/seen.npz", spec, Case((3, 5), (4, 4)))
    ...     print(load_inputs(bundle, spec).query.shape)
    (1, 4, 3, 4)
    """
    about, arrays = _read(path)
    if about is None:
        asked = {name: x for name, x in arrays.items() if name not in OPERANDS}
        return captured(spec, *(arrays[name] for name in OPERANDS), **asked)
    asked = _sorted_out(about, arrays, "asked")
    if refused := [name for name in asked if name not in spec.accepts]:
        raise ValueError(f"replay: {path} holds {', '.join(refused)}, which the kernel does not accept.")
    if bool(about["tables"]) != bool(spec.tables):
        what = (
            "sequences, and the kernel takes no tables" if about["tables"] else "no sequences for the kernel's tables"
        )
        raise ValueError(f"replay: {path} holds {what}.")
    query, key, value = (arrays[name] for name in OPERANDS)
    return put_together(spec, query, key, value, asked, _batch(about, arrays))


def _with(spec: KernelSpec, function: Callable[..., Any]) -> KernelSpec:
    """The spec of another function."""
    return replace(spec, function=function)


def _sort(
    arrays: dict[str, npt.NDArray[Any]],
    numbers: dict[str, dict[str, Any]],
    group: str,
    given: Mapping[str, Any],
) -> None:
    """Arrays into the file, numbers into its text."""
    for name, x in given.items():
        if hasattr(x, "shape"):
            arrays[f"{group}.{name}"] = to_numpy(x)
        else:
            numbers[group][name] = x


def _sorted_out(about: Mapping[str, Any], arrays: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The arrays and numbers of a group."""
    found = {name.partition(".")[2]: x for name, x in arrays.items() if name.startswith(f"{group}.")}
    return {**about["numbers"][group], **found}


def _returned(spec: KernelSpec, given: Inputs, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A logical output in the layout in which the kernel returns it."""
    if "cu_seqlens_q" not in spec.tables:
        ordered: npt.NDArray[Any] = layouts.to_order(x, spec.stored.order)
        return ordered
    assert given.batch is not None
    return to_numpy(layouts.pack_ragged(x, given.batch.queries).packed)


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    """A whole file or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: str | Path) -> tuple[dict[str, Any] | None, dict[str, npt.NDArray[Any]]]:
    """The text and the arrays of a bundle, or None and the arrays of another file."""
    try:
        with open(path, "rb") as file:
            opened = np.load(file, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                raise ValueError(f"replay: {path} must be an .npz file; got a single array.")
            with opened as archive:
                arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"replay: {path} must be an .npz file, and a whole one; reading it failed: {error}.") from None
    except ValueError as error:
        if str(error).startswith("replay:"):
            raise
        raise ValueError(f"replay: {path} must be an .npz file without pickled objects: {error}") from None
    if missing := [name for name in OPERANDS if name not in arrays]:
        raise ValueError(f"replay: {path} must hold query, key and value; got no {', '.join(missing)}.")
    if ABOUT not in arrays:
        return None, arrays
    try:
        about: dict[str, Any] = json.loads(str(arrays.pop(ABOUT)))
        found = about["format"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"replay: {path} holds an entry about that is no text of save_repro.") from None
    if found != FORMAT:
        raise ValueError(f"replay: {path} is of format {found}, and this version of refattn reads format {FORMAT}.")
    for name, dtype in about["dtypes"].items():
        arrays[name] = arrays[name].view(dtype_of(dtype, np))
    return about, arrays


def _batch(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Batch | None:
    """The sequences."""
    if not about["tables"]:
        return None
    prefix = None if about["prefix"] is None else (int(about["prefix"][0]), int(about["prefix"][1]))
    return Batch(arrays["queries"], arrays["keys"], about["seed"], prefix)


def _stored(path: str | Path, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[KernelSpec, Inputs]:
    """A kernel that returns what was saved, and the problem in refattn's words."""
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in about["contract"].items()}
    returns = tuple(about["returns"])
    found = tuple(from_numpy(arrays[name], library="numpy") for name in ("output", "lse")[: len(returns)])

    def kernel(*operands: Any, **named: Any) -> Any:
        return found if len(found) > 1 else found[0]

    heads = (arrays["query"].shape[1], arrays["key"].shape[1])
    tables = tuple(name for name in TABLES if name in about["tables"])
    spec = KernelSpec(
        kernel,
        accepts=tables,
        returns=returns,
        contract=Contract(**fields),
        layout=Layout(**about["layout"]),
        heads=heads,
    )
    query, key, value = (arrays[name] for name in OPERANDS)
    return spec, Inputs(query, key, value, _sorted_out(about, arrays, "argument"), {}, _batch(about, arrays))
