"""The oracle of these tests against rational arithmetic and 60-digit decimals, and its definitions case by case."""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from tests import oracle

INF, NAN = math.inf, math.nan


def exact(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: np.ndarray | None = None,
    sink: float | None = None,
) -> tuple[list[Decimal], Decimal, list[Decimal]]:
    """Output, lse and weights of one row that sees every key: 60 digits, sums of rationals."""

    def decimal(x: Fraction) -> Decimal:
        return Decimal(x.numerator) / Decimal(x.denominator)

    with localcontext(Context(prec=60)):
        factor = 1 / Decimal(len(q)).sqrt() if scale is None else Decimal(scale)
        scores = []
        for j, k in enumerate(keys):
            s = factor * decimal(sum((Fraction(a) * Fraction(b) for a, b in zip(q, k, strict=True)), Fraction(0)))
            if softcap is not None:
                e = (2 * s / Decimal(softcap)).exp()
                s = Decimal(softcap) * (e - 1) / (e + 1)
            scores.append(s if bias is None else s + Decimal(float(bias[j])))
        w = [s.exp() for s in scores]
        Z = sum(w) + (Decimal(0) if sink is None else Decimal(sink).exp())
        output = [sum(a * Decimal(float(b)) for a, b in zip(w, v, strict=True)) / Z for v in values.T]
        return output, Z.ln(), [x / Z for x in w]


VARIANTS = {
    "plain": {},
    "scale": {"scale": -0.3},
    "softcap": {"softcap": 2.5},
    "bias": {"bias": True},
    "sink": {"sink": 0.7},
    "all": {"scale": 0.9, "softcap": 5.0, "bias": True, "sink": -1.2},
}


def error_over_radius(variant: str, size: float, seed: int, *, wrong: float = 1.0) -> float:
    """The largest error of an answer over its radius, with scores of about `size`; `wrong` multiplies the scale."""
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(1, 1, 6)) * size, rng.normal(size=(1, 9, 6)), rng.normal(size=(1, 9, 3))
    chosen = dict(VARIANTS[variant])
    b = rng.normal(size=9) if chosen.pop("bias", False) else None
    sink = chosen.pop("sink", None)
    output, lse, weights = exact(q[0, 0], k[0], v[0], **chosen, bias=b, sink=sink)
    scale = chosen.pop("scale", 1 / math.sqrt(6)) * wrong
    bias = None if b is None else lambda index, i, j: float(b[j])
    got = oracle.attention(q, k, v, **chosen, scale=scale, bias=bias, sinks=None if sink is None else [sink])
    assert got.held.all()
    pairs = [*zip(got.output[0], got.output_radius[0], output, strict=True), (got.lse[0], got.lse_radius[0], lse)]
    pairs += zip(got.weights[0], got.weights_radius[0], weights, strict=True)
    return max(float(abs(Decimal(float(x)) - y)) / r for x, r, y in pairs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
def test_within_its_radius_of_the_real_number(variant: str, size: float) -> None:
    assert max(error_over_radius(variant, size, seed) for seed in range(10)) <= 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_radius_is_not_idle(variant: str) -> None:
    # 2**-40 off in the scale is far more than float64 rounds and far less than any test here must tell apart.
    assert max(error_over_radius(variant, 1.0, seed, wrong=1 + 2.0**-40) for seed in range(10)) > 1


@pytest.mark.parametrize("tiles", [2, 3, 9])
def test_the_radius_covers_rescaled_tiles(tiles: int) -> None:
    rng = np.random.default_rng(tiles)
    scores, v = np.sort(rng.normal(size=9)) * 20, rng.normal(size=(9, 1))
    m, l, O = -INF, 0.0, 0.0
    for part in np.array_split(np.arange(9), tiles):
        top = max(m, scores[part].max())
        p = np.exp(scores[part] - top)
        m, l, O = top, l * math.exp(m - top) + p.sum(), O * math.exp(m - top) + p @ v[part, 0]
    row = oracle.softmax(scores.tolist(), [0.0] * 9, v.tolist(), 1, tiles=tiles)
    assert abs(O / l - row.output[0]) <= 2 * row.output_radius[0]


DEFINITIONS = {
    "no key": ([], [], -INF, 0.0, -INF, []),
    "no key but a sink": ([], [], 1.5, 0.0, 1.5, []),
    "one key": ([7.0], [3.0], -INF, 3.0, 7.0, [1.0]),
    "two equal keys": ([1.0, 1.0], [2.0, 4.0], -INF, 3.0, 1 + math.log(2), [0.5, 0.5]),
    "a key and an equal sink": ([1.0], [4.0], 1.0, 2.0, 1 + math.log(2), [0.5]),
    "a score of -inf": ([-INF, 0.0], [9.0, 4.0], -INF, 4.0, 0.0, [0.0, 1.0]),
    "all scores -inf": ([-INF, -INF], [9.0, 4.0], -INF, NAN, -INF, [NAN, NAN]),
    "all scores -inf and a sink": ([-INF, -INF], [9.0, 4.0], 0.0, 0.0, 0.0, [0.0, 0.0]),
    "a score of +inf": ([INF, 0.0], [9.0, 4.0], -INF, NAN, INF, [NAN, 0.0]),
    "a score of NaN": ([NAN, 0.0], [9.0, 4.0], -INF, NAN, NAN, [NAN, NAN]),
    "a score of NaN below one of +inf": ([INF, NAN], [9.0, 4.0], -INF, NAN, NAN, [NAN, NAN]),
    "a value of NaN": ([0.0, 0.0], [NAN, 4.0], -INF, NAN, math.log(2), [0.5, 0.5]),
    "a value of -inf with a weight below float64": ([-800.0, 0.0], [-INF, 4.0], -INF, -INF, 0.0, [0.0, 1.0]),
    "values of both infinities": ([0.0, 0.0], [INF, -INF], -INF, NAN, math.log(2), [0.5, 0.5]),
}


@pytest.mark.parametrize("case", DEFINITIONS)
def test_definition(case: str) -> None:
    scores, values, sink, output, lse, weights = DEFINITIONS[case]
    row = oracle.softmax(scores, [0.0] * len(scores), [[v] for v in values], 1, sink)
    np.testing.assert_array_equal(row.output, [output])
    np.testing.assert_array_equal(row.lse, lse)
    np.testing.assert_array_equal(row.weights, weights)
    assert row.held


def test_what_is_masked_is_not_looked_at() -> None:
    q = np.ones((1, 1, 2))
    k, v = np.array([[[1.0, 1.0], [NAN, 0.0], [INF, 1.0]]]), np.array([[[5.0], [NAN], [INF]]])
    got = oracle.attention(q, k, v, allowed=lambda index, i, j: j != 1, bias=lambda index, i, j: -INF if j == 2 else 0)
    assert got.output.tolist() == [[5.0]]
    assert got.weights.tolist() == [[1.0, 0.0, 0.0]]


def test_a_head_reads_the_key_head_of_its_group() -> None:
    q, k = np.zeros((6, 1, 1)), np.zeros((2, 1, 1))
    v = np.array([10.0, 20.0]).reshape(2, 1, 1)
    assert oracle.attention(q, k, v).output.ravel().tolist() == [10, 10, 10, 20, 20, 20]


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [([1e200, 1e200], [1e200, -1e200], 1.0), ([1.0, 1.0], [1.0, 1.0], 1.7e308), ([1e308, 1.0], [1.0, 1.0], 1.0)],
)
def test_what_float64_may_not_hold_is_said(q: list[float], k: list[float], v: float) -> None:
    got = oracle.attention(np.array([[q]]), np.array([[k]]), np.array([[[v]]]))
    assert got.held.tolist() == [False]


def test_far_keys_do_not_spoil_the_radius() -> None:
    # The rounding of a bias of -1e38 is far greater than 1; the key's weight is 0 all the same.
    row = oracle.softmax([0.0, -1e38], [1e-15, 1e23], [[1.0], [5.0]], 1)
    assert row.output == [1.0]
    assert row.output_radius[0] < 2.0**-40
