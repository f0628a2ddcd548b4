"""What exact attention costs: the reference as it is written, and the standard algorithm in passes over memory.

Counts are exact: every cell is computed, masked or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from refattn._core.cost import STATISTIC, Cost, Tally, Work, untiled
from refattn._core.cost_arrays import (
    WORD,
    Arrays,
    finish,
    finish_moments,
    kept,
    kept_moments,
    score_moments,
    scores,
    update,
    update_moments,
    weights,
)


def reference(work: Work) -> Cost:
    """`reference.py`, every array operation for itself.

    Tiles of mask, bias and dropout are read; what it takes to make them is not counted.
    """
    untiled(work, "reference")
    n, r, (q, k, v, o) = work.cells, work.rows, work.elements
    tally = Arrays()
    for size, count, name in zip(work.dtype_bytes, (q, k, v), work.dtypes, strict=False):
        if name != "float64":
            tally.moves(size * count, WORD * count)
    scores(tally, work)
    kept(tally, work)
    tally.moves(0, WORD * (2 * r + o))  # empty_state
    if work.cells:
        update(tally, work)
    finish(tally, work)
    if work.dtypes[3] != "float64":
        tally.moves(WORD * o, work.operand_bytes[3])
    if work.return_weights:
        scores(tally, work)
        weights(tally, n, r)
        if work.dtypes[3] != "float64":
            tally.moves(WORD * n, work.dtype_bytes[3] * n)
    return tally.cost(work, "reference", _peak(work))


def _peak(work: Work) -> int:
    """Most bytes alive at once: the largest of the moments at which an operation has just written its result.

    Up to the booleans of one test of the rows, which some moments hold besides.
    """
    n, r, o = WORD * work.cells, WORD * work.rows, WORD * work.elements[3]
    Z = 0 if work.dropout is None else WORD * work.dropout.size
    moments = [*score_moments(work), *kept_moments(work), *update_moments(work)]
    moments += [n + Z + moment for moment in finish_moments(work)]
    casts = sum(WORD * c for c, name in zip(work.elements[:3], work.dtypes, strict=False) if name != "float64")
    results = o + r + (work.operand_bytes[3] if work.dtypes[3] != "float64" else 0)
    if work.return_weights:
        moments += [moment + results for moment in (*score_moments(work), 3 * n + work.cells)]
    return casts + max(moments)


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
