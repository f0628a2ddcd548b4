"""Softmax attention as its definition says it, in ball arithmetic (python-flint's `arb`). Imports nothing of refattn.

Every number is a ball that holds the real number which it stands for, whatever the precision; so each comparison here
either is proved or comes out as undecided, and then the precision is raised until it is decided.

Operands are float64 arrays, taken as exact; a scale of None is the real number 1/sqrt(E), and dropout's factor is the
real number 1 / (1 - p). Keys that no row sees are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeVar

import numpy as np
from flint import arb, arb_mat, ctx, fmpz

BITS = 192
# Where a comparison is still undecided there, its two sides are equal.
MOST_BITS = 12 * 1024

T = TypeVar("T")


class Row(NamedTuple):
    """Balls that hold one row's answer; None where an operand that it sees is not finite."""

    output: list[arb | None]
    lse: arb | None


@dataclass(frozen=True, eq=False)
class Head:
    """Some rows of one batch entry and head, as float64; cells are (R, S), None where there is nothing to say."""

    query: np.ndarray  # (R, E)
    key: np.ndarray  # (S, E)
    value: np.ndarray  # (S, Ev)
    scale: float | None = None
    softcap: float | None = None
    visible: np.ndarray | None = None
    bias: np.ndarray | None = None
    sink: float = -math.inf
    kept: np.ndarray | None = None
    dropout_p: float = 0.0

    def row(self, i: int) -> Head:
        """The same with row i alone."""
        cells = {
            name: None if (x := getattr(self, name)) is None else x[i : i + 1] for name in ("visible", "bias", "kept")
        }
        return Head(self.query[i : i + 1], self.key, self.value, self.scale, self.softcap, sink=self.sink,
                    dropout_p=self.dropout_p, **cells)  # fmt: skip

    def seen(self) -> np.ndarray:
        """Cells that take part, (R, S)."""
        shape = (len(self.query), len(self.key))
        return np.ones(shape, dtype=bool) if self.visible is None else np.broadcast_to(self.visible, shape)

    def size(self) -> float:
        """About log2 of the largest logit, at least 0."""
        exponents = [0]
        for x in (self.query, self.key):
            finite = np.where(np.isfinite(x), x, 0.0)
            exponents.append(int(np.frexp(np.abs(finite).max(initial=0.0))[1]))
        of_scale = 0 if self.scale is None else math.frexp(self.scale)[1]
        others = [0 if self.bias is None else int(np.frexp(np.abs(self.bias).max(initial=0.0))[1])]
        others.append(math.frexp(self.sink)[1] if math.isfinite(self.sink) else 0)
        return max(0, sum(exponents) + of_scale + self.query.shape[1].bit_length(), *others)


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Ball arithmetic of so many bits inside."""
    before = ctx.prec
    ctx.prec = bits
    try:
        yield
    finally:
        ctx.prec = before


def matrix(x: np.ndarray) -> arb_mat:
    """A matrix of exact balls; what is not finite counts as 0."""
    return arb_mat(*x.shape, np.where(np.isfinite(x), x, 0.0).ravel().tolist())


def enclose(head: Head, bits: int) -> list[Row]:
    """Balls around output and lse of every row, by arithmetic of `bits` bits."""
    (R, E), Ev = head.query.shape, head.value.shape[1]
    seen = head.seen()
    used = np.flatnonzero(seen.any(axis=0))
    seen = seen[:, used]
    finite = (np.isfinite(head.key[used]).all(axis=1), np.isfinite(head.value[used]))
    kept = None if head.kept is None else np.broadcast_to(head.kept, head.seen().shape)[:, used]
    added = None if head.bias is None else np.broadcast_to(head.bias, head.seen().shape)[:, used]
    with precision(bits):
        scale = arb(E).rsqrt() if head.scale is None else arb(head.scale)
        cap = None if head.softcap is None else arb(head.softcap)
        factor = 1 / (1 - arb(head.dropout_p))
        products = (matrix(head.query) * matrix(head.key[used].T)).entries() if len(used) else []
        weights, totals, lses = [], [], []
        for i in range(R):
            of_row = products[i * len(used) : (i + 1) * len(used)]
            columns = np.flatnonzero(seen[i]).tolist()
            scores = [of_row[j] * scale for j in columns]
            if cap is not None:
                scores = [cap * (s / cap).tanh() for s in scores]
            if added is not None:
                scores = [s + b for s, b in zip(scores, added[i, columns].tolist(), strict=True)]
            w, l, lse = _softmax(scores, head.sink)
            if kept is not None:
                w = [x * factor if k else arb(0) for x, k in zip(w, kept[i, columns], strict=True)]
            whole = [arb(0)] * len(used)
            for j, x in zip(columns, w, strict=True):
                whole[j] = x
            weights += whole
            totals.append(l)
            lses.append(lse)
        sums = (arb_mat(R, len(used), weights) * matrix(head.value[used])).entries() if len(used) else []
        answers = []
        for i in range(R):
            if not seen[i].any():
                answers.append(Row([arb(0)] * Ev, lses[i]))
            elif not (np.isfinite(head.query[i]).all() and finite[0][seen[i]].all()):
                answers.append(Row([None] * Ev, None))
            else:
                counted = seen[i] if kept is None else seen[i] & kept[i]
                good = finite[1][counted].all(axis=0)
                output = [sums[i * Ev + c] / totals[i] if good[c] else None for c in range(Ev)]
                answers.append(Row(output, lses[i]))
    return answers


def _softmax(scores: list[arb], sink: float) -> tuple[list[arb], arb, arb]:
    """Weights up to a common factor, their sum with the sink's, and the log-sum-exp."""
    logits = scores if sink == -math.inf else [*scores, arb(sink)]
    if not logits:
        return [], arb(0), arb.neg_inf()
    if not scores:
        return [], arb(1), arb(sink)
    # Any common shift is right; about the largest logit keeps the exponentials in range.
    shift = max((s.mid() for s in logits), default=arb(0))
    w = [(s - shift).exp() for s in logits]
    l = sum(w, arb(0))
    return w[: len(scores)], l, shift + l.log()


def within(high: float, low: float, radius: float, exact: arb) -> bool | None:
    """Whether |high + low - exact| <= radius; None where the ball is too wide to tell."""
    if not (math.isfinite(high) and math.isfinite(low)):
        return high == -math.inf and low == 0 and not exact.is_finite() and exact < 0
    error = abs(arb(high) + arb(low) - exact)
    if error <= arb(radius):
        return True
    return False if error > arb(radius) else None


def raised(head: Head, decide: Callable[[int, Row], T | None], most: int = MOST_BITS) -> list[T | None]:
    """What `decide(i, row)` says of every row i, from balls narrowed until it says something, or to `most` bits."""
    bits = BITS + int(head.size())
    with precision(bits):
        found = [decide(i, row) for i, row in enumerate(enclose(head, bits))]
    for i in range(len(found)):
        finer = bits
        while found[i] is None and finer < most:
            finer = min(2 * finer, most)
            with precision(finer):
                found[i] = decide(i, enclose(head.row(i), finer)[0])
    return found


class Format(NamedTuple):
    """A floating-point format: digits, exponent of its smallest normal number 1.f 2^lowest, and largest number."""

    digits: int
    lowest: int
    largest: float
    infinite: bool  # else NaN
    signed: bool = True  # whether there is a negative zero


FORMATS = {
    "float64": Format(53, -1022, math.ldexp(2 - 2.0**-52, 1023), True),
    "float32": Format(24, -126, math.ldexp(2 - 2.0**-23, 127), True),
    "float16": Format(11, -14, 65504.0, True),
    "bfloat16": Format(8, -126, math.ldexp(2 - 2.0**-7, 127), True),
    "float8_e4m3fn": Format(4, -6, 448.0, False),
    "float8_e5m2": Format(3, -14, 57344.0, True),
    "float8_e4m3fnuz": Format(4, -7, 240.0, False, False),
    "float8_e5m2fnuz": Format(3, -15, 57344.0, False, False),
}


def nearest(x: Fraction, name: str) -> float:
    """The number of the format nearest to x, ties to even; what rounds to zero keeps its sign, and 0 itself is +0."""
    digits, lowest, largest, infinite, signed = FORMATS[name]
    if x == 0:
        return 0.0
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    last = Fraction(2) ** (max(exponent, lowest) - digits + 1)
    count, rest = divmod(size, last)
    count += 2 * rest > last or (2 * rest == last and count % 2 == 1)
    rounded = count * last
    sign = -1.0 if x < 0 else 1.0
    if rounded > largest:
        return sign * math.inf if infinite else math.nan
    return sign * float(rounded) if rounded or signed else 0.0


def fraction(x: arb) -> Fraction:
    """The number that an exact ball holds."""
    mantissa, exponent = x.man_exp()
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def rounded(ball: arb, name: str) -> float | None:
    """What every number of the ball rounds to, or None where they do not agree."""
    if not ball.is_finite():
        return None
    if abs(ball) < arb(2) ** -1100:
        # Below half of every format's smallest number: only the sign matters, and an exponent may have 77 digits.
        return 0.0 if ball >= 0 else nearest(Fraction(-1, 2**1100), name) if ball < 0 else None
    low, high = (fraction(x) for x in (ball.lower(), ball.upper()))
    ends = nearest(low, name), nearest(high, name)
    if all(map(math.isnan, ends)):  # past the largest number, on the same side
        return math.nan if (low > 0) == (high > 0) else None
    return ends[0] if ends[0] == ends[1] and math.copysign(1, ends[0]) == math.copysign(1, ends[1]) else None


def boundary(ball: arb, name: str) -> tuple[Fraction, bool]:
    """The multiple of half a last place nearest to a ball's middle, and whether the rounding turns there."""
    if abs(ball) < arb(2) ** -1100 or abs(ball) > arb(2) ** 1100:
        return Fraction(0), ball.contains(0)
    low, high = (fraction(x) for x in (ball.lower(), ball.upper()))
    if low <= 0 <= high:
        return Fraction(0), True
    digits, lowest = FORMATS[name][:2]
    size = max(abs(low), abs(high))
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    half = Fraction(2) ** (max(exponent, lowest) - digits)
    count = round((low + high) / 2 / half)
    return count * half, count % 2 == 1


def correct(head: Head, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The correctly rounded output, (R, Ev), which elements lie exactly where the rounding turns, and which are known.

    All are known without softcap.
    """
    shape = len(head.query), head.value.shape[1]
    output, ties, known = np.full(shape, np.nan), np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    balls: dict[int, list[arb]] = {}

    def decide(i: int, row: Row) -> list[float] | None:
        balls[i] = row.output
        found = [rounded(x, name) for x in row.output]
        return None if None in found else found

    for i, found in enumerate(raised(head, decide, 1024 + int(head.size()))):
        for c, ball in enumerate(balls[i]):
            with precision(MOST_BITS):  # ends of balls are rounded to it
                value = rounded(ball, name) if found is None else found[c]
                at, turns = boundary(ball, name) if value is None or ball.is_exact() else (Fraction(0), False)
            if value is not None:
                output[i, c], ties[i, c] = value, turns
                continue
            side = beside(head.row(i), c, at)
            ties[i, c], known[i, c] = side == 0, side is not None
            output[i, c] = nearest(at + (side or 0) * Fraction(1, 2**1200), name)
    return output, ties, known


def beside(head: Head, column: int, at: Fraction) -> int | None:
    """The sign of one row's output less a number: 0 where they are equal, None where, with softcap, nothing tells.

        output - at = sum_j p_j (v_j - at)

    Keys of one logit go together, and those that are left out because their sum is 0 cancel nothing. By the theorem of
    Lindemann and Weierstrass the rest is 0 only if nothing is left, so that more bits tell its sign.
    """
    q = [Fraction(x) for x in head.query[0].tolist()]
    E = len(q)
    root = math.isqrt(E)
    scale = Fraction(1, root) if head.scale is None else Fraction(head.scale)
    rational = head.softcap is None and (head.scale is not None or root * root == E)
    factor = 1 / (1 - Fraction(head.dropout_p))
    members: list[tuple[Fraction, float, Fraction]] = []
    for j in np.flatnonzero(head.seen()[0]).tolist():
        product = sum((a * Fraction(b) for a, b in zip(q, head.key[j].tolist(), strict=True)), Fraction(0))
        kept = head.kept is None or np.broadcast_to(head.kept, head.seen().shape)[0, j]
        bias = 0.0 if head.bias is None else float(np.broadcast_to(head.bias, head.seen().shape)[0, j])
        members.append((product, bias, Fraction(float(head.value[j, column])) * factor * bool(kept) - at))
    if head.sink != -math.inf:
        members.append((Fraction(0), head.sink, -at))
    groups: dict[object, tuple[Fraction, float, Fraction]] = {}
    for product, bias, amount in members:
        logit = product * scale + Fraction(bias) if rational else (product, bias)
        groups[logit] = (product, bias, amount + groups.get(logit, (0, 0, Fraction(0)))[2])
    left = [x for x in groups.values() if x[2]]
    if not left:
        return 0
    bits = 512 + int(head.size())
    while bits < 2**15:
        with precision(bits):
            sigma = arb(E).rsqrt() if head.scale is None else arb(head.scale)
            logits = []
            for product, bias, _ in left:
                s = ball_of(product) * sigma
                logits.append((s if head.softcap is None else head.softcap * (s / head.softcap).tanh()) + bias)
            shift = max(s.mid() for s in logits)
            total = sum((ball_of(x[2]) * (s - shift).exp() for x, s in zip(left, logits, strict=True)), arb(0))
            if total > 0 or total < 0:
                return 1 if total > 0 else -1
        bits *= 2
    return None


def ball_of(x: Fraction) -> arb:
    """A ball around a fraction."""
    return arb(fmpz(x.numerator)) / arb(fmpz(x.denominator))
