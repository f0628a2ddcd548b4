"""Inputs, and results, that lie in an .npz file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import layouts, masks
from refattn._core.arrays import dtype_name, dtype_of, round_to
from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.problems import Inputs, input_dtype, unvaried
from refattn.testing.kernel import check_inputs
from refattn.testing.report import Report
from refattn.testing.spec import ARGUMENTS, KernelSpec
from refattn.testing.verdict.checking import check
from refattn.testing.verdict.record import Verdict

OPERANDS = ("query", "key", "value")
ARRAYS = (*OPERANDS, "output", "lse", "mask", "bias", "sinks")


def check_file(spec: KernelSpec | None, path: str, **arguments: Any) -> Report | Verdict:
    """Run a kernel on the inputs in a file; without one, judge the result that the file holds.

    The file's arrays are named query, key, value and, where there are any, mask, bias, sinks, output, lse, in the
    layout of the spec or the arguments; for a kernel that takes tables they are sequences of full length, which are
    packed or paged for it. Arrays that NumPy has no dtype for are taken for the contract's.
    """
    found = _read(path)
    if spec is None:
        if "output" not in found:
            raise ValueError(f"check: {path} must hold output where no kernel is named; got {', '.join(found)}.")
        contract = arguments.get("contract")
        formats = dict.fromkeys(ARRAYS) if contract is None else _formats(contract)
        # A mask that was asked for and one in the file both hold.
        if "mask" in found and arguments.get("mask") is not None:
            found["mask"] = masks.array(found["mask"]) & arguments.pop("mask")
        return check(**{**arguments, **{name: _typed(path, name, x, formats[name]) for name, x in found.items()}})
    named = [name for name in found if name in ARGUMENTS]
    if refused := [name for name in named if name not in spec.accepts]:
        raise ValueError(f"check: {path} holds {', '.join(refused)}, which the kernel does not accept.")
    if spec.contract is None and found["query"].dtype.kind == "f":
        # The file says what none declared.
        spec = replace(spec, contract=dtype_name(found["query"]))
    formats = _formats(spec.numerics())
    arrays = {name: _typed(path, name, x, formats[name]) for name, x in found.items()}
    arrays = {name: _rounded(x, formats[name]) if name in OPERANDS else x for name, x in arrays.items()}
    arrays = {name: layouts.from_order(x, spec.stored.order) if name in OPERANDS else x for name, x in arrays.items()}
    query, key, value = (arrays[name] for name in OPERANDS)
    passed = unvaried(spec, query.shape[-1]) | {name: arrays[name] for name in named}
    own = spec.arguments(query.shape[-2], key.shape[-2])
    batch = None
    if spec.tables:
        if query.ndim != 4:
            raise ValueError(
                f"check: query in {path} must have 4 axes (B, H, L, E) for a kernel that accepts "
                f"{', '.join(spec.tables)}; got {query.shape}."
            )
        batch = Batch(np.full(len(query), query.shape[2]), np.full(len(query), key.shape[2]))
    given = Inputs(query, key, value, own | {name: arrays[name] for name in named}, passed, batch)
    return check_inputs(spec, given, path)


def _read(path: str) -> dict[str, Any]:
    """The arrays of a file, which must be arrays of numbers and named as this judge knows them."""
    opened = np.load(path, allow_pickle=False)
    if isinstance(opened, np.ndarray):
        raise ValueError(f"check: {path} must be an .npz file with query, key and value; got a single array.")
    with opened as archive:
        names = list(archive.files)
        if missing := [name for name in OPERANDS if name not in names]:
            raise ValueError(f"check: {path} must hold query, key and value; got no {', '.join(missing)}.")
        if unknown := [name for name in names if name not in ARRAYS]:
            raise ValueError(f"check: {path} must hold only {', '.join(ARRAYS)}; got {', '.join(unknown)}.")
        return {name: archive[name] for name in names}


def _formats(contract: Any) -> dict[str, str | None]:
    """The dtype that a contract gives to each array of a file."""
    formats = {name: input_dtype(getattr(contract, name)) for name in (*OPERANDS, "output", "lse")}
    return {**formats, "mask": None, "bias": formats["query"], "sinks": formats["query"]}


def _typed(path: str, name: str, x: Any, dtype: str | None) -> Any:
    """An array whose dtype NumPy stored as bare bytes, in the dtype that the contract names."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "V":
        return x
    target = None if dtype is None else dtype_of(dtype, np)
    if target is None or np.dtype(target).itemsize != x.dtype.itemsize:
        raise ValueError(
            f"check: {name} in {path} has a dtype of {x.dtype.itemsize} bytes that NumPy does not know; the contract "
            "must name it."
        )
    return x.view(target)


def _rounded(x: npt.NDArray[Any], dtype: str | None) -> npt.NDArray[Any]:
    """An operand in the contract's dtype."""
    if dtype is None or dtype_name(x) == dtype:
        return x
    rounded: npt.NDArray[Any] = round_to(x.astype(np.float64), dtype, np)
    return rounded
