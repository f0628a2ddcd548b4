"""What random-feature attention declares of itself."""

from __future__ import annotations

from refattn._core.choice import Capabilities

CAPABILITIES = Capabilities(
    function="performer_attention",
    method="random-feature attention, Performer, Choromanski et al. 2021",
    implementations=("reference",),
    namespaces=("numpy", "array_api_strict", "torch", "jax", "cupy"),
    dtypes=("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"),
    arguments=("projection", "features", "is_causal", "scale", "eps", "dtype"),
    accumulation="float64",
    time="O((L + S) M (E + Ev))",
    memory="O((L + S) M)",
)
