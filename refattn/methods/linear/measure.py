"""The public face of linear attention's error bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import masks
from refattn._core.arrays import Array, to_numpy
from refattn.contract import Contract, resolve
from refattn.methods.linear.arguments import Linear, Phi, gather
from refattn.methods.linear.bound import LinearProblem, linear_bound
from refattn.methods.linear.features import counted
from refattn.methods.linear.records import LinearState


def linear_error_bound(
    query: Array,
    key: Array,
    value: Array,
    *,
    contract: Contract | str | None = None,
    feature_map: Phi = "elu+1",
    mask: masks.Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    normalize: bool = True,
    eps: float = 0.0,
    eps_rule: str = "add",
    position: int = 0,
    state: LinearState | None = None,
    dtype: object = None,
) -> npt.NDArray[np.float64]:
    """Bound how far a kernel of linear attention, in any of its forms, may be from `linear_attention`.

        |kernel - o| <= (E_N + |o| E_D) / (|D| - E_D) + half_ulp,    E_N <= gamma_(S + M + 2) |phi(Q)| |phi(K)|^T |V|

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries as the kernel was given them; everything as in `linear_attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    contract : Contract or str, optional
        The kernel's numerics, of which formats of operands, weights, sums and output count, and the error of an
        exponential: features are rounded to the formats of query and key, similarities and the state that queries
        read to that of the weights. A string means ``contract.flash`` of that dtype; default: flash of the output's
        dtype.
    feature_map : str, FeatureMap or callable, default "elu+1"
        As in `linear_attention`, as are all arguments that follow. Features of a callable are taken as exact.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where a key takes part.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the query before phi.
    normalize : bool, default True
        Whether the kernel divides by the normaliser.
    eps : float, default 0.0
        What keeps the normaliser off 0.
    eps_rule : {"add", "clamp"}, default "add"
        Whether `eps` is added to the normaliser, or is its least value.
    position : int, default 0
        Position of the first query and key.
    state : LinearState, optional
        What earlier keys left behind, taken as exact.
    dtype : dtype or str, optional
        Dtype of the kernel's output; default that of `query`.

    Returns
    -------
    numpy.ndarray, shape (..., H, L, Ev)
        float64; inf where the normaliser may be 0 for all that is proved.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit and values without meaning.

    Notes
    -----
    Cost: 5 L S (M + Ev) multiply-adds a head, twice; memory O(L S) of one head.

    References
    ----------
    .. [1] The theorem and its proof: refattn/methods/linear/README.md.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 64, 8)).astype(np.float32)
    >>> kernel = ra.linear_attention(q, k, v)
    >>> exact = ra.linear_attention(q, k, v, dtype="float64")
    >>> bool((abs(kernel - exact) <= ra.linear_error_bound(q, k, v)).all())
    True
    """
    name = "linear_error_bound"
    call = gather(
        name, query, key, value, feature_map=feature_map, mask=mask, is_causal=is_causal, scale=scale,
        normalize=normalize, eps=eps, eps_rule=eps_rule, position=position, state=state, form="quadratic",
        keeps_state=False, dtype=dtype,
    )  # fmt: skip
    numerics = resolve(contract, call.call.dtype)
    found = np.zeros((*call.call.lead, query.shape[-2], value.shape[-1]))
    for index, problem in problems(call):
        found[index] = linear_bound(numerics, problem).output
    return found


def problems(call: Linear) -> Iterator[tuple[tuple[int, ...], LinearProblem]]:
    """The problem of each batch entry and query head (..., h)."""
    groups, xp = call.call.score.groups, call.call.xp
    assert groups is not None
    Q, K, V, phi_Q, phi_K = (to_numpy(x) for x in (call.Q, call.K, call.V, call.phi_Q, call.phi_K))
    memory = None if call.memory is None else tuple(to_numpy(x) for x in call.memory)
    full = (*Q.shape[:-1], K.shape[-2])
    keep = None if call.keep is None else np.broadcast_to(to_numpy(call.keep), full)
    positions: Any = tuple(to_numpy(counted(x, call.position, xp)) for x in (call.Q, call.K))
    for index in np.ndindex(call.call.lead):
        of_key = (*index[:-1], index[-1] // groups[1], 0)
        of_query = (*of_key[:-1], index[-1] % groups[1])
        yield index, LinearProblem(
            phi=call.phi, query=Q[of_query], key=K[of_key], phi_q=phi_Q[of_query], phi_k=phi_K[of_key],
            value=V[of_key], scaled=call.scale != 1.0, positions=positions,
            keep=None if keep is None else keep[of_query],
            memory=None if memory is None else (memory[0][of_key], memory[1][of_key]), normalize=call.normalize,
            eps=call.eps, least=call.least,
        )  # fmt: skip
