"""The layers of the house, held against every import in the package, and the sizes that keep a file one thing.

The rules are a pure function from a path and its source to a list of breaches, so that each rule is shown to fail here
on a planted breach.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the lowest to the highest: a room may import every room of an earlier row, and none of its own.
ROWS = (
    ("_core",),
    ("masks", "biases", "transforms", "data"),
    ("layouts", "conventions", "_arguments"),
    ("contract",),
    ("_call",),
    ("methods",),
    ("_cost",),
    ("oracle",),
    ("testing",),
    ("conformance",),
    ("analysis", "scale"),
    ("_cli",),
    ("__main__",),
)
# Rooms that stand on less than all rows below them.
STANDS_ON = {
    "data": {"_core"},
    "transforms": {"_core"},
    "oracle": {"_core", "masks", "biases", "_arguments"},
    "__init__": set(),
    "_pytest_plugin": set(),
}
PLAIN_FORMS = ("reference.py", "gradient.py")
PLAIN_IMPORTS = ("__future__", "collections.abc", "math", "typing", "refattn._core")
COMPILED = ("forward", "backward", "decode")  # of a folder kernel_*: each stands by itself
MAX_LINES = 400
MAX_REFERENCE_LINES = 120
MAX_INTERFACE_CODE = 60


def statements(path: str, source: str) -> Iterator[ast.AST]:
    """Every node of a module; without what the lazy top module tells type checkers, its names a second time."""
    tree = ast.parse(source)
    if path == "refattn/__init__.py":
        tree.body = [node for node in tree.body if ast.unparse(getattr(node, "test", ast.Pass())) != "TYPE_CHECKING"]
    return ast.walk(tree)


def imported(path: str, source: str) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever the statement stands; relative ones resolved."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in statements(path, source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_below(name: str, package: str) -> bool:
    """Whether a dotted name is the package or something in it."""
    return name == package or name.startswith(package + ".")


def room_of(path: str) -> str:
    """The room that a file of the package lies in."""
    return path.split("/")[1].removesuffix(".py")


def allowed_rooms(room: str) -> set[str]:
    """The rooms that a room may import."""
    if room in STANDS_ON:
        return STANDS_ON[room]
    row = next((i for i, names in enumerate(ROWS) if room in names), None)
    return set() if row is None else {name for names in ROWS[:row] for name in names}


def breaches(path: str, source: str) -> list[str]:
    """What a file of the package imports against the layers, one line for each."""
    room, parts, found = room_of(path), path.split("/"), []
    if not any(room in row for row in ROWS) and room not in STANDS_ON:
        found.append(f"{path}: {room} is no room of the house")
    for name in imported(path, source):
        if is_below(name, "refattn"):
            target = [*name.split("."), ""][1]
            if target not in allowed_rooms(room) | {room}:
                found.append(f"{path}: {room} must not import {name}")
            elif target == "methods" and not method_allowed(parts, name):
                found.append(f"{path}: {room} must not import the method {name}")
        elif is_below(name, "array_api_compat") and path != "refattn/_core/arrays.py":
            found.append(f"{path}: only refattn/_core/arrays.py imports array_api_compat")
        elif room == "_pytest_plugin" and not is_below(name, "pytest") and name != "__future__.annotations":
            found.append(f"{path}: the pytest plugin imports pytest only, not {name}")
        if parts[-1] in PLAIN_FORMS and not any(is_below(name, one) for one in PLAIN_IMPORTS):
            found.append(f"{path}: a plain form imports {', '.join(PLAIN_IMPORTS)} only, not {name}")
        if any(part.startswith("kernel_") for part in parts) and not kernel_allowed(parts, name):
            found.append(f"{path}: a kernel imports no reference and no other kernel, not {name}")
    return found


def method_allowed(parts: list[str], name: str) -> bool:
    """Whether a file may import this name of refattn.methods: a method its own, testing the exact one, the top all."""
    if parts[1] == "methods":
        return len(parts) > 3 and is_below(name, f"refattn.methods.{parts[2]}")
    return parts[1] != "testing" or is_below(name, "refattn.methods.exact")


def kernel_allowed(parts: list[str], name: str) -> bool:
    """Whether a kernel's file may import a name: no plain form, and of kernels what its own Python side is made of.

    A folder's compiled files are those that `__init__.py` and what it calls bring together: they import none of it.
    """
    if any(part in ("reference", "gradient") for part in name.split(".")):
        return False
    own = ".".join(parts[:-1])
    inside = is_below(name, own) and len(parts) > 4
    of_kernels = any(part.startswith("kernel_") for part in name.split("."))
    return not of_kernels or (inside and parts[-1].removesuffix(".py") not in COMPILED)


def code_lines(source: str) -> int:
    """Lines that carry code: not blank, not comment, not docstring."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in silent
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - docstrings)


def oversizes(path: str, source: str) -> list[str]:
    """What makes a file more than one thing, one line for each."""
    name, length, found = path.rpartition("/")[2], len(source.splitlines()), []
    if length > MAX_LINES:
        found.append(f"{path}: {length} lines; at most {MAX_LINES}")
    if name == "reference.py" and length > MAX_REFERENCE_LINES:
        found.append(f"{path}: {length} lines; a reference has at most {MAX_REFERENCE_LINES}")
    if name == "interface.py" and code_lines(source) > MAX_INTERFACE_CODE:
        found.append(f"{path}: {code_lines(source)} lines of code; an interface has at most {MAX_INTERFACE_CODE}")
    return found


def files(*folders: str, endings: tuple[str, ...] = (".py",)) -> Iterator[tuple[str, str]]:
    """Path from the root, and text, of every source file in the folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            relative = path.relative_to(ROOT)
            if path.suffix in endings and not any(part.startswith(("_build", "_generated")) for part in relative.parts):
                yield relative.as_posix(), path.read_text(encoding="utf-8")


def test_imports_keep_to_the_layers() -> None:
    assert [line for path, source in files("refattn") for line in breaches(path, source)] == []


def test_files_keep_to_their_sizes() -> None:
    every = files("refattn", "tests", "benchmarks", "docs", endings=(".py", ".cu", ".cuh"))
    assert [line for path, source in every for line in oversizes(path, source)] == []


PLANTED = {
    "a lower room imports a higher one": ("refattn/_core/state.py", "from refattn.masks import causal"),
    "a room imports one of its own row": ("refattn/biases.py", "import refattn.masks"),
    "inside a function": ("refattn/masks/base.py", "def f():\n    from refattn import contract"),
    "relative": ("refattn/masks/base.py", "from ..contract import flash"),
    "relative, the package itself": ("refattn/masks/base.py", "from .. import contract"),
    "for type checkers only": (
        "refattn/_core/score.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from refattn.masks import Mask",
    ),
    "a public name instead of its room": ("refattn/testing/check.py", "from refattn import attention"),
    "the whole package": ("refattn/testing/check.py", "import refattn as ra"),
    "a method imports another": ("refattn/methods/flash/interface.py", "from refattn.methods.exact import reference"),
    "a method imports another, relative": ("refattn/methods/flash/interface.py", "from ..exact import reference"),
    "testing imports a method that is not exact": ("refattn/testing/spec.py", "from refattn.methods import flash"),
    "the oracle imports a method": ("refattn/oracle/exact.py", "from refattn.methods.exact import reference"),
    "the oracle imports a contract": ("refattn/oracle/exact.py", "from refattn.contract import Contract"),
    "data imports testing": ("refattn/data/__init__.py", "from refattn.testing import check"),
    "a contract imports the door": ("refattn/contract/bound.py", "from refattn._call import Call"),
    "the top module imports a room": ("refattn/__init__.py", "from refattn.masks import causal"),
    "the pytest plugin imports NumPy": ("refattn/_pytest_plugin.py", "import numpy"),
    "the pytest plugin imports a room": ("refattn/_pytest_plugin.py", "from refattn.testing import check"),
    "a second importer of array_api_compat": ("refattn/_call.py", "from array_api_compat import device"),
    "a reference imports NumPy": ("refattn/methods/exact/reference.py", "import numpy as np"),
    "a gradient imports masks": ("refattn/methods/exact/gradient.py", "from refattn.masks import causal"),
    "a kernel imports its reference": (
        "refattn/methods/flash/kernel_numba/forward.py",
        "from refattn.methods.flash.reference import flash_attention",
    ),
    "a kernel imports another": (
        "refattn/methods/flash/kernel_cuda.py",
        "from refattn.methods.flash.kernel_numba import forward",
    ),
    "a compiled file imports another": (
        "refattn/methods/flash/kernel_numba/forward.py",
        "from refattn.methods.flash.kernel_numba import plan",
    ),
    "a kernel's Python side imports another method's kernel": (
        "refattn/methods/flash/kernel_numba/plan.py",
        "from refattn.methods.linear.kernel_numba import forward",
    ),
    "a room that the house does not have": ("refattn/utils.py", "import math"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_breach_is_found(case: str) -> None:
    path, source = PLANTED[case]
    assert breaches(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("refattn/methods/exact/reference.py", "import math\nfrom refattn._core.state import merge"),
        ("refattn/methods/exact/interface.py", "from refattn.methods.exact.reference import attention"),
        ("refattn/methods/exact/interface.py", "from .reference import attention"),
        ("refattn/testing/check.py", "from refattn.methods.exact import attention\nfrom refattn import masks, data"),
        ("refattn/methods/flash/kernel_numba/forward.py", "import numba\nfrom refattn._core import numba_math"),
        ("refattn/methods/flash/kernel_numba/__init__.py", "from refattn.methods.flash.kernel_numba import forward"),
        ("refattn/_core/arrays.py", "from array_api_compat import device"),
        ("refattn/_pytest_plugin.py", "import pytest"),
        ("refattn/__init__.py", "if TYPE_CHECKING:\n    from refattn import masks"),
        ("refattn/analysis/compare.py", "from refattn.methods.performer import performer_attention"),
    ],
)
def test_an_import_that_the_layers_allow_is_let_through(path: str, source: str) -> None:
    assert breaches(path, source) == []


@pytest.mark.parametrize(
    ("path", "source", "most"),
    [
        ("refattn/masks/base.py", "x = 1\n", MAX_LINES),
        ("refattn/methods/exact/reference.py", "x = 1\n", MAX_REFERENCE_LINES),
        ("refattn/methods/exact/interface.py", "x = 1\n", MAX_INTERFACE_CODE),
    ],
)
def test_one_line_too_many_is_found(path: str, source: str, most: int) -> None:
    assert oversizes(path, source * most) == []
    assert oversizes(path, source * (most + 1)) != []


def test_code_lines_leave_out_docstrings_comments_and_blanks() -> None:
    source = '"""Doc\n\nmore."""\n\n# why\ndef f(\n    x,\n):\n    """Doc."""\n    return """a\nb"""\n'
    assert code_lines(source) == 5
