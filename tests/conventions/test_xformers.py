"""memory_efficient_attention against what the classes of xformers.ops.fmha.attn_bias materialize, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn.contract import eager
from refattn.conventions import xformers
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (4, 4), (1, 6), (2, 2)]
BLOCKS = [([2, 3, 1], [2, 3, 1]), ([1, 2], [3, 4]), ([0, 3], [2, 5]), ([1, 4, 2], [4, 4, 2])]


def triangle(L: int, S: int, *, window: int | None = None, lower_right: bool = False) -> np.ndarray:
    """_materialize_causal_mask."""
    shift = S - L if lower_right else 0
    cells = np.tril(np.ones((L, S), bool), shift)
    return cells if window is None else np.triu(cells, shift - window + 1)


def local(L: int, S: int, left: int, right: int) -> np.ndarray:
    """LocalAttentionFromBottomRightMask.materialize."""
    return np.tril(np.triu(np.ones((L, S), bool), S - L - left), S - L + right)


def diagonal(queries: list[int], keys: list[int], room: list[int], inside: Any) -> np.ndarray:
    """BlockDiagonalMask.materialize and that of the padded keys."""
    cells = np.zeros((sum(queries), sum(room)), bool)
    for n, (L, S) in enumerate(zip(queries, keys, strict=True)):
        row, column = sum(queries[:n]), sum(room[:n])
        cells[row : row + L, column : column + S] = inside(L, S)
    return cells


@pytest.mark.parametrize(("L", "S"), [*LENGTHS, (5, 3)])
@pytest.mark.parametrize(
    ("call", "inside"),
    [
        ({"attn_bias": "LowerTriangularMask"}, triangle),
        (
            {"attn_bias": "LowerTriangularFromBottomRightMask"},
            lambda L, S: triangle(L, S, lower_right=True),
        ),
        (
            {"attn_bias": "LowerTriangularFromBottomRightLocalAttentionMask", "window_size": 2},
            lambda L, S: triangle(L, S, window=2, lower_right=True),
        ),
        (
            {"attn_bias": "LocalAttentionFromBottomRightMask", "window_left": 1, "window_right": 2},
            lambda L, S: local(L, S, 1, 2),
        ),
    ],
)
def test_classes_without_blocks(L: int, S: int, call: dict[str, Any], inside: Any) -> None:
    np.testing.assert_array_equal(loops.dense(xformers(**call), L, S)[0, 0], inside(L, S))


# As printed in the docstring of LocalAttentionFromBottomRightMask.
def test_local_masks_of_the_documentation() -> None:
    call = xformers(attn_bias="LocalAttentionFromBottomRightMask", window_left=1, window_right=2)
    assert call.arguments["mask"].draw(4, 4).split()[2::2] == ["###.", "####", ".###", "..##"]
    assert call.arguments["mask"].draw(4, 5).split()[2::2] == ["####.", ".####", "..###", "...##"]


@pytest.mark.parametrize(("queries", "keys"), BLOCKS)
@pytest.mark.parametrize(
    ("name", "more", "inside"),
    [
        ("BlockDiagonalMask", {}, lambda L, S: np.ones((L, S), bool)),
        ("BlockDiagonalCausalMask", {}, triangle),
        ("BlockDiagonalCausalFromBottomRightMask", {}, lambda L, S: triangle(L, S, lower_right=True)),
        ("BlockDiagonalCausalLocalAttentionMask", {"window_size": 2}, lambda L, S: triangle(L, S, window=2)),
        (
            "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
            {"window_size": 2},
            lambda L, S: triangle(L, S, window=2, lower_right=True),
        ),
    ],
)
def test_blocks(queries: list[int], keys: list[int], name: str, more: dict[str, Any], inside: Any) -> None:
    call = xformers(attn_bias=name, q_seqlen=queries, kv_seqlen=keys, **more)
    wanted = diagonal(queries, keys, keys, inside)
    np.testing.assert_array_equal(loops.dense(call, *wanted.shape)[0, 0], wanted)


@pytest.mark.parametrize(("queries", "keys"), [*BLOCKS, ([3, 1], [1, 0])])
@pytest.mark.parametrize(
    ("name", "more", "inside"),
    [
        ("BlockDiagonalPaddedKeysMask", {}, lambda L, S: np.ones((L, S), bool)),
        ("BlockDiagonalCausalWithOffsetPaddedKeysMask", {}, lambda L, S: triangle(L, S, lower_right=True)),
        (
            "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
            {"window_size": 2},
            lambda L, S: triangle(L, S, window=2, lower_right=True),
        ),
        (
            "BlockDiagonalLocalAttentionPaddedKeysMask",
            {"window_left": 1, "window_right": 1},
            lambda L, S: local(L, S, 1, 1),
        ),
    ],
)
def test_padded_blocks(queries: list[int], keys: list[int], name: str, more: dict[str, Any], inside: Any) -> None:
    call = xformers(attn_bias=name, q_seqlen=queries, kv_seqlen=np.array(keys), kv_padding=6, **more)
    wanted = diagonal(queries, keys, [6] * len(keys), inside)
    np.testing.assert_array_equal(loops.dense(call, *wanted.shape)[0, 0], wanted)


def test_keys_of_a_block_default_to_its_queries() -> None:
    call = xformers(attn_bias="BlockDiagonalMask", q_seqlen=[1, 2])
    wanted = diagonal([1, 2], [1, 2], [1, 2], lambda L, S: np.ones((L, S), bool))
    np.testing.assert_array_equal(loops.dense(call, 3, 3)[0, 0], wanted)


@pytest.mark.parametrize("with_class", [False, True])
def test_a_tensor_is_added(with_class: bool) -> None:
    rng = np.random.default_rng(4)
    q, k, v = loops.draw(rng, 3, 5)
    bias = rng.standard_normal((2, 4, 3, 5))
    call = (
        xformers(attn_bias="LowerTriangularMaskWithTensorBias", bias=bias, scale=0.6)
        if with_class
        else xformers(attn_bias=bias, scale=0.6)
    )
    wanted = loops.attention(
        q,
        k,
        v,
        sees=lambda b, h, i, j: j <= i or not with_class,
        adds=lambda b, h, i, j: bias[b, h, i, j],
        scale=0.6,
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


def test_plain_call_is_plain_attention() -> None:
    call = xformers()
    assert call.arguments == {}
    assert (call.layout, call.lse_base, call.empty_row, call.notes) == ("blhd", "e", "undefined", ())
