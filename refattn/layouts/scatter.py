"""New tokens written into a cache of fixed size."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core.arrays import Array, array_namespace, dtype_name
from refattn._core.checks import check_choice, check_integer
from refattn.layouts.host import back, lengths_of, on_host

FUNCTION = "layouts.scatter"


def scatter(cache: Array, update: Array, write_indices: Any = None, *, axis: int = -2, mode: str = "linear") -> Array:
    """Cache into which new tokens were written, each sequence's from its own position on: ONNX's ``TensorScatter``.

        present[b, ..., write_indices[b] + n, ...] = update[b, ..., n, ...],  the position modulo P in "circular" mode

    Parameters
    ----------
    cache : array, shape (B, ..., P, ...)
        Of any dtype, with P positions on `axis`. It is left as it is.
    update : array, shape (B, ..., N, ...)
        N new tokens for each sequence, N <= P; all other axes are those of `cache`, and so is the dtype.
    write_indices : array of int, shape (B,), optional
        Position of the first new token of each sequence, a list or an array of any library. Default: 0.
    axis : int, default -2
        Axis of the positions; any but the first.
    mode : {"linear", "circular"}, default "linear"
        Whether tokens behind the last position are refused, or written from the first one on.

    Returns
    -------
    array, shape (B, ..., P, ...)
        New, in the library and on the device of `cache`.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit, and for positions that are negative or, in "linear" mode, beyond the cache.

    Notes
    -----
    In "circular" mode the specification's pseudo-code takes the whole index modulo P, the batch entry too; ONNX's
    reference and this function take the position alone.

    References
    ----------
    .. [1] ONNX, "Operator Schemas: TensorScatter", version 24; onnx/reference/ops/op_tensor_scatter.py.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> cache, update = np.zeros((2, 4, 1), int), np.array([[[1], [2]], [[3], [4]]])
    >>> layouts.scatter(cache, update, [1, 3], mode="circular")[..., 0]
    array([[0, 1, 2, 0],
           [4, 0, 0, 3]])
    """
    old, new = on_host(FUNCTION, "cache", cache, None), on_host(FUNCTION, "update", update, None)
    array_namespace(FUNCTION, cache=cache, update=update)
    check_choice(FUNCTION, "mode", mode, ("linear", "circular"))
    if dtype_name(old) != dtype_name(new):
        raise TypeError(f"{FUNCTION}: update must have cache's dtype {dtype_name(old)}; got {dtype_name(new)}.")
    n = old.ndim
    at = check_integer(FUNCTION, "axis", axis, least=-n)
    if n < 2 or at >= n or at % n == 0:
        raise ValueError(
            f"{FUNCTION}: axis must be one of cache's axes but the first, the batch; got {at} for {old.shape}."
        )
    old = np.moveaxis(old, at, 1)
    B, P = old.shape[:2]
    fresh = np.moveaxis(new, at, 1) if new.ndim == n else None
    if fresh is None or (B, *old.shape[2:]) != (fresh.shape[0], *fresh.shape[2:]) or fresh.shape[1] > P:
        raise ValueError(
            f"{FUNCTION}: update must have cache's shape but for at most P={P} positions on axis {at}; got cache "
            f"{tuple(cache.shape)} and update {new.shape}."
        )
    N = fresh.shape[1]
    if write_indices is None:
        first = np.zeros(B, np.int64)
    else:
        first = lengths_of(FUNCTION, "write_indices", write_indices, B, P - N if mode == "linear" else None, "P - N")
    present = old.copy()
    positions = first[:, None] % max(P, 1) + np.arange(N)
    present[np.arange(B)[:, None], positions % max(P, 1)] = fresh
    return back(np.moveaxis(present, 1, at), like=cache)
