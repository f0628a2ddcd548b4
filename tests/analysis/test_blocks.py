"""Theorems about the parts of a decoder: what RMSNorm, rotary embedding, SwiGLU and perplexity promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refattn.analysis.models.blocks import halves_from_interleaved, perplexity, rms_norm, rotary, swiglu

UNIT = 2.0**-53
# NumPy's vectorised sine and cosine are within 4 ulp, so within 8 units of 1.
TRIG = 8


def pair_norms(x):
    """Length of each pair (i, i + E/2) that rotary embedding turns."""
    half = x.shape[-1] // 2
    return np.hypot(x[..., :half], x[..., half:])


@pytest.mark.parametrize("E", [2, 6, 64])
def test_rotary_is_an_isometry(E):
    x = np.random.default_rng(E).standard_normal((3, 50, E))
    y = rotary(x, np.arange(8000, 8050), base=1e4)
    before, after = np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1)
    # The sine and cosine are off by TRIG units, the two products and their sum by 2, the two norms by E each.
    assert (np.abs(after - before) <= 2 * (TRIG + 2 + E) * UNIT * before).all()
    assert np.abs(y - x).max() > 0.1


def test_rotary_leaves_position_zero_alone():
    x = np.random.default_rng(0).standard_normal((1, 1, 8))
    np.testing.assert_array_equal(rotary(x, np.array([0]), base=1e4), x)


@pytest.mark.parametrize("shift", [1, 100, 8000])
def test_rotary_logit_depends_on_the_distance_alone(shift):
    E, L = 16, 40
    query, key = np.random.default_rng(shift).standard_normal((2, L, E))
    positions = np.arange(L)

    def logits(offset):
        return rotary(query, positions + offset, base=1e4) @ rotary(key, positions + offset, base=1e4).T

    # An angle p theta_i <= p is rounded by p units; then sine, cosine, products and the sum over E.
    units = 2 * ((L + shift) + TRIG + 2 + E)
    bound = 2 * units * UNIT * (pair_norms(query) @ pair_norms(key).T)
    assert (np.abs(logits(shift) - logits(0)) <= bound).all()
    apart = rotary(query, positions + shift, base=1e4) @ rotary(key, positions, base=1e4).T
    assert np.abs(apart - logits(0)).max() > 0.1


@pytest.mark.parametrize("heads", [1, 3])
def test_reordered_projection_turns_the_pairs_of_the_interleaved_one(heads):
    E, D, L = 8, 5, 30
    rng = np.random.default_rng(heads)
    # Small integers: both projections are exact, so that only the rotation is compared.
    weight = rng.integers(-9, 9, (heads * E, D)).astype(np.float64)
    x = rng.integers(-9, 9, (L, D)).astype(np.float64)
    positions = np.arange(L)

    interleaved = (x @ weight.T).reshape(L, heads, E)
    pairs = interleaved[..., 0::2] + 1j * interleaved[..., 1::2]
    turned = pairs * np.exp(1j * positions[:, None] * 1e4 ** (-np.arange(0, E, 2) / E))[:, None, :]

    halves = (x @ halves_from_interleaved(weight, heads).T).reshape(L, heads, E).swapaxes(0, 1)
    y = rotary(halves, positions, base=1e4).swapaxes(0, 1)
    bound = 2 * (L + TRIG + 2) * UNIT * np.abs(pairs)
    assert (np.abs(y[..., : E // 2] - turned.real) <= bound).all()
    assert (np.abs(y[..., E // 2 :] - turned.imag) <= bound).all()


def test_rms_norm_gives_root_mean_square_one_times_the_weight():
    D = 48
    x = np.random.default_rng(1).standard_normal((5, D)) * np.array([1e-8, 1e-3, 1.0, 1e3, 1e8])[:, None]
    y = rms_norm(x, np.ones(D), eps=0.0)
    # Two sums of D squares, halved by their roots; four single roundings.
    assert (np.abs(np.sqrt(np.mean(y * y, axis=-1)) - 1) <= (D + 4) * UNIT).all()
    weight = 2.0 ** np.arange(D)
    np.testing.assert_array_equal(rms_norm(x, weight, eps=0.0), y * weight)


def test_rms_norm_ignores_the_scale_of_its_input():
    x = np.random.default_rng(2).standard_normal((5, 7))
    np.testing.assert_array_equal(rms_norm(64 * x, np.ones(7), eps=0.0), rms_norm(x, np.ones(7), eps=0.0))


def test_rms_norm_of_zero_is_zero_and_eps_stands_under_the_root():
    np.testing.assert_array_equal(rms_norm(np.zeros(4), np.ones(4), eps=1e-5), np.zeros(4))
    np.testing.assert_array_equal(rms_norm(np.full(4, 3.0), np.ones(4), eps=16.0), np.full(4, 0.6))


@pytest.mark.parametrize("a", [-1e4, -700.0, -30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 700.0, 1e4])
def test_swiglu_gates_by_silu_without_overflow(a):
    one = np.ones((1, 1))
    got = swiglu(np.array([1.0]), a * one, 3 * one, 5 * one)[0]
    log = np.logaddexp(0, -a)
    expected = 15 * a * (1 / (1 + math.exp(-a)) if a > -700 else math.exp(a))
    # exp(-log) turns the relative error of log (4 units) into an absolute one; the rest is single roundings.
    assert abs(got - expected) <= (4 * log + 16) * UNIT * abs(expected) + math.ulp(0.0)


def test_swiglu_gates_the_up_projection():
    x = np.array([1.0, 2.0])
    gate, up, down = np.array([[0.0, 0.0], [0.0, 40.0]]), np.array([[7.0, 7.0], [1.0, 1.0]]), np.array([[1.0, 1.0]])
    # silu(0) = 0 shuts the first unit; silu(80) = 80 to the last bit lets the second through: 80 * 3.
    np.testing.assert_array_equal(swiglu(x, gate, up, down), [240.0])


def test_perplexity_of_ignorance_is_the_vocabulary_and_of_certainty_one():
    tokens = np.array([3, 0, 2, 1, 1])
    # log(8) to its last place, summed over four tokens, then exponentiated: a dozen units of log(8).
    assert abs(perplexity(np.full((5, 8), 0.25), tokens) - 8) <= 12 * math.log(8) * UNIT * 8
    sure = np.zeros((5, 8))
    sure[np.arange(4), tokens[1:]] = 1e4
    assert perplexity(sure, tokens) == 1.0


def test_perplexity_of_a_known_coin():
    """Each next token has probability 1/4; a constant added to a row of logits changes nothing."""
    row = np.log([0.25, 0.75])
    # Adding 512 rounds the logits to a multiple of 2^-44, so by 2^-45 each.
    assert abs(perplexity(np.stack([row + 512, row - 512, row]), [1, 0, 0]) - 4) <= 2 * 2.0**-45 * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: perplexity(np.zeros((3, 5)), [1, 2]),
            "perplexity: logits must be (L, V), tokens (L,), L at least 2; got (3, 5) and (2,).",
        ),
        (
            lambda: perplexity(np.zeros((1, 5)), [1]),
            "perplexity: logits must be (L, V), tokens (L,), L at least 2; got (1, 5) and (1,).",
        ),
        (
            lambda: halves_from_interleaved(np.zeros((6, 5)), 2),
            "halves_from_interleaved: weight must have heads * E rows (axis 0), E even; got 6, 2 heads.",
        ),
    ],
)
def test_message(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        call()
    assert str(caught.value) == message
