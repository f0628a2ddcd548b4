"""Linear attention by loops over Python floats, from similarities in closed form: it shares nothing with refattn.

A similarity takes a query times its scale, a key, and their positions counted from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Similarity = Callable[[list[float], list[float], int, int], float]


def dot(q: list[float], k: list[float]) -> float:
    """A product, rounded once."""
    return math.fsum(a * b for a, b in zip(q, k, strict=True))


def softmax(x: list[float]) -> list[float]:
    """exp(x) / sum exp(x)."""
    e = [math.exp(a - max(x)) for a in x]
    return [a / math.fsum(e) for a in e]


def _elu(q: list[float], k: list[float], i: int, j: int) -> float:
    return dot(*([a + 1 if a > 0 else math.exp(a) for a in x] for x in (q, k)))


def _relu(q: list[float], k: list[float], i: int, j: int) -> float:
    return dot(*([max(a, 0.0) for a in x] for x in (q, k)))


def cosformer(length: int) -> Similarity:
    """The product of relu features times the cosine of the distance."""
    return lambda q, k, i, j: _relu(q, k, i, j) * math.cos(math.pi * (i - j) / (2 * length))


def fourier(frequencies: np.ndarray, scale: float) -> Similarity:
    """The mean cosine of w.(q - k)."""

    def similarity(q: list[float], k: list[float], i: int, j: int) -> float:
        apart = [math.sqrt(scale) * (a - b) for a, b in zip(q, k, strict=True)]
        return math.fsum(math.cos(dot(list(w), apart)) for w in frequencies) / len(frequencies)

    return similarity


SIMILARITIES: dict[str, Similarity] = {
    "elu+1": _elu,
    "relu": _relu,
    "identity": lambda q, k, i, j: dot(q, k),
    "softmax": lambda q, k, i, j: dot(softmax(q), softmax(k)),
    "taylor": lambda q, k, i, j: 1 + dot(q, k) + dot(q, k) ** 2 / 2,
    "squared": lambda q, k, i, j: dot(q, k) ** 2,
}


def attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, keep: np.ndarray, similarity: Similarity, *, scale: float,
    normalize: bool = True, divisor: Callable[[float], float] = lambda z: z, position: int = 0,
) -> Any:  # fmt: skip
    """Output (..., H, L, Ev) for cells `keep` (..., H, L, S); `divisor` is what a normaliser becomes."""
    output = np.zeros((*query.shape[:-1], value.shape[-1]))
    group = query.shape[-3] // key.shape[-3]
    for at in np.ndindex(query.shape[:-1]):
        of_key, i = (*at[:-2], at[-2] // group), at[-1]
        q = [scale * float(x) for x in query[at]]
        seen = [j for j in range(key.shape[-2]) if keep[(*at, j)]]
        A = [similarity(q, key[(*of_key, j)].tolist(), position + i + 1, position + j + 1) for j in seen]
        D = divisor(math.fsum(A)) if normalize else 1.0
        for e in range(value.shape[-1] if seen else 0):
            N = math.fsum(a * float(value[(*of_key, j, e)]) for a, j in zip(A, seen, strict=True))
            output[(*at, e)] = N / D if D else math.nan
    return output
