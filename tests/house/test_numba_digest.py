"""numba takes a stored kernel for stale when its own file has changed; what it is made from must therefore be in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "refattn"
KERNELS = [
    path for path in sorted(ROOT.rglob("kernel_numba/*.py")) if "\n@kernel\n" in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def digest() -> str:
    """The digest of the files that all kernels are made from; numba itself is not needed for it."""
    pytest.importorskip("numba", reason="numba is not installed")
    code = "from refattn._core.numba_math import digest; print(digest())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_there_are_kernels() -> None:
    assert len(KERNELS) >= 3


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_a_kernel_carries_the_digest_of_what_it_is_made_from(path: Path, digest: str) -> None:
    """Where this fails, write the digest below into the file: then every stored kernel is compiled anew."""
    found = re.findall(r'^DIGEST = "(\w*)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [digest]


def test_nothing_else_is_stored() -> None:
    """What `part` compiles goes into kernels, and `kernel` is the one that stores."""
    stores = [path.name for path in ROOT.rglob("*.py") if "cache=True" in path.read_text(encoding="utf-8")]
    assert stores == ["numba_tiles.py"]
    for path in (ROOT / "_core").glob("numba_*.py"):
        assert "\n@kernel\n" not in path.read_text(encoding="utf-8")
