"""Random projections: the vectors that random features are made of."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from refattn._core.checks import check_choice, check_flag, check_integer


def random_projection(
    features: int,
    dim: int,
    *,
    orthogonal: bool = True,
    scaling: str = "chi",
    qr: str = "sign",
    rng: int | np.random.Generator | None = None,
) -> npt.NDArray[np.float64]:
    """Draw the projection of random-feature attention: normal vectors, in blocks orthogonal to each other.

        W = D [Q_1; Q_2; ...],    each Q_b a uniformly drawn orthogonal matrix, D the lengths

    Parameters
    ----------
    features : int
        Number M of vectors.
    dim : int
        Number E of features of a query.
    orthogonal : bool, default True
        Whether the vectors of each block of `dim` are orthogonal; else all are independent.
    scaling : {"chi", "sqrt"}, default "chi"
        Lengths of the vectors: those of independent normal vectors, so that each is normal by itself and estimates are
        unbiased; or all sqrt(dim), which are not.
    qr : {"sign", "lapack"}, default "sign"
        How an orthogonal matrix is made of a normal one. "sign" makes the diagonal of R positive, and with it the
        matrix uniform. "lapack" takes Q as it comes, as published programs do: its signs follow the entries, and
        estimates are biased.
    rng : int, numpy.random.Generator or None, optional
        Where the numbers come from; an integer is a seed.

    Returns
    -------
    numpy.ndarray, shape (features, dim)
        The vectors, float64. `refattn.from_numpy` makes them an array of another library.

    Raises
    ------
    TypeError
        For numbers that are no integers.
    ValueError
        For numbers below 1 and unknown words.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794.
    .. [2] F. Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS 54(5),
       2007, arXiv:math-ph/0609050.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import random_projection
    >>> W = random_projection(3, 3, scaling="sqrt", rng=0)
    >>> np.abs(W @ W.T).round(12).tolist()
    [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]]
    """
    name = "random_projection"
    M, E = check_integer(name, "features", features, least=1), check_integer(name, "dim", dim, least=1)
    check_flag(name, "orthogonal", orthogonal)
    check_choice(name, "scaling", scaling, ("chi", "sqrt"))
    check_choice(name, "qr", qr, ("sign", "lapack"))
    draw = np.random.default_rng(rng)
    if orthogonal:
        directions = np.concatenate([_block(draw, E, qr) for _ in range(-(-M // E))])[:M]
    else:
        directions = draw.standard_normal((M, E))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chi = scaling == "chi"
    lengths = np.linalg.norm(draw.standard_normal((M, E)), axis=1, keepdims=True) if chi else math.sqrt(E)
    return directions * lengths


def _block(draw: np.random.Generator, E: int, qr: str) -> npt.NDArray[np.float64]:
    """One orthogonal matrix."""
    Q, R = np.linalg.qr(draw.standard_normal((E, E)))
    return (Q * np.sign(np.diag(R)) if qr == "sign" else Q).T
