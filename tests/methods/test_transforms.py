"""Rotary embedding and multi-head latent attention: their definitions written out, and what their papers promise."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from tests.namespaces import Library

U = 2.0**-53
# Four angles whose cosines and sines are exact: quarter turns, one for each position modulo 4.
COS, SIN = np.array([[1.0], [0.0], [-1.0], [0.0]]), np.array([[0.0], [1.0], [0.0], [-1.0]])


def whole(seed: int, *shape: int) -> np.ndarray:
    """Small whole numbers, of which sums and products are exact."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float64)


def quarters(x: np.ndarray, turns: Any, **more: Any) -> np.ndarray:
    """Every pair of features of x turned by a quarter, so many times."""
    half = x.shape[-1] // 2
    at = np.broadcast_to(turns, x.shape[-2:-1]) % 4
    return ra.rotary_embedding(x, np.tile(COS, half), np.tile(SIN, half), positions=at, **more)


@st.composite
def turns(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Arguments of rotary_embedding, x, cos, sin and the others."""
    batch = tuple(draw(st.lists(st.integers(1, 2), max_size=2)))
    H, L, E = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.integers(1, 7))
    R = 2 * draw(st.integers(0, E // 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    lead = tuple(n if draw(st.booleans()) else 1 for n in batch)[draw(st.integers(0, len(batch))) :]
    arguments: dict[str, Any] = {"interleaved": draw(st.booleans())}
    if R != E or draw(st.booleans()):
        arguments["rotary_dim"] = R
    shape: tuple[int, ...] = (*lead, L, R // 2)
    if draw(st.booleans()):
        arguments["positions"], shape = rng.integers(0, 5, (*lead, L)), (5, R // 2)
    cos, sin = rng.standard_normal((2, *shape))
    return rng.standard_normal((*batch, H, L, E)), cos, sin, arguments


@given(turn=turns())
@settings(max_examples=40)
def test_rotary_embedding_is_its_definition(namespace: Library, turn: Any) -> None:
    x, cos, sin, arguments = turn
    got = namespace.values(ra.rotary_embedding(*map(namespace.array, (x, cos, sin)), **arguments))
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    R = arguments.get("rotary_dim", x.shape[-1])
    np.testing.assert_array_equal(got[..., R:], x[..., R:])
    if "positions" in arguments:
        cos, sin = cos[arguments["positions"]], sin[arguments["positions"]]
    cos, sin = (np.broadcast_to(t[..., None, :, :], (*x.shape[:-1], R // 2)) for t in (cos, sin))
    for *at, k in np.ndindex(cos.shape):
        first, second = (2 * k, 2 * k + 1) if arguments["interleaved"] else (k, k + R // 2)
        c, s = Fraction(cos[(*at, k)]), Fraction(sin[(*at, k)])
        u, v = Fraction(x[(*at, first)]), Fraction(x[(*at, second)])
        for n, a, b in ((first, c * u, -s * v), (second, s * u, c * v)):
            # The bound that the docstring states, of two products and their sum.
            assert abs(Fraction(got[(*at, n)]) - (a + b)) <= 3 * Fraction(U) * (abs(a) + abs(b))


@given(turn=turns())
@settings(max_examples=40)
def test_a_turn_keeps_the_norm_of_each_pair(turn: Any) -> None:
    x, cos, sin, arguments = turn
    arguments = arguments | {"interleaved": True}
    R = arguments.get("rotary_dim", x.shape[-1])
    angle = np.hypot(cos, sin)
    y = ra.rotary_embedding(x, cos / angle, sin / angle, **arguments)

    def norms(z: np.ndarray) -> np.ndarray:
        return np.hypot(z[..., 0:R:2], z[..., 1:R:2])

    # cos^2 + sin^2 is 1 within 2 roundings of hypot and 1 of each quotient, so the norm within half of twice 3; each
    # number then errs by 3 u (|c a| + |s b|) <= 3 u norm, the pair by sqrt(2) times that; hypot errs by an ulp.
    np.testing.assert_array_less(np.abs(norms(y) - norms(x)), (3 + 3 * math.sqrt(2) + 5) * U * norms(x) + 1e-300)


@given(seed=st.integers(0, 2**20), m=st.integers(-9, 9), n=st.integers(-9, 9), by=st.integers(-9, 9))
@settings(max_examples=40)
@pytest.mark.parametrize("interleaved", [True, False])
def test_scores_depend_on_the_difference_of_positions_alone(
    interleaved: bool, seed: int, m: int, n: int, by: int
) -> None:
    q, k = whole(seed, 2, 1, 1, 6)
    here = (quarters(q, m, interleaved=interleaved) * quarters(k, n, interleaved=interleaved)).sum()
    there = (quarters(q, m + by, interleaved=interleaved) * quarters(k, n + by, interleaved=interleaved)).sum()
    assert here == there
    assert here == (quarters(q, m - n, interleaved=interleaved) * k).sum()


@given(seed=st.integers(0, 2**20), m=st.integers(0, 9), n=st.integers(0, 9))
@settings(max_examples=20)
def test_turns_add_up_and_back(seed: int, m: int, n: int) -> None:
    x = whole(seed, 2, 1, 5, 4)
    np.testing.assert_array_equal(quarters(quarters(x, m), n), quarters(x, m + n))
    cos, sin = np.tile(COS[[m % 4] * 5], 2), np.tile(SIN[[m % 4] * 5], 2)
    np.testing.assert_array_equal(ra.rotary_embedding(ra.rotary_embedding(x, cos, sin), cos, -sin), x)


def test_the_two_pairings_are_one_up_to_the_order_of_features(every: Library) -> None:
    rng = np.random.default_rng(0)
    x, (cos, sin) = rng.standard_normal((2, 3, 5, 8)), rng.standard_normal((2, 5, 4))
    order = np.arange(8).reshape(2, 4).T.ravel()  # 0, 4, 1, 5, ...
    halves = every.values(ra.rotary_embedding(*map(every.array, (x, cos, sin))))
    paired = ra.rotary_embedding(*map(every.array, (x[..., order], cos, sin)), interleaved=True)
    np.testing.assert_array_equal(every.values(paired), halves[..., order])


@pytest.mark.parametrize("make", [list, np.uint8, np.int64, "library"], ids=str)
def test_positions_pick_rows(every: Library, make: Any) -> None:
    rng = np.random.default_rng(1)
    x, (cos, sin) = rng.standard_normal((2, 3, 4, 6)), rng.standard_normal((2, 9, 3))
    at = np.array([7, 0, 8, 7])
    positions = every.array(at) if make == "library" else at.tolist() if make is list else at.astype(make)
    x, *tables = map(every.array, (x, cos, sin))
    picked = ra.rotary_embedding(x, *tables, positions=positions)
    rows = ra.rotary_embedding(x, *(every.array(t[at]) for t in (cos, sin)))
    np.testing.assert_array_equal(every.values(picked), every.values(rows))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_there_is_one_rounding_at_the_end(namespace: Library, dtype: str) -> None:
    if dtype not in namespace.dtypes:
        pytest.skip(f"{namespace.name} has no {dtype}")
    # The sum lies just above the middle of two numbers of the format: by way of another it would become the lower one.
    ulp = 2.0**-7 if dtype == "bfloat16" else 2.0**-23
    x = np.array([[[1.0, ulp / 2 + 2.0**-52]]])
    one = np.array([[1.0]])
    got = ra.rotary_embedding(*map(namespace.array, (x, one, -one)), dtype=dtype)
    assert namespace.values(got)[0, 0, 0] == 1 + ulp


def test_the_dtype_is_kept_and_the_input_untouched(namespace: Library) -> None:
    x = np.ones((1, 2, 4), np.float32)
    x.setflags(write=False)
    y = ra.rotary_embedding(namespace.array(x), *map(namespace.array, np.ones((2, 2, 2), np.float64)))
    assert namespace.values(y).dtype == np.float32
    np.testing.assert_array_equal(x, 1)


@given(R=st.integers(1, 5).map(lambda n: 2 * n), base=st.sampled_from([10000.0, 5e5, 2.0]), data=st.data())
@settings(max_examples=20)
def test_angles_are_positions_times_powers_of_the_base(
    namespace: Library, R: int, base: float, data: st.DataObject
) -> None:
    positions = np.array(data.draw(st.lists(st.integers(-(10**6), 10**6), max_size=4)), dtype=np.int64)
    cos, sin = map(namespace.values, ra.rotary_cos_sin(namespace.array(positions), R, base=base))
    assert cos.shape == sin.shape == (len(positions), R // 2)
    assert cos.dtype == np.float64
    for n, k in np.ndindex(cos.shape):
        angle = int(positions[n]) * base ** (-2 * k / R)
        # The angle's own error on either side, and an ulp of each library's function, which is at most 2 u.
        allowed = 2 * (2 * U * abs(angle) + 2 * U)
        assert abs(cos[n, k] - math.cos(angle)) <= allowed
        assert abs(sin[n, k] - math.sin(angle)) <= allowed


def test_frequencies_replace_the_powers_of_the_base(every: Library) -> None:
    positions = every.array(np.array([[0, 3], [100, 7]]))
    powers = ra.rotary_cos_sin(positions, 4, base=16.0)
    given_ = ra.rotary_cos_sin(positions, 4, frequencies=every.array(np.array([1.0, 0.25])))
    for a, b in zip(powers, given_, strict=True):
        assert tuple(a.shape) == (2, 2, 2)
        np.testing.assert_array_equal(every.values(a), every.values(b))


@st.composite
def latents(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """q_nope, q_rope, c_kv, k_rope, W_UK and W_UV of small whole numbers."""
    batch = tuple(draw(st.lists(st.integers(1, 2), max_size=2)))
    H, L, S, D, Dr, Dv, C = (draw(st.integers(n, 4)) for n in (1, 0, 0, 1, 0, 1, 1))
    seed = draw(st.integers(0, 2**20))
    shapes = (*batch, H, L, D), (*batch, H, L, Dr), (*batch, S, C), (*batch, S, Dr), (H, D, C), (H, Dv, C)
    return tuple(whole(seed + n, *shape) for n, shape in enumerate(shapes))


@given(arrays=latents())
@settings(max_examples=30)
def test_expanded_latents_are_the_paper_s_keys_and_values(namespace: Library, arrays: Any) -> None:
    q_nope, q_rope, c_kv, k_rope, W_UK, W_UV = arrays
    made = ra.expand_mla(*map(namespace.array, arrays))
    query, key, value = map(namespace.values, made[:3])
    batch, H = q_nope.shape[:-3], q_nope.shape[-3]
    np.testing.assert_array_equal(query, np.concatenate([q_nope, q_rope], axis=-1))
    for *b, h, j in np.ndindex(*batch, H, c_kv.shape[-2]):
        latent, turned = c_kv[(*b, j)], k_rope[(*b, j)]
        keys = [sum(a * c for a, c in zip(row, latent, strict=True)) for row in W_UK[h]]
        values = [sum(a * c for a, c in zip(row, latent, strict=True)) for row in W_UV[h]]
        assert key[(*b, h, j)].tolist() == [*keys, *turned]
        assert value[(*b, h, j)].tolist() == values
    assert made.scale == 1 / math.sqrt(q_nope.shape[-1] + q_rope.shape[-1])
    assert made.up is None


@given(arrays=latents())
@settings(max_examples=30)
def test_the_absorbed_form_has_the_same_scores_and_one_key_head(namespace: Library, arrays: Any) -> None:
    # Whole numbers: both forms are exact, so the scores are the same bit for bit.
    given_ = tuple(map(namespace.array, arrays))
    absorbed, expanded = ra.absorb_mla(*given_), ra.expand_mla(*given_)
    assert absorbed.scale == expanded.scale
    C, S = arrays[2].shape[-1], arrays[2].shape[-2]
    assert tuple(absorbed.key.shape) == (*arrays[0].shape[:-3], 1, S, C + arrays[1].shape[-1])
    np.testing.assert_array_equal(namespace.values(absorbed.value)[..., 0, :, :], arrays[2])
    scores = (
        namespace.values(ra.attention_scores(form.query, form.key, scale=form.scale, stage="raw"))
        for form in (absorbed, expanded)
    )
    np.testing.assert_array_equal(*scores)


def test_both_forms_give_one_output(namespace: Library) -> None:
    rng = np.random.default_rng(5)
    H, L, S, D, Dr, Dv, C = 3, 4, 6, 5, 2, 3, 7
    shapes = (2, H, L, D), (2, H, L, Dr), (2, S, C), (2, S, Dr), (H, D, C), (H, Dv, C)
    arrays = tuple(rng.standard_normal(shape) for shape in shapes)
    absorbed, expanded = (f(*map(namespace.array, arrays)) for f in (ra.absorb_mla, ra.expand_mla))
    mask = ra.masks.causal("lower_right")
    outputs = [
        namespace.values(ra.attention(form.query, form.key, form.value, scale=form.scale, mask=mask))
        for form in (absorbed, expanded)
    ]
    q_n, q_r, c, k_r, K, V = map(np.abs, arrays)
    # In either form a score is scale times a sum of D C + Dr products of three numbers, summed in some order.
    n = D * C + Dr + 3
    size = np.einsum("bhld,hdc,bsc->bhls", q_n, K, c) + np.einsum("bhld,bsd->bhls", q_r, k_r)
    apart = 2 * n * U / (1 - n * U) * absorbed.scale * size.max(axis=-1, keepdims=True)
    # Scores that far apart change each weight by a factor of at most e^(2 apart); weights, products with the latents
    # and with W_UV are C + S + 5 more roundings on either side, exponentials err by an ulp, 2 u.
    weights = namespace.values(
        ra.attention_scores(absorbed.query, absorbed.key, scale=absorbed.scale, mask=mask, stage="weights")
    )
    value = np.einsum("bsc,hdc->bhsd", c, V)
    more = (C + 2 * S + 9) * U
    allowed = (np.expm1(2 * apart) + 2 * more) * (1 + 2 * more) * (weights @ value)
    assert (np.abs(outputs[0] @ namespace.values(absorbed.up) - outputs[1]) <= allowed).all()


def test_every_library_makes_the_same_latents(every: Library) -> None:
    arrays = [whole(n, *s) for n, s in enumerate([(2, 3, 2), (2, 3, 1), (4, 3), (4, 1), (2, 2, 3), (2, 5, 3)])]
    for form in (ra.absorb_mla, ra.expand_mla):
        here, there = form(*arrays), form(*map(every.array, arrays))
        assert (here.scale, here.up is None) == (there.scale, there.up is None)
        for name in ("query", "key", "value") + ("up",) * (here.up is not None):
            np.testing.assert_array_equal(every.values(getattr(there, name)), getattr(here, name))


def test_latent_attention_is_float64_whatever_comes_in(namespace: Library) -> None:
    arrays = [np.ones(shape, np.float32) for shape in ((2, 1, 3), (2, 1, 1), (4, 5), (4, 1), (2, 3, 5), (2, 2, 5))]
    for form in (ra.absorb_mla, ra.expand_mla):
        made = form(*map(namespace.array, arrays))
        assert [namespace.values(x).dtype.name for x in (*made[:3], made.up) if x is not None] == ["float64"] * (
            3 + (made.up is not None)
        )


def test_the_gradient_of_a_turn_is_the_turn_back() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, weights = whole(3, 2, 4, 6), whole(4, 2, 4, 6)
    cos, sin = (torch.tensor(np.tile(t, 3)) for t in (COS, SIN))
    leaf = torch.tensor(x, requires_grad=True)
    (ra.rotary_embedding(leaf, cos, sin) * torch.tensor(weights)).sum().backward()
    np.testing.assert_array_equal(leaf.grad.numpy(), ra.rotary_embedding(weights, cos.numpy(), -sin.numpy()))


def test_latent_attention_differentiates_in_both_forms_alike() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    shapes = (2, 3, 2), (2, 3, 1), (4, 3), (4, 1), (2, 2, 3), (2, 2, 3)
    grads = []
    for form in (ra.absorb_mla, ra.expand_mla):
        leaves = [torch.tensor(whole(n, *shape), requires_grad=True) for n, shape in enumerate(shapes)]
        made = form(*leaves)
        # Whole numbers again: scores, and the gradients of any weighted sum of them, are exact.
        raw = made.query @ made.key.mT
        (raw * torch.tensor(whole(9, 2, 3, 4))).sum().backward()
        grads.append([leaf.grad.numpy() for leaf in leaves[:5]])
    for a, b in zip(*grads, strict=True):
        np.testing.assert_array_equal(a, b)
