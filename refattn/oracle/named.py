"""Problems with names, whose correctly rounded results have golden digests.

They are made of the raw bits of a counter-based generator and of powers of two: no library's logarithm or normal
distribution has a part in them, so that they are the same everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import biases, masks

Floats = npt.NDArray[np.float64]

BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8, "float8_e4m3fn": 4, "float8_e5m2": 3}


class _Draws:
    """Numbers drawn one after the other from a generator that a name seeds."""

    def __init__(self, name: str) -> None:
        """Seed it with the letters of the name."""
        self._bits = np.random.Philox(key=int.from_bytes(name.encode("ascii"), "little") % 2**128)

    def integers(self, bits: int, *shape: int) -> Floats:
        """Whole numbers from -2^(bits - 1) up to 2^(bits - 1), which is left out."""
        raw = self._bits.random_raw(math.prod(shape)).reshape(shape) >> np.uint64(64 - bits)
        return raw.astype(np.float64) - 2.0 ** (bits - 1)

    def numbers(self, dtype: str, *shape: int) -> Floats:
        """Numbers of the dtype between -2 and 2."""
        return self.integers(BITS[dtype], *shape) * 2.0 ** (2 - BITS[dtype])

    def operands(
        self, dtype: str, H: int, L: int, E: int, S: int | None = None, Hk: int | None = None
    ) -> dict[str, Any]:
        """Query (H, L, E), key and value (Hk, S, E)."""
        keys = (Hk or H, S or L, E)
        shapes = {"query": (H, L, E), "key": keys, "value": keys}
        return {name: self.numbers(dtype, *shape) for name, shape in shapes.items()}


def _plain(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Nothing but queries, keys and values, in every dtype."""
    return draws.operands(dtype, 2, 96, 32)


def _causal(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Causal."""
    return draws.operands(dtype, 2, 80, 64) | {"is_causal": True}


def _window(draws: _Draws, dtype: str) -> dict[str, Any]:
    """A sliding window of fewer queries than keys, in heads that share keys."""
    window = masks.window(20, 0, anchor="lower_right")
    return draws.operands(dtype, 4, 33, 16, S=70, Hk=2) | {"mask": window}


def _bias(draws: _Draws, dtype: str) -> dict[str, Any]:
    """An added bias, a scale below 0 and queries far from zero, so that few keys take all weight."""
    problem = draws.operands(dtype, 2, 48, 24)
    return problem | {"query": 8 * problem["query"], "bias": draws.numbers(dtype, 2, 48, 48), "scale": -0.75}


def _alibi(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Linear biases, whose slopes are powers of two."""
    return draws.operands(dtype, 4, 64, 20) | {"bias": biases.alibi(4), "is_causal": True}


def _softcap(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Capped scores."""
    return draws.operands(dtype, 2, 64, 32) | {"softcap": 1.5, "scale": 1.0}


def _sinks(draws: _Draws, dtype: str) -> dict[str, Any]:
    """A sink in one head and none in the other."""
    return draws.operands(dtype, 2, 50, 32) | {"sinks": np.array([2.5, -math.inf])}


def _dropout(draws: _Draws, dtype: str) -> dict[str, Any]:
    """A fifth of the weights dropped, as float64 has it: 1 / (1 - 0.2) is no number of it."""
    kept = draws.integers(8, 2, 40, 60) >= -77
    return draws.operands(dtype, 2, 40, 28, S=60) | {"dropout_mask": kept, "dropout_p": 0.2}


def _empty(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Rows that see nothing, some keys or all, with a sink in one head; what nobody sees is NaN."""
    problem = draws.operands(dtype, 2, 40, 16)
    mask = draws.integers(8, 2, 40, 40) >= np.linspace(-128, 128, 40)[:, None]
    mask[:, :, 7] = False
    problem["key"][:, 7], problem["value"][:, 7] = math.nan, math.nan
    return problem | {"mask": mask, "sinks": np.array([0.5, -math.inf])}


def _ties(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Equal weights and whole numbers: many results lie exactly between two numbers of a narrow dtype, or are zero."""
    problem = draws.operands(dtype, 1, 64, 16)
    problem["query"] *= 0.0
    return problem | {"value": draws.integers(min(BITS[dtype] + 3, 53), 1, 64, 16), "is_causal": True}


def _wide(draws: _Draws, dtype: str) -> dict[str, Any]:
    """Numbers from one end of float64's range to the other."""
    problem = draws.operands(dtype, 1, 12, 4)
    exponents = draws.integers(11, 3, 1, 12, 1)
    for x, exponent in zip(problem.values(), np.clip(exponents, -1021, 1021), strict=True):
        x *= np.ldexp(1.0, exponent.astype(int))
    return problem


_FAMILIES = {
    "plain": (_plain, ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")),
    "causal": (_causal, ("float16", "bfloat16")),
    "window": (_window, ("float32", "bfloat16")),
    "bias": (_bias, ("float64", "float16")),
    "alibi": (_alibi, ("float64", "bfloat16")),
    "softcap": (_softcap, ("float32", "bfloat16")),
    "sinks": (_sinks, ("float32", "float16")),
    "dropout": (_dropout, ("float64", "float32")),
    "empty": (_empty, ("float32", "bfloat16")),
    "ties": (_ties, ("float16", "bfloat16", "float8_e5m2")),
    "wide": (_wide, ("float64",)),
}
NAMES = tuple(f"{family}-{dtype}" for family, (_, dtypes) in _FAMILIES.items() for dtype in dtypes)


def named_problem(name: str) -> dict[str, Any]:
    """The arguments of `digest` for a named problem."""
    if name not in NAMES:
        raise ValueError(f"digest: NAME must be one of {', '.join(NAMES)}; got {name!r}.")
    family, _, dtype = name.partition("-")
    return _FAMILIES[family][0](_Draws(name), dtype) | {"dtype": dtype}
