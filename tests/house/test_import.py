"""What a fresh process loads: `import refattn` costs next to nothing and pulls in nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

FRAMEWORKS = {"cupy", "dask", "jax", "matplotlib", "numba", "torch"}


def loaded_by(code: str) -> set[str]:
    """Modules that the code loads in a fresh process, beyond what NumPy and Python's start load."""
    program = f"import sys, numpy\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def roots(modules: set[str]) -> set[str]:
    """Top-level names of modules."""
    return {module.partition(".")[0] for module in modules}


def test_import_loads_the_top_module_alone(record_property: Callable[[str, object], None]) -> None:
    modules = loaded_by("import refattn")
    record_property("modules loaded beyond NumPy's", len(modules))
    assert roots(modules) <= {"refattn"} | sys.stdlib_module_names
    assert {module for module in modules if module.startswith("refattn")} == {"refattn"}


@pytest.mark.parametrize("use", ["masks.causal()", "contract.flash('bfloat16')", "testing.check", "data.smollm2()"])
def test_a_room_loads_no_framework(use: str) -> None:
    assert roots(loaded_by(f"import refattn as ra\nra.{use}")).isdisjoint(FRAMEWORKS)


def test_attention_on_numpy_loads_no_framework_and_no_scipy() -> None:
    call = "import refattn as ra\nx = numpy.ones((2, 3, 4))\nra.attention(x, x, x, is_causal=True, return_lse=True)"
    assert roots(loaded_by(call)).isdisjoint(FRAMEWORKS | {"scipy", "hypothesis", "pytest"})


def test_the_probe_sees_what_is_loaded() -> None:
    assert "scipy" in roots(loaded_by("import scipy.sparse"))
