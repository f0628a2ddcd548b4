"""Weights that share a scale in blocks of keys: README.md, lemma 10."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn.contract.errors import Floats, cast
from refattn.contract.formats import FORMATS
from refattn.contract.record import Contract

# No claim is made where an exponent may err by more: a weight and the largest of its block then differ by this factor
# twice from their exact values.
MOST_ERROR = 1 / 16


class Scaled(NamedTuple):
    """What narrow numbers with a scale for each block cost a weight, all up to a power of two that weights carry."""

    unit: float  # relative error of a weight within the normal range of its format
    below: float  # share of the largest of its block below which a weight may be outside
    share: float  # its error then, as such a share
    least: float  # largest weight of a block below which the scale may be outside the normal range of its own format
    floor: float  # error of any weight of such a block


def scaled(contract: Contract) -> Scaled | None:
    """README.md, lemma 10: the constants of a contract; None where weights have no scales."""
    if contract.probability_scale is None:
        return None
    form = FORMATS[contract.probabilities]
    u, half = cast(contract, contract.probabilities)
    normal, (_, top) = 2.0**form.min_exponent, math.frexp(form.max)
    if contract.probability_scale == "e4m3":
        # A scale is b/max to nearest or above: 1 - 2**-4 to 1 + 2**-3 of it, or from 2**-10 below to 2**-9 above it.
        scale = FORMATS["float8_e4m3fn"]
        share, least = (1 + 2.0**-3) / form.max, form.max * 2.0**scale.min_exponent
        return Scaled(max(u, 1 / 15), normal * share, half * share, least, form.max * 2.0**-10 + half * 2.0**-9)
    clipped = 1 - form.max / 2.0**top if contract.probability_scale == "e8m0 down" else 0.0
    share = 2.0 ** (1 - top) if contract.probability_scale == "e8m0 down" else 2 / form.max
    return Scaled(max(u, clipped), normal * share, half * share, form.max * 2.0**-126, half * 2.0**-127)


def largest(x: Floats, size: int) -> Floats:
    """Each number's block's largest, (rows, keys), in blocks of `size` keys from the first on."""
    R, n = x.shape
    count = -(-n // size)
    whole = np.full((R, count * size), -np.inf)
    whole[:, :n] = x
    tops = whole.reshape(R, count, size).max(axis=2)
    found: Floats = np.repeat(tops, size, axis=1)[:, :n]
    return found


def small(scaled: Scaled, x: Floats, top: Floats, below: Floats, dead: float) -> npt.NDArray[np.bool_]:
    """Which weights, of exponents x in blocks of largest exponents top, may be outside the normal range."""
    room = 2 * MOST_ERROR
    found: npt.NDArray[np.bool_] = (x < np.maximum(top + math.log(scaled.below) + room, dead)) | (
        top < math.log(scaled.least) + below + room
    )
    return found
