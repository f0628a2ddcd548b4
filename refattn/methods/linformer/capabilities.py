"""What low-rank attention declares of itself."""

from __future__ import annotations

from dataclasses import replace

from refattn._core.choice import Capabilities

LINFORMER = Capabilities(
    function="linformer_attention",
    method="low-rank attention, Linformer, Wang et al. 2020",
    implementations=("reference",),
    namespaces=("numpy", "array_api_strict", "torch", "jax", "cupy"),
    dtypes=("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"),
    arguments=("key_projection", "value_projection", "scale", "dtype"),
    accumulation="float64",
    time="O((L + S) R (E + Ev))",
    memory="O((L + S) R)",
)
NYSTROM = replace(
    LINFORMER,
    function="nystrom_attention",
    method="Nystrom attention, Xiong et al. 2021",
    arguments=("landmarks", "iterations", "coupled", "scale", "dtype"),
    time="O((L + S) M (E + Ev) + M^3)",
    memory="O((L + S) M)",
)
