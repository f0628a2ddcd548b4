"""Operands made narrow as quantised kernels take them: by largest magnitude, in MX blocks, in NVFP4."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, dtype_of, float64, from_numpy, quiet, round_to
from refattn._core.checks import check_choice
from refattn.layouts.host import on_host
from refattn.layouts.quantised import E2M1, Block, Floats, Quantised, block_sizes, spread

NARROW = ("int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
# Numbers in an MX block and in one of NVFP4.
MX_BLOCK, NVFP4_BLOCK = 32, 16
# Exponent of the largest number of each element of MX, and that number.
MX = {"float8_e4m3fn": (8, 448.0), "float8_e5m2": (15, 57344.0), "float4_e2m1fn": (2, 6.0)}
TIES = (E2M1[1:] + E2M1[:-1]) / 2
SMALLEST = float(np.finfo(np.float32).smallest_normal)


@quiet
def quantise(x: Array, dtype: str, block: Block | str = (None, None)) -> Quantised:
    """Narrow numbers and one float32 scale for each block: the largest magnitude becomes the largest of the dtype.

        scale = max |x| / max(dtype),    values = round(x / scale)

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        Finite numbers.
    dtype : {"int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
        Dtype of the values. The largest of int8 counts as 127.
    block : tuple (tokens, features) or "tensor", default (None, None)
        Size of a block along each of the two axes, None for the whole axis, so that the default is one scale for each
        head; "tensor": one for all.

    Returns
    -------
    Quantised
        ``(values, scales, block, None, False)``, of the library and on the device of `x`; `dequantise` takes them.

    Raises
    ------
    TypeError
        If `x` is no array, or its library lacks the dtype.
    ValueError
        If `x` has fewer than 3 axes, or is not finite, or the dtype is none of these.

    Notes
    -----
    Values are rounded once, to nearest even, from the float64 quotient. The scale of a block of zeros, or of numbers
    for which it would be below 2**-126, is 2**-126.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> values, scales, *_ = layouts.quantise(np.array([[[127.0, -64.0], [2.0, 254.0]]]), "int8", (1, None))
    >>> values.tolist(), scales.tolist()
    ([[[127, -64], [1, 127]]], [[[1.0], [2.0]]])
    """
    function = "layouts.quantise"
    check_choice(function, "dtype", dtype, NARROW)
    host = _finite(function, x)
    most = 127.0 if dtype == "int8" else float(ml_dtypes.finfo(dtype).max)
    if isinstance(block, str):
        check_choice(function, "block", block, ("tensor",))
        block = (None, None)
        largest: Floats = np.full((1,) * host.ndim, np.abs(host).max(initial=0.0))
    else:
        largest = _largest(host, block_sizes(function, block, host.shape))
    scales = np.maximum(largest / most, SMALLEST).astype(np.float32)
    if not np.isfinite(scales).all():
        raise ValueError(f"{function}: x must have magnitudes that float32 scales hold; got {largest.max()}.")
    factors = spread(scales.astype(np.float64), block_sizes(function, block, host.shape), host.shape)
    quotient = np.clip(host / factors, -most, most)
    values = np.rint(quotient).astype(np.int8) if dtype == "int8" else round_to(quotient, dtype, np)
    return Quantised(_like(values, x), _like(scales, x), (block[0], block[1]))


@quiet
def quantise_mx(x: Array, dtype: str = "float8_e4m3fn", *, axis: int = -1, scale: str = "down") -> Quantised:
    """Numbers in blocks of 32 with a power of two for each: MXFP8, or MXFP4.

        scale = 2**(floor(log2(max |x|)) - emax(dtype)),    values = clip(round(x / scale))

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        Finite numbers.
    dtype : {"float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"}, default "float8_e4m3fn"
        The element; the last comes packed, two in a byte.
    axis : {-1, -2}, default -1
        Axis along which blocks lie, that over which a product sums: features of query and key, tokens of value.
    scale : {"down", "up"}, default "down"
        "down" is the rule of the OCP specification above, by which numbers past the largest of the element are clipped;
        "up" takes the least power of two by which none is: what cuDNN does.

    Returns
    -------
    Quantised
        ``(values, scales, block, None, packed)``, scales in float8_e8m0fnu; `dequantise` takes them.

    Raises
    ------
    TypeError
        If `x` is no array, or its library lacks a dtype.
    ValueError
        If `x` has fewer than 3 axes, is not finite, or has an odd number of features where two lie in a byte.

    Notes
    -----
    Values are rounded once, to nearest even. Scales keep to 2**-127 .. 2**127; that of a block of zeros is the least.

    References
    ----------
    .. [1] Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0, 2023, section 6.3.
    .. [2] NVIDIA, cuDNN documentation, "Block Scaling": ``quantize_round_up(amax(vals) / vmax_otype)``.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> x = np.array([[[0.75, -7.9]]])
    >>> for rule in ("down", "up"):
    ...     values, scales, *_ = layouts.quantise_mx(x, scale=rule)
    ...     print(values.astype(float)[0, 0], scales.astype(float)[0, 0])
    [  48. -448.] [0.015625]
    [  24. -256.] [0.03125]
    """
    function = "layouts.quantise_mx"
    check_choice(function, "dtype", dtype, tuple(MX))
    check_choice(function, "scale", scale, ("down", "up"))
    host, (top, most) = _finite(function, x), MX[dtype]
    block = _along(function, axis, MX_BLOCK)
    sizes = block_sizes(function, block, host.shape)
    fraction, exponent = np.frexp(_largest(host, sizes))
    exponent = exponent - 1 - top
    if scale == "up":
        exponent = exponent + (2 * fraction > most / 2.0**top)
    # frexp gives 0 the exponent 0.
    exponent = np.where(fraction == 0, -127, np.clip(exponent, -127, 127))
    scales = np.ldexp(1.0, exponent)
    quotient = np.clip(host / spread(scales, sizes, host.shape), -most, most)
    stored = _like(scales.astype(dtype_of("float8_e8m0fnu", np)), x)
    if dtype == "float4_e2m1fn":
        return Quantised(_like(_packed(function, quotient), x), stored, block, None, True)
    return Quantised(_like(round_to(quotient, dtype, np), x), stored, block)


@quiet
def quantise_nvfp4(x: Array, *, axis: int = -1) -> Quantised:
    """NVFP4: E2M1 numbers in blocks of 16 with an E4M3 scale each, and a float32 scale of all.

        tensor_scale = max |x| / (448 * 6),  scale = round(max |x of block| / 6 / tensor_scale),
        values = clip(round(x / (scale * tensor_scale)))

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        Finite numbers, E even.
    axis : {-1, -2}, default -1
        Axis along which blocks lie: features of query and key, tokens of value.

    Returns
    -------
    Quantised
        ``(values, scales, block, tensor_scale, True)``: bytes of two numbers each along the features, the first in the
        low bits; scales in float8_e4m3fn. `dequantise` takes them.

    Raises
    ------
    TypeError
        If `x` is no array, or its library lacks float8_e4m3fn.
    ValueError
        If `x` has fewer than 3 axes, is not finite, or has an odd number of features.

    Notes
    -----
    Values are rounded once, to nearest even. A block whose scale rounds to 0 has values 0.

    References
    ----------
    .. [1] NVIDIA, cuDNN documentation, "Block Scaling": the NVFP4 recipe.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> parts = layouts.quantise_nvfp4(np.array([[[448.0 * 6, -448.0, 1.0, 224.0]]]))
    >>> float(parts.tensor_scale), layouts.dequantise(*parts).tolist()
    (1.0, [[[2688.0, -448.0, 0.0, 224.0]]])
    """
    function = "layouts.quantise_nvfp4"
    host = _finite(function, x)
    block = _along(function, axis, NVFP4_BLOCK)
    sizes = block_sizes(function, block, host.shape)
    largest = _largest(host, sizes)
    tensor = np.maximum(np.float32(largest.max(initial=0.0) / (448.0 * 6.0)), np.float32(SMALLEST))
    if not np.isfinite(tensor):
        raise ValueError(f"{function}: x must have magnitudes that a float32 scale holds; got {largest.max()}.")
    scales = round_to(np.minimum(largest / 6.0 / float(tensor), 448.0), "float8_e4m3fn", np)
    factor = spread(scales.astype(np.float64) * float(tensor), sizes, host.shape)
    quotient = np.clip(np.divide(host, factor, out=np.zeros_like(host), where=factor > 0), -6.0, 6.0)
    return Quantised(_like(_packed(function, quotient), x), _like(scales, x), block, _like(np.asarray(tensor), x), True)


def _finite(function: str, x: Array) -> Floats:
    """An operand on the host, in float64."""
    host: Floats = np.asarray(float64(on_host(function, "x", x, None), np))
    if host.ndim < 3:
        raise ValueError(f"{function}: x must have at least 3 axes (..., H, L, E); got {host.shape}.")
    if not np.isfinite(host).all():
        raise ValueError(f"{function}: x must be finite; got NaN or an infinity.")
    return host


def _along(function: str, axis: object, size: int) -> Block:
    """Blocks along one of the last two axes."""
    if axis not in (-1, -2):
        raise ValueError(f"{function}: axis must be -1 (features) or -2 (tokens); got {axis!r}.")
    return (1, size) if axis == -1 else (size, 1)


def _largest(x: Floats, sizes: tuple[int, int]) -> Floats:
    """Largest magnitude of each block (..., blocks of tokens, blocks of features)."""
    found: Floats = np.abs(x)
    for axis, size in ((-2, sizes[0]), (-1, sizes[1])):
        found = np.maximum.reduceat(found, np.arange(0, found.shape[axis], size), axis=axis)
    return found


def _packed(function: str, x: Floats) -> npt.NDArray[np.uint8]:
    """Numbers up to 6 rounded to nearest even in E2M1, two in a byte."""
    if x.shape[-1] % 2:
        raise ValueError(f"{function}: x must have an even number of features, two in a byte; got {x.shape[-1]}.")
    magnitude = np.abs(x)
    codes = np.searchsorted(TIES, magnitude, side="left")
    # At a tie the lower code was found; the even one has an even fraction.
    codes = codes + (np.isin(magnitude, TIES) & (codes % 2 == 1))
    codes = (codes | np.where(np.signbit(x), 8, 0)).astype(np.uint8)
    return np.asarray(codes[..., ::2] | (codes[..., 1::2] << 4))


def _like(x: npt.NDArray[Any], like: Array) -> Array:
    """An array of the library and on the device of another."""
    return from_numpy(np.array(x, order="C"), like=like)
