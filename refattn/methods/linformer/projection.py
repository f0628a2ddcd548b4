"""Projections of keys and values along their length."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refattn._core.checks import check_choice, check_integer

KINDS = ("normal", "uniform", "mean")


def linformer_projection(
    length: int, rank: int, *, kind: str = "normal", rng: int | np.random.Generator | None = None
) -> npt.NDArray[np.float64]:
    """Make a projection for `linformer_attention`.

        E (E^T x) has the expectation x    for "normal"

    Parameters
    ----------
    length : int
        Number S of keys.
    rank : int
        Number R of mixtures.
    kind : {"normal", "uniform", "mean"}, default "normal"
        Independent normal numbers of variance 1/R, as the paper's theorems take them; uniform ones between -1/sqrt(R)
        and 1/sqrt(R), with which programs begin to train; or means of R blocks of equal size.
    rng : int, numpy.random.Generator or None, optional
        Where the numbers come from; an integer is a seed. "mean" draws none.

    Returns
    -------
    numpy.ndarray, shape (length, rank)
        The projection, float64. `refattn.from_numpy` makes it an array of another library.

    Raises
    ------
    TypeError
        For numbers that are no integers.
    ValueError
        For numbers below 1, an unknown kind, and means of blocks that are not equal.

    References
    ----------
    .. [1] S. Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768.

    Examples
    --------
    >>> from refattn import linformer_projection
    >>> linformer_projection(4, 2, kind="mean").tolist()
    [[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]
    """
    name = "linformer_projection"
    S, R = check_integer(name, "length", length, least=1), check_integer(name, "rank", rank, least=1)
    check_choice(name, "kind", kind, KINDS)
    if kind == "mean":
        if S % R:
            raise ValueError(f"{name}: rank must divide length for kind='mean'; got {R} and {S}.")
        return np.repeat(np.eye(R), S // R, axis=0) * (R / S)
    draw, most = np.random.default_rng(rng), 1 / math.sqrt(R)
    return draw.standard_normal((S, R)) * most if kind == "normal" else draw.uniform(-most, most, (S, R))
