"""The exact tier: one row in integers and fixed point, rounded correctly whatever it takes. Theorem T of README.md.

Members of a row are the keys that it sees and its sink, which has the score 0, the sink's logit for a bias, and the
value 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from refattn.oracle.fixed_point import GUARD, WEIGHT_ERROR, exponentials
from refattn.oracle.integers import integers, products
from refattn.oracle.problem import Problem, Tile
from refattn.oracle.rounding import round_fraction, turns

# Bits of the weights: doubled until the answer is known, and with softcap to 2000 digits at most.
FIRST_BITS = 104
MOST_BITS = 6656
DIGITS = int(MOST_BITS * math.log10(2))


@dataclass(frozen=True)
class _Factor:
    """The real number rational * sqrt(root), by which an integer is multiplied."""

    rational: Fraction
    root: int = 1

    def times(self, x: Sequence[int], bits: int) -> list[int]:
        """Products in units of 2^-bits, each within 1.25 units."""
        multiple, power = self.rational, bits
        if self.root != 1:
            # The root is cut off where it adds at most a quarter of a unit to any product.
            largest = max((abs(y) for y in x), default=0) * abs(multiple)
            more = bits + int(largest).bit_length() + 2
            multiple *= math.isqrt(self.root << 2 * more)
            power = bits - more
        above, below = multiple.numerator << max(0, power), multiple.denominator << max(0, -power)
        if below & (below - 1) == 0:
            shift = below.bit_length() - 1
            return [y * above >> shift for y in x]
        return [y * above // below for y in x]


class Row:
    """One row of attention: its members' logits as exact numbers, and what is found of them so far."""

    def __init__(self, problem: Problem, tile: Tile) -> None:
        """Read the only row of the tile; what it sees has to be finite."""
        seen = tile.keys if tile.visible is None else tile.keys.start + np.flatnonzero(tile.visible[0])
        cells = slice(None) if tile.visible is None else tile.visible[0]
        self._problem, self._value = problem, problem.value[seen]
        self._kept = None if tile.kept is None else tile.kept[0][cells]
        self._scores, power = products(problem.query[tile.queries][0], problem.key[seen])
        n = len(self._scores)
        biases = np.zeros(n) if tile.bias is None else np.array(tile.bias[0][cells], dtype=np.float64)
        if problem.sink != -math.inf:
            self._scores.append(0)
            biases = np.append(biases, problem.sink)
        self._keys, self._members = n, len(self._scores)
        self._biases, self._bias_power = integers(biases)
        sigma = _sigma(problem.scale, problem.query.shape[1])
        self._factor = _Factor(sigma.rational * Fraction(2) ** power, sigma.root)
        if self._factor.rational == 0:
            self._scores = [0] * self._members
        self._weights: dict[int, tuple[list[int], int]] = {}

    def rounded(self, column: int, name: str) -> float | None:
        """One column's number rounded to the dtype called `name`; None where, with softcap, MOST_BITS do not tell."""
        if not self._keys:
            return 0.0
        values, power = self._values(column)
        bits, most = FIRST_BITS, math.inf if self._problem.softcap is None else MOST_BITS
        while True:
            lower, upper = self._enclosure(values, power, bits)
            between = turns(lower, upper, name)
            if not between:
                return round_fraction(lower, name)
            if len(between) == 1:
                break
            bits *= 2
        side = self._side(values, power, between[0], most)
        if side is None:
            return None
        return round_fraction((lower, between[0], upper)[side + 1], name)

    def _values(self, column: int) -> tuple[list[int], int]:
        """Members' values in a column as integers times a power of two; 0 where dropped, without dropout's factor."""
        x = self._value[:, column]
        if self._kept is not None:
            x = np.where(self._kept, x, 0.0)
        values, power = integers(x)
        return values + [0] * (self._members - self._keys), power

    def _enclosure(self, values: list[int], power: int, bits: int) -> tuple[Fraction, Fraction]:
        """Bounds of the output: lemma V."""
        if bits not in self._weights:
            self._weights[bits] = self._from_largest(bits)
        weights, total = self._weights[bits]
        N = sum(w * v for w, v in zip(weights, values, strict=True))
        error, L_error = WEIGHT_ERROR * sum(map(abs, values)), WEIGHT_ERROR * self._members
        factor = self._problem.kept_factor * Fraction(2) ** power
        lower, upper = N - error, N + error
        return (
            factor * Fraction(lower, total + L_error if lower >= 0 else total - L_error),
            factor * Fraction(upper, total - L_error if upper >= 0 else total + L_error),
        )

    def _side(self, values: list[int], power: int, turn: Fraction, most: float) -> int | None:
        """The sign of output - turn: theorem T. None where `most` bits do not tell."""
        # Dropout's factor is divided out of both: its inverse, 1 - p, is a binary fraction.
        level = turn / self._problem.kept_factor
        common = min(power, 1 - level.denominator.bit_length())
        at = int(level / Fraction(2) ** common)
        groups: dict[object, list[int]] = {}
        for i, (logit, value) in enumerate(zip(self._exact_logits(), values, strict=True)):
            group = groups.setdefault(logit, [i, 0])
            group[1] += (value << power - common) - at
        left = [(i, amount) for i, amount in groups.values() if amount]
        if not left:
            return 0
        members, amounts = [i for i, _ in left], [amount for _, amount in left]
        error = WEIGHT_ERROR * sum(map(abs, amounts))
        bits = FIRST_BITS
        while bits <= most:
            weights = self._from_largest(bits, members)[0]
            balance = sum(w * amount for w, amount in zip(weights, amounts, strict=True))
            if abs(balance) > error:
                return 1 if balance > 0 else -1
            bits *= 2
        return None

    def _exact_logits(self) -> Sequence[object]:
        """What is equal for two members only if their logits are; without softcap, exactly if they are."""
        factor = self._factor
        if self._problem.softcap is not None or factor.root != 1:
            return list(zip(self._scores, self._biases, strict=True))
        # Logits times the denominators of the factor and of the biases.
        a = factor.rational.numerator << max(0, -self._bias_power)
        b = factor.rational.denominator << max(0, self._bias_power)
        return [x * a + y * b for x, y in zip(self._scores, self._biases, strict=True)]

    def _from_largest(self, bits: int, members: Sequence[int] | None = None) -> tuple[list[int], int]:
        """Weights of some members, all of them by default, relative to the largest, and their sum: lemma V."""
        logits = self._logits(bits + GUARD, range(self._members) if members is None else members)
        largest = max(logits)
        weights = exponentials([s - largest for s in logits], bits)
        return weights, sum(weights)

    def _logits(self, bits: int, members: Sequence[int]) -> list[int]:
        """Logits in units of 2^-bits, within 3 units: lemma V."""
        scores = [self._scores[i] for i in members]
        cap = self._problem.softcap
        logits = self._factor.times(scores, bits) if cap is None else self._capped(scores, Fraction(cap), bits)
        if any(self._biases):
            biases = _Factor(Fraction(2) ** self._bias_power).times([self._biases[i] for i in members], bits)
            logits = [s + b for s, b in zip(logits, biases, strict=True)]
        return logits

    def _capped(self, scores: list[int], cap: Fraction, bits: int) -> list[int]:
        """Scores s as cap tanh(s / cap) in units of 2^-bits, within 1.5 units: lemma V."""
        fine = bits + max(0, int(cap).bit_length()) + 3
        twice = _Factor(abs(self._factor.rational) * 2 / cap, self._factor.root)
        exponents = [-y for y in twice.times([abs(x) for x in scores], fine + GUARD)]
        one = 1 << fine
        above, below = cap.numerator << bits, cap.denominator
        size = [(one - w) * above // ((one + w) * below) for w in exponentials(exponents, fine)]
        negative = self._factor.rational < 0
        return [-s if (x < 0) != negative else s for x, s in zip(scores, size, strict=True)]


def _sigma(scale: float | None, E: int) -> _Factor:
    """The factor on the scores: rational where it was given, or where E is a square."""
    if scale is not None:
        return _Factor(Fraction(scale))
    root = math.isqrt(E)
    return _Factor(Fraction(1, root)) if root * root == E else _Factor(Fraction(1, E), E)
