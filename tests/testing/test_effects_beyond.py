"""What effects explain of errors beyond the proven bound, which head is read, and rows that are too noisy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import refattn as ra
from refattn import contract
from refattn.testing import check
from refattn.testing.effects.record import EXPLAINS
from tests.bounds.emulator import Eager
from tests.namespaces import numpy_dtype
from tests.testing.test_effects import LOWER_RIGHT, drawn, flash, judged, only, run


def read(arrays: list[np.ndarray], queries: np.ndarray, heads: list[tuple[int, int]], dtype: str) -> np.ndarray:
    """Output of query heads that read the keys and the values of these key heads."""
    _, k, v = arrays
    return np.stack(
        [flash(dtype)(q, k[i], v[j], scale=0.125)[0] for q, (i, j) in zip(queries, heads, strict=True)]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "text", "bug"),
    [
        (
            [(0, 0), (1, 1), (0, 0), (1, 1)],
            "query head 1 reads key head 1, not 0; query head 2 reads key head 0, not 1",
            "D1",
        ),
        (
            [(0, 0), (0, 1), (1, 0), (1, 1)],
            "query head 1 reads key head 1 (values), not 0; query head 2 reads key head 0 (values), not 1",
            "D1",
        ),
        ([(0, 0), (0, 0), (0, 1), (1, 1)], "query head 2 reads key head 0 (keys), not 1", None),
    ],
)
def test_query_heads_that_read_another_key_head_are_named(
    heads: list[tuple[int, int]], text: str, bug: str | None
) -> None:
    arrays = drawn("normal", "bfloat16", rows=48, keys=200)
    queries = drawn("normal", "bfloat16", heads=4, rows=48, keys=200)[0]
    verdict = judged(read(arrays, queries, heads, "bfloat16"), [queries, *arrays[1:]], "bfloat16")
    effect = only(verdict, "head")
    assert effect.text == f"{text}: {effect.sigmas:.0f} sigma"
    assert effect.explained >= EXPLAINS
    assert (effect.bug, effect.explanation.bug) == (bug, bug)
    assert verdict.effects == (effect,)


def test_heads_that_are_wrong_otherwise_are_no_map() -> None:
    arrays = drawn("normal", "bfloat16", rows=48, keys=200)
    queries = drawn("normal", "bfloat16", heads=4, rows=48, keys=200)[0]
    output = read(arrays, queries, [(0, 0), (0, 0), (1, 1), (1, 1)], "bfloat16")
    output[1] = output[1, ::-1]
    assert "head" not in {effect.name for effect in judged(output, [queries, *arrays[1:]], "bfloat16").effects}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("factor", "bug"), [(0.98, None), (math.log(2), "C1")])
def test_a_scale_that_explains_errors_beyond_the_bound_keeps_its_name(
    dtype: str, factor: float, bug: str | None
) -> None:
    arrays = drawn("normal", dtype)
    output, _ = run(flash(dtype), arrays, factor / 8)
    verdict = judged(output, arrays, dtype)
    assert len(verdict.wrong_rows)
    effect = only(verdict, "scale")
    assert effect.explained >= EXPLAINS
    assert effect.explanation.bug == bug
    # The rest of first order would be the square of the size.
    assert abs(1 + effect.beta - factor) < max((1 - factor) ** 2 / 8, 2.0**-12)


def test_a_size_that_does_not_explain_all_loses_its_name() -> None:
    arrays = drawn("normal", "bfloat16", heads=4, keys=256)
    output, _ = run(flash("bfloat16"), arrays, 1 / math.sqrt(65))
    output[3, :8] += np.float32(0.05)
    effects = {effect.name: effect for effect in judged(output, arrays, "bfloat16").effects}
    assert 0 < effects["scale"].explained < EXPLAINS
    assert effects["scale"].bug == "C4"
    assert effects["scale"].explanation.bug is None


@pytest.mark.parametrize("moved", [1, -1])
def test_an_edge_that_explains_errors_beyond_the_bound_keeps_its_name(moved: int) -> None:
    arrays = drawn("normal", "float16", keys=300)
    output, _ = run(flash("float16"), arrays, keep=np.tril(np.ones((128, 300), dtype=bool), 172 + moved))
    verdict = judged(output, arrays, "float16", mask=LOWER_RIGHT)
    assert len(verdict.wrong_rows)
    effect = only(verdict, "edge")
    assert effect.explained >= EXPLAINS
    assert effect.explanation.bug == "A4"
    assert verdict.effects == (effect,)


def test_an_edge_that_may_be_the_other_anchor_has_no_name() -> None:
    arrays = drawn("normal", "bfloat16", rows=128, keys=129)
    output, _ = run(flash("bfloat16"), arrays, keep=np.tril(np.ones((128, 129), dtype=bool)))
    effect = only(judged(output, arrays, "bfloat16", mask=LOWER_RIGHT), "edge")
    assert effect.bug is None


def test_one_noisy_row_is_named() -> None:
    arrays = drawn("normal", "bfloat16", keys=2048)
    claim = replace(contract.flash("bfloat16"), output="float32")
    output, _ = run(flash("bfloat16", output="float32"), arrays)
    rng = np.random.default_rng(0)
    exact = ra.attention(*(x[None].astype(np.float64) for x in arrays))[0]
    noise = (output - exact).std()
    args = [x.astype(numpy_dtype("bfloat16")) for x in arrays]
    output[1, 77] += (5 * noise * rng.choice([-1, 1], 64)).astype(np.float32)
    verdict = check(output, *args, contract=claim)
    effect = only(verdict, "row")
    assert verdict.statistical_budget_used < 1
    assert effect.where == "head 1, row 77"
    assert (
        effect.text
        == f"errors of one row are {effect.beta:.2f} times what rounding explains: {effect.sigmas:.0f} sigma"
    )


def test_a_row_whose_numbers_share_one_error_is_no_noisy_row() -> None:
    # One weight of it is off by what rounding may do: all of its numbers are, together.
    arrays = drawn("peaked", "bfloat16", heads=1, rows=64, keys=300)
    q, k, v = (x[0].astype(np.float64) for x in arrays)
    weights = np.exp(q @ k.T / 8)
    weights /= weights.sum(axis=1, keepdims=True)
    exact = weights @ v
    heavy = int(weights[5].argmax())
    off = 6 * 2.0**-8 / math.sqrt(3) * weights[5, heavy] * v[heavy]
    claim = replace(contract.flash("bfloat16"), output="float32")
    args = [x.astype(numpy_dtype("bfloat16")) for x in arrays]
    output = exact.astype(np.float32)[None]
    output[0, 5] += off.astype(np.float32)
    assert "row" not in {effect.name for effect in check(output, *args, contract=claim).effects}


def test_an_exponential_that_errs_at_0_is_no_gain() -> None:
    # The largest weight of a row is then rounded to 1 in every row, and the row sum has it unrounded.
    arrays = drawn("peaked", "float16", keys=200, E=16)
    arrays[0] *= 4
    output, _ = run(flash("float16", noise=2.9e-4, one_sided=True), arrays)
    verdict = judged(output, arrays, "float16")
    assert verdict.passed, verdict.text


def test_distances_from_a_maximum_that_are_stored_beside_a_sink_are_no_noise() -> None:
    arrays = drawn("cold", "bfloat16", rows=48, keys=100, E=16)
    output, _ = run(Eager("bfloat16"), arrays, sink=6.0)
    claim = contract.eager("bfloat16")
    verdict = judged(output, arrays, "bfloat16", contract=claim, sinks=np.full(2, 6.0))
    assert verdict.passed, verdict.text
