"""How far attention to means of blocks may be from attention to the keys themselves: see the README here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refattn._call import prepare
from refattn._core.arrays import Array, quiet, to_numpy
from refattn._core.checks import check_integer
from refattn.contract.averages import diameter, moved_by_scores


@quiet
def linformer_error_bound(
    query: Array, key: Array, value: Array, *, rank: int, scale: float | None = None
) -> npt.NDArray[np.float64]:
    """Bound on the distance of `linformer_attention` with means of blocks from softmax attention.

        |o~_i - o_i| <= tanh(eta_i / 2) diam(V),    eta_i = max_j |scale q_i.(k_j - mean of k_j's block)|

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    rank : int
        Number R of blocks, which divides S; the projections are ``linformer_projection(S, R, kind="mean")``.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).

    Returns
    -------
    numpy.ndarray, shape (..., H, L)
        Bounds on the Euclidean norm of each row's error, float64.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit, and a rank that does not divide S.

    Notes
    -----
    Rounding is not part of it. Drawn projections have no such bound: what the paper proves of them holds for sizes and
    probabilities without constants.

    References
    ----------
    .. [1] S. Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, v = np.ones((1, 1, 1)), np.array([[[0.0], [1.0]]])
    >>> ra.linformer_error_bound(q, np.array([[[0.0], [0.2]]]), v, rank=1).round(6).tolist()
    [[0.049958]]
    """
    name = "linformer_error_bound"
    R = check_integer(name, "rank", rank, least=1)
    call = prepare(name, query, key, value, scale=scale, dtype="float64")
    S = call.score.lengths[1]
    if S % R or not S:
        raise ValueError(f"{name}: rank must divide the number of keys S={S}, at least 1; got {R}.")
    Q, K, V = (to_numpy(x) for x in call.grouped())
    blocks = K.reshape(*K.shape[:-2], R, S // R, K.shape[-1])
    apart = (blocks - blocks.mean(axis=-2, keepdims=True)).reshape(K.shape)
    eta = np.abs(call.score.scale * (Q @ np.swapaxes(apart, -1, -2))).max(axis=-1)
    return np.asarray(call.headed(moved_by_scores(eta) * diameter(V), 1))
