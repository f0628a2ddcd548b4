"""What linear attention declares of itself."""

from __future__ import annotations

from refattn._core.choice import Capabilities
from refattn.methods.linear.bound import linear_bound
from refattn.methods.linear.cost import FORMS

ARGUMENTS = ("feature_map", "mask", "is_causal", "scale", "normalize", "eps", "eps_rule", "position", "state")

CAPABILITIES = Capabilities(
    function="linear_attention",
    method="linear attention, Katharopoulos et al. 2020",
    implementations=("reference",),
    namespaces=("numpy", "array_api_strict", "torch", "jax", "dask", "cupy"),
    dtypes=("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"),
    arguments=(*ARGUMENTS, "return_state", "return_normalizer", "form", "chunk", "dtype"),
    accumulation="float64",
    time="O((L + S) M Ev)",
    memory="O(M Ev)",
    laws=(
        "key_permutation",
        "value_linearity",
        "convex_hull",
        "causal_prefix",
        "batch_independence",
        "head_independence",
        "inputs_untouched",
        "dtype_kept",
    ),
    bound=linear_bound,
    cost=FORMS,
)
