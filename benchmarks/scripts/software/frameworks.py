"""PyTorch, JAX and transformers on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from refattn import masks
from software.record import (
    DTYPES,
    MEANING,
    SPREADING,
    Claim,
    Entry,
    all_in_float32,
    eager,
    entry,
    flash,
    scores_in_float32,
)


def torch_sdpa() -> Iterator[Entry]:
    """scaled_dot_product_attention on the backends that a CPU has."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call(backend: Any) -> Callable[..., Any]:
        def kernel(query: Any, key: Any, value: Any, is_causal: bool, mask: Any, bias: Any, scale: float) -> Any:
            added = mask if bias is None else bias
            with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask=added, is_causal=is_causal, scale=scale, enable_gqa=True
                )

        return kernel

    backends = {
        "math": (SDPBackend.MATH, all_in_float32),
        "flash": (SDPBackend.FLASH_ATTENTION, flash),
        "default dispatch": (None, flash),
    }
    fields = {
        "arrays": "torch", "accepts": ("is_causal", "mask", "bias", "scale"), "expected_failures": SPREADING,
    }  # fmt: skip
    for name, (backend, claim) in backends.items():
        for dtype in DTYPES:
            yield entry("PyTorch SDPA", "torch", name, dtype, claim(dtype), call(backend), **fields)
    upper = {"mask": masks.causal(anchor="upper_left")}
    note = "causality starts in the upper left corner for L != S"
    for name, (backend, claim) in list(backends.items())[:2]:
        kernel = _causal(call(backend))
        yield entry(
            "PyTorch SDPA", "torch", f"{name}, is_causal", "bfloat16", claim("bfloat16"), kernel, note,
            arrays="torch", computes=upper, expected_failures=SPREADING,
        )  # fmt: skip


def _causal(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The same kernel, always causal, for all lengths."""

    def causal(query: Any, key: Any, value: Any) -> Any:
        return kernel(query, key, value, is_causal=True, mask=None, bias=None, scale=None)

    return causal


def torch_flex() -> Iterator[Entry]:
    """flex_attention, causal by its mask_mod, without and with torch.compile; few problems, for each is compiled."""
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

    torch._dynamo.config.recompile_limit = 1000

    def seen(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return q >= kv

    def call(function: Any, *, lse: bool) -> Callable[..., Any]:
        def kernel(query: Any, key: Any, value: Any) -> Any:
            found = function(
                query,
                key,
                value,
                block_mask=create_block_mask(seen, None, None, query.shape[2], key.shape[2], device="cpu"),
                enable_gqa=True,
                return_aux=AuxRequest(lse=True) if lse else None,
            )
            return (found[0], found[1].lse) if lse else found

        return kernel

    fields = {
        "arrays": "torch", "batch": (2,), "computes": {"mask": masks.causal(anchor="upper_left")},
        "expected_failures": SPREADING,
    }  # fmt: skip
    for dtype in DTYPES[:2]:
        yield entry(
            "PyTorch flex_attention", "torch", "eager", dtype, scores_in_float32(dtype), call(flex_attention, lse=True),
            returns=("output", "lse"), dims=(64,), lengths=((16, 16), (63, 65), (130, 70)), **fields,
        )  # fmt: skip
    # The compiled kernels of the CPU return no log-sum-exp.
    compiled = call(torch.compile(flex_attention, dynamic=False), lse=False)
    yield entry(
        "PyTorch flex_attention", "torch", "compiled", "float32", flash("float32"), compiled,
        dims=(32,), lengths=((128, 128),), **fields,
    )  # fmt: skip


def jax_nn() -> Iterator[Entry]:
    """jax.nn.dot_product_attention on XLA."""
    import jax

    def kernel(query: Any, key: Any, value: Any, is_causal: bool, mask: Any, bias: Any, scale: float) -> Any:
        output, lse = jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=scale, is_causal=is_causal,
            implementation="xla", return_residual=True,
        )  # fmt: skip
        return output, jax.numpy.swapaxes(lse, 1, 2)

    for dtype in DTYPES:
        claim = scores_in_float32(dtype)
        stored = Claim(claim.name, replace(claim.contract, lse=dtype))
        yield entry(
            "jax.nn.dot_product_attention", "jax", "xla", dtype, stored, kernel,
            arrays="jax", layout="blhd", returns=("output", "lse"), accepts=("is_causal", "mask", "bias", "scale"),
            expected_failures=MEANING,
        )  # fmt: skip


def transformers() -> Iterator[Entry]:
    """eager_attention_forward of three models."""
    import torch
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss
    from transformers.models.llama.modeling_llama import eager_attention_forward as llama

    def added(mask: Any, bias: Any, dtype: Any) -> Any:
        """What is added to the scores, as transformers.masking_utils makes it of a mask."""
        if mask is None:
            return bias
        return torch.where(mask, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)

    def call(function: Any, name: str) -> Callable[..., Any]:
        def kernel(query: Any, key: Any, value: Any, mask: Any, bias: Any, scale: float, **more: Any) -> Any:
            module = SimpleNamespace(
                num_key_value_groups=query.shape[1] // key.shape[1], training=False, sinks=more.pop("sinks", None)
            )
            scores = added(mask, bias, query.dtype)
            output, _ = function(module, query, key, value, scores, scaling=scale, **more)
            return output.swapaxes(1, 2)

        def with_sinks(query: Any, key: Any, value: Any, mask: Any, bias: Any, scale: float, sinks: Any) -> Any:
            # The model always has sinks: one of -inf takes no weight.
            none = torch.full((query.shape[1],), -torch.inf, dtype=query.dtype)
            return kernel(query, key, value, mask, bias, scale, sinks=none if sinks is None else sinks)

        return with_sinks if name == "gpt-oss" else kernel

    fields = {"arrays": "torch", "expected_failures": MEANING}
    takes = ("mask", "bias", "scale")
    models = {
        "llama": (llama, takes),
        "gemma2": (gemma2, (*takes, "softcap")),
        "gpt-oss": (gpt_oss, (*takes, "sinks")),
    }
    for dtype in DTYPES[:2]:
        for name, (function, accepts) in models.items():
            kernel = call(function, name)
            yield entry(
                "transformers eager", "transformers", name, dtype, eager(dtype), kernel, accepts=accepts, **fields
            )
