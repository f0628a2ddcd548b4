"""The command line: exit codes, what is printed, and that errors are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn._cli import main
from tests.testing.kernels import drawn, output_of, tiled

KERNELS = """
import numpy as np
from refattn import masks
from refattn.testing import KernelSpec
from tests.testing.kernels import output_of, tiled

right, wrong = output_of(tiled()), output_of(tiled("float32", "heads"))
causal = {"computes": {"mask": masks.causal(anchor="lower_right")}, "dims": (16,), "lengths": ((3, 5), (16, 16))}
spec = KernelSpec(right, **causal)
with_lse = KernelSpec(tiled("bfloat16"), returns=("output", "lse"), contract="bfloat16", **causal)
number = 3

def picky(query, key, value):
    if {x.dtype.name for x in (query, key, value)} != {"bfloat16"}:
        raise TypeError("not in bfloat16")
    return output_of(tiled("bfloat16"))(query, key, value)

def turned(query, key, value):
    return np.swapaxes(right(*(np.swapaxes(x, -2, -3) for x in (query, key, value))), -2, -3)
"""
SMALL = ["--dims", "16", "--quick"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of kernels, which is the current one."""
    (tmp_path / "kernels_of_mine.py").write_text(KERNELS)
    (tmp_path / "broken_of_mine.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("kernels_of_mine", None)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, and what was printed where."""
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


# What is told does not depend on which of its checks says it.
@pytest.mark.usefixtures("without_probes", "without_fit")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["kernels_of_mine:spec"], 0),
        (["kernels_of_mine:spec", "--heads", "2", "1", "--seed", "3"], 0),
        (["kernels_of_mine:with_lse"], 0),
        (["kernels_of_mine:with_lse", "--returns", "output", "lse2"], 1),
        (["kernels_of_mine:with_lse", "--contract", "float32"], 1),
        (["kernels_of_mine:with_lse", "--contract", "eager(bfloat16)"], 0),
        (["kernels_of_mine:with_lse", "--contract", "eager:bfloat16"], 0),
        (["kernels_of_mine:spec", "--causal", "upper_left"], 1),
        (["kernels_of_mine:right", *SMALL, "--causal", "lower_right"], 0),
        (["kernels_of_mine:right", *SMALL, "--window", "-1", "0"], 0),
        (["kernels_of_mine:right", *SMALL, "--window", "3", "0", "--causal", "lower_right"], 1),
        (["kernels_of_mine:right", *SMALL], 1),
        (["kernels_of_mine:wrong", *SMALL, "--causal", "lower_right"], 1),
        (["kernels_of_mine:turned", *SMALL, "--causal", "lower_right", "--layout", "blhd"], 0),
        (["kernels_of_mine:turned", *SMALL, "--causal", "lower_right"], 1),
    ],
)
def test_exit_code_and_first_word_say_whether_a_kernel_is_right(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    got, out, err = run(capsys, "check", *arguments)
    assert (got, err) == (code, "")
    assert out.startswith("right: " if code == 0 else "WRONG: ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["kernels_of_mine"], "check: a kernel must be given as module:NAME; got 'kernels_of_mine'."),
        (["kernels_of_mine:other"], "check: kernels_of_mine has no 'other'."),
        (["kernels_of_mine:number"], "KernelSpec: function must be callable; got int."),
        (
            ["no_such_module:right"],
            "check: no_such_module could not be imported: ModuleNotFoundError: No module named ",
        ),
        (["broken_of_mine:right"], "check: broken_of_mine could not be imported: ZeroDivisionError: division by zero"),
        (["kernels_of_mine:right", "--arrays", "cupy"], "from_numpy: library='cupy' is not installed: "),
        (["kernels_of_mine:right", "--heads", "3", "2"], "KernelSpec: heads must be (H, Hk) with H a multiple of Hk; "),
        ([], "check: a kernel (module:NAME) or --input FILE.npz must be given."),
        (["--input", "none.npz"], "[Errno 2] No such file or directory: 'none.npz'"),
    ],
)
def test_what_cannot_run_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    if "cupy" in arguments and ra._core.arrays.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed")
    code, out, err = run(capsys, "check", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"refattn: could not run: {reason}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--contract", "half"], ["--arrays", "lists"], ["--dims", "1,2,3"], ["--speed"]])
def test_options_that_are_none_exit_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check", "kernels_of_mine:right", *arguments])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def save(**changes: Any) -> None:
    """The arrays of a problem, in input.npz."""
    q, k, v = drawn(dtype="bfloat16")
    output, lse = tiled("bfloat16")(q, k, v)
    arrays = {"query": q, "key": k, "value": v, "output": output, "lse": lse, **changes}
    np.savez("input.npz", **{name: x for name, x in arrays.items() if x is not None})


STORED = ["check", "--input", "input.npz", "--contract", "bfloat16"]


def test_a_stored_result_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    save()
    code, out, _ = run(capsys, *STORED, "--causal", "lower_right")
    assert code == 0
    assert out.startswith("right: all 320 rows are within the bound; ")
    assert run(capsys, *STORED)[0] == 1
    assert run(capsys, *STORED, "--causal", "lower_right", "--returns", "output", "lse2")[0] == 1
    # A mask in the file and one on the command line both hold.
    save(mask=np.tri(40, 70, 30, dtype=bool))
    assert run(capsys, *STORED)[0] == 0
    assert run(capsys, *STORED, "--causal", "lower_right")[0] == 0
    assert run(capsys, *STORED, "--causal", "upper_left")[0] == 1
    q, k, v = drawn(dtype="bfloat16")
    save(output=np.swapaxes(tiled("bfloat16")(q, k, v)[0], 1, 2), query=np.swapaxes(q, 1, 2), key=np.swapaxes(k, 1, 2),
         value=np.swapaxes(v, 1, 2))  # fmt: skip
    assert run(capsys, *STORED, "--causal", "lower_right", "--layout", "blhd")[0] == 0


def test_a_kernel_is_run_on_stored_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    save(output=None, lse=None)
    code, out, _ = run(capsys, "check", "kernels_of_mine:with_lse", "--input", "input.npz")
    assert code == 0
    assert "  input         right in 1 problem, " in out
    # Rounded to what the contract says, and taken as they are where none is declared.
    q, k, v = drawn()
    save(query=q, key=k, value=v, output=None, lse=None)
    picky = ("kernels_of_mine:picky", "--causal", "lower_right")
    assert run(capsys, "check", *picky, "--input", "input.npz", "--contract", "bfloat16")[0] == 0
    assert run(capsys, "check", *picky, "--input", "input.npz")[0] == 1
    assert run(capsys, "check", "kernels_of_mine:spec", "--input", "input.npz")[0] == 0
    code, out, _ = run(capsys, "check", "kernels_of_mine:wrong", "--input", "input.npz", "--causal", "lower_right")
    assert code == 1
    assert "symptom: key heads by h % 2 instead of h // 2" in out
    assert "float32, mask=masks.causal(anchor='lower_right'), input.npz" in out


@pytest.mark.parametrize(
    ("changes", "kernel", "reason"),
    [
        (
            {"output": None},
            [],
            "check: input.npz must hold output where no kernel is named; got query, key, value, lse.",
        ),
        ({"key": None}, [], "check: input.npz must hold query, key and value; got no key."),
        (
            {"extra": np.zeros(3)},
            [],
            "check: input.npz must hold only query, key, value, output, lse, mask, bias, sinks; ",
        ),
        (
            {"bias": np.zeros((40, 70))},
            ["kernels_of_mine:spec"],
            "check: input.npz holds bias, which the kernel does not ",
        ),
        ({"key": np.array([{}])}, [], "Object arrays cannot be loaded when allow_pickle=False"),
        ({"key": np.zeros(3, "V3")}, [], "check: key in input.npz has a dtype of 3 bytes that NumPy does not know; "),
    ],
)
def test_a_file_that_does_not_serve_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], kernel: list[str], reason: str
) -> None:
    save(**changes)
    code, out, err = run(capsys, *STORED, *kernel)
    assert (code, out) == (2, "")
    assert err.startswith(f"refattn: could not run: {reason}")


def test_a_single_array_is_no_input(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("input.npy", np.zeros(3))
    code, _, err = run(capsys, "check", "--input", "input.npy")
    assert code == 2
    assert "input.npy must be an .npz file with query, key and value; got a single array." in err


def test_json_is_printed_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "kernels_of_mine:spec", "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)
    save()
    code, out, _ = run(capsys, *STORED, "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_list_names_every_public_method_and_info_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list")
    assert code == 0
    declared = [name for name in ra.__all__ if hasattr(getattr(ra, name), "capabilities")]
    assert [line for line in out.splitlines() if not line.startswith(" ")] == declared
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert f"numpy            {np.__version__}\n" in out
    assert f"ml_dtypes        {ml_dtypes.__version__}\n" in out
    assert "BLAS of numpy" in out


def test_the_module_runs_as_a_program() -> None:
    root = Path(ra.__file__).parents[1]
    command = [sys.executable, "-m", "refattn", "check", "kernels_of_mine:wrong", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(root)})
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("WRONG: ")


def test_a_plain_function_needs_no_spec(capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(output_of(tiled()))
    code, out, _ = run(capsys, "check", "kernels_of_mine:right", *SMALL, "--causal", "lower_right", "--json")
    assert code == 0
    assert json.loads(out)["contract"].startswith("flash('float32'): ")
