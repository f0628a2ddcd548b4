"""Sphinx settings. The pages about the public names, the support table and the rooms are made here from the package."""

from __future__ import annotations

import functools
import inspect
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from conventions_page import page as conventions_page  # noqa: E402
from support_table import table  # noqa: E402

import refattn  # noqa: E402

project = "refattn"
author = "the refattn developers"
version = release = refattn.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "examples"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False}
html_title = "refattn"
autodoc_typehints = "none"
numpydoc_show_class_members = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3


def public_names() -> Iterator[tuple[str, str, list[str]]]:
    """Heading, summary and dotted names: what lies at the top first, then room by room what is not there already."""
    items = {name: getattr(refattn, name) for name in refattn.__all__}
    rooms = {name: item for name, item in items.items() if isinstance(item, types.ModuleType)}
    yield "Public names", "", [name for name in items if name not in rooms]
    for name, room in rooms.items():
        summary = (room.__doc__ or "").partition("\n")[0]
        yield f"refattn.{name}", summary, [f"{name}.{member}" for member in room.__all__ if member not in items]


def directive(name: str, *lines: str) -> str:
    """A directive of Sphinx's own language, in a Markdown page."""
    return "\n".join(["```{eval-rst}", f".. {name}", *(f"   {line}".rstrip() for line in lines), "```", ""])


def page_of(name: str) -> str:
    """The page of one public name."""
    item = functools.reduce(getattr, name.split("."), refattn)
    kind = "class" if inspect.isclass(item) else "function"
    members = [":members:", f":exclude-members: {', '.join(getattr(item, '_fields', ()))}"] if kind == "class" else []
    return f"# {name}\n\n" + directive(f"auto{kind}:: refattn.{name}", *members)


def write_pages() -> None:
    """Write docs/_generated: the public names, both tables, the README of every room, and the project's pages."""
    target = DOCS / "_generated"
    shutil.rmtree(target, ignore_errors=True)
    (target / "rooms").mkdir(parents=True)
    (target / "names").mkdir()
    listing = []
    for level, (heading, summary, names) in enumerate(public_names()):
        listing += [f"{'#' if level == 0 else '##'} {heading}", "", summary, ""]
        listing += [directive("currentmodule:: refattn"), directive("autosummary::", ":nosignatures:", "", *names)]
        for name in names:
            (target / "names" / f"{name}.md").write_text(page_of(name), encoding="utf-8")
    listing += ["```{toctree}", ":hidden:", ":glob:", "", "names/*", "```", ""]
    (target / "public.md").write_text("\n".join(listing), encoding="utf-8")
    (target / "support.md").write_text(f"# What each function serves\n\n{table()}\n", encoding="utf-8")
    (target / "conventions.md").write_text(conventions_page(), encoding="utf-8")
    for page in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(DOCS.parent / page, target / page)
    for readme in sorted((DOCS.parent / "refattn").rglob("README.md")):
        name = ".".join(readme.parent.relative_to(DOCS.parent).parts)
        shutil.copy(readme, target / "rooms" / f"{name}.md")


def as_restructured_text(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Mark what docstrings leave bare for the reader at the prompt: the formula as a literal block, bars as bars."""
    formula = len(lines) > 2 and lines[2].startswith("    ")
    literal = False
    for i, line in enumerate(lines):
        opens = line.lstrip().startswith(">>>") or (formula and i == 2)
        literal = opens or (literal and line != "")
        if not literal:
            parts = line.split("``")
            lines[i] = "``".join(part if k % 2 else part.replace("|", "\\|") for k, part in enumerate(parts))
    if formula:
        lines[2:2] = ["::", ""]


def setup(app: object) -> None:
    """Run before numpydoc, which turns the sections into directives."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)


write_pages()
