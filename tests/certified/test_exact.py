"""The exact tier alone, without any other: against ball arithmetic, and on ties that are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flint import arb

from refattn import biases, masks
from refattn.oracle import exact
from refattn.oracle.operands import Operand
from refattn.oracle.problem import Problem
from refattn.oracle.rounding import FORMATS, round_floats
from tests.certified import balls, ties

INFINITY = float("inf")


def rounded(problem: Problem, name: str, rows: Sequence[int] | None = None) -> np.ndarray:
    """Every element by the exact tier; None where it is undecided."""
    positions = np.arange(problem.query.shape[0]) if rows is None else np.array(rows)
    found = [
        [row.rounded(c, name) for c in range(problem.value.shape[1])]
        for row in (exact.Row(problem, tile) for tile in problem.tiles(positions, 1))
    ]
    return np.array(found, dtype=object).reshape(len(positions), -1)


def of(
    query: Any, key: Any, value: Any, *, added: Any = None, visible: Any = None, kept: Any = None, **more: Any
) -> Problem:
    """A problem, from float64 matrices and dense cells."""
    q, k, v = (np.array(x, dtype=np.float64) for x in (query, key, value))
    return Problem(
        Operand(q), Operand(k), Operand(v),
        mask=None if visible is None else masks.array(np.array(visible)),
        bias=None if added is None else biases.ArrayBias(np.array(added, dtype=np.float64)),
        dropout=None if kept is None else masks.array(np.array(kept)),
        **more,
    )  # fmt: skip


def one(problem: Problem, name: str) -> float:
    """The only element."""
    ((x,),) = rounded(problem, name)
    return x


def assert_same(got: np.ndarray, want: np.ndarray) -> None:
    """Equal numbers of equal signs, NaN where NaN."""
    got = np.array(got, dtype=np.float64)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(want[~np.isnan(want)]))


def from_head(head: balls.Head) -> Problem:
    """The same in the oracle's own record."""
    return of(
        head.query, head.key, head.value, added=head.bias, visible=head.visible, kept=head.kept,
        scale=head.scale, softcap=head.softcap, sink=head.sink, dropout_p=head.dropout_p,
    )  # fmt: skip


def assert_right(head: balls.Head, name: str) -> tuple[int, int]:
    """Every element is what balls say; the numbers of elements and of ties."""
    got = rounded(from_head(head), name)
    with balls.precision(4096):
        want, turns, known = balls.correct(head, name)
    assert head.softcap is not None or known.all()
    assert_same(got[known], want[known])
    return want.size, int(turns.sum())


@pytest.mark.parametrize("name", FORMATS)
def test_every_element_is_what_balls_say(name: str) -> None:
    elements = turned = 0
    for seed in range(5000, 5030):
        for _, head in ties.drawn(name, seed).heads():
            more = assert_right(head, name)
            elements, turned = elements + more[0], turned + more[1]
    assert elements > 100
    assert turned > elements / 10


def drawn(seed: int) -> balls.Head:
    """A problem with some of everything that may change a score."""
    rng = np.random.default_rng(seed)

    def maybe(x: Any, share: float = 0.4) -> Any:
        return x if rng.random() < share else None

    E, S, R = int(rng.choice([1, 2, 3, 4, 9, 16])), int(rng.integers(0, 9)), 2
    q, k, v = (rng.standard_normal(shape) * rng.choice([1, 1, 8]) for shape in ((R, E), (S, E), (S, 2)))
    kept = maybe(rng.random((R, S)) < 0.7)
    return balls.Head(
        q, k, v * 2.0 ** rng.choice([0, 0, 100, -300, -1060]),
        scale=maybe(float(rng.choice([1.0, -0.5, 0.0, 0.3]))),
        softcap=maybe(float(rng.choice([1.0, 30.0, 1e-3, 1e9, 1e300]))),
        visible=maybe(rng.random((R, S)) < 0.7),
        bias=maybe(rng.standard_normal((R, S)) * 2.0 ** float(rng.choice([0, 3, -30]))),
        sink=-INFINITY if rng.random() < 0.5 else float(rng.choice([0.0, 1.0, -2.5, 40.0])),
        kept=kept,
        dropout_p=0.0 if kept is None else float(rng.choice([0.0, 0.5, 0.1])),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float8_e4m3fn"])
def test_all_that_changes_a_score_is_in_the_answer(name: str) -> None:
    for seed in range(70):
        assert_right(drawn(seed), name)


@pytest.mark.parametrize("bits", [104, 208, 416])
def test_enclosures_hold_the_output_and_narrow_as_bits_are_added(bits: int) -> None:
    for seed in range(150, 190):
        head = drawn(seed)
        if seed % 2:
            # All logits near one large number.
            head = dataclasses.replace(head, sink=-INFINITY)
            head.query[:, 0], head.key[:, 0] = 2.0**40, 2.0**20
        problem, lines = from_head(head), balls.enclose(head, 3000)
        for row, line in zip((exact.Row(problem, t) for t in problem.tiles(np.arange(2), 1)), lines, strict=True):
            if not row._keys:
                continue
            for c, ball in enumerate(line.output):
                values, power = row._values(c)
                lower, upper = row._enclosure(values, power, bits)
                with balls.precision(3000):
                    low, high = balls.fraction(ball.lower()), balls.fraction(ball.upper())
                assert lower <= high
                assert low <= upper
                largest = max(map(abs, values), default=0) * Fraction(2) ** power * problem.kept_factor
                assert upper - lower <= 16 * row._members * largest / 2**bits


@pytest.mark.parametrize("bits", [110, 400])
def test_logits_err_by_less_than_lemma_w_says(bits: int) -> None:
    for seed in range(250, 310):
        head = drawn(seed)
        if seed % 2:
            head.query[:, 0], head.key[:, 0] = 2.0**40, 2.0**20
        problem, E = from_head(head), head.query.shape[1]
        (tile,) = problem.tiles(np.arange(1), 1)
        row, q = exact.Row(problem, tile), [Fraction(x) for x in head.query[0].tolist()]
        members = np.flatnonzero(head.seen()[0]).tolist()
        with balls.precision(3000):
            sigma = arb(E).rsqrt() if head.scale is None else arb(head.scale)
            for j, found in zip(members, row._logits(bits, range(len(members))), strict=True):
                k = head.key[j].tolist()
                s = sigma * balls.ball_of(sum((a * Fraction(b) for a, b in zip(q, k, strict=True)), Fraction(0)))
                s = s if head.softcap is None else head.softcap * (s / head.softcap).tanh()
                s += 0 if head.bias is None else float(head.bias[0, j])
                assert abs(s * arb(2) ** bits - found) < 3


# A tie of bfloat16 between 1 and 1 + 2^-7, and its neighbours.
TIE, EVEN, ODD = 1 + 2.0**-8, 1.0, 1 + 2.0**-7
ALMOST = 2.0**-40


def test_equal_logits_from_different_products() -> None:
    # 1 * 6 = 2 * 3: the mean of 1 and 1 + 2^-7.
    tied = of([[1.0, 2.0]], [[6.0, 0.0], [0.0, 3.0]], [[EVEN], [ODD]], scale=0.3)
    assert one(tied, "bfloat16") == EVEN
    beside = of([[1.0, 2.0]], [[6.0, 0.0], [0.0, np.nextafter(3.0, 4)]], [[EVEN], [ODD]], scale=0.3)
    assert one(beside, "bfloat16") == ODD
    beside = of([[1.0, 2.0]], [[6.0, 0.0], [0.0, np.nextafter(3.0, 0)]], [[EVEN], [ODD - ALMOST]], scale=0.3)
    assert one(beside, "bfloat16") == EVEN


@pytest.mark.parametrize(("E", "x", "b"), [(4, 1.0, 0.5), (9, 1.5, 0.5), (16, 3.0, 0.75)])
def test_the_root_of_a_square_is_a_rational_number(E: int, x: float, b: float) -> None:
    """x / 3 = 0.5 and the like: a product and a bias of one logit are one group, by default too."""
    query, key = np.zeros((1, E)), np.zeros((2, E))
    query[0, 0], key[0, 0] = 1.0, x
    assert one(of(query, key, [[EVEN], [ODD]], added=[[0.0, b]]), "bfloat16") == EVEN
    assert one(of(query, key, [[EVEN], [ODD]], added=[[0.0, np.nextafter(b, 1)]]), "bfloat16") == ODD
    # The sink has the logit of the first key, and value 0.
    tied = of(query, key[:1], [[2 * TIE]], sink=b)
    assert one(tied, "bfloat16") == EVEN
    assert one(of(query, key[:1], [[2 * TIE]], sink=float(np.nextafter(b, 1))), "bfloat16") == EVEN
    assert one(of(query, key[:1], [[2 * TIE]], sink=float(np.nextafter(b, 0))), "bfloat16") == ODD


@pytest.mark.parametrize("E", [2, 3, 5, 8, 12])
def test_an_irrational_scale_parts_products_and_biases(E: int) -> None:
    query, key = np.zeros((1, E)), np.zeros((2, E))
    query[0, 0], key[:, 0] = 1.0, 1.0
    # The nearest float64 to 1/sqrt(E) is not it: the bias alone decides, and which side is known beforehand.
    root = Fraction(1, E)
    b = 1 / math.sqrt(E)
    side = Fraction(b) ** 2 > root
    assert one(of(query, [key[0], 0 * key[0]], [[EVEN], [ODD]], added=[[0.0, b]]), "bfloat16") == (
        ODD if side else EVEN
    )
    # 1/E is no 1/sqrt(E): the key of product 1 outweighs that of bias 1/E, far below two keys that balance each other.
    four = [0 * key[0], 0 * key[0], key[0], 0 * key[0]]
    for amount, want in ((1.0, ODD), (-1.0, EVEN)):
        values = [[EVEN], [ODD], [TIE + amount], [TIE - amount]]
        assert one(of(query, four, values, added=[[1000.0, 1000.0, 0.0, 1 / E]]), "bfloat16") == want
    # Equal products and equal biases are one group, and the keys with product 0 are one with the sink.
    assert one(of(query, key, [[EVEN], [ODD]], added=[[0.7, 0.7]]), "bfloat16") == EVEN
    assert one(of(query, 0 * key[:1], [[2 * TIE]], sink=0.7, added=[[0.7]]), "bfloat16") == EVEN
    assert one(of(query, 0 * key[:1], [[2 * TIE]], sink=0.0), "bfloat16") == EVEN


def test_a_tie_goes_to_even_upwards_too() -> None:
    assert one(of([[0.0]], [[1.0], [1.0]], [[ODD], [ODD + 2.0**-7]]), "bfloat16") == ODD + 2.0**-7
    assert one(of([[0.0]], [[1.0], [1.0]], [[-ODD], [-ODD - 2.0**-7]]), "bfloat16") == -ODD - 2.0**-7
    assert one(of([[0.0]], [[1.0], [1.0]], [[65504.0], [65536.0]]), "float16") == INFINITY
    assert one(of([[0.0]], [[1.0], [1.0]], [[448.0], [480.0]]), "float8_e4m3fn") == 448.0
    assert math.isnan(one(of([[0.0]], [[1.0], [1.0]], [[448.0], [481.0]]), "float8_e4m3fn"))


def test_groups_may_balance_each_by_itself_only() -> None:
    # Two groups of two keys about the tie, whatever their weights.
    key = [[1.0], [1.0], [2.5], [2.5]]
    assert one(of([[0.9]], key, [[EVEN], [ODD], [TIE - 1], [TIE + 1]]), "bfloat16") == EVEN
    assert one(of([[0.9]], key, [[EVEN], [ODD], [TIE - 1], [TIE + 1 + ALMOST]]), "bfloat16") == ODD
    # Across the groups the amounts add up to nothing, but their weights differ.
    assert one(of([[0.9]], key[1:3], [[TIE + ALMOST], [TIE - ALMOST]]), "bfloat16") == EVEN
    assert one(of([[0.9]], key[1:3], [[TIE - ALMOST], [TIE + ALMOST]]), "bfloat16") == ODD


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.75])
def test_dropouts_factor_is_a_rational_number(p: float) -> None:
    # Two of four are kept: the mean is half of theirs, times 1 / (1 - p).
    keep = [[True, False, True, False]]
    for amount in (Fraction(0), Fraction(1, 2**50), Fraction(-1, 2**50)):
        v = np.array([[1.0], [5.0], [1.0], [7.0]])
        want = Fraction(1, 2) / (1 - Fraction(p)) * (1 + amount)
        v[2] += float(2 * amount)
        assert one(of([[0.0]], np.ones((4, 1)), v, kept=keep, dropout_p=p), "float64") == float(want)
    # 3 of 4 kept with p = 1/4: the factor 4/3 makes the mean of four a mean of three.
    tied = of([[0.0]], np.ones((4, 1)), [[EVEN], [ODD], [TIE], [9.0]], kept=[[True] * 3 + [False]], dropout_p=0.25)
    assert one(tied, "bfloat16") == EVEN


def test_the_sign_of_zero() -> None:
    def sign(x: float | None) -> float:
        assert x == 0
        return math.copysign(1, x)

    symmetric = [[1.0], [1.0]]
    assert sign(one(of([[0.3]], symmetric, [[1.0], [-1.0]]), "float64")) == 1
    assert sign(one(of([[0.3]], symmetric, [[-0.0], [-0.0]]), "float64")) == 1
    # The second key's weight is e^-2000, far below every dtype's smallest number.
    far = [[0.0], [-2000.0]]
    assert sign(one(of([[1.0]], far, [[0.0], [1.0]], scale=1.0), "float64")) == 1
    assert sign(one(of([[1.0]], far, [[0.0], [-1.0]], scale=1.0), "float64")) == -1
    assert sign(one(of([[1.0]], far, [[0.0], [-1.0]], scale=1.0), "float8_e4m3fnuz")) == 1
    assert sign(one(of([[1.0]], far, [[0.0], [-1.0]], kept=[[True, False]], dropout_p=0.5), "float64")) == 1
    assert sign(one(of([[1.0]], far, [[0.0], [-1.0]], sink=3.0, scale=1e12), "float64")) == -1
    assert sign(one(of([[1.0]], np.zeros((1, 1)), [[1.0]], visible=[[False]]), "float64")) == 1
    assert sign(one(of([[1.0]], np.zeros((1, 1)), [[1.0]], visible=[[False]], sink=0.0), "float64")) == 1


def test_weights_below_every_power_of_two_that_has_a_name_still_tip_a_tie() -> None:
    for exponent in (-50.0, -1e3, -1e6, -1e15, -1e300):
        for amount, want in ((1.0, ODD), (-1.0, EVEN)):
            problem = of([[1.0]], [[0.0], [0.0], [exponent]], [[EVEN], [ODD], [TIE + amount]], scale=1.0)
            assert one(problem, "bfloat16") == want


def test_logits_that_differ_in_their_last_bit_are_told_apart() -> None:
    large = 2.0**900
    for least, want in ((2.0**-1000, ODD), (-(2.0**-1000), EVEN), (5e-324, ODD), (0.0, EVEN)):
        problem = of([[large, 1.0]], [[large, 0.0], [large, least]], [[EVEN], [ODD]], scale=1.0)
        assert one(problem, "bfloat16") == want
    # A scale multiplies that once more.
    problem = of([[large, 1.0]], [[large, 0.0], [large, 5e-324]], [[EVEN], [ODD]], scale=2.0**-1000)
    assert one(problem, "bfloat16") == ODD


def test_a_sign_is_not_taken_from_what_is_cut_off() -> None:
    # 3 exp(-2^-1000) - exp(-2^-900) - 2 is positive, though both exponentials are cut to the same number at first.
    for sign, want in ((1, ODD), (-1, EVEN)):
        values = TIE + sign * 2.0**-20 * np.array([[-2.0], [3.0], [-1.0]])
        assert one(of([[-1.0]], [[0.0], [2.0**-1000], [2.0**-900]], values, scale=1.0), "bfloat16") == want


def test_the_ends_of_the_range() -> None:
    most = np.finfo(np.float64).max
    assert one(of([[most]], [[most], [-most]], [[1.0], [3.0]]), "float64") == 1.0
    assert one(of([[most]], [[most], [most]], [[most], [most]]), "float64") == most
    assert (
        one(of([[most]], [[most], [most]], [[most], [most]], kept=[[True, True]], dropout_p=0.5), "float64") == INFINITY
    )
    assert one(of([[0.0]], [[0.0], [0.0]], [[5e-324], [5e-324]]), "float64") == 5e-324
    # Half of the smallest number is a tie, and goes to zero.
    assert one(of([[0.0]], [[0.0], [0.0]], [[5e-324], [0.0]]), "float64") == 0.0
    assert one(of([[0.0]], [[0.0], [0.0]], [[1.5e-323], [0.0]]), "float64") == 1e-323
    assert one(of([[5e-324]], [[5e-324], [-5e-324]], [[EVEN], [ODD]], scale=5e-324), "bfloat16") == EVEN
    assert one(of([[5e-324]], [[-5e-324], [5e-324]], [[EVEN], [ODD]], scale=5e-324), "bfloat16") == ODD


def test_a_tie_under_softcap_is_found_where_products_are_equal() -> None:
    key = [[2.0], [2.0]]
    assert one(of([[0.7]], key, [[EVEN], [ODD]], softcap=3.0), "bfloat16") == EVEN
    assert one(of([[0.7]], np.zeros((1, 1)), [[2 * TIE]], softcap=3.0, sink=0.25, added=[[0.25]]), "bfloat16") == EVEN
    assert one(of([[0.7]], [[2.0], [2.0 + 2.0**-51]], [[EVEN], [ODD]], softcap=3.0), "bfloat16") == ODD


def test_what_2000_digits_do_not_tell_under_softcap_is_left_open() -> None:
    # tanh(1e5) and tanh(2e5) differ after 86,858 digits.
    problem = of([[1.0]], [[1e5], [2e5]], [[EVEN], [ODD]], scale=1.0, softcap=1.0)
    assert one(problem, "bfloat16") is None
    # As far as the digits reach, they tell: tanh(2200) and tanh(2300) differ after 1,910 digits.
    problem = of([[1.0]], [[2200.0], [2300.0]], [[EVEN], [ODD]], scale=1.0, softcap=1.0)
    assert one(problem, "bfloat16") == ODD
    assert exact.DIGITS >= 2000


def test_all_columns_of_a_row_and_all_rows_are_alike() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in ((3, 5), (300, 5), (300, 4)))
    problem = of(q, k, v, visible=rng.random((3, 300)) < 0.5)
    whole = rounded(problem, "float64")
    assert_same(rounded(problem, "float64", rows=[2, 0]), np.array(whole[[2, 0]], dtype=np.float64))
    for name in ("float32", "bfloat16"):
        assert_same(rounded(problem, name), round_floats(np.array(whole, dtype=np.float64), name))
