"""What the array operations of plain forms cost: each reads its operands once and writes its result, in float64."""

from __future__ import annotations

from refattn._core.cost import Tally, Work

WORD = 8  # bytes of a float64


class Arrays(Tally):
    """A running count of array operations."""

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


def scores(tally: Arrays, work: Work) -> None:
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


def kept(tally: Arrays, work: Work) -> None:
    """`Score.kept`."""
    if work.dropout is not None:
        tally.moves(work.dropout.size, WORD * work.dropout.size)
        tally.each("multiply", work.dropout.size)


def _finite(tally: Arrays, n: int) -> None:
    """`_finite` of n maxima."""
    tally.tests(n)
    tally.selects(n, n, n)


def _rescaled(tally: Arrays, n: int, size: int, r: int) -> None:
    """`_rescaled`: an output of `size` numbers by r factors, n results."""
    tally.tests(size)
    tally.does(multiply=n)
    tally.moves(WORD * (size + r), WORD * n)
    tally.selects(n, size, n, size)


def update(tally: Arrays, work: Work) -> None:
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


def _sink(tally: Arrays, work: Work) -> None:
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


def finish(tally: Arrays, work: Work) -> None:
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


def weights(tally: Arrays, n: int, r: int) -> None:
    """`weights`."""
    _finite(tally, r)
    tally.each("add", n, r)
    tally.each("exp", n)
    tally.tests(r)
    tally.selects(n, r, n)
    tally.tests(n)
    tally.selects(n, n, n)


def score_moments(work: Work) -> list[int]:
    """Bytes alive while scores are made: the newest beside the one that it comes from, the first, and the tiles."""
    n = WORD * work.cells
    bias = 0 if work.bias is None else WORD * work.bias.size
    tiles = bias + (0 if work.masked is None else work.masked.size)
    raw = (3 if work.softcap else 2) * n
    changed = 3 if work.softcap or work.bias is not None or work.masked is not None else 2
    return [raw, raw + bias + tiles if bias else raw, changed * n + tiles]


def kept_moments(work: Work) -> list[int]:
    """Bytes alive beside the scores while dropout's factors are made, the scores among them."""
    dropped = 0 if work.dropout is None else work.dropout.size
    return [WORD * work.cells + dropped + 2 * WORD * dropped]


def update_moments(work: Work) -> list[int]:
    """Bytes alive in `update`: scores, factors and the old state among them."""
    if not work.cells:
        return []
    n, r, o, v = WORD * work.cells, WORD * work.rows, WORD * work.elements[3], work.elements[2]
    Z, state = 0 if work.dropout is None else WORD * work.dropout.size, 2 * r + o
    return [
        3 * n + Z + state + r,  # P
        (2 if work.dropout is None else 3) * n + Z + state + 3 * r + 2 * o + v,  # P V
        2 * n + Z + state + 3 * r + max(2 * r, 3 * o),  # l, O
    ]


def finish_moments(work: Work) -> list[int]:
    """Bytes alive in `finish`, the state among them."""
    rows, r, o, h = work.rows, WORD * work.rows, WORD * work.elements[3], WORD * work.heads[0]
    state, held, moments = 2 * r + o, 0, []
    if work.sinks:
        held = state + 2 * h
        moments = [held + 4 * r + max(2 * r, 2 * o + r)]
    return [*moments, held + state + 2 * o + 2 * rows, held + state + o + 2 * r + 2 * rows]  # O, lse
