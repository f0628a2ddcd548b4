"""The public face of the certified oracle."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._core import checks
from refattn._core.arrays import Array
from refattn.oracle import float64
from refattn.oracle.problem import chosen, on_host, problems

Floats = npt.NDArray[np.float64]

TIERS = ("float64", "double-double")


class Certified(NamedTuple):
    """Exact attention up to a proven radius: |output + output_low - exact| <= radius, and so for lse.

    Attributes
    ----------
    output : numpy.ndarray of float64, shape (..., H, L, Ev)
        The high part of the output; with `rows` (R, Ev).
    output_low : numpy.ndarray of float64, shape (..., H, L, Ev)
        The low part, below half a unit in the last place of the high part. 0 in the float64 tier.
    radius : numpy.ndarray of float64, shape (..., H, L, Ev)
        How far the exact value may be from the sum of both parts. inf where nothing is proven.
    lse : numpy.ndarray of float64, shape (..., H, L)
        The high part of the natural log-sum-exp; with `rows` (R,).
    lse_low : numpy.ndarray of float64, shape (..., H, L)
        Its low part.
    lse_radius : numpy.ndarray of float64, shape (..., H, L)
        Its radius.
    """

    output: Floats
    output_low: Floats
    radius: Floats
    lse: Floats
    lse_low: Floats
    lse_radius: Floats


def certified(
    query: Array,
    key: Array,
    value: Array,
    *,
    tier: str = "float64",
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
) -> Certified:
    """Exact softmax attention with a proven error radius for every number.

        |output + output_low - softmax(softcap(scale * Q K^T) + bias) V| <= radius

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries. Arrays may come from any library and device, mixed, in any dtype; their numbers are taken as exact.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    tier : {"float64", "double-double"}, default "float64"
        The arithmetic: radii near 1e-14, or near 1e-23, of the values, at 3 or at 10 times the price of `attention`.
    rows : integer array, shape (R, n), optional
        Chosen rows only: their indices along the n axes (..., H, L) of `query`, in time and memory of these alone.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments that follow.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores; its float64 numbers are taken as exact.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default the real number 1/sqrt(E), which is not rounded.
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where dropout kept the weight, which is then multiplied by the real number 1/(1 - p).
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight.
    descale : tuple (query, key, value), optional
        Factors of quantised operands, as `refattn.attention` takes them.

    Returns
    -------
    Certified
        Values and radii, NumPy float64.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit, rows outside the query, and integers that float64 does not hold.

    Notes
    -----
    A radius is infinite until every hypothesis of its theorem has been checked: for numbers beyond 2**900, logits
    beyond about 1e12, and what depends on a number that is not finite (which makes the value NaN). A row that sees
    nothing has radius 0. What is masked is not looked at.

    Cost: one product Q K^T, one exponential and two products P V a score; double-double: several of each. Memory:
    O(S) beyond inputs and outputs, a few tiles of 2**17 scores, and a copy of one head's keys and values while that is
    below 128 MiB. It trusts IEEE 754 additions, products and quotients, rounded to nearest, and matrix products made of
    them in any order; no library's exp, log or tanh.

    References
    ----------
    .. [1] The theorems and their proofs: refattn/oracle/README.md.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> x = np.random.default_rng(0).standard_normal((3, 2, 100, 16))
    >>> exact = ra.oracle.certified(*x)
    >>> bool((np.abs(ra.attention(*x) - exact.output) <= exact.radius + 1e-14).all())
    True
    >>> bool(exact.radius.max() < 1e-13)
    True
    >>> ra.oracle.certified(*x, tier="double-double", rows=[(0, 3)]).radius.max() < 1e-22
    np.True_
    """
    checks.check_choice("certified", "tier", tier, TIERS)
    arguments = on_host(
        "certified", query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap,
        sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, descale=descale,
    )  # fmt: skip
    if tier == "double-double":
        from refattn.oracle.double_double import certify
    else:
        certify = float64.certify
    Ev = arguments.value.shape[-1]
    if rows is None:
        answer = _blank(arguments.query.shape[:-1], Ev)
        everything = np.arange(arguments.lengths[0])
        for index, problem in problems(arguments):
            for whole, part in zip(answer, certify(problem, everything), strict=True):
                whole[index] = part
        return answer
    wanted = checks.check_rows("certified", rows, tuple(arguments.query.shape[:-1]))
    answer = _blank((len(wanted),), Ev)
    for places, positions, problem in chosen(arguments, wanted):
        for whole, part in zip(answer, certify(problem, positions), strict=True):
            whole[places] = part
    return answer


def _blank(lead: tuple[int, ...], Ev: int) -> Certified:
    """Arrays to be filled."""
    return Certified(*(np.empty((*lead, Ev)) for _ in range(3)), *(np.empty(lead) for _ in range(3)))
