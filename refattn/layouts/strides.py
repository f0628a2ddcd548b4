"""The same numbers at other places of memory: views with margins, and views that repeat one row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from refattn._core.arrays import Array, array_namespace, from_numpy, library_of
from refattn._core.checks import check_integer
from refattn.layouts.host import filled, on_host


def poisoned(x: Array, *, margin: int | Sequence[int] | None = None, fill: float = math.nan) -> Array:
    """View with the numbers of an array in a larger one, whose other cells hold NaN.

    A kernel that takes strides for those of its shape, or reads past an end, reads NaN.

    Parameters
    ----------
    x : array, shape (..., E)
        Of any library and dtype that has `fill`.
    margin : int or sequence of int, optional
        Cells before and behind each axis, for all axes or one by one. Default: one on each axis but the last, so that
        the last axis stays contiguous and aligned.
    fill : float, default NaN
        What the margins hold.

    Returns
    -------
    array
        The same numbers, bit for bit, in a view with the strides of the larger array; on JAX, whose arrays have no
        strides, a copy of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array, or a margin is no integer.
    ValueError
        If a margin is negative, there is not one for each axis, or the dtype does not have `fill`.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> view = layouts.poisoned(np.ones((2, 3), np.float32))
    >>> view.tolist(), view.base.tolist()[0]
    ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [nan, nan, nan])
    """
    function = "layouts.poisoned"
    host = on_host(function, "x", x, None)
    margin = [1] * (host.ndim - 1) + [0] * min(1, host.ndim) if margin is None else margin
    given = list(margin) if isinstance(margin, Sequence) else [margin] * host.ndim
    if len(given) != host.ndim:
        raise ValueError(
            f"{function}: margin must have an entry for each axis of x; got {len(given)} for {host.shape}."
        )
    sides = [check_integer(function, "margin", side) for side in given]
    whole = filled(function, tuple(n + 2 * side for n, side in zip(host.shape, sides, strict=True)), host.dtype, fill)
    inside = tuple(slice(side, side + n) for n, side in zip(host.shape, sides, strict=True))
    whole[inside] = host
    return from_numpy(whole, like=x)[inside]


def expanded(x: Array, axis: int, size: int) -> Array:
    """View that repeats the one entry of an axis, with stride 0, as ``expand`` and broadcasting make it.

    Parameters
    ----------
    x : array, shape (..., E)
        Of any library and dtype, of length 1 along `axis`.
    axis : int
        The axis, counted from the front or, negative, from the back.
    size : int
        Length of the axis in the result.

    Returns
    -------
    array
        A view of a copy of `x`, with stride 0 along `axis`; on JAX, whose arrays have no strides, an array.

    Raises
    ------
    TypeError
        If `x` is not an array, or a number is no integer.
    ValueError
        If `axis` is no axis of `x`, or not of length 1.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> layouts.expanded(np.ones((1, 3)), axis=0, size=4).strides
    (0, 8)
    """
    function = "layouts.expanded"
    host = on_host(function, "x", x, None)
    size = check_integer(function, "size", size)
    at = check_integer(function, "axis", axis, least=-host.ndim)
    if at >= host.ndim or host.shape[at] != 1:
        raise ValueError(f"{function}: axis must be an axis of length 1; got axis {at} of {host.shape}.")
    shape = list(host.shape)
    shape[at] = size
    if library_of(x) == "jax":
        return from_numpy(np.array(np.broadcast_to(host, shape)), like=x)
    new = from_numpy(np.array(host, order="C", copy=True), like=x)
    return array_namespace(function, x=new).broadcast_to(new, tuple(shape))
