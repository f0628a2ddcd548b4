"""What the recurrences declare of themselves."""

from __future__ import annotations

from refattn._core.choice import Capabilities

ARGUMENTS = ("decay", "beta", "low_rank", "scale", "initial_state", "update_rule", "cu_seqlens", "dtype")

CAPABILITIES = Capabilities(
    function="recurrent_attention",
    method="gated and delta recurrences, Yang et al. 2024",
    implementations=("reference",),
    namespaces=("numpy", "array_api_strict", "torch", "jax", "cupy"),
    dtypes=("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"),
    arguments=(*ARGUMENTS, "return_state", "form", "chunk"),
    accumulation="float64",
    time="O(L E Ev)",
    memory="O(E Ev)",
)
