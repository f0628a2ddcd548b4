"""The families of masks that are rules on positions, and the checks of the arguments they are made from."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, dtype_name, is_array, to_numpy
from refattn.masks.base import Ints, Mask, Positions

Anchor = str | int | npt.NDArray[np.integer[Any]] | None


def positions(x: Positions, xp: Any, device: Any) -> Array:
    """Positions as an int64 array of the namespace."""
    if isinstance(x, slice):
        return xp.arange(x.start, x.stop, dtype=xp.int64, device=device)
    return moved(np.asarray(x, np.int64), xp, device)


def moved(x: npt.NDArray[Any], xp: Any, device: Any) -> Array:
    """A host array in the namespace."""
    # A copy, since PyTorch warns when it is to share a read-only array.
    return xp.asarray(x, copy=True, device=device)


def frozen(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only copy: a mask must not change when its maker's array does."""
    x = np.array(x)
    x.setflags(write=False)
    return x


@dataclass(frozen=True, eq=False, repr=False)
class Band(Mask):
    """Keys from `left` before to `right` behind the key that the query stands on; None = no end on that side."""

    left: int | None
    right: int | None
    anchor: Anchor
    name: str  # of the function of `refattn.masks` that makes it

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of offsets, the same for all heads."""
        return (*self.anchor.shape, 1) if isinstance(self.anchor, np.ndarray) else ()

    def _check(self, function: str, L: int, S: int) -> None:
        if self.anchor is None and L != S:
            raise ValueError(
                f'{function}: {self!r} is ambiguous for L={L}, S={S}. Pass anchor="lower_right" or anchor="upper_left".'
            )

    def _end(self, distance: int, L: int, S: int) -> Ints:
        """Key that lies `distance` behind the one query 0 stands on, of shape `lead`."""
        # Cut to where it no longer matters, in Python integers, so that no offset overflows.
        if isinstance(self.anchor, np.ndarray):
            return np.asarray(np.clip(self.anchor.astype(object) + distance, -L, S), np.int64)[..., None]
        offset = self.anchor if isinstance(self.anchor, int) else S - L if self.anchor == "lower_right" else 0
        return np.asarray(min(max(offset + distance, -L), S), np.int64)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        q, k = positions(i, xp, device)[:, None], positions(j, xp, device)[None, :]
        keep = xp.ones((1, 1), dtype=xp.bool, device=device)
        if self.left is not None:
            keep = keep & (k >= q + moved(self._end(-self.left, L, S)[..., None, None], xp, device))
        if self.right is not None:
            keep = keep & (k <= q + moved(self._end(self.right, L, S)[..., None, None], xp, device))
        return keep

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints]:
        i = np.arange(L)
        first = np.zeros(1, np.int64) if self.left is None else i + self._end(-self.left, L, S)[..., None]
        stop = np.full(1, S) if self.right is None else i + self._end(self.right, L, S)[..., None] + 1
        return np.clip(first, 0, S), np.clip(stop, 0, S)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return Band(self.left, self.right, int(np.asarray(self.anchor)[index[:-1]]), self.name)

    def __repr__(self) -> str:
        """The call that makes it."""
        sides = [] if self.name == "causal" else [repr(self.left), repr(self.right)]
        anchor = [] if self.anchor is None else [f"anchor={_shown(self.anchor)}"]
        return f"masks.{self.name}({', '.join(sides + anchor)})"


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """The first `key` keys, for the first `query` queries."""

    key: Ints
    query: Ints | None

    def __post_init__(self) -> None:
        """Refuse batch shapes that do not broadcast."""
        try:
            self._batch()
        except ValueError:
            raise ValueError(
                f"masks.lengths: key and query must have the same batch shape; got {self.key.shape} and "
                f"{np.asarray(self.query).shape}."
            ) from None

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of lengths, the same for all heads."""
        batch = self._batch()
        return (*batch, 1) if batch else ()

    def _batch(self) -> tuple[int, ...]:
        """Batch shape of both lengths."""
        return np.broadcast_shapes(self.key.shape, () if self.query is None else self.query.shape)

    def _check(self, function: str, L: int, S: int) -> None:
        for name, x, axis, n in (("key", self.key, "S", S), ("query", self.query, "L", L)):
            if x is not None and np.any(x > n):
                raise ValueError(f"{function}: {name} of masks.lengths must be at most {axis}={n}; got {x.max()}.")

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        key = moved(self._per_lead(self.key)[..., None, None], xp, device)
        keep = positions(j, xp, device)[None, :] < key
        if self.query is None:
            return keep
        query = moved(self._per_lead(self.query)[..., None, None], xp, device)
        return keep & (positions(i, xp, device)[:, None] < query)

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints]:
        stop = self._per_lead(self.key)[..., None]
        if self.query is not None:
            stop = np.where(np.arange(L) < self._per_lead(self.query)[..., None], stop, 0)
        return np.zeros(1, np.int64), stop

    def _per_lead(self, x: Ints) -> Ints:
        """Lengths with the axis of the heads, where there are leading axes."""
        return x[..., None] if self.lead else x

    def _at(self, index: tuple[int, ...]) -> Mask:
        def pick(x: Ints) -> Ints:
            return np.asarray(np.broadcast_to(x, self._batch())[index[:-1]])

        return Lengths(pick(self.key), None if self.query is None else pick(self.query))

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"masks.lengths({_shown(self.key)}{'' if self.query is None else f', query={_shown(self.query)}'})"


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Mask):
    """The cells of a boolean array, shape (..., L or 1, S or 1)."""

    cells: npt.NDArray[np.bool_]

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes before the last two."""
        return self.cells.shape[:-2]

    def _check(self, function: str, L: int, S: int) -> None:
        if self.cells.shape[-2] not in (1, L) or self.cells.shape[-1] not in (1, S):
            raise ValueError(
                f"{function}: mask must have the shape (..., L, S), or 1 for either, with L={L} and S={S}; "
                f"got {self.cells.shape}."
            )

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        rows = self.cells if self.cells.shape[-2] == 1 else self.cells[..., i, :]
        return moved(rows if self.cells.shape[-1] == 1 else rows[..., j], xp, device)

    def _at(self, index: tuple[int, ...]) -> Mask:
        return Dense(self.cells[index])

    def __repr__(self) -> str:
        """The call that makes it, with the array's shape in place of its cells."""
        return f"masks.array(<bool array {self.cells.shape}>)"


@dataclass(frozen=True, eq=False, repr=False)
class FromFunction(Mask):
    """The cells where a function of (batch, head, query, key) positions is True."""

    function: Callable[..., Array]
    b: Ints
    h: Ints
    text: str

    @property
    def lead(self) -> tuple[int, ...]:
        """(batch, heads) as far as they were given."""
        return np.broadcast_shapes(self.b.shape, self.h.shape)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        q, k = positions(i, np, None)[:, None], positions(j, np, None)[None, :]
        found = self.function(self.b[..., None, None], self.h[..., None, None], q, k)
        shape = (*self.lead, q.size, k.size)
        cells = (
            np.asarray(found) if isinstance(found, bool | np.bool_) else to_numpy(found) if is_array(found) else None
        )
        if cells is None or cells.dtype != np.bool_:
            got = type(found).__name__ if cells is None else dtype_name(found)
            raise TypeError(f"masks.from_function: f must return a boolean array; got {got}.")
        try:
            fits = np.broadcast_shapes(cells.shape, shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"masks.from_function: f must return an array that broadcasts to the shape of b, h, q and kv together, "
                f"here {shape}; got {cells.shape}."
            )
        return moved(np.atleast_2d(cells), xp, device)

    def _at(self, index: tuple[int, ...]) -> Mask:
        b, h = (np.broadcast_to(x, self.lead)[index] for x in (self.b, self.h))
        return FromFunction(self.function, np.asarray(b), np.asarray(h), f"{self.text}.at({index})")

    def __repr__(self) -> str:
        """The call that makes it."""
        return self.text


def _shown(x: Any) -> str:
    """An argument as it would be typed; a long array by its shape."""
    if not isinstance(x, np.ndarray):
        return repr(x)
    return repr(x.tolist()) if x.size <= 8 else f"<int array {x.shape}>"


def integers(function: str, name: str, x: Any, rule: str) -> int | npt.NDArray[Any]:
    """A Python integer or a read-only integer array on the host, from a number, a list or an array of any library."""
    try:
        return _integer(x)
    except TypeError:
        pass
    wrong = f"{function}: {name} must be {rule}; got "
    if isinstance(x, list | tuple):
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"{wrong}a list whose rows differ in length.") from None
    if not is_array(x):
        raise TypeError(f"{wrong}{x!r}.")
    host = to_numpy(x)
    if host.dtype.kind not in "iu":
        raise TypeError(f"{wrong}{dtype_name(host)}.")
    return frozen(host) if host.ndim else int(host)


def _integer(x: Any) -> int:
    """A number as a Python integer; a boolean is none, nor is an array."""
    if isinstance(x, bool | np.bool_) or is_array(x):
        raise TypeError
    return operator.index(x)


def anchor_of(function: str, anchor: Any) -> Anchor:
    """An anchor that was checked."""
    if anchor is None or (isinstance(anchor, str) and anchor in ("lower_right", "upper_left")):
        return anchor
    rule = '"lower_right", "upper_left", an integer or an integer array of batch shape'
    if isinstance(anchor, str):
        raise ValueError(f"{function}: anchor must be {rule}; got {anchor!r}.")
    return integers(function, "anchor", anchor, rule)


def reach_of(name: str, x: Any) -> int | None:
    """A side of a window that was checked."""
    rule = f"masks.window: {name} must be a non-negative integer or None; got"
    if x is None:
        return None
    try:
        n = _integer(x)
    except TypeError:
        raise TypeError(f"{rule} {x!r}.") from None
    if n < 0:
        raise ValueError(f"{rule} {n}.")
    return n


def lengths_of(name: str, x: Any) -> Ints:
    """Lengths that were checked, in int64."""
    rule = "a non-negative integer or an array of them, of batch shape"
    found = np.asarray(integers("masks.lengths", name, x, rule))
    if np.any(found < 0) or np.any(found > np.iinfo(np.int64).max):
        worst = found.min() if np.any(found < 0) else found.max()
        raise ValueError(f"masks.lengths: {name} must be {rule}; got {worst}.")
    return frozen(found.astype(np.int64))


def dense_of(function: str, name: str, x: Any) -> Dense:
    """A boolean array of any library as a mask."""
    if not is_array(x):
        raise TypeError(f"{function}: {name} must be a Mask or a boolean array; got {type(x).__name__}.")
    if dtype_name(x) != "bool":
        hint = " Pass an additive mask as bias=." if "float" in dtype_name(x) else ""
        raise TypeError(f"{function}: {name} must be boolean, True where a key takes part; got {dtype_name(x)}.{hint}")
    if x.ndim < 2:
        raise ValueError(f"{function}: {name} must have the axes L and S, (..., L, S); got shape {tuple(x.shape)}.")
    cells = frozen(to_numpy(x))
    if cells.dtype != np.bool_:  # a sparse matrix has a shape and a dtype, and is no array
        raise TypeError(f"{function}: {name} must be a Mask or a boolean array; got {type(x).__name__}.")
    return Dense(cells)


def as_mask(function: str, mask: Any) -> Mask | None:
    """The public argument `mask` (None, a Mask or a boolean array) as a Mask or None.

    Parameters
    ----------
    function : str
        Name of the public function that a message begins with.
    mask : None, Mask or array of bool, shape (..., L, S)
        What the user passed.

    Returns
    -------
    Mask or None
        None where every key takes part.

    Raises
    ------
    TypeError
        If `mask` is neither, or an array that is not boolean.
    ValueError
        If an array lacks the axes L and S.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import masks
    >>> masks.as_mask("attention", np.ones((4, 6), dtype=bool))
    masks.array(<bool array (4, 6)>)
    """
    return mask if mask is None or isinstance(mask, Mask) else dense_of(function, "mask", mask)
