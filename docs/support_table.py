"""The table of what every public function serves, made from `capabilities`.

``python docs/support_table.py`` writes it into README.md, between the two marks.
"""

from __future__ import annotations

from pathlib import Path

import refattn

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- support table: made by docs/support_table.py -->", "<!-- end of support table -->"
HEAD = ("function", "forms", "arrays", "dtypes", "computes in", "time", "memory", "proven bound")


def table() -> str:
    """The table in Markdown, one row for each public function that declares capabilities."""
    public = [getattr(refattn, name) for name in refattn.__all__]
    rows = [
        (
            f"`{declared.function}`",
            ", ".join(form_cell(declared, form) for form in declared.implementations),
            ", ".join(declared.namespaces),
            ", ".join(declared.dtypes),
            declared.accumulation,
            declared.time,
            declared.memory,
            "no" if declared.bound is None else "yes",
        )
        for declared in (getattr(item, "capabilities", None) for item in public)
        if isinstance(declared, refattn.Capabilities)
    ]
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def form_cell(declared: refattn.Capabilities, form: str) -> str:
    """A form's name, with its array libraries where it serves fewer than the function."""
    return f"{form} ({', '.join(declared.narrower[form])} only)" if form in declared.narrower else form


def with_table(text: str) -> str:
    """A text with what lies between its marks replaced by the table."""
    before, rest = text.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
