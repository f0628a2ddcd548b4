"""Each system's call turned into refattn's arguments, exactly, or refused by naming what can't be expressed."""

from __future__ import annotations

from refattn.conventions.flash_attention import flash_attn
from refattn.conventions.onnx_operators import onnx, onnx_flex
from refattn.conventions.onnxruntime_operators import onnxruntime_gqa
from refattn.conventions.pytorch import torch_sdpa
from refattn.conventions.record import Convention

__all__ = ("Convention", "flash_attn", "onnx", "onnx_flex", "onnxruntime_gqa", "torch_sdpa")
