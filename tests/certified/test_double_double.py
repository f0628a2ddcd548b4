"""The double-double tier: hard corners of its theorem, each held against balls, and what it must refuse to claim."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flint import arb

from refattn import biases, masks
from refattn.oracle import double_double
from refattn.oracle.double_double import certify
from refattn.oracle.operands import Operand
from refattn.oracle.problem import Problem, Rows
from tests.certified.balls import Head, enclose, precision, within

Rng = np.random.Generator


def asked(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    visible: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    **given: Any,
) -> tuple[Problem, Head]:
    """A problem, and the same for the balls."""
    problem = Problem(
        Operand(q),
        Operand(k),
        Operand(v),
        mask=None if visible is None else masks.array(visible),
        bias=None if bias is None else biases.ArrayBias(bias),
        dropout=None if kept is None else masks.array(kept),
        **given,
    )
    numbers = (x.astype(np.float64) for x in (q, k, v))
    return problem, Head(*numbers, visible=visible, bias=bias, kept=kept, **given)


def held(problem: Problem, head: Head, bits: int = 1200) -> Rows:
    """The certified answer, every finite radius of which holds."""
    found = certify(problem, np.arange(problem.query.shape[0]))
    with precision(bits):
        for i, row in enumerate(enclose(head, bits)):
            for c, exact in enumerate(row.output):
                numbers = (float(x[i, c]) for x in found[:3])
                assert_within(*numbers, exact)
            assert_within(*(float(x[i]) for x in found[3:]), row.lse)
    return found


def assert_within(high: float, low: float, radius: float, exact: arb | None) -> None:
    """One number: proved, and not merely undecided."""
    if exact is None:
        assert math.isinf(radius)
        assert math.isnan(high)
    elif not math.isinf(radius):
        assert within(high, low, radius, exact), (high, low, radius, exact)


def normal(rng: Rng, L: int, S: int, E: int = 8, Ev: int = 3, dtype: str = "float64") -> list[np.ndarray]:
    """Queries, keys and values."""
    shapes = ((L, E), (S, E), (S, Ev))
    return [rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype)) for shape in shapes]


def test_a_maximum_of_high_parts_below_the_largest_logit() -> None:
    """Logits 2^66 and 2^66 + 2^12 ... ln 2: their low parts are as large as weights can bear."""
    k = np.array([[2.0**33, 4096 * math.log(2)], [2.0**33, 0.0]])
    problem, head = asked(np.array([[2.0**33, 1.0]]), k, np.array([[1.0], [2.0]]), scale=1.0)
    found = held(problem, head)
    assert np.isinf(found.radius).all()
    assert np.isinf(found.lse_radius).all()


@pytest.mark.parametrize("exponent", range(30, 47))
def test_large_logits_are_claimed_up_to_2_to_the_43(exponent: int) -> None:
    rng = np.random.default_rng(exponent)
    k = np.column_stack([np.full(6, 2.0 ** (exponent - 20)), rng.uniform(0, 3, 6)])
    problem, head = asked(np.array([[2.0**20 * 0.75, 1.0]]), k, rng.standard_normal((6, 2)), scale=1.0)
    assert np.isfinite(held(problem, head).radius).all() == (0.75 * 2.0**exponent + 3 < 2.0**43)


@pytest.mark.parametrize("which", ["scale", "scale and bias", "softcap and bias"])
def test_the_roundings_of_large_logits_count(which: str) -> None:
    """Of a scale, of one before a bias takes most of the logit away, and of a large bias; the products are exact."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = 2.0 ** int(rng.integers(10, 42))
        q, k, v = np.ones((1, 3)), size + rng.integers(0, 4, (9, 3)), rng.standard_normal((9, 2))
        given: dict[str, Any] = {}
        if which == "scale and bias":
            given["bias"] = rng.standard_normal((1, 9)) - q @ k.T / math.sqrt(3)
        if which == "softcap and bias":
            given = {"bias": size + rng.standard_normal((1, 9)), "softcap": 1.0, "scale": 1 / size}
        problem, head = asked(q, k, v, **given)
        held(problem, head)


def test_the_rounding_of_a_large_lse_counts() -> None:
    """Of exact logits near 2^40."""
    rng = np.random.default_rng(0)
    for exponent in range(20, 43):
        k = 2.0**exponent + rng.integers(0, 4, (5, 1))
        problem, head = asked(np.ones((1, 1)), k, rng.standard_normal((5, 1)), scale=1.0)
        held(problem, head)


@pytest.mark.parametrize("E", [2, 14, 64])
def test_products_that_cancel(E: int) -> None:
    """Logits of 1 or so from operands whose norms multiply to far more; beyond reach in the end."""
    claimed = []
    for exponent in range(5, 50, 3):
        rng = np.random.default_rng(exponent)
        q, k, v = normal(rng, 3, 12, E)
        q *= 2.0**exponent
        k *= 2.0**exponent
        half = E // 2
        q[:, half:], k[:, half:] = q[:, :half], -k[:, :half]
        q[:, 0] *= 1 + 4.0**-exponent
        problem, head = asked(q, k, v)
        claimed.append(np.isfinite(held(problem, head).radius).all())
    assert claimed[0]
    assert not claimed[-1]


@pytest.mark.parametrize("bits", [1, 2, 7, 12, 20, 21, 22, 23, 25, 26, 27, 30, 45, 53])
def test_sums_of_full_slices(bits: int) -> None:
    """Weights and values of one sign that use all the bits they have, in as many keys as one product sums."""
    rng = np.random.default_rng(bits)
    k = -rng.uniform(0, 0.1, (600, 1))
    v = 1 - 2.0**-bits * rng.integers(0, 2 ** min(bits, 8), (600, 2))
    problem, head = asked(np.ones((2, 1)), k, v, scale=1.0)
    assert (held(problem, head, 300).radius < 1e-22).all()


# What is asked beside queries (3, 8), keys (30, 8) and values (30, 3).
GIVEN: dict[str, Callable[[Rng], dict[str, Any]]] = {
    "nothing": lambda rng: {},
    "scale": lambda rng: {"scale": -0.37},
    "power of two": lambda rng: {"scale": 2.0**-5},
    "no scale": lambda rng: {"scale": 0.0},
    "bias": lambda rng: {"bias": rng.standard_normal((3, 30)) * 100},
    "far bias": lambda rng: {"bias": -rng.choice([0, 500, 599, 601, 1e9, 1e300], (3, 30))},
    "bias against logits": lambda rng: {"bias": rng.standard_normal((3, 30)) * 1e9, "scale": 1e9},
    "softcap": lambda rng: {"softcap": 0.9},
    "wide softcap": lambda rng: {"softcap": 1e5, "scale": 1e3},
    "narrow softcap": lambda rng: {"softcap": 1e-5},
    "sink": lambda rng: {"sink": 1.3},
    "far sink": lambda rng: {"sink": -700.0},
    "sink above all": lambda rng: {"sink": 590.0},
    "mask": lambda rng: {"visible": rng.random((3, 30)) < np.array([[0.0], [0.1], [0.9]])},
    "mask and sink": lambda rng: {"visible": rng.random((3, 30)) < np.array([[0.0], [0.1], [0.9]]), "sink": 0.5},
    "dropout": lambda rng: {"kept": rng.random((3, 30)) < 0.6, "dropout_p": 0.1},
    "nearly all dropped": lambda rng: {"kept": rng.random((3, 30)) < 0.1, "dropout_p": 1 - 2.0**-53},
    "all of them": lambda rng: {
        "scale": 0.7,
        "bias": rng.standard_normal((3, 30)),
        "softcap": 3.0,
        "sink": -0.2,
        "visible": rng.random((3, 30)) < 0.7,
        "kept": rng.random((3, 30)) < 0.8,
        "dropout_p": 0.3,
    },
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", GIVEN)
def test_every_argument(name: str, dtype: str) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        problem, head = asked(*normal(rng, 3, 30, dtype=dtype), **GIVEN[name](rng))
        found = held(problem, head)
        assert np.isfinite(found.radius).all()
        assert np.isfinite(found.lse_radius).all()


@pytest.mark.parametrize("E", [1, 2, 3, 4, 7, 64, 80])
def test_the_default_scale_is_a_real_number(E: int) -> None:
    rng = np.random.default_rng(E)
    problem, head = asked(*normal(rng, 2, 9, E))
    assert (held(problem, head).radius < 2e-22).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_radii_are_as_small_as_is_claimed(dtype: str) -> None:
    rng = np.random.default_rng(0)
    problem, _ = asked(*normal(rng, 32, 1000, 64, 16, dtype))
    found = certify(problem, np.arange(32))
    assert np.median(found.radius) < 5e-24
    assert np.median(found.lse_radius) < 1e-23


def test_a_row_that_is_not_exact_among_rows_that_are() -> None:
    """And most rows inexact, and all."""
    rng = np.random.default_rng(0)
    for tiny in ((1,), (0, 2, 3), (0, 1, 2, 3)):
        q, k, v = normal(rng, 4, 20, 16, dtype="bfloat16")
        q[list(tiny), 3] = 2.0**-60
        problem, head = asked(q, k, v)
        assert (held(problem, head).radius < 1e-22).all()


def test_operands_of_all_sizes() -> None:
    rng = np.random.default_rng(0)
    for a, b, c in ((-1060, -800, 899), (-700, 300, -900), (500, -500, -1074), (800, -850, 900), (-1070, -1070, 0)):
        q, k, v = normal(rng, 2, 12)
        q, k, v = (
            q * 2.0**a,
            k * 2.0**b,
            np.rint(v * 16) * 2.0 ** (c - 4) if c > -1000 else np.rint(v * 16) * 2.0**-1074,
        )
        problem, head = asked(q, k, v, scale=2.0 ** max(-1000, min(899, -a - b)))
        found = held(problem, head, 6000)
        assert np.isfinite(found.radius).all() == (np.abs(v).max() < 2.0**900)


def test_columns_of_different_sizes_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 2, 30, Ev=4)
    v *= np.array([1.0, 2.0**500, 2.0**-500, 0.0])
    problem, head = asked(q, k, v)
    found = held(problem, head)
    assert (found.radius <= 1e-22 * np.abs(v).max(axis=0) + 1e-300).all()


def test_a_value_of_no_weight_costs_digits() -> None:
    """Beside a value of 2^100 others are cut near 2^56, and what is left of them goes through float64."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        q, k, v = np.ones((1, 1)), -rng.uniform(0, 1, (40, 1)), rng.standard_normal((40, 2))
        k[3], v[3] = -300.0, 2.0**100
        problem, head = asked(q, k, v, scale=1.0)
        found = held(problem, head)
        assert np.isfinite(found.radius).all()


def test_what_is_not_finite_costs_what_depends_on_it() -> None:
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 4, 6)
    visible, kept = np.ones((4, 6), dtype=bool), np.ones((4, 6), dtype=bool)
    k[0, 1], visible[:, 0] = np.nan, [True, False, False, False]
    v[1, 2], visible[:, 1] = np.inf, [False, True, True, False]
    kept[2, 1] = False
    q[3, 0] = -np.inf
    problem, _ = asked(q, k, v, visible=visible, kept=kept, dropout_p=0.5)
    found = certify(problem, np.arange(4))
    nothing = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=bool)
    assert (np.isinf(found.radius) == nothing).all()
    assert (np.isnan(found.output) == nothing).all()
    assert np.isinf(found.lse_radius).tolist() == [True, False, False, True]
    problem, head = asked(q[:3], k, v, visible=visible[:3], kept=kept[:3], dropout_p=0.5)
    held(problem, head)


def test_a_value_too_large_costs_its_column_alone() -> None:
    rng = np.random.default_rng(0)
    q, k, v = normal(rng, 2, 30)
    v[4, 1] = 1.5e308
    problem, head = asked(q, k, v)
    found = held(problem, head)
    assert np.isinf(found.radius).all(axis=0).tolist() == [False, True, False]
    assert np.isfinite(found.radius[:, [0, 2]]).all()


@pytest.mark.parametrize(
    ("size", "given"),
    [
        (2.0**901, {"scale": 0.75 * 2.0**-900}),
        (2.0**-500, {"scale": 1.5 * 2.0**920}),
        (1.0, {"scale": 2.0**901}),
        (1.0, {"softcap": 2.0**401}),
        (1.0, {"softcap": 2.0**-401}),
        (1.0, {"bias": np.array([[0.0, np.inf, 0.0]])}),
        (1.0, {"bias": np.array([[0.0, np.nan, 0.0]])}),
        (1.0, {"bias": np.array([[0.0, 2.0**44, 0.0]])}),
        (1.0, {"sink": 2.0**44}),
    ],
)
def test_nothing_is_claimed_outside_the_theorem(size: float, given: dict[str, Any]) -> None:
    problem, _ = asked(np.array([[size, min(size, 1.0)]]), np.ones((3, 2)), np.ones((3, 1)), **given)
    found = certify(problem, np.arange(1))
    assert np.isinf(found.radius).all()
    assert np.isinf(found.lse_radius).all()


def test_sums_that_overflow_on_the_way_claim_nothing() -> None:
    """Products of 2^1030 that cancel: the logit is 0, and float64 may find -inf, whose weight would be 0."""
    q = np.array([[2.0**515, 2.0**515, 1.0]])
    k = np.array([[2.0**515, -(2.0**515), 0.0], [0.0, 0.0, 0.0]])
    problem, head = asked(q, k, np.array([[1.0], [2.0]]), scale=1.0)
    assert np.isinf(held(problem, head).radius).all()


def test_what_no_row_sees_may_be_anything() -> None:
    rng = np.random.default_rng(0)
    visible = np.tile(np.arange(12) % 3 != 1, (3, 1))
    for dtype in ("float64", "bfloat16"):
        answers = []
        q, k, v = normal(rng, 3, 12, dtype=dtype)
        for poison in (1.0, 1e-38, 1e38, -np.inf, np.nan):
            k[~visible[0]], v[~visible[0]] = poison, poison
            problem, head = asked(q, k, v, visible=visible, bias=np.where(visible, 0.5, poison))
            answers.append(held(problem, head))
        for other in answers[1:]:
            for a, b in zip(answers[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_weights_below_the_lowest_are_zero() -> None:
    """And nothing else is."""
    for logit, lost in ((-599.0, False), (-601.0, True)):
        k, v = np.array([[0.0], [logit]]), np.array([[0.0], [2.0**860]])
        problem, head = asked(np.ones((1, 1)), k, v, scale=1.0)
        assert (held(problem, head).output.item() == 0) == lost


def test_sizes_of_zero() -> None:
    for R, S, E, Ev in ((0, 4, 2, 3), (2, 0, 2, 3), (2, 4, 2, 0), (2, 0, 2, 0), (1, 1, 1, 1)):
        problem, head = asked(np.ones((R, E)), np.ones((S, E)), np.ones((S, Ev)))
        found = held(problem, head)
        assert found.output.shape == found.radius.shape == (R, Ev)
        if S == 0:
            assert (found.radius == 0).all()
            assert (found.lse == -np.inf).all()


@pytest.mark.parametrize("few", [False, True])
def test_many_keys_and_rows_of_many_tiles(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in several blocks and parts, weights that fill the slices; and a mask that moves the range of keys."""
    monkeypatch.setattr(double_double, "TILE", 3000)
    monkeypatch.setattr(double_double, "TALL", 1)
    if not few:
        monkeypatch.setattr(double_double, "HELD", 0)
        monkeypatch.setattr(double_double, "CHUNK", 700)
    rng = np.random.default_rng(0)
    for dtype in ("float64", "bfloat16"):
        q, k, v = normal(rng, 5, 1500, 4, 2, dtype)
        for visible in (None, np.arange(1500) - 1490 <= np.arange(5)[:, None] * 2, rng.random((5, 1500)) < 0.2):
            problem, head = asked(q, k, v, visible=visible, softcap=2.0 if dtype == "bfloat16" else None)
            assert (held(problem, head, 300).radius < 1e-22).all()
    q, k, v = (1 - 2.0**-30 * rng.uniform(0, 1, shape) for shape in ((3, 128), (1500, 128), (1500, 2)))
    problem, head = asked(q, k, v)
    assert (held(problem, head, 300).radius < 1e-21).all()
