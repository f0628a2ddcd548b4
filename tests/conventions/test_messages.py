"""The whole text of everything that a convention refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refattn import ConventionError
from tests.conventions.refusals import assert_refused, refused

ARRAY = np.ones(4)
PAST = np.zeros((1, 2, 3, 4))
LENGTHS = np.array([1, 2])


CALLS = [
    refused(
        "flash_attn",
        ConventionError,
        "dropout_p=0.1 is drawn inside the kernel and cannot be expressed. Pass dropout_p=0.0 here, and to attention "
        "dropout_p=0.1 and the mask that the kernel used as dropout_mask=.",
        dropout_p=0.1,
    ),
    refused("flash_attn", ValueError, "attention_chunk must be at least 0; got -1.", attention_chunk=-1),
    refused(
        "flash_attn", ConventionError, "qv must be None; got an array. Append qv to query and value to key.", qv=ARRAY
    ),
    refused(
        "flash_attn",
        TypeError,
        "q_descale must be an array of NumPy, PyTorch, JAX, CuPy, dask or another array API library; got float.",
        q_descale=0.5,
    ),
    refused("flash_attn", ValueError, "k_descale must have shape (B, Hk); got (4,).", k_descale=ARRAY),
    refused("flash_attn", TypeError, "window_size must be a pair (left, right); got 4.", window_size=4),
    refused("flash_attn", TypeError, "window_size[0] must be an integer; got float.", window_size=(2.0, 0)),
    refused("flash_attn", ValueError, "window_size[1] must be at least -1; got -2.", window_size=(0, -2)),
    refused("flash_attn", TypeError, "causal must be True or False; got int.", causal=1),
    refused("flash_attn", TypeError, "softcap must be a real number; got NoneType.", softcap=None),
    refused("flash_attn", ValueError, "softmax_scale must be finite; got nan.", softmax_scale=math.nan),
    refused(
        "flash_attn",
        TypeError,
        "alibi_slopes must be an array of NumPy, PyTorch, JAX, CuPy, dask or another array API library; got int.",
        alibi_slopes=8,
    ),
    refused(
        "flash_attn",
        TypeError,
        "learnable_sink must have a real floating-point dtype; got int32.",
        learnable_sink=np.ones(4, np.int32),
    ),
    refused(
        "torch_sdpa",
        ConventionError,
        "dropout_p=0.1 is drawn inside the kernel and cannot be expressed. Pass dropout_p=0.0 here, and to attention "
        "dropout_p=0.1 and the mask that the kernel used as dropout_mask=.",
        dropout_p=0.1,
    ),
    refused(
        "torch_sdpa",
        ConventionError,
        "attn_mask and is_causal=True must not be given together: some backends refuse the call, others apply both. "
        "Pass attn_mask & the causal mask as one attn_mask.",
        attn_mask=np.ones((2, 2), bool),
        is_causal=True,
    ),
    refused(
        "torch_sdpa",
        TypeError,
        "attn_mask must be boolean, True where a key takes part, or floating-point, added to the scores; got int64.",
        attn_mask=np.ones((2, 2), np.int64),
    ),
    refused("torch_sdpa", ValueError, "attn_mask must have at least 2 axes; got (2,).", attn_mask=np.ones(2, bool)),
    refused("torch_sdpa", TypeError, "scale must be a real number; got bool.", scale=True),
    refused("torch_sdpa", TypeError, "enable_gqa must be True or False; got NoneType.", enable_gqa=None),
    refused("onnx", ConventionError, "opset must be at least 23, the first with Attention; got 22.", opset=22),
    refused(
        "onnx",
        ConventionError,
        "nonpad_kv_seqlen came with opset 24; got opset=23.",
        opset=23,
        nonpad_kv_seqlen=LENGTHS,
    ),
    refused(
        "onnx",
        ConventionError,
        "left_window_size and right_window_size came with opset 25; got 2 and -1 for opset=24.",
        opset=24,
        left_window_size=2,
    ),
    refused(
        "onnx",
        ConventionError,
        "scale must not be negative, for Q and K are each multiplied by its square root; got -0.5. "
        "Negate Q and pass -scale.",
        opset=23,
        scale=-0.5,
    ),
    refused(
        "onnx",
        ConventionError,
        "softcap must not be negative; got -2.0. Pass 0.0 for no softcap.",
        opset=23,
        softcap=-2.0,
    ),
    refused(
        "onnx",
        ValueError,
        "q_num_heads and kv_num_heads must be given together; got 4 and None.",
        opset=23,
        q_num_heads=4,
    ),
    refused(
        "onnx",
        ValueError,
        "q_num_heads must be a multiple of kv_num_heads; got 4 and 3.",
        opset=23,
        q_num_heads=4,
        kv_num_heads=3,
    ),
    refused(
        "onnx",
        ValueError,
        "past_key and past_value must be given together; got only past_key.",
        opset=23,
        past_key=PAST,
    ),
    refused(
        "onnx",
        ValueError,
        "nonpad_kv_seqlen must not be given beside past_key and past_value; got both.",
        opset=24,
        past_key=PAST,
        past_value=PAST,
        nonpad_kv_seqlen=LENGTHS,
    ),
    refused(
        "onnx",
        ValueError,
        "past_key must have shape (B, Hk, P, E); got (2, 3, 4).",
        opset=23,
        past_key=PAST[0],
        past_value=PAST,
    ),
    refused(
        "onnx",
        ValueError,
        "L must be given where is_causal or a window meets nonpad_kv_seqlen, "
        "for query 0 stands on key nonpad_kv_seqlen - L; got None. "
        "Pass the number of queries.",
        opset=24,
        is_causal=1,
        nonpad_kv_seqlen=LENGTHS,
    ),
    refused(
        "onnx", ValueError, "nonpad_kv_seqlen must not be negative; got -1.", opset=24, nonpad_kv_seqlen=np.array([-1])
    ),
    refused(
        "onnx", TypeError, "nonpad_kv_seqlen must have an integer dtype; got float64.", opset=24, nonpad_kv_seqlen=ARRAY
    ),
    refused(
        "onnx",
        ValueError,
        "nonpad_kv_seqlen must have shape (B,); got (1, 1).",
        opset=24,
        nonpad_kv_seqlen=np.array([[1]]),
    ),
    refused(
        "onnx",
        ValueError,
        "S must be given beside attn_mask, for a mask shorter than S hides the keys behind its end; got None. "
        "Pass the number of keys, past included.",
        opset=24,
        attn_mask=np.ones((2, 3), bool),
    ),
    refused(
        "onnx",
        ValueError,
        "attn_mask must have at most S=2 entries on its last axis; got (2, 3).",
        opset=24,
        S=2,
        attn_mask=np.ones((2, 3), bool),
    ),
    refused("onnx", ValueError, "attn_mask must have at least 1 axis; got ().", opset=23, attn_mask=np.array(True)),
    refused("onnx", ValueError, "is_causal must be 0 or 1; got 2.", opset=23, is_causal=2),
    refused("onnx", TypeError, "is_causal must be 0 or 1; got float.", opset=23, is_causal=0.5),
    refused("onnx", ValueError, "qk_matmul_output_mode must be at most 3; got 4.", opset=23, qk_matmul_output_mode=4),
    refused(
        "onnx", ValueError, "softmax_precision must be one of 1, 10, 11 and 16; got 2.", opset=23, softmax_precision=2
    ),
    refused(
        "onnx_flex",
        ConventionError,
        "score_mod must be None, for a graph can be anything; got a graph. "
        "Pass what it does as mask=, bias= or softcap= of attention.",
        score_mod="graph",
    ),
    refused(
        "onnx_flex",
        ConventionError,
        "prob_mod must be None, for a graph can be anything; got a graph. "
        "Apply it to attention(..., return_weights=True).",
        prob_mod="graph",
    ),
    refused(
        "onnx_flex",
        ConventionError,
        "scale must not be negative, for Q and K are each multiplied by its square root; got -0.5. "
        "Negate Q and pass -scale.",
        scale=-0.5,
    ),
    refused(
        "onnx_rotary_embedding",
        ConventionError,
        "opset must be at least 23, the first with RotaryEmbedding; got 22.",
        opset=22,
    ),
    refused(
        "onnx_rotary_embedding",
        ValueError,
        "rotary_embedding_dim must be even, for features are turned in pairs; got 3.",
        opset=23,
        rotary_embedding_dim=3,
    ),
    refused("onnx_rotary_embedding", ValueError, "num_heads must be at least 0; got -1.", opset=23, num_heads=-1),
    refused("onnx_rotary_embedding", ValueError, "interleaved must be 0 or 1; got 2.", opset=23, interleaved=2),
    refused(
        "onnx_rotary_embedding",
        TypeError,
        "position_ids must be an array of NumPy, PyTorch, JAX, CuPy, dask or another array API library; got list.",
        opset=23,
        position_ids=[0, 1],
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "do_rotary=1 is done to query and key before attention and cannot be expressed. "
        "Pass the rotated arrays and do_rotary=0.",
        num_heads=4,
        kv_num_heads=2,
        do_rotary=1,
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "k_quant_type='PER_TENSOR' rounds the cache and cannot be expressed. "
        "Pass the dequantised arrays and k_quant_type='NONE'.",
        num_heads=4,
        kv_num_heads=2,
        k_quant_type="PER_TENSOR",
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "v_quant_type='PER_CHANNEL' rounds the cache and cannot be expressed. "
        "Pass the dequantised arrays and v_quant_type='NONE'.",
        num_heads=4,
        kv_num_heads=2,
        v_quant_type="PER_CHANNEL",
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "sliding_window_cache=1 drops keys from the cache and cannot be expressed. "
        "Pass the keys that are left and sliding_window_cache=0.",
        num_heads=4,
        kv_num_heads=2,
        sliding_window_cache=1,
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "q_norm_weight normalises before attention and cannot be expressed. "
        "Pass the normalised array and q_norm_weight=None.",
        num_heads=4,
        kv_num_heads=2,
        q_norm_weight=ARRAY,
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "k_norm_weight normalises before attention and cannot be expressed. "
        "Pass the normalised array and k_norm_weight=None.",
        num_heads=4,
        kv_num_heads=2,
        k_norm_weight=ARRAY,
    ),
    refused(
        "onnxruntime_gqa",
        ConventionError,
        "softcap must not be negative; got -1.0. Pass 0.0 for no softcap.",
        num_heads=4,
        kv_num_heads=2,
        softcap=-1.0,
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "num_heads must be a multiple of kv_num_heads; got 4 and 3.",
        num_heads=4,
        kv_num_heads=3,
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "local_window_size must be -1 (no end) or positive; got 0.",
        num_heads=4,
        kv_num_heads=2,
        local_window_size=0,
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "local_window_size must be -1 where causal=0; got 4.",
        num_heads=4,
        kv_num_heads=2,
        causal=0,
        local_window_size=4,
    ),
    refused(
        "onnxruntime_gqa",
        TypeError,
        "attention_bias must be floating-point, it is added to the scores; got bool.",
        num_heads=4,
        kv_num_heads=2,
        attention_bias=np.ones((2, 2), bool),
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "L must be given beside seqlens_k, for the queries' place follows from both; got None.",
        num_heads=4,
        kv_num_heads=2,
        seqlens_k=LENGTHS,
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "total_sequence_length must be given beside seqlens_k, for the queries' place follows from both; got None.",
        num_heads=4,
        kv_num_heads=2,
        seqlens_k=LENGTHS,
        L=2,
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "total_sequence_length must be at least 2; got 1.",
        num_heads=4,
        kv_num_heads=2,
        seqlens_k=LENGTHS,
        L=2,
        total_sequence_length=1,
    ),
    refused(
        "onnxruntime_gqa",
        ValueError,
        "smooth_softmax must be -1, 0 or 1; got 2.",
        num_heads=4,
        kv_num_heads=2,
        smooth_softmax=2,
    ),
    refused(
        "onnxruntime_gqa", ValueError, "qk_output must be at most 2; got 3.", num_heads=4, kv_num_heads=2, qk_output=3
    ),
]


@pytest.mark.parametrize(("name", "arguments", "error", "text"), CALLS)
def test_text(name: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_refused(name, arguments, error, text)
