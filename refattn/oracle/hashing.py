"""Digests of correctly rounded attention: what every machine that computes it must arrive at."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from refattn import biases, masks
from refattn._core.arrays import Array, dtype_name
from refattn.oracle.climb import round_attention


def digest(
    query: Array,
    key: Array,
    value: Array,
    *,
    dtype: object,
    rows: Array | None = None,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: masks.Mask | Array | None = None,
    dropout_p: float = 0.0,
    descale: tuple[Any, Any, Any] | None = None,
) -> str:
    """SHA-256 of correctly rounded attention: the same on every machine, so that a result is compared by 64 letters.

        digest = SHA-256(dtype, shape, round(softmax(softcap(scale * Q K^T) + bias) V))

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries, as in `rounded`, as are all arguments.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    dtype : dtype or str
        Dtype to round to.
    rows : integer array, shape (R, n), optional
        Chosen rows only: their indices along the n axes (..., H, L) of `query`.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where a key takes part.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default the real number 1/sqrt(E).
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where dropout kept the weight.
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight.
    descale : tuple (query, key, value), optional
        Factors of quantised operands, as `refattn.attention` takes them.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        As `rounded`.
    ArithmeticError
        As `rounded`.

    Notes
    -----
    What is hashed is, one after the other: the name of the dtype and the lengths of the result's axes in ASCII, with a
    space before each length and one line feed behind the last; then the result's numbers in C order, each as the eight
    bytes of its float64, the least significant first, NaN as 000000000000f87f. For a result `x` of any library::

        x = to_numpy(x).astype("<f8")
        head = " ".join([dtype, *map(str, x.shape)]) + "\\n"
        hashlib.sha256(head.encode() + x.tobytes()).hexdigest()

    Cost: that of `rounded`.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.array([[[1.0], [0.0]]])
    >>> ra.oracle.digest(q, q, q, dtype="bfloat16")[:16]
    'b2caf5cbd601a7d7'
    """
    found = round_attention(
        "digest", query, key, value, dtype, rows, mask=mask, bias=bias, is_causal=is_causal, scale=scale,
        softcap=softcap, sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, descale=descale,
    )  # fmt: skip
    head = " ".join([dtype_name(dtype), *map(str, found.shape)]) + "\n"
    numbers = np.where(np.isnan(found), np.nan, found).astype("<f8")
    return hashlib.sha256(head.encode("ascii") + numbers.tobytes()).hexdigest()
