"""The double-double tier: logits, weights and sums to some 77 bits, with the radius of Theorem O of README.md."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refattn._core.tiles import tiles
from refattn.oracle.arithmetic import (
    ADD_FLOAT_ERROR,
    DIV_ERROR,
    MUL_ERROR,
    MUL_FLOAT_ERROR,
    U,
    dd_add,
    dd_add_float,
    dd_div,
    dd_mul,
    dd_mul_float,
    two_sum,
)
from refattn.oracle.exponential import (
    EXP_DD_ERROR,
    EXP_LOST,
    EXP_LOWEST,
    TANH_DD_ERROR,
    exp_dd,
    exp_dd_in_place,
    log_dd,
    tanh_dd,
)
from refattn.oracle.head import Head, SeenValues
from refattn.oracle.operands import Flags, Floats, Ints
from refattn.oracle.problem import Problem, Rows, Tile
from refattn.oracle.products import (
    BLOCK,
    CELLS,
    ETA,
    Plan,
    Singles,
    Weighted,
    chunks,
    cutter,
    exact_rows,
    product_dd,
    product_error,
    query_slices,
    top,
)

# Score cells of a tile. More where there are many keys, up to 16 MiB, so that they are not cut anew for less than TALL
# rows.
TILE, MOST_CELLS, TALL = 2**18, 2**21, 32
# Keys that are cut at a time where a head has too many to hold them all, and how many numbers are too many: 64 MiB, so
# that making them takes no more than 128 MiB.
CHUNK, HELD = 8 * BLOCK, 2**23

LARGEST_ERROR = 0.009  # Theorem O, (O1): of an exponent
LARGEST = 2.0**900  # Theorem O, (O2): of norms, logits and the scale
LARGEST_CAP = 2.0**400  # Theorem O, (O2): of the softcap and its inverse
LARGEST_LOGIT = 2.0**43  # Theorem O, (O3): of a row's largest logit, so that no exponent exceeds 2^-9
NEGLIGIBLE = 2.0**-400  # Theorem O, step 2: more than what underflow takes from a logit
FACTOR = 1.02  # Theorem O, step 3: from the exact weights to the computed ones
SLACK = 1.02  # Theorem O, step 5: |o| against |output|, and the roundings of the radius itself


class _Logits(NamedTuple):
    """Logits of a tile as high + low, the high part -inf where masked, and a bound of the errors of their weights."""

    high: Floats  # (rows, keys)
    low: Floats | None  # (rows, keys); None where all are zero
    maximum: Floats  # (rows,), of the high parts and the sink
    error: Floats  # (rows,): relative, of every weight that is not lost
    known: Flags  # (rows,): (O1), (O2) and (O3) hold


class _Scale(NamedTuple):
    """The factor on the products: high + low, up to a relative error; a power of two has none and no low part."""

    high: float
    low: float
    error: float

    @property
    def exact(self) -> bool:
        """Whether it is a power of two."""
        return self.low == 0.0 and abs(math.frexp(self.high)[0]) == 0.5


def certify(problem: Problem, rows: Ints) -> Rows:
    """Output and lse of the queries `rows` as double-doubles, with radii."""
    R, (S, Ev) = len(rows), problem.value.shape
    answer = Rows(*np.zeros((3, R, Ev)), *np.zeros((3, R)))
    head, scale = Head(problem, CHUNK, HELD), _scale(problem)
    cells = max(TILE, min(TALL * S, MOST_CELLS), S)
    buffers, singles = np.empty((4, cells)), np.empty(cells, dtype=np.float32)
    with np.errstate(all="ignore"):
        for tile in problem.tiles(rows, cells):
            high, low, work, more = (x[: math.prod(tile.shape)].reshape(tile.shape) for x in buffers)
            single = singles[: math.prod(tile.shape)].reshape(tile.shape)
            values = head.values(tile)
            logits = _logits(problem, head, scale, tile, (high, low, work))
            slices = [high, low, more][: values.cuts.weight_slices]
            rests = _weights(logits, values.cuts, slices, work, single)
            sums = Weighted(Ev, values.cuts, rests)
            _add(sums, head, tile, values, slices, work, single)
            part = _answer(problem, tile, logits, values, sums)
            for whole, of_rows in zip(answer, part, strict=True):
                whole[tile.rows] = of_rows
    return answer


def _logits(problem: Problem, head: Head, scale: _Scale, tile: Tile, buffers: tuple[Floats, Floats, Floats]) -> _Logits:
    """Theorem O, steps 1 and 2: the logits and their errors."""
    high, low, _ = buffers
    of_query, of_key = problem.query.measures, problem.key.measures
    Q = problem.query.numbers(tile.queries)
    norm, shift = of_query.norm[tile.queries], 0
    sigma = abs(scale.high)
    scaled = Q * scale.high
    folded = scale.exact and bool((scaled / scale.high == Q).all())
    if folded:
        Q, norm, shift = scaled, np.where(norm > 0, norm * sigma + ETA, 0.0), math.frexp(sigma)[1] - 1
    key_norm = of_key.norm[tile.seen].max(initial=0.0)
    size = norm * key_norm
    logit = size if folded else size * sigma
    known = np.maximum(np.maximum(norm, key_norm), np.maximum(size, logit)) < LARGEST
    known &= sigma < LARGEST

    exact = exact_rows(norm, of_query.quantum[tile.queries] + shift, of_key.norm[tile.seen], of_key.quantum[tile.seen])
    # Few rows are worth a product of their own.
    sliced = ~exact if 2 * exact.sum() > len(Q) else np.full(len(Q), not exact.all())
    exponent = np.maximum(top(of_query.largest[tile.queries]) + shift, -1074)
    key_exponent = int(top(of_key.largest[tile.seen]).max(initial=-1074))
    error = product_error(Q.shape[1], norm, exponent, key_norm, key_exponent) * (1.0 if folded else sigma)
    error = np.where(sliced, error, 0.0)
    _products(head, tile, Q, exponent, sliced, buffers)
    has_low = bool(sliced.any())

    changed = not folded or problem.softcap is not None or tile.bias is not None
    if changed:
        for chunk in chunks(tile.shape):
            pair = high[chunk], low[chunk] if has_low else np.zeros_like(high[chunk])
            high[chunk], low[chunk] = _changed(problem, tile, chunk, *pair, None if folded else scale)
    if tile.visible is not None:
        np.copyto(high, -np.inf, where=~tile.visible)
    m = np.maximum(high.max(axis=1, initial=-np.inf), problem.sink)
    known &= np.abs(m) < LARGEST_LOGIT
    m = np.where(known, m, 0.0)

    # No logit of a weight that is not lost is farther from zero than this.
    reach = np.abs(m) - 1.01 * EXP_LOWEST
    relative = 0.0 if folded else MUL_ERROR + 1.01 * scale.error
    error += NEGLIGIBLE + 1.01 * ADD_FLOAT_ERROR * -1.01 * EXP_LOWEST
    if problem.softcap is not None:
        known &= 1 / LARGEST_CAP < problem.softcap < LARGEST_CAP
        error += 1.01 * problem.softcap * (TANH_DD_ERROR + 0.45 * (relative + DIV_ERROR) + MUL_FLOAT_ERROR)
    elif tile.bias is not None:
        error += 1.01 * relative * logit
    else:
        error += 1.01 * relative * reach
    if tile.bias is not None:
        error += 1.01 * ADD_FLOAT_ERROR * reach
    known &= error <= LARGEST_ERROR
    return _Logits(high, low if has_low or changed else None, m, FACTOR * (error + EXP_DD_ERROR), known)


def _products(
    head: Head, tile: Tile, Q: Floats, exponent: Ints, sliced: Flags, buffers: tuple[Floats, Floats, Floats]
) -> None:
    """Theorem O, step 1: the products q.k in the first two buffers, with low parts if any row is to be sliced."""
    high, low, _ = buffers
    parts = [(j, slice(j.start - tile.keys.start, j.stop - tile.keys.start)) for j in head.parts(tile.keys)]
    some = np.flatnonzero(sliced)
    if some.size < len(Q):
        for j, part in parts:
            np.matmul(Q, head.keys(j).T, out=high[:, part])
    if some.size:
        queries = query_slices(Q[some], exponent[some])
        pieces = buffers if some.size == len(Q) else np.empty((3, some.size, tile.shape[1]))
        for j, part in parts:
            product_dd(queries, head.cut_keys(j), *(x[:, part] for x in pieces))
        if some.size < len(Q):
            low[:] = 0.0
            high[some], low[some] = pieces[:2]


def _changed(
    problem: Problem, tile: Tile, chunk: tuple[slice, slice], high: Floats, low: Floats, scale: _Scale | None
) -> tuple[Floats, Floats]:
    """Theorem O, step 2: products times scale, softcapped, and with their bias."""
    if scale is not None:
        high, low = dd_mul(high, low, np.array(scale.high), np.array(scale.low))
    if problem.softcap is not None:
        cap = np.array(problem.softcap)
        high, low = tanh_dd(*dd_div(high, low, cap, np.zeros(())))
        high, low = dd_mul_float(high, low, cap)
    if tile.bias is not None:
        high, low = dd_add_float(high, low, tile.bias[chunk])
    return high, low


def _weights(logits: _Logits, cuts: Plan, slices: list[Floats], rest: Floats, single: Singles) -> Floats:
    """Theorem O, step 3: the weights exp(s - m) as slices and a rest, and rounded to float32.

    Returns the sum of the rests' magnitudes for each row.
    """
    constants = [float(cutter(-cuts.weight_bits * (i + 1))) for i in range(len(slices))]
    rests, buffers = np.zeros(len(rest)), np.empty((3, CELLS))
    for chunk in chunks(rest.shape):
        h, m = logits.high[chunk], logits.maximum[chunk[0], None]
        x, y, work = (b[: h.size].reshape(h.shape) for b in buffers)
        # x + y = h - m + l, in the order of `dd_add_float`.
        np.subtract(h, m, out=x)
        np.subtract(x, h, out=work)
        np.subtract(x, work, out=y)
        np.subtract(h, y, out=y)
        work += m
        y -= work
        if logits.low is not None:
            y += logits.low[chunk]
            np.add(x, y, out=work)
            x -= work
            y += x
            x, work = work, x
        lost = None
        if not x.min(initial=0.0) >= EXP_LOWEST:
            lost = ~(x >= EXP_LOWEST)
            x[lost], y[lost] = 0.0, 0.0
        exp_dd_in_place(x, y)
        if lost is not None:
            x[lost], y[lost] = 0.0, 0.0
        single[chunk] = x
        for constant, out in zip(constants, slices, strict=True):
            piece = out[chunk]
            np.add(x, constant, out=piece)
            piece -= constant
            x -= piece
        x += y
        rest[chunk] = x
        rests[chunk[0]] += np.abs(x, out=work).sum(axis=1)
    return rests


def _add(
    sums: Weighted, head: Head, tile: Tile, values: SeenValues, slices: list[Floats], rest: Floats, single: Singles
) -> None:
    """Theorem O, step 4: the sums over all keys of a tile."""
    for j in head.parts(tile.keys):
        cut_values = values.cut(j)
        for block in tiles(j.stop - j.start, BLOCK):
            i = slice(block.start + j.start - tile.keys.start, block.stop + j.start - tile.keys.start)
            kept = None if tile.kept is None else tile.kept[:, i]
            sums.add([x[:, i] for x in slices], rest[:, i], single[:, i], kept, cut_values.block(block))


def _answer(problem: Problem, tile: Tile, logits: _Logits, values: SeenValues, sums: Weighted) -> Rows:
    """Theorem O, step 5, and Theorem L: output and lse with their radii, infinite where a hypothesis fails."""
    n, m, t = tile.shape[1], logits.maximum, logits.error
    N, N_low = two_sum(sums.high, sums.low)
    L, L_low = two_sum(sums.sum_high, sums.sum_low)
    N_error, L_error = sums.errors(n)
    if problem.sink != -np.inf:
        x, y = two_sum(np.full_like(m, problem.sink), -m)
        lost = ~(x >= EXP_LOWEST)
        x[lost], y[lost] = 0.0, 0.0
        p, p_low = exp_dd(x, y)
        p[lost], p_low[lost] = 0.0, 0.0
        L, L_low = dd_add(L, L_low, *two_sum(p, p_low))
        L_error += 4 * U * U * L
    known = logits.known & (0.4 <= L) & (L <= 2.0 * n + 2)
    L, L_low = np.where(known, L, 1.0), np.where(known, L_low, 0.0)
    unreadable_rows, unreadable = problem.unreadable(tile)

    # In units of 2^exponents.
    output, output_low = dd_div(N, N_low, L[:, None], L_low[:, None])
    size = np.abs(output)
    radius = t[:, None] * (sums.bound(n) + size * L[:, None]) + N_error + size * L_error[:, None]
    radius += (n + 2) * EXP_LOST * (1 + size)
    radius = SLACK * radius / L[:, None] + 1.01 * DIV_ERROR * size
    if problem.dropout is not None:
        factor = float(problem.kept_factor)
        rest = float(problem.kept_factor - Fraction(factor))
        output, output_low = dd_mul(output, output_low, np.array(factor), np.array(rest))
        radius = SLACK * factor * radius + 1.01 * (MUL_ERROR + U * U) * np.abs(output)
    unit = np.ldexp(1.0, values.exponents)
    output, output_low, radius = output * unit, output_low * unit, radius * unit + 4 * ETA
    claimed = known[:, None] & values.known & ~unreadable & np.isfinite(radius)
    radius = np.where(claimed, radius, np.inf)
    output, output_low = np.where(unreadable, np.nan, output), np.where(unreadable, np.nan, output_low)

    logarithm, logarithm_low, log_error = log_dd(L, L_low)
    lse, lse_low = dd_add_float(logarithm, logarithm_low, m)
    lse_radius = SLACK * (t + (L_error + (n + 1) * EXP_LOST) / L) + log_error
    lse_radius += 1.01 * ADD_FLOAT_ERROR * np.abs(lse) + NEGLIGIBLE
    lse_radius = np.where(known & ~unreadable_rows & np.isfinite(lse_radius), lse_radius, np.inf)
    lse, lse_low = np.where(unreadable_rows, np.nan, lse), np.where(unreadable_rows, np.nan, lse_low)

    empty = tile.empty
    output[empty], output_low[empty], radius[empty] = 0.0, 0.0, 0.0
    lse[empty], lse_low[empty], lse_radius[empty] = problem.sink, 0.0, 0.0
    return Rows(output, output_low, radius, lse, lse_low, lse_radius)


def _scale(problem: Problem) -> _Scale:
    """The factor on the products: the given number, or the real number 1/sqrt(E)."""
    if problem.scale is not None:
        return _Scale(problem.scale, 0.0, 0.0)
    with localcontext(prec=120):
        real = 1 / Decimal(problem.query.shape[1]).sqrt()
        high = float(real)
        low = float(real - Decimal(high))
    return _Scale(high, low, 0.0 if low == 0.0 else U * U)
