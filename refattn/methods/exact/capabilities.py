"""What exact attention declares of itself."""

from __future__ import annotations

from refattn._core.choice import Capabilities
from refattn.contract import softmax_bound
from refattn.methods.exact.cost import FORMS

CAPABILITIES = Capabilities(
    function="attention",
    method="softmax attention, Vaswani et al. 2017",
    implementations=("reference",),
    namespaces=("numpy", "array_api_strict", "torch", "jax", "dask", "cupy"),
    dtypes=("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"),
    arguments=(
        "mask",
        "bias",
        "is_causal",
        "scale",
        "softcap",
        "sinks",
        "dropout_mask",
        "dropout_p",
        "descale",
        "dtype",
        "return_lse",
        "return_weights",
    ),
    accumulation="float64",
    time="O(L S (E + Ev))",
    memory="O(L S)",
    laws=(
        "key_permutation",
        "value_linearity",
        "convex_hull",
        "logit_shift",
        "causal_prefix",
        "batch_independence",
        "head_independence",
        "inputs_untouched",
        "dtype_kept",
        "merge",
    ),
    bound=softmax_bound,
    cost=FORMS,
)
