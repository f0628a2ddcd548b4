"""The whole text of everything that the converters of MLX, Transformer Engine and Hugging Face refuse, and disagree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refattn import ConventionError
from refattn.conventions import Convention
from tests.conventions.refusals import assert_refused, refused

ARRAY = np.ones(4)
CELLS = np.ones((3, 5))
ENDS = np.array([0, 1, 3])
PLAIN = Convention({}, layout="bhld")
BY_HEAD = Convention({"bias": np.ones((4, 3, 5))}, layout="bhld")
TYPES = (
    "'no_mask', 'causal', 'causal_bottom_right', 'padding', 'padding_causal', 'padding_causal_bottom_right', "
    "'arbitrary'"
)

CALLS = [
    # MLX.
    refused("mlx", ValueError, "mask must be 'causal', an array or None; got 'lower'.", scale=1.0, mask="lower"),
    refused("mlx", ValueError, "scale must be finite; got nan.", scale=math.nan),
    refused("mlx", TypeError, "scale must be a real number; got NoneType.", scale=None),
    refused(
        "mlx",
        TypeError,
        "mask must be boolean, True where a key takes part, or floating-point, added to the scores; got int64.",
        scale=1.0,
        mask=np.ones((3, 5), np.int64),
    ),
    refused("mlx", ValueError, "mask must have at least 2 axes; got ().", scale=1.0, mask=np.array(True)),
    refused("mlx", TypeError, "sinks must have a real floating-point dtype; got int64.", scale=1.0, sinks=ENDS),
    # Transformer Engine.
    refused(
        "transformer_engine",
        ConventionError,
        "attention_dropout=0.1 is drawn inside the kernel and cannot be expressed. Pass attention_dropout=0.0 here, "
        "and to attention dropout_p=0.1 and the mask that the kernel used as dropout_mask=.",
        attention_dropout=0.1,
    ),
    refused(
        "transformer_engine",
        ConventionError,
        "core_attention_bias_type='pre_scale_bias' is multiplied by softmax_scale, whose default depends on E. "
        "Pass softmax_scale=.",
        core_attention_bias_type="pre_scale_bias",
        core_attention_bias=CELLS,
    ),
    refused(
        "transformer_engine",
        ConventionError,
        "bottom_right_diagonal=True contradicts attn_mask_type='causal'. Pass the mask type of that corner.",
        bottom_right_diagonal=True,
    ),
    refused(
        "transformer_engine",
        ValueError,
        f"attn_mask_type must be one of {TYPES}; got 'lower'.",
        attn_mask_type="lower",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "attn_mask_type must be one with padding where qkv_format='thd'; got 'causal'.",
        qkv_format="thd",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "qkv_format must be one of 'sbhd', 'bshd', 'thd'; got 'bhsd'.",
        qkv_format="bhsd",
    ),
    refused("transformer_engine", TypeError, "window_size must be a pair (left, right); got 4.", window_size=4),
    refused(
        "transformer_engine",
        ValueError,
        "window_size must be (-1, -1) or two numbers from 0 on with attn_mask_type='no_mask'; got (2, -1).",
        attn_mask_type="no_mask",
        window_size=(2, -1),
    ),
    refused(
        "transformer_engine",
        ValueError,
        "attention_mask must be given with attn_mask_type='arbitrary'; got None.",
        attn_mask_type="arbitrary",
    ),
    refused(
        "transformer_engine",
        TypeError,
        "attention_mask must be boolean; got float64.",
        attn_mask_type="arbitrary",
        attention_mask=CELLS,
    ),
    refused(
        "transformer_engine",
        ValueError,
        "cu_seqlens_q must not be given with attn_mask_type='causal'; got an array.",
        cu_seqlens_q=ENDS,
    ),
    refused(
        "transformer_engine",
        ValueError,
        "attention_mask, or cu_seqlens_kv, must be given with attn_mask_type='padding'; got None.",
        attn_mask_type="padding",
        cu_seqlens_q=ENDS,
    ),
    refused(
        "transformer_engine",
        ValueError,
        "attention_mask of the keys must have shape (B, 1, 1, n); got (3, 5).",
        attn_mask_type="padding",
        attention_mask=(np.ones((1, 1, 1, 3), bool), CELLS > 0),
    ),
    refused(
        "transformer_engine",
        ValueError,
        "core_attention_bias must be given with core_attention_bias_type='post_scale_bias'; got None.",
        core_attention_bias_type="post_scale_bias",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "core_attention_bias must not be given with core_attention_bias_type='no_bias'; got an array.",
        core_attention_bias=CELLS,
    ),
    refused(
        "transformer_engine",
        ValueError,
        "core_attention_bias_type must be one of 'no_bias', 'pre_scale_bias', 'post_scale_bias', 'alibi'; got 'bias'.",
        core_attention_bias_type="bias",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "num_attention_heads must be given for the default slopes; got None.",
        core_attention_bias_type="alibi",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "num_attention_heads must be given for softmax_type='off-by-one'; got None.",
        softmax_type="off-by-one",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "softmax_offset must be given with softmax_type='learnable'; got None.",
        softmax_type="learnable",
    ),
    refused(
        "transformer_engine",
        ValueError,
        "softmax_offset must not be given with softmax_type='vanilla'; got an array.",
        softmax_offset=ARRAY,
    ),
    refused(
        "transformer_engine",
        ValueError,
        "softmax_offset must have shape (H,) or (1, H, 1, 1); got (3, 5).",
        softmax_type="learnable",
        softmax_offset=CELLS,
    ),
    # Hugging Face.
    refused(
        "transformers",
        ConventionError,
        "dropout=0.1 is drawn inside the kernel and cannot be expressed. Pass dropout=0.0 here, and to attention "
        "dropout_p=0.1 and the mask that the kernel used as dropout_mask=.",
        dropout=0.1,
    ),
    *(
        refused(
            "transformers",
            ConventionError,
            f"{name} is dropped by attn_implementation='sdpa'. Pass the one that the model uses with it, such as "
            "'eager'.",
            **{name: x},
        )
        for name, x in (("softcap", 30.0), ("s_aux", ARRAY))
    ),
    *(
        refused(
            "transformers",
            ConventionError,
            f"{name} with attn_implementation='flash_attention' cannot be expressed, for padding is taken out of the "
            "arrays and chunks are refused. Pass the arrays without padding.",
            attn_implementation="flash_attention_3",
            **{name: x},
        )
        for name, x in (("attention_mask", CELLS), ("attention_chunk_size", 4))
    ),
    refused(
        "transformers",
        ConventionError,
        "softcap must not be negative; got -1.0. Pass None for no softcap.",
        softcap=-1.0,
        attn_implementation="eager",
    ),
    refused(
        "transformers",
        ConventionError,
        "attention_mask of four axes must be floating-point with attn_implementation='eager', which adds it, True as "
        "1; got bool. Pass 0 for True and -inf for False.",
        attention_mask=np.ones((1, 1, 3, 5), bool),
        attn_implementation="eager",
    ),
    refused(
        "transformers",
        ValueError,
        "attn_implementation must be one of 'sdpa', 'flex_attention', 'eager', 'flash_attention'; got 'paged'.",
        attn_implementation="paged",
    ),
    refused(
        "transformers",
        ValueError,
        "attention_chunk_size must not be given with sliding_window or is_causal=False; got 4.",
        attention_chunk_size=4,
        is_causal=False,
    ),
    refused("transformers", ValueError, "sliding_window must be at least 1; got 0.", sliding_window=0),
    refused("transformers", ValueError, "q_offset must be at least 0; got -1.", q_offset=-1),
    refused(
        "transformers",
        TypeError,
        "attention_mask (B, n) must be of integers or booleans; got float64.",
        attention_mask=CELLS,
    ),
    refused(
        "transformers",
        ValueError,
        "attention_mask must have shape (B, n) or four axes; got (4,).",
        attention_mask=ARRAY > 0,
    ),
    refused(
        "transformers",
        ValueError,
        "position_ids must not be given with attention_mask or a cache; got both.",
        position_ids=np.array([[0, 1]]),
        q_offset=2,
    ),
    refused(
        "transformers",
        TypeError,
        "position_ids must be an integer array (B, L); got int64 (3,).",
        position_ids=ENDS,
    ),
    refused(
        "from_hf_longformer",
        ConventionError,
        "global_attention_mask must be None; got an array. Global tokens have projections of their own: compute them "
        "as a second attention.",
        attention_window=4,
        global_attention_mask=ARRAY,
    ),
    refused(
        "from_hf_longformer",
        ValueError,
        "attention_window must be even, half of it on either side; got 5.",
        attention_window=5,
    ),
    refused("from_hf_longformer", ValueError, "attention_window must be at least 1; got 0.", attention_window=0),
    # Two calls.
    refused(
        "disagree",
        TypeError,
        "b must be a Convention, what a function of refattn.conventions returns; got dict.",
        a=PLAIN,
        b={},
        L=3,
        S=5,
    ),
    refused("disagree", ValueError, "L must be at least 0; got -1.", a=PLAIN, b=PLAIN, L=-1, S=5),
    refused(
        "disagree",
        ValueError,
        "bias must have at least 2 axes and broadcast to (..., H, L, S)=(4, 2, 5); got (4, 3, 5).",
        a=PLAIN,
        b=BY_HEAD,
        L=2,
        S=5,
    ),
    refused(
        "disagree",
        ValueError,
        "the leading axes of the masks and biases of both calls must broadcast with (batch, heads)=(1, 3); got (), (), "
        "(4,), (4,).",
        a=PLAIN,
        b=BY_HEAD,
        L=3,
        S=5,
        heads=3,
    ),
    refused(
        "disagree",
        ValueError,
        "(batch, heads)=(1, 1) must be the sizes that the masks and biases have; got (1, 4).",
        a=PLAIN,
        b=BY_HEAD,
        L=3,
        S=5,
        heads=1,
    ),
    refused(
        "disagree",
        ValueError,
        "the leading axes of mask and bias must broadcast; got (3,) and (4,).",
        a=PLAIN,
        b=Convention(BY_HEAD.arguments | {"mask": np.ones((3, 3, 5), bool)}, layout="bhld"),
        L=3,
        S=5,
    ),
]


@pytest.mark.parametrize(("name", "arguments", "error", "text"), CALLS)
def test_text(name: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_refused(name, arguments, error, text)
