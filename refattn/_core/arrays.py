"""Array namespaces, dtypes, and the way of every array library's values into NumPy and back.

The only module that imports `array_api_compat`. No array library is imported that the caller has not imported.
"""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np

from refattn._core import jax_casts

Array = Any
Namespace = Any

FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
FLOATS = ("float64", "float32", "float16", "bfloat16", *FLOAT8)
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
LIBRARIES = ("numpy", "array_api_strict", "torch", "jax", "cupy", "dask")

# NumPy warns of an overflow or of inf - inf on standard error; here these values are part of the answer, as on every
# other namespace. Used as a decorator of public functions.
quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")


def dtype_name(x: object) -> str:
    """Name of an array's dtype, or of a dtype of any library: 'float32', 'bfloat16', 'float8_e4m3fn', 'bool', ..."""
    if isinstance(x, str):
        return str(x)
    dtype = x if isinstance(x, type) else getattr(x, "dtype", x)
    if isinstance(dtype, type):
        try:
            return str(np.dtype(dtype).name)
        except (TypeError, ValueError):  # an abstract type, as np.floating, or none that NumPy knows
            return dtype.__name__
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]


def library_of(x: object) -> str:
    """The array library that an object's type comes from, by the type's own module."""
    if isinstance(x, np.ndarray | np.generic):
        return "numpy"
    for cls in type(x).__mro__:
        root = cls.__module__.partition(".")[0]
        if root == "jaxlib":
            return "jax"
        if root in LIBRARIES:
            return root
    return type(x).__module__.partition(".")[0]


def is_array(x: object) -> bool:
    """Whether x is an array of some library, as opposed to a list, a number or None."""
    if isinstance(x, np.ndarray):
        return not isinstance(x, np.matrix | np.ma.MaskedArray)
    computes = library_of(x) in LIBRARIES or hasattr(x, "__array_namespace__") or hasattr(x, "__dlpack__")
    return computes and hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, np.generic)


def array_namespace(function: str, **arrays: Array) -> Namespace:
    """Namespace of the arrays, which must all be of one library and on one device; None among them is passed over."""
    from array_api_compat import array_namespace as compat_namespace

    given = {name: x for name, x in arrays.items() if x is not None}
    first = next(iter(given))
    for name, x in given.items():
        if library_of(x) != library_of(given[first]):
            raise TypeError(
                f"{function}: {first} and {name} must come from one array library; got {first} from "
                f"{library_of(given[first])} and {name} from {library_of(x)}. Convert one of them: "
                "refattn.from_numpy(refattn.to_numpy(x), like=y)."
            )
        if None not in (device(x), device(given[first])) and device(x) != device(given[first]):
            raise TypeError(
                f"{function}: {first} and {name} must be on one device; got {first} on {device(given[first])} and "
                f"{name} on {device(x)}. Move one of them."
            )
    if library_of(given[first]) == "jax" and not sys.modules["jax"].config.jax_enable_x64:
        raise TypeError(
            f"{function}: JAX arrays must be computed in float64, which this JAX session has switched off; got "
            f"jax_enable_x64=False. Call inside `with jax.enable_x64():`."
        )
    return compat_namespace(*given.values())


def device(x: Array) -> Any:
    """Device of an array, in its library's own words; None where JAX chooses it: traced arrays, arrays on several."""
    from array_api_compat import device as compat_device

    found = compat_device(x)
    if library_of(x) == "jax":
        return found if isinstance(found, sys.modules["jax"].Device) else None
    return found


def readable(x: Array) -> bool:
    """Whether values can be read now: not inside a transformation, as jit or vmap, nor before dask computes them.

    Transformations are those of jax and torch.func; torch.autograd is none.
    """
    match library_of(x):
        case "dask":
            return False
        case "jax":
            return not isinstance(x, sys.modules["jax"].core.Tracer)
        case "torch":
            try:
                _from_torch(x.reshape(-1)[:0])
            except RuntimeError:  # inside torch.func, and of a tensor without storage
                return False
    return True


def known(flag: Array) -> bool:
    """A 0-d boolean array's truth where it can be read now, else False."""
    return readable(flag) and bool(flag)


def library_of_namespace(xp: Namespace) -> str:
    """The array library whose functions a namespace holds."""
    return str(xp.__name__.removeprefix("array_api_compat.").partition(".")[0])


def moved(x: np.ndarray[Any, Any], xp: Namespace, device: Any) -> Array:
    """A host array in the namespace."""
    # A copy, since PyTorch warns when it is to share a read-only array.
    return xp.asarray(x, copy=True, device=device)


def taken(x: Array, index: slice | np.ndarray[Any, Any], axis: int, xp: Namespace) -> Array:
    """The cells of x at a slice, or at an array of positions on the host; the axis is counted from the last, -1."""
    if isinstance(index, slice):
        return x[(..., index, *[slice(None)] * (-1 - axis))]
    # Not moved to dask, whose arrays have a wrong shape after taking a dask array that holds 0 alone: dask/dask#6709.
    if library_of_namespace(xp) != "dask":
        index = xp.asarray(index, device=device(x))
    return xp.take(x, index, axis=axis)


def dtype_of(name: str, xp: Namespace) -> Any:
    """The dtype called `name` in the namespace, or None if it has none.

    NumPy, and what computes with its dtypes, get the narrow ones from ml_dtypes; CuPy takes some, by its version.
    """
    found, library = getattr(xp, name, None), library_of_namespace(xp)
    if found is not None or library not in ("numpy", "cupy", "dask"):
        return found
    import ml_dtypes

    found = getattr(ml_dtypes, name, None) or getattr(np, name, None)
    if library == "cupy":
        try:
            xp.zeros((1,)).astype(found)
        except (KeyError, TypeError, ValueError):
            return None
    return found


def float64(x: Array, xp: Namespace) -> Array:
    """The values of x in float64: exact for every dtype that inputs may have but 64-bit integers past 2**53."""
    if library_of_namespace(xp) == "jax" and dtype_name(x) in jax_casts.FLUSHED:
        return jax_casts.to_float64(dtype_name(x))(x)
    return xp.astype(x, xp.float64, copy=False)


def round_to(x: Array, name: str, xp: Namespace) -> Array:
    """Round a float64 array once, to nearest even, to the dtype called `name`."""
    if name == "float64":
        return x
    import ml_dtypes

    info, on_jax = ml_dtypes.finfo(name), library_of_namespace(xp) == "jax"
    if name != "float32" and not on_jax:
        x = _shortened(x, info, xp)
    if name in FLOAT8 and name != "float8_e5m2":
        # These have no infinity, and libraries disagree: what rounds past the largest number is NaN, as the format's
        # own rule says. The tie goes to the even one, which in e4m3fn is the largest number.
        tie = float(info.max) + 2.0 ** (info.maxexp - 2 - info.nmant)
        most = tie if name == "float8_e4m3fn" else math.nextafter(tie, 0.0)
        x = xp.where(xp.abs(x) > most, math.nan, x)
    if on_jax:
        return jax_casts.from_float64(name, info.nmant + 1)(x)
    return xp.astype(x, dtype_of(name, xp))


def _shortened(x: Array, info: Any, xp: Namespace) -> Array:
    """A float64 array rounded to the numbers of a narrow format, as float64.

    Libraries convert float64 to the narrow formats by way of float32, and two roundings are not one: 1 + 2**-8 + 2**-40
    becomes 1 in bfloat16. After this every further conversion is exact.
    """
    precision, smallest_normal = info.nmant + 1, float(info.smallest_normal)
    # A value that float32 holds meets one rounding anyway; this leaves ties (which float32 holds) to that one.
    held = xp.astype(x, xp.float32) == x
    c = (2.0 ** (53 - precision) + 1.0) * x
    normal = c - (c - x)  # Veltkamp's splitting: x to `precision` bits
    shift = 1.5 * 2.0**52 * (smallest_normal * 2.0 ** (1 - precision))
    subnormal = (x + shift) - shift
    subnormal = xp.where(subnormal == 0, x, subnormal)  # for the sign of zero; every road takes such an x there
    rounded = xp.where(xp.abs(x) < smallest_normal, subnormal, normal)
    return xp.where(held | ~(xp.abs(x) < 2.0 ** (info.maxexp + 1)), x, rounded)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """Values of an array of any library as a NumPy array, bit for bit, off the graph and off the device.

    Parameters
    ----------
    x : array
        NumPy, PyTorch, JAX, CuPy, dask, array_api_strict, or anything with ``__dlpack__``. bfloat16 and the float8
        kinds come out as the `ml_dtypes` types of the same name.

    Returns
    -------
    numpy.ndarray
        Same shape and dtype; shares memory with `x` where the library allows it.

    Raises
    ------
    TypeError
        If `x` is not an array, or its values cannot be read, as inside ``jax.jit`` or ``torch.func.vmap``.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import to_numpy
    >>> to_numpy(np.float32([1, 2])).dtype
    dtype('float32')
    """
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if not is_array(x):
        raise TypeError(
            f"to_numpy: x must be an array; got {type(x).__name__}. Use numpy.asarray for lists and numbers."
        )
    library = library_of(x)
    if library != "dask" and not readable(x):
        raise TypeError(
            f"to_numpy: x must have values that can be read; got one that {library} is tracing. Call it outside of "
            "jit, vmap and grad."
        )
    match library:
        case "torch":
            return _from_torch(x)
        case "cupy":
            return np.asarray(x.get())
        case "dask":
            return np.asarray(x.compute())
        case "array_api_strict":
            return np.asarray(x._array)
        case "jax":
            return np.asarray(x)
    return np.from_dlpack(x) if hasattr(x, "__dlpack__") else np.asarray(x)


def from_numpy(
    array: np.ndarray[Any, Any], *, like: Array = None, library: str | None = None, device: object = None
) -> Array:
    """NumPy array, ml_dtypes included, as an array of another library, bit for bit.

    Parameters
    ----------
    array : numpy.ndarray
        Any shape; float, integer, boolean, or an `ml_dtypes` bfloat16 or float8 kind.
    like : array, optional
        An array whose library and device the result takes.
    library : {"numpy", "torch", "jax", "cupy", "dask", "array_api_strict"}, optional
        The library, where no `like` is given.
    device : object, optional
        The library's own word for a device. Default: that of `like`, or the library's default.

    Returns
    -------
    array
        Same shape, dtype of the same name.

    Raises
    ------
    TypeError
        If `array` is not a NumPy array, or the library has no dtype of that name.
    ValueError
        If not exactly one of `like` and `library` is given, or the library is unknown.
    ImportError
        If the library is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import from_numpy
    >>> from_numpy(np.arange(3), library="array_api_strict").shape
    (3,)
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: array must be a numpy.ndarray; got {type(array).__name__}.")
    if (like is None) == (library is None):
        raise ValueError("from_numpy: exactly one of like and library must be given. Pass like=x or library='torch'.")
    if library is None:
        library = library_of(like)
        device = device if device is not None else globals()["device"](like)
    if library not in LIBRARIES:
        raise ValueError(f"from_numpy: library must be one of {', '.join(LIBRARIES)}; got {library!r}.")
    if find_spec(library) is None:
        raise ImportError(f"from_numpy: library={library!r} is not installed: pip install {library}.")
    match library:
        case "numpy":
            return array
        case "torch":
            return _to_torch(array, device)
        case "jax":
            import jax

            return jax.device_put(array, device)
        case "cupy":
            import cupy

            if dtype_of(dtype_name(array), cupy) is None:
                raise TypeError(f"from_numpy: array must have a dtype that cupy has; got {dtype_name(array)}.")
            with cupy.cuda.Device(device):
                return cupy.asarray(array)
        case "dask":
            import dask.array

            return dask.array.from_array(array)
    import array_api_strict

    return array_api_strict.asarray(array, copy=True, device=device)


def _torch_carrier(name: str) -> str | None:
    """Integer dtype in whose clothes PyTorch and NumPy exchange a narrow float, or None where none is needed."""
    return "int16" if name == "bfloat16" else "uint8" if name in FLOAT8 else None


def _from_torch(x: Array) -> np.ndarray[Any, Any]:
    import torch

    x = x.detach().resolve_conj().resolve_neg().cpu()
    name = dtype_name(x)
    carrier = _torch_carrier(name)
    if carrier is None:
        return np.asarray(x.numpy())
    import ml_dtypes

    return np.asarray(x.view(getattr(torch, carrier)).numpy().view(getattr(ml_dtypes, name)))


def _to_torch(array: np.ndarray[Any, Any], device: object) -> Array:
    import torch

    name = dtype_name(array)
    carrier = _torch_carrier(name)
    if not hasattr(torch, name):
        raise TypeError(f"from_numpy: array must have a dtype that torch has; got {name}.")
    # torch.from_numpy shares memory and warns about read-only arrays: the copy is the caller's own.
    array = np.array(array, order="C")
    x = torch.from_numpy(array if carrier is None else array.view(carrier))
    return x.view(getattr(torch, name)).to(device=device)
