"""The public face of the softmax in one pass over the scores."""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import FLOATS, Array, array_namespace, float64, quiet, round_to
from refattn._core.checks import check_array, check_held, check_output_dtype
from refattn._core.choice import Capabilities, choose, declare
from refattn.methods.flash import reference
from refattn.methods.flash.capabilities import CAPABILITIES as WHOLE
from refattn.methods.flash.forms import check_sizes

CAPABILITIES = Capabilities(
    function="online_softmax",
    method="softmax in one pass, Milakov & Gimelshein 2018",
    inputs=("scores",),
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=tuple(name for name in FLOATS if name != "float8_e8m0fnu"),
    arguments=("tile", "dtype"),
    accumulation="float64",
    time="O(S) a row",
    memory="O(S) a row",
)


class OnlineSoftmax(NamedTuple):
    """A softmax, and what its one pass over the scores left.

    Attributes
    ----------
    weights : array, shape (..., S)
        The softmax.
    maximum : array, shape (...)
        Largest score of each row, float64; -inf for a row of -inf.
    total : array, shape (...)
        Sum of exp(score - maximum), float64; 0 for a row of -inf. Its logarithm and the maximum add up to the
        log-sum-exp.
    """

    weights: Array
    maximum: Array
    total: Array


@declare(CAPABILITIES)
@quiet
def online_softmax(
    scores: Array, *, tile: int | None = None, dtype: object = None, implementation: str | None = None
) -> OnlineSoftmax:
    """Softmax of the last axis, whose maximum and sum are found in one pass, as tiled attention finds them.

        m_j = max(m_(j-1), x_j),    d_j = d_(j-1) exp(m_(j-1) - m_j) + exp(x_j - m_j),    y = exp(x - m_S) / d_S

    Parameters
    ----------
    scores : array, shape (..., S)
        Scores; -inf where a cell is masked.
    tile : int, optional
        Scores that are taken at a time. Default: 1, as in the paper, up to S = 1024, else 1024.
    dtype : dtype or str, optional
        Dtype of the weights; default that of `scores`.
    implementation : {"reference"}, optional
        Form of the method; None is the reference.

    Returns
    -------
    OnlineSoftmax
        The named tuple (weights, maximum, total): weights (..., S) in `dtype`, the others (...) in float64, on the
        namespace and device of the input.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For scores without an axis, and a tile below 1.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: S + S / tile exponentials a row in the pass, and S for the weights; memory O(S) a row.

    Numerics: float64; weights are rounded once. Each tile of the pass may change the sum by five roundings more than
    one sum over all scores has.

    A row of -inf alone has weights 0, as masked rows have; a row that holds NaN or +inf has weights of NaN.

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867,
       Algorithm 3; a tile at a time by section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> y, m, d = ra.online_softmax(np.log([1.0, 2.0, 5.0, 2.0]))
    >>> y.round(6).tolist(), f"{np.exp(m):.6f}", f"{d:.6f}"
    ([0.1, 0.2, 0.5, 0.2], '5.000000', '2.000000')
    """
    choose(CAPABILITIES, implementation)
    name = CAPABILITIES.function
    check_array(name, "scores", scores, CAPABILITIES.dtypes)
    if len(scores.shape) == 0:
        raise ValueError(f"{name}: scores must have an axis S (axis -1); got ().")
    (tile,) = check_sizes(name, tile=tile)
    to = check_output_dtype(name, dtype, scores, "scores")
    xp = array_namespace(name, scores=scores)
    check_held(name, to, xp)
    S = scores.shape[-1]
    y, m, d = reference.online_softmax(float64(scores, xp), tile=tile or (1 if S <= 1024 else 1024), xp=xp)
    return OnlineSoftmax(round_to(y, to, xp), xp.squeeze(m, axis=-1), xp.squeeze(d, axis=-1))
