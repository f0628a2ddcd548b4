"""What numba's kernels do with a block of numbers: two vectors of columns, side by side, and as many rows as it has.

All take an array and offsets into it. A group is RANKS rows of a block of n columns. Sums of products are formed in
registers, by fused operations, in the order of the depth.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from refattn._core.numba_math import COLUMNS, RANKS, Emitter, lanes, operation

Value = Any
I = ir.IntType(64)
i = types.intp


class Block:
    """Where a block's rows lie, and the loop over them."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, arrays: int = 1) -> None:
        kind = signature.args[0].dtype
        self.emit = Emitter(context, builder, kind, lanes(kind))
        self.builder, self.width = builder, self.emit.width
        self.data = [context.make_array(signature.args[k])(context, builder, args[k]).data for k in range(arrays)]
        self.args = args[arrays:]

    def at(self, k: int, array: int = 0) -> Value:
        """Pointer to the element at the k-th offset."""
        return self.builder.gep(self.data[array], [self.args[k]])

    def place(self, row: int, v: int) -> Value:
        """Offset of the v-th vector of a row."""
        return I((row * COLUMNS + v) * self.width)

    def row(self, pointer: Value) -> list[Value]:
        """The vectors of one row."""
        return [self.emit.load(pointer, self.place(0, v)) for v in range(COLUMNS)]

    def sums(self, a: Value, b: Value, depth: Value, start: list[list[Value]]) -> list[list[Value]]:
        """Sums start[r][v] + sum over k < depth of a[k, r] times the v-th vector of b[k]."""
        build, emit = self.builder, self.emit
        before, loop, done = build.block, build.append_basic_block("products"), build.append_basic_block("summed")
        build.cbranch(build.icmp_signed(">", depth, I(0)), loop, done)
        build.position_at_end(loop)
        k = build.phi(I)
        k.add_incoming(I(0), before)
        held = [[build.phi(emit.vector) for _ in range(COLUMNS)] for _ in range(RANKS)]
        row, column = build.mul(k, I(COLUMNS * self.width)), build.mul(k, I(RANKS))
        right = [emit.load(b, build.add(row, I(v * self.width))) for v in range(COLUMNS)]
        left = [emit.spread(a, build.add(column, I(r))) for r in range(RANKS)]
        after = [[emit.fma(left[r], right[v], held[r][v]) for v in range(COLUMNS)] for r in range(RANKS)]
        further = build.add(k, I(1))
        k.add_incoming(further, build.block)
        build.cbranch(build.icmp_signed("<", further, depth), loop, done)
        build.position_at_end(done)
        found = [[build.phi(emit.vector) for _ in range(COLUMNS)] for _ in range(RANKS)]
        for r in range(RANKS):
            for v in range(COLUMNS):
                held[r][v].add_incoming(start[r][v], before)
                held[r][v].add_incoming(after[r][v], loop)
                found[r][v].add_incoming(start[r][v], before)
                found[r][v].add_incoming(after[r][v], loop)
        return found

    def store(self, rows: list[list[Value]], pointer: Value) -> None:
        """Write rows."""
        for r, row in enumerate(rows):
            for v, x in enumerate(row):
                self.emit.store(x, pointer, self.place(r, v))

    def bit(self, words: Value, number: Value, v: int) -> Value:
        """Whether a bit of each of the v-th words is set."""
        kind = ir.VectorType(ir.IntType(32), self.width)
        pointer = self.builder.bitcast(self.builder.gep(words, [I(v * self.width)]), kind.as_pointer())
        found = self.builder.load(pointer)
        found.align = 4
        one = self.builder.shl(ir.IntType(32)(1), self.builder.trunc(number, ir.IntType(32)))
        bits = self.builder.and_(found, self.all(one))
        return self.builder.icmp_signed("!=", bits, ir.Constant(kind, [0] * self.width))

    def word(self, array: int, at: Value) -> Value:
        """One integer of an array."""
        return self.builder.load(self.builder.gep(self.data[array], [at]))

    def flags(self, word: Value, bit: Value, v: int) -> Value:
        """The bits of one word, from `bit` on, as flags of the v-th vector."""
        start = self.builder.add(self.builder.trunc(bit, ir.IntType(32)), ir.IntType(32)(v * self.width))
        bits = self.builder.trunc(self.builder.lshr(word, start), ir.IntType(self.width))
        return self.builder.bitcast(bits, ir.VectorType(ir.IntType(1), self.width))

    def all(self, x: Value) -> Value:
        """A 32-bit integer in every lane."""
        word, kind = ir.IntType(32), ir.VectorType(ir.IntType(32), self.width)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, x, word(0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(kind, [0] * self.width))


def transposed(make: Emitter, rows: list[list[Value]]) -> list[Value]:
    """RANKS rows of a block as vectors in the order of its columns: each stage is a perfect shuffle of all numbers."""
    builder, width, word = make.builder, make.width, ir.IntType(32)
    low = [k // 2 + k % 2 * width for k in range(width)]
    masks = [ir.Constant(ir.VectorType(word, width), [x + half for x in low]) for half in (0, width // 2)]
    found: list[Value] = []
    for v in range(len(rows[0])):
        held = [row[v] for row in rows]
        for _ in range(RANKS.bit_length() - 1):
            pairs = zip(held[: RANKS // 2], held[RANKS // 2 :], strict=True)
            held = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
        found += held
    return found


@operation
def products(typing: Any, w: Any, a: Any, b: Any, c: Any, depth: Any) -> Any:
    """Group c = a (depth, RANKS)^T b (depth, n)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        zero = [[block.emit.all(0.0)] * COLUMNS for _ in range(RANKS)]
        block.store(block.sums(block.at(0), block.at(1), args[4], zero), block.at(2))
        return context.get_dummy_value()

    return types.void(w, i, i, i, i), emit


@operation
def add_products(typing: Any, w: Any, a: Any, b: Any, c: Any, depth: Any) -> Any:
    """Group c grows by a (depth, RANKS)^T b (depth, n)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        c = block.at(2)
        held = [[block.emit.load(c, block.place(r, v)) for v in range(COLUMNS)] for r in range(RANKS)]
        block.store(block.sums(block.at(0), block.at(1), args[4], held), c)
        return context.get_dummy_value()

    return types.void(w, i, i, i, i), emit


@operation
def accumulate(typing: Any, w: Any, a: Any, b: Any, c: Any, factors: Any, depth: Any) -> Any:
    """Group c = c times the row `factors` + a (depth, RANKS)^T b (depth, n)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        factors, c = block.row(block.at(3)), block.at(2)
        held = [[block.emit.load(c, block.place(r, v)) for v in range(COLUMNS)] for r in range(RANKS)]
        start = [[builder.fmul(x, y) for x, y in zip(row, factors, strict=True)] for row in held]
        block.store(block.sums(block.at(0), block.at(1), args[5], start), c)
        return context.get_dummy_value()

    return types.void(w, i, i, i, i, i), emit


@operation
def scores(typing: Any, w: Any, a: Any, b: Any, c: Any, largest: Any, depth: Any) -> Any:
    """Group c = a (depth, RANKS)^T b (depth, n); the row `largest` takes in the largest of each column."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        zero = [[block.emit.all(0.0)] * COLUMNS for _ in range(RANKS)]
        found, top = block.sums(block.at(0), block.at(1), args[5], zero), block.at(3)
        block.store(found, block.at(2))
        most = block.row(top)
        for row in found:
            most = [block.emit.larger(x, y) for x, y in zip(row, most, strict=True)]
        block.store([most], top)
        return context.get_dummy_value()

    return types.void(w, i, i, i, i, i), emit


@operation
def divide_group(typing: Any, w: Any, c: Any, factors: Any, divisors: Any) -> Any:
    """Group c times the row `factors`, divided by the row `divisors`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        c, factors, divisors = block.at(0), block.row(block.at(1)), block.row(block.at(2))
        for r in range(RANKS):
            for v in range(COLUMNS):
                x = builder.fmul(block.emit.load(c, block.place(r, v)), factors[v])
                block.emit.store(builder.fdiv(x, divisors[v]), c, block.place(r, v))
        return context.get_dummy_value()

    return types.void(w, i, i, i), emit


@operation
def exponentials(typing: Any, w: Any, s: Any, largest: Any, l: Any, rows: Any) -> Any:
    """Rows s become 2**(s - largest), and the row l grows by the sum of each column; of an even number of rows."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        make, s, l = block.emit, block.at(0), block.at(2)
        largest, start = block.row(block.at(1)), block.row(l)
        before, loop, done = builder.block, builder.append_basic_block("rows"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(I)
        k.add_incoming(I(0), before)
        sums = [builder.phi(make.vector) for _ in range(COLUMNS)]
        totals, row = list(sums), builder.mul(k, I(COLUMNS * block.width))
        for step in range(2):
            for v in range(COLUMNS):
                where = builder.add(row, block.place(step, v))
                p = make.exp2(builder.fsub(make.load(s, where), largest[v]))
                make.store(p, s, where)
                totals[v] = builder.fadd(totals[v], p)
        for v in range(COLUMNS):
            sums[v].add_incoming(start[v], before)
            sums[v].add_incoming(totals[v], loop)
        further = builder.add(k, I(2))
        k.add_incoming(further, loop)
        builder.cbranch(builder.icmp_signed("<", further, args[4]), loop, done)
        builder.position_at_end(done)
        block.store([totals], l)
        return context.get_dummy_value()

    return types.void(w, i, i, i, i), emit


@operation
def rescale(typing: Any, w: Any, m: Any, l: Any, largest: Any, alpha: Any) -> Any:
    """Set alpha = 2**(m - largest), l times alpha, m = largest; a row `largest` of -inf becomes the lowest number."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        make = block.emit
        m, l, largest = (block.row(block.at(k)) for k in range(3))
        finite = [make.larger(x, make.all(make.lowest)) for x in largest]
        factors = [make.exp2(builder.fsub(x, y)) for x, y in zip(m, finite, strict=True)]
        block.store([largest], block.at(0))
        block.store([[builder.fmul(x, y) for x, y in zip(l, factors, strict=True)]], block.at(1))
        block.store([finite], block.at(2))
        block.store([factors], block.at(3))
        return context.get_dummy_value()

    return types.void(w, i, i, i, i), emit


@operation
def mask_group(typing: Any, w: Any, z: Any, s: Any, first: Any, words: Any, stride: Any, key: Any, bit: Any) -> Any:
    """-inf in the cells of group s that are masked; the array z holds first, stop and words of each column.

    Row r is the key `key` + r, in the interval first .. stop (which lies `stride` behind first) and with its bit set,
    `bit` + r of words.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args, arrays=2)
        make, s, word = block.emit, block.at(0), ir.IntType(32)
        first, words = block.at(1, 1), block.at(2, 1)
        stop = builder.gep(first, [block.args[3]])
        kind = ir.VectorType(word, block.width)
        ends = []
        for pointer in (first, stop):
            row = []
            for v in range(COLUMNS):
                x = builder.load(builder.bitcast(builder.gep(pointer, [I(v * block.width)]), kind.as_pointer()))
                x.align = 4
                row.append(x)
            ends.append(row)
        for r in range(RANKS):
            key = block.all(builder.trunc(builder.add(block.args[4], I(r)), word))
            for v in range(COLUMNS):
                inside = builder.and_(
                    builder.icmp_signed("<=", ends[0][v], key), builder.icmp_signed("<", key, ends[1][v])
                )
                seen = builder.and_(inside, block.bit(words, builder.add(block.args[5], I(r)), v))
                x = make.load(s, block.place(r, v))
                make.store(builder.select(seen, x, make.all(float("-inf"))), s, block.place(r, v))
        return context.get_dummy_value()

    return types.void(w, z, i, i, i, i, i, i), emit


@operation
def raise_maxima(typing: Any, w: Any, s: Any, largest: Any) -> Any:
    """The row `largest` takes in the largest of each column of group s."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        s, top = block.at(0), block.at(1)
        most = block.row(top)
        for r in range(RANKS):
            most = [block.emit.larger(block.emit.load(s, block.place(r, v)), most[v]) for v in range(COLUMNS)]
        block.store([most], top)
        return context.get_dummy_value()

    return types.void(w, i, i), emit


@operation
def cap_scores(typing: Any, w: Any, s: Any, cap: Any) -> Any:
    """Group s = cap tanh(y), where s holds 2 y log2 e; tanh(y) = (1 - t) / (1 + t) with t = 2**-s, error 8 units."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        make, s = block.emit, block.at(0)
        one, zero = make.all(1.0), make.all(0.0)
        for r in range(RANKS):
            for v in range(COLUMNS):
                x = make.load(s, block.place(r, v))
                minus = builder.fsub(zero, x)
                negative = builder.fcmp_ordered("<", x, zero)
                t = make.exp2(builder.select(negative, x, minus))
                size = builder.fdiv(builder.fsub(one, t), builder.fadd(one, t))
                found = builder.fmul(make.value(args[2]), size)
                make.store(builder.select(negative, builder.fsub(zero, found), found), s, block.place(r, v))
        return context.get_dummy_value()

    return types.void(w, i, w.dtype), emit


@operation
def drop_group(typing: Any, w: Any, z: Any, s: Any, words: Any, bit: Any) -> Any:
    """Zeros in the cells of group s whose bit, `bit` + r of the array z's words, is not set."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args, arrays=2)
        make, s, words = block.emit, block.at(0), block.at(1, 1)
        for r in range(RANKS):
            for v in range(COLUMNS):
                kept = block.bit(words, builder.add(block.args[2], I(r)), v)
                x = make.load(s, block.place(r, v))
                make.store(builder.select(kept, x, make.all(0.0)), s, block.place(r, v))
        return context.get_dummy_value()

    return types.void(w, z, i, i, i), emit


@operation
def cap_slopes(typing: Any, w: Any, s: Any, c: Any, cap: Any) -> Any:
    """As `cap_scores`, and group c = 1 - tanh(y)**2 = 4 t / (1 + t)**2."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        make, s, c = block.emit, block.at(0), block.at(1)
        one, zero = make.all(1.0), make.all(0.0)
        for r in range(RANKS):
            for v in range(COLUMNS):
                x = make.load(s, block.place(r, v))
                negative = builder.fcmp_ordered("<", x, zero)
                t = make.exp2(builder.select(negative, x, builder.fsub(zero, x)))
                whole = builder.fadd(one, t)
                size = builder.fmul(make.value(args[3]), builder.fdiv(builder.fsub(one, t), whole))
                make.store(builder.select(negative, builder.fsub(zero, size), size), s, block.place(r, v))
                slope = builder.fdiv(builder.fmul(make.all(4.0), t), builder.fmul(whole, whole))
                make.store(slope, c, block.place(r, v))
        return context.get_dummy_value()

    return types.void(w, i, i, w.dtype), emit
