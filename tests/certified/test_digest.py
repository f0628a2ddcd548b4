"""Digests: the bytes that are hashed, the golden table, and the command that computes it again."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refattn
from refattn import data, masks
from refattn._cli import main
from refattn.oracle.climb import rounded
from refattn.oracle.hashing import digest
from refattn.oracle.named import BITS, NAMES, named_problem
from refattn.oracle.rounding import FORMATS, round_floats
from tests.certified import balls

ROOT = Path(refattn.__file__).parents[1]


def hashed(x: np.ndarray, dtype: str) -> str:
    """As the documentation says it."""
    head = " ".join([dtype, *map(str, x.shape)]) + "\n"
    return hashlib.sha256(head.encode() + x.astype("<f8").tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", FORMATS)
def test_it_hashes_name_shape_and_numbers(dtype: str) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((2, 3, 4)) for i in range(3))
    x = rounded(q, k, v, dtype=dtype)
    assert digest(q, k, v, dtype=dtype) == hashed(x, dtype)
    # With the signs of zeros, and whatever the arguments are.
    given: dict[str, Any] = {"is_causal": True, "sinks": np.ones(2), "rows": [(1, 2), (0, 0)], "softcap": 2.0}
    given |= {"mask": masks.window(1, 0), "scale": 0.5, "bias": np.ones((3, 3)), "dropout_p": 0.5}
    given |= {"dropout_mask": np.ones((3, 3), dtype=bool)}
    assert digest(q, k, -1e-300 * v, dtype=dtype, **given) == hashed(
        rounded(q, k, -1e-300 * v, dtype=dtype, **given), dtype
    )


def test_the_bytes_letter_by_letter() -> None:
    q = np.zeros((1, 1, 1))
    head = b"float16 1 1 1\n"
    assert (
        digest(q, q, q + 1, dtype="float16") == hashlib.sha256(head + bytes([0, 0, 0, 0, 0, 0, 0xF0, 0x3F])).hexdigest()
    )
    assert digest(q, q, q - 1e-30, dtype=np.float16) == hashlib.sha256(head + bytes([0] * 7 + [0x80])).hexdigest()
    assert digest(q, q, q, dtype="float16") == hashlib.sha256(head + bytes(8)).hexdigest()
    for value in (1000.0, -1000.0):
        got = digest(q, q, q + value, dtype="float8_e4m3fn")
        assert got == hashlib.sha256(b"float8_e4m3fn 1 1 1\n" + bytes([0] * 6 + [0xF8, 0x7F])).hexdigest()


def test_every_named_problem_has_a_golden_digest_and_none_other() -> None:
    golden = data.digests()
    assert tuple(golden) == NAMES
    assert len(set(golden.values())) == len(NAMES) >= 12
    with pytest.raises(TypeError):
        golden["plain-float32"] = ""
    assert {name.partition("-")[2] for name in NAMES} == set(BITS)


@pytest.mark.parametrize("name", NAMES)
def test_named_problems_are_made_of_numbers_of_their_dtype(name: str) -> None:
    problem = named_problem(name)
    dtype = problem["dtype"]
    for operand in ("query", "key", "value"):
        x = problem[operand]
        # Whole numbers between those of the dtype make the ties, and a power of two the width.
        narrow = {"bias": "query", "ties": "value", "wide": operand}.get(name.partition("-")[0]) == operand
        assert narrow or np.array_equal(round_floats(x, dtype), x, equal_nan=True)
        assert np.isfinite(x).mean() > 0.9
        assert len(np.unique(x[np.isfinite(x)])) > 5 or operand == "query"
    again = named_problem(name)
    np.testing.assert_array_equal(problem["key"], again["key"])


def heads(name: str) -> Iterator[tuple[int, np.ndarray, balls.Head]]:
    """Some rows of each head of a named problem, with cells written out anew."""
    problem = named_problem(name)
    q, k, v = (problem[x] for x in ("query", "key", "value"))
    (H, L, _), (Hk, S, _) = q.shape, k.shape
    i, j = np.arange(L)[:, None], np.arange(S)
    visible = np.ones((H, L, S), dtype=bool)
    if "window" in name:
        visible &= (j <= i + S - L) & (j >= i + S - L - 20)
    elif "mask" in problem:
        visible &= problem["mask"]
    if problem.get("is_causal"):
        visible &= j <= i
    bias = problem.get("bias")
    if bias is not None and not isinstance(bias, np.ndarray):
        bias = -np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])[:, None, None] * np.abs(j - i)
    for h in range(H):
        rows = np.unique(np.linspace(0, L - 1, 7).astype(int))
        kept = problem["dropout_mask"][h, rows] if "dropout_mask" in problem else None
        yield h, rows, balls.Head(
            q[h, rows], k[h // (H // Hk)], v[h // (H // Hk)], problem.get("scale"), problem.get("softcap"),
            visible[h, rows], None if bias is None else bias[h, rows],
            float(problem["sinks"][h]) if "sinks" in problem else -math.inf, kept, problem.get("dropout_p", 0.0),
        )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_the_golden_digests_stand_for_is_what_balls_say(name: str) -> None:
    problem = named_problem(name)
    x = rounded(**problem)
    assert hashed(x, problem["dtype"]) == data.digests()[name]
    for h, rows, head in heads(name):
        with balls.precision(4096):
            want, _, known = balls.correct(head, problem["dtype"])
        assert known.all()
        np.testing.assert_array_equal(x[h, rows], want)
        np.testing.assert_array_equal(np.signbit(x[h, rows]), np.signbit(want))


def test_the_command_prints_each_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [[name, x, "ok"] for name, x in data.digests().items()]
    assert main(["digest", "ties-bfloat16", "plain-float8_e5m2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ties-bfloat16", "plain-float8_e5m2"]


def test_a_digest_that_differs_exits_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = dict(data.digests())
    right = golden["sinks-float16"]
    golden["sinks-float16"] = "f" * 64
    monkeypatch.setattr(data, "digests", lambda: golden)
    assert main(["digest", "sinks-float16", "ties-float16"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["sinks-float16", right, "differs", "from", "f" * 64]
    assert second.endswith(" ok")


def test_a_name_that_is_none_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digest", "plain-float128"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"refattn: could not run: digest: NAME must be one of {', '.join(NAMES)}; got 'plain-float128'.\n")


@pytest.mark.parametrize(
    "settings",
    [{"OPENBLAS_CORETYPE": "PRESCOTT", "OPENBLAS_NUM_THREADS": "2"}, {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX2 FMA3"}],
    ids=["another kernel of the BLAS", "another of NumPy"],
)
def test_another_blas_and_other_vector_units_arrive_at_the_same(settings: dict[str, str]) -> None:
    # What NumPy cannot switch off here, it warns of.
    command = [sys.executable, "-W", "ignore", "-m", "refattn", "digest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" ok\n") == len(NAMES)
