"""The ground truth for attention: what is right, whether a kernel is, and what each method costs and loses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refattn import biases, contract, conventions, data, layouts, masks, oracle, testing
    from refattn._call import AttentionGradient, AttentionResult
    from refattn._core.arrays import from_numpy, to_numpy
    from refattn._core.choice import Capabilities, ConventionError, ImplementationError
    from refattn._core.cost import Cost
    from refattn._cost import cost
    from refattn.contract import Contract
    from refattn.methods.exact.backward import attention_gradient
    from refattn.methods.exact.interface import attention
    from refattn.methods.exact.merge import merge_states
    from refattn.methods.exact.rows import attention_rows
    from refattn.methods.exact.scores import attention_scores
    from refattn.methods.flash.backward import flash_attention_gradient
    from refattn.methods.flash.decode import flash_decode
    from refattn.methods.flash.interface import flash_attention
    from refattn.methods.flash.online import online_softmax
    from refattn.methods.linear.backward import linear_attention_gradient
    from refattn.methods.linear.decode import linear_decode
    from refattn.methods.linear.interface import linear_attention
    from refattn.methods.linear.maps import cosformer_features, fourier_features, fourier_frequencies
    from refattn.methods.linear.measure import linear_error_bound
    from refattn.methods.linear.records import LinearGradient, LinearResult, LinearState
    from refattn.methods.linformer.backward import (
        LinformerGradient,
        linformer_attention_gradient,
        nystrom_attention_gradient,
    )
    from refattn.methods.linformer.bound import linformer_error_bound
    from refattn.methods.linformer.interface import linformer_attention
    from refattn.methods.linformer.nystrom import nystrom_attention
    from refattn.methods.linformer.projection import linformer_projection
    from refattn.methods.performer.backward import performer_attention_gradient
    from refattn.methods.performer.bound import performer_error_bound
    from refattn.methods.performer.interface import performer_attention
    from refattn.methods.performer.projection import random_projection
    from refattn.methods.recurrent.arguments import RecurrentResult
    from refattn.methods.recurrent.backward import RecurrentGradient, recurrent_attention_gradient
    from refattn.methods.recurrent.bound import recurrent_error_bound
    from refattn.methods.recurrent.interface import recurrent_attention
    from refattn.transforms import LatentAttention, absorb_mla, expand_mla, rotary_cos_sin, rotary_embedding

__version__ = "0.1.0"

__all__ = (
    "AttentionGradient",
    "AttentionResult",
    "Capabilities",
    "Contract",
    "ConventionError",
    "Cost",
    "ImplementationError",
    "LatentAttention",
    "LinearGradient",
    "LinearResult",
    "LinearState",
    "LinformerGradient",
    "RecurrentGradient",
    "RecurrentResult",
    "absorb_mla",
    "attention",
    "attention_gradient",
    "attention_rows",
    "attention_scores",
    "biases",
    "contract",
    "conventions",
    "cosformer_features",
    "cost",
    "data",
    "expand_mla",
    "flash_attention",
    "flash_attention_gradient",
    "flash_decode",
    "fourier_features",
    "fourier_frequencies",
    "from_numpy",
    "layouts",
    "linear_attention",
    "linear_attention_gradient",
    "linear_decode",
    "linear_error_bound",
    "linformer_attention",
    "linformer_attention_gradient",
    "linformer_error_bound",
    "linformer_projection",
    "masks",
    "merge_states",
    "nystrom_attention",
    "nystrom_attention_gradient",
    "online_softmax",
    "oracle",
    "performer_attention",
    "performer_attention_gradient",
    "performer_error_bound",
    "random_projection",
    "recurrent_attention",
    "recurrent_attention_gradient",
    "recurrent_error_bound",
    "rotary_cos_sin",
    "rotary_embedding",
    "testing",
    "to_numpy",
)

_HOMES = {
    "AttentionGradient": "_call",
    "AttentionResult": "_call",
    "Capabilities": "_core.choice",
    "Contract": "contract",
    "ConventionError": "_core.choice",
    "Cost": "_core.cost",
    "ImplementationError": "_core.choice",
    "LatentAttention": "transforms",
    "LinearGradient": "methods.linear.records",
    "LinearResult": "methods.linear.records",
    "LinearState": "methods.linear.records",
    "LinformerGradient": "methods.linformer.backward",
    "RecurrentGradient": "methods.recurrent.backward",
    "RecurrentResult": "methods.recurrent.arguments",
    "absorb_mla": "transforms",
    "attention": "methods.exact.interface",
    "attention_gradient": "methods.exact.backward",
    "attention_rows": "methods.exact.rows",
    "attention_scores": "methods.exact.scores",
    "cosformer_features": "methods.linear.maps",
    "cost": "_cost",
    "expand_mla": "transforms",
    "flash_attention": "methods.flash.interface",
    "flash_attention_gradient": "methods.flash.backward",
    "flash_decode": "methods.flash.decode",
    "fourier_features": "methods.linear.maps",
    "fourier_frequencies": "methods.linear.maps",
    "from_numpy": "_core.arrays",
    "linear_attention": "methods.linear.interface",
    "linear_attention_gradient": "methods.linear.backward",
    "linear_decode": "methods.linear.decode",
    "linear_error_bound": "methods.linear.measure",
    "linformer_attention": "methods.linformer.interface",
    "linformer_attention_gradient": "methods.linformer.backward",
    "linformer_error_bound": "methods.linformer.bound",
    "linformer_projection": "methods.linformer.projection",
    "merge_states": "methods.exact.merge",
    "nystrom_attention": "methods.linformer.nystrom",
    "nystrom_attention_gradient": "methods.linformer.backward",
    "online_softmax": "methods.flash.online",
    "performer_attention": "methods.performer.interface",
    "performer_attention_gradient": "methods.performer.backward",
    "performer_error_bound": "methods.performer.bound",
    "random_projection": "methods.performer.projection",
    "recurrent_attention": "methods.recurrent.interface",
    "recurrent_attention_gradient": "methods.recurrent.backward",
    "recurrent_error_bound": "methods.recurrent.bound",
    "rotary_cos_sin": "transforms",
    "rotary_embedding": "transforms",
    "to_numpy": "_core.arrays",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'refattn' has no attribute {name!r}")
    if name not in _HOMES:
        return import_module(f"refattn.{name}")
    value = getattr(import_module(f"refattn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
