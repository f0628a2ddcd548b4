"""What numba's kernels do with a block of scores on the way back: weights, and the gradients of the scores.

As in `numba_vectors`; a block's rows are queries and its columns keys.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from refattn._core.numba_math import COLUMNS, RANKS, operation
from refattn._core.numba_vectors import Block, I, Value, i, transposed


@operation
def weights(typing: Any, w: Any, a: Any, b: Any, s: Any, lse: Any, depth: Any) -> Any:
    """Group s = 2**(x - lse[r]) for x = a (depth, RANKS)^T b (depth, n) and its row r."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        make, lse = block.emit, block.at(3)
        zero = [[make.all(0.0)] * COLUMNS for _ in range(RANKS)]
        found = block.sums(block.at(0), block.at(1), args[5], zero)
        for r, row in enumerate(found):
            top = make.spread(lse, I(r))
            for v, x in enumerate(row):
                make.store(make.exp2(builder.fsub(x, top)), block.at(2), block.place(r, v))
        return context.get_dummy_value()

    return types.void(w, i, i, i, i, i), emit


@operation
def score_gradients(typing: Any, w: Any, a: Any, b: Any, p: Any, s: Any, t: Any, delta: Any, depth: Any) -> Any:
    """Group p = s (x - delta[r]) for weights s, x = a^T b as in `weights`; also to t (n, RANKS), transposed."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args)
        make, s, t, delta = block.emit, block.at(3), block.at(4), block.at(5)
        zero = [[make.all(0.0)] * COLUMNS for _ in range(RANKS)]
        found = block.sums(block.at(0), block.at(1), args[7], zero)
        for r, row in enumerate(found):
            shift = make.spread(delta, I(r))
            for v, x in enumerate(row):
                row[v] = builder.fmul(make.load(s, block.place(r, v)), builder.fsub(x, shift))
        block.store(found, block.at(2))
        for k, x in enumerate(transposed(make, found)):
            make.store(x, t, I(k * block.width))
        return context.get_dummy_value()

    return types.void(w, i, i, i, i, i, i, i), emit


@operation
def masked_gradients(
    typing: Any, w: Any, z: Any, s: Any, p: Any, t: Any, lse: Any, delta: Any, slopes: Any, plain: Any, first: Any,
    stop: Any, words: Any, kept: Any, stride: Any, key: Any, bit: Any, growth: Any,
) -> Any:  # fmt: skip
    """Group s of scores becomes weights 2**(s - lse), group p of dP becomes the scores' gradients s (p - delta).

    Row r has lse[r] and delta[r], and sees the keys first[r] .. stop[r], of which the columns are those from `key` on,
    with their bit set from `bit` on in words[stride r]; dropout keeps by the bits of kept[stride r], which grow by
    `growth`. The scores' gradients are written to the group `plain`, and to p and, transposed, to t (n, RANKS) times
    the group `slopes`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        block = Block(context, builder, signature, args, arrays=2)
        make, word = block.emit, ir.IntType(32)
        s, p, t, lse, delta, slopes, plain = (block.at(k) for k in range(7))
        zero, growth, rows = make.all(0.0), make.value(args[16]), []
        steps = ir.Constant(ir.VectorType(word, block.width), list(range(block.width)))
        for r in range(RANKS):
            top, shift, row = make.spread(lse, I(r)), make.spread(delta, I(r)), []
            first, stop = (block.all(block.word(1, builder.add(block.args[k], I(r)))) for k in (7, 8))
            at = builder.mul(block.args[11], I(r))
            seen_word, kept_word = (block.word(1, builder.add(block.args[k], at)) for k in (9, 10))
            for v in range(COLUMNS):
                place = block.place(r, v)
                lane = builder.trunc(builder.add(block.args[12], I(v * block.width)), word)
                keys = builder.add(block.all(lane), steps)
                inside = builder.and_(builder.icmp_signed("<=", first, keys), builder.icmp_signed("<", keys, stop))
                seen = builder.and_(inside, block.flags(seen_word, block.args[13], v))
                kept = block.flags(kept_word, block.args[13], v)
                weight = builder.select(seen, make.exp2(builder.fsub(make.load(s, place), top)), zero)
                change = builder.select(kept, builder.fmul(make.load(p, place), growth), zero)
                make.store(builder.select(kept, builder.fmul(weight, growth), zero), s, place)
                found = builder.select(seen, builder.fmul(weight, builder.fsub(change, shift)), zero)
                make.store(found, plain, place)
                sloped = builder.fmul(found, make.load(slopes, place))
                found = builder.select(builder.fcmp_ordered("==", found, zero), zero, sloped)
                make.store(found, p, place)
                row.append(found)
            rows.append(row)
        for k, x in enumerate(transposed(make, rows)):
            make.store(x, t, I(k * block.width))
        return context.get_dummy_value()

    return types.void(w, z, *[i] * 14, w.dtype), emit
