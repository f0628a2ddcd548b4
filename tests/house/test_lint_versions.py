"""`make lint` and the commit hooks run the same versions of the same programs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Programs of `make lint` that no hook runs: they judge the repository as a whole.
NOT_A_HOOK = {"sp-repo-review"}


def test_hooks_and_lint_group_name_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pinned = {}
    for line in project["dependency-groups"]["lint"]:
        name, version = re.fullmatch(r"([a-z-]+)(?:\[.*\])?==([\d.]+)", line).groups()
        pinned[name] = version
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    found = dict(re.findall(r"repo: https://\S+/(\S+)\n +rev: v(\S+)", hooks))
    named = {name.removesuffix("-pre-commit").removeprefix("mirrors-"): version for name, version in found.items()}
    assert named.pop("pre-commit-hooks")
    assert named == {name: version for name, version in pinned.items() if name not in NOT_A_HOOK}
