"""What numba's kernels compute with: vector instructions, an exponential of proven error, numbers of every format.

numba keeps compiled kernels, and takes one for stale when the file that defines it has changed, not this one: each
kernel's file carries `digest()`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FEATURES = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16
# A block of sums is RANKS rows of two vectors: 16 of 32 registers, or 8 of the 16 that x86 has without AVX-512.
RANKS = 4 if VECTOR_BYTES == 32 or (FEATURES.get("sse2") and VECTOR_BYTES == 16) else 8
COLUMNS = 2

# 2**r on [-1/2, 1/2], lowest power first; minimax in relative error with the constant 1, each rounded to its format.
POWERS = {
    "float32": (
        "0x1p+0", "0x1.62e432p-1", "0x1.ebfbe2p-3", "0x1.c6ae72p-5", "0x1.3b270ep-7", "0x1.5f7278p-10",
        "0x1.470b5p-13",
    ),
    "float64": (
        "0x1p+0", "0x1.62e42fefa39f3p-1", "0x1.ebfbdff82c598p-3", "0x1.c6b08d7048f31p-5", "0x1.3b2ab6fba1e1bp-7",
        "0x1.5d87fe7bbbeaep-10", "0x1.430913096124cp-13", "0x1.ffcbee3ad9658p-17", "0x1.62bfd49eb021fp-20",
        "0x1.b541680d58368p-24", "0x1.e605f9ae67d2bp-28", "0x1.c062d7de56c28p-32",
    ),
}  # fmt: skip
MANTISSA = {"float32": 23, "float64": 52}
BIAS = {"float32": 127, "float64": 1023}

Value = Any


def operation(function: Callable[..., Any]) -> Any:
    """What kernels call and LLVM is given instructions for: numba's `intrinsic`."""
    return intrinsic(function)


def digest() -> str:
    """Digest of what all kernels are made from: this module and those that stand on it."""
    files = sorted(Path(__file__).parent.glob("numba_*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def lanes(dtype: types.Type) -> int:
    """Numbers of a dtype in one vector."""
    return VECTOR_BYTES * 8 // int(dtype.bitwidth)


class Emitter:
    """LLVM instructions on vectors, or on single numbers where `width` is 1, of one format."""

    def __init__(self, context: Any, builder: Any, dtype: types.Type, width: int) -> None:
        self.context, self.builder, self.name, self.width = context, builder, dtype.name, width
        self.scalar = context.get_value_type(dtype)
        self.whole = ir.IntType(dtype.bitwidth)
        self.vector = self.scalar if width == 1 else ir.VectorType(self.scalar, width)
        self.integers = self.whole if width == 1 else ir.VectorType(self.whole, width)

    @property
    def lowest(self) -> float:
        """The lowest finite number."""
        return -(2.0 - 2.0 ** -MANTISSA[self.name]) * 2.0 ** BIAS[self.name]

    def value(self, x: Value) -> Value:
        """One number in every lane."""
        undefined, index = ir.Constant(self.vector, ir.Undefined), ir.IntType(32)
        one = self.builder.insert_element(undefined, x, index(0))
        return self.builder.shuffle_vector(
            one, undefined, ir.Constant(ir.VectorType(index, self.width), [0] * self.width)
        )

    def all(self, x: float) -> Value:
        """A constant in every lane."""
        return ir.Constant(self.vector, x if self.width == 1 else [x] * self.width)

    def integer(self, x: int) -> Value:
        """A constant integer in every lane."""
        return ir.Constant(self.integers, x if self.width == 1 else [x] * self.width)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """The sum a b + c, rounded once."""
        bits = "f32" if self.name == "float32" else "f64"
        name = f"llvm.fma.{bits}" if self.width == 1 else f"llvm.fma.v{self.width}{bits}"
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def larger(self, a: Value, b: Value) -> Value:
        """The larger of a and b, and b where one of them is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def load(self, pointer: Value, at: Value) -> Value:
        """The vector that begins at an element."""
        where = self.builder.bitcast(self.builder.gep(pointer, [at]), self.vector.as_pointer())
        found = self.builder.load(where)
        found.align = self.whole.width // 8
        return found

    def store(self, x: Value, pointer: Value, at: Value) -> None:
        """Write the vector that begins at an element."""
        where = self.builder.bitcast(self.builder.gep(pointer, [at]), self.vector.as_pointer())
        self.builder.store(x, where).align = self.whole.width // 8

    def spread(self, pointer: Value, at: Value) -> Value:
        """One element in every lane."""
        return self.value(self.builder.load(self.builder.gep(pointer, [at])))

    def exp2(self, x: Value) -> Value:
        """2**x for x <= 0, as `exp2` proves it."""
        build, bits, bias = self.builder, MANTISSA[self.name], BIAS[self.name]
        x = self.larger(self.all(-float(bias)), x)
        # The sum's last bits are those of the nearest integer plus the exponent's bias.
        magic = self.all(1.5 * 2.0**bits + bias)
        shifted = build.fadd(x, magic)
        r = build.fsub(x, build.fsub(shifted, magic))
        powers = [self.all(float.fromhex(c)) for c in POWERS[self.name]]
        p = powers[-1]
        for c in reversed(powers[:-1]):
            p = self.fma(p, r, c)
        power = build.shl(build.bitcast(shifted, self.integers), self.integer(bits))
        return build.fmul(p, build.bitcast(power, self.vector))


def exp2_error(dtype: str) -> float:
    """Bound on the relative error of `exp2` where its result is a normal number, for "float32" or "float64".

    The exponent is cut into a whole number and r, |r| <= 1/2, exactly. Horner's scheme forms p_k = c_k + r p_{k+1} for
    falling k by one fused operation each, which errs by u |p_k|, u the unit roundoff; the error of p = p_0 is the sum
    of these times |r|**k. For r >= 0 is p >= 1 and p_k <= p_k(1/2); for r < 0 is p >= p(-1/2) and p_k <= c_k, since
    p_{k+1} is positive. To this comes what the polynomial itself errs by, APPROXIMATION, which the test of this
    function holds against ball arithmetic on all of [-1/2, 1/2]. The multiplication by a power of 2 is exact.
    """
    c, u = [float.fromhex(x) for x in POWERS[dtype]], 2.0 ** -(MANTISSA[dtype] + 1)
    lowest = sum(x * (-0.5) ** k for k, x in enumerate(c))
    rising = sum(sum(x * 0.5**k for k, x in enumerate(c[first:])) * 0.5**first for first in range(1, len(c) - 1))
    falling = sum(x * 0.5**k for k, x in enumerate(c[1:-1], start=1)) / lowest
    # Errors of second order: each step also multiplies the errors before it.
    return u * (1 + max(rising, falling) + APPROXIMATION[dtype]) * (1 + 4 * len(c) * u)


APPROXIMATION = {"float32": 0.36, "float64": 0.39}  # in units of the format's unit roundoff


@operation
def exp2(typing: Any, x: types.Type) -> tuple[Any, Callable[..., Value]]:
    """2**x for x <= 0: exactly 1 at 0, exactly 0 below -126.5 (-1022.5), NaN for NaN, else within `exp2_error`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        return Emitter(context, builder, x, 1).exp2(args[0])

    return x(x), emit


@operation
def read(typing: Any, address: types.Type, like: types.Type) -> Any:
    """The number at an address, of the dtype of `like`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        found = builder.load(builder.inttoptr(args[0], context.get_value_type(like).as_pointer()))
        found.align = 1
        return found

    return like(types.intp, like), emit


@operation
def fetch(typing: Any, address: types.Type, code: types.Type, like: types.Type) -> Any:
    """The number at an address, in the dtype of `like`: of float32 (code 0), float64 (1), bfloat16 (2), float16 (3)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Value:
        word, to = ir.IntType(32), context.get_value_type(like)
        end, found = builder.append_basic_block("fetched"), []
        choice = builder.switch(args[1], end)
        start = builder.block
        for number, kind in enumerate((ir.FloatType(), ir.DoubleType(), ir.IntType(16), ir.IntType(16))):
            case = builder.append_basic_block("fetch")
            choice.add_case(ir.IntType(64)(number), case)
            builder.position_at_end(case)
            x = builder.load(builder.inttoptr(args[0], kind.as_pointer()))
            x.align = 1
            if number == 2:
                x = builder.bitcast(builder.shl(builder.zext(x, word), word(16)), ir.FloatType())
            elif number == 3:
                x = _half(builder, builder.zext(x, word))
            if x.type != to:
                x = builder.fpext(x, to) if to == ir.DoubleType() else builder.fptrunc(x, to)
            found.append((x, builder.block))
            builder.branch(end)
        builder.position_at_end(end)
        result = builder.phi(to)
        result.add_incoming(ir.Constant(to, 0.0), start)
        for x, block in found:
            result.add_incoming(x, block)
        return result

    return like(types.intp, types.intp, like), emit


def _half(build: Any, bits: Value) -> Value:
    """The float32 of a float16's bits: by its fields, or below the smallest normal number by its count of units."""
    word, number = ir.IntType(32), ir.FloatType()
    size = build.and_(bits, word(0x7FFF))
    sign = build.shl(build.and_(bits, word(0x8000)), word(16))
    finite = build.icmp_unsigned("<", size, word(0x7C00))
    fields = build.add(build.shl(size, word(13)), build.select(finite, word(0x38000000), word(0x70000000)))
    small = build.bitcast(build.fmul(build.uitofp(size, number), ir.Constant(number, 2.0**-24)), word)
    chosen = build.select(build.icmp_unsigned("<", size, word(0x400)), small, fields)
    return build.bitcast(build.or_(chosen, sign), number)
