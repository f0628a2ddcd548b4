"""The wheel, built from this tree: what is in it, what is not, and that it runs from where it is unpacked."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The built wheel, open."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def read(wheel: zipfile.ZipFile, ending: str) -> str:
    """The text of the one file whose name ends so."""
    (name,) = (name for name in wheel.namelist() if name.endswith(ending))
    return wheel.read(name).decode()


def test_it_holds_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "refattn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == source
    assert "refattn/py.typed" in held


def test_every_folder_of_the_package_is_a_package(wheel: zipfile.ZipFile) -> None:
    folders = {name.rpartition("/")[0] for name in wheel.namelist() if name.endswith(".py")}
    assert {f"{folder}/__init__.py" for folder in folders} <= set(wheel.namelist())


def test_its_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_string(read(wheel, ".dist-info/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = metadata.get_all("Requires-Dist")
    plain = {line for line in required if "extra ==" not in line}
    assert {line.partition(">")[0] for line in plain} == {"array-api-compat", "ml-dtypes", "numpy", "scipy"}
    assert not [line for line in required if "<" in line.partition(";")[0]], "no upper caps"
    assert set(metadata.get_all("Provides-Extra")) == {
        *("all", "cuda12x", "cuda13x", "dask", "models", "mpi", "numba", "plot", "testing")
    }
    assert "Apache License" in read(wheel, "licenses/LICENSE")
    assert "refattn = refattn.__main__:main" in read(wheel, "entry_points.txt")


def test_it_runs_unpacked_with_its_data(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import refattn as ra\n"
        "print(ra.__file__)\n"
        "print(ra.data.smollm2().query.dtype)"
    )
    command = [sys.executable, "-P", "-c", program]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "refattn" / "__init__.py"), "float16"]
