"""The specs of other people's software: what is installed here builds, is named once, and answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from refattn.testing.inputs.problems import Problem, inputs
from refattn.testing.running import run

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "scripts"


@pytest.fixture
def software(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The table's functions by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from software import SOFTWARE

    yield SOFTWARE
    for name in [name for name in sys.modules if name.split(".")[0] == "software"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("PyTorch SDPA", "torch"),
        pytest.param("jax.nn.dot_product_attention", "jax", marks=pytest.mark.slow),
    ],
)
def test_what_is_installed_answers_under_its_contract(software: dict[str, Any], name: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    entries = list(software[name]())
    named = [entry.spec.name for entry in entries]
    assert len(set(named)) == len(named)
    for entry in entries:
        problem = Problem("normal", "normal", 1, (3, 5), (8, 8), (0,))
        verdict, faults, _ = run(entry.spec, inputs(entry.spec, problem))
        assert not faults, faults
        assert verdict is not None
        assert verdict.passed, f"{entry.spec.name}: {verdict.text}"
