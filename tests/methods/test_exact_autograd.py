"""Derivatives of exact attention as PyTorch and JAX take them, of their forward passes, against the oracle's.

Nothing is detached, no 0 * inf is met on the way, and a row that sees nothing gives nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.agreement import assert_agree
from tests.derivatives import case, cotangents
from tests.namespaces import Library, library
from tests.strategies import Choice, Problem, cell

NAMES = ("query", "key", "value", "bias", "sinks")
# torch.func loads rules that PyTorch itself compiles in a way that it warns of.
TORCH_WARNS = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def cells(x: np.ndarray) -> Choice:
    """An array of cells with the rule that it stands for."""
    return Choice("cells", x, lambda *at: cell(x, *at).item())


def made() -> Problem:
    """Every argument at once: groups of heads, dropout, a head without a sink, a row that sees nothing."""
    rng = np.random.default_rng(3)
    seen = rng.random((2, 4, 3, 5)) < 0.6
    seen[0, 0, 1] = seen[:, 1, 2] = False
    return Problem(
        batch=(2,), heads=(4, 2), lengths=(3, 5), features=(2, 3), softcap=2.0, mask=cells(seen),
        bias=cells(rng.standard_normal((2, 4, 3, 5))), sinks=(0.5, -np.inf, -1.0, 2.0),
        dropout_mask=cells(rng.random((2, 4, 3, 5)) < 0.7), dropout_p=0.3,
    )  # fmt: skip


PROBLEM = made()
WITHOUT_SINKS = PROBLEM.but(sinks=None)


def leaves(problem: Problem, lib: Library) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that a derivative is taken by, and the other arguments."""
    arguments = problem.arguments(lib)
    found = dict(zip(NAMES, map(lib.array, problem.arrays), strict=False))
    return found | {name: arguments.pop(name) for name in NAMES if name in arguments}, arguments


def results(x: dict[str, Any], rest: dict[str, Any]) -> tuple[Any, Any]:
    """Output and lse."""
    got = ra.attention(**x, **rest, return_lse=True)
    return got.output, got.lse


def assert_gradients(got: dict[str, np.ndarray], problem: Problem) -> None:
    """All gradients within four radii: autograd goes another way than the oracle's radius, through the maximum."""
    want = case(problem)
    for name, x in got.items():
        assert_agree(x, want.gradient(name), 4 * want.radius(name), what=name)


def assert_tangents(got: tuple[np.ndarray, np.ndarray], along: dict[str, np.ndarray], problem: Problem) -> None:
    """The derivative along a direction, as the gradients of a loss give it."""
    want = case(problem)
    dO, dlse = cotangents(problem)
    counted = np.isfinite(got[1])
    found = (dO * got[0]).sum() + (dlse * np.where(counted, got[1], 0.0)).sum()
    wanted = sum((want.gradient(name) * x).sum() for name, x in along.items())
    radius = sum((4 * want.radius(name) * np.abs(x)).sum() for name, x in along.items())
    assert_agree(found, np.asarray(wanted), np.asarray(radius))


def directions(x: dict[str, Any], lib: Library) -> dict[str, np.ndarray]:
    """A direction to move in."""
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal(lib.values(a).shape) for name, a in x.items()}


def torch_gradients(problem: Problem) -> dict[str, np.ndarray]:
    """By torch.autograd."""
    import torch

    lib = library("torch")
    x, rest = leaves(problem, lib)
    for a in x.values():
        a.requires_grad_()
    torch.autograd.backward(results(x, rest), [lib.array(a) for a in cotangents(problem)])
    return {name: a.grad.numpy() for name, a in x.items()}


def torch_func_gradients(problem: Problem) -> dict[str, np.ndarray]:
    """By torch.func.vjp, batch entry by batch entry under torch.func.vmap."""
    import torch

    lib = library("torch")
    x, rest = leaves(problem, lib)
    sinks = x.pop("sinks", None)
    masks = {name: rest.pop(name) for name in ("mask", "dropout_mask")}

    def of_entry(x: dict[str, Any], masks: dict[str, Any], dO: Any, dlse: Any) -> Any:
        both = {"sinks": sinks} if sinks is not None else {}
        _, pull = torch.func.vjp(lambda x: results(x, rest | masks), x | both)
        return pull((dO, dlse))[0]

    found = torch.func.vmap(of_entry)(x, masks, *map(lib.array, cotangents(problem)))
    return {name: (a.sum(dim=0) if name == "sinks" else a).numpy() for name, a in found.items()}


def jax_gradients(problem: Problem) -> dict[str, np.ndarray]:
    """By jax.vjp inside jax.jit, masks traced too."""
    import jax

    lib = library("jax")
    x, rest = leaves(problem, lib)
    masks = {name: rest.pop(name) for name in ("mask", "dropout_mask")}

    def pulled(x: dict[str, Any], masks: dict[str, Any], dO: Any, dlse: Any) -> Any:
        _, pull = jax.vjp(lambda x: results(x, rest | masks), x)
        return pull((dO, dlse))[0]

    found = jax.jit(pulled)(x, masks, *map(lib.array, cotangents(problem)))
    return {name: np.asarray(a) for name, a in found.items()}


WAYS = [
    pytest.param(torch_gradients, "torch", id="torch.autograd"),
    pytest.param(torch_func_gradients, "torch", id="torch.func", marks=TORCH_WARNS),
    pytest.param(jax_gradients, "jax", id="jax"),
]


@pytest.mark.parametrize(("way", "needs"), WAYS)
@pytest.mark.parametrize("problem", [PROBLEM, WITHOUT_SINKS], ids=["sinks", "no sinks"])
def test_gradients(way: Callable[[Problem], dict[str, np.ndarray]], needs: str, problem: Problem) -> None:
    pytest.importorskip(needs, reason=f"{needs} is not installed")
    got = way(problem)
    assert_gradients(got, problem)
    if problem is WITHOUT_SINKS:
        empty = ~problem.mask.given.any(axis=-1)
        np.testing.assert_array_equal(got["query"][empty], 0.0)


@TORCH_WARNS
@pytest.mark.parametrize("problem", [PROBLEM, WITHOUT_SINKS], ids=["sinks", "no sinks"])
def test_torch_goes_forward(problem: Problem) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    lib = library("torch")
    x, rest = leaves(problem, lib)
    along = directions(x, lib)
    moves = {name: lib.array(a) for name, a in along.items()}
    _, got = torch.func.jvp(lambda x: results(x, rest), (x,), (moves,))
    assert_tangents(tuple(map(lib.values, got)), along, problem)


@pytest.mark.parametrize("problem", [PROBLEM, WITHOUT_SINKS], ids=["sinks", "no sinks"])
def test_jax_goes_forward(problem: Problem) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    lib = library("jax")
    x, rest = leaves(problem, lib)
    along = directions(x, lib)
    moves = {name: lib.array(a) for name, a in along.items()}
    got = jax.jit(lambda x, t: jax.jvp(lambda x: results(x, rest), (x,), (t,))[1])(x, moves)
    assert_tangents(tuple(map(lib.values, got)), along, problem)


@pytest.mark.parametrize("more", [{}, {"is_causal": True}, {"softcap": 2.0}, {"sinks": (0.3, -1.0)}])
def test_gradients_of_rows(more: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    problem = Problem(heads=(2, 1), lengths=(4, 4), features=(3, 2), **more)
    lib = library("torch")
    inputs = [lib.array(x).requires_grad_() for x in problem.arrays]
    arguments = problem.arguments(lib) | {"rows": [(1, 3), (0, 0), (0, 2)]}
    assert torch.autograd.gradcheck(lambda *x: ra.attention_rows(*x, **arguments), inputs)


def test_gradients_of_merged_states() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    lib = library("torch")
    rng = np.random.default_rng(5)
    outputs = [lib.array(rng.standard_normal((3, 2))).requires_grad_() for _ in range(2)]
    lses = [lib.array(rng.standard_normal(3)).requires_grad_() for _ in range(2)]

    def merged(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any]:
        got = ra.merge_states([a, b], [c, d])
        return got.output, got.lse

    assert torch.autograd.gradcheck(merged, (*outputs, *lses))


@pytest.mark.parametrize("to", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_rounding_lets_derivatives_through(name: str, to: str) -> None:
    lib = library(name)
    x = lib.array(np.array([[[1.0, -0.3, 2.0**-140 if to != "float16" else 2.0**-20]]]))
    if name == "torch":
        x.requires_grad_()
        ra.attention(x, x, x, dtype=to, scale=0.0).sum().backward()
        got = x.grad
    else:
        import jax

        got = jax.jit(jax.grad(lambda x: ra.attention(x, x, x, dtype=to, scale=0.0).sum()))(x)
    np.testing.assert_array_equal(lib.values(got), np.ones((1, 1, 3)))
