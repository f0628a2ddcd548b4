"""Softmax attention as its definition says it: loops over Python floats and `math.fsum`. Imports nothing of refattn.

What is masked is not looked at; what is seen and not finite follows the arithmetic of the extended reals:

- a row that sees no key and has no sink is 0, its lse is -inf;
- a NaN among the scores that a row sees, or a score of +inf, makes its output NaN; so do scores that are all -inf;
- a value that is seen and NaN makes its column NaN, so do +inf and -inf together; one of them alone makes it infinite.

Every answer comes with a radius. Let u = 2^-53, and let a float64 evaluation of the same formula sum in any order,
fused or not, and take exp, log and tanh from a library that errs by at most 4 units in the last place (8u relative),
which is what NumPy documents and more than glibc, Sleef and SVML claim. Then, to first order in u:

- a score errs by  d_j = u ((E + 4) |scale| sum_t |q_t k_jt| + 10 c + 3 |s_j| + 3 |b_j|),  c the softcap: a dot product
  of E terms errs by E u sum |q k| in any order (Jeannerod & Rump 2013); scale, and 1/sqrt(E) itself, round 3 times;
  c tanh(x / c) has slope at most 1 in x, so its division adds u |x| sech^2(x / c) <= 0.45 u c, its tanh 8 u c and its
  product u c; a bias is rounded twice where it is made and once where it is added;
- exp(s_j - m) errs relatively by  t_j = expm1(d_j + u (m - s_j)) + 8u, and by 10 T u + u (m - s_j) more where the keys
  are cut into T tiles whose partial results are rescaled by exp(m_old - m_new), the maximum rising from s_j or more
  to m;
- with the centred identity  o^ - o = sum_j (p^_j - p_j) (v_j - o) / sum_j p^_j  the output errs by
  sum_j t_j p_j (|v_j| + |o|), and n + T sums, products and one quotient by (n + T + 4) u (sum_j p_j |v_j| + |o|);
- with dropout v_j stands for the value times 0 or 1 / (1 - p), which rounds 3 times: 3u sum_j p_j |v_j| more;
- lse = m + log l errs by  sum_j t_j p_j + (n + T) u + 8u |log l| + 2u (|m| + |lse|);
- a weight exp(s_j - lse) errs by  p_j (d_j + r_lse + u |s_j - lse| + 8u).

The second order is covered by the factor 1 + 4 t while t = max_j t_j + (n + T) u <= 1/4, and past that no claim is
made: the radius is infinite. A key that lies 700 below the maximum, errors included, counts with weight e^-700 in place
of its t_j. Underflow: each of at most n + E + T products and exponentials loses at most 2^-1074, times |v|. The loops
here are such an evaluation themselves, so they lie within the same radius of the real number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

U = 2.0**-53
TINY = 2.0**-1074
# Beyond this a sum of terms of both signs could pass the largest float64 on its way to a small result.
LARGE = 2.0**1020

Allowed = Callable[[tuple[int, ...], int, int], bool]
Bias = Callable[[tuple[int, ...], int, int], float]


class Row(NamedTuple):
    """One query's answer, its radii, and whether float64 arithmetic can hold all that leads to it."""

    output: list[float]
    lse: float
    weights: list[float]
    output_radius: list[float]
    lse_radius: float
    weights_radius: list[float]
    held: bool


class Answer(NamedTuple):
    """Answers of several rows, in the order asked for: (R, Ev), (R,), (R, S), and likewise their radii."""

    output: np.ndarray
    lse: np.ndarray
    weights: np.ndarray
    output_radius: np.ndarray
    lse_radius: np.ndarray
    weights_radius: np.ndarray
    held: np.ndarray


def total(terms: Iterable[float]) -> float:
    """Correctly rounded sum; of infinities and NaN what the extended reals say."""
    terms = list(terms)
    try:
        return math.fsum(terms)
    except (ValueError, OverflowError):
        rest = sum(x / 4 for x in terms) * 4
        return math.nan if math.inf in terms and -math.inf in terms else rest


def softmax(
    scores: Sequence[float],
    errors: Sequence[float],
    values: Sequence[Sequence[float]],
    Ev: int,
    sink: float = -math.inf,
    tiles: int = 1,
    factors: Sequence[float] | None = None,
) -> Row:
    """Softmax of the scores of the keys that a row sees, applied to their values; `errors` are the scores' d_j.

    `factors` are dropout's, 0 or 1 / (1 - p), one a key.
    """
    n = len(scores)
    if n == 0:
        return Row([0.0] * Ev, sink, [], [0.0] * Ev, 0.0, [], True)
    m = max([*scores, sink], key=lambda s: -math.inf if math.isnan(s) else s)
    broken = any(math.isnan(s) for s in scores)
    if broken or not math.isfinite(m):
        lse = math.nan if broken else m
        weights = [0.0 if s < m and not broken else math.nan for s in scores]
        return Row([math.nan] * Ev, lse, weights, [0.0] * Ev, 0.0, [0.0] * n, True)
    w = [math.exp(s - m) for s in scores]
    l = total([*w, math.exp(sink - m)])
    p, lse = [x / l for x in w], m + math.log(l)
    of_maximum = max((d for s, d in zip(scores, errors, strict=True) if s == m), default=0.0)
    # Negligible keys, among them those with a score of -inf; the error of their exponent may be of any size.
    far = [s + d + of_maximum < m - 700 for s, d in zip(scores, errors, strict=True)]
    moved = 10 * U * tiles if tiles > 1 else 0.0
    t = [
        0.0 if away else math.expm1(min(d + 2 * U * (m - s), 1.0)) + 8 * U + moved
        for s, d, away in zip(scores, errors, far, strict=True)
    ]
    faint = math.exp(-700) * sum(far)
    summed = (n + tiles + 1) * U
    most = max(t) + summed

    def widened(radius: float) -> float:
        return radius * (1 + 4 * most) if most <= 0.25 else math.inf

    lse_radius = widened(
        total(map(_times, t, p)) + faint + summed + 8 * U * abs(math.log(l)) + 2 * U * (abs(m) + abs(lse))
    )
    output, output_radius, held = [], [], True
    f = [1.0] * n if factors is None else factors
    dropped = factors is not None
    for column in range(Ev):
        v = [row[column] if f_j else 0.0 for row, f_j in zip(values, f, strict=True)]
        finite = [x for x in v if math.isfinite(x)]
        size = total(map(abs, finite)) * max(f, default=1.0)
        held = held and size <= LARGE
        if len(finite) < n:
            output.append(_infinite(v))
            output_radius.append(0.0)
            continue
        weighed = [p_j * f_j * v_j for p_j, f_j, v_j in zip(p, f, v, strict=True)]
        o, mean = total(weighed), total(map(abs, weighed))
        spread = total(t_j * (abs(x) + p_j * abs(o)) for t_j, p_j, x in zip(t, p, weighed, strict=True))
        lost = (faint + (n + tiles) * TINY) * (1 + size)
        output.append(o)
        output_radius.append(widened(spread + (summed + 3 * U) * (mean + abs(o)) + 3 * U * dropped * mean + lost))
    weights_radius = [
        math.exp(-700) if away else widened(x * (d + lse_radius + U * abs(s - lse) + 8 * U) + TINY)
        for x, s, d, away in zip(p, scores, errors, far, strict=True)
    ]
    return Row(output, lse, p, output_radius, lse_radius, weights_radius, held)


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    rows: Iterable[tuple[int, ...]] | None = None,
    allowed: Allowed | None = None,
    bias: Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Sequence[float] | None = None,
    kept: Allowed | None = None,
    dropout_p: float = 0.0,
    tiles: int = 1,
) -> Answer:
    """Attention of query (..., H, L, E), key (..., Hk, S, E), value (..., Hk, S, Ev), for all rows (..., h, i) or some.

    `allowed(index, i, j)`, `bias(index, i, j)` and `kept(index, i, j)` (dropout) get the index (..., h) of the head; a
    bias of -inf masks the cell.
    """
    H, _L, E = query.shape[-3:]
    Hk, S, Ev = value.shape[-3:]
    scale = 1 / math.sqrt(E) if scale is None else scale
    found = []
    for at in product(*map(range, query.shape[:-1])) if rows is None else rows:
        index, i = tuple(at[:-1]), at[-1]
        of_key = (*index[:-1], index[-1] // (H // Hk))
        seen = [j for j in range(S) if allowed is None or allowed(index, i, j)]
        added = {j: 0.0 if bias is None else bias(index, i, j) for j in seen}
        seen = [j for j in seen if added[j] > -math.inf]
        q = query[(*index, i)].tolist()
        scored = [_score(q, key[(*of_key, j)].tolist(), scale, softcap, added[j]) for j in seen]
        values = [value[(*of_key, j)].tolist() for j in seen]
        factors = None if kept is None else [1 / (1 - dropout_p) if kept(index, i, j) else 0.0 for j in seen]
        sink = -math.inf if sinks is None else float(sinks[index[-1]])
        row = softmax([s for s, _, _ in scored], [d for _, d, _ in scored], values, Ev, sink, tiles, factors)
        found.append(_widened(row, seen, S)._replace(held=row.held and all(held for _, _, held in scored)))
    shapes = ((Ev,), (), (S,), (Ev,), (), (S,), ())
    kinds = [np.float64] * 6 + [np.bool_]
    columns = zip(_columns(found), shapes, kinds, strict=True)
    return Answer(*(np.array(x, dtype=kind).reshape(len(found), *shape) for x, shape, kind in columns))


def _score(
    q: list[float], k: list[float], scale: float, softcap: float | None, bias: float
) -> tuple[float, float, bool]:
    """A score, its d_j, and whether all that leads to it stays far inside float64's range."""
    products = list(map(_times, q, k))
    raw = total(products) * scale
    size = total(abs(x) for x, a, b in zip(products, q, k, strict=True) if math.isfinite(a) and math.isfinite(b))
    s = raw if softcap is None else softcap * math.tanh(raw / softcap)
    error = (len(q) + 4) * abs(scale) * size + 10 * (softcap or 0.0) + 3 * abs(s) + 3 * abs(bias)
    held = size * max(1.0, abs(scale)) <= LARGE and abs(bias) <= LARGE
    s += bias
    return s, error * U + len(q) * TINY * (1 + abs(scale)) if math.isfinite(s) else 0.0, held


def _widened(row: Row, seen: list[int], S: int) -> Row:
    """Weights of the keys that are seen as weights of all keys: those of the others are 0."""
    weights, radius = [0.0] * S, [0.0] * S
    for j, x, r in zip(seen, row.weights, row.weights_radius, strict=True):
        weights[j], radius[j] = x, r
    return row._replace(weights=weights, weights_radius=radius)


def _columns(rows: list[Row]) -> list[list[object]]:
    """Field by field instead of row by row."""
    return [[row[field] for row in rows] for field in range(len(Row._fields))]


def _infinite(v: list[float]) -> float:
    """The weighted mean of values that are not all finite, all weights positive."""
    if any(map(math.isnan, v)) or (math.inf in v and -math.inf in v):
        return math.nan
    return math.inf if math.inf in v else -math.inf


def _times(a: float, b: float) -> float:
    """a * b."""
    return a * b
