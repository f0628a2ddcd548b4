"""Where two calls disagree, against the cells of both masks one by one and against what attention makes of both."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import conventions, masks
from refattn.conventions import Convention, disagree
from tests.conventions import loops

B, H, E = 2, 4, 5
RNG = np.random.default_rng(11)
SLOPES, SINKS = ra.biases.alibi_slopes(H), RNG.standard_normal(H)
MASK = RNG.random((B, 1, 3, 5)) < 0.6
HIDES = np.where(MASK, 0.0, -np.inf)
CALLS = {
    "flash_attn": conventions.flash_attn(),
    "flash_attn causal": conventions.flash_attn(causal=True),
    "flash_attn window": conventions.flash_attn(causal=True, window_size=(1, 0), softcap=2.0),
    "flash_attn chunk": conventions.flash_attn(attention_chunk=2),
    "flash_attn alibi": conventions.flash_attn(causal=True, alibi_slopes=SLOPES),
    "flash_attn sinks": conventions.flash_attn(causal=True, learnable_sink=SINKS),
    "torch causal": conventions.torch_sdpa(is_causal=True),
    "torch mask": conventions.torch_sdpa(attn_mask=MASK),
    "torch -inf": conventions.torch_sdpa(attn_mask=HIDES),
    "jax mask": conventions.jax_nn(mask=MASK),
    "jax lengths": conventions.jax_nn(key_value_seq_lengths=np.array([2, 0])),
    "flashinfer alibi": conventions.flashinfer(causal=True, pos_encoding_mode="ALIBI", num_qo_heads=H),
    "flashinfer window": conventions.flashinfer(causal=True, window_left=1, logits_soft_cap=2.0, kv_layout="HND"),
    "xformers": conventions.xformers(attn_bias="LowerTriangularFromBottomRightLocalAttentionMask", window_size=2),
    "cudnn": conventions.cudnn(diagonal_band_left_bound=2, diagonal_band_right_bound=0, attn_scale=0.3),
    "mlx sinks": conventions.mlx(scale=0.3, mask="causal", sinks=SINKS + 0),
    "transformer engine": conventions.transformer_engine(attn_mask_type="causal_bottom_right"),
    "hf": conventions.transformers(sliding_window=2, q_offset=2),
}
PAIRS = list(combinations_with_replacement(CALLS, 2))
OF_ATTENTION = {"scale", "softcap", "sinks"}


def cell_by_cell(call: Convention, L: int, S: int) -> np.ndarray:
    """The visible cells (B, H, L, S), each asked for alone."""
    mask, bias = call.arguments.get("mask"), call.arguments.get("bias")
    cells = np.zeros((B, H, L, S), bool)
    for b, h, i in np.ndindex(B, H, L):
        cells[b, h, i, range(S) if mask is None else mask.row(i, L, S, index=(b, h))] = True
    if isinstance(bias, np.ndarray):
        cells &= ~np.isneginf(bias)
    return cells


@cache
def attended(name: str, L: int, S: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The visible cells of a call, and the weights and the log-sum-exp that attention makes of it."""
    rng = np.random.default_rng(12)
    q, k = rng.standard_normal((B, H, L, E)), rng.standard_normal((B, H, S, E))
    made = ra.attention(q, k, k, **CALLS[name].arguments, return_lse=True, return_weights=True)
    return cell_by_cell(CALLS[name], L, S), made.weights, made.lse


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_cells_are_those_that_differ_and_calls_without_difference_give_the_same(first: str, second: str) -> None:
    L, S = 3, 5
    a, b = CALLS[first], CALLS[second]
    found = disagree(a, b, L=L, S=S, batch=B, heads=H)
    (sees_a, weights_a, lse_a), (sees_b, weights_b, lse_b) = attended(first, L, S), attended(second, L, S)
    np.testing.assert_array_equal(found.cells, sees_a != sees_b)
    same = np.array_equal(weights_a, weights_b) and np.array_equal(lse_a, lse_b)
    assert same == (not (found.cells.any() or found.bias.any() or OF_ATTENTION & set(found.terms)))
    assert not (found.bias & found.cells).any()
    assert bool(found) == (not same or bool(found.terms))
    assert ("layout" in found.terms) == (a.layout != b.layout)
    assert ("lse_base" in found.terms) == (a.lse_base != b.lse_base)
    empty = np.any(~sees_a.any(axis=-1) & ~sees_b.any(axis=-1))
    assert ("empty_row" in found.terms) == bool(empty and a.empty_row != b.empty_row)
    assert bool(disagree(b, a, L=L, S=S)) == bool(found)
    assert bool(found) == (first != second and not {first, second} <= {"torch mask", "torch -inf"})


def test_a_corner_of_torch_is_found_by_its_name() -> None:
    bias = pytest.importorskip("torch.nn.attention.bias", reason="torch is not installed")
    lower = conventions.torch_sdpa(attn_mask=bias.causal_lower_right(3, 5))
    upper = conventions.torch_sdpa(attn_mask=bias.causal_upper_left(3, 5))
    cells = bias.causal_lower_right(3, 5)._materialize() ^ bias.causal_upper_left(3, 5)._materialize()
    np.testing.assert_array_equal(disagree(lower, upper, L=3, S=5).cells, cells.numpy())
    assert not disagree(lower, upper, L=4, S=4)
    assert not disagree(upper, conventions.torch_sdpa(is_causal=True), L=3, S=5)


def test_biases_differ_where_both_see_the_key() -> None:
    lower, upper = (
        Convention({"bias": ra.biases.alibi(SLOPES, anchor=anchor), "mask": masks.causal("lower_right")}, "bhld")
        for anchor in ("lower_right", "upper_left")
    )
    found = disagree(lower, upper, L=2, S=4)
    wanted = loops.seen(lambda b, h, i, j: j <= i + 2 and abs(i + 2 - j) != abs(i - j), 2, 4, H=H)[0]
    np.testing.assert_array_equal(found.bias, wanted)
    assert not found.cells.any()
    assert found.text == f"The two calls differ in the bias of {wanted.sum()} cells."


def test_terms_name_what_both_say() -> None:
    a = conventions.flashinfer(logits_soft_cap=2.0, kv_layout="HND")
    b = conventions.mlx(scale=0.5, sinks=np.array([1.0, 2.0]))
    found = disagree(a, b, L=2, S=2)
    assert found.terms | {"sinks": None} == {
        "scale": (None, 0.5),
        "softcap": (2.0, None),
        "sinks": None,
        "layout": ("blhd", "bhld"),
        "lse_base": ("2", "e"),
    }
    assert str(found).splitlines() == [
        "The two calls differ in scale, softcap, sinks, layout, lse_base.",
        "scale: None and 0.5",
        "softcap: 2.0 and None",
        "sinks: None and [1.0, 2.0]",
        "layout: 'blhd' and 'bhld'",
        "lse_base: '2' and 'e'",
    ]


@pytest.mark.parametrize(
    ("one", "other", "terms"),
    [
        ({"key_layout": "bhld"}, {}, {"key_layout": ("bhld", "blhd")}),
        ({"head_map": "h % Hk"}, {}, {"head_map": ("h % Hk", "h // G")}),
        ({"empty_row": "mean"}, {}, {"empty_row": ("mean", "zeros")}),
        ({"softcap_order": "after bias"}, {}, {"softcap_order": ("after bias", "before bias")}),
        ({"notes": ("Some note.",), "scores_stage": "raw"}, {}, {}),
    ],
)
def test_fields_that_matter(one: dict[str, Any], other: dict[str, Any], terms: dict[str, Any]) -> None:
    arguments = {"mask": masks.causal("lower_right"), "softcap": 2.0, "bias": np.ones((4, 2))}
    a, b = (Convention(arguments, "blhd", **more) for more in (one, other))
    assert disagree(a, b, L=4, S=2).terms == terms
    # No row is empty here, and nothing is capped beside a bias.
    plain = {"mask": masks.causal("lower_right"), "softcap": 2.0}
    a, b = (Convention(plain, "blhd", **more) for more in (one, other))
    assert set(disagree(a, b, L=2, S=2).terms) == set(terms) - {"empty_row", "softcap_order"}


def test_is_causal_and_arrays_are_read_too() -> None:
    both = Convention({"is_causal": True, "mask": ~np.eye(3, dtype=bool)}, "bhld")
    assert not disagree(both, Convention({"mask": np.tri(3, k=-1, dtype=bool)}, "bhld"), L=3, S=3)
    alone = Convention({"is_causal": True}, "bhld")
    assert disagree(alone, Convention({}, "bhld"), L=3, S=3).cells.sum() == 3


def test_picture_marks_both_sides_and_names_the_entry() -> None:
    a = conventions.jax_nn(key_value_seq_lengths=np.array([3, 2]))
    b = conventions.jax_nn(key_value_seq_lengths=np.array([3, 1]))
    assert str(disagree(a, b, L=2, S=3)).splitlines() == [
        "The two calls differ in 2 of 12 cells.",
        "",
        "(1, 0)",
        "  first  second",
        "  012    012",
        "0 #+.    #-.",
        "1 #+.    #-.",
        "",
        "# both see the key, + this one alone, - the other alone",
    ]


@pytest.mark.parametrize(("L", "S", "drawn"), [(32, 32, True), (33, 4, False), (4, 33, False)])
def test_only_small_masks_are_drawn(L: int, S: int, drawn: bool) -> None:
    found = disagree(conventions.flash_attn(), conventions.flash_attn(window_size=(0, 0)), L=L, S=S)
    assert ("this one alone" in found.text) == drawn


def test_agreement_is_said() -> None:
    call = conventions.flash_attn(causal=True)
    found = disagree(call, call, L=2, S=3, batch=2)
    assert not found
    assert found.cells.shape == (2, 1, 2, 3)
    assert str(found) == "The two calls agree in all 12 cells and in every term."
