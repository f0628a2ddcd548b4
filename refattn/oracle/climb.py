"""Correctly rounded attention: the tiers one after the other, each for what the one before could not round."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refattn import biases, masks
from refattn._core import checks
from refattn._core.arrays import Array, dtype_name, quiet
from refattn._core.tiles import tiles
from refattn.oracle import double_double, float64
from refattn.oracle.exact import DIGITS, Row
from refattn.oracle.operands import ROWS, Floats, Ints
from refattn.oracle.problem import Problem, Tile, chosen, on_host, problems
from refattn.oracle.rounding import FORMATS, round_interval


def rounded(
    query: Array,
    key: Array,
    value: Array,
    *,
    dtype: object,
    rows: Array | None = None,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: masks.Mask | Array | None = None,
    dropout_p: float = 0.0,
    descale: tuple[Any, Any, Any] | None = None,
) -> Floats:
    """Exact softmax attention rounded once to nearest, ties to even: the best result that a dtype can hold.

        O = round(softmax(softcap(scale * Q K^T) + bias) V)

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries. Arrays may come from any library and device, mixed, in any dtype; their numbers are taken as exact.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    dtype : dtype or str
        Dtype to round to: float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, float8_e4m3fnuz or
        float8_e5m2fnuz.
    rows : integer array, shape (R, n), optional
        Chosen rows only: their indices along the n axes (..., H, L) of `query`.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments that follow.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores; its float64 numbers are taken as exact.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default the real number 1/sqrt(E), which is not rounded.
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where dropout kept the weight, which is then multiplied by the real number 1/(1 - p).
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight.
    descale : tuple (query, key, value), optional
        Factors of quantised operands, as `refattn.attention` takes them.

    Returns
    -------
    numpy.ndarray of float64, shape (..., H, L, Ev), or (R, Ev) with `rows`
        Numbers of `dtype`. An exact zero is +0, a number that is rounded to zero keeps its sign where `dtype` has a
        negative zero. What rounds past the largest number is infinite, and NaN in the float8 kinds but e5m2.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit, rows outside the query, integers that float64 does not hold, and numbers that are
        not finite where the result depends on them.
    ArithmeticError
        If, with softcap, 2000 digits do not tell to which side of a rounding boundary a number lies. Without softcap
        every number is rounded.

    Notes
    -----
    The result is unique: it is the same on every machine, for any number of threads, and with any BLAS, to the last
    bit. Numbers are computed in float64 with a proven radius, in double-double where the interval does not round to one
    number, and with as many digits as it takes where that does not either. A number that lies exactly on a boundary
    is recognised by a theorem: exponentials of distinct algebraic numbers are linearly independent.

    Cost: that of `certified`, and some milliseconds for each number that needs more digits than double-double has, of
    which there are a few in a million, and those on a boundary.

    References
    ----------
    .. [1] The theorems and their proofs: refattn/oracle/README.md.
    .. [2] A. Ziv, "Fast evaluation of elementary mathematical functions with correctly rounded last bit", ACM
       Transactions on Mathematical Software 17, 1991.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.array([[[1.0], [0.0]]])
    >>> ra.oracle.rounded(q, q, q, dtype="bfloat16")
    array([[[0.73046875],
            [0.5       ]]])
    """
    return round_attention(
        "rounded", query, key, value, dtype, rows, mask=mask, bias=bias, is_causal=is_causal, scale=scale,
        softcap=softcap, sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, descale=descale,
    )  # fmt: skip


@quiet
def round_attention(
    function: str, query: Array, key: Array, value: Array, dtype: object, rows: Array | None, **given: Any
) -> Floats:
    """`rounded`, for a public function of another name."""
    name = dtype_name(dtype)
    if name not in FORMATS:
        raise TypeError(f"{function}: dtype must be one of {', '.join(FORMATS)}; got {name}.")
    arguments = on_host(function, query, key, value, **given)
    lead, Ev = tuple(arguments.query.shape[:-1]), arguments.value.shape[-1]
    if rows is None:
        answer = np.empty((*lead, Ev))
        everything = np.arange(lead[-1])
        for index, problem in problems(arguments):
            answer[index] = _rounded(function, index, problem, everything, name)
        return answer
    wanted = checks.check_rows(function, rows, lead)
    answer = np.empty((len(wanted), Ev))
    for places, positions, problem in chosen(arguments, wanted):
        index = tuple(wanted[places[0], :-1].tolist())
        answer[places] = _rounded(function, index, problem, positions, name)
    return answer


def _rounded(function: str, index: tuple[int, ...], problem: Problem, rows: Ints, name: str) -> Floats:
    """Some rows of one batch entry and head, (R, Ev)."""
    answer = np.empty((len(rows), problem.value.shape[1]))
    known = np.zeros(answer.shape, dtype=np.bool_)
    left, hull = np.arange(len(rows)), _hull(problem)
    # No radius of the float64 tier is below a float64's own unit.
    for certify in [float64.certify] * (name != "float64") + [double_double.certify]:
        if left.size:
            found = certify(problem, rows[left])
            answer[left], known[left] = round_interval(found.output, found.output_low, found.radius, name, *hull)
            left = left[~known[left].all(axis=1)]
    for place, tile in zip(left, problem.tiles(rows[left], 1), strict=True):
        where = (*index, int(tile.positions[0]))
        _check_finite(function, where, problem, tile)
        row = Row(problem, tile)
        for column in np.flatnonzero(~known[place]):
            x = row.rounded(int(column), name)
            if x is None:
                raise ArithmeticError(
                    f"{function}: output[{', '.join(map(str, (*where, column)))}] could not be rounded to {name}: with "
                    f"softcap={problem.softcap}, {DIGITS} digits do not tell to which side of a rounding boundary it "
                    f"lies. Pass rows= without {where}, or take certified's radius."
                )
            answer[place, column] = x
    return answer


def _hull(problem: Problem) -> tuple[Floats, Floats]:
    """Bounds of what is finite in the output, (Ev,): the weights add up to 1, or to less with a sink or dropout."""
    least, most = (np.full(problem.value.shape[1], x) for x in (math.inf, -math.inf))
    for keys in tiles(problem.key.shape[0], ROWS):
        values = problem.value.numbers(keys)
        least, most = np.minimum(least, values.min(axis=0)), np.maximum(most, values.max(axis=0))
    # A row that sees nothing is zero.
    least, most = np.minimum(least, 0.0), np.maximum(most, 0.0)
    if problem.dropout is not None:
        least, most = np.where(least < 0, -math.inf, 0.0), np.where(most > 0, math.inf, 0.0)
    return least, most


def _check_finite(function: str, where: tuple[int, ...], problem: Problem, tile: Tile) -> None:
    """What the only row of the tile depends on is finite."""
    cells = np.ones(tile.shape[1], dtype=np.bool_) if tile.visible is None else tile.visible[0]
    weighed = cells if tile.kept is None else cells & tile.kept[0]
    for name, operand, rows in (
        ("query", problem.query, tile.queries),
        ("key", problem.key, tile.keys.start + np.flatnonzero(cells)),
        ("value", problem.value, tile.keys.start + np.flatnonzero(weighed)),
    ):
        wrong = rows[~operand.measures.finite[rows]]
        if wrong.size:
            numbers = operand[wrong[:1]]
            place = f"query {where}" if name == "query" else f"{name} {wrong[0]}, which query {where} sees"
            raise ValueError(
                f"{function}: {name} must be finite where it is seen; got {numbers[~np.isfinite(numbers)][0]} in "
                f"{place}. Hide it with mask=."
            )
