"""flash_attn_func against its documented rules, written out."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.contract import eager
from refattn.conventions import flash_attn
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]
WINDOWS = [(-1, -1), (2, -1), (-1, 1), (1, 2), (0, 0), (3, 0), (None, 1), (9, 9)]


def sees(L: int, S: int, i: int, j: int, causal: bool, window: tuple[int | None, int | None]) -> bool:
    """The docstring's interval, with causal as "right = 0" from the lower right corner."""
    left, right = (None if x in (-1, None) else x for x in window)
    right = 0 if causal else right
    stands = i + S - L
    return (left is None or j >= stands - left) and (right is None or j <= stands + right)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
def test_mask_is_the_documented_interval(causal: bool, window: tuple[int | None, int | None]) -> None:
    mask = flash_attn(causal=causal, window_size=window).arguments.get("mask")
    for L, S in LENGTHS:
        wanted = [[sees(L, S, i, j, causal, window) for j in range(S)] for i in range(L)]
        found = np.ones((L, S), bool) if mask is None else mask.dense(L, S)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (2, -1), (1, 2), (0, 0)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
def test_chunks_are_those_of_version_3(chunk: int, window: tuple[int, int], causal: bool) -> None:
    call = flash_attn(attention_chunk=chunk, window_size=window, causal=causal)
    for L, S in [(3, 5), (4, 4), (1, 6), (2, 9)]:
        np.testing.assert_array_equal(
            loops.dense(call, L, S)[0, 0], [version_3(L, S, i, chunk, window, causal) for i in range(L)]
        )


def version_3(L: int, S: int, row: int, chunk: int, window: tuple[int, int], causal: bool) -> list[bool]:
    """One row of hopper/mask.h, with the windows that hopper/flash_api.cpp hands to it; L <= S."""
    left, right = window[0], 0 if causal else window[1]
    left, right = min(S - 1 if left < 0 else left, chunk - 1), min(L - 1 if right < 0 else right, chunk - 1)
    from_chunk = (row + S - L) // chunk * chunk
    first = max(row + S - L - left, from_chunk)
    stop = min(row + 1 + S - L + right, from_chunk + chunk)
    return [first <= column < min(stop, S) for column in range(S)]


# As printed in flash_attn_func's docstring.
@pytest.mark.parametrize(("L", "S", "picture"), [(2, 5, "1 1 1 1 0\n1 1 1 1 1"), (5, 2, "0 0\n0 0\n0 0\n1 0\n1 1")])
def test_causal_masks_of_the_documentation(L: int, S: int, picture: str) -> None:
    rows = [[cell == "1" for cell in line.split()] for line in picture.splitlines()]
    np.testing.assert_array_equal(flash_attn(causal=True).arguments["mask"].dense(L, S), rows)


@pytest.mark.parametrize(("L", "S"), LENGTHS)
@pytest.mark.parametrize("batch", [False, True])
def test_everything_at_once(L: int, S: int, batch: bool) -> None:
    rng = np.random.default_rng(L * 10 + S)
    q, k, v = loops.draw(rng, L, S)
    slopes = rng.random((2, 4) if batch else 4)
    sinks = rng.standard_normal(4)
    call = flash_attn(
        softmax_scale=0.7, causal=True, window_size=(2, 5), softcap=1.5, alibi_slopes=slopes, learnable_sink=sinks
    )
    wanted = loops.attention(
        q,
        k,
        v,
        sees=lambda b, h, i, j: sees(L, S, i, j, True, (2, 5)),
        adds=lambda b, h, i, j: -(slopes[b, h] if batch else slopes[h]) * abs(i + S - L - j),
        scale=0.7,
        cap=1.5,
        sinks=sinks,
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


def test_plain_call_is_plain_attention() -> None:
    call = flash_attn()
    assert call.arguments == {}
    assert (call.layout, call.lse_base, call.empty_row, call.notes) == ("blhd", "e", "zeros", ())


@pytest.mark.parametrize("softcap", [0.0, -1.0])
def test_softcap_of_zero_or_less_is_off(softcap: float) -> None:
    assert "softcap" not in flash_attn(softcap=softcap).arguments


def test_notes_name_what_the_kernels_of_version_2_do_otherwise() -> None:
    slopes = np.ones(4)
    assert flash_attn(causal=True, alibi_slopes=slopes).notes[0] == (
        "FlashAttention-2 adds +slope * j here: its log-sum-exp is higher by slope * (i + S - L)."
    )
    assert not any("slope" in note for note in flash_attn(alibi_slopes=slopes).notes)
    assert flash_attn(window_size=(3, -1)).notes[0] == (
        "FlashAttention-2 hides the keys behind i + 2 S - L, which are some where L > S + 1."
    )
    assert flash_attn(attention_chunk=2).notes[0] == (
        "Where L > S, FlashAttention-3 leaves open which chunk a query before the first key is in."
    )
    assert (
        flash_attn(window_size=(3, 0)).notes
        == flash_attn(causal=True).notes
        == ("The log-sum-exp of a row without keys is +inf in FlashAttention-2, -inf in FlashAttention-3.",)
    )
