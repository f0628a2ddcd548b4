"""Quantised operands: narrow numbers and their scales, as the float64 numbers that they stand for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, array_namespace, dtype_name, float64, from_numpy, to_numpy
from refattn._core.checks import check_array, check_flag, check_integer
from refattn._core.descale import QUANTISED, check_factor
from refattn.layouts.host import back

Floats = npt.NDArray[np.float64]
Block = tuple[int | None, int | None]

# E2M1: one bit of sign, two of exponent, one of fraction; the code of a magnitude is its place here.
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


class Quantised(NamedTuple):
    """Narrow numbers and what they are multiplied with.

    Attributes
    ----------
    values : array, shape (..., H, L, E), or (..., H, L, E/2) where packed
        The narrow numbers.
    scales : array, shape (..., H, blocks of tokens, blocks of features)
        A factor for each block; any of the axes may be 1, for one factor for all.
    block : tuple (tokens, features)
        Size of a block along each of the two axes, None for the whole axis; the last one may be shorter.
    tensor_scale : array, shape (), or None
        A second factor, of all numbers.
    packed : bool
        Whether `values` are bytes of two E2M1 numbers each.
    """

    values: Array
    scales: Array
    block: Block = (None, None)
    tensor_scale: Array | None = None
    packed: bool = False


def dequantise(
    values: Array,
    scales: Array,
    block: Block = (None, None),
    tensor_scale: Array | None = None,
    packed: bool = False,
) -> Array:
    """Multiply narrow numbers by their scales, exactly: what a kernel with quantised operands is to compute with.

        x[..., i, d] = tensor_scale * scales[..., i // tokens, d // features] * values[..., i, d]

    Parameters
    ----------
    values : array, shape (..., H, L, E), or bytes (..., H, L, E/2)
        Narrow numbers: float8, int8, int16, or any float up to float32.
    scales : array, shape (..., H, blocks of tokens, blocks of features)
        As many axes as `values`, each of the leading ones 1 or as long; float32 or narrower, float8_e8m0fnu and
        float8_e4m3fn among them. Bytes must be viewed as what they are.
    block : tuple (tokens, features), default (None, None)
        Size of a block along each of the two axes, None for the whole axis; the last one may be shorter. The numbers of
        blocks follow from it: (None, 32) is MXFP8 along features, (64, None) int8 keys of 64 tokens each, and (None,
        None) one scale for each head.
    tensor_scale : array, shape (), optional
        A second factor, of all numbers, float32 or narrower.
    packed : bool, default False
        Whether `values` are bytes (uint8) of two E2M1 numbers each, the first in the four low bits.

    Returns
    -------
    array, shape (..., H, L, E)
        float64, of the library and on the device of `values`.

    Raises
    ------
    TypeError
        If an array is of no such dtype, or JAX is without float64.
    ValueError
        If shapes do not fit, or products might not be exact.

    Notes
    -----
    No product is rounded: scales have 24 significant bits at most, and values and tensor scale together at most 29.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> values, scales = np.int8([[[1, 2, 3], [4, 5, 6]]]), np.float32([[[0.5], [0.25]]])
    >>> layouts.dequantise(values, scales, (1, None)).tolist()
    [[[0.5, 1.0, 1.5], [1.0, 1.25, 1.5]]]
    """
    function = "layouts.dequantise"
    if check_flag(function, "packed", packed):
        narrow = unpacked(function, values)
        bits = 2
    else:
        _check_values(function, values)
        narrow = np.asarray(float64(to_numpy(values), np))
        bits = significant_bits(dtype_name(values))
    if dtype_name(scales) == "uint8":
        raise TypeError(
            f"{function}: scales must be floating-point; got uint8. View bytes as the float8 that they are."
        )
    check_factor(function, "scales", scales)
    array_namespace(function, values=values, scales=scales)  # which refuses what has no float64
    if narrow.ndim < 3:
        raise ValueError(f"{function}: values must have at least 3 axes (..., H, L, E); got {narrow.shape}.")
    sizes = block_sizes(function, block, narrow.shape)
    factors = _fitted(function, np.asarray(float64(to_numpy(scales), np)), sizes, narrow.shape)
    whole = narrow * spread(factors, sizes, narrow.shape)
    if tensor_scale is None:
        return from_numpy(whole, like=values)
    check_factor(function, "tensor_scale", tensor_scale)
    if tuple(tensor_scale.shape):
        raise ValueError(f"{function}: tensor_scale must have shape (); got {tuple(tensor_scale.shape)}.")
    bits += significant_bits(dtype_name(scales)) + significant_bits(dtype_name(tensor_scale))
    if bits > 53:
        raise ValueError(
            f"{function}: values, scales and tensor_scale must have at most 53 significant bits together, so that "
            f"their product is exact; got {bits}. Multiply two of them yourself."
        )
    return from_numpy(np.asarray(whole * float64(to_numpy(tensor_scale), np)), like=values)


def unpack_e2m1(packed: Array) -> Array:
    """Numbers that lie in bytes, two in each: sign, two bits of exponent, one of fraction.

    Parameters
    ----------
    packed : array of uint8, shape (..., E/2)
        The first number of each byte is in its four low bits. ``torch.float4_e2m1fn_x2`` must be viewed as bytes.

    Returns
    -------
    array of float32, shape (..., E)
        The numbers, of the library and on the device of `packed`.

    Raises
    ------
    TypeError
        If `packed` is no array of uint8.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> layouts.unpack_e2m1(np.uint8([[0x91, 0x7F]])).tolist()
    [[0.5, -0.5, -6.0, 6.0]]
    """
    return back(unpacked("layouts.unpack_e2m1", packed).astype(np.float32), packed)


def unpacked(function: str, packed: Array) -> Floats:
    """E2M1 numbers (..., E) of bytes (..., E/2), on the host."""
    name = "values" if function.endswith("dequantise") else "packed"
    check_array(function, name, packed)
    if dtype_name(packed) != "uint8":
        raise TypeError(f"{function}: {name} must be bytes (uint8) of two numbers each; got {dtype_name(packed)}.")
    bytes_ = to_numpy(packed)
    codes = np.stack([bytes_ & 15, bytes_ >> 4], axis=-1).reshape(*bytes_.shape[:-1], 2 * bytes_.shape[-1])
    magnitude = E2M1[codes & 7]
    numbers: Floats = np.where(codes & 8, -magnitude, magnitude)
    return numbers


def _check_values(function: str, values: Array) -> None:
    """Numbers of at most 24 significant bits."""
    check_array(function, "values", values)
    if dtype_name(values) not in QUANTISED:
        raise TypeError(
            f"{function}: values must be float32 or narrower, or integers of up to 16 bits; got {dtype_name(values)}."
        )


def block_sizes(function: str, block: object, shape: tuple[int, ...]) -> tuple[int, int]:
    """Tokens and features in a block."""
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise TypeError(f"{function}: block must be a pair (tokens, features); got {block!r}.")
    tokens, features = (
        max(1, length) if size is None else check_integer(function, "block", size, least=1)
        for size, length in zip(block, shape[-2:], strict=True)
    )
    return tokens, features


def spread(scales: Floats, sizes: tuple[int, int], shape: tuple[int, ...]) -> Floats:
    """Scales of blocks (..., blocks of tokens, blocks of features) as those of numbers, or what broadcasts to them."""
    for axis, size in ((-2, sizes[0]), (-1, sizes[1])):
        if scales.shape[axis] > 1:
            scales = np.repeat(scales, size, axis=axis)
    return scales[..., : shape[-2], : shape[-1]]


def significant_bits(name: str) -> int:
    """Most significant bits of a number of a narrow dtype."""
    if "int" in name:
        return int(name.removeprefix("u").removeprefix("int"))
    import ml_dtypes

    return int(ml_dtypes.finfo(name).nmant) + 1


def _fitted(function: str, scales: Floats, sizes: tuple[int, int], shape: tuple[int, ...]) -> Floats:
    """Scales that fit their values."""
    counts = tuple(-(-length // size) for length, size in zip(shape[-2:], sizes, strict=True))
    wanted = (*shape[:-2], *counts)
    if scales.ndim != len(shape) or any(n not in (1, m) for n, m in zip(scales.shape, wanted, strict=True)):
        raise ValueError(
            f"{function}: scales must have the axes (..., H, blocks of tokens, blocks of features), each 1 or as in "
            f"{wanted}; got {scales.shape}."
        )
    if not np.isfinite(scales).all():
        raise ValueError(f"{function}: scales must be finite; got NaN or an infinity.")
    return scales
