"""Each system's call turned into refattn's arguments, exactly, or refused by naming what can't be expressed."""

from __future__ import annotations

from refattn.conventions.cudnn_frontend import cudnn
from refattn.conventions.disagreement import Disagreement, disagree
from refattn.conventions.flash_attention import flash_attn
from refattn.conventions.flashinfer_wrappers import flashinfer
from refattn.conventions.hugging_face import from_hf_longformer, transformers
from refattn.conventions.jax_functions import jax_nn
from refattn.conventions.mlx_fast import mlx
from refattn.conventions.onnx_operators import onnx, onnx_flex
from refattn.conventions.onnx_rotary import onnx_rotary_embedding
from refattn.conventions.onnxruntime_operators import onnxruntime_gqa
from refattn.conventions.pytorch import torch_sdpa
from refattn.conventions.record import Convention
from refattn.conventions.transformer_engine_module import transformer_engine
from refattn.conventions.xformers_biases import xformers

__all__ = (
    "Convention",
    "Disagreement",
    "cudnn",
    "disagree",
    "flash_attn",
    "flashinfer",
    "from_hf_longformer",
    "jax_nn",
    "mlx",
    "onnx",
    "onnx_flex",
    "onnx_rotary_embedding",
    "onnxruntime_gqa",
    "torch_sdpa",
    "transformer_engine",
    "transformers",
    "xformers",
)
