"""A saved problem shows the same fault again: with its kernel, by itself, and as a script; and shrinks to little."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn._cli import main
from refattn.testing import Case, KernelSpec, captured, laws, load_inputs, replay, save_repro, shrink
from refattn.testing.laws import CHECKS
from refattn.testing.repro import saved as repro
from tests.conformance.kernels import only_output, tiled
from tests.testing.stored_kernels import ragged

ROOT = Path(ra.__file__).parents[1]
FIELDS: dict[str, Any] = {"accepts": ("mask", "is_causal"), "returns": ("output", "lse"), "dims": (16,)}
RIGHT, WRONG = KernelSpec(tiled(), **FIELDS), KernelSpec(tiled("leak"), **FIELDS)
CASE = Case((20, 30), (16, 16), batch=2, asks=("mask",))
KERNELS = """
from refattn.testing import KernelSpec
from tests.conformance.kernels import tiled

right = KernelSpec(tiled(), accepts=("mask", "is_causal"), returns=("output", "lse"), dims=(16,))
wrong = KernelSpec(tiled("leak"), accepts=("mask", "is_causal"), returns=("output", "lse"), dims=(16,))
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A problem that a wrong kernel fails on."""
    return save_repro(tmp_path / "leak.npz", WRONG, CASE)[0]


def test_a_bundle_shows_the_fault_again_and_passes_with_a_right_kernel(bundle: Path) -> None:
    found = replay(bundle, WRONG)
    assert not found.passed
    assert found.text.startswith("WRONG: check_forward: WRONG: ")
    assert replay(bundle, RIGHT) == repro.Replayed(True, f"right: check_forward passes for tiled_right on {bundle}")
    # By itself: the result that was saved, against what is right.
    stored = replay(bundle)
    assert not stored.passed
    assert stored.text.startswith("WRONG: ")
    assert save_repro(bundle, RIGHT, CASE) == (bundle, bundle.with_suffix(".py"))
    assert replay(bundle).passed


def test_a_bundle_holds_the_problem_bit_for_bit(bundle: Path) -> None:
    given, again = CASE.inputs(WRONG), load_inputs(bundle, WRONG)
    for name in ("query", "key", "value"):
        assert np.array_equal(getattr(given, name), getattr(again, name))
    assert np.array_equal(given.passed["mask"], again.passed["mask"])
    assert again.passed["is_causal"] is False
    with np.load(bundle, allow_pickle=False) as archive:
        assert all(archive[name].dtype.kind != "O" for name in archive.files)
    assert {path.name for path in bundle.parent.iterdir()} == {"leak.npz", "leak.py"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["blhd", "lbhd"])
def test_dtypes_and_layouts_come_back(tmp_path: Path, dtype: str, order: str) -> None:
    swap = {"blhd": (0, 2, 1, 3), "lbhd": (1, 2, 0, 3)}[order]
    back = {"blhd": (0, 2, 1, 3), "lbhd": (2, 0, 1, 3)}[order]

    def kernel(*operands: np.ndarray, softcap: float | None) -> np.ndarray:
        assert operands[0].dtype.name == dtype
        return np.ascontiguousarray(
            np.transpose(ra.attention(*(np.transpose(x, swap) for x in operands), softcap=softcap), back)
        )

    spec = KernelSpec(kernel, accepts=("softcap",), contract=dtype, layout=order, dims=(8,))
    path, _ = save_repro(tmp_path / "x.npz", spec, Case((3, 5), (8, 8), batch=2, asks=("softcap",)))
    assert replay(path).passed
    assert replay(path, spec).passed
    assert not replay(path, replace(spec, computes={"mask": masks.causal(anchor="lower_right")})).passed


def test_sequences_come_back(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "computes": {"mask": masks.causal(anchor="lower_right")},
        "accepts": ("cu_seqlens_q", "cu_seqlens_k"),
        "returns": ("output", "lse"),
        "dims": (8,),
    }
    right, wrong = (KernelSpec(ragged(mistake), **fields) for mistake in (None, "offset"))
    case = Case((9, 20), (8, 8), table="cu_seqlens_k")
    path, _ = save_repro(tmp_path / "x.npz", wrong, case, check="check_layouts")
    assert not replay(path).passed
    assert not replay(path, wrong).passed
    assert replay(path, right).passed
    with pytest.raises(ValueError, match="holds sequences, and the kernel takes no tables"):
        replay(path, RIGHT)
    smaller = shrink(wrong, case, check="check_layouts")
    assert smaller.batch is not None
    assert len(smaller.batch.keys) < 4
    assert laws.check_layouts(right, smaller) is None


def script_of(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """A run of the script beside a bundle."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, name]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


KERNEL_FILE = """
import numpy as np

def kernel(query, key, value, scale):
    q, k, v = (x.astype(np.float32) for x in (query, key, value))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    s = q @ np.swapaxes(k, -1, -2) * np.float32(scale)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    output = p @ v / p.sum(axis=-1, keepdims=True)
    return (output * FACTOR).astype(query.dtype)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_script_runs_without_refattn(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for factor, text in (("1", "0 of 360 numbers are wrong; "), ("1.5", "360 of 360 numbers are wrong; ")):
        name = f"mine_{dtype}_{factor.replace('.', '')}"
        (tmp_path / f"{name}.py").write_text(KERNEL_FILE.replace("FACTOR", factor))
        kernel = __import__(name).kernel
        spec = KernelSpec(kernel, accepts=("scale",), contract=dtype, dims=(9,), heads=(4, 2))
        _, program = save_repro(tmp_path / f"repro_{name}.npz", spec, Case((5, 7), (8, 9), batch=2, law="offset"))
        written = program.read_text()
        assert "import refattn" not in written
        assert f"from {name} import kernel" in written
        assert len(written.splitlines()) < 45
        done = script_of(tmp_path, program.name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(text)


def test_a_script_hands_masks_to_a_kernel_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_torch.py").write_text(
        "import torch\n\ndef sdpa(query, key, value, mask):\n    f = torch.nn.functional.scaled_dot_product_attention\n"
        "    return f(query, key, value, attn_mask=mask, enable_gqa=True)\n"
    )
    spec = KernelSpec(__import__("of_torch").sdpa, arrays="torch", accepts=("mask",), contract="bfloat16", dims=(8,))
    path, program = save_repro(tmp_path / "seen.npz", spec, Case((5, 7), (8, 8), asks=("mask",)))
    done = script_of(tmp_path, program.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 of 160 numbers are wrong; ")
    assert replay(path).passed


def test_shrinking_keeps_the_failure_and_takes_away_the_rest() -> None:
    smaller = shrink(WRONG, CASE)
    assert smaller.query.shape[:3] == (1, 1, 1)
    assert smaller.key.shape[1:3] == (1, 1)
    assert not smaller.passed["mask"].any()
    with pytest.raises(laws.Violation, match="check_forward: "):
        laws.check_forward(WRONG, smaller)
    laws.check_forward(RIGHT, smaller)


def test_what_a_fault_does_not_need_is_no_longer_asked_for() -> None:
    smaller = shrink(KernelSpec(tiled("scale"), **FIELDS), Case((40, 50), (16, 16), asks=("mask",)))
    assert "mask" not in smaller.arguments
    assert smaller.key.shape[2] == 2


def test_real_activations_shrink_and_are_saved(tmp_path: Path) -> None:
    real = ra.data.smollm2()
    spec = KernelSpec(tiled("place"), **FIELDS)
    given = captured(spec, *(x[:1, :, :80] for x in (real.query, real.key, real.value)), is_causal=True)
    smaller = shrink(spec, given)
    assert smaller.query.shape[2] <= 2
    path, _ = save_repro(tmp_path / "real.npz", spec, smaller)
    assert not replay(path, spec).passed


def test_a_failure_of_another_kind_is_not_taken_for_it() -> None:
    right = only_output(tiled())

    def picky(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        if query.shape[2] < 7:
            raise ValueError("too short")
        return 2 * right(query, key, value)

    smaller = shrink(KernelSpec(picky, dims=(8,)), Case((20, 20), (8, 8)))
    assert smaller.query.shape[2] == 7


def test_what_passes_does_not_shrink() -> None:
    with pytest.raises(ValueError, match="shrink: the kernel must break check_forward on the problem; it passes"):
        shrink(RIGHT, CASE)
    with pytest.raises(ValueError, match="shrink: check must be one of"):
        shrink(WRONG, CASE, check="check_speed")


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS if check.__name__ != "check_layouts"])
def test_every_check_takes_a_bundle(tmp_path: Path, check: str) -> None:
    case = Case((20, 20), (16, 16), batch=2, asks=("empty_rows",))
    path, _ = save_repro(tmp_path / "x.npz", RIGHT, case, check=check)
    assert replay(path, RIGHT).text == f"right: {check} passes for tiled_right on {path}"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, and what was printed where."""
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of kernels, which is the current one."""
    (tmp_path / "kernels_to_replay.py").write_text(KERNELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("kernels_to_replay", None)


def test_the_command_line_replays_and_shrinks(folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "replay", "leak.npz")
    assert (code, out.partition(":")[0]) == (1, "WRONG")
    code, out, _ = run(capsys, "replay", "leak.npz", "kernels_to_replay:right")
    assert (code, out) == (0, "right: check_forward passes for tiled_right on leak.npz\n")
    assert run(capsys, "replay", "leak.npz", "kernels_to_replay:right", "--check", "check_lse")[0] == 0
    code, out, _ = run(capsys, "replay", "leak.npz", "kernels_to_replay:wrong", "--shrink", "small/one.npz")
    assert code == 1
    assert out.endswith("saved small/one.npz\nsaved small/one.py\n")
    assert load_inputs("small/one.npz", WRONG).query.shape[:3] == (1, 1, 1)
    assert run(capsys, "replay", "small/one.npz", "kernels_to_replay:wrong")[0] == 1


def test_activations_of_a_model_are_replayed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = ra.data.smollm2()
    keep = np.tri(real.query.shape[-2], dtype=bool)
    np.savez("real.npz", query=real.query[:1], key=real.key[:1], value=real.value[:1], mask=keep)
    assert run(capsys, "replay", "real.npz", "kernels_to_replay:right")[0] == 0
    assert run(capsys, "replay", "real.npz", "kernels_to_replay:wrong", "--check", "check_causality")[0] == 1


@pytest.mark.parametrize(
    ("make", "arguments", "reason"),
    [
        (lambda: Path("x.npz").write_bytes(b"PK\x03\x04 not a zip"), (), "replay: x.npz must be an .npz file, and a "),
        (lambda: Path("x.npz").write_text("hello"), (), "replay: x.npz must be an .npz file without pickled objects: "),
        (lambda: Path("x.npz").write_bytes(b""), (), "replay: x.npz must be an .npz file, and a whole one; "),
        (lambda: cut_short(), (), "replay: x.npz must be an .npz file, and a whole one; "),
        (
            lambda: np.savez("x.npz", query=np.zeros(3)),
            (),
            "replay: x.npz must hold query, key and value; got no key, ",
        ),
        (lambda: plain(), (), "replay: a kernel (module:SPEC) must be named for x.npz, which holds no bundle of save_"),
        (lambda: plain(about=np.array("x")), (), "replay: x.npz holds an entry about that is no text of save_repro."),
        (lambda: plain(about=np.array('{"format": 9}')), (), "replay: x.npz is of format 9, and this version of refat"),
        (lambda: plain(key=np.array([{}])), (), "replay: x.npz must be an .npz file without pickled objects: Object "),
        (lambda: plain(softcap=np.ones(1)), ("kernels_to_replay:right",), "captured: the kernel must accept each argu"),
        (lambda: plain(), ("kernels_to_replay:none",), "replay: kernels_to_replay has no 'none'."),
        (lambda: plain(), ("kernels_to_replay:right", "--check", "no"), "replay: check must be one of "),
        (
            lambda: plain(),
            ("kernels_to_replay:right", "--check", "check_layouts"),
            "replay: check_layouts says nothing",
        ),
        (lambda: None, (), "[Errno 2] No such file or directory: 'x.npz'"),
    ],
)
def test_a_file_that_does_not_serve_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], make: Any, arguments: tuple[str, ...], reason: str
) -> None:
    make()
    code, out, err = run(capsys, "replay", "x.npz", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"refattn: could not run: {reason}")
    assert err.count("\n") == 1


def plain(**changes: Any) -> None:
    """Operands in x.npz, and more."""
    arrays = {name: np.zeros((1, 2, 3, 4), np.float32) for name in ("query", "key", "value")}
    np.savez("x.npz", **{**arrays, **changes})


def cut_short() -> None:
    """Half of a file."""
    plain()
    Path("x.npz").write_bytes(Path("x.npz").read_bytes()[:300])


def test_a_bundle_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", stops)
    with pytest.raises(OSError, match="disk full"):
        save_repro(tmp_path / "x.npz", RIGHT, CASE)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_its_ending_and_its_check(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save_repro: path must end in .npz; got 'x.npy'"):
        save_repro("x.npy", RIGHT, CASE)
    with pytest.raises(ValueError, match="save_repro: check must be one of"):
        save_repro(tmp_path / "x.npz", RIGHT, CASE, check="speed")


def test_a_kernel_that_raises_is_saved_without_a_result(tmp_path: Path) -> None:
    def raises(*operands: np.ndarray) -> np.ndarray:
        raise NotImplementedError("not built")

    spec = KernelSpec(raises, dims=(8,))
    path, program = save_repro(tmp_path / "x.npz", spec, Case((3, 5), (8, 8)))
    assert "raised NotImplementedError: not built" in program.read_text()
    assert "WRONG: check_forward: raised NotImplementedError" in replay(path, spec).text
    with pytest.raises(ValueError, match="which holds no result, since the kernel returned none"):
        replay(path)
