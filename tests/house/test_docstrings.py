"""Docstrings of everything public: complete by numpydoc's rules and the house's own, and their examples run."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import ERROR_MSGS, validate

import refattn

ROOT = Path(__file__).parents[2]


def members(path: str, item: object) -> Iterator[tuple[str, object]]:
    """A public object and the public objects in it, each with its dotted path."""
    yield path, item
    if isinstance(item, types.ModuleType):
        for name in getattr(item, "__all__", ()):
            yield from members(f"{path}.{name}", getattr(item, name))
    elif inspect.isclass(item):
        for name, member in vars(item).items():
            if not name.startswith("_") and inspect.isroutine(member) | isinstance(member, property):
                yield f"{path}.{name}", getattr(item, name)


PUBLIC = {path: item for name in refattn.__all__ for path, item in members(f"refattn.{name}", getattr(refattn, name))}
FUNCTIONS = [path for path, item in PUBLIC.items() if inspect.isfunction(item) and "." not in item.__qualname__]
METHODS = [path for path in FUNCTIONS if hasattr(PUBLIC[path], "capabilities")]


def checks() -> set[str]:
    """The numpydoc checks that the project file leaves on, and those of completeness."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["numpydoc_validation"]
    assert settings["checks"][0] == "all"
    return set(ERROR_MSGS) - set(settings["checks"]) | {"GL08", "PR01", "PR02", "RT01", "YD01"}


def is_record(item: object) -> bool:
    """Whether it is a class of named fields, whose docstring may list them as parameters or as attributes."""
    return inspect.isclass(item) and (dataclasses.is_dataclass(item) or hasattr(item, "_fields"))


def parse(path: str) -> NumpyDocString:
    """The sections of a public object's docstring."""
    return NumpyDocString(inspect.getdoc(PUBLIC[path]))


def formula_lines(doc: str) -> list[str]:
    """The indented block that follows the summary at once, before any prose."""
    after = iter(inspect.cleandoc(doc).split("\n\n", 1)[1].lstrip("\n").splitlines())
    block = []
    for line in after:
        if not line.startswith("    ") and line:
            break
        block.append(line)
    return [line for line in block if line]


@pytest.mark.parametrize("path", [path for path, item in PUBLIC.items() if isinstance(item, types.ModuleType)])
def test_a_module_says_what_it_is_for(path: str) -> None:
    assert re.match(r"[A-Z].+\.$", inspect.getdoc(PUBLIC[path]).partition("\n")[0])


@pytest.mark.parametrize("path", [path for path, item in PUBLIC.items() if not isinstance(item, types.ModuleType)])
def test_numpydoc_finds_no_fault(path: str) -> None:
    left_on = checks() - ({"PR01"} if is_record(PUBLIC[path]) else set())
    assert [(code, text) for code, text in validate(path)["errors"] if code in left_on] == []


@pytest.mark.parametrize("path", [path for path, item in PUBLIC.items() if is_record(item)])
def test_a_record_tells_each_of_its_fields(path: str) -> None:
    sections = parse(path)
    told = [item.name for item in [*sections["Parameters"], *sections["Attributes"]]]
    assert [name for field in told for name in field.split(", ")] == list(inspect.signature(PUBLIC[path]).parameters)


@pytest.mark.parametrize("path", FUNCTIONS)
def test_a_function_shows_an_example(path: str) -> None:
    assert ">>> " in "\n".join(parse(path)["Examples"])


@pytest.mark.parametrize("path", METHODS)
def test_a_method_opens_with_its_formula(path: str) -> None:
    formula = formula_lines(inspect.getdoc(PUBLIC[path]))
    assert formula
    assert "=" in formula[0]


@pytest.mark.parametrize("path", METHODS)
def test_a_method_tells_shapes_errors_cost_numerics_and_sources(path: str) -> None:
    sections = parse(path)
    notes = "\n".join(sections["Notes"])
    assert sections["Raises"]
    assert "Cost: " in notes
    assert "Numerics: " in notes
    assert sections["References"]
    told = [f"{item.name} : {item.type}" for item in [*sections["Parameters"], *sections["Returns"]]]
    arrays = [line for line in told if re.search(r"\barrays?\b", line)]
    assert arrays
    assert [line for line in arrays if not re.search(r"\([^()]*\b[A-Z]", line)] == []


def test_prose_before_the_formula_is_seen() -> None:
    assert formula_lines("Summary.\n\n    O = V\n\nProse.") == ["    O = V"]
    assert formula_lines("Summary.\n\nProse.\n\n    O = V") == []


def module_names() -> list[str]:
    """Every module of the package but the one that runs the program."""
    found = pkgutil.walk_packages(refattn.__path__, "refattn.")
    return ["refattn", *(module.name for module in found if not module.name.endswith("__main__"))]


def examples(name: str) -> list[doctest.DocTest]:
    """The examples in a module's docstrings."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "refattn":
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", module_names())
def test_examples_run(name: str) -> None:
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST)
    output: list[str] = []
    for test in examples(name):
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_a_wrong_example_is_seen() -> None:
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=lambda text: None)
    assert runner.failures == 1
