"""The command line: check kernels, replay problems, compare digests, list what there is. It parses and prints."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from refattn import contract, data, masks
from refattn._core.choice import Capabilities
from refattn.oracle.hashing import digest
from refattn.oracle.named import NAMES, named_problem
from refattn.testing import KernelSpec, check_kernel, load_inputs, replay, save_repro, shrink
from refattn.testing.naming import named, named_spec
from refattn.testing.spec import LAYOUTS, LENGTHS, LIBRARIES
from refattn.testing.stored import check_file

# The tuple of public names and the version; all else comes from the rooms below.
refattn: Any = importlib.import_module("refattn")

RIGHT, WRONG, COULD_NOT_RUN = 0, 1, 2
PACKAGES = ("numpy", "scipy", "array-api-compat", "ml_dtypes", "torch", "jax", "cupy", "numba", "dask", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 0 right, 1 wrong, 2 could not run."""
    options = _parser().parse_args(argv)
    try:
        code: int = options.command(options)
    except (ImportError, AttributeError, OSError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"refattn: could not run: {reason}", file=sys.stderr)
        return COULD_NOT_RUN
    return code


def _parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(prog="refattn", description="The ground truth for attention.")
    parser.add_argument("--version", action="version", version=refattn.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="judge a kernel, or a stored result",
        description="Judge a kernel by the bound that its declared numerics imply. "
        "Exit code: 0 right, 1 wrong, 2 could not run.",
    )
    check.set_defaults(command=_check)
    add = check.add_argument
    add("kernel", nargs="?", metavar="module:NAME", help="a KernelSpec, or a function of (query, key, value)")
    add("--arrays", choices=LIBRARIES, help="library of the arrays that the kernel gets")
    add("--device", help="device of these arrays, as the library writes it")
    add("--layout", choices=LAYOUTS, help="order of the axes")
    add("--heads", nargs=2, type=int, metavar=("H", "Hk"), help="query heads and key heads")
    add("--dims", nargs="+", type=_dims, metavar="E[,Ev]", help="numbers of features")
    add("--returns", nargs="+", choices=("output", "lse", "lse2"), help="what the kernel returns, in order")
    add(
        "--contract",
        type=_contract,
        metavar="NAME[:DTYPE]",
        help="flash:DTYPE, eager:DTYPE, tf32, fp8, or DTYPE: flash",
    )
    add("--causal", choices=("lower_right", "upper_left"), help="the kernel is causal, anchored there")
    add("--window", nargs=2, type=int, metavar=("L", "R"), help="keys seen before and behind the diagonal; -1 all")
    add(
        "--input",
        metavar="FILE.npz",
        help="query, key, value [mask, bias, sinks] to run on, or to judge output [lse] by",
    )
    add("--quick", action="store_true", help="fewer shapes")
    add("--seed", type=int, default=0, help="seed of the drawn inputs")
    add("--json", action="store_true", help="print the report as JSON")
    _add_replay(commands)
    about = "compute the golden digests again: correctly rounded results that are the same on every machine"
    digests = commands.add_parser(
        "digest", help=about, description=f"{about.capitalize()}. Exit code: 0 all are, 1 one differs."
    )
    digests.add_argument("names", nargs="*", metavar="NAME", help=f"problems, all by default: {', '.join(NAMES)}")
    digests.set_defaults(command=_digest)
    for name, command, about in (
        ("list", _list, "what each public function serves"),
        ("info", _info, "versions, BLAS, and what is installed"),
    ):
        commands.add_parser(name, help=about, description=about).set_defaults(command=command)
    return parser


def _add_replay(commands: Any) -> None:
    """The options of replay."""
    about = "run a saved problem again"
    command = commands.add_parser(
        "replay",
        help=about,
        description=f"{about.capitalize()}, or judge the result that was saved with it. "
        "Exit code: 0 right, 1 wrong, 2 could not run.",
    )
    command.set_defaults(command=_replay)
    command.add_argument("file", metavar="FILE.npz", help="a bundle, or query, key, value and arguments")
    command.add_argument("kernel", nargs="?", metavar="module:SPEC", help="the kernel to run")
    command.add_argument("--check", metavar="NAME", help="the law to check, instead of the one that was saved")
    command.add_argument("--shrink", metavar="OUT.npz", help="make the problem smaller, and save it there")


def _dims(text: str) -> int | tuple[int, int]:
    """E, or E,Ev."""
    sizes = [int(part) for part in text.split(",")]
    if len(sizes) > 2:
        raise argparse.ArgumentTypeError(f"must be E or E,Ev; got {text!r}")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def _contract(text: str) -> contract.Contract:
    """A preset by name, as it is typed or as a verdict prints it."""
    makers = (contract.flash, contract.eager, contract.fp8, contract.mxfp8, contract.nvfp4, contract.tf32)
    presets = {make.__name__: make for make in makers}
    name, *rest = re.findall(r"\w+", text.replace("output=", "")) or [""]
    dtype = rest[0] if rest else None
    try:
        if name not in presets:
            return contract.flash(name)
        make: Any = presets[name]
        made: contract.Contract = make(dtype) if dtype else make()
        return made
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check(options: argparse.Namespace) -> int:
    """Judge a kernel or a file."""
    names = ("arrays", "device", "layout", "heads", "dims", "returns", "contract")
    fields = {name: x for name, x in vars(options).items() if name in names and x is not None}
    mask = _mask(options)
    if options.kernel is None:
        if options.input is None:
            raise ValueError("check: a kernel (module:NAME) or --input FILE.npz must be given.")
        arguments = {name: x for name, x in fields.items() if name in ("layout", "contract")}
        if "lse2" in fields.get("returns", ()):
            arguments["lse_base"] = "2"
        answer: Any = check_file(None, options.input, mask=mask, **arguments)
    else:
        spec = _spec(options, fields, mask)
        if options.input is None:
            answer = check_kernel(spec, quick=options.quick, seed=options.seed)
        else:
            answer = check_file(spec, options.input)
    print(answer.to_json() if options.json else answer.text)
    return RIGHT if answer.passed else WRONG


def _spec(options: argparse.Namespace, fields: dict[str, Any], mask: masks.Mask | None) -> KernelSpec:
    """The kernel that was named, with the options in place of its own fields."""
    kernel = named("check", options.kernel)
    if mask is not None:
        fields["computes"] = {"mask": mask}
        if options.causal is None and not isinstance(kernel, KernelSpec):
            # A window that is anchored nowhere has a meaning for L = S only.
            fields["lengths"] = tuple(sorted({(max(n), max(n)) for n in LENGTHS}))
    return replace(kernel, **fields) if isinstance(kernel, KernelSpec) else KernelSpec(kernel, **fields)


def _replay(options: argparse.Namespace) -> int:
    """Run a saved problem again."""
    spec = None if options.kernel is None else named_spec("replay", options.kernel)
    answer = replay(options.file, spec, check=options.check)
    print(answer)
    if options.shrink is not None and not answer.passed:
        if spec is None:
            raise ValueError("replay: --shrink needs the kernel: module:SPEC.")
        smaller = shrink(spec, load_inputs(options.file, spec), check=answer.check)
        for path in save_repro(options.shrink, spec, smaller, check=answer.check):
            print(f"saved {path}")
    return RIGHT if answer.passed else WRONG


def _mask(options: argparse.Namespace) -> masks.Mask | None:
    """What --causal and --window say."""
    causal = None if options.causal is None else masks.causal(anchor=options.causal)
    if options.window is None:
        return causal
    left, right = (None if n == -1 else n for n in options.window)
    window = masks.window(left, right, anchor=options.causal)
    return window if causal is None else causal & window


def _digest(options: argparse.Namespace) -> int:
    """Compute the golden digests again, and print whether they agree."""
    golden, code = data.digests(), RIGHT
    problems = [(name, named_problem(name)) for name in options.names or NAMES]
    for name, problem in problems:
        found = digest(**problem)
        if found == golden[name]:
            print(f"{name:<20} {found} ok")
        else:
            code = WRONG
            print(f"{name:<20} {found} differs from {golden[name]}")
    return code


def _list(options: argparse.Namespace) -> int:
    """Print what each public function serves."""
    records = [getattr(getattr(refattn, name), "capabilities", None) for name in refattn.__all__]
    head = ("function", "method", "implementations", "namespaces", "dtypes", "time", "memory", "bound")
    rows = [
        (
            record.function,
            record.method,
            ", ".join(record.implementations),
            ", ".join(record.namespaces),
            ", ".join(record.dtypes),
            record.time,
            record.memory,
            "none" if record.bound is None else "proven",
        )
        for record in records
        if isinstance(record, Capabilities)
    ]
    for row in rows:
        print(row[0])
        print(*(f"  {name:<16} {cell}" for name, cell in zip(head[1:], row[1:], strict=True)), sep="\n")
    return RIGHT


def _info(options: argparse.Namespace) -> int:
    """Print versions, BLAS, and what is installed."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"refattn          {refattn.__version__}")
    print(f"python           {platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors")
    print(f"BLAS of numpy    {blas['name']} {blas['version']}")
    for name in PACKAGES:
        try:
            print(f"{name:<16} {version(name)}")
        except PackageNotFoundError:
            print(f"{name:<16} not installed")
    return RIGHT
