"""The floating-point formats a kernel may keep a number in, and the error of one rounding into each.

A format has `precision` significant bits, the leading one included, smallest normal number ``2**min_exponent`` and
largest finite number `max`. Below the smallest normal number its numbers are ``2**(min_exponent - precision + 1)``
apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Format(NamedTuple):
    """A binary floating-point format with gradual underflow.

    Attributes
    ----------
    name : str
        Name of the dtype, as NumPy, ml_dtypes and the frameworks write it; "tf32" is no dtype but what tensor cores
        read of a float32.
    precision : int
        Significant bits, the leading one included.
    min_exponent : int
        Exponent of the smallest normal number ``2**min_exponent``.
    max : float
        Largest finite number.
    """

    name: str
    precision: int
    min_exponent: int
    max: float


FORMATS = {
    name: Format(name, precision, min_exponent, largest)
    for name, precision, min_exponent, largest in (
        ("float64", 53, -1022, float(np.finfo(np.float64).max)),
        ("float32", 24, -126, (2 - 2**-23) * 2.0**127),
        ("tf32", 11, -126, (2 - 2**-10) * 2.0**127),
        ("float16", 11, -14, 65504.0),
        ("bfloat16", 8, -126, (2 - 2**-7) * 2.0**127),
        ("float8_e4m3fn", 4, -6, 448.0),
        ("float8_e4m3fnuz", 4, -7, 240.0),
        ("float8_e5m2", 3, -14, 57344.0),
        ("float8_e5m2fnuz", 3, -15, 57344.0),
        ("float4_e2m1fn", 2, 0, 6.0),
    )
}


def unit(name: str) -> float:
    """Unit roundoff: a number in the format's normal range is rounded to nearest with a relative error of at most it.

    Parameters
    ----------
    name : str
        Name of a format.

    Returns
    -------
    float
        ``2**-precision``.
    """
    return 2.0 ** -FORMATS[name].precision


def half_subnormal(name: str) -> float:
    """Half the distance of the format's smallest numbers: the error of rounding a number below its normal range.

    Parameters
    ----------
    name : str
        Name of a format.

    Returns
    -------
    float
        ``2**(min_exponent - precision)``.
    """
    form = FORMATS[name]
    # float64's own is no float64: the next number above it stands in.
    return max(float(np.ldexp(1.0, form.min_exponent - form.precision)), 5e-324)


def half_ulp(x: npt.ArrayLike, name: str) -> npt.NDArray[np.float64]:
    """Half a unit in the last place at `x`: no number of magnitude up to `x` is rounded to nearest with more error.

    Parameters
    ----------
    x : array_like
        Magnitudes; the sign is not looked at.
    name : str
        Name of a format.

    Returns
    -------
    numpy.ndarray
        Half the distance of the format's numbers in the binade of `x`, of the shape of `x`; inf where the rounding may
        overflow (from ``max + half_ulp(max)`` on) and where `x` is NaN.
    """
    form = FORMATS[name]
    magnitude = np.abs(np.asarray(x, dtype=np.float64))
    _, exponent = np.frexp(np.maximum(magnitude, 2.0**form.min_exponent))
    half = np.maximum(np.ldexp(0.5, exponent - form.precision), half_subnormal(name))
    # The limit of float64 is no float64: there, only inf is past it.
    _, top = np.frexp(form.max)
    limit = np.inf if name == "float64" else form.max + np.ldexp(0.5, int(top) - form.precision)
    return np.where(magnitude < limit, half, np.inf)
