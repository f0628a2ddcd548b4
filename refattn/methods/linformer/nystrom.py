"""The public face of Nystrom attention."""

from __future__ import annotations

from refattn._call import prepare
from refattn._core.arrays import Array, quiet
from refattn._core.choice import choose, declare
from refattn.methods.linformer import reference
from refattn.methods.linformer.arguments import check_landmarks
from refattn.methods.linformer.capabilities import NYSTROM


@declare(NYSTROM)
@quiet
def nystrom_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    landmarks: int = 64,
    iterations: int = 6,
    coupled: bool = False,
    scale: float | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> Array:
    """Softmax attention with its matrix approximated from M landmark rows and columns; never causal.

        O = softmax(scale Q K~^T) softmax(scale Q~ K~^T)^+ softmax(scale Q~ K^T) V

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; real dtype.
    key : array, shape (..., Hk, S, E)
        Keys; H is a multiple of Hk.
    value : array, shape (..., Hk, S, Ev)
        Values.
    landmarks : int, default 64
        M: landmarks Q~ and K~ are means of M segments of queries and keys, as equal as whole rows let them be. At most
        L and S.
    iterations : int, default 6
        Steps towards the pseudo-inverse.
    coupled : bool, default False
        Whether the iteration begins with sums over all batch entries and heads together, as published programs do; one
        entry then changes the others' outputs.
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
        For shapes that do not fit, and more landmarks than rows.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: (L + S) M (E + Ev) multiply-adds, 4 M^3 for each of the iterations, and (L + S + M) M exponentials; memory
    O((L + S) M).

    Numerics: float64, the output is rounded once. The residual I - A Z of the iteration becomes 3/4 of its third plus
    1/4 of its fourth power in each step, which converges slowly where A is close to singular; rows of the output need
    not be averages of values.

    References
    ----------
    .. [1] Y. Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention", AAAI 2021,
       arXiv:2102.03902.

    Examples
    --------
    As many landmarks as rows, and enough steps, give attention itself:

    >>> import numpy as np
    >>> import refattn as ra
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 5, 4))
    >>> error = ra.nystrom_attention(q, k, v, landmarks=5, iterations=40) - ra.attention(q, k, v)
    >>> bool(np.abs(error).max() < 1e-9)
    True
    """
    choose(NYSTROM, implementation)
    name = NYSTROM.function
    call = prepare(name, query, key, value, scale=scale, dtype=dtype)
    M, iterations, coupled = check_landmarks(name, landmarks, iterations, coupled, call.score.lengths)
    O = reference.nystrom_attention(
        *call.grouped(), landmarks=M, iterations=iterations, coupled=coupled, scale=call.score.scale, xp=call.xp
    )
    return call.rounded(call.headed(O, 2))
