"""ONNX's Attention against the rules of its specification, written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn.contract import eager
from refattn.conventions import onnx, onnx_flex, onnx_rotary_embedding
from tests.conventions import loops
from tests.peers.cases import budget_used

B, H, Hk = 2, 4, 2
PAST = np.zeros((B, Hk, 3, 5))
LENGTHS = np.array([2, 6])


def offset_of(cache: str, b: int, L: int) -> int:
    """Number of valid keys before the query block."""
    return {"none": 0, "past": PAST.shape[2], "external": int(LENGTHS[b]) - L}[cache]


def inputs_of(cache: str) -> dict[str, Any]:
    """The inputs that say which cache a node has."""
    return {
        "none": {},
        "past": {"past_key": PAST, "past_value": PAST},
        "external": {"nonpad_kv_seqlen": LENGTHS},
    }[cache]


def share(call: Any, L: int, S: int, sees: Callable[..., bool], **loop: Any) -> float:
    """How much of a float64 budget the written-out node uses."""
    q, k, v = loops.draw(np.random.default_rng(L * 10 + S), L, S, B=B, H=H, Hk=Hk)
    wanted = loops.attention(q, k, v, sees=sees, **loop)
    return budget_used(wanted, q, k, v, eager("float64"), **call.arguments)


@pytest.mark.parametrize("window", [(-1, -1), (1, -1), (-1, 1), (2, 1), (0, 0)])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("cache", ["none", "past", "external"])
def test_diagonal_and_windows(cache: str, causal: int, window: tuple[int, int]) -> None:
    left, right = window
    for L, S in ((4, 6), (3, 6), (8, 6)):
        call = onnx(
            opset=25, L=L, S=S, is_causal=causal, left_window_size=left, right_window_size=right, **inputs_of(cache)
        )

        def sees(b: int, h: int, i: int, j: int, L: int = L) -> bool:
            p = i + offset_of(cache, b, L)
            return (
                (not causal or j <= p)
                and (left < 0 or p - left <= j)
                and (right < 0 or j <= p + right)
                and (cache != "external" or j < LENGTHS[b])
            )

        assert share(call, L, S, sees) <= 1


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
@pytest.mark.parametrize(("opset", "length"), [(23, 6), (24, 6), (24, 4), (25, 4), (25, 1)])
def test_masks_are_matched_from_the_right_and_hide_the_keys_behind_their_end(
    opset: int, length: int, rank: int
) -> None:
    L, S = 3, 6
    rng = np.random.default_rng(rank)
    shape = (B, H, L, length)[4 - rank :]
    cells, added = rng.random(shape) < 0.5, rng.standard_normal(shape)
    added[..., 0] = -np.inf

    def at(x: np.ndarray, b: int, h: int, i: int, j: int) -> Any:
        return np.broadcast_to(x, (B, H, L, length))[b, h, i, j]

    call = onnx(opset=opset, S=S, attn_mask=cells)
    assert share(call, L, S, lambda b, h, i, j: j < length and at(cells, b, h, i, j)) <= 1
    call = onnx(opset=opset, S=S, attn_mask=added, softcap=0.5, is_causal=1)
    assert (
        share(
            call,
            L,
            S,
            lambda b, h, i, j: j <= i and j < length and at(added, b, h, i, j) > -np.inf,
            adds=lambda b, h, i, j: at(added, b, h, i, j),
            cap=0.5,
        )
        <= 1
    )


def test_scale_and_layout() -> None:
    call = onnx(opset=24, scale=0.3, q_num_heads=H, kv_num_heads=Hk)
    assert share(call, 3, 6, lambda b, h, i, j: True, scale=0.3) <= 1
    assert (call.layout, call.empty_row) == ("blhd", "zeros")
    assert onnx(opset=24).layout == "bhld"


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_a_short_mask_is_lengthened_in_its_own_library(library: str) -> None:
    xp = pytest.importorskip(library, reason=f"{library} is not installed")
    bias = onnx(opset=24, S=4, attn_mask=xp.asarray([[1.0, 2.0]])).arguments["bias"]
    assert type(bias) is type(xp.asarray([1.0]))
    assert bias.tolist() if library == "torch" else np.asarray(bias._array).tolist() == [[1, 2, -np.inf, -np.inf]]


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize(("mode", "stage"), [(0, "raw"), (1, "softcapped"), (2, "biased"), (3, "weights")])
def test_the_fourth_output_is_a_stage_of_the_scores(mode: int, stage: str, opset: int) -> None:
    call = onnx(opset=opset, qk_matmul_output_mode=mode)
    assert call.scores_stage == stage
    assert (call.arguments, call.notes) == ({}, ())


@pytest.mark.parametrize(("code", "dtype"), [(1, "float32"), (10, "float16"), (11, "float64"), (16, "bfloat16")])
def test_notes_say_what_the_softmax_runs_in(code: int, dtype: str) -> None:
    assert onnx(opset=23, softmax_precision=code).notes == (f"The softmax runs in {dtype}.",)
    assert onnx_flex(softmax_precision=code).notes == (f"The softmax runs in {dtype}.",)


def test_flex_attention_without_graphs_is_plain_attention() -> None:
    call = onnx_flex(scale=0.25)
    assert share(call, 3, 6, lambda b, h, i, j: True, scale=0.25) <= 1
    assert (call.layout, call.empty_row) == ("bhld", "nan")


@pytest.mark.parametrize("turned", [0, 2, 4])
@pytest.mark.parametrize("paired", [0, 1])
@pytest.mark.parametrize("with_ids", [True, False])
def test_rotary_embedding_is_its_specification_written_out(with_ids: bool, paired: int, turned: int) -> None:
    L, E = 3, 6
    R = turned or E
    rng = np.random.default_rng(turned)
    x = rng.standard_normal((B, H, L, E))
    ids = rng.integers(0, 9, (B, L))
    cos, sin = rng.standard_normal((2, 9, R // 2) if with_ids else (2, B, L, R // 2))
    call = onnx_rotary_embedding(
        opset=23, position_ids=ids if with_ids else None, interleaved=paired, rotary_embedding_dim=turned
    )
    wanted = x.copy()
    for b, h, i, k in np.ndindex(B, H, L, R // 2):
        first, second = (2 * k, 2 * k + 1) if paired else (k, k + R // 2)
        c, s = (t[ids[b, i], k] if with_ids else t[b, i, k] for t in (cos, sin))
        u, v = x[b, h, i, first], x[b, h, i, second]
        wanted[b, h, i, first], wanted[b, h, i, second] = c * u - s * v, s * u + c * v
    np.testing.assert_array_equal(ra.rotary_embedding(x, cos, sin, **call.arguments), wanted)
    assert call.layout == "bhld"
    assert onnx_rotary_embedding(opset=24, num_heads=2).layout == "blhd"
