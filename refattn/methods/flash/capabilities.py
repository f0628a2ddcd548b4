"""What tiled attention declares of itself."""

from __future__ import annotations

from types import MappingProxyType

from refattn._core.choice import Capabilities
from refattn.contract import softmax_bound
from refattn.methods.flash.cost import FORMS
from refattn.methods.flash.reference_cost import reference

ARGUMENTS = ("mask", "bias", "is_causal", "scale", "softcap", "sinks", "dropout_mask", "dropout_p", "dtype")

CAPABILITIES = Capabilities(
    function="flash_attention",
    method="tiled softmax attention, FlashAttention-2, Dao 2023",
    implementations=("reference", "flash_2022", "numba"),
    namespaces=("numpy", "array_api_strict", "torch", "jax", "dask", "cupy"),
    dtypes=("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"),
    arguments=(*ARGUMENTS, "descale", "return_lse", "tile_q", "tile_k", "threads"),
    accumulation="float64",
    time="O(L S (E + Ev))",
    memory="O(tile)",
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
        "tile_size",
        "forms_agree",
    ),
    bound=softmax_bound,
    cost=MappingProxyType({"reference": reference, **FORMS}),
    narrower=MappingProxyType({"numba": ("numpy",)}),
)
