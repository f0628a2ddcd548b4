"""Hugging Face's masks against the mask functions of src/transformers/masking_utils.py, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn.contract import eager
from refattn.conventions import from_hf_longformer, transformers
from tests.conventions import loops
from tests.peers.cases import budget_used

# (L, S, q_offset, kv_offset): a prompt, a cache, a cache with room behind it, a sliding cache that dropped 3 keys.
PLACES = [(4, 4, 0, 0), (2, 5, 3, 0), (2, 7, 3, 0), (2, 5, 6, 3)]
PADDING = np.array([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0, 0]])


def sees(b: int, q: int, kv: int, causal: bool, window: int | None, chunk: int | None, padding: Any) -> bool:
    """and_masks of the causal, window, chunk and padding functions, on positions in the sequence."""
    ok = kv <= q if causal else q >= 0
    if window is not None:
        ok &= kv > q - window if causal else abs(q - kv) <= window
    if chunk is not None:
        start = 0 if padding is None else int((np.cumsum(padding[b]) == 0).sum())
        ok &= (kv - start) // chunk == (q - start) // chunk
    if padding is not None:
        # prepare_padding_mask pads with zeros.
        ok &= kv < padding.shape[1] and bool(padding[b, kv])
    return ok


@pytest.mark.parametrize("padding", [None, PADDING, PADDING.astype(bool), PADDING[:, :4]])
@pytest.mark.parametrize(
    ("causal", "window", "chunk"),
    [(True, None, None), (True, 3, None), (True, None, 3), (False, None, None), (False, 1, None)],
)
def test_mask_functions(padding: Any, causal: bool, window: int | None, chunk: int | None) -> None:
    for L, S, q_offset, kv_offset in PLACES:
        call = transformers(
            attention_mask=padding,
            is_causal=causal,
            sliding_window=window,
            attention_chunk_size=chunk,
            q_offset=q_offset,
            kv_offset=kv_offset,
        )
        wanted = loops.seen(
            lambda b, h, i, j, at=(q_offset, kv_offset): sees(b, i + at[0], j + at[1], causal, window, chunk, padding),
            L,
            S,
            B=2,
        )
        np.testing.assert_array_equal(loops.dense(call, L, S, B=2), wanted)


# As printed in the docstring of sdpa_mask.
@pytest.mark.parametrize(
    ("call", "picture"),
    [
        ({}, "#.... ##... ###.. ####. #####"),
        ({"sliding_window": 3}, "#.... ##... ###.. .###. ..###"),
        ({"attention_chunk_size": 3}, "#.... ##... ###.. ...#. ...##"),
    ],
)
def test_masks_of_the_documentation(call: dict[str, int], picture: str) -> None:
    assert transformers(**call).arguments["mask"].draw(5, 5).split()[2::2] == picture.split()


@pytest.mark.parametrize("position_ids", [[[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]], [[3, 4, 5, 0, 1], [0, 0, 0, 1, 2]]])
def test_packed_sequences_are_found_by_their_positions(position_ids: list[list[int]]) -> None:
    # The docstring's example of find_packed_sequence_indices, and a step back and none.
    sequences = [np.cumsum([k > 0 and row[k] - row[k - 1] != 1 for k in range(5)]) for row in position_ids]
    call = transformers(position_ids=np.array(position_ids))
    wanted = loops.seen(lambda b, h, i, j: j <= i and sequences[b][i] == sequences[b][j], 5, 5, B=2)
    np.testing.assert_array_equal(loops.dense(call, 5, 5, B=2), wanted)


@pytest.mark.parametrize("version", ["flash_attention", "flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 3), (False, 3), (False, None)])
def test_flash_attention_is_lower_right_and_one_less_on_both_sides(
    version: str, causal: bool, window: int | None
) -> None:
    call = transformers(attn_implementation=version, is_causal=causal, sliding_window=window)
    for L, S in [(4, 4), (2, 5)]:
        wanted = loops.seen(
            lambda b, h, i, j, off=S - L: (
                (not causal or j <= i + off) and (window is None or abs(i + off - j) <= window - 1)
            ),
            L,
            S,
        )
        np.testing.assert_array_equal(loops.dense(call, L, S), wanted)
    assert call.notes == (("Before August 2025 the window was one key wider.",) if window else ())


def test_eager_attention_with_softcap_and_sinks() -> None:
    rng = np.random.default_rng(9)
    q, k, v = loops.draw(rng, 3, 5)
    sinks, mask = rng.standard_normal(4), rng.standard_normal((2, 1, 3, 5))
    call = transformers(attention_mask=mask, scaling=0.4, softcap=1.5, s_aux=sinks, attn_implementation="eager")
    wanted = loops.attention(q, k, v, adds=lambda b, h, i, j: mask[b, 0, i, j], scale=0.4, cap=1.5, sinks=sinks)
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


def test_a_mask_of_four_axes_is_taken_as_it_is() -> None:
    mask = np.random.default_rng(10).random((2, 1, 3, 5)) < 0.5
    call = transformers(attention_mask=mask, sliding_window=1)
    np.testing.assert_array_equal(loops.dense(call, 3, 5, B=2), mask)


@pytest.mark.parametrize(
    ("form", "empty_row", "order"),
    [
        ("sdpa", "zeros", "none"),
        ("eager", "mean", "before bias"),
        ("flex_attention", "zeros", "before bias"),
        ("flash_attention_4", "zeros", "before bias"),
    ],
)
def test_rows_without_keys_and_order_of_softcap(form: str, empty_row: str, order: str) -> None:
    call = transformers(attn_implementation=form)
    assert (call.layout, call.lse_base, call.empty_row, call.softcap_order) == ("bhld", "e", empty_row, order)
    assert transformers(attn_implementation="eager", s_aux=np.zeros(4)).empty_row == "zeros"


@pytest.mark.parametrize("window", [2, 4, 512])
def test_longformer_counts_both_sides_in_one_number(window: int) -> None:
    wanted = loops.seen(lambda b, h, i, j: abs(i - j) <= window // 2, 6, 6)
    np.testing.assert_array_equal(loops.dense(from_hf_longformer(attention_window=window), 6, 6), wanted)
