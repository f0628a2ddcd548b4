"""Casts of JAX arrays to float64 and back, each exact or rounded once, which XLA's own casts are not.

XLA computes on a CPU with subnormal numbers flushed to zero, in casts too, and when it compiles a sum it may leave out
what rounds on purpose, as in (x + c) - c. Moves of bits and integer arithmetic are left alone. float64's own subnormals
are lost whatever a cast does: every sum and product flushes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

Array = Any
Cast = Callable[[Array], Array]

# The formats whose subnormals XLA flushes: the unsigned integers of their size, and the value of the last bit.
# bfloat16 is the upper half of a float32.
FLUSHED = {"float32": ("uint32", 2.0**-149), "bfloat16": ("uint16", 2.0**-133)}


@cache
def to_float64(name: str) -> Cast:
    """The cast from a flushed format to float64, differentiated as one."""
    import jax

    xp: Any = jax.numpy
    word, unit = FLUSHED[name]
    normal = int(2.0**-126 / unit)  # the bits of the smallest normal number
    sign = 1 << (8 * xp.dtype(word).itemsize - 1)

    def cast(x: Array) -> Array:
        bits = x.view(word)
        size = bits & (sign - 1)
        small = xp.astype(size, xp.float64) * unit
        return xp.where(size < normal, xp.where(bits < sign, small, -small), xp.astype(x, xp.float64))

    return _straight(cast, xp.float64)


@cache
def from_float64(name: str, precision: int) -> Cast:
    """The cast from float64 to a narrower format, rounded once and to nearest even, differentiated as a cast."""
    import jax

    xp: Any = jax.numpy
    narrow = getattr(xp, name)
    lost = (1 << (53 - precision - 2)) - 1  # all but two of the bits that the format does not hold

    def cast(x: Array) -> Array:
        # To odd, with two bits to spare, after which any further roundings on the way are one (Boldo & Melquiond 2008).
        bits = x.view(xp.uint64)
        odd = xp.where(bits & lost == 0, bits, bits & ~lost | (lost + 1)).view(xp.float64)
        found = xp.astype(odd, narrow)
        if name not in FLUSHED:
            return found
        word, unit = FLUSHED[name]
        size = xp.abs(x)
        small = xp.astype(xp.rint(xp.where(size < 2.0**-126, size, 0.0) / unit), word)
        small = small | xp.astype(xp.signbit(x), word) << (8 * small.dtype.itemsize - 1)
        return xp.where(size < 2.0**-126, small.view(narrow), found)

    return _straight(cast, narrow)


def _straight(f: Cast, dtype: Any) -> Cast:
    """The function, with the derivative of a cast to the dtype."""
    import jax

    cast = jax.custom_jvp(f)
    cast.defjvp(lambda x, t: (f(*x), jax.numpy.astype(*t, dtype)))
    return cast  # type: ignore[no-any-return]
