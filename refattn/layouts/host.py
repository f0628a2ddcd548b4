"""What every layout shares: arrays of any library on the host and back, bit for bit, and the checks of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import integers
from refattn._core.arrays import FLOATS, INTEGERS, Array, dtype_name, from_numpy, to_numpy
from refattn._core.checks import check_array

Ints = npt.NDArray[np.int64]
Host = npt.NDArray[Any]


def on_host(function: str, name: str, x: Array, axes: str | None) -> Host:
    """An array's values; with axes as "(B, H, L, E)" it must have as many."""
    check_array(function, name, x, (*FLOATS, *INTEGERS, "bool"))
    host = to_numpy(x)
    if axes is not None and host.ndim != axes.count(",") + 1:
        raise ValueError(
            f"{function}: {name} must have {axes.count(',') + 1} axes {axes}; got {host.ndim} in {host.shape}."
        )
    return host


def back(x: Host, like: Array) -> Array:
    """An array of the library and on the device of another: new and C-ordered."""
    return from_numpy(np.array(x, order="C", copy=True), like=like)


def filled(function: str, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> Host:
    """A new array that holds one number in every cell, which the dtype must have."""
    new = np.zeros(shape, dtype)
    if fill != 0:
        with np.errstate(invalid="ignore", over="ignore"):
            cell = np.asarray(fill, np.float64).astype(dtype)
        if not np.array_equal(cell.astype(np.float64), np.asarray(fill, np.float64), equal_nan=True):
            raise ValueError(f"{function}: fill must be a number that {dtype_name(dtype)} has; got {fill}.")
        new[...] = cell
    return new


def table_of(function: str, name: str, x: Any, shape: str, sizes: tuple[int | None, ...]) -> Ints:
    """A table of integers in int64, from a list or an array of any library; None is a size that may be any."""
    found = np.asarray(integers(function, name, x, f"an integer array of shape {shape}"))
    if found.ndim != len(sizes) or any(n is not None and n != m for n, m in zip(sizes, found.shape, strict=True)):
        known = f" with B={sizes[0]}" if sizes[0] is not None else ""
        wanted = known if None in sizes else f"={sizes}"
        raise ValueError(f"{function}: {name} must have shape {shape}{wanted}; got {found.shape}.")
    return found.astype(np.int64)


def lengths_of(function: str, name: str, x: Any, B: int | None, most: int | None, axis: str) -> Ints:
    """One length for each sequence, (B,), from 0 to the length of an axis."""
    lengths = table_of(function, name, x, "(B,)", (B,))
    outside = (lengths < 0) | (False if most is None else lengths > most)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        rule = "not be negative" if most is None else f"lie from 0 to {axis}={most}"
        raise ValueError(f"{function}: {name} must {rule}; got {lengths[at]} for sequence {at}.")
    return lengths


def offsets_of(function: str, name: str, x: Any, total: int) -> Ints:
    """Where each sequence begins among the tokens, and where the last ends: (B + 1,), from 0 to their number."""
    offsets = table_of(function, name, x, "(B + 1,)", (None,))
    rule = f"{function}: {name} must"
    if not len(offsets):
        raise ValueError(f"{rule} have shape (B + 1,), with at least one entry; got (0,).")
    if offsets[0] != 0:
        raise ValueError(f"{rule} start at 0; got {offsets[0]}.")
    if (down := np.flatnonzero(np.diff(offsets) < 0)).size:
        at = int(down[0])
        raise ValueError(f"{rule} not decrease; got {offsets[at]} and then {offsets[at + 1]} (sequence {at}).")
    if offsets[-1] != total:
        raise ValueError(f"{rule} end at the number of tokens T={total}; got {offsets[-1]}.")
    return offsets


def offsets_from(function: str, lengths: Ints) -> npt.NDArray[np.int32]:
    """Offsets (B + 1,) of sequences that lie one after another."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{function}: lengths must add up to less than 2**31, to fit in int32; got {offsets[-1]}.")
    return offsets.astype(np.int32)
