"""What numba's kernels do with a few queries and rows that lie in memory as they came: no product is worth packing.

QUERIES queries at a time; scores of key k are numbers QUERIES k + query.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from refattn._core.numba_math import RANKS, Emitter, lanes, operation
from refattn._core.numba_vectors import I, Value, i

QUERIES, TOGETHER = 4, 2  # of a block, and of them those whose sums of values are formed in one go
WIDE = 8 if RANKS == 8 else 2  # most vectors of features that these sums take


def _memory(builder: Any, address: Value, offset: Value, like: Any) -> Value:
    """Pointer to numbers at an address and so many bytes on."""
    return builder.inttoptr(builder.add(address, offset), like.as_pointer())


def _folded(make: Emitter, held: list[Value]) -> list[Value]:
    """The sums of vectors, in their order, as lanes of as few vectors as hold them."""
    build, width, word = make.builder, make.width, ir.IntType(32)
    low = [k // 2 + k % 2 * width for k in range(width)]
    masks = [ir.Constant(ir.VectorType(word, width), [x + half for x in low]) for half in (0, width // 2)]
    found = []
    for start in range(0, len(held), width):
        part = held[start : start + width]
        while len(part) > 1:
            half = len(part) // 2
            part = [
                build.fadd(*(build.shuffle_vector(part[k], part[k + half], mask) for mask in masks))
                for k in range(half)
            ]
        found.append(part[0])
    return found


@operation
def row_scores(typing: Any, w: Any, address: Any, stride: Any, query: Any, s: Any, features: Any) -> Any:
    """Scores s of as many keys as make whole vectors, whose rows begin at an address, `stride` bytes apart.

    w[query] is (QUERIES, features); features are whole vectors. The number of keys is `keys_at_once`. Rows are read one
    after another, from begin to end: a processor fetches ahead of that, and of little else.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        make = Emitter(context, builder, w.dtype, lanes(w.dtype))
        size, sums = w.dtype.bitwidth // 8, []
        data = context.make_array(w)(context, builder, args[0]).data
        for key in range(keys_at_once(w.dtype)):
            row = builder.add(args[1], builder.mul(args[2], I(key)))
            before, loop, done = (
                builder.block,
                builder.append_basic_block("features"),
                builder.append_basic_block("row"),
            )
            builder.branch(loop)
            builder.position_at_end(loop)
            e = builder.phi(I)
            e.add_incoming(I(0), before)
            held = [builder.phi(make.vector) for _ in range(QUERIES)]
            x = make.load(_memory(builder, row, builder.mul(e, I(size)), make.scalar), I(0))
            for q in range(QUERIES):
                left = make.load(data, builder.add(args[3], builder.add(e, builder.mul(args[5], I(q)))))
                sums.append(make.fma(x, left, held[q]))
                held[q].add_incoming(make.all(0.0), before)
                held[q].add_incoming(sums[-1], loop)
            further = builder.add(e, I(make.width))
            e.add_incoming(further, loop)
            builder.cbranch(builder.icmp_signed("<", further, args[5]), loop, done)
            builder.position_at_end(done)
        for v, x in enumerate(_folded(make, sums)):
            make.store(x, data, builder.add(args[4], I(v * make.width)))
        return context.get_dummy_value()

    return types.void(w, i, i, i, i, i), emit


def keys_at_once(dtype: Any) -> int:
    """Keys whose scores `row_scores` forms in one go."""
    return max(1, lanes(dtype) // QUERIES)


def _row_values(vectors: int) -> Any:
    """Sums over so many vectors of features."""

    @operation
    def made(
        typing: Any, w: Any, address: Any, stride: Any, p: Any, output: Any, width: Any, factors: Any, rows: Any
    ) -> Any:  # fmt: skip
        """Multiply w[output] (TOGETHER, width) by factors[query], and add the sum over rows of p times values."""

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
            make = Emitter(context, builder, w.dtype, lanes(w.dtype))
            size = w.dtype.bitwidth // 8
            data = context.make_array(w)(context, builder, args[0]).data
            places = [
                [
                    builder.add(args[4], builder.add(builder.mul(args[5], I(q)), I(v * make.width)))
                    for v in range(vectors)
                ]
                for q in range(TOGETHER)
            ]
            start = []
            for q in range(TOGETHER):
                factor = make.spread(data, builder.add(args[6], I(q)))
                start += [builder.fmul(factor, make.load(data, place)) for place in places[q]]
            before, loop = builder.block, builder.append_basic_block("rows")
            done = builder.append_basic_block("summed")
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(I)
            k.add_incoming(I(0), before)
            held = [builder.phi(make.vector) for _ in start]
            offset = builder.mul(args[2], k)
            right = [
                make.load(_memory(builder, args[1], builder.add(offset, I(v * make.width * size)), make.scalar), I(0))
                for v in range(vectors)
            ]
            after = []
            for q in range(TOGETHER):
                weight = make.spread(data, builder.add(args[3], builder.add(builder.mul(k, I(QUERIES)), I(q))))
                after += [make.fma(weight, right[v], held[q * vectors + v]) for v in range(vectors)]
            for x, first, y in zip(held, start, after, strict=True):
                x.add_incoming(first, before)
                x.add_incoming(y, loop)
            further = builder.add(k, I(1))
            k.add_incoming(further, loop)
            builder.cbranch(builder.icmp_signed("<", further, args[7]), loop, done)
            builder.position_at_end(done)
            for x, place in zip(after, [y for row in places for y in row], strict=True):
                make.store(x, data, place)
            return context.get_dummy_value()

        return types.void(w, i, i, i, i, i, i, i), emit

    return made


wide_values, half_values, narrow_values = _row_values(WIDE), _row_values(WIDE // 2), _row_values(1)


@operation
def upcast(typing: Any, w: Any, at: Any, address: Any, vectors: Any) -> Any:
    """Write to w[at] so many vectors of bfloat16 numbers that begin at an address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        make = Emitter(context, builder, w.dtype, lanes(w.dtype))
        width, word = make.width, ir.IntType(32)
        data = context.make_array(w)(context, builder, args[0]).data
        before, loop, done = builder.block, builder.append_basic_block("upcast"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", args[3], I(0)), loop, done)
        builder.position_at_end(loop)
        k = builder.phi(I)
        k.add_incoming(I(0), before)
        halves = ir.VectorType(ir.IntType(16), width)
        bits = builder.load(_memory(builder, args[2], builder.mul(k, I(2 * width)), halves))
        bits.align = 2
        words, shift = ir.VectorType(word, width), ir.Constant(ir.VectorType(word, width), [16] * width)
        x = builder.bitcast(builder.shl(builder.zext(bits, words), shift), ir.VectorType(ir.FloatType(), width))
        x = x if make.scalar == ir.FloatType() else builder.fpext(x, make.vector)
        make.store(x, data, builder.add(args[1], builder.mul(k, I(width))))
        further = builder.add(k, I(1))
        k.add_incoming(further, loop)
        builder.cbranch(builder.icmp_signed("<", further, args[3]), loop, done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(w, i, i, i), emit
