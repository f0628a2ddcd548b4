"""Where queries stand among keys, and the integers that arguments are made of."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import dtype_name, is_array, to_numpy

Anchor = str | int | npt.NDArray[np.integer[Any]] | None


def anchor_of(function: str, anchor: Any) -> Anchor:
    """An anchor that was checked."""
    if anchor is None or (isinstance(anchor, str) and anchor in ("lower_right", "upper_left")):
        return anchor
    rule = '"lower_right", "upper_left", an integer or an integer array of batch shape'
    if isinstance(anchor, str):
        raise ValueError(f"{function}: anchor must be {rule}; got {anchor!r}.")
    return integers(function, "anchor", anchor, rule)


def integers(function: str, name: str, x: Any, rule: str) -> int | npt.NDArray[Any]:
    """A Python integer or a read-only integer array on the host, from a number, a list or an array of any library."""
    try:
        return integer(x)
    except TypeError:
        pass
    wrong = f"{function}: {name} must be {rule}; got "
    if isinstance(x, list | tuple):
        entries = x
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"{wrong}a list whose rows differ in length.") from None
        x = x if x.size else x.astype(np.int64)
        # NumPy takes True beside integers for 1.
        if x.dtype.kind in "iu" and any(isinstance(one, bool | np.bool_) for one in np.asarray(entries, object).flat):
            raise TypeError(f"{wrong}a list with booleans among its integers.")
    if not is_array(x):
        raise TypeError(f"{wrong}{x!r}.")
    host = to_numpy(x)
    if host.dtype.kind not in "iu":
        raise TypeError(f"{wrong}{dtype_name(host)}.")
    return frozen(host) if host.ndim else int(host)


def integer(x: Any) -> int:
    """A number as a Python integer; a boolean is none, nor is an array."""
    if isinstance(x, bool | np.bool_) or is_array(x):
        raise TypeError
    return operator.index(x)


def frozen(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only copy: what is made from an array must not change when its maker's array does."""
    x = np.array(x)
    x.setflags(write=False)
    return x
