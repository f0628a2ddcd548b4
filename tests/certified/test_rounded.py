"""rounded as it is called: shapes, rows, dtypes, what each tier is asked for, and that nothing else changes a bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import refattn as ra
from refattn import biases, masks
from refattn._core.arrays import round_to
from refattn.oracle import climb, double_double, exact, float64
from refattn.oracle import problem as problems
from refattn.oracle.climb import rounded
from refattn.oracle.operands import Operand
from refattn.oracle.problem import Problem
from refattn.oracle.rounding import FORMATS

LOWER = masks.causal("lower_right")


def drawn(*shapes: tuple[int, ...], seed: int = 0, dtype: str = "float64") -> list[np.ndarray]:
    """Normal numbers of a dtype."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype)) for shape in shapes]


def operands(seed: int = 0, dtype: str = "float64") -> list[np.ndarray]:
    """Two batch entries, four heads that share two, fewer queries than keys."""
    return drawn((2, 4, 5, 8), (2, 2, 30, 8), (2, 2, 30, 3), seed=seed, dtype=dtype)


def exactly(q: np.ndarray, k: np.ndarray, v: np.ndarray, name: str, **more: Any) -> np.ndarray:
    """One head by the exact tier alone."""
    problem = Problem(*(Operand(x) for x in (q, k, v)), **more)
    tiles = problem.tiles(np.arange(len(q)), 1)
    return np.array([[exact.Row(problem, tile).rounded(c, name) for c in range(v.shape[1])] for tile in tiles])


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """Bit for bit, but that all NaN are one."""
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


def no_exact_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the exact tier fails."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the exact tier was asked")

    monkeypatch.setattr(climb, "Row", refuse)


@pytest.mark.parametrize("name", FORMATS)
def test_the_tiers_together_give_what_the_exact_tier_gives_alone(name: str) -> None:
    q, k, v = drawn((1, 6, 16), (1, 200, 16), (1, 200, 5), seed=3)
    got = rounded(q, k, v, dtype=name)
    assert (got.shape, got.dtype) == ((1, 6, 5), np.float64)
    assert_same(got[0], exactly(q[0], k[0], v[0], name))


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16"])
def test_arguments_are_those_of_attention(name: str) -> None:
    q, k, v = operands()
    rng = np.random.default_rng(1)
    mask, kept, bias = rng.random((4, 5, 30)) < 0.6, rng.random((2, 4, 5, 30)) < 0.7, rng.standard_normal((5, 30))
    sinks = np.array([0.3, -np.inf, 2.0, -1.0])
    for given, meant in (
        ({"mask": mask}, lambda b, h: {"mask": masks.array(mask[h])}),
        ({"bias": bias, "scale": 0.7}, lambda b, h: {"bias": biases.ArrayBias(bias), "scale": 0.7}),
        ({"softcap": 0.8}, lambda b, h: {"softcap": 0.8}),
        ({"sinks": sinks}, lambda b, h: {"sink": float(sinks[h])}),
        (
            {"dropout_mask": kept, "dropout_p": 0.3},
            lambda b, h: {"dropout": masks.array(kept[b, h]), "dropout_p": 0.3},
        ),
    ):
        got = rounded(q, k, v, dtype=name, **given)
        assert got.shape == (2, 4, 5, 3)
        for b, h in ((0, 1), (1, 2)):
            assert_same(got[b, h], exactly(q[b, h], k[b, h // 2], v[b, h // 2], name, **meant(b, h)))


def test_is_causal_and_a_mask_hold_together() -> None:
    q, k, v = drawn((2, 20, 4), (2, 20, 4), (2, 20, 3))
    window = masks.window(3, None)
    assert_same(
        rounded(q, k, v, dtype="float32", is_causal=True, mask=window),
        rounded(q, k, v, dtype="float32", mask=masks.causal() & window),
    )


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_chosen_rows_are_those_of_the_whole(name: str) -> None:
    q, k, v = operands(1)
    given = {"mask": LOWER, "bias": biases.alibi(4, anchor="lower_right"), "sinks": np.arange(4.0)}
    whole = rounded(q, k, v, dtype=name, **given)
    rows = np.array([(1, 3, 4), (0, 0, 0), (1, 3, 0), (0, 2, 3), (1, 3, 4)])
    assert_same(rounded(q, k, v, dtype=name, rows=rows, **given), whole[tuple(rows.T)])
    assert rounded(q, k, v, dtype=name, rows=[]).shape == (0, 3)


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_the_order_of_keys_is_of_no_matter_to_any_bit(name: str) -> None:
    q, k, v = operands(2)
    order = np.random.default_rng(0).permutation(30)
    assert_same(rounded(q, k, v, dtype=name), rounded(q, k[:, :, order], v[:, :, order], dtype=name))


def test_dtypes_are_named_or_given_and_operands_may_be_of_any() -> None:
    q, k, v = operands(3, "bfloat16")
    want = rounded(*(x.astype(np.float64) for x in (q, k, v)), dtype="float32")
    for dtype in ("float32", np.float32, np.dtype(np.float32)):
        assert_same(rounded(q, k.astype(np.float32), v, dtype=dtype), want)
    strict = pytest.importorskip("array_api_strict").asarray(k.astype(np.float64))
    assert_same(rounded(q, strict, v, dtype="float32"), want)
    assert_same(rounded(q, k, v, dtype=ml_dtypes.bfloat16), rounded(q, k, v, dtype="bfloat16"))
    assert rounded(q, k, v, dtype=ml_dtypes.float8_e4m3fnuz).dtype == np.float64


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_attention_up_to_the_places_that_float64_leaves_open(name: str) -> None:
    q, k, v = operands(4, "bfloat16")
    near = ra.attention(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), dtype="float64")
    got = rounded(q, k, v, dtype=name)
    below, above = (round_to(near * (1 + s * 2.0**-40), name, np).astype(np.float64) for s in (-1, 1))
    assert (np.minimum(below, above) <= got).all()
    assert (got <= np.maximum(below, above)).all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_without_queries_keys_or_features(shape: tuple[int, int]) -> None:
    L, S = shape
    q, k, v = drawn((2, L, 4), (2, S, 4), (2, S, 3))
    got = rounded(q, k, v, dtype="bfloat16")
    assert_same(got, np.zeros((2, L, 3)))
    assert rounded(*drawn((2, 3, 4), (2, 5, 4), (2, 5, 0)), dtype="float64").shape == (2, 3, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_see_nothing_are_zero_and_what_is_hidden_changes_no_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = operands(5)
    mask = np.random.default_rng(2).random((5, 30)) < 0.5
    mask[:, 7], mask[2] = False, False
    want = rounded(q, k, v, dtype=name, mask=mask)
    assert_same(want[:, :, 2], np.zeros((2, 4, 3)))
    for poison in (np.nan, np.inf, 1e300):
        k[:, :, 7], v[:, :, 7] = poison, -poison
        assert_same(rounded(q, k, v, dtype=name, mask=mask), want)


def test_dropped_values_are_not_looked_at() -> None:
    q, k, v = operands(6)
    kept = np.ones((5, 30), dtype=bool)
    kept[:, 4] = False
    given = {"dropout_mask": kept, "dropout_p": 0.25, "dtype": "float32"}
    want = rounded(q, k, v, **given)
    v[:, :, 4] = np.nan
    assert_same(rounded(q, k, v, **given), want)
    # In a row that needs the exact tier, too.
    tie = np.array([[[1.0], [np.nan], [1 + 2.0**-7], [0.0]]])
    given = {"dropout_mask": np.array([[True, False, True, True]]), "dropout_p": 0.5, "dtype": "bfloat16"}
    assert rounded(np.zeros((1, 1, 1)), np.zeros((1, 4, 1)), tie, **given) == 1.0


@pytest.mark.parametrize("name", FORMATS)
def test_columns_of_zeros_and_sums_that_only_underflow_need_no_digits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exact_tier(monkeypatch)
    q, k, v = operands(7)
    v[..., 0], v[..., 1] = 0.0, -0.0
    assert_same(rounded(q, k, v, dtype=name)[..., :2], np.zeros((2, 4, 5, 2)))
    assert_same(rounded(q, k, v, dtype=name, sinks=np.zeros(4))[..., :2], np.zeros((2, 4, 5, 2)))
    if name != "float64":
        dropped = {"dropout_mask": np.zeros((5, 30), dtype=bool), "dropout_p": 0.5}
        assert_same(rounded(q, k, np.abs(v), dtype=name, **dropped), np.zeros((2, 4, 5, 3)))
        # Weights of e^-900, which float64 loses, for the only values that are not zero, and those are positive.
        one_hot = np.zeros((1, 2, 1))
        one_hot[0, 1] = 1.0
        far = rounded(np.ones((1, 1, 1)), np.array([[[0.0], [-900.0]]]), one_hot, dtype=name)
        assert_same(far, np.zeros((1, 1, 1)))


def test_sinks_and_dropout_carry_an_output_out_of_the_hull_of_the_values() -> None:
    q = np.zeros((1, 1, 1))
    # Just below the midpoint of 1 + 2^-7 and 1 + 2^-6, of which the latter is even.
    odd_tie = q + 1 + 3 * 2.0**-8
    assert rounded(q, q, odd_tie, dtype="bfloat16") == 1 + 2.0**-6
    assert rounded(q, q, odd_tie, dtype="bfloat16", sinks=np.array([-60.0])) == 1 + 2.0**-7
    # Just above the midpoint of 1, which is even, and 1 + 2^-7.
    even_tie = q + 1 + 2.0**-8
    kept = np.ones((1, 1), dtype=bool)
    assert rounded(q, q, even_tie, dtype="bfloat16", dropout_mask=kept) == 1.0
    assert rounded(q, q, even_tie, dtype="bfloat16", dropout_mask=kept, dropout_p=2.0**-53) == 1 + 2.0**-7
    assert rounded(q, q, -even_tie, dtype="bfloat16", dropout_mask=kept, dropout_p=2.0**-53) == -1 - 2.0**-7


def test_each_tier_gets_what_the_one_before_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = drawn((1, 64, 16), (1, 64, 16), (1, 64, 8), seed=8)
    v[0, 0, 3] = 1 + 2.0**-8
    given = {"is_causal": True, "dtype": "bfloat16"}
    want = rounded(q, k, v, **given)
    asked: dict[str, list[Any]] = {"float64": [], "double-double": [], "exact": []}

    def watch(module: Any, tier: str) -> None:
        before = module.certify

        def certify(problem: Problem, rows: np.ndarray) -> problems.Rows:
            asked[tier] += rows.tolist()
            return before(problem, rows)

        monkeypatch.setattr(module, "certify", certify)

    class Watched(exact.Row):
        def rounded(self, column: int, name: str) -> float | None:
            asked["exact"].append(column)
            return super().rounded(column, name)

    watch(float64, "float64")
    watch(double_double, "double-double")
    monkeypatch.setattr(climb, "Row", Watched)
    assert_same(rounded(q, k, v, **given), want)
    assert asked["float64"] == list(range(64))
    # The first row sees one key: column 3 is that key's value, a tie. No other row is left open.
    assert (asked["double-double"], asked["exact"]) == ([0], [3])
    assert want[0, 0, 3] == 1.0
    rounded(q, k, v, is_causal=True, dtype="float64")
    assert len(asked["float64"]) == 64
    assert asked["double-double"][1:] == list(range(64))


@pytest.mark.parametrize("name", ["float64", "float32", "float8_e4m3fn"])
def test_a_tier_that_claims_nothing_changes_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = operands(9)
    want = rounded(q, k, v, dtype=name)

    def nothing(problem: Problem, rows: np.ndarray) -> problems.Rows:
        wide, flat = (len(rows), problem.value.shape[1]), len(rows)
        shapes = [wide, wide, wide, flat, flat, flat]
        fill = [np.nan, 0.0, np.inf] * 2
        return problems.Rows(*(np.full(shape, x) for shape, x in zip(shapes, fill, strict=True)))

    monkeypatch.setattr(float64, "certify", nothing)
    assert_same(rounded(q, k, v, dtype=name), want)
    monkeypatch.setattr(double_double, "certify", nothing)
    assert_same(rounded(q, k, v, dtype=name), want)


@pytest.mark.parametrize("name", ["float64", "float32", "float8_e4m3fn"])
def test_the_ends_of_the_range_have_an_answer_too(name: str) -> None:
    most = np.finfo(np.float64).max
    rng = np.random.default_rng(10)
    q, k, v = (rng.choice([most, -most, 5e-324, 1.0, 0.0, 1e200], (3, size, 2)) for size in (2, 6, 6))
    got = rounded(q, k, v, dtype=name)
    for h in range(3):
        assert_same(got[h], exactly(q[h], k[h], v[h], name))


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_a_memory_layout_changes_no_bit_and_inputs_stay_as_they_are(name: str) -> None:
    q, k, v = operands(11)
    before = [x.copy() for x in (q, k, v)]
    want = rounded(q, k, v, dtype=name)
    strided = [np.repeat(x, 2, axis=-2)[..., ::2, :] for x in (q, k, v)]
    for x in strided:
        x.flags.writeable = False
    assert_same(rounded(*strided, dtype=name), want)
    assert_same(rounded(*(np.asfortranarray(x) for x in (q, k, v)), dtype=name), want)
    for x, y in zip(before, (q, k, v), strict=True):
        np.testing.assert_array_equal(x, y)
