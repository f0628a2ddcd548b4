"""How numba's kernels read what they are given: arrays of any strides and dtype, and masks as bits of a tile.

Arrays are addresses with strides in bytes, so that one compiled kernel serves every layout, read-only or not. They are
packed into tiles of the accumulation dtype, in which RANKS keys or features, or n queries, lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types

from refattn._core.numba_math import RANKS, VECTOR_BYTES, Emitter, Value, fetch, lanes, operation, read
from refattn._core.numba_vectors import I, transposed

F = TypeVar("F", bound=Callable[..., Any])


def part(function: F) -> F:
    """Compiled into the kernels that call it; it needs no entry from Python of its own."""
    made: F = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return made


def kernel(function: F) -> F:
    """Compiled at the first call with each dtype, and kept for later processes."""
    made: F = njit(nogil=True, error_model="numpy", cache=True)(function)
    return made


def record(integers: str, numbers: str) -> Any:
    """Describe a job to a kernel: the names of its integers, and of its float64 numbers."""
    names = [(name, np.int64) for name in integers.split()] + [(name, np.float64) for name in numbers.split()]
    return np.dtype(names)


CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}


@operation
def turn(typing: Any, like: Any, source: Any, row: Any, target: Any, column: Any, factor: Any) -> Any:
    """A vector of numbers of each of RANKS rows at an address, `row` bytes apart, becomes columns of RANKS numbers.

    These are written `column` bytes apart, from another address on, times a factor. All is of the dtype of `like`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        make = Emitter(context, builder, like, lanes(like))
        part, size, scale = ir.VectorType(make.scalar, RANKS), like.bitwidth // 8, make.value(args[5])
        rows = []
        for r in range(RANKS):
            where = builder.inttoptr(builder.add(args[1], builder.mul(args[2], I(r))), make.vector.as_pointer())
            x = builder.load(where)
            x.align = 1
            rows.append([builder.fmul(x, scale)])
        whole = transposed(make, rows)
        for e in range(make.width):
            first, within = divmod(e * RANKS, make.width)
            places = [within + r if within + r < make.width else 0 for r in range(RANKS)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), RANKS), places)
            if make.width >= RANKS:
                x = builder.shuffle_vector(whole[first], ir.Constant(make.vector, ir.Undefined), mask)
                where = builder.inttoptr(builder.add(args[3], builder.mul(args[4], I(e))), part.as_pointer())
                builder.store(x, where).align = size
                continue
            for piece in range(RANKS // make.width):
                at = builder.add(builder.add(args[3], builder.mul(args[4], I(e))), I(piece * make.width * size))
                where = builder.inttoptr(at, make.vector.as_pointer())
                builder.store(whole[e * RANKS // make.width + piece], where).align = size
        return context.get_dummy_value()

    i = types.intp
    return types.void(like, i, i, i, i, like), emit


@operation
def copy_group(typing: Any, like: Any, source: Any, target: Any) -> Any:
    """Copy RANKS numbers from one address to another; whether all are finite."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        make = Emitter(context, builder, like, RANKS)
        x = builder.load(builder.inttoptr(args[1], make.vector.as_pointer()))
        x.align = 1
        builder.store(x, builder.inttoptr(args[2], make.vector.as_pointer())).align = like.bitwidth // 8
        # The difference of a number with itself is 0, or NaN.
        finite = builder.fcmp_ordered("==", builder.fsub(x, x), make.all(0.0))
        bits = ir.IntType(RANKS)
        return builder.icmp_unsigned("==", builder.bitcast(finite, bits), bits(2**RANKS - 1))

    return types.boolean(like, types.intp, types.intp), emit


@part
def pack_rows(
    into: Any, at: Any, memory: Any, n: Any, x: Any, row: Any, column: Any, code: Any, rows: Any, depth: Any,
    columns: Any, factor: Any,
) -> None:  # fmt: skip
    """Write into[at] (block, columns, n): factor times `rows` rows from the address x on, then zeros up to depth.

    `memory` is the address of `into`, `depth` whole groups of RANKS rows.
    """
    kind, size = into.dtype.type, into.itemsize
    factor, zero, together = kind(factor), kind(0), VECTOR_BYTES // size
    own = code == (0 if size == 4 else 1)
    for r in range(0, depth, RANKS):
        place, done = at + r // n * n * columns + r % n, 0
        if own and column == size and r + RANKS <= rows:
            done = columns // together * together
            for e in range(0, done, together):
                turn(zero, x + r * row + e * size, row, memory + (place + n * e) * size, n * size, factor)
        for k in range(r, r + RANKS):
            for e in range(done, columns):
                value = zero
                if k < rows:
                    where = x + k * row + e * column
                    value = read(where, zero) if own else fetch(where, code, zero)
                into[place + k - r + n * e] = factor * value


@part
def pack_columns(
    into: Any,
    at: Any,
    memory: Any,
    n: Any,
    x: Any,
    row: Any,
    column: Any,
    code: Any,
    rows: Any,
    depth: Any,
    columns: Any,
) -> Any:
    """Write into[at] (group, depth, n): `rows` rows from the address x on, by groups of n columns; 0 beyond them.

    A number that is not finite is left out; whether there was none. `n` is a multiple of RANKS.
    """
    zero, size, finite = into.dtype.type(0), into.itemsize, True
    own = code == (0 if size == 4 else 1)
    for k in range(depth):
        for e in range(0, (columns + n - 1) // n * n, RANKS):
            place, address = at + (e // n * depth + k) * n + e % n, x + k * row + e * column
            inside = min(RANKS, max(columns - e, 0)) if k < rows else 0
            if own and column == size and inside == RANKS and copy_group(zero, address, memory + place * size):
                continue
            for i in range(RANKS):
                value = zero
                if i < inside:
                    value = read(address + i * column, zero) if own else fetch(address + i * column, code, zero)
                if not abs(value) < np.inf:
                    value, finite = zero, False
                into[place + i] = value
    return finite


@part
def spread_words(z: Any, words: Any, tile: Any, bits: Any, count: Any) -> None:
    """Write z[words]: the `count` words of a tile at an address, or for tile -1 all ones."""
    for x in range(count):
        z[words + x] = read(bits + 4 * (tile * count + x), np.int32(0)) if tile >= 0 else np.int32(-1)
