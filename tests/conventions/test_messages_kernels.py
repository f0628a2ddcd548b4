"""The whole text of everything that the converters of FlashInfer, JAX, xFormers and cuDNN refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refattn import ConventionError
from refattn.conventions.xformers_biases import KINDS
from tests.conventions.refusals import assert_refused, refused

ARRAY = np.ones(4)
CELLS = np.ones((3, 5))
LENGTHS = np.array([1, 2])
BLOCKS = {"q_seqlen": [2, 3], "kv_seqlen": [2, 2]}
RIGHT_BLOCKS = "BlockDiagonalCausalFromBottomRightMask"

CALLS = [
    # FlashInfer.
    *(
        refused(
            "flashinfer",
            ConventionError,
            f"{name} must be None; got an array. Multiply {target} by it first.",
            **{name: ARRAY},
        )
        for name, target in (("scale_q", "query"), ("scale_k", "key"), ("scale_v", "value"))
    ),
    refused(
        "flashinfer",
        ConventionError,
        "packed_custom_mask must be None; got an array. Pass the mask itself as custom_mask=.",
        packed_custom_mask=ARRAY,
    ),
    refused(
        "flashinfer",
        ConventionError,
        "pos_encoding_mode='ROPE_LLAMA' rotates query and key before attention and cannot be expressed. "
        "Pass the rotated arrays and pos_encoding_mode='NONE'.",
        pos_encoding_mode="ROPE_LLAMA",
    ),
    refused(
        "flashinfer",
        ConventionError,
        "pos_encoding_mode='ALIBI' beside logits_soft_cap=30.0 is a formula that multiplies the scores by sm_scale "
        "twice and cannot be expressed. Pass one of them.",
        pos_encoding_mode="ALIBI",
        logits_soft_cap=30.0,
        num_qo_heads=4,
    ),
    refused(
        "flashinfer",
        ValueError,
        "num_qo_heads must be given with pos_encoding_mode='ALIBI', for the slopes follow from it; got None.",
        pos_encoding_mode="ALIBI",
    ),
    refused(
        "flashinfer",
        ValueError,
        "pos_encoding_mode must be one of 'NONE', 'ROPE_LLAMA', 'ALIBI'; got 'rope'.",
        pos_encoding_mode="rope",
    ),
    refused("flashinfer", ValueError, "kv_layout must be one of 'NHD', 'HND'; got 'NDH'.", kv_layout="NDH"),
    refused("flashinfer", ValueError, "lse_base must be one of 'log2', 'ln'; got 'e'.", lse_base="e"),
    refused("flashinfer", ValueError, "window_left must be at least -1; got -2.", window_left=-2),
    refused("flashinfer", TypeError, "custom_mask must be boolean; got float64.", custom_mask=CELLS),
    refused("flashinfer", TypeError, "custom_mask must be boolean; got int64.", custom_mask=np.ones((3, 5), np.int64)),
    refused(
        "flashinfer",
        ValueError,
        "custom_mask must have at least 2 axes; got (4,).",
        custom_mask=ARRAY > 0,
    ),
    refused("flashinfer", TypeError, "causal must be True or False; got int.", causal=1),
    refused("flashinfer", TypeError, "sinks must have a real floating-point dtype; got int64.", sinks=LENGTHS),
    refused("flashinfer", ValueError, "sm_scale must be finite; got inf.", sm_scale=math.inf),
    # JAX.
    refused(
        "jax_nn",
        ConventionError,
        "local_window_size=(2, 1) has a right side, which implementation='cudnn' takes with is_causal and without "
        "sequence lengths only. Pass (2, 0).",
        local_window_size=(2, 1),
        implementation="cudnn",
    ),
    refused(
        "jax_nn",
        ConventionError,
        "local_window_size=(2, 1) has a right side, which implementation='cudnn' takes with is_causal and without "
        "sequence lengths only. Pass (2, 0).",
        local_window_size=(2, 1),
        implementation="cudnn",
        is_causal=True,
        query_seq_lengths=LENGTHS,
    ),
    refused(
        "jax_nn",
        ConventionError,
        "local_window_size=(2, 0) without is_causal reaches implementation='cudnn' with no right side. "
        "Pass is_causal=True.",
        local_window_size=(2, 0),
        implementation="cudnn",
    ),
    refused("jax_nn", ValueError, "implementation must be 'xla', 'cudnn' or None; got 'cute'.", implementation="cute"),
    refused(
        "jax_nn",
        TypeError,
        "local_window_size must be an integer or a pair (left, right); got (1, 2, 3).",
        local_window_size=(1, 2, 3),
    ),
    refused("jax_nn", ValueError, "local_window_size[0] must be at least 0; got -1.", local_window_size=(-1, 0)),
    refused("jax_nn", TypeError, "mask must be boolean; got float64.", mask=CELLS),
    refused("jax_nn", TypeError, "bias must be floating-point, it is added to the scores; got bool.", bias=CELLS > 0),
    refused("jax_nn", TypeError, "query_seq_lengths must have an integer dtype; got float64.", query_seq_lengths=ARRAY),
    # xFormers.
    refused(
        "xformers",
        ConventionError,
        "p=0.1 is drawn inside the kernel and cannot be expressed. Pass p=0.0 here, and to attention "
        "dropout_p=0.1 and the mask that the kernel used as dropout_mask=.",
        p=0.1,
    ),
    *(
        refused(
            "xformers",
            ConventionError,
            f"attn_bias={name!r} reads keys that do not lie one after the other and cannot be expressed. "
            "Gather the keys of each block and pass the class without pages and gaps.",
            attn_bias=name,
        )
        for name in ("PagedBlockDiagonalPaddedKeysMask", "BlockDiagonalGappyKeysMask")
    ),
    refused("xformers", ValueError, f"attn_bias must be one of {', '.join(KINDS)}; got 'Causal'.", attn_bias="Causal"),
    refused(
        "xformers",
        ValueError,
        "window_size must be given with attn_bias='LowerTriangularFromBottomRightLocalAttentionMask'; got None.",
        attn_bias="LowerTriangularFromBottomRightLocalAttentionMask",
    ),
    refused(
        "xformers",
        ValueError,
        "bias must be given with attn_bias='LowerTriangularMaskWithTensorBias'; got None.",
        attn_bias="LowerTriangularMaskWithTensorBias",
    ),
    refused(
        "xformers",
        ValueError,
        "window_size must not be given with attn_bias='LowerTriangularMask'; got int.",
        attn_bias="LowerTriangularMask",
        window_size=2,
    ),
    refused(
        "xformers",
        ValueError,
        "q_seqlen must not be given with attn_bias of another kind than a class; got list.",
        q_seqlen=[1],
    ),
    refused(
        "xformers",
        ValueError,
        f"q_seqlen[1] must be at most 2 with attn_bias={RIGHT_BLOCKS!r}, for kv_seqlen[1]=2; got 3.",
        attn_bias=RIGHT_BLOCKS,
        **BLOCKS,
    ),
    refused(
        "xformers",
        ValueError,
        "q_seqlen[0] must be at most 3 with attn_bias='BlockDiagonalCausalLocalAttentionMask', for kv_seqlen[0]=2; "
        "got 4.",
        attn_bias="BlockDiagonalCausalLocalAttentionMask",
        window_size=2,
        q_seqlen=[4],
        kv_seqlen=[2],
    ),
    refused(
        "xformers",
        ValueError,
        "q_seqlen and kv_seqlen must have one length for each block; got 2 and 1.",
        attn_bias="BlockDiagonalMask",
        q_seqlen=[1, 2],
        kv_seqlen=[3],
    ),
    refused(
        "xformers",
        ValueError,
        "kv_seqlen must be at most kv_padding=2; got 3.",
        attn_bias="BlockDiagonalPaddedKeysMask",
        q_seqlen=[1],
        kv_seqlen=[3],
        kv_padding=2,
    ),
    refused(
        "xformers",
        ValueError,
        "q_seqlen[1] must be at least 0; got -1.",
        attn_bias="BlockDiagonalMask",
        q_seqlen=[1, -1],
    ),
    refused(
        "xformers",
        TypeError,
        "q_seqlen must be a list of integers or an integer array (n,); got float64.",
        attn_bias="BlockDiagonalMask",
        q_seqlen=ARRAY,
    ),
    refused(
        "xformers",
        ValueError,
        "kv_seqlen must be a list of integers or an integer array (n,); got shape (1, 2).",
        attn_bias="BlockDiagonalMask",
        q_seqlen=[1],
        kv_seqlen=[[1, 2]],
    ),
    refused(
        "xformers",
        ValueError,
        "window_size must be at least 1; got 0.",
        attn_bias="LowerTriangularFromBottomRightLocalAttentionMask",
        window_size=0,
    ),
    refused(
        "xformers",
        TypeError,
        "attn_bias must be floating-point, it is added to the scores; got bool.",
        attn_bias=CELLS > 0,
    ),
    # cuDNN.
    refused(
        "cudnn",
        ConventionError,
        "dropout must be None; got tuple. Pass the mask that the kernel used to attention as dropout_mask=.",
        dropout=(0.1, 0, 0),
    ),
    refused(
        "cudnn",
        ConventionError,
        "block_mask must be None; got an array. Pass its bits, each for 128 x 128 cells, to attention as mask=.",
        block_mask=ARRAY,
    ),
    refused(
        "cudnn",
        ConventionError,
        "diagonal_alignment='BOTTOM_RIGHT' with a right bound beside a bias or ALiBi is refused by cuDNN. "
        "Pass one of them.",
        use_causal_mask_bottom_right=True,
        bias=CELLS,
    ),
    refused(
        "cudnn",
        ConventionError,
        "use_alibi_mask=True with a right bound of None is refused by cuDNN. Pass diagonal_band_right_bound=0.",
        use_alibi_mask=True,
        num_heads=4,
    ),
    refused(
        "cudnn",
        ConventionError,
        "bias beside use_alibi_mask=True cannot be expressed. Pass their sum as bias=.",
        use_alibi_mask=True,
        bias=CELLS,
        use_causal_mask=True,
    ),
    refused(
        "cudnn",
        ConventionError,
        "diagonal_band_left_bound=0 hides the diagonal key too and cannot be expressed. Pass 1 or more.",
        diagonal_band_left_bound=0,
    ),
    refused(
        "cudnn",
        ConventionError,
        "sliding_window_length=0 hides the diagonal key too and cannot be expressed. Pass 1 or more.",
        sliding_window_length=0,
    ),
    refused(
        "cudnn",
        ValueError,
        "num_heads must be given with use_alibi_mask=True, for the slopes follow from it; got None.",
        use_alibi_mask=True,
        use_causal_mask=True,
    ),
    refused(
        "cudnn",
        ValueError,
        "use_causal_mask and use_causal_mask_bottom_right must not be given together; got both.",
        use_causal_mask=True,
        use_causal_mask_bottom_right=True,
    ),
    refused(
        "cudnn",
        ValueError,
        "use_causal_mask must be False with diagonal_alignment='BOTTOM_RIGHT'; got True. "
        "Pass use_causal_mask_bottom_right=True.",
        use_causal_mask=True,
        diagonal_alignment="BOTTOM_RIGHT",
    ),
    refused(
        "cudnn",
        ValueError,
        "sliding_window_length and diagonal_band_left_bound must not be given together; got 2 and 3.",
        sliding_window_length=2,
        diagonal_band_left_bound=3,
    ),
    refused(
        "cudnn",
        ValueError,
        "diagonal_alignment must be one of 'TOP_LEFT', 'BOTTOM_RIGHT'; got 'CENTRE'.",
        diagonal_alignment="CENTRE",
    ),
    refused(
        "cudnn",
        ValueError,
        "seq_len_kv must not be given with use_padding_mask=False; got an array.",
        seq_len_kv=LENGTHS,
    ),
    refused(
        "cudnn",
        ValueError,
        "seq_len_kv must be given with use_padding_mask=True; got None.",
        use_padding_mask=True,
        seq_len_q=LENGTHS,
    ),
    refused("cudnn", ValueError, "sink_token must have shape (H,) or (1, H, 1, 1); got (3, 5).", sink_token=CELLS),
    refused("cudnn", ValueError, "diagonal_band_right_bound must be at least 0; got -1.", diagonal_band_right_bound=-1),
]


@pytest.mark.parametrize(("name", "arguments", "error", "text"), CALLS)
def test_text(name: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_refused(name, arguments, error, text)
