"""How far random-feature attention may be from softmax attention, at a stated confidence: see the README here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refattn._call import prepare
from refattn._core.arrays import Array, quiet, to_numpy
from refattn._core.checks import check_choice, check_flag, check_integer, check_real
from refattn.contract.averages import diameter, moved_by_factors

Floats = npt.NDArray[np.float64]
KINDS = ("positive", "hyperbolic", "trigonometric")


@quiet
def performer_error_bound(
    query: Array,
    key: Array,
    value: Array,
    *,
    features: int,
    kind: str = "positive",
    orthogonal: bool = True,
    confidence: float = 0.95,
    scale: float | None = None,
) -> Floats:
    """Bound on the distance of random-feature attention from softmax attention, which a drawn projection keeps.

        P( |o^_i - o_i| <= bound_i for every row i ) >= confidence

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    features : int
        Number M of vectors of the projection, drawn with ``scaling="chi"``.
    kind : {"positive", "hyperbolic", "trigonometric"}, default "positive"
        The features, without eps.
    orthogonal : bool, default True
        Whether the vectors are orthogonal in blocks, with corrected signs. Must be False for "trigonometric", whose
        inequality needs independent ones.
    confidence : float, default 0.95
        Probability, over the projection, with which all rows of all heads keep the bound.
    scale : float, optional
        Factor on the products q.k; default 1/sqrt(E).

    Returns
    -------
    numpy.ndarray, shape (..., H, L)
        Bounds on the Euclidean norm of each row's error, float64. Where the estimates are too poor to say more, the
        diameter of the values for nonnegative features, else inf.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit, a confidence that is not between 0 and 1, and orthogonal trigonometric features.

    Notes
    -----
    A relative error e < 1 of all estimates of a row moves its output by at most (1 - sqrt(1 - e^2)) / e times the
    diameter of the values. Each estimate keeps e but with probability (exp(s) - 1) / (M e^2) for positive features
    (Chebyshev, s = |x + y|^2), (cosh(s) - 1) / (M e^2) for hyperbolic ones, and 2 exp(-M a^2 / 2) for trigonometric
    ones (Hoeffding, a = e exp(-|x - y|^2 / 2)); the union over all cells is taken. Variances of positive features are
    heavy-tailed: for most data the bound says little, which is the truth about them. Rounding is not part of it.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794, Lemma 2 and
       Theorem 2.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.full((1, 1, 4), 0.1)
    >>> v = np.array([[[0.0], [1.0]]])
    >>> k = np.array([[[0.1] * 4, [-0.1] * 4]])
    >>> ra.performer_error_bound(q, k, v, features=4096).round(3).tolist()
    [[0.014]]
    """
    name = "performer_error_bound"
    M = check_integer(name, "features", features, least=1)
    check_choice(name, "kind", kind, KINDS)
    if check_flag(name, "orthogonal", orthogonal) and kind == "trigonometric":
        raise ValueError(
            f"{name}: orthogonal must be False for kind='trigonometric': the inequality needs independent vectors."
        )
    failure = 1.0 - check_real(name, "confidence", confidence, "a real number")
    if not 0 < failure < 1:
        raise ValueError(f"{name}: confidence must lie between 0 and 1; got {confidence}.")
    call = prepare(name, query, key, value, scale=scale, dtype="float64")
    if call.score.scale < 0:
        raise ValueError(f"{name}: scale must not be negative; got {scale}.")
    Q, K, V = (to_numpy(x) for x in call.grouped())
    x, y = Q * np.sqrt(call.score.scale), K * np.sqrt(call.score.scale)
    squares = np.sum(x * x, axis=-1)[..., :, None] + np.sum(y * y, axis=-1)[..., None, :]
    products = x @ np.swapaxes(y, -1, -2)
    error = relative_error(squares + 2 * products, squares - 2 * products, M, kind, failure / max(products.size, 1))
    worst = np.max(error, axis=-1, initial=0.0)
    bound = moved_by_factors(np.minimum(worst, 1.0)) * diameter(V)
    beyond = np.inf if kind == "trigonometric" else diameter(V)
    return np.asarray(call.headed(np.where(worst < 1, bound, beyond), 1))


def relative_error(sums: Floats, differences: Floats, M: int, kind: str, failure: float) -> Floats:
    """Relative error that an estimate from M features stays below but with a probability, by |x + y|^2 or |x - y|^2."""
    if kind == "trigonometric":
        return np.asarray(np.sqrt(2 * np.log(2 / failure) / M) * np.exp(np.maximum(differences, 0.0) / 2))
    variance = np.expm1(sums) if kind == "positive" else 2 * np.sinh(sums / 2) ** 2
    return np.sqrt(np.maximum(variance, 0.0) / (M * failure))
