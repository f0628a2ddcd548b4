"""The reference in balls: against loops over Python floats, and its rounding against NumPy's and ml_dtypes' casts."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests import oracle
from tests.certified import balls, corners, kinds


def middle(x: balls.arb) -> float:
    """A float near the ball."""
    return -math.inf if not x.is_finite() else float(x.mid())


@pytest.mark.parametrize("kind", [k for k in corners.KINDS if k.__name__ != "long"], ids=lambda kind: kind.__name__)
def test_balls_lie_within_the_radii_of_the_float64_loops(kind):
    """Two definitions written apart, one of them trusting math.exp: they agree in every kind of problem."""
    for seed in range(6):
        case = kind(kinds.kind_rng(kind, seed))
        for _, head in case.heads():
            cells = [None if x is None else np.broadcast_to(x, head.seen().shape) for x in
                     (head.visible, head.bias, head.kept)]  # fmt: skip
            visible, bias, kept = cells
            want = oracle.attention(
                head.query[None], head.key[None], head.value[None],
                allowed=None if visible is None else lambda _, i, j, visible=visible: visible[i, j],
                bias=None if bias is None else lambda _, i, j, bias=bias: float(bias[i, j]),
                scale=head.scale, softcap=head.softcap, sinks=[head.sink],
                kept=None if kept is None else lambda _, i, j, kept=kept: kept[i, j], dropout_p=head.dropout_p,
            )  # fmt: skip
            bits = balls.BITS + int(head.size())
            for i, row in enumerate(balls.enclose(head, bits)):
                if not want.held[i] or row.lse is None:
                    continue
                with balls.precision(bits):
                    found = [*map(middle, (x for x in row.output if x is not None)), middle(row.lse)]
                good = [x is not None for x in row.output]
                expected = np.append(want.output[i][good], want.lse[i])
                radius = np.append(want.output_radius[i][good], want.lse_radius[i])
                with np.errstate(invalid="ignore"):
                    assert ((np.abs(found - expected) <= radius * 1.001 + 1e-307) | (found == expected)).all()


def test_softmax_of_logarithms_is_what_it_should_be():
    """Weights 1 : 2 : 5, whose logits no format holds: the ball of the answer lies about the fraction."""
    with balls.precision(256):
        logits = [balls.arb(n).log() for n in (1, 2, 5)]
        w, l, lse = balls._softmax(logits, 0.0)
        assert abs(w[2] / l - balls.arb(5) / 9) < 1e-70
        assert abs(lse - balls.arb(9).log()) < 1e-70


@pytest.mark.parametrize("name", [name for name in balls.FORMATS if name != "float64"])
def test_nearest_is_the_cast_to_a_format(name):
    """Random numbers, numbers of the format, and midpoints between them, from float64."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    digits, lowest, largest = balls.FORMATS[name][:3]
    top = math.frexp(largest)[1]
    units = np.ldexp(1.0, rng.integers(lowest - 2, top + 1, 3000) - digits)
    x = units * rng.integers(-(2 ** (digits + 1)), 2 ** (digits + 1), 3000)
    if name == "bfloat16" or name.startswith("float8"):
        # ml_dtypes casts float64 by way of float32: only what float32 holds is rounded once.
        x = x[np.abs(x) < 2.0**127].astype(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        want = x.astype(dtype).astype(np.float64)
    got = np.array([balls.nearest(Fraction(a), name) for a in x.tolist()])
    np.testing.assert_array_equal(got, want)
    assert (np.signbit(got) == np.signbit(want))[(x != 0) & ~np.isnan(want)].all()


def test_nearest_of_fractions_is_what_python_makes_of_them():
    """float64: Python divides integers with one rounding."""
    rng = np.random.default_rng(1)
    for p, q in rng.integers(1, 2**62, (2000, 2)).tolist():
        assert balls.nearest(Fraction(p, q), "float64") == p / q
    assert balls.nearest(Fraction(1, 2**1075), "float64") == 0.0
    assert balls.nearest(Fraction(3, 2**1076), "float64") == 2.0**-1074
    assert balls.nearest(Fraction(2) ** 1024, "float64") == math.inf


@pytest.mark.parametrize(
    ("high", "low", "radius", "verdict"),
    [(1.0, 0.0, 0.0, True), (1.0, 1e-300, 0.0, False), (1.0, 1e-300, 1e-300, True), (1.0, 2e-300, 1e-300, False),
     (math.nan, 0.0, 1.0, False), (math.inf, 0.0, 1.0, False), (1.0, 1e-50, 0.5e-50, False)],
)  # fmt: skip
def test_a_number_is_within_its_radius_exactly(high, low, radius, verdict):
    """Against the exact number 1: no rounding of the comparison itself."""
    with balls.precision(1200):
        assert balls.within(high, low, radius, balls.arb(1)) is verdict


def test_a_ball_that_is_too_wide_decides_nothing():
    """Neither true nor false, but None."""
    with balls.precision(64):
        wide = balls.arb(1, 1e-10)
        assert balls.within(1.0, 0.0, 1e-12, wide) is None
        assert balls.within(1.0, 0.0, 1e-9, wide) is True
        assert balls.within(1.0, 1e-8, 1e-9, wide) is False
        assert balls.rounded(wide, "float64") is None
        assert balls.rounded(wide, "bfloat16") == 1.0
        assert balls.rounded(balls.arb(0, 1e-10), "bfloat16") is None


def test_what_lies_beside_a_midpoint_is_told_from_it():
    """A bfloat16 midpoint, and the same moved by weights of exp(-1e8), which no number of bits tells apart."""
    key = np.array([[0.0], [-1.0]])
    value = np.array([[1 + 2.0**-8, -(1 + 2.0**-8), 1 + 2.0**-8, 464.0], [5.0, 0.0, 1 + 2.0**-8, -1.0]])
    head = balls.Head(np.array([[1e8]]), key, value, scale=1.0)
    output, ties, known = balls.correct(head, "bfloat16")
    assert output.tolist() == [[1 + 2.0**-7, -1.0, 1.0, 464.0]]
    assert ties.tolist() == [[False, False, True, False]]
    assert known.all()
    assert balls.correct(head, "float8_e4m3fn")[0][0, 3] == 448.0


def test_numbers_past_both_ends_of_a_format_are_not_all_one():
    """Not a number on either side of zero, and of no sign between them."""
    with balls.precision(64):
        assert balls.rounded(balls.arb(0, 1e6), "float8_e4m3fn") is None
        assert math.isnan(balls.rounded(balls.arb(1e6, 1), "float8_e4m3fn"))
        assert balls.rounded(balls.arb(-1e6, 1), "float8_e5m2") == -math.inf
