"""cuDNN frontend's graph.sdpa against the mask of its own tests' reference (test/python/sdpa/fp16_ref.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refattn.biases import alibi_slopes
from refattn.contract import eager
from refattn.conventions import cudnn
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (4, 4), (1, 6), (5, 3)]
QUERIES, KEYS = np.array([1, 3]), np.array([5, 2])


def sees(
    L: int, S: int, b: int, i: int, j: int, corner: str, left: int | None, right: int | None, padding: Any = None
) -> bool:
    """_ScoreMask: what it masks, turned round."""
    queries, keys = (None, None) if padding is None else (padding[0][b], padding[1][b])
    offset = 0 if corner == "TOP_LEFT" else S - L if padding is None else keys - queries
    masked = padding is not None and (j >= keys or i >= queries)
    masked = masked or (right is not None and j - i > offset + right)
    return not (masked or (left is not None and j - i <= offset - left))


@pytest.mark.parametrize("corner", ["TOP_LEFT", "BOTTOM_RIGHT"])
@pytest.mark.parametrize("left", [None, 1, 3])
@pytest.mark.parametrize("right", [None, 0, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_mask_is_that_of_the_reference(corner: str, left: int | None, right: int | None, padded: bool) -> None:
    padding = (QUERIES, KEYS) if padded else None
    lengths = {"use_padding_mask": True, "seq_len_q": QUERIES, "seq_len_kv": KEYS.reshape(2, 1, 1, 1)} if padded else {}
    call = cudnn(diagonal_alignment=corner, diagonal_band_left_bound=left, diagonal_band_right_bound=right, **lengths)
    for L, S in [(3, 5), (4, 6)] if padded else LENGTHS:
        wanted = loops.seen(lambda b, h, i, j, L=L, S=S: sees(L, S, b, i, j, corner, left, right, padding), L, S, B=2)
        np.testing.assert_array_equal(loops.dense(call, L, S, B=2), wanted)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"use_causal_mask": True}, {"diagonal_band_right_bound": 0}),
        (
            {"use_causal_mask_bottom_right": True, "sliding_window_length": 2},
            {"diagonal_alignment": "BOTTOM_RIGHT", "diagonal_band_left_bound": 2, "diagonal_band_right_bound": 0},
        ),
        ({"use_causal_mask": True, "diagonal_band_right_bound": 1}, {"diagonal_band_right_bound": 1}),
        ({"diagonal_alignment": SimpleNamespace(name="BOTTOM_RIGHT")}, {"diagonal_alignment": "BOTTOM_RIGHT"}),
    ],
)
def test_old_words_are_the_new_ones(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert repr(cudnn(**old).arguments) == repr(cudnn(**new).arguments)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 1, 1)])
def test_bias_scale_and_sink_at_once(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    q, k, v = loops.draw(rng, 3, 5)
    bias, sinks = rng.standard_normal((2, 4, 3, 5)), rng.standard_normal(4)
    call = cudnn(attn_scale=0.4, bias=bias, sink_token=sinks.reshape(shape), use_causal_mask=True)
    wanted = loops.attention(
        q,
        k,
        v,
        sees=lambda b, h, i, j: sees(3, 5, b, i, j, "TOP_LEFT", None, 0),
        adds=lambda b, h, i, j: bias[b, h, i, j],
        scale=0.4,
        sinks=sinks,
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


@pytest.mark.parametrize(("L", "S"), LENGTHS)
def test_alibi_at_the_upper_left(L: int, S: int) -> None:
    q, k, v = loops.draw(np.random.default_rng(L), L, S)
    slopes = alibi_slopes(4)
    call = cudnn(use_alibi_mask=True, num_heads=4, diagonal_band_right_bound=0)
    wanted = loops.attention(
        q, k, v, sees=lambda b, h, i, j: j <= i, adds=lambda b, h, i, j: slopes[h] * (j - i), scale=1.0
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


def test_plain_call_does_not_scale() -> None:
    call = cudnn()
    assert call.arguments == {"scale": 1.0}
    assert (call.layout, call.lse_base, call.empty_row) == ("bhld", "e", "zeros")
    assert cudnn(generate_stats=True, stats_use_log2=True).lse_base == "2"
