"""Attention of other people's software on the CPU, each call as a KernelSpec with the contract that it documents."""

from software.frameworks import jax_nn, torch_flex, torch_sdpa, transformers
from software.more import fla, mlx, openvino
from software.onnx_operators import onnx_reference, onnxruntime

SOFTWARE = {
    "PyTorch SDPA": torch_sdpa,
    "PyTorch flex_attention": torch_flex,
    "jax.nn.dot_product_attention": jax_nn,
    "transformers eager": transformers,
    "onnx ReferenceEvaluator": onnx_reference,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
    "MLX": mlx,
    "flash-linear-attention": fla,
}

__all__ = ("SOFTWARE",)
