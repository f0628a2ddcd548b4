"""DotProductAttention against get_full_mask, check_set_window_size and get_alibi of Transformer Engine, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn.biases import alibi_slopes
from refattn.contract import eager
from refattn.conventions import transformer_engine
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (4, 4), (1, 6), (5, 3)]
PLAIN = ("no_mask", "causal", "causal_bottom_right")
PADDED = ("padding", "padding_causal", "padding_causal_bottom_right")
QUERIES, KEYS = np.array([2, 3]), np.array([5, 1])
WINDOWS = [None, (-1, -1), (-1, 0), (0, 0), (2, 0), (1, 2)]


def masked(
    L: int, S: int, kind: str, window: Any, bottom_right: bool, outside: np.ndarray | None, q: int, k: int
) -> np.ndarray:
    """get_full_mask of one batch entry: True where masked out; q and k are its lengths."""
    window = (-1, -1) if window is None else window
    window = (window[0], 0) if "causal" in kind else (-1, -1) if window == (-1, 0) else window
    # An open side is S or L keys there, which is none where L > S + 1; here it is what the documentation says.
    left, right = (L + S if n == -1 else n for n in window)
    distance = np.arange(L)[:, None] - np.arange(S)
    if kind == "causal_bottom_right" or (kind in ("no_mask", "arbitrary") and bottom_right):
        distance = distance + S - L
    elif kind == "padding_causal_bottom_right" or (kind == "padding" and bottom_right):
        distance = distance + k - q
    cells = ~((distance - left <= 0) & ~(distance + right < 0))
    # Without a mask type the softmax is given no mask at all, whatever get_full_mask makes of (-1, -1).
    cells = np.zeros((L, S), bool) if kind == "no_mask" and window == (-1, -1) else cells
    return cells if outside is None else cells | outside


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("window", WINDOWS)
def test_masks_without_padding(kind: str, window: Any) -> None:
    call = transformer_engine(attn_mask_type=kind, window_size=window)
    for L, S in LENGTHS:
        wanted = ~masked(L, S, kind, window, True, None, L, S)
        np.testing.assert_array_equal(loops.dense(call, L, S)[0, 0], wanted)


@pytest.mark.parametrize("kind", PADDED)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("as_mask", [False, True])
def test_masks_with_padding(kind: str, window: Any, as_mask: bool) -> None:
    L, S = 4, 6
    rows, columns = np.arange(L) >= QUERIES[:, None], np.arange(S) >= KEYS[:, None]
    given: dict[str, Any] = (
        {"attention_mask": (rows[:, None, None], columns[:, None, None])}
        if as_mask
        else {"cu_seqlens_q": np.array([0, 2, 5]), "cu_seqlens_kv": np.array([0, 5, 6])}
    )
    call = transformer_engine(attn_mask_type=kind, window_size=window, **given)
    wanted = [~masked(L, S, kind, window, True, rows[b, :, None] | columns[b], QUERIES[b], KEYS[b]) for b in range(2)]
    np.testing.assert_array_equal(loops.dense(call, L, S, B=2)[:, 0], wanted)
    assert call.empty_row == "zeros"


@pytest.mark.parametrize("bottom_right", [False, True])
@pytest.mark.parametrize("kind", ["no_mask", "arbitrary"])
def test_the_corner_of_the_window_may_be_chosen(kind: str, bottom_right: bool) -> None:
    L, S = 3, 5
    outside = np.random.default_rng(0).random((L, S)) < 0.4 if kind == "arbitrary" else None
    call = transformer_engine(
        attn_mask_type=kind, window_size=(1, 1), bottom_right_diagonal=bottom_right, attention_mask=outside
    )
    wanted = ~masked(L, S, kind, (1, 1), bottom_right, outside, L, S)
    np.testing.assert_array_equal(loops.dense(call, L, S)[0, 0], wanted)


def test_self_attention_pads_queries_and_keys_alike() -> None:
    outside = np.array([[False, False, True], [True, False, False]])
    call = transformer_engine(attn_mask_type="padding", attention_mask=outside[:, None, None])
    wanted = loops.seen(lambda b, h, i, j: not (outside[b, i] or outside[b, j]), 3, 3, B=2)
    np.testing.assert_array_equal(loops.dense(call, 3, 3, B=2), wanted)


@pytest.mark.parametrize("name", ["padding,causal", "causal,padding"])
def test_names_with_a_comma(name: str) -> None:
    given = {"cu_seqlens_q": np.array([0, 2]), "cu_seqlens_kv": np.array([0, 3])}
    wanted = transformer_engine(attn_mask_type="padding_causal", **given)
    assert repr(transformer_engine(attn_mask_type=name, **given)) == repr(wanted)


@pytest.mark.parametrize("kind", ["pre_scale_bias", "post_scale_bias"])
@pytest.mark.parametrize("softmax", ["vanilla", "off-by-one", "learnable"])
def test_bias_and_softmax_type(kind: str, softmax: str) -> None:
    rng = np.random.default_rng(7)
    q, k, v = loops.draw(rng, 3, 5)
    bias, offset = rng.standard_normal((1, 4, 3, 5)), rng.standard_normal((1, 4, 1, 1))
    call = transformer_engine(
        attn_mask_type="no_mask",
        core_attention_bias_type=kind,
        core_attention_bias=bias,
        softmax_scale=0.5,
        softmax_type=softmax,
        softmax_offset=offset if softmax == "learnable" else None,
        num_attention_heads=4,
    )
    sinks = {"vanilla": None, "off-by-one": np.zeros(4), "learnable": offset.ravel()}[softmax]
    # Half of a float64 number is exact.
    factor = 0.5 if kind == "pre_scale_bias" else 1.0
    wanted = loops.attention(q, k, v, adds=lambda b, h, i, j: factor * bias[0, h, i, j], scale=0.5, sinks=sinks)
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


@pytest.mark.parametrize("kind", [*PLAIN, *PADDED])
@pytest.mark.parametrize("slopes", [None, (4,), (2, 4)])
def test_alibi_lies_at_the_corner_of_the_mask(kind: str, slopes: tuple[int, ...] | None) -> None:
    L, S = 3, 5
    rng = np.random.default_rng(8)
    q, k, v = loops.draw(rng, L, S)
    given = None if slopes is None else rng.random(slopes)
    numbers = np.broadcast_to(alibi_slopes(4) if given is None else given, (2, 4))
    padded = kind in PADDED
    call = transformer_engine(
        attn_mask_type=kind,
        core_attention_bias_type="alibi",
        alibi_slopes=given,
        num_attention_heads=4,
        **({"cu_seqlens_q": np.array([0, 2, 5]), "cu_seqlens_kv": np.array([0, 5, 6])} if padded else {}),
    )
    lengths = [(2, 5), (3, 1)] if padded else [(L, S), (L, S)]
    top_left = kind in ("causal", "padding_causal")
    hidden = [
        masked(
            L,
            S,
            kind,
            None,
            True,
            (np.arange(L)[:, None] >= n) | (np.arange(S) >= m) if padded else None,
            n,
            m,
        )
        for n, m in lengths
    ]
    wanted = loops.attention(
        q,
        k,
        v,
        sees=lambda b, h, i, j: not hidden[b][i, j],
        adds=lambda b, h, i, j: -numbers[b, h] * abs(i - j + (0 if top_left else lengths[b][1] - lengths[b][0])),
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


@pytest.mark.parametrize(("qkv_format", "layout"), [("sbhd", "lbhd"), ("bshd", "blhd"), ("thd", "blhd")])
def test_layouts(qkv_format: str, layout: str) -> None:
    given = {"cu_seqlens_q": np.array([0, 2]), "cu_seqlens_kv": np.array([0, 3])}
    call = transformer_engine(attn_mask_type="padding", qkv_format=qkv_format, **given)
    assert call.layout == layout
    assert call.notes == (
        ("The arrays are those that cu_seqlens_q and cu_seqlens_kv unpack to.",) if qkv_format == "thd" else ()
    )


def test_default_call_is_causal_at_the_upper_left() -> None:
    call = transformer_engine()
    assert repr(call.arguments) == "{'mask': masks.causal(anchor='upper_left')}"
    assert (call.layout, call.lse_base, call.empty_row) == ("lbhd", "e", "undefined")
