"""What the functions of linear attention return, and the state that they hand on."""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import Array


class LinearState(NamedTuple):
    """All that linear attention keeps of the keys and values so far; its size does not grow with their number.

    Attributes
    ----------
    S : array, shape (..., Hk, M, Ev)
        Sum of the outer products of features and values, ``sum_j phi(k_j) v_j^T``, float64.
    z : array, shape (..., Hk, M)
        Sum of the features, ``sum_j phi(k_j)``, float64.
    """

    S: Array
    z: Array


class LinearResult(NamedTuple):
    """What a call of linear attention returns that asked for more than the output; the rest is None.

    Attributes
    ----------
    output : array, shape (..., H, L, Ev)
        The output.
    state : LinearState or None
        The state after the last key.
    normalizer : array, shape (..., H, L), or None
        ``phi(q_i).z``, before `eps`, float64.
    """

    output: Array
    state: LinearState | None = None
    normalizer: Array | None = None


class LinearGradient(NamedTuple):
    """Gradients of a loss of linear attention.

    Attributes
    ----------
    query : array, shape (..., H, L, E)
        Of the query.
    key : array, shape (..., Hk, S, E)
        Of the key, summed over the query heads that read it.
    value : array, shape (..., Hk, S, Ev)
        Of the value, summed over the query heads that read it.
    state : LinearState or None
        Of the state that was given, float64; None where none was.
    """

    query: Array
    key: Array
    value: Array
    state: LinearState | None = None
