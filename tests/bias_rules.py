"""Biases that are rules on positions, each beside its definition: a plain function of (..., h), query and key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn import biases

KINDS = ("alibi", "relative", "from_function")

Offset = Callable[[tuple[int, ...]], int]
Rule = Callable[[tuple[int, ...], int, int], float]


def made(
    kind: str, rng: np.random.Generator, batch: tuple[int, ...], H: int, anchor: Any, offset: Offset
) -> tuple[str, biases.Bias, Rule]:
    """A bias of the kind with drawn numbers: what it is called, the bias, its definition."""
    return {"alibi": _alibi, "relative": _relative, "from_function": _from_function}[kind](
        rng, batch, H, anchor, offset
    )


def _alibi(
    rng: np.random.Generator, batch: tuple[int, ...], H: int, anchor: Any, offset: Offset
) -> tuple[str, biases.Bias, Rule]:
    published = bool(rng.integers(2))
    slopes = alibi_slopes(H) if published else rng.random((*batch, H)[rng.integers(len(batch) + 1) :])
    return (
        f"alibi(slopes {slopes.shape}, {anchor!r})",
        biases.alibi(H if published else slopes, anchor=anchor),
        lambda index, i, j: -float(own(slopes, index)) * abs(i + offset(index[:-1]) - j),
    )


def _relative(
    rng: np.random.Generator, batch: tuple[int, ...], H: int, anchor: Any, offset: Offset
) -> tuple[str, biases.Bias, Rule]:
    R = int(rng.integers(5))
    lead = tuple(n if rng.integers(2) else 1 for n in (*batch, H))[rng.integers(len(batch) + 2) :]
    table = rng.standard_normal((*lead, 2 * R + 1))

    def rule(index: tuple[int, ...], i: int, j: int) -> float:
        return float(own(table, (*index, max(-R, min(R, j - i - offset(index[:-1]))) + R)))

    return f"relative(table {table.shape}, {anchor!r})", biases.relative(table, anchor=anchor), rule


def _from_function(
    rng: np.random.Generator, batch: tuple[int, ...], H: int, anchor: Any, offset: Offset
) -> tuple[str, biases.Bias, Rule]:
    of_head, of_batch = bool(rng.integers(2)), len(batch) == 1 and bool(rng.integers(2))
    k = int(rng.integers(1, 9))

    def f(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return (5 * b + 3 * h + q - 2 * kv) % k / 4 - 1

    return (
        f"from_function({k}, {of_head}, {of_batch})",
        biases.from_function(f, batch=batch[0] if of_batch else None, heads=H if of_head else None),
        lambda index, i, j: f(index[0] if of_batch else 0, index[-1] if of_head else 0, i, j),
    )


def own(x: np.ndarray, index: tuple[int, ...]) -> Any:
    """The number of x, which broadcasts, at an index into all axes."""
    return x[tuple(0 if n == 1 else k for k, n in zip(index[len(index) - x.ndim :], x.shape, strict=True))]


def alibi_slopes(H: int) -> np.ndarray:
    """The slopes as the recursion in the ALiBi paper's code gives them, in exact exponents of 2."""

    def exponents(n: int) -> list[float]:
        if n & (n - 1) == 0:
            return [-8.0 * (h + 1) / n for h in range(n)]
        closest = 2 ** math.floor(math.log2(n))
        return exponents(closest) + exponents(2 * closest)[0::2][: n - closest]

    return np.array([2.0**x for x in exponents(H)])
