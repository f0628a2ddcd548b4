"""One small problem, attention on it in loops over Python floats, and what the bugs of the catalogue compute on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refattn import masks
from refattn.testing import bugs
from tests.testing.kernels import normal

B, H, HK, L, S, E = 2, 4, 2, 5, 9, 4
G, SCALE = H // HK, 0.4
Q, K, V = (normal(shape, "float64", n) for n, shape in enumerate(((B, H, L, E), (B, HK, S, E), (B, HK, S, E))))
SINKS = normal((H,), "float64", 7)
LOWER = masks.causal("lower_right")
Rule = Callable[[int, int, int], tuple[list[float], float]]
LOG2E = math.log2(math.e)


# The largest exponent of an entry: a score in base 2, and a sink, and the distances that ALiBi's slopes multiply.
TOP = LOG2E * SCALE * float(np.abs(Q[:, :, :, None] * K.repeat(G, axis=1)[:, :, None]).sum(axis=-1).max())
TOP += float(np.abs(SINKS).max()) + S


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the roundings of E products, of exponentials of up to TOP, and of two sums over S keys."""
    room = 2 * (E + 2 * S + 4 * (1 + TOP)) * 2.0**-53
    np.testing.assert_allclose(got, expected, rtol=0, atol=room * max(1.0, float(np.abs(expected).max())))


def dot(a: Any, b: Any) -> float:
    """Product of two rows."""
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def score(b: int, h: int, i: int, j: int, scale: float = SCALE) -> float:
    """Scaled product of a query and a key."""
    return scale * dot(Q[b, h, i], K[b, h // G, j])


def average(weights: dict[int, float], value: Any, extra: float = 0.0) -> tuple[list[float], float]:
    """Weighted mean of values, and logarithm of the sum, with more in the denominator."""
    total = math.fsum(weights.values()) + extra
    return [math.fsum(w * float(value[j][e]) for j, w in weights.items()) / total for e in range(E)], math.log(total)


def usual(b: int, h: int, i: int, keys: Any = range(S), power: float = 1.0) -> dict[int, float]:
    """Exponentials of the scores of some keys."""
    return {j: math.exp(power * score(b, h, i, j)) for j in keys}


def of_rule(rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of all rows."""
    output, lse = np.zeros((B, H, L, E)), np.zeros((B, H, L))
    for b, h, i in np.ndindex(B, H, L):
        output[b, h, i], lse[b, h, i] = rule(b, h, i)
    return output, lse


def of_bug(id: str, words: str = "", choice: Any = None, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of the bug of an id whose name begins with some words."""
    (bug,) = (bug for bug in bugs.get(id) if bug.name.startswith(words))
    p = bugs.problem(Q, K, V, **{"scale": SCALE, **given})
    variants = [x for x in bug.variants(p) if choice is None or choice in (x.choice, x.label)]
    result = variants[0].apply()
    return result.output, result.lse


def right(b: int, h: int, i: int) -> Any:
    """Attention."""
    return average(usual(b, h, i), V[b, h // G])


def thirds(b: int, h: int, i: int) -> list[tuple[list[float], float]]:
    """Output and log-sum-exp of each third of the keys."""
    return [average(usual(b, h, i, range(3 * n, 3 * n + 3)), V[b, h // G]) for n in range(3)]


def maximum(b: int, h: int, i: int) -> float:
    """The largest score of a row."""
    return max(score(b, h, i, j) for j in range(S))


def stale_maximum(b: int, h: int, i: int) -> float:
    """The maximum of the first row of two."""
    return maximum(b, h, i // 2 * 2)


def window_of(first: int, last: int) -> Rule:
    """Keys from first to last beside the diagonal of the lower right corner."""
    return lambda b, h, i: average(
        usual(b, h, i, range(max(0, i + S - L + first), min(S, i + S - L + last + 1))), V[b, h // G]
    )
