"""The statistical bound against emulated kernels: its sigma is neither exceeded nor far from what errors really are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from refattn import contract
from refattn._core.score import Dropout, Score
from refattn.contract import variances
from refattn.contract.statistics import applies, sigmas, softmax_noise, statistical_bound
from tests.bounds.cases import Case, Whole, gaussian, inputs
from tests.bounds.emulator import Eager, Kernel, cut, rounded

HALF = ("bfloat16", "float16")


def flash(dtype, **fields):
    """A tiled kernel whose output keeps all bits of float32: its rounding is no part of sigma."""
    return Kernel(operand=dtype, weights=dtype, tile=64, exponential="exp2_fma", **fields)


def claim_of(dtype):
    """Its contract."""
    return replace(contract.flash(dtype), output="float32")


def problem_of(case):
    """The case as the bounds take it, with the float64 answer."""
    whole = {name: None if x is None else Whole(x) for name, x in (("bias", case.bias), ("mask", case.keep))}
    sink = None if case.sink is None else np.float64(case.sink)
    score = Score((len(case.q), len(case.k)), case.scale, case.softcap, sink=sink, **whole)
    o, lse = case.exact(np.float64)
    return contract.Problem(case.q, case.k, case.v, score, np.arange(len(case.q)), o, lse)


def ratios(case, kernel, claim):
    """Error beyond bias and half an ulp, and plain error, both in sigmas, in the rows that the model claims."""
    problem = problem_of(case)
    noise = softmax_noise(claim, problem)
    error = np.abs(case.run(kernel)[0] - problem.output)[noise.claim]
    sigma, bias = noise.output[noise.claim], noise.output_bias[noise.claim]
    half = contract.formats.half_ulp(np.abs(problem.output[noise.claim]) + bias, claim.output)
    return (error - bias - half) / sigma, error / sigma


# Calibration


@pytest.mark.parametrize("dtype", HALF)
def test_errors_of_right_kernels_are_what_sigma_says(dtype):
    rng = np.random.default_rng(1)
    rows = []
    for S in (128, 500, 1024):
        for _ in range(5):
            q, k, v = gaussian(rng, 256, S, 64, 64, dtype)
            rows.append(ratios(Case(q, k, v, 1 / 8), flash(dtype), claim_of(dtype)))
    beyond, plain = (np.concatenate(x) for x in zip(*rows, strict=True))
    assert beyond.size > 225_000
    assert 0.3 <= math.sqrt(np.mean(plain**2)) <= 1.0
    for z in (2.0, 3.0, 4.0):
        # The columns of a row have their weights' rounding errors in common: a row is one draw.
        share = (beyond > z).mean(axis=1)
        deviation = share.std() / math.sqrt(len(share))
        assert share.mean() - 5 * deviation <= 2 * math.exp(-z * z / 2)


@pytest.mark.parametrize("law", ["peaked", "offset", "cold"])
@pytest.mark.parametrize("dtype", HALF)
def test_sigma_holds_whatever_the_inputs_are(dtype, law):
    rng = np.random.default_rng(2)
    q, k, v = gaussian(rng, 256, 700, 64, 64, dtype)
    q = rounded(q * {"peaked": 4, "cold": 0.1}.get(law, 1), dtype).astype(float)
    v = rounded(v + 4 * (law == "offset"), dtype).astype(float)
    beyond, plain = ratios(Case(q, k, v, 1 / 8), flash(dtype, matmul="blas"), claim_of(dtype))
    assert beyond.size
    assert beyond.max() < 4
    assert 0.3 <= math.sqrt(np.mean(plain**2)) <= 1.0


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.2, 0.3, 2.0])
def test_a_rounded_weight_scatters_as_its_mantissa_lets_it(spread):
    # Whatever is subtracted from normal scores, the mean of 1 / mantissa^2 is at most what is taken for it, and some
    # number gives it, unless the scores differ by so little that more waves count than the first.
    claim = claim_of("float16")
    taken = variances.of_rounding(claim, np.array([spread]))[0] / (2.0**-22 / 3)
    x = spread * np.random.default_rng(10).standard_normal(100_000)
    means = []
    for offset in np.linspace(0, 1, 16, endpoint=False):
        mantissa, _ = np.frexp(np.exp2(x / math.log(2) + offset))
        squares = (2 * mantissa) ** -2.0
        means.append(squares.mean())
    deviation = squares.std() / math.sqrt(len(x))
    assert max(means) <= taken + 5 * deviation
    if spread >= 0.2:
        assert taken <= max(means) + 5 * deviation
    cut_off = variances.of_rounding(replace(claim, rounding="toward_zero"), np.array([spread]))[0]
    assert cut_off == 2.0**-22 / 3


def test_an_exponential_errs_along_values_less_the_output():
    # Numerator and row sum have its error alike: what all values have in common does not count.
    rng = np.random.default_rng(11)
    q, k, v = gaussian(rng, 16, 300, 16, 8, "float16")
    claim = replace(claim_of("float16"), probabilities="float32")
    case = Case(q, k, v + 64, 0.25)
    problem = problem_of(case)
    with_error, without = (
        softmax_noise(replace(claim, exp_ulp=ulp), problem).output ** 2 for ulp in (claim.exp_ulp, 0.0)
    )
    P = np.exp(q @ k.T / 4 - problem.lse[:, None])
    wave = (claim.exp_ulp * 2.0**-23) ** 2 / 2
    expected = wave * (
        P**2 @ case.v**2 - 2 * problem.output * (P**2 @ case.v) + problem.output**2 * (P**2).sum(1)[:, None]
    )
    # Sigma has a fifth of a per cent of room, and float32 sums of 300 squares about a center.
    assert (expected <= with_error - without).all()
    assert (with_error - without <= 1.002**2 * expected + 300 * 2.0**-24 * with_error).all()


@pytest.mark.parametrize("law", ["normal", "hot", "offset_v", "offset_k", "cancel"])
@pytest.mark.parametrize("family", ["float32", "tf32", "cut to tf32", "fp8", "eager"])
def test_every_contract_has_room_for_its_kernels(family, law):
    rng = np.random.default_rng(3)
    dtype = {"fp8": "float8_e4m3fn", "eager": "bfloat16"}.get(family, "float32")
    q, k, v, scale = inputs(rng, law, 64, 300, 32, 16, dtype)
    case = Case(q, k, v, abs(scale) / 4, sink=1.0)
    tensor = Kernel(operand="tf32", weights="tf32", recast=True, cast=cut if "cut" in family else rounded)
    kernel, claim = {
        "float32": (Kernel(sum_of_rounded=True), contract.flash("float32")),
        "tf32": (tensor, replace(contract.tf32(), rounding="nearest")),
        "cut to tf32": (tensor, contract.tf32()),
        "fp8": (
            Kernel(operand=dtype, weights=dtype, matmul="hopper_fp8", output="bfloat16", shift=8), contract.fp8(),
        ),
        "eager": (Eager("bfloat16"), contract.eager("bfloat16")),
    }[family]  # fmt: skip
    problem = problem_of(case)
    noise = softmax_noise(claim, problem)
    proven = contract.softmax_bound(claim, problem)
    bound = statistical_bound(claim, noise, problem, proven, sigmas(64 * 17))
    output, lse = case.run(kernel)
    known = np.isfinite(bound.output)
    assert (np.abs(output - problem.output)[known] <= bound.output[known]).all()
    known = np.isfinite(bound.lse)
    assert (np.abs(lse - problem.lse)[known] <= bound.lse[known]).all()


def test_it_is_sharper_than_the_proven_bound_and_never_wider():
    rng = np.random.default_rng(4)
    case = Case(*gaussian(rng, 64, 2048, 64, 64, "bfloat16"), 1 / 8)
    claim, problem = claim_of("bfloat16"), problem_of(case)
    noise = softmax_noise(claim, problem)
    proven = contract.softmax_bound(claim, problem)
    bound = statistical_bound(claim, noise, problem, proven, 6.5)
    assert (bound.output <= proven.output).all()
    assert (bound.lse <= proven.lse).all()
    assert np.median(bound.output / proven.output) < 0.2
    wide = statistical_bound(claim, noise, problem, proven, 1e9)
    assert np.array_equal(wide.output, proven.output)


@pytest.mark.parametrize("feature", ["bias", "softcap", "sink", "causal"])
def test_slopes_are_derivatives_of_the_exact_output(feature):
    rng = np.random.default_rng(5)
    q, k, v = gaussian(rng, 40, 300, 16, 8, "float32")
    given = {
        "bias": {"bias": -0.02 * np.abs(np.arange(40)[:, None] + 260 - np.arange(300))},
        "softcap": {"softcap": 3.0},
        "sink": {"sink": 4.0},
        "causal": {"keep": np.tril(np.ones((40, 300), dtype=bool), 260)},
    }[feature]
    case = Case(q, k, v + 2, 0.3, **given)
    noise = softmax_noise(contract.flash("float32"), problem_of(case))
    step = 1e-5
    moved = {"scale": lambda f: replace(case, scale=case.scale * f)}
    if feature in ("bias", "softcap"):
        moved[feature] = lambda f: replace(case, **{feature: getattr(case, feature) * f})
    assert set(noise.slopes) == set(moved)
    for name, other in moved.items():
        slope = (other(1 + step).exact()[0] - other(1 - step).exact()[0]) / (2 * step)
        assert np.abs(noise.slopes[name] - slope).max() < 1e-4 * np.abs(slope).max()


# Where it says nothing


def claims(case, claim=None):
    return softmax_noise(claim or claim_of("bfloat16"), problem_of(case)).claim


def test_rows_whose_errors_cannot_average_out_are_left_to_the_proven_bound():
    rng = np.random.default_rng(6)
    q, k, v = gaussian(rng, 8, 200, 16, 8, "bfloat16")
    right = Case(q, k, v, 0.25)
    assert claims(right).all()
    twins = k.copy()
    twins[:20] = twins[20:40]
    assert not claims(replace(right, k=twins)).any()
    same = replace(right, q=1e-2 * q)
    assert not claims(same).any()
    assert claims(same, contract.flash("float32")).all()
    few = np.arange(200) < np.array([31, 32, 200, 0, 5, 64, 33, 30])[:, None]
    assert claims(replace(right, keep=few)).tolist() == [False, True, True, False, False, True, True, False]
    whole = np.sign(rng.standard_normal((200, 16)))
    assert not claims(replace(right, k=whole, q=np.sign(q))).any()
    assert not claims(replace(right, q=np.where(np.arange(8)[:, None] == 2, 1e4 * q, q)))[2]


def test_scores_that_a_softcap_crowds_at_its_ends_are_as_good_as_equal():
    rng = np.random.default_rng(12)
    case = Case(*gaussian(rng, 8, 400, 16, 8, "bfloat16"), 1.0, softcap=1.0)
    assert not claims(case).any()
    assert claims(replace(case, softcap=30.0)).all()


def test_twins_are_taken_together():
    # With one pair of equal keys in 200, sigma must grow as if their errors were one.
    rng = np.random.default_rng(7)
    q, k, v = gaussian(rng, 8, 200, 16, 8, "bfloat16")
    k[0] = k[1] = 2 * np.sign(q[0])
    v[0] = v[1]
    problem = problem_of(Case(q, k, v, 1.0))
    apart = replace(problem, key=k + 1e-7 * np.arange(200)[:, None])
    both = [softmax_noise(claim_of("bfloat16"), x) for x in (problem, apart)]
    assert both[0].claim.all()
    ratio = both[0].output[0] / both[1].output[0]
    # In the row that aims at the twins all else has what weight is left.
    rest = 1 - np.exp(2 * np.log(2) + problem.query[0] @ problem.key[0] - problem.lse[0]) / 2
    assert np.allclose(ratio, math.sqrt(2), rtol=rest, atol=0)


def test_values_that_nobody_sees_do_not_matter():
    rng = np.random.default_rng(8)
    q, k, v = gaussian(rng, 8, 200, 16, 8, "bfloat16")
    keep = np.arange(200) < np.full((8, 1), 150)
    case = Case(q, k, v, 0.25, keep=keep)
    spoilt = [np.where(np.arange(200)[:, None] < 150, x, np.nan) for x in (k, v)]
    problem = problem_of(case)
    one = softmax_noise(claim_of("bfloat16"), problem)
    other = softmax_noise(claim_of("bfloat16"), replace(problem, key=spoilt[0], value=spoilt[1]))
    assert other.claim.all()
    assert np.array_equal(one.output, other.output)


def test_it_applies_to_float32_accumulation_without_dropout():
    score = Score((4, 4), 1.0)
    assert applies(contract.flash("bfloat16"), score)
    assert not applies(contract.flash("float64"), score)
    assert not applies(contract.flash("bfloat16"), replace(score, dropout=Dropout(Whole(np.ones((4, 4), bool)), 0.5)))


def test_more_rows_than_a_tile_and_none():
    rng = np.random.default_rng(9)
    q, k, v = gaussian(rng, 300, 64, 8, 4, "bfloat16")
    problem = problem_of(Case(q, k, v, 0.5, softcap=2.0))
    noise = softmax_noise(claim_of("bfloat16"), problem)
    part = softmax_noise(claim_of("bfloat16"), problem.part(slice(256, 300)))
    assert np.array_equal(noise.output[256:], part.output)
    assert np.array_equal(noise.slopes["softcap"][256:], part.slopes["softcap"])
    assert softmax_noise(claim_of("bfloat16"), problem.part(slice(0, 0))).output.shape == (0, 4)


def test_the_number_of_sigmas():
    assert 2 * math.exp(-(sigmas(1000) ** 2) / 2) * 1000 == pytest.approx(1e-9)
    assert sigmas(1, 0.01) < sigmas(2, 0.01) < sigmas(2, 0.001)
