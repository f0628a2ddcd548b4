"""Contracts of the kernels people write, and the public argument `contract` turned into one."""

from __future__ import annotations

import math

from refattn._core.arrays import dtype_name
from refattn.contract.record import OPERANDS, STORED, Contract

FLASH = ("float64", "float32", "float16", "bfloat16")

# Exponentials made for half-precision weights: PyTorch's CPU kernels err by 1.3e-4 on x86 (measured) and 3.1e-4 on Arm
# (its cubic against exp), which is 2600 ulp of float32.
HALF_EXP_ULP = 3072.0
# PyTorch's CPU kernels in float32 call exponentials that promise 20 ulp.
VECTOR_EXP_ULP = 20.0
# The polynomial of refattn's own kernels: `refattn._core.numba_math.exp2_error`.
POLYNOMIAL_EXP_ULP = 1.0
# NVIDIA's tanh.approx.f32 is taken to have a relative error of at most 2**-11.
APPROXIMATE_TANH_ULP = 4096.0


def flash(dtype: str) -> Contract:
    """Return the contract of tiled kernels: weights in `dtype`, not normalised, and everything else in float32.

    Parameters
    ----------
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Dtype of query, key, value and output, by name or as any library's dtype. float64 is computed in float64.

    Returns
    -------
    Contract
        Covers FlashAttention and its kin (any tile of at least 16 keys in any order, split keys, exp or exp2; in half
        precision also a maximum that lags behind by up to 8 ln 2) and PyTorch's CPU flash backend.

    Raises
    ------
    ValueError
        If there is no such preset.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.flash("float32").accumulate
    'ieee'
    """
    name = _dtype("flash", dtype, FLASH)
    half = name in ("float16", "bfloat16")
    accumulator = "float64" if name == "float64" else "float32"
    return Contract(
        query=name,
        key=name,
        value=name,
        scores=accumulator,
        probabilities=name,
        accumulate="tensor_core" if half else "ieee",
        accumulator=accumulator,
        output=name,
        lse=accumulator,
        exp_ulp=HALF_EXP_ULP if half else VECTOR_EXP_ULP if name == "float32" else 4.0,
        tanh_ulp=APPROXIMATE_TANH_ULP if half else 8.0,
        lazy=8 * math.log(2) if half else 0.0,
    )


def eager(dtype: str) -> Contract:
    """Return the contract of plain framework code: each stage is one array operation whose result is stored in `dtype`.

    Parameters
    ----------
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Dtype of all arrays, by name or as any library's dtype.

    Returns
    -------
    Contract
        Covers ``softmax(query @ key^T * scale + bias) @ value`` with scores, biased scores and normalised weights
        rounded to `dtype`, products accumulated in float32, the softmax taken in float32; scale applied to the product,
        or as its square root to query and key, which are then rounded again (PyTorch's math backend).

    Raises
    ------
    ValueError
        If there is no such preset.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.eager("bfloat16").normalised_probabilities
    True
    """
    name = _dtype("eager", dtype, FLASH)
    half = name in ("float16", "bfloat16")
    accumulator = "float64" if name == "float64" else "float32"
    return Contract(
        query=name,
        key=name,
        value=name,
        rounded=("query", "key"),
        scores=name,
        probabilities=name,
        normalised_probabilities=True,
        accumulate="tensor_core" if half else "ieee",
        accumulator=accumulator,
        output=name,
        lse=accumulator,
        exp_ulp=4.0 if name == "float64" else VECTOR_EXP_ULP,
        tanh_ulp=8.0,
        merges=0,
    )


def tf32() -> Contract:
    """Return the contract of tiled float32 kernels whose products run on tensor cores as tf32.

    Returns
    -------
    Contract
        Float32 in and out; query, key, value and the weights lose all but 11 significant bits before their products.
        They may be cut off or rounded: kernels that hand float32 registers to the tensor core cut. For one that rounds
        (cvt.rna), ``dataclasses.replace(tf32(), rounding="nearest")`` is twice as sharp.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.tf32().output
    'float32'
    """
    return Contract(
        query="tf32",
        key="tf32",
        value="tf32",
        rounded=OPERANDS,
        rounding="toward_zero",
        probabilities="tf32",
        accumulate="tensor_core",
        output="float32",
        exp_ulp=VECTOR_EXP_ULP,
        tanh_ulp=APPROXIMATE_TANH_ULP,
    )


def fp8(output: str = "bfloat16") -> Contract:
    """Return the contract of tiled FP8 kernels on Hopper: float8_e4m3fn operands and weights, 14-bit accumulation.

    Parameters
    ----------
    output : str, optional
        Dtype of the output.

    Returns
    -------
    Contract
        Query, key and value are the dequantised values. The weights are not normalised; a common factor of up to 2**8
        on them is covered. The row sum is accumulated in float32. No lazy rescaling.

    Raises
    ------
    ValueError
        If `output` is no format.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.fp8(output="float16").accumulator_bits
    14
    """
    name = "float8_e4m3fn"
    return Contract(
        query=name,
        key=name,
        value=name,
        probabilities=name,
        accumulate="tensor_core",
        accumulator_bits=14,
        accumulator_terms=16,
        output=_dtype("fp8", output, STORED),
        exp_ulp=HALF_EXP_ULP,
        tanh_ulp=APPROXIMATE_TANH_ULP,
        weight_shift=8,
    )


def mxfp8(output: str = "bfloat16") -> Contract:
    """Return the contract of tiled MXFP8 kernels: float8_e4m3fn in blocks of 32 with a power of two as scale.

    Parameters
    ----------
    output : str, optional
        Dtype of the output.

    Returns
    -------
    Contract
        Query, key and value are the dequantised values (`layouts.dequantise`, or ``descale=``). The weights have
        scales of their own, which may clip (OCP MX specification 1.0); ``dataclasses.replace(mxfp8(),
        probability_scale="e8m0 up")`` is for kernels that round a scale up, and nearly twice as sharp. The row sum adds
        weights before they are rounded. Sums are float32, of 24 bits in the tensor core. The maximum may lag behind by
        up to 8 ln 2.

    Raises
    ------
    ValueError
        If `output` is no format.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.mxfp8().probability_block
    32
    """
    return _in_blocks("mxfp8", "float8_e4m3fn", "e8m0 down", 32, output)


def nvfp4(output: str = "bfloat16") -> Contract:
    """Return the contract of tiled NVFP4 kernels: float4_e2m1fn in blocks of 16 with a scale in float8_e4m3fn.

    Parameters
    ----------
    output : str, optional
        Dtype of the output.

    Returns
    -------
    Contract
        Query, key and value are the dequantised values (`layouts.dequantise`). The weights have scales of their own,
        and may carry a common factor of 1 or more under which no scale overflows; the row sum adds weights before they
        are rounded. Sums are float32, of 24 bits in the tensor core. The maximum may lag behind by up to 8 ln 2.

    Raises
    ------
    ValueError
        If `output` is no format.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.nvfp4().probability_scale
    'e4m3'
    """
    return _in_blocks("nvfp4", "float4_e2m1fn", "e4m3", 16, output)


def numba(dtype: str) -> Contract:
    """Return the contract of refattn's own CPU kernels: all in the accumulator's format, exponentials within an ulp.

    Parameters
    ----------
    dtype : {"float64", "float32", "float16", "bfloat16"}
        Dtype of query, key, value and output, by name or as any library's dtype. float64 is computed in float64, all
        others in float32.

    Returns
    -------
    Contract
        Covers ``implementation="numba"``: products of fused operations, tiles of at least 32 keys, parts of the keys
        merged by maximum, sum and output; a softcap's tanh is made of exponentials.

    Raises
    ------
    ValueError
        If there is no such preset.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.numba("bfloat16").probabilities
    'float32'
    """
    name = _dtype("numba", dtype, FLASH)
    accumulator = "float64" if name == "float64" else "float32"
    return Contract(
        query=name,
        key=name,
        value=name,
        scores=accumulator,
        probabilities=accumulator,
        accumulate="ieee",
        accumulator=accumulator,
        output=name,
        lse=accumulator,
        exp_ulp=POLYNOMIAL_EXP_ULP,
        rescale_ulp=POLYNOMIAL_EXP_ULP,
        tanh_ulp=0.0,
        min_tile=32,
        merges=0,
    )


def resolve(contract: Contract | str | None, output_dtype: object) -> Contract:
    """Turn the public argument `contract` into a Contract.

    Parameters
    ----------
    contract : Contract, str or None
        A contract; a string, which means `flash` of it; None, which means `flash` of the output's dtype, or `fp8` for
        an FP8 output.
    output_dtype : dtype or str
        Dtype of the kernel's output.

    Returns
    -------
    Contract
        The contract itself, or the preset.

    Raises
    ------
    TypeError
        If `contract` is none of these.
    ValueError
        If there is no preset of that name.

    Examples
    --------
    >>> from refattn import contract
    >>> contract.resolve(None, "bfloat16") == contract.flash("bfloat16")
    True
    """
    if isinstance(contract, Contract):
        return contract
    if isinstance(contract, str):
        return flash(contract)
    if contract is not None:
        raise TypeError(
            f"contract must be a Contract, a string or None; got {type(contract).__name__}. Pass one of "
            "refattn.contract.flash, eager, tf32, fp8, mxfp8 or nvfp4."
        )
    name = dtype_name(output_dtype)
    return fp8(output=name) if name.startswith("float8") else flash(name)


def preset_calls() -> list[tuple[str, Contract]]:
    """The call that makes each preset, and the preset."""
    named = [(f"{make.__name__}({name!r})", make(name)) for make in (flash, eager, numba) for name in FLASH]
    eights = [(f"fp8(output={name!r})", fp8(output=name)) for name in STORED]
    blocks = [(f"{make.__name__}(output={name!r})", make(name)) for make in (mxfp8, nvfp4) for name in STORED]
    return [*named, ("tf32()", tf32()), *eights, *blocks]


def _in_blocks(function: str, name: str, scale: str, size: int, output: str) -> Contract:
    """A contract of operands and weights that share scales in blocks."""
    return Contract(
        query=name,
        key=name,
        value=name,
        probabilities=name,
        probability_scale=scale,
        probability_block=size,
        rounded_sum=False,
        accumulate="tensor_core",
        accumulator_terms=16,
        output=_dtype(function, output, STORED),
        exp_ulp=HALF_EXP_ULP,
        tanh_ulp=APPROXIMATE_TANH_ULP,
        min_tile=max(size, 16),
        lazy=8 * math.log(2),
    )


def _dtype(function: str, dtype: object, choices: tuple[str, ...]) -> str:
    """Name of a dtype that the preset exists for."""
    name = dtype_name(dtype)
    if name not in choices:
        other = (
            "tf32(), fp8(output=), mxfp8(output=) and nvfp4(output=)"
            if function == "flash"
            else "a Contract of your own"
        )
        raise ValueError(
            f"contract.{function}: dtype must be one of {', '.join(choices)}; got {name}. For other kernels there is "
            f"{other}."
        )
    return name
