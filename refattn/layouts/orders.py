"""The order of the axes: heads before or after positions, batch first or second; query, key and value in one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refattn._core.arrays import Array, dtype_name, library_of
from refattn._core.checks import check_choice
from refattn.layouts.host import Host, back, on_host

# Of each order: how many leading axes it needs, and its axes in words.
AXES = {"bhld": "(..., H, L, E)", "blhd": "(..., L, H, E)", "lbhd": "(L, B, H, E)"}
ORDERS = tuple(AXES)


def stored_order(x: Host, order: str) -> Host:
    """A view of (..., H, L, E) in another order of its axes."""
    if order == "bhld":
        return x
    return np.swapaxes(x, -2, -3) if order == "blhd" else np.transpose(x, (2, 0, 1, 3))


def logical_order(x: Host, order: str) -> Host:
    """A view in the order (..., H, L, E)."""
    if order == "bhld":
        return x
    return np.swapaxes(x, -2, -3) if order == "blhd" else np.transpose(x, (1, 2, 0, 3))


def to_order(x: Array, order: str) -> Array:
    """Put the axes of a logical array into the order in which a kernel stores them.

    Parameters
    ----------
    x : array, shape (..., H, L, E)
        Of any library and dtype; query, key, value, output or a gradient. For "lbhd" (B, H, L, E).
    order : {"bhld", "blhd", "lbhd"}
        Order of the result: "blhd" is (..., L, H, E) (FlashAttention, JAX), "lbhd" (L, B, H, E) (Megatron's sbhd).

    Returns
    -------
    array
        The same numbers, bit for bit, in a new C-ordered array of the same library, on the same device.

    Raises
    ------
    TypeError
        If `x` is not an array.
    ValueError
        If `order` is another word, or `x` has too few axes.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> layouts.to_order(np.zeros((2, 4, 5, 8)), "lbhd").shape
    (5, 2, 4, 8)
    """
    return back(stored_order(_checked("layouts.to_order", x, order, stored=False), order), x)


def from_order(x: Array, order: str) -> Array:
    """Put the axes of a kernel's array into the order (..., H, L, E).

    Parameters
    ----------
    x : array, shape (..., L, H, E), (L, B, H, E) or (..., H, L, E)
        Of any library and dtype.
    order : {"bhld", "blhd", "lbhd"}
        Order of `x`, as in `to_order`.

    Returns
    -------
    array, shape (..., H, L, E)
        The same numbers, bit for bit, in a new C-ordered array of the same library, on the same device.

    Raises
    ------
    TypeError
        If `x` is not an array.
    ValueError
        If `order` is another word, or `x` has too few axes.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> layouts.from_order(np.zeros((2, 5, 4, 8)), "blhd").shape
    (2, 4, 5, 8)
    """
    return back(logical_order(_checked("layouts.from_order", x, order, stored=True), order), x)


def pack_qkv(query: Array, key: Array, value: Array) -> Array:
    """Stack query, key and value token by token, as FlashAttention's ``qkvpacked`` functions take them.

    Parameters
    ----------
    query, key, value : array, shape (..., H, L, E)
        All of one shape, dtype and library.

    Returns
    -------
    array, shape (..., L, 3, H, E)
        The same numbers, bit for bit.

    Raises
    ------
    TypeError
        If one of them is not an array, or their dtypes or libraries differ.
    ValueError
        If their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> x = np.zeros((2, 4, 5, 8))
    >>> layouts.pack_qkv(x, x, x).shape
    (2, 5, 3, 4, 8)
    """
    return _stacked("layouts.pack_qkv", {"query": query, "key": key, "value": value})


def unpack_qkv(qkv: Array) -> tuple[Array, Array, Array]:
    """Take query, key and value out of the array that `pack_qkv` makes.

    Parameters
    ----------
    qkv : array, shape (..., L, 3, H, E)
        Of any library and dtype.

    Returns
    -------
    tuple of array, each of shape (..., H, L, E)
        Query, key and value.

    Raises
    ------
    TypeError
        If `qkv` is not an array.
    ValueError
        If it does not have such a shape.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> query, key, value = layouts.unpack_qkv(np.zeros((2, 5, 3, 4, 8)))
    >>> query.shape
    (2, 4, 5, 8)
    """
    query, key, value = _unstacked("layouts.unpack_qkv", "qkv", qkv, 3)
    return query, key, value


def pack_kv(key: Array, value: Array) -> Array:
    """Stack key and value token by token, as FlashAttention's ``kvpacked`` functions take them.

    Parameters
    ----------
    key, value : array, shape (..., Hk, S, E)
        Both of one shape, dtype and library.

    Returns
    -------
    array, shape (..., S, 2, Hk, E)
        The same numbers, bit for bit.

    Raises
    ------
    TypeError
        If one of them is not an array, or their dtypes or libraries differ.
    ValueError
        If their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> x = np.zeros((2, 4, 5, 8))
    >>> layouts.pack_kv(x, x).shape
    (2, 5, 2, 4, 8)
    """
    return _stacked("layouts.pack_kv", {"key": key, "value": value})


def unpack_kv(kv: Array) -> tuple[Array, Array]:
    """Take key and value out of the array that `pack_kv` makes.

    Parameters
    ----------
    kv : array, shape (..., S, 2, Hk, E)
        Of any library and dtype.

    Returns
    -------
    tuple of array, each of shape (..., Hk, S, E)
        Key and value.

    Raises
    ------
    TypeError
        If `kv` is not an array.
    ValueError
        If it does not have such a shape.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> key, value = layouts.unpack_kv(np.zeros((2, 5, 2, 4, 8)))
    >>> key.shape
    (2, 4, 5, 8)
    """
    key, value = _unstacked("layouts.unpack_kv", "kv", kv, 2)
    return key, value


def _checked(function: str, x: Array, order: str, *, stored: bool) -> Host:
    """An array with as many axes as its order needs."""
    check_choice(function, "order", order, ORDERS)
    host = on_host(function, "x", x, None)
    if host.ndim < 3 or (order == "lbhd" and host.ndim != 4):
        axes = AXES[order if stored else "bhld"] if order != "lbhd" or stored else "(B, H, L, E)"
        count = "4 axes" if order == "lbhd" else "at least 3 axes"
        raise ValueError(f"{function}: x must have {count} {axes}; got {host.shape}.")
    return host


def _stacked(function: str, arrays: dict[str, Array]) -> Array:
    """Logical arrays of one shape, side by side before their heads."""
    hosts = {name: on_host(function, name, x, None) for name, x in arrays.items()}
    (first, x), *others = hosts.items()
    if x.ndim < 3:
        raise ValueError(f"{function}: {first} must have at least 3 axes (..., H, L, E); got {x.shape}.")
    for name, other in others:
        if library_of(arrays[name]) != library_of(arrays[first]) or other.dtype != x.dtype:
            kinds = [f"{dtype_name(arrays[n])} of {library_of(arrays[n])}" for n in (first, name)]
            raise TypeError(
                f"{function}: {first} and {name} must have one dtype and library; got {kinds[0]} and {kinds[1]}."
            )
        if other.shape != x.shape:
            raise ValueError(f"{function}: {first} and {name} must have one shape; got {x.shape} and {other.shape}.")
    return back(np.stack([np.swapaxes(x, -2, -3) for x in hosts.values()], axis=-3), arrays[first])


def _unstacked(function: str, name: str, x: Array, count: int) -> Sequence[Array]:
    """The logical arrays that lie side by side before their heads."""
    host = on_host(function, name, x, None)
    if host.ndim < 4 or host.shape[-3] != count:
        raise ValueError(f"{function}: {name} must have shape (..., L, {count}, H, E); got {host.shape}.")
    return [back(np.swapaxes(host[..., n, :, :], -2, -3), x) for n in range(count)]
