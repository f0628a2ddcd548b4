"""Converters take arrays of any library: what they make of them is what they make of NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest

from refattn import conventions
from refattn.conventions import Convention, disagree

L, S, B, H = 3, 5, 2, 4
RNG = np.random.default_rng(15)
CELLS = RNG.random((B, 1, L, S)) < 0.6
BIAS = RNG.standard_normal((B, H, L, S)).astype(np.float32)
SINKS = RNG.standard_normal(H).astype(np.float32)
QUERIES, KEYS = np.array([1, 3], np.int32), np.array([4, 2], np.int32)

# Each takes a function that makes an array of the library from NumPy's.
CALLS: dict[str, Callable[[Any], Convention]] = {
    "flash_attn": lambda x: conventions.flash_attn(alibi_slopes=x(SINKS), learnable_sink=x(SINKS)),
    "flashinfer": lambda x: conventions.flashinfer(custom_mask=x(CELLS), sinks=x(SINKS)),
    "jax_nn": lambda x: conventions.jax_nn(
        mask=x(CELLS), bias=x(BIAS), query_seq_lengths=x(QUERIES), key_value_seq_lengths=x(KEYS)
    ),
    "xformers": lambda x: conventions.xformers(
        attn_bias="BlockDiagonalMask", q_seqlen=x(QUERIES[:1] + 2), kv_seqlen=x(KEYS[:1] + 1)
    ),
    "xformers tensor": lambda x: conventions.xformers(attn_bias=x(BIAS)),
    "cudnn": lambda x: conventions.cudnn(
        bias=x(BIAS),
        sink_token=x(SINKS.reshape(1, H, 1, 1)),
        use_padding_mask=True,
        seq_len_q=x(QUERIES),
        seq_len_kv=x(KEYS.reshape(B, 1, 1, 1)),
    ),
    "mlx": lambda x: conventions.mlx(scale=1.0, mask=x(CELLS[0, 0, 0]), sinks=x(SINKS)),
    "transformer_engine": lambda x: conventions.transformer_engine(
        attn_mask_type="arbitrary",
        attention_mask=x(CELLS),
        core_attention_bias_type="pre_scale_bias",
        core_attention_bias=x(BIAS),
        softmax_scale=0.5,
        softmax_type="learnable",
        softmax_offset=x(SINKS.reshape(1, H, 1, 1)),
    ),
    "transformer_engine padding": lambda x: conventions.transformer_engine(
        attn_mask_type="padding_causal_bottom_right", attention_mask=(x(CELLS[:, :, :1, :L]), x(CELLS[:, :, :1]))
    ),
    "transformer_engine lengths": lambda x: conventions.transformer_engine(
        attn_mask_type="padding", cu_seqlens_q=x(np.array([0, 1, 4])), cu_seqlens_kv=x(np.array([0, 4, 6]))
    ),
    "transformers": lambda x: conventions.transformers(attention_mask=x(CELLS[:, 0, 0]), attention_chunk_size=2),
    "transformers positions": lambda x: conventions.transformers(position_ids=x(np.array([[0, 1, 0]]))),
    "transformers eager": lambda x: conventions.transformers(
        attention_mask=x(BIAS), s_aux=x(SINKS), attn_implementation="eager"
    ),
}


def xp_float64(xp: Any) -> AbstractContextManager[Any]:
    """A context in which the library has float64."""
    return pytest.importorskip("jax").enable_x64() if xp.__name__ == "jax.numpy" else nullcontext()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("library", ["torch", "array_api_strict", "jax.numpy"])
def test_arrays_of_any_library(name: str, library: str) -> None:
    xp = pytest.importorskip(library, reason=f"{library} is not installed")
    keys = L if name == "transformers positions" else S
    # The bias that is scaled is scaled in float64, which a JAX session may have switched off.
    with xp_float64(xp):
        other, own = CALLS[name](xp.asarray), CALLS[name](np.asarray)
        found = disagree(other, own, L=L, S=keys)
    assert str(found) == f"The two calls agree in all {found.cells.size} cells and in every term."
    assert repr(other.notes) == repr(own.notes)
