"""One row that is noisier than rounding makes it, though none of its numbers is too large by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn.contract import Problem
from refattn.contract.moments import weights
from refattn.oracle.operands import Operand
from refattn.testing.effects.explaining import LOUD
from refattn.testing.effects.record import Effect

Floats = npt.NDArray[np.float64]
Index = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Loudest:
    """The row whose mean squared error, in units of its noise and beyond its bias, is the largest."""

    mean: float
    index: Index
    row: int
    output: Floats  # (Ev,), the right one
    lse: float
    noise: Floats  # (Ev,), deviation of each number


def row_noise(call: Call, loudest: Loudest | None, count: int, alpha: float) -> Effect | None:
    """The loudest of `count` rows, if rounding makes none so loud but with probability alpha.

    The columns of a row have their weights' errors in common. For a sub-Gaussian vector of covariance C the squared
    norm exceeds tr C + 2 |C|_F sqrt(t) + 2 |C| t with probability exp(-t) at most (Hsu, Kakade & Zhang 2012).
    """
    if loudest is None or loudest.mean <= LOUD**2:
        return None
    modes = _modes(call, loudest)
    trace, norm, top = len(modes), float(np.sqrt((modes**2).sum())), float(modes.max())
    t = math.log(count / alpha)
    found = (math.sqrt(norm**2 + 2 * top * max(0.0, trace * (loudest.mean - 1))) - norm) / (2 * top)
    if found**2 <= t:
        return None
    *batch, head = loudest.index
    return Effect(
        name="row",
        beta=math.sqrt(loudest.mean),
        sigmas=math.sqrt(2) * found,
        allowed=math.sqrt(2 * t),
        where=", ".join([*(f"batch {b}" for b in batch), f"head {head}", f"row {loudest.row}"]),
        text=f"errors of one row are {math.sqrt(loudest.mean):.2f} times what rounding explains: "
        f"{math.sqrt(2) * found:.0f} sigma",
    )


def _modes(call: Call, loudest: Loudest) -> Floats:
    """Eigenvalues of the correlations of a row's errors, (Ev,), about the output or about 0, whichever is the worse."""
    slab, at = call.slab(loudest.index), np.array([loudest.row])
    key, value = (cast(Any, Operand(x)) for x in (slab.key, slab.value))
    output, lse = loudest.output[None], np.array([loudest.lse])
    rows = Problem(np.asarray(slab.query[at]), key, value, slab.score, at, output, lse)
    known = loudest.noise > 0
    scale = np.where(known, loudest.noise, 1.0)
    C = np.zeros((2, len(scale), len(scale)))
    for tile in weights(rows):
        V = np.nan_to_num(value[tile.keys], nan=0.0, posinf=0.0, neginf=0.0)
        for n, center in enumerate((output, 0.0)):
            A = tile.weights[0, :, None] * ((V - center) / scale)
            C[n] += A.T @ A
    size = np.sqrt(np.maximum(np.einsum("nii->ni", C), 1e-300))
    correlations = C / (size[:, :, None] * size[:, None, :])
    modes = np.maximum(np.linalg.eigvalsh(correlations), 0.0)
    return np.asarray(max(modes, key=lambda each: each[-1]))
