"""Score tests: what is planted is measured and named, and right kernels of every kind are left in peace."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import contract, masks
from refattn._core.score import Score
from refattn.testing import check
from refattn.testing.effects.measuring import floors
from refattn.testing.effects.record import Effect
from tests.bounds.emulator import Eager, Kernel, cut, rounded
from tests.namespaces import numpy_dtype

LOWER_RIGHT = masks.causal(anchor="lower_right")
LOG2E = math.log2(math.e)


def drawn(
    law: str, dtype: str, *, heads: int = 2, rows: int = 128, keys: int = 512, E: int = 64, seed: int = 0
) -> list[np.ndarray]:
    """Query, key and value of one law, float32 numbers of the dtype."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((heads, n, E)) for n in (rows, keys, keys))
    q *= {"peaked": 4.0, "cold": 0.05, "constant": 1e-3}.get(law, 1.0)
    v += 4.0 * (law == "offset")
    if law == "twins":
        k[:, 1::2] = k[:, ::2][:, : keys // 2]
    return [rounded(x, dtype).astype(np.float32) for x in (q, k, v)]


def flash(dtype: str, **fields: Any) -> Kernel:
    """A tiled kernel."""
    return Kernel(**{"operand": dtype, "weights": dtype, "output": dtype, "tile": 64, **fields})


def run(kernel: Any, arrays: list[np.ndarray], scale: float | None = None, **features: Any) -> tuple[np.ndarray, ...]:
    """Output and log-sum-exp of all heads; a feature is for all of them."""
    scale = arrays[0].shape[-1] ** -0.5 if scale is None else scale
    return tuple(
        np.stack(x) for x in zip(*(kernel(*head, scale=scale, **features) for head in zip(*arrays, strict=True)),
                                 strict=True)
    )  # fmt: skip


def judged(output: np.ndarray, arrays: list[np.ndarray], dtype: str, **arguments: Any) -> Any:
    """The verdict on a result in the dtype."""
    return check(*(x.astype(numpy_dtype(dtype)) for x in (output, *arrays)), **arguments)


def only(verdict: Any, name: str) -> Effect:
    """The strongest effect, which must have this name."""
    assert not verdict.passed
    assert verdict.effects, verdict.text
    assert verdict.effects[0].name == name, verdict.text
    effect: Effect = verdict.effects[0]
    assert effect.sigmas > effect.allowed
    return effect


# What is planted is measured

DTYPES = ("bfloat16", "float16", "float32")


@pytest.mark.parametrize(
    ("factor", "bug", "cause"),
    [
        (math.sqrt(64 / 65), "C4", "1/sqrt(65)"),
        (1.44 / LOG2E, "B16", "log2(e) cut to 1.44"),
        (1.4453125 / LOG2E, "B16", "log2(e) in bfloat16"),
        (1.05, None, ""),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_scale_is_measured(dtype: str, factor: float, bug: str | None, cause: str) -> None:
    arrays = drawn("normal", dtype)
    output, _ = run(flash(dtype), arrays, factor / 8)
    effect = only(judged(output, arrays, dtype), "scale")
    assert effect.beta == pytest.approx(factor - 1, rel=0.05)
    assert effect.bug == effect.explanation.bug == bug
    assert cause in effect.text
    assert effect.text.startswith(f"logits times {1 + effect.beta:.4f}: {effect.sigmas:.0f} sigma")
    assert effect.where == "all 2 heads"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_gain_is_measured(dtype: str) -> None:
    arrays = drawn("normal", dtype)
    output, _ = run(flash(dtype, output="float32"), arrays)
    verdict = judged(rounded(0.998 * output, dtype), arrays, dtype)
    assert only(verdict, "gain").beta == pytest.approx(-0.002, rel=0.05)
    assert "scale" not in {effect.name for effect in verdict.effects}


def test_one_head_of_many_that_is_wrong_is_named() -> None:
    arrays = drawn("normal", "bfloat16", heads=6)
    output, _ = run(flash("bfloat16"), arrays)
    other, _ = run(flash("bfloat16"), arrays, 1 / math.sqrt(65.0))
    output[4] = other[4]
    verdict = judged(output, arrays, "bfloat16")
    assert {effect.where for effect in verdict.effects} & {"head 4", "all 6 heads"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_slopes_and_softcaps_are_measured(dtype: str) -> None:
    arrays = drawn("normal", dtype)
    distance = np.abs(np.arange(128)[:, None] + 384 - np.arange(512))
    output, _ = run(flash(dtype), arrays, bias=-0.05 * 1.01 * distance)
    effect = only(judged(output, arrays, dtype, bias=-0.05 * distance), "bias")
    assert effect.beta == pytest.approx(0.01, rel=0.05)
    arrays[0] = rounded(3 * arrays[0], dtype)
    output, _ = run(flash(dtype), arrays, softcap=5.1)
    effect = only(judged(output, arrays, dtype, softcap=5.0), "softcap")
    assert effect.beta == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("twice", [False, True])
def test_a_key_that_is_lost_or_counted_twice_is_named(dtype: str, twice: bool) -> None:
    arrays = drawn("normal", dtype, keys=1024)
    keep = np.ones((128, 1024), dtype=bool)
    keep[:, 700] = False
    extra = np.where(keep, 0.0, math.log(2))
    output, _ = run(flash(dtype), arrays, **({"bias": extra} if twice else {"keep": keep}))
    effect = only(judged(output, arrays, dtype), "key")
    assert effect.beta == pytest.approx(1 if twice else -1, rel=0.05)
    assert effect.text.startswith(f"key 700 {'counted twice' if twice else 'lost'}: ")
    assert effect.where in ("key head 0", "key head 1")


def test_one_lost_key_of_four_thousand_in_bfloat16_is_named() -> None:
    arrays = drawn("normal", "bfloat16", keys=4096, rows=64)
    keep = np.ones((64, 4096), dtype=bool)
    keep[:, 2049] = False
    output, _ = run(flash("bfloat16", tile=512), arrays, keep=keep)
    effect = only(judged(output, arrays, "bfloat16"), "key")
    assert effect.beta == pytest.approx(-1, rel=0.03)
    assert effect.text.startswith("key 2049 lost: ")


@pytest.mark.slow
def test_one_lost_key_of_131072_in_bfloat16_is_named() -> None:
    # Here the error is about one sigma an element, and far within every bound.
    arrays = drawn("normal", "bfloat16", keys=2**17, rows=32)
    keep = np.ones((32, 2**17), dtype=bool)
    keep[:, 65537] = False
    output, _ = run(flash("bfloat16", tile=2**13), arrays, keep=keep)
    verdict = judged(output, arrays, "bfloat16")
    assert verdict.budget_used < 0.1
    assert verdict.statistical_budget_used < 1
    effect = only(verdict, "key")
    assert effect.beta == pytest.approx(-1, rel=0.05)
    assert effect.text.startswith("key 65537 lost: ")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("moved", [1, -1])
def test_a_mask_that_ends_one_key_off_is_named(dtype: str, moved: int) -> None:
    arrays = drawn("normal", dtype, keys=300)
    output, _ = run(flash(dtype), arrays, keep=np.tril(np.ones((128, 300), dtype=bool), 172 + moved))
    effect = only(judged(output, arrays, dtype, mask=LOWER_RIGHT), "edge")
    assert effect.beta == pytest.approx(moved, rel=0.1)
    assert effect.where == f"1 key {'outside' if moved > 0 else 'inside'} the mask's right end"
    assert effect.bug == "A4"
    right, _ = run(flash(dtype), arrays, keep=np.tril(np.ones((128, 300), dtype=bool), 172))
    assert judged(right, arrays, dtype, mask=LOWER_RIGHT).passed


def test_a_window_one_key_too_wide_is_named() -> None:
    arrays = drawn("normal", "bfloat16", keys=300)
    i, j = np.arange(128)[:, None] + 172, np.arange(300)
    output, _ = run(flash("bfloat16"), arrays, keep=(j <= i) & (j >= i - 101))
    effect = only(judged(output, arrays, "bfloat16", mask=masks.window(100, 0, anchor="lower_right")), "edge")
    assert effect.where == "1 key outside the mask's left end"
    assert effect.beta == pytest.approx(1, rel=0.1)


def test_one_wrong_weight_is_named() -> None:
    arrays = drawn("normal", "bfloat16", heads=1)
    keep = np.ones((128, 512), dtype=bool)
    heavy = int((arrays[0][0, 17] @ arrays[1][0].T).argmax())
    keep[17, heavy] = False
    output, _ = run(flash("bfloat16"), arrays, keep=keep)
    effect = only(judged(output, arrays, "bfloat16"), "cell")
    assert effect.where == f"head 0, row 17, key {heavy}"
    assert effect.beta == pytest.approx(-1, rel=0.1)


def test_noise_above_the_contract_is_noticed() -> None:
    arrays = drawn("normal", "bfloat16")
    output, _ = run(flash("bfloat16", weights="float8_e5m2"), arrays)
    assert only(judged(output, arrays, "bfloat16"), "noise").beta > 2


def test_a_single_number_beyond_what_rounding_explains_is_refused() -> None:
    arrays = drawn("normal", "bfloat16", keys=2048)
    output, _ = run(flash("bfloat16"), arrays)
    verdict = judged(output, arrays, "bfloat16")
    assert verdict.passed
    output[1, 7, 3] += 1.5e-3
    wrong = judged(output, arrays, "bfloat16")
    assert wrong.budget_used < 1 < wrong.statistical_budget_used
    assert not len(wrong.wrong_rows)
    effect = only(wrong, "element")
    assert effect.where == "head 1, row 7, column 3"
    assert effect.text == (
        f"larger than rounding explains: {effect.sigmas:.1f} sigma where {effect.allowed:.1f} is allowed"
    )
    assert wrong.text.startswith("WRONG: all 256 rows are within the bound, but their errors are not those of rounding")
    assert f"  effect: {effect.text} (head 1, row 7, column 3)" in wrong.text.splitlines()
    assert judged(output, arrays, "bfloat16", statistics=False).passed


def test_a_log_sum_exp_beyond_what_rounding_explains_is_refused() -> None:
    arrays = drawn("normal", "float32")
    output, lse = run(flash("float32"), arrays)
    exact = [np.log(np.exp(q @ k.T / 8).sum(axis=-1)) for q, k in zip(*arrays[:2], strict=True)]
    assert judged(output, arrays, "float32", lse=lse).passed
    lse[0, 5] = exact[0][5] + 6e-5
    verdict = judged(output, arrays, "float32", lse=lse)
    assert verdict.lse_budget_used < 1
    assert only(verdict, "element").where == "head 0, row 5, lse"


# Right kernels

LAWS = ("normal", "peaked", "offset", "cold", "constant", "twins")
FAMILIES = ("bfloat16", "float16", "float32", "tf32", "fp8", "eager")


def right_kernel(rng: np.random.Generator, family: str) -> tuple[Any, contract.Contract, str, str]:
    """A kernel of a family with random ways, its contract, and the dtypes of its inputs and its output."""
    pick = lambda *choices: choices[rng.integers(len(choices))]  # noqa: E731
    dtype = family if family in DTYPES else "float32"
    kernel = flash(
        dtype, tile=pick(16, 32, 64, 128), order=pick("forward", "backward", "shuffled"), splits=pick(1, 2, 3),
        combine=pick("total", "sum"), exponential=pick("exp", "exp2_fma", "exp2_separate"),
        sum_of_rounded=pick(False, True), reciprocal=pick(False, True), one_sided=pick(False, True),
        rescale_noise=pick(0.0, 2.0**-22, -(2.0**-22)), seed=int(rng.integers(1000)),
    )  # fmt: skip
    claim = contract.flash(dtype)
    if family in ("bfloat16", "float16"):
        prescale = pick("none", "none", "query", "log2")
        kernel = replace(
            kernel, lazy=pick(0.0, 5.5), noise=pick(0.0, 2.0**-12), weights=pick(family, "float32"), prescale=prescale,
        )  # fmt: skip
        claim = claim if prescale == "none" else replace(claim, rounded=("query",))
    if family == "tf32":
        nearest = pick(False, True)
        kernel = replace(kernel, operand="tf32", weights="tf32", recast=True, cast=rounded if nearest else cut)
        claim = replace(contract.tf32(), rounding="nearest" if nearest else "toward_zero")
    if family == "fp8":
        dtype = "float8_e4m3fn"
        kernel = replace(kernel, operand=dtype, weights=dtype, shift=pick(0, 8), output="bfloat16")
        return kernel, contract.fp8(), dtype, "bfloat16"
    if family == "eager":
        dtype = pick("bfloat16", "float16")
        return Eager(dtype, pick(False, True)), contract.eager(dtype), dtype, dtype
    return kernel, claim, dtype, dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_right_kernels_raise_no_alarm(family: str) -> None:
    rng = np.random.default_rng(FAMILIES.index(family))
    claimed = 0
    for n in range(36):
        kernel, claim, dtype, stored = right_kernel(rng, family)
        arrays = drawn(LAWS[n % len(LAWS)], dtype, heads=1 + n % 2, rows=96, keys=(100, 257, 700)[n % 3], E=32, seed=n)
        S = arrays[1].shape[1]
        features, arguments = {}, {}
        match n // 6:
            case 1:
                features, arguments = {"keep": np.tril(np.ones((96, S), bool), S - 96)}, {"mask": LOWER_RIGHT}
            case 2:
                bias = rounded(-0.05 * np.abs(np.arange(96)[:, None] + S - 96 - np.arange(S)), stored).astype(float)
                features, arguments = {"bias": bias}, {"bias": bias}
            case 3:
                features = arguments = {"softcap": 5.0}
            case 4:
                features, arguments = {"sink": 2.0}, {"sinks": np.full(1 + n % 2, 2.0)}
        output, lse = run(kernel, arrays, **features)
        verdict = judged(output, arrays, stored, lse=lse, contract=claim, **arguments)
        assert verdict.passed, verdict.text
        claimed += verdict.statistical_budget_used is not None
    assert claimed >= 12


@pytest.mark.parametrize(("mantissa", "seed"), [("cut", 57), ("rounded", 283)])
def test_values_that_are_rounded_for_all_rows_alike_blame_no_key(mantissa: str, seed: int) -> None:
    arrays = drawn("offset", "float32", heads=1, rows=1000, keys=1000, E=16, seed=seed)
    cast = cut if mantissa == "cut" else rounded
    claim = replace(contract.tf32(), rounding="toward_zero" if mantissa == "cut" else "nearest")
    output, _ = run(flash("float32", operand="tf32", weights="tf32", recast=True, cast=cast), arrays)
    verdict = judged(output, arrays, "float32", contract=claim)
    assert verdict.passed, verdict.text


def test_a_gain_that_the_contract_allows_blames_no_key() -> None:
    # A tensor core that cuts off makes large values of one sign smaller, here by 1e-4.
    arrays = drawn("offset", "float16", heads=1, rows=300, keys=1000, E=64)
    claim = replace(contract.flash("float16"), output="float32")
    output, _ = run(flash("float16", output="float32", weights="float32"), arrays)
    verdict = judged((1 - 1e-4) * output, arrays, "float32", contract=claim)
    assert verdict.passed, verdict.text
    assert not judged((1 - 2e-3) * output, arrays, "float32", contract=claim).passed


def test_results_more_accurate_than_their_contract_are_right() -> None:
    for dtype in DTYPES:
        arrays = [x.astype(numpy_dtype(dtype)) for x in drawn("normal", dtype)]
        exact = ra.attention(*(x.astype(np.float64)[None] for x in arrays))[0]
        for output in (exact, exact.astype(numpy_dtype(dtype))):
            verdict = check(output, *arrays, contract=dtype)
            assert verdict.passed, verdict.text
            assert verdict.statistical_budget_used < 1


def test_equal_queries_count_once() -> None:
    arrays = drawn("normal", "bfloat16")
    arrays[0][:] = arrays[0][:, :1]
    output, _ = run(flash("bfloat16", output="float32"), arrays)
    verdict = judged(rounded(0.998 * output, "bfloat16"), arrays, "bfloat16")
    assert not verdict.effects


# The record


def test_an_effect_is_an_explanation() -> None:
    effect = Effect(
        name="scale", beta=-0.0077, sigmas=109.2, allowed=7.0, where="all 2 heads",
        text="logits times 0.9923: 109 sigma", bug="C4",
    )  # fmt: skip
    told = effect.explanation
    assert told.instrument == "score test"
    assert told.text == "logits times 0.9923; all 2 heads; 109 sigma [C4]"
    assert told.strength == 109.2


def test_floors_are_what_the_contract_allows() -> None:
    score = Score((8, 1024), 0.125)
    strict = floors(contract.flash("float32"), score, 64)
    half = floors(contract.flash("bfloat16"), score, 64)
    assert all(strict[name] <= half[name] for name in strict)
    assert half["scale"] < 1 - 1.44 / LOG2E
    assert floors(contract.tf32(), score, 64)["key"] == math.inf
    assert floors(replace(contract.flash("float16"), rounding="toward_zero"), score, 64)["gain"] > 2.0**-10


def test_statistics_are_none_for_float64_and_in_json() -> None:
    arrays = [x.astype(np.float64) for x in drawn("normal", "float32", rows=40, keys=60, E=8)]
    verdict = check(ra.attention(*(x[None] for x in arrays))[0], *arrays)
    assert verdict.passed
    assert verdict.statistical_budget_used is None
    assert '"effects": []' in verdict.to_json()


def test_values_without_features_leave_nothing_to_measure() -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 64, 8)).astype(np.float32)
    output, lse, *_ = ra.attention(q, k, v[..., :0], return_lse=True)
    verdict = check(output, q, k, v[..., :0], lse=lse)
    assert verdict.passed
    assert verdict.effects == ()
