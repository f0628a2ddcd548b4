"""The public face of linear attention as a recurrent network: token by token, with a state of fixed size."""

from __future__ import annotations

from refattn._core.arrays import Array, quiet
from refattn._core.choice import Capabilities, choose, declare
from refattn.methods.linear.arguments import Phi, gather
from refattn.methods.linear.capabilities import CAPABILITIES as WHOLE
from refattn.methods.linear.forms import run
from refattn.methods.linear.records import LinearResult, LinearState

CAPABILITIES = Capabilities(
    function="linear_decode",
    method=WHOLE.method,
    implementations=("reference",),
    inputs=("state", *WHOLE.inputs),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=("feature_map", "scale", "normalize", "eps", "eps_rule", "position", "dtype"),
    accumulation="float64",
    time="O(M Ev) a token",
    memory="O(M Ev)",
)


@declare(CAPABILITIES)
@quiet
def linear_decode(
    state: LinearState | None,
    query: Array,
    key: Array,
    value: Array,
    *,
    feature_map: Phi = "elu+1",
    scale: float | None = None,
    normalize: bool = True,
    eps: float = 0.0,
    eps_rule: str = "add",
    position: int = 0,
    dtype: object = None,
    implementation: str | None = None,
) -> LinearResult:
    """Linear attention of the next tokens: each enters the state, and is answered from it.

        S_i = S_(i-1) + phi(k_i) v_i^T,    z_i = z_(i-1) + phi(k_i),    o_i = phi(q_i)^T S_i / (phi(q_i)^T z_i + eps)

    Parameters
    ----------
    state : LinearState or None
        What the tokens before left behind: arrays S, shape (..., Hk, M, Ev), and z, shape (..., Hk, M); None where
        there were none.
    query : array, shape (..., H, L, E)
        Queries of the new tokens, often L = 1; everything as in `linear_attention`.
    key : array, shape (..., Hk, L, E)
        Keys.
    value : array, shape (..., Hk, L, Ev)
        Values.
    feature_map : str, FeatureMap or callable, default "elu+1"
        phi; not "efficient", which needs all keys at once.
    scale : float, optional
        Factor on the query before phi.
    normalize : bool, default True
        Whether to divide by the normaliser.
    eps : float, default 0.0
        What keeps the normaliser off 0.
    eps_rule : {"add", "clamp"}, default "add"
        Whether `eps` is added to the normaliser, or is its least value.
    position : int, default 0
        Position of the first new token, which cosFormer's features depend on.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    LinearResult
        The named tuple (output, state, normalizer) of arrays: output (..., H, L, Ev) in `dtype`, the state after the
        new tokens, and the normaliser (..., H, L), in float64.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit and values without meaning.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: 2 M (Ev + 1) multiply-adds a token and head, and a state of M (Ev + 1) numbers a key head, whatever the number
    of tokens before.

    Numerics: float64; the output is rounded once, the state never.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
       ICML 2020, arXiv:2006.16236, eqs. (16) to (20).

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> state, ones = None, np.ones((1, 1, 2))
    >>> for value in (1.0, 3.0):
    ...     output, state, _ = ra.linear_decode(state, ones, ones, np.full((1, 1, 1), value))
    >>> output.item(), state.z.tolist()
    (2.0, [[4.0, 4.0]])
    """
    choose(CAPABILITIES, implementation)
    call = gather(
        CAPABILITIES.function, query, key, value, feature_map=feature_map, mask=None, is_causal=True, scale=scale,
        normalize=normalize, eps=eps, eps_rule=eps_rule, position=position, state=state, form="recurrent",
        keeps_state=True, dtype=dtype,
    )  # fmt: skip
    return run(call, "recurrent", 1)
