"""How far an average moves where its weights do: what approximate methods' bounds rest on. Proofs are in the README."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def moved_by_scores(eta: Floats) -> Floats:
    """Share of the values' diameter that a softmax average may move by where its scores move by up to eta."""
    return np.asarray(np.tanh(eta / 2))


def moved_by_factors(error: Floats) -> Floats:
    """Share of the values' diameter that an average may move by where weights err relatively by up to error <= 1."""
    # (1 - sqrt(1 - e^2)) / e without the cancellation.
    return np.asarray(error / (1 + np.sqrt(1 - error * error)))


def diameter(values: Floats) -> Floats:
    """A number (..., 1) not below the largest distance of two rows of (..., S, Ev): twice the radius about midrange."""
    if values.shape[-2] == 0:
        return np.zeros((*values.shape[:-2], 1))
    middle = (values.max(axis=-2, keepdims=True) + values.min(axis=-2, keepdims=True)) / 2
    return np.asarray(2 * np.sqrt(np.sum((values - middle) ** 2, axis=-1)).max(axis=-1, keepdims=True))
