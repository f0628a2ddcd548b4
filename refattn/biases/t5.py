"""T5's buckets of distances, in integers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.anchors import integers
from refattn._core.arrays import Array
from refattn._core.checks import check_flag, check_integer

FUNCTION = "biases.t5_buckets"


def t5_buckets(
    distance: int | Array, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> npt.NDArray[np.int64]:
    """Bucket of each distance, as T5's relative position bias counts them.

        n = |distance|,  N buckets a side,  m = N // 2
        bucket = n                                                          for n < m
               = min(m + floor((N - m) log(n / m) / log(max_distance / m)), N - 1)   else

    Parameters
    ----------
    distance : int or array of int
        Position of the key less that of the query, of any array library.
    bidirectional : bool
        True (encoder): N is half of `num_buckets`, and keys behind the query have the upper half. False (decoder): N
        is `num_buckets`, and keys behind the query, which it does not see, have bucket 0.
    num_buckets : int, default 32
        Number of buckets, at least 4, or 2 for one direction.
    max_distance : int, default 128
        Distance from which on all have the last bucket; beyond m.

    Returns
    -------
    numpy.ndarray of int64, shape of `distance`
        Numbers from 0 to ``num_buckets - 1``.

    Raises
    ------
    TypeError
        If `distance` is no integer and no integer array, or another argument of the wrong kind.
    ValueError
        If `num_buckets` or `max_distance` is too small.

    Notes
    -----
    The bound of each bucket is found in integers, so that no rounding of a logarithm moves it. T5's code takes the
    logarithm in float32.

    T5 has no scale: pass ``scale=1.0`` to `attention` beside this bias.

    References
    ----------
    .. [1] C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR
       21, 2020, arXiv:1910.10683, section 2.1; the formula is in its code, `_relative_position_bucket` of
       mesh_tensorflow/transformer/transformer_layers.py.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import biases
    >>> biases.t5_buckets(np.array([-200, -8, -1, 0, 1, 8, 200]), bidirectional=True).tolist()
    [15, 8, 1, 0, 17, 24, 31]
    >>> table = np.zeros((32, 2))  # one number for each bucket and head
    >>> bias = biases.from_function(
    ...     lambda b, h, q, kv: table[biases.t5_buckets(kv - q, bidirectional=True), h], heads=2
    ... )
    """
    found = np.asarray(integers(FUNCTION, "distance", distance, "an integer or an integer array"))
    both = check_flag(FUNCTION, "bidirectional", bidirectional)
    side = check_integer(FUNCTION, "num_buckets", num_buckets, least=4 if both else 2) // (2 if both else 1)
    exact = side // 2
    most = check_integer(FUNCTION, "max_distance", max_distance, least=exact + 1)
    n = found.astype(np.int64)
    first = np.where(n > 0, side, 0) if both else np.zeros_like(n)
    n = np.abs(n) if both else np.maximum(-n, 0)
    wide = exact + np.searchsorted(_bounds(side, exact, most), n, side="right")
    return np.asarray(first + np.where(n < exact, n, wide))


@cache
def _bounds(side: int, exact: int, most: int) -> npt.NDArray[Any]:
    """Shortest distance of each bucket behind the first wide one."""

    def reaches(n: int, t: int) -> bool:
        # (side - exact) log(n / exact) / log(most / exact) >= t, without the logarithms.
        return bool(n ** (side - exact) * exact**t >= most**t * exact ** (side - exact))

    found = []
    n = exact
    for t in range(1, side - exact):
        low, high = n, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle, t) else (middle + 1, high)
        n = low
        found.append(n)
    return np.asarray(found, dtype=np.int64)
