"""Masks that are given: by lengths, cell by cell, or by a function of positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import frozen
from refattn._core.arrays import Array, dtype_name, is_array, moved, readable, to_numpy
from refattn._core.checks import check_cells
from refattn.masks.arguments import batch_of, lead_of, lengths_of, per_head, picked, positions, shown
from refattn.masks.base import Ints, Mask, Positions
from refattn.masks.forms import size
from refattn.masks.held import Held


@dataclass(frozen=True, eq=False, repr=False)
class Lengths(Mask):
    """The first `key` keys, for the first `query` queries."""

    key: Ints
    query: Ints | None

    def __post_init__(self) -> None:
        """Refuse batch shapes that do not broadcast."""
        self._batch()

    @property
    def lead(self) -> tuple[int, ...]:
        """A batch of lengths, the same for all heads."""
        return lead_of(self._batch())

    def _batch(self) -> tuple[int, ...]:
        """Batch shape of both lengths."""
        return batch_of("masks.lengths", key=self.key.shape, query=() if self.query is None else self.query.shape)

    def _check(self, function: str, L: int, S: int) -> None:
        for name, x, axis, n in (("key", self.key, "S", S), ("query", self.query, "L", L)):
            if x is not None and np.any(x > n):
                raise ValueError(f"{function}: {name} of masks.lengths must be at most {axis}={n}; got {x.max()}.")

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        key = moved(per_head(self.key)[..., None, None], xp, device)
        keep = positions(j, xp, device)[None, :] < key
        if self.query is None:
            return keep
        query = moved(per_head(self.query)[..., None, None], xp, device)
        return keep & (positions(i, xp, device)[:, None] < query)

    def _interval(self, L: int, S: int) -> tuple[Ints, Ints]:
        stop = per_head(self.key)[..., None]
        if self.query is not None:
            stop = np.where(np.arange(L) < per_head(self.query)[..., None], stop, 0)
        return np.zeros(1, np.int64), stop

    def _at(self, index: tuple[int, ...]) -> Mask:
        at = self._batch(), index[:-1]
        return Lengths(picked(self.key, *at), None if self.query is None else picked(self.query, *at))

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"masks.lengths({shown(self.key)}{'' if self.query is None else f', query={shown(self.query)}'})"


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
        check_cells("masks.from_function", cells.shape, shape)
        return moved(np.atleast_2d(cells), xp, device)

    def _at(self, index: tuple[int, ...]) -> Mask:
        b, h = (np.broadcast_to(x, self.lead)[index] for x in (self.b, self.h))
        return FromFunction(self.function, np.asarray(b), np.asarray(h), f"{self.text}.at({index})")

    def __repr__(self) -> str:
        """The call that makes it."""
        return self.text


def heads_of(function: str, batch: Any, heads: Any) -> tuple[Ints, Ints, list[str]]:
    """Batch entries and heads that a mask tells apart, as arrays that broadcast, and as they are typed."""
    h = frozen(np.asarray(0) if heads is None else np.arange(size(function, "heads", heads, 0)))
    b = frozen(np.asarray(0) if batch is None else np.arange(size(function, "batch", batch, 0))[:, None])
    return b, h, [f"{name}={n}" for name, n in (("batch", batch), ("heads", heads)) if n is not None]


def dense_of(function: str, name: str, x: Any) -> Dense | Held:
    """A boolean array of any library as a mask."""
    if not is_array(x):
        raise TypeError(f"{function}: {name} must be a Mask or a boolean array; got {type(x).__name__}.")
    if dtype_name(x) != "bool":
        hint = " Pass an additive mask as bias=." if "float" in dtype_name(x) else ""
        raise TypeError(f"{function}: {name} must be boolean, True where a key takes part; got {dtype_name(x)}.{hint}")
    if x.ndim < 2:
        raise ValueError(f"{function}: {name} must have the axes L and S, (..., L, S); got shape {tuple(x.shape)}.")
    if not readable(x):
        return Held(x)
    cells = frozen(to_numpy(x))
    if cells.dtype != np.bool_:  # a sparse matrix has a shape and a dtype, and is no array
        raise TypeError(f"{function}: {name} must be a Mask or a boolean array; got {type(x).__name__}.")
    return Dense(cells)


def as_mask(function: str, mask: Any, name: str = "mask") -> Mask | None:
    """The public argument `mask`, or another of its kind (None, a Mask or a boolean array) as a Mask or None.

    Parameters
    ----------
    function : str
        Name of the public function that a message begins with.
    mask : None, Mask or array of bool, shape (..., L, S)
        What the user passed.
    name : str, default "mask"
        What the argument is called.

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
    return mask if mask is None or isinstance(mask, Mask) else dense_of(function, name, mask)


def lengths(key: int | Sequence[int] | Array, query: int | Sequence[int] | Array | None = None) -> Mask:
    """Mask of padded batches: the first ``key[b]`` keys take part, for the first ``query[b]`` queries.

        query i sees key j  iff  j < key[b]  and  i < query[b]

    Parameters
    ----------
    key : int or array of int, shape (B,)
        Number of keys that are no padding, at most S.
    query : int or array of int, shape (B,), optional
        Number of queries that are no padding, at most L; the others see nothing. Default: all.

    Returns
    -------
    Mask
        With ``lead == (B, 1)``, or ``()`` where both are integers.

    Raises
    ------
    TypeError
        If `key` or `query` is no integer and no integer array.
    ValueError
        If a length is negative, or the two do not broadcast; later, where the mask is used, if one lies beyond S or L.

    Notes
    -----
    Rows are intervals: every form is in closed form. For a causal mask on padded batches give `causal` the offsets
    ``key - query``: "lower_right" anchors at the padded corner.

    Examples
    --------
    >>> from refattn import masks
    >>> print(masks.lengths([2, 4], query=[1, 2]).draw(2, 4))
    (0, :)
      0123
    0 ##..
    1 ....
    <BLANKLINE>
    (1, :)
      0123
    0 ####
    1 ####
    """
    return Lengths(
        lengths_of("masks.lengths", "key", key), None if query is None else lengths_of("masks.lengths", "query", query)
    )


def array(x: Array) -> Mask:
    """Mask that is given cell by cell.

        query i sees key j  iff  x[..., i, j]

    Parameters
    ----------
    x : array of bool, shape (..., L, S)
        Of any array library; True where the key takes part. Leading axes broadcast to (..., H), and L and S may be 1.

    Returns
    -------
    Mask
        With ``lead == x.shape[:-2]``. It keeps a copy of `x` on the host; or `x` itself, where its values cannot be
        read yet: a dask array, or one inside a transformation of JAX or PyTorch (jit, vmap, grad).

    Raises
    ------
    TypeError
        If `x` is not an array, or not boolean.
    ValueError
        If `x` has fewer than two axes; later, where the mask is used, if L or S does not fit.

    Notes
    -----
    Its rows are taken to be no intervals, so every form reads all cells.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import masks
    >>> mask = masks.array(np.array([[True, False, True]])) | masks.window(0, 0)
    >>> print(mask.draw(3, 3))
      012
    0 #.#
    1 ###
    2 #.#
    """
    return dense_of("masks.array", "x", x)


def from_function(f: Callable[..., Array], *, batch: int | None = None, heads: int | None = None) -> Mask:
    """Mask that a function of positions decides, as FlexAttention's mask_mod does.

        query i sees key j  iff  f(b, h, i, j)

    Parameters
    ----------
    f : callable
        ``f(b, h, q, kv)`` gets four int64 NumPy arrays of positions (batch entry, head, query, key) that broadcast
        against each other, and returns a boolean array of any library that broadcasts to their common shape. It must
        depend on nothing else, since it is called tile by tile.
    batch, heads : int, optional
        Number of batch entries and of query heads. Default: f does not look at b (at h), and gets 0.

    Returns
    -------
    Mask
        With ``lead`` of ``()``, ``(heads,)``, ``(batch, 1)`` or ``(batch, heads)``.

    Raises
    ------
    TypeError
        If `f` cannot be called, or `batch` or `heads` is no integer; later, if f does not return a boolean array.
    ValueError
        If `batch` or `heads` is negative; later, if what f returns does not broadcast.

    Notes
    -----
    f is called with tiles; counting and `blocks` evaluate every cell.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import masks
    >>> document = np.array([0, 0, 0, 1, 1])
    >>> mask = masks.from_function(lambda b, h, q, kv: document[q] == document[kv]) & masks.causal()
    >>> print(mask.draw(5, 5))
      01234
    0 #....
    1 ##...
    2 ###..
    3 ...#.
    4 ...##
    """
    if not callable(f):
        raise TypeError(f"masks.from_function: f must be a function of (b, h, q, kv); got {type(f).__name__}.")
    b, h, given = heads_of("masks.from_function", batch, heads)
    return FromFunction(f, b, h, f"masks.from_function({', '.join([getattr(f, '__name__', repr(f)), *given])})")
