"""The public face of Linformer."""

from __future__ import annotations

from refattn._call import prepare
from refattn._core.arrays import Array, quiet
from refattn._core.choice import choose, declare
from refattn.methods.linformer import reference
from refattn.methods.linformer.arguments import projections
from refattn.methods.linformer.capabilities import LINFORMER


@declare(LINFORMER)
@quiet
def linformer_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    key_projection: Array,
    value_projection: Array | None = None,
    scale: float | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> Array:
    """Softmax attention to R mixtures of the keys in the place of all S of them; never causal.

        O = softmax(scale Q (E^T K)^T) (F^T V)

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; real dtype.
    key : array, shape (..., Hk, S, E)
        Keys, at least one; H is a multiple of Hk.
    value : array, shape (..., Hk, S, Ev)
        Values.
    key_projection : array, shape (S, R) or (Hk, S, R)
        The paper's E, whose columns mix the keys: for all heads or for each key head. `linformer_projection` draws one;
        for inputs shorter than one was made for, its first S rows.
    value_projection : array, shape (S, R) or (Hk, S, R), optional
        The paper's F; default `key_projection`.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`. Must be given where that is float8 or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    array, shape (..., H, L, Ev)
        The output in `dtype`, on the namespace and device of the inputs.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: (S + L) R (E + Ev) multiply-adds and L R exponentials; memory O((L + S) R).

    Numerics: float64, the output is rounded once.

    A mixture holds keys from everywhere, so that there is no causal form, and nothing to mask but whole rows of the
    projections.

    References
    ----------
    .. [1] S. Wang, B. Z. Li, M. Khabsa, H. Fang, H. Ma, "Linformer: Self-Attention with Linear Complexity", 2020,
       arXiv:2006.04768.

    Examples
    --------
    Means over blocks of equal keys lose nothing:

    >>> import numpy as np
    >>> import refattn as ra
    >>> q, v = np.random.default_rng(0).standard_normal((2, 1, 6, 4))
    >>> k = np.repeat(q[:, :3], 2, axis=1)
    >>> E = ra.linformer_projection(6, 3, kind="mean")
    >>> np.allclose(ra.linformer_attention(q, k, v, key_projection=E), ra.attention(q, k, v))
    True
    """
    choose(LINFORMER, implementation)
    name = LINFORMER.function
    call = prepare(name, query, key, value, scale=scale, dtype=dtype)
    E, F = projections(name, key_projection, value_projection, key, call.xp)
    O = reference.linformer_attention(*call.grouped(), E, F, scale=call.score.scale, xp=call.xp)
    return call.rounded(call.headed(O, 2))
