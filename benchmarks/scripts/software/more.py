"""OpenVINO, MLX, and a Triton kernel of flash-linear-attention in Triton's interpreter, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from refattn import contract, masks
from software.record import DTYPES, MEANING, SPREADING, UNDEFINED, Claim, Entry, eager, entry, flash, scores_in_float32


def openvino() -> Iterator[Entry]:
    """ScaledDotProductAttention of OpenVINO's CPU plugin, by inference precision."""
    import openvino as ov
    from openvino import opset13

    @cache
    def compiled(precision: str, added: str, *, is_causal: bool) -> Any:
        names = ["query", "key", "value", *([added] if added else []), *(["scale"] if added else [])]
        kinds = {"mask": bool, "scale": np.float32}
        nodes = [
            opset13.parameter([] if name == "scale" else [-1] * 4, kinds.get(name, np.float32), name=name)
            for name in names
        ]
        node = opset13.scaled_dot_product_attention(*nodes, causal=is_causal)
        return ov.compile_model(
            ov.Model([node], nodes),
            "CPU",
            {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1},
        )

    def call(precision: str) -> Callable[..., Any]:
        def kernel(query: Any, key: Any, value: Any, is_causal: bool, mask: Any, bias: Any) -> Any:
            arrays = [np.asarray(x, np.float32) for x in (query, key, value)]
            name = "mask" if mask is not None else "bias" if bias is not None else ""
            if name:
                # The scale is an input behind the mask: without one it is 1/sqrt(E).
                added = mask if mask is not None else np.asarray(bias, np.float32)
                arrays += [added, np.float32(query.shape[-1] ** -0.5)]
            found = compiled(precision, name, is_causal=is_causal)(arrays)[0]
            return np.array(found).astype(query.dtype)

        return kernel

    fields = {"heads": (4, 4), "accepts": ("is_causal", "mask", "bias"), "expected_failures": UNDEFINED}
    yield entry("OpenVINO", "openvino", "CPU, f32", "float32", eager("float32"), call("f32"), **fields)
    yield entry("OpenVINO", "openvino", "CPU, bf16", "bfloat16", scores_in_float32("bfloat16"), call("bf16"), **fields)


def mlx() -> Iterator[Entry]:
    """mx.fast.scaled_dot_product_attention of MLX's CPU backend."""
    import mlx.core as mx

    def kernel(query: Any, key: Any, value: Any, mask: Any, bias: Any, scale: float, sinks: Any) -> Any:
        added = mask if bias is None else bias
        found = mx.fast.scaled_dot_product_attention(
            *(mx.array(np.ascontiguousarray(x)) for x in (query, key, value)),
            scale=scale,
            mask=None if added is None else mx.array(added),
            sinks=None if sinks is None else mx.array(sinks),
        )
        return np.array(found.astype(mx.float32)).astype(query.dtype)

    # Its exponential errs by 8 ulp above -20, and by 33 at -87 (measured).
    widened = Claim("eager, exp within 64 ulp", replace(contract.eager("float32"), exp_ulp=64.0))
    for dtype in DTYPES:
        claim = widened if dtype == "float32" else eager(dtype)
        yield entry(
            "MLX", "mlx", "fast.scaled_dot_product_attention, cpu", dtype, claim, kernel,
            accepts=("mask", "bias", "scale", "sinks"), expected_failures=MEANING,
        )  # fmt: skip


def fla() -> Iterator[Entry]:
    """parallel_attn of flash-linear-attention, a Triton kernel, in Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError("TRITON_INTERPRET=1 must be set before Triton is imported")
    from fla.ops.attn.parallel import parallel_attn

    def call(window: int | None) -> Callable[..., Any]:
        def kernel(query: Any, key: Any, value: Any, scale: float, sinks: Any) -> Any:
            return parallel_attn(query, key, value, scale=scale, window_size=window, sink_bias=sinks)

        return kernel

    # The interpreter is slow: problems are few and small.
    square = ((1, 1), (16, 16), (65, 65), (129, 129))
    for dtype, window in (("float32", None), ("bfloat16", None), ("float16", None), ("float32", 20)):
        words = "parallel_attn, Triton's interpreter" + ("" if window is None else f", window {window}")
        mask = masks.window(None if window is None else window - 1, 0, anchor="upper_left")
        yield entry(
            "flash-linear-attention", "fla-core", words, dtype, flash(dtype), call(window),
            arrays="torch", layout="blhd", dims=(32,), batch=(1,), lengths=square,
            computes={"mask": mask}, accepts=("scale", "sinks"), expected_failures=SPREADING,
        )  # fmt: skip
