"""Every message about arguments that several functions share. Below these checks all is trusted and explicit."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from refattn._core.arrays import (
    FLOATS,
    INTEGERS,
    Array,
    Namespace,
    dtype_name,
    dtype_of,
    float64,
    is_array,
    known,
    library_of_namespace,
    to_numpy,
)


def check_array(function: str, name: str, x: object, dtypes: tuple[str, ...] = FLOATS + INTEGERS) -> None:
    """An array of some library, with a real dtype."""
    if not is_array(x):
        raise TypeError(
            f"{function}: {name} must be an array of NumPy, PyTorch, JAX, CuPy, dask or another array API library; "
            f"got {type(x).__name__}."
        )
    if dtype_name(x) not in dtypes:
        kinds = "a real floating-point or integer dtype" if "int64" in dtypes else "a real floating-point dtype"
        raise TypeError(f"{function}: {name} must have {kinds}; got {dtype_name(x)}.")


def check_attention_shapes(function: str, query: Array, key: Array, value: Array | None) -> None:
    """Query (..., H, L, E), key (..., Hk, S, E) and value (..., Hk, S, Ev), where there is one, that fit each other."""
    q, k = tuple(query.shape), tuple(key.shape)
    v = None if value is None else tuple(value.shape)
    for name, shape, axes in (
        ("query", q, "(..., H, L, E)"),
        ("key", k, "(..., Hk, S, E)"),
        ("value", v, "(..., Hk, S, Ev)"),
    ):
        if shape is not None and len(shape) < 3:
            raise ValueError(f"{function}: {name} must have at least 3 axes {axes}; got {_shape(shape)}.")
    if v is not None and k[-2] != v[-2]:
        raise ValueError(
            f"{function}: key and value must have the same length S (axis -2); got key {_shape(k)} and value "
            f"{_shape(v)}."
        )
    if q[-1] != k[-1]:
        raise ValueError(
            f"{function}: query and key must have the same number of features E (axis -1); got query {_shape(q)} and "
            f"key {_shape(k)}."
        )
    if q[-1] == 0:
        raise ValueError(f"{function}: query must have at least one feature E (axis -1); got {_shape(q)}.")
    if v is not None and k[-3] != v[-3]:
        raise ValueError(
            f"{function}: key and value must have the same number of heads Hk (axis -3); got key {_shape(k)} and value "
            f"{_shape(v)}."
        )
    if k[-3] == 0 or q[-3] == 0 or q[-3] % k[-3]:
        raise ValueError(
            f"{function}: the number of query heads H (axis -3) must be a positive multiple of the number of key heads "
            f"Hk; got H={q[-3]} and Hk={k[-3]}."
        )
    if q[:-3] != k[:-3] or (v is not None and q[:-3] != v[:-3]):
        names, facts = "query and key", f"query {_shape(q)} and key {_shape(k)}"
        if v is not None:
            names, facts = "query, key and value", f"query {_shape(q)}, key {_shape(k)} and value {_shape(v)}"
        raise ValueError(f"{function}: {names} must have the same batch axes (all before axis -3); got {facts}.")


def check_real(function: str, name: str, x: object, kind: str = "a real number or None") -> float:
    """A finite real number."""
    if isinstance(x, bool | np.bool_) or not isinstance(x, numbers.Real):
        raise TypeError(f"{function}: {name} must be {kind}; got {type(x).__name__}.")
    try:
        number = float(x)
    except OverflowError:
        number = math.inf if math.trunc(x) > 0 else -math.inf  # type: ignore[operator]
    if not math.isfinite(number):
        raise ValueError(f"{function}: {name} must be finite in float64; got {number}.")
    return number


def check_scale(function: str, scale: object) -> float | None:
    """The factor on the scores, or None where none is given."""
    return None if scale is None else check_real(function, "scale", scale)


def check_softcap(function: str, softcap: object) -> float | None:
    """A positive cap, or None for no cap."""
    if softcap is None:
        return None
    cap = check_real(function, "softcap", softcap)
    if cap <= 0:
        raise ValueError(f"{function}: softcap must be positive; got {softcap}. Pass None for no softcap.")
    return cap


def check_dropout(function: str, p: object) -> float:
    """The share of weights that dropout drops, below 1."""
    value = check_real(function, "dropout_p", p, "a real number")
    if not 0 <= value < 1:
        raise ValueError(f"{function}: dropout_p must be at least 0 and below 1; got {p}.")
    return value


def check_flag(function: str, name: str, x: object) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False; got {type(x).__name__}.")
    return bool(x)


def check_integer(function: str, name: str, x: object, *, least: int = 0) -> int:
    """An integer not below `least`."""
    try:
        value = None if isinstance(x, bool | np.bool_) else operator.index(x)  # type: ignore[arg-type]
    except TypeError:
        value = None
    if value is None:
        raise TypeError(f"{function}: {name} must be an integer; got {type(x).__name__}.")
    if value < least:
        raise ValueError(f"{function}: {name} must be at least {least}; got {value}.")
    return value


def check_output_dtype(function: str, dtype: object, like: Array, argument: str = "query") -> str:
    """Name of the dtype to round a result to; that of the argument where none is given."""
    name = dtype_name(like if dtype is None else dtype)
    if dtype is None and (name in INTEGERS or name.startswith("float8")):
        raise TypeError(
            f"{function}: dtype must be given where {argument} is {name}, which is no dtype for a result. Pass dtype="
            "'float32' or the namespace's own dtype."
        )
    if name not in FLOATS or name == "float8_e8m0fnu":
        raise TypeError(f"{function}: dtype must be a real floating-point dtype; got {name}.")
    return name


def check_held(function: str, dtype: str, xp: Namespace) -> None:
    """A dtype that the library of the arrays has."""
    if dtype_of(dtype, xp) is None:
        raise TypeError(f"{function}: dtype must be one that {library_of_namespace(xp)} has; got {dtype}.")


def check_sinks(function: str, sinks: Array | None, heads: int, xp: Namespace) -> Array | None:
    """One extra logit per head, (H,), finite or -inf for none."""
    if sinks is None:
        return None
    if tuple(sinks.shape) != (heads,):
        raise ValueError(
            f"{function}: sinks must have one logit per query head, shape (H,)=({heads},); got {_shape(sinks.shape)}."
        )
    sinks = float64(sinks, xp)
    if known(xp.any(xp.isnan(sinks) | (sinks == math.inf))):
        raise ValueError(f"{function}: sinks must be finite, or -inf for a head without one; got NaN or +inf.")
    return sinks


def check_rows(function: str, rows: object, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Positions (R, len(shape)) into the axes (..., H, L) of a query."""
    try:
        index = to_numpy(rows) if is_array(rows) else np.asarray(rows)
    except ValueError:
        raise ValueError(
            f"{function}: rows must have shape (R, {len(shape)}), one index for each of query's axes (..., H, L); got "
            "rows of different lengths."
        ) from None
    if index.shape == (0,):  # an empty list
        index = np.zeros((0, len(shape)), np.int64)
    if index.dtype.kind not in "iu":
        raise TypeError(f"{function}: rows must be integers; got {index.dtype.name}.")
    if index.ndim != 2 or index.shape[1] != len(shape):
        raise ValueError(
            f"{function}: rows must have shape (R, {len(shape)}), one index for each of query's axes (..., H, L); got "
            f"{_shape(index.shape)}."
        )
    outside = (index < 0) | (index >= np.array(shape))
    if outside.any():
        row = index[outside.any(axis=1)][0]
        raise ValueError(
            f"{function}: rows must lie within query's axes (..., H, L)={_shape(shape)}; got {_shape(row.tolist())}."
        )
    return index.astype(np.int64)


def check_choice(function: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_shape(function: str, name: str, x: Array, axes: str, shape: tuple[int, ...]) -> None:
    """Exactly this shape."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{function}: {name} must have shape {axes}={_shape(shape)}; got {_shape(x.shape)}.")


def check_broadcast(function: str, name: str, shape: tuple[int, ...], lead: tuple[int, ...], L: int, S: int) -> None:
    """A shape that broadcasts to (..., H, L, S)."""
    full = (*lead, L, S)
    fits = 2 <= len(shape) <= len(full) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(full), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{function}: {name} must have at least 2 axes and broadcast to (..., H, L, S)={_shape(full)}; got "
            f"{_shape(shape)}."
        )


def check_cells(function: str, own: tuple[int, ...], tile: tuple[int, ...]) -> None:
    """What a function of positions returned, of shape `own`, broadcasts to the tile that it was asked for."""
    try:
        fits = np.broadcast_shapes(own, tile) == tile
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{function}: f must return an array that broadcasts to the shape of b, h, q and kv together, here "
            f"{_shape(tile)}; got {_shape(own)}."
        )


def _shape(shape: Any) -> str:
    """A shape as it is written in Python."""
    return str(tuple(int(n) for n in shape))
