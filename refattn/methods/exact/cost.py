"""What exact attention costs: the reference as it is written, and the standard algorithm in passes over memory.

Counts are exact: every cell is computed, masked or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from refattn._core.cost import STATISTIC, Cost, Tally, Work, untiled

WORD = 8  # bytes of a float64


class _Arrays(Tally):
    """Array operations of `reference.py`: each reads its operands once and writes its result, in float64."""

    def each(self, kind: str, n: int, *others: int) -> None:
        """One operation for each of n results, of n numbers and operands of other sizes."""
        self.does(**{kind: n})
        self.moves(WORD * (n + sum(others)), WORD * n)

    def tests(self, n: int) -> None:
        """One comparison for each of n numbers, with a boolean result."""
        self.does(compare=n)
        self.moves(WORD * n, n)

    def selects(self, n: int, flags: int, *operands: int) -> None:
        """`where`: n results, by that many flags."""
        self.does(select=n)
        self.moves(flags + WORD * sum(operands), WORD * n)

    def reduces(self, kind: str, n: int, r: int) -> None:
        """A sum or maximum of n numbers in r rows."""
        self.does(**{kind: n})
        self.moves(WORD * n, WORD * r)

    def product(self, n: int, inner: int, a: int, b: int) -> None:
        """A product of matrices with n elements, of operands of a and b."""
        self.does(multiply_add=n * inner)
        self.moves(WORD * (a + b), WORD * n)


def reference(work: Work) -> Cost:
    """`reference.py`, every array operation for itself.

    Tiles of mask, bias and dropout are read; what it takes to make them is not counted.
    """
    untiled(work, "reference")
    n, r, (q, k, v, o) = work.cells, work.rows, work.elements
    tally = _Arrays()
    for size, count, name in zip(work.dtype_bytes, (q, k, v), work.dtypes, strict=False):
        if name != "float64":
            tally.moves(size * count, WORD * count)
    _score(tally, work)
    _kept(tally, work)
    tally.moves(0, WORD * (2 * r + o))  # empty_state
    if work.cells:
        _update(tally, work)
    _finish(tally, work)
    if work.dtypes[3] != "float64":
        tally.moves(WORD * o, work.operand_bytes[3])
    if work.return_weights:
        _score(tally, work)
        _weights(tally, n, r)
        if work.dtypes[3] != "float64":
            tally.moves(WORD * n, work.dtype_bytes[3] * n)
    return tally.cost(work, "reference", _peak(work))


def _score(tally: _Arrays, work: Work) -> None:
    """`Score.parts` and `Score.__call__`."""
    n, (q, k, *_) = work.cells, work.elements
    tally.product(n, work.features[0], q, k)
    tally.each("multiply", n)
    if work.softcap:
        tally.each("divide", n)
        tally.each("tanh", n)
        tally.each("multiply", n)
    if work.bias is not None:
        tally.each("compare", work.bias.size)
        tally.each("add", n, work.bias.size)
    tally.each("compare", n)
    if work.masked is not None:
        tally.selects(n, work.masked.size, n)


def _kept(tally: _Arrays, work: Work) -> None:
    """`Score.kept`."""
    if work.dropout is not None:
        tally.moves(work.dropout.size, WORD * work.dropout.size)
        tally.each("multiply", work.dropout.size)


def _finite(tally: _Arrays, n: int) -> None:
    """`_finite` of n maxima."""
    tally.tests(n)
    tally.selects(n, n, n)


def _rescaled(tally: _Arrays, n: int, size: int, r: int) -> None:
    """`_rescaled`: an output of `size` numbers by r factors, n results."""
    tally.tests(size)
    tally.does(multiply=n)
    tally.moves(WORD * (size + r), WORD * n)
    tally.selects(n, size, n, size)


def _update(tally: _Arrays, work: Work) -> None:
    """`update` of the empty state by all keys, none of whose values is infinite or NaN."""
    n, r, (_, _, v, o) = work.cells, work.rows, work.elements
    tally.reduces("compare", n, r)
    tally.each("compare", r, r)
    _finite(tally, r)
    tally.each("add", n, r)
    tally.each("exp", n)
    _finite(tally, r)
    tally.each("add", r, r)
    tally.each("exp", r)
    tally.each("multiply", r, r)
    tally.reduces("add", n, r)
    tally.each("add", r, r)
    _rescaled(tally, o, o, r)
    if work.dropout is not None:
        tally.each("multiply", n, work.dropout.size)
    tally.tests(v)
    tally.does(logic=v)
    tally.moves(v, 1)
    tally.product(o, work.lengths[1], n, v)
    tally.each("add", o, o)


def _sink(tally: _Arrays, work: Work) -> None:
    """`merge` with the state of the sink, whose H numbers are broadcast to r rows."""
    r, o, h = work.rows, work.elements[3], work.heads[0]
    tally.tests(h)
    tally.moves(h, WORD * h)  # astype
    tally.moves(0, WORD * h)  # zeros_like
    tally.does(compare=r)
    tally.moves(WORD * (r + h), WORD * r)
    for others in (r, h):
        _finite(tally, r)
        tally.does(add=r)
        tally.moves(WORD * (r + others), WORD * r)
        tally.each("exp", r)
    tally.each("multiply", r, r)
    tally.does(multiply=r)
    tally.moves(WORD * (r + h), WORD * r)
    tally.each("add", r, r)
    _rescaled(tally, o, o, r)
    _rescaled(tally, r, h, r)
    tally.each("add", o, r)


def _finish(tally: _Arrays, work: Work) -> None:
    """`finish`."""
    r, o = work.rows, work.elements[3]
    if work.sinks:
        _sink(tally, work)
    tally.tests(r)
    tally.selects(r, r, r)
    tally.each("divide", o, r)
    tally.selects(o, r, o)
    tally.tests(r)
    tally.tests(r)
    tally.does(logic=2 * r)
    tally.moves(3 * r, 2 * r)
    tally.selects(o, r, o)
    tally.tests(r)
    tally.selects(r, r, r)
    tally.each("log", r)
    tally.each("add", r, r)
    tally.selects(r, r, r, r)
    tally.tests(r)
    tally.does(logic=r)
    tally.moves(2 * r, r)
    tally.selects(r, r, r)


def _weights(tally: _Arrays, n: int, r: int) -> None:
    """`weights`."""
    _finite(tally, r)
    tally.each("add", n, r)
    tally.each("exp", n)
    tally.tests(r)
    tally.selects(n, r, n)
    tally.tests(n)
    tally.selects(n, n, n)


def _peak(work: Work) -> int:
    """Most bytes alive at once: the largest of the moments at which an operation has just written its result.

    Up to the booleans of one test of the rows, which some moments hold besides.
    """
    n, r, o, v = WORD * work.cells, WORD * work.rows, WORD * work.elements[3], work.elements[2]
    kept = 0 if work.dropout is None else work.dropout.size
    Z, h, state = WORD * kept, WORD * work.heads[0], 2 * r + o
    scores = _score_moments(work)
    moments = [*scores, n + kept + 2 * Z]
    if work.cells:
        moments += [
            3 * n + Z + state + r,  # P
            (2 if work.dropout is None else 3) * n + Z + state + 3 * r + 2 * o + v,  # P V
            2 * n + Z + state + 3 * r + max(2 * r, 3 * o),  # l, O
        ]
    held = n + Z
    if work.sinks:
        held += state + 2 * h
        moments += [held + 4 * r + max(2 * r, 2 * o + r)]
    moments += [held + state + 2 * o + 2 * work.rows, held + state + o + 2 * r + 2 * work.rows]  # O, lse
    casts = sum(WORD * c for c, name in zip(work.elements[:3], work.dtypes, strict=False) if name != "float64")
    results = o + r + (work.operand_bytes[3] if work.dtypes[3] != "float64" else 0)
    if work.return_weights:
        moments += [moment + results for moment in (*scores, 3 * n + work.cells)]
    return casts + max(moments)


def _score_moments(work: Work) -> list[int]:
    """Bytes alive while scores are made: the newest beside the one that it comes from, the first, and the tiles."""
    n = WORD * work.cells
    bias = 0 if work.bias is None else WORD * work.bias.size
    tiles = bias + (0 if work.masked is None else work.masked.size)
    raw = (3 if work.softcap else 2) * n
    changed = 3 if work.softcap or work.bias is not None or work.masked is not None else 2
    return [raw, raw + bias + tiles if bias else raw, changed * n + tiles]


def standard(work: Work) -> Cost:
    """Algorithm 0 of Dao et al. 2022: scores and weights go through memory, in the dtype of the output."""
    untiled(work, "standard")
    n, r, (q, k, v, o) = work.cells, work.rows, work.operand_bytes
    matrix = work.dtype_bytes[3] * n
    lse = STATISTIC * r if work.return_lse else 0
    tally = Tally()
    _probabilities(tally, work)
    tally.moves(q + k, matrix)  # line 1
    tally.moves(matrix, matrix)  # line 2
    if work.dropout is not None:
        tally.does(select=n, multiply=r)  # the factor goes into the row's divisor
        tally.moves(work.dropout.stored, matrix if work.return_weights else 0)
    tally.does(multiply_add=n * work.features[1])  # line 3
    tally.moves(matrix + v, o)
    if work.return_lse:
        tally.does(log=r, add=r)
        tally.moves(0, lse)
    return tally.cost(work, "standard", max(2 * matrix, matrix + o) + lse)


def standard_gradient(work: Work) -> Cost:
    """Algorithm 3 of Dao et al. 2022, after lines 1 and 2 of Algorithm 0, which compute the weights again."""
    untiled(work, "standard")
    n, r, (E, Ev) = work.cells, work.rows, work.features
    q, k, v, o = work.operand_bytes
    matrix = work.dtype_bytes[3] * n
    tally = Tally()
    _probabilities(tally, work)
    tally.moves(q + k + matrix, 2 * matrix)
    tally.does(multiply_add=2 * n * Ev)
    tally.moves(matrix + o, v)  # line 1
    tally.moves(o + v, matrix)  # line 2
    tally.does(multiply=2 * n, add=2 * n)
    tally.moves(2 * matrix, matrix)  # line 3
    if work.dropout is not None:
        tally.does(select=2 * n, multiply=2 * n)
        tally.moves(2 * work.dropout.stored)
    if work.softcap:
        tally.does(multiply=3 * n, add=n)  # 1 - (s / softcap)^2, of the scores
        tally.moves(matrix)
    if work.bias is not None and not work.bias.rule:
        tally.does(add=n)
        tally.moves(0, work.bias.stored)
    if work.sinks:
        tally.does(add=2 * r, exp=r, divide=r, multiply=r)
        tally.moves(work.heads[0] * work.sinks, work.heads[0] * work.sinks)
    tally.does(multiply=n, multiply_add=2 * n * E)  # the scale goes into dS
    tally.moves(matrix + k, q)  # line 4
    tally.moves(matrix + q, k)  # line 5
    held = (4 if work.softcap else 3) * matrix + v
    return tally.cost(work, "standard", max(held, matrix + q + k + v))


def _probabilities(tally: Tally, work: Work) -> None:
    """Lines 1 and 2 of Algorithm 0, and the operands that only change scores."""
    n, r = work.cells, work.rows
    tally.does(multiply_add=n * work.features[0])
    work.changes_scores(tally, n, n)
    tally.does(compare=n, add=n, exp=n)
    tally.does(add=n, divide=n)
    for given in (work.masked, work.bias):
        tally.moves(0 if given is None else given.stored)
    if work.sinks:
        tally.does(compare=r, add=2 * r, exp=r)
        tally.moves(work.heads[0] * work.sinks)


Forms = Mapping[str, Callable[[Work], Cost]]
FORMS: Forms = MappingProxyType({"reference": reference, "standard": standard})
GRADIENT_FORMS: Forms = MappingProxyType({"standard": standard_gradient})
