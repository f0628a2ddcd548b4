"""certified as it is called: shapes, rows, libraries and dtypes, tiers against each other, poisoned memory, memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn import biases, masks, oracle
from tests.namespaces import Library

TIERS = ("float64", "double-double")
LOWER = masks.causal("lower_right")


def drawn(*shapes: tuple[int, ...], seed: int = 0, dtype: str = "float64") -> list[np.ndarray]:
    """Normal numbers."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype)) for shape in shapes]


def assert_agree(one: oracle.Certified, other: oracle.Certified) -> None:
    """Two answers to one question are no farther apart than both radii say."""
    for high, low, radius in (("output", "output_low", "radius"), ("lse", "lse_low", "lse_radius")):
        a, b = (getattr(x, high) for x in (one, other))
        same = (a == b) & np.isinf(a)
        with np.errstate(invalid="ignore"):
            apart = np.abs((a - b) + (getattr(one, low) - getattr(other, low)))
        room = getattr(one, radius) + getattr(other, radius)
        assert (same | (apart <= room * (1 + 2**-40))).all()


def assert_same(one: oracle.Certified, other: oracle.Certified) -> None:
    """Bit for bit."""
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


EVERYTHING: dict[str, Any] = {
    "mask": LOWER | masks.bernoulli(0.3, 5),
    "bias": biases.alibi(np.array([0.5, 0.3, 0.2, 0.1]), anchor="lower_right"),
    "softcap": 3.0,
    "scale": 0.7,
    "sinks": np.array([0.5, -np.inf, 2.0, -3.0]),
    "dropout_mask": masks.bernoulli(0.8, 9),
    "dropout_p": 0.2,
}


@pytest.mark.parametrize("tier", TIERS)
def test_every_argument_means_what_it_means_to_attention(tier: str) -> None:
    q, k, v = drawn((2, 4, 9, 6), (2, 2, 13, 6), (2, 2, 13, 3))
    for name in [None, *EVERYTHING]:
        left_out = {name, "dropout_mask", "dropout_p"} if name == "dropout_mask" else {name}
        given = {key: x for key, x in EVERYTHING.items() if key not in left_out}
        exact = oracle.certified(q, k, v, tier=tier, **given)
        reference = ra.attention(q, k, v, return_lse=True, **given)
        assert exact.radius.max() < 1e-13
        assert np.abs(exact.output - reference.output).max() < 1e-13
        finite = np.isfinite(reference.lse)
        assert np.abs(exact.lse - reference.lse)[finite].max() < 1e-13
        assert (exact.lse == reference.lse)[~finite].all()


def test_the_tiers_agree_within_their_radii() -> None:
    for seed, dtype in enumerate(("float64", "float32", "bfloat16", "float8_e4m3fn")):
        q, k, v = drawn((2, 4, 9, 6), (2, 2, 300, 6), (2, 2, 300, 3), seed=seed, dtype=dtype)
        assert_agree(*(oracle.certified(q, k, v, tier=tier, **EVERYTHING) for tier in TIERS))


@pytest.mark.parametrize("tier", TIERS)
def test_chosen_rows_are_those_of_the_whole(tier: str) -> None:
    q, k, v = drawn((2, 4, 9, 6), (2, 2, 13, 6), (2, 2, 13, 3))
    whole = oracle.certified(q, k, v, tier=tier, **EVERYTHING)
    rows = np.array([(1, 3, 8), (0, 0, 0), (1, 3, 2), (0, 0, 0), (1, 2, 8)])
    chosen = oracle.certified(q, k, v, tier=tier, rows=rows, **EVERYTHING)
    assert chosen.output.shape == (5, 3)
    assert chosen.lse.shape == (5,)
    assert_agree(chosen, oracle.Certified(*(x[tuple(rows.T)] for x in whole)))
    none = oracle.certified(q, k, v, tier=tier, rows=[], **EVERYTHING)
    assert none.output.shape == (0, 3)
    assert none.lse_radius.shape == (0,)


def test_arrays_of_any_library_and_dtype_are_the_same_numbers(every: Library) -> None:
    for dtype in every.dtypes:
        if np.dtype(getattr(ml_dtypes, dtype, dtype)).kind in "iu" or dtype == "float8_e8m0fnu":
            continue
        q, k, v = drawn((2, 5, 4), (1, 7, 4), (1, 7, 3), dtype=dtype)
        host = oracle.certified(*(x.astype(np.float64) for x in (q, k, v)), is_causal=False, scale=0.5)
        assert_same(oracle.certified(*map(every.array, (q, k, v)), scale=0.5), host)
        assert_same(oracle.certified(every.array(q), k, every.array(v), scale=0.5), host)


@pytest.mark.parametrize("tier", TIERS)
def test_the_default_scale_is_not_rounded(tier: str) -> None:
    """For E = 3 the logit 3 * 2^30 / sqrt(3) tells the real factor from the float64 one by 2^-23."""
    q, k = np.full((1, 1, 3), 2.0**15), np.full((1, 1, 3), 2.0**15)
    real = oracle.certified(q, k, np.ones((1, 1, 1)), tier=tier)
    rounded = oracle.certified(q, k, np.ones((1, 1, 1)), tier=tier, scale=1 / 3**0.5)
    if tier == "double-double":
        apart = (real.lse - rounded.lse) + (real.lse_low - rounded.lse_low)
        assert abs(apart) > 1e3 * (real.lse_radius + rounded.lse_radius)
    else:
        # The radius knows of the factor's rounding.
        assert real.lse_radius > 1.2 * rounded.lse_radius


@pytest.mark.parametrize("tier", TIERS)
def test_rows_that_see_nothing_are_exact(tier: str) -> None:
    q, k, v = drawn((2, 6, 4), (2, 4, 4), (2, 4, 3))
    exact = oracle.certified(q, k, v, tier=tier, mask=LOWER, sinks=np.array([-np.inf, 1.25]))
    assert (exact.output[:, :2] == 0).all()
    assert (exact.radius[:, :2] == 0).all()
    assert exact.lse[:, :2].tolist() == [[-np.inf] * 2, [1.25] * 2]
    assert (exact.lse_radius[:, :2] == 0).all()
    assert (exact.radius[:, 2:] > 0).all()
    for shape in ((0, 4), (5, 4)):
        exact = oracle.certified(np.ones((1, *shape)), np.ones((1, 0, 4)), np.ones((1, 0, 3)), tier=tier)
        assert exact.output.shape == (1, shape[0], 3)
        assert not exact.radius.any()
        assert (exact.lse == -np.inf).all()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -1e300])
def test_what_is_masked_is_not_looked_at(tier: str, poison: float) -> None:
    """Keys behind every row's mask change no bit, whatever lies there."""
    q, k, v = drawn((1, 2, 6, 4), (1, 2, 40, 4), (1, 2, 40, 3))
    seen = masks.lengths(np.array([33]))
    clean = oracle.certified(q, k, v, tier=tier, mask=seen)
    k[:, :, 33:], v[:, :, 33:] = poison, poison
    assert_same(oracle.certified(q, k, v, tier=tier, mask=seen), clean)


@pytest.mark.parametrize("tier", TIERS)
def test_what_hangs_on_a_nan_is_nan_and_certified_nowhere(tier: str) -> None:
    q, k, v = drawn((1, 6, 4), (1, 6, 4), (1, 6, 3))
    clean = oracle.certified(q, k, v, tier=tier, is_causal=True)
    v[0, 4, 1] = np.nan
    exact = oracle.certified(q, k, v, tier=tier, is_causal=True)
    hangs = np.zeros((1, 6, 3), bool)
    hangs[0, 4:, 1] = True
    assert (np.isinf(exact.radius) == hangs).all()
    assert (np.isnan(exact.output) == hangs).all()
    np.testing.assert_array_equal(exact.lse, clean.lse)
    k[0, 2] = np.inf
    q[0, 5] = np.nan
    exact = oracle.certified(q, k, v, tier=tier, is_causal=True)
    assert np.isinf(exact.radius).all(axis=-1).tolist() == [[False, False, True, True, True, True]]
    assert np.isnan(exact.lse).tolist() == [[False, False, True, True, True, True]]
    assert np.isinf(exact.lse_radius).tolist() == [[False, False, True, True, True, True]]


@pytest.mark.parametrize("tier", TIERS)
def test_a_dropped_value_is_not_looked_at(tier: str) -> None:
    q, k, v = drawn((1, 4, 4), (1, 4, 4), (1, 4, 2))
    kept = np.ones((4, 4), bool)
    kept[1, 2] = False
    v[0, 2] = np.inf
    exact = oracle.certified(q, k, v, tier=tier, dropout_mask=kept, dropout_p=0.25)
    assert np.isinf(exact.radius).all(axis=-1).tolist() == [[True, False, True, True]]
    assert np.isfinite(exact.lse_radius).all()


def test_memory_grows_with_keys_and_not_with_scores() -> None:
    """Two rows of many keys, and many rows of few, each stay within a few tiles and one head's keys and values."""
    for L, S in ((2, 2**18), (2**11, 2**10)):
        q, k, v = drawn((1, L, 8), (1, S, 8), (1, S, 8), dtype="float32")
        oracle.certified(q[:, :1], k[:, :9], v[:, :9])
        tracemalloc.start()
        try:
            oracle.certified(q, k, v, mask=LOWER)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        answers = 8 * L * (3 * 8 + 3) * 2
        held = 8 * S * (8 + 2 * 9)
        assert peak < answers + 2 * held + 16 * 8 * max(2**17, S)


def test_integers_that_float64_does_not_hold_are_refused() -> None:
    x = np.array([[[2**53]]])
    assert oracle.certified(x, x * 0, x).output.item() == 2.0**53
    with pytest.raises(ValueError, match="certified: value must hold integers up to 2"):
        oracle.certified(x * 0, x, x + 1)
