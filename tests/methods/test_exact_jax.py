"""Exact attention under JAX's transformations: what is traced, what is refused, and what a CPU rounds to zero."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.methods.exact import rows as rows_module
from tests.agreement import assert_agree
from tests.namespaces import library
from tests.strategies import Choice, Problem, cell
from tests.tiny import Tiny

jax = pytest.importorskip("jax", reason="jax is not installed")
JAX = library("jax")
RNG = np.random.default_rng(0)
SEEN = RNG.random((3, 5)) < 0.6
SEEN[1] = False
BIAS = np.where(RNG.random((4, 3, 5)) < 0.2, -np.inf, RNG.standard_normal((4, 3, 5)))


def cells(x: np.ndarray) -> Choice:
    """An array of cells with the rule that it stands for."""
    return Choice("cells", x, lambda *at: cell(x, *at).item())


PROBLEM = Problem(
    batch=(2,), heads=(4, 2), lengths=(3, 5), features=(2, 3), mask=cells(SEEN), bias=cells(BIAS),
    sinks=(0.3, -np.inf, 2.0, -1.0), dropout_mask=cells(SEEN[::-1].copy()), dropout_p=0.25,
)  # fmt: skip
GIVEN = PROBLEM.arguments(JAX)
P = GIVEN.pop("dropout_p")
ARRAYS = tuple(map(JAX.array, PROBLEM.arrays))


def assert_right(output: Any, lse: Any, rows: list[tuple[int, ...]], tiles: int = 1) -> None:
    """Against the oracle, within twice its radius."""
    want = PROBLEM.answer(rows, tiles=tiles)
    assert_agree(np.asarray(output).reshape(want.output.shape), want.output, 2 * want.output_radius, what="output")
    assert_agree(np.asarray(lse).reshape(want.lse.shape), want.lse, 2 * want.lse_radius, what="lse")


def test_everything_can_be_traced_and_mapped_over_the_batch() -> None:
    def one(q: Any, k: Any, v: Any, rest: dict[str, Any]) -> Any:
        return ra.attention(q, k, v, **rest, dropout_p=P, return_lse=True)

    got = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))(*ARRAYS, GIVEN)
    assert_right(got.output, got.lse, PROBLEM.rows(24))


def test_rows_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "TILE_KEYS", 3)
    rows = [(1, 3, 2), (0, 0, 1), (0, 1, 0)]
    got = jax.jit(lambda x, rest: ra.attention_rows(*x, rows=rows, **rest, dropout_p=P, return_lse=True))(ARRAYS, GIVEN)
    assert_right(got.output, got.lse, rows, tiles=2)


WINDOW = masks.window(1, 0, anchor=2)


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (lambda x: ~masks.array(x), lambda _, i, j: not SEEN[i, j]),
        (lambda x: WINDOW | masks.array(x) & ~WINDOW, lambda _, i, j: SEEN[i, j] or i + 1 <= j <= i + 2),
    ],
    ids=["not", "or, and"],
)
def test_a_traced_mask_combines_with_rules(made: Any, rule: Any) -> None:
    rows = [(0, 0, 0), (1, 1, 1), (1, 2, 2)]
    problem = Problem(batch=(2,), heads=(4, 2), lengths=(3, 5), features=(2, 3), mask=Choice("rule", None, rule))
    want = problem.answer(rows)

    def one(mask: Any) -> Any:
        return ra.attention_rows(*ARRAYS, rows=rows, mask=made(mask))

    assert_agree(np.asarray(jax.jit(one)(GIVEN["mask"])), want.output, 2 * want.output_radius)


def test_traced_values_are_not_checked() -> None:
    got = jax.jit(lambda x: ra.attention(*ARRAYS, sinks=x))(JAX.array(np.full(4, np.nan)))
    assert np.isnan(np.asarray(got)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ra.to_numpy(x),
        lambda x: ra.attention_rows(*ARRAYS, rows=x),
        lambda x: masks.lengths(x),
        lambda x: masks.array(x > 0).dense(2, 3),
    ],
    ids=["to_numpy", "rows", "lengths", "dense"],
)
def test_what_needs_values_refuses_a_traced_array(call: Any) -> None:
    with pytest.raises(TypeError) as error:
        jax.jit(call)(JAX.array(np.zeros((2, 3), np.int64)))
    assert str(error.value) == (
        "to_numpy: x must have values that can be read; got one that jax is tracing. Call it outside of jit, vmap and "
        "grad."
    )


def test_float64_must_be_switched_on() -> None:
    with jax.enable_x64(False), pytest.raises(TypeError) as error:
        ra.attention(*(jax.numpy.ones((1, 2, 2)) for _ in range(3)))
    assert str(error.value) == (
        "attention: JAX arrays must be computed in float64, which this JAX session has switched off; got "
        "jax_enable_x64=False. Call inside `with jax.enable_x64():`."
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subnormals_of_narrow_formats_are_kept(dtype: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, n, 4)) * 2.0**-132 for n in (3, 5, 5))
    arrays = tuple(x.astype(ra.to_numpy(JAX.array(np.zeros(1, "f4")).astype(dtype)).dtype) for x in (q, k, v))
    problem = Tiny(lengths=(3, 5), features=(4, 4), dtype=dtype, scale=2.0**260, drawn=arrays)
    want = problem.answer(problem.rows())
    assert np.ptp(want.weights) > 0.01  # the scores are as large as they would be without the scaling
    got = jax.jit(lambda *x: ra.attention(*x, scale=problem.scale))(*map(JAX.array, arrays))
    found = np.asarray(got).astype(np.float64).reshape(want.output.shape)
    assert_agree(found, want.output, 2 * want.output_radius, dtype=dtype)
    assert (found != 0).any()


def test_subnormals_of_float64_count_as_zero_on_a_cpu() -> None:
    assert jax.devices()[0].platform == "cpu"
    problem = PROBLEM.but(law="subnormal", mask=cells(np.ones((3, 5), bool)))
    v = problem.arrays[2]
    assert (np.abs(v) < 2.0**-1022).all()
    arguments = problem.arguments(JAX)
    got = jax.jit(lambda *x: ra.attention(*x, **arguments))(*map(JAX.array, problem.arrays))
    np.testing.assert_array_equal(np.asarray(got), 0.0)


DEVICES = """
import jax, numpy as np, refattn as ra
jax.config.update("jax_enable_x64", True)
first, second = jax.devices()
x = np.random.default_rng(0).standard_normal((2, 1, 2, 1))
q, k = jax.device_put(x, first), jax.device_put(x, second)
try:
    ra.attention(q, q, k)
except TypeError as error:
    print(str(error).replace(str(first), "A").replace(str(second), "B"))
assert ra.attention(k, k, k).devices() == {second}
assert ra.from_numpy(x, like=k).devices() == {second}
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
assert ra.attention_scores(spread, spread, is_causal=True, stage="biased").devices() == {first, second}
got = jax.jit(ra.attention)(spread, spread, spread)
assert got.devices() == {first, second}
print(np.array_equal(got, jax.jit(ra.attention)(q, q, q)))
"""


def test_devices_are_kept_and_not_mixed() -> None:
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "attention: query and value must be on one device; got query on A and value on B. Move one of them.",
        "True",
    ]
