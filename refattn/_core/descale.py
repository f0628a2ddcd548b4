"""Factors of quantised operands: checked, and multiplied in float64, where no product is rounded."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from refattn._core.arrays import FLOATS, Array, Namespace, dtype_name, float64, is_array, known, to_numpy
from refattn._core.checks import check_array

OPERANDS = ("query", "key", "value")
# A factor has at most 24 significant bits, so these operands times it have at most 48, and float64 holds 53.
FACTORS = tuple(name for name in FLOATS if name != "float64")
LIMIT: Any = 2**128
QUANTISED = (*FACTORS, "int8", "int16", "uint8", "uint16")


def check_factor(function: str, name: str, x: Any) -> None:
    """An array of factors."""
    check_array(function, name, x, FLOATS)
    if dtype_name(x) not in FACTORS:
        raise TypeError(f"{function}: {name} must be float32 or narrower, as kernels hold it; got {dtype_name(x)}.")


def check_descale(function: str, descale: object) -> tuple[Any, Any, Any]:
    """Factors of query, key and value: arrays, numbers, or None for none."""
    if descale is None:
        return None, None, None
    if not isinstance(descale, Sequence) or isinstance(descale, str) or len(descale) != len(OPERANDS):
        got = f"{len(descale)} entries" if isinstance(descale, list | tuple) else type(descale).__name__
        raise TypeError(
            f"{function}: descale must be a tuple (query, key, value) of arrays, numbers or None; got {got}."
        )
    for n, factor in enumerate(descale):
        _check_kind(function, _name(n), factor)
    query, key, value = descale
    return query, key, value


def descaled(function: str, n: int, x: Array, factor: Any, groups: tuple[int, int], xp: Namespace) -> Array:
    """Operand number n in float64, times its factor; as it came, where there is none."""
    if factor is None:
        return x
    if dtype_name(x) not in QUANTISED:
        raise TypeError(
            f"{function}: {OPERANDS[n]} must have at most 24 significant bits where descale multiplies it, so that the "
            f"product is exact; got {dtype_name(x)}. Multiply it yourself and leave its entry of descale None."
        )
    exact = float64(x, xp)
    if not is_array(factor):
        return exact * float(factor)
    if not factor.shape:
        return exact * float64(factor, xp)
    return _blockwise(exact, _fitted(function, n, tuple(x.shape), factor, groups, xp), xp)


def on_host(function: str, descale: object) -> tuple[Any, Any, Any] | None:
    """Factors with their arrays as NumPy arrays, from any libraries."""
    if descale is None:
        return None
    query, key, value = (to_numpy(x) if is_array(x) else x for x in check_descale(function, descale))
    return query, key, value


def check_whole(function: str, descale: object, B: int) -> tuple[Any, Any, Any]:
    """Factors without blocks of tokens, for B sequences that have lengths of their own."""
    factors = check_descale(function, descale)
    for n, x in enumerate(factors):
        shape = tuple(x.shape) if is_array(x) else ()
        if shape and not (len(shape) in (3, 4) and shape[0] in (1, B) and shape[2] == 1):
            raise ValueError(
                f"{function}: {_name(n)} must have shape (B, heads, 1), with B={B} or 1, where sequences have lengths "
                f"of their own; got {shape}. Pass layouts.dequantise(...) for blocks of tokens."
            )
    return factors


def _check_kind(function: str, name: str, factor: Any) -> None:
    """A factor of at most 24 significant bits."""
    if factor is None:
        return
    if is_array(factor):
        check_factor(function, name, factor)
        return
    if isinstance(factor, bool | np.bool_) or not isinstance(factor, numbers.Real):
        raise TypeError(f"{function}: {name} must be an array, a number or None; got {type(factor).__name__}.")
    # Past 2**128 float32 has no numbers, and float64 has none for some integers.
    number = float(factor) if abs(factor) < LIMIT else math.inf
    if not (math.isfinite(number) and float(np.float32(number)) == factor):
        raise ValueError(
            f"{function}: {name} must be a finite number that float32 holds, as kernels do; got {str(factor)[:24]}. "
            "Round it with numpy.float32."
        )


def _fitted(
    function: str, n: int, shape: tuple[int, ...], factor: Array, groups: tuple[int, int], xp: Namespace
) -> Array:
    """An operand's factors in float64, (..., heads, blocks of tokens, blocks of features)."""
    own = tuple(factor.shape)
    if len(own) not in (len(shape) - 1, len(shape)):
        hint = " Pass x[..., None] for one factor for each head." if len(own) == len(shape) - 2 else ""
        raise ValueError(
            f"{function}: {_name(n)} must have the axes (..., heads, blocks), one fewer than {OPERANDS[n]} {shape}, or "
            f"(..., heads, blocks of tokens, blocks of features); got {own}.{hint}"
        )
    scales = float64(factor, xp)
    if known(xp.any(~xp.isfinite(scales))):
        raise ValueError(f"{function}: {_name(n)} must be finite; got NaN or an infinity.")
    if len(own) == len(shape) - 1:
        scales = xp.expand_dims(scales, axis=-1)
    if n == 0 and groups[1] > 1 and scales.shape[-3] == groups[0] > 1:
        scales = _of_query_heads(scales, groups[1], xp)
    blocks = tuple(scales.shape)
    if not all(a in (1, b) for a, b in zip(blocks[:-2], shape[:-2], strict=True)):
        heads = "heads, or key heads," if n == 0 else "heads"
        raise ValueError(
            f"{function}: {_name(n)} must have 1 or as many {heads} and batch entries as {OPERANDS[n]} {shape}; got "
            f"{own}."
        )
    for axis, tokens in ((-2, "tokens"), (-1, "features")):
        if blocks[axis] == 0 or shape[axis] % blocks[axis]:
            raise ValueError(
                f"{function}: {_name(n)} must cut the {shape[axis]} {tokens} of {OPERANDS[n]} into blocks of one size; "
                f"got {blocks[axis]} blocks. Pass layouts.dequantise(...) where the last block is shorter."
            )
    return scales


def _of_query_heads(scales: Array, group: int, xp: Namespace) -> Array:
    """Factors of key heads (..., Hk, a, b) as those of the query heads (..., H, a, b) that read them."""
    *lead, heads, a, b = scales.shape
    shared = xp.broadcast_to(xp.expand_dims(scales, axis=-3), (*lead, heads, group, a, b))
    return xp.reshape(shared, (*lead, heads * group, a, b))


def _blockwise(x: Array, scales: Array, xp: Namespace) -> Array:
    """An operand (..., L, E) times the factors (..., blocks of tokens, blocks of features)."""
    shape, blocks = tuple(x.shape), tuple(scales.shape[-2:])
    if all(n in (1, size) for n, size in zip(blocks, shape[-2:], strict=True)):
        return x * scales
    tokens, features = (size // n for n, size in zip(blocks, shape[-2:], strict=True))
    cut = xp.reshape(x, (*shape[:-2], blocks[0], tokens, blocks[1], features))
    return xp.reshape(cut * xp.expand_dims(xp.expand_dims(scales, axis=-2), axis=-1), shape)


def _name(n: int) -> str:
    """How messages call an entry."""
    return f"descale[{n}] (of {OPERANDS[n]})"
