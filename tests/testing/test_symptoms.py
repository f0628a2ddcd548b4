"""Symptoms: each known mistake is named where it was made, and only where its numbers fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.testing import check
from tests.testing.kernels import drawn, normal

LOWER, UPPER = (masks.causal(anchor=anchor) for anchor in ("lower_right", "upper_left"))
SINKS = normal((4,))
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def swapped_heads(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Query head h reads key head h % Hk."""
    return ra.attention(q, k[:, [0, 1, 0, 1]], v[:, [0, 1, 0, 1]])


def without(*keys: int) -> Callable[..., np.ndarray]:
    """Some keys take no part."""
    return lambda q, k, v: ra.attention(q, np.delete(k, keys, axis=-2), np.delete(v, keys, axis=-2))


def with_arguments(**arguments: Any) -> Callable[..., np.ndarray]:
    """Right for other arguments than asked for."""
    return lambda *arrays: ra.attention(*arrays, **arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mistake", "asked", "symptom"),
    [
        (lambda q, k, v: 0 * q, {}, "all zeros: the output was not written"),
        (lambda q, k, v: np.nan * q, {}, "every number is NaN"),
        (lambda q, k, v: ra.attention(q, k, v) / 2, {}, "the right output times 0.5"),
        (swapped_heads, {}, "key heads by h % 2 instead of h // 2"),
        (with_arguments(mask=UPPER), {"mask": LOWER}, 'the mask anchored "upper_left"'),
        (with_arguments(mask=LOWER), {"mask": UPPER}, 'the mask anchored "lower_right"'),
        (with_arguments(mask=UPPER), {"mask": masks.causal([30, 35])}, 'the mask anchored "upper_left"'),
        (
            with_arguments(mask=masks.documents([0] * 69 + [1], [0] * 40, inside=UPPER)),
            {"mask": masks.documents([0] * 69 + [1], [0] * 40, inside=LOWER)},
            'the mask anchored "upper_left"',
        ),
        (with_arguments(mask=masks.causal(31)), {"mask": masks.causal(30)}, "the mask ends one key later"),
        (
            with_arguments(mask=masks.window(4, 2, 10) | masks.lengths(3)),
            {"mask": masks.window(4, 3, 10) | masks.lengths(3)},
            "the mask ends one key earlier",
        ),
        (with_arguments(), {"mask": LOWER}, "no mask at all"),
        (with_arguments(), {"bias": ra.biases.alibi(4, anchor="lower_right")}, "no bias"),
        (with_arguments(), {"softcap": 1.0}, "no softcap"),
        (with_arguments(), {"sinks": SINKS}, "no sinks"),
        (with_arguments(), {"scale": 0.1}, "scale 1/sqrt(E), whatever was asked for"),
        (with_arguments(scale=1.0), {}, "scale 1: the scores were not scaled"),
        (with_arguments(scale=1 / 16), {}, "scale 1/E"),
        (with_arguments(scale=0.25 * np.log(2)), {}, "exponentials of base 2 where scores are in base e"),
        (with_arguments(scale=0.25 / np.log(2)), {}, "log2(e) applied twice"),
        (with_arguments(scale=0.4, softcap=9.0), {"scale": 0.5, "softcap": 9.0}, "the scores are multiplied by 0.8"),
        (with_arguments(scale=0.6), {}, "the scores are multiplied by 2.4"),
        (without(69), {}, "key 69 takes no part"),
        (without(*range(64, 70)), {}, "keys 64..69 take no part"),
        (without(*range(32, 64)), {}, "keys 32..63 take no part"),
    ],
)
def test_a_mistake_is_named(
    mistake: Callable[..., np.ndarray], asked: dict[str, Any], symptom: str, dtype: str
) -> None:
    # Values around 2, so that in bfloat16 too each mistake stands out of the rounding in some row.
    q, k, v = drawn(dtype=dtype)
    arrays = (2 * q, k, v + v.dtype.type(2))
    output = np.asarray(mistake(*(x.astype(np.float64) for x in arrays)), dtype=q.dtype)
    verdict = check(output, *arrays, **asked)
    assert not verdict.passed
    assert any(text.startswith(symptom) for text in verdict.symptoms), verdict.text


@pytest.mark.parametrize(("asked", "factor"), [("e", 1 / np.log(2)), ("2", 1.0)])
def test_the_other_base_of_a_log_sum_exp_is_named(asked: str, factor: float) -> None:
    arrays = drawn()
    output, lse, _ = ra.attention(*arrays, return_lse=True)
    verdict = check(output, *arrays, lse=(lse * factor).astype(np.float32), lse_base=asked)
    other = "2" if asked == "e" else "e"
    assert verdict.symptoms == (
        f"the log-sum-exp fits base {other}, not the base {asked} that it was held to (fits all 32 wrong rows tried)",
    )
    assert verdict.budget_used <= 1 < verdict.lse_budget_used


def test_a_log_sum_exp_that_was_not_written_is_named() -> None:
    arrays = drawn()
    output, lse, _ = ra.attention(*arrays, return_lse=True)
    verdict = check(output, *arrays, lse=0 * lse)
    assert verdict.symptoms == ("the log-sum-exp is all zeros: it was not written (fits all 32 wrong rows tried)",)


def test_what_no_mistake_explains_gets_no_name() -> None:
    q, k, v = drawn()
    assert check(ra.attention(q, k[..., ::-1, :], v), q, k, v).symptoms == ()
    # A mistake that explains some of the wrong rows and not the others.
    output = ra.attention(q, k, v)
    output[0], output[1] = 0, 2 * output[1]
    assert check(output, q, k, v).symptoms == ()
    output[0], output[1] = ra.attention(q, k, v, scale=1.0)[0], swapped_heads(q, k, v)[1]
    assert check(output, q, k, v).symptoms == ()


def test_few_wrong_rows_are_all_tried() -> None:
    arrays = drawn()
    output = ra.attention(*arrays)
    output[1, 2, 7:12] = 0
    verdict = check(output, *arrays)
    assert verdict.symptoms == ("all zeros: the output was not written (fits all 5 wrong rows tried)",)
