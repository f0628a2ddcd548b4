"""The public faces of feature maps that are made of numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import FLOATS, Array, to_numpy
from refattn._core.checks import check_array, check_integer, check_real
from refattn.methods.linear.features import FeatureMap, cosformer, fourier


def cosformer_features(length: int) -> FeatureMap:
    """Feature map of cosFormer, whose similarities fall off with the cosine of the distance.

        phi(q_i).phi(k_j) = max(q_i, 0).max(k_j, 0) cos(pi (i - j) / 2M)

    Parameters
    ----------
    length : int
        M, at least the length of the longest sequence; a decoder must know it in advance.

    Returns
    -------
    FeatureMap
        For ``feature_map=``; of twice as many features as a query has, sines before cosines.

    Raises
    ------
    TypeError
        For a length that is no integer.
    ValueError
        For a length below 1.

    Notes
    -----
    Distances beyond M have negative similarities. The authors' program bounds the normaliser from below:
    ``eps=1e-6, eps_rule="clamp"``.

    References
    ----------
    .. [1] Z. Qin et al., "cosFormer: Rethinking Softmax in Attention", ICLR 2022, arXiv:2202.08791, eq. (10).

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import cosformer_features
    >>> phi = cosformer_features(6)(np.ones((3, 1)))
    >>> print((phi @ phi.T).round(3)[0])
    [1.    0.966 0.866]
    """
    return cosformer(check_integer("cosformer_features", "length", length, least=1))


def fourier_features(frequencies: Array, *, scale: float = 1.0) -> FeatureMap:
    """Random Fourier features of the Gaussian kernel.

        phi(x) = m^(-1/2) [cos(sqrt(scale) W x), sin(sqrt(scale) W x)],    E phi(x).phi(y) = exp(-scale |x - y|^2 / 2)

    Parameters
    ----------
    frequencies : array, shape (m, E)
        W: standard normal numbers, as `fourier_frequencies` draws them.
    scale : float, default 1.0
        Factor on the squared distance; idiap's ``softmax_temp``, whose default is 1/sqrt(E).

    Returns
    -------
    FeatureMap
        For ``feature_map=``; of 2m features, cosines before sines.

    Raises
    ------
    TypeError
        For frequencies that are no array, and a scale that is no number.
    ValueError
        For frequencies without two axes, and a scale that is not positive and finite.

    Notes
    -----
    This is no approximation of softmax attention, which has exp(scale q.k): the factors exp(scale |x|^2 / 2) are
    missing. Products, and so normalisers, may be negative.

    References
    ----------
    .. [1] A. Rahimi, B. Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> phi = ra.fourier_features(ra.fourier_frequencies(10_000, 2, rng=0))
    >>> x, y = phi(np.zeros((1, 2))), phi(np.ones((1, 2)))
    >>> print(f"{(x @ y.T).item():.2f} {np.exp(-1):.2f}")
    0.37 0.37
    """
    name = "fourier_features"
    check_array(name, "frequencies", frequencies, FLOATS)
    shape = tuple(frequencies.shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name}: frequencies must have shape (m, E), neither of them 0; got {shape}.")
    factor = check_real(name, "scale", scale, "a real number")
    if factor <= 0:
        raise ValueError(f"{name}: scale must be positive; got {scale}.")
    return fourier(to_numpy(frequencies).astype(np.float64), factor)


def fourier_frequencies(
    features: int, dim: int, *, rng: int | np.random.Generator | None = None
) -> npt.NDArray[np.float64]:
    """Standard normal frequencies for `fourier_features`, drawn on the host.

    Parameters
    ----------
    features : int
        m, half the number of features.
    dim : int
        E.
    rng : int or numpy.random.Generator, optional
        Seed, or what draws.

    Returns
    -------
    numpy.ndarray, shape (m, E)
        float64.

    Raises
    ------
    TypeError
        For a size that is no integer.
    ValueError
        For a size below 1.

    Examples
    --------
    >>> from refattn import fourier_frequencies
    >>> fourier_frequencies(3, 2, rng=0).shape
    (3, 2)
    """
    sizes = (check_integer("fourier_frequencies", n, x, least=1) for n, x in (("features", features), ("dim", dim)))
    return np.random.default_rng(rng).standard_normal(tuple(sizes))
