"""The public face of random-feature attention."""

from __future__ import annotations

from refattn._core.arrays import Array, quiet
from refattn._core.choice import choose, declare
from refattn.methods.performer import reference
from refattn.methods.performer.arguments import gather
from refattn.methods.performer.capabilities import CAPABILITIES


@declare(CAPABILITIES)
@quiet
def performer_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    projection: Array,
    features: str = "positive",
    is_causal: bool = False,
    scale: float | None = None,
    eps: float | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> Array:
    """Softmax attention with its kernel estimated by products of random features, in time linear in the length.

        o_i = phi(q_i)^T sum_j phi(k_j) v_j^T / phi(q_i)^T sum_j phi(k_j),    E phi(q)^T phi(k) = exp(scale q.k)

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; real dtype.
    key : array, shape (..., Hk, S, E)
        Keys; H is a multiple of Hk.
    value : array, shape (..., Hk, S, Ev)
        Values.
    projection : array, shape (M, E)
        The vectors w of the features, as `random_projection` draws them; drawing them anew is the caller's.
    features : {"positive", "hyperbolic", "trigonometric", "relu"}, default "positive"
        With x the query or key times sqrt(scale): exp(w.x - |x|^2/2); these and exp(-w.x - |x|^2/2); the cosine and
        sine of w.x times exp(|x|^2/2); or max(w.x, 0) + eps, which estimates another kernel than softmax's.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the products q.k that are estimated, not negative; default 1/sqrt(E).
    eps : float, optional
        What is added to each feature; default 0, for "relu" 1e-3. For "positive" it is added as the authors' program
        does, after a division by the exponential of the largest w.x (of the query; of all keys), and is refused with
        `is_causal`, where it would let later keys matter.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`. Must be given where that is float8 or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    array, shape (..., H, L, Ev)
        The output in `dtype`, on the namespace and device of the inputs; 0 where there are no keys.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit, unknown features, a negative scale or eps, and eps where the features take none.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: (E + Ev) M multiply-adds and M exponentials for each query and key; memory O((L + S) M). With `is_causal` keys
    are taken one by one.

    Numerics: float64, the output is rounded once. Features are kept as logarithms and divided by what they reach, for
    keys by a running maximum for each feature; both cancel, so that nothing overflows and no later key matters.

    The normaliser of "positive", "hyperbolic" and "relu" features is positive and the output a convex combination of
    the values. That of "trigonometric" ones may be 0 or negative; the quotient is taken as it comes.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794, section 2,
       Lemma 1.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = 0.5 * rng.standard_normal((3, 1, 64, 8))
    >>> W = ra.random_projection(256, 8, rng=rng)
    >>> error = ra.performer_attention(q, k, v, projection=W) - ra.attention(q, k, v)
    >>> print(f"{np.abs(error).max():.3f}")
    0.027
    """
    choose(CAPABILITIES, implementation)
    given = gather(
        CAPABILITIES.function, query, key, value, projection=projection, features=features, is_causal=is_causal,
        scale=scale, eps=eps, dtype=dtype,
    )  # fmt: skip
    form = reference.unidirectional if is_causal else reference.bidirectional
    call = given.call
    return call.rounded(call.headed(form(given.Q, given.K, given.V, xp=call.xp), 2))
