"""An array namespace over NumPy that counts: operations by kind, bytes read and written, and bytes alive.

Every call of it, and every operator of its arrays, reads each operand once, at the size it is stored with, and writes
its result. A sum or maximum of n numbers is n operations. Views cost nothing and keep what they look at alive.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

ELEMENTWISE = {
    "exp": "exp",
    "log": "log",
    "tanh": "tanh",
    "maximum": "compare",
    "isfinite": "compare",
    "isinf": "compare",
    "isnan": "compare",
    "where": "select",
}
REDUCTIONS = {"max": "compare", "sum": "add", "all": "logic", "any": "logic"}
VIEWS = ("matrix_transpose", "expand_dims", "squeeze", "reshape")
OPERATORS = {
    "add": "add",
    "sub": "add",
    "mul": "multiply",
    "truediv": "divide",
    "lt": "compare",
    "le": "compare",
    "gt": "compare",
    "ge": "compare",
    "eq": "compare",
    "ne": "compare",
    "and": "logic",
    "or": "logic",
}


class Counter:
    """What was counted so far; also the namespace, to be passed as `xp`."""

    __name__ = "counting"
    float64, bool = np.float64, np.bool_

    def __init__(self) -> None:
        self.operations: collections.Counter[str] = collections.Counter()
        self.read = self.written = self.alive = self.peak = 0

    def array(self, x: Any) -> Counted:
        """An operand: it is there from the start, so that neither writing nor keeping it is counted."""
        return Counted(self, np.array(x), owned=False)

    def new(self, x: Any, *operands: Any, **operations: int) -> Counted:
        """The result of one call that read the operands."""
        self.operations.update(operations)
        self.read += sum(y.data.nbytes for y in operands if isinstance(y, Counted))
        self.written += x.nbytes
        return Counted(self, x, owned=True)

    def matmul(self, a: Counted, b: Counted) -> Counted:
        """A product of matrices: one multiply-add for each product."""
        x = np.asarray(np.matmul(a.data, b.data))
        return self.new(x, a, b, multiply_add=x.size * a.data.shape[-1])

    def clip(self, x: Counted, min: Any = None, max: Any = None) -> Counted:
        """One comparison for each bound."""
        bounds = (min is not None) + (max is not None)
        return self.new(np.asarray(np.clip(x.data, min, max)), x, compare=bounds * x.data.size)

    def astype(self, x: Counted, dtype: Any, *, copy: bool = True) -> Counted:
        """A conversion is traffic, no operation."""
        return x if not copy and x.dtype == dtype else self.new(x.data.astype(dtype), x)

    def concat(self, xs: list[Counted], *, axis: int) -> Counted:
        """Read and written, not computed."""
        return self.new(np.concatenate([x.data for x in xs], axis=axis), *xs)

    def full(self, shape: tuple[int, ...], value: float, *, dtype: Any, device: Any = None) -> Counted:
        """Written, not computed."""
        return self.new(np.full(shape, value, dtype))

    def zeros(self, shape: tuple[int, ...], *, dtype: Any, device: Any = None) -> Counted:
        """Written, not computed."""
        return self.full(shape, 0.0, dtype=dtype)

    def zeros_like(self, x: Counted) -> Counted:
        """Written, not computed."""
        return self.full(x.shape, 0.0, dtype=x.dtype)

    def __getattr__(self, name: str) -> Callable[..., Counted]:
        """The function of NumPy of that name, counted."""
        if name in ELEMENTWISE:
            return lambda *xs: self.apply(getattr(np, name), ELEMENTWISE[name], *xs)
        if name in VIEWS:
            return lambda x, *args, **kwargs: x.view(getattr(np, name)(x.data, *args, **kwargs))
        if name in REDUCTIONS:
            function, kind = getattr(np, name), REDUCTIONS[name]
            return lambda x, **axes: self.new(np.asarray(function(x.data, **axes)), x, **{kind: x.data.size})
        raise AttributeError(f"counting: {name} is not counted")

    def apply(self, function: Callable[..., Any], kind: str, *xs: Any) -> Counted:
        """An operation on each element of the broadcast operands."""
        with np.errstate(all="ignore"):
            x = np.asarray(function(*(y.data if isinstance(y, Counted) else y for y in xs)))
        return self.new(x, *xs, **{kind: x.size})


class Counted:
    """An array whose operators are counted."""

    device = "cpu"

    def __init__(self, counter: Counter, data: Any, *, owned: bool, base: Counted | None = None) -> None:
        self.counter, self.data, self.base = counter, data, base
        self.owned = data.nbytes if owned else 0
        counter.alive += self.owned
        counter.peak = max(counter.peak, counter.alive)

    def __del__(self) -> None:
        """The bytes are free again."""
        self.counter.alive -= self.owned

    def view(self, data: Any) -> Counted:
        """The same memory, seen otherwise."""
        assert data.size == 0 or np.shares_memory(data, self.data)
        return Counted(self.counter, data, owned=False, base=self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the array."""
        return self.data.dtype

    def __getitem__(self, index: Any) -> Counted:
        """A view."""
        return self.view(self.data[index])

    def __bool__(self) -> bool:
        """The truth of a 0-d array."""
        return bool(self.data)

    def __invert__(self) -> Counted:
        """Logic."""
        return self.counter.apply(np.logical_not, "logic", self)


def _operator(name: str, kind: str, reflected: bool) -> Callable[[Counted, Any], Counted]:
    function = getattr(__import__("operator"), f"__{name}__")

    def method(self: Counted, other: Any) -> Counted:
        pair = (other, self) if reflected else (self, other)
        return self.counter.apply(function, kind, *pair)

    return method


for _name, _kind in OPERATORS.items():
    setattr(Counted, f"__{_name}__", _operator(_name, _kind, reflected=False))
    setattr(Counted, f"__r{_name}__", _operator(_name, _kind, reflected=True))


class Tile:
    """A mask or bias as `Score` asks for it: a tile of it takes memory, and making it is not counted."""

    def __init__(self, x: Counted) -> None:
        self.x, self.lead = x, x.shape[:-2]

    def tile(self, i: slice, j: slice, L: int, S: int, *, xp: Any, device: Any = None) -> Counted:
        """Its cells."""
        i, j = (slice(None) if n == 1 else at for at, n in zip((i, j), self.x.shape[-2:], strict=True))
        return Counted(xp, self.x.data[..., i, j].copy(), owned=True)
