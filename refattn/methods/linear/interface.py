"""The public face of linear attention."""

from __future__ import annotations

from refattn import masks
from refattn._core.arrays import Array, quiet
from refattn._core.checks import check_flag, check_integer
from refattn._core.choice import choose, declare
from refattn.methods.linear.arguments import Phi, gather
from refattn.methods.linear.capabilities import CAPABILITIES
from refattn.methods.linear.forms import run
from refattn.methods.linear.records import LinearResult, LinearState

CHUNK = 64


@declare(CAPABILITIES)
@quiet
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    feature_map: Phi = "elu+1",
    mask: masks.Mask | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    normalize: bool = True,
    eps: float = 0.0,
    eps_rule: str = "add",
    position: int = 0,
    state: LinearState | None = None,
    return_state: bool = False,
    return_normalizer: bool = False,
    form: str = "quadratic",
    chunk: int = CHUNK,
    dtype: object = None,
    implementation: str | None = None,
) -> Array | LinearResult:
    """Attention whose weights are products of features, so that keys and values fit into a state of fixed size.

        o_i = phi(q_i)^T S_i / (phi(q_i)^T z_i + eps),    S_i = sum_j phi(k_j) v_j^T,    z_i = sum_j phi(k_j)

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; any real floating-point or integer dtype. H is a multiple of Hk: query head h reads key head
        h // (H // Hk).
    key : array, shape (..., Hk, S, E)
        Keys; batch axes, library and device of `query`.
    value : array, shape (..., Hk, S, Ev)
        Values, one for each key.
    feature_map : str, FeatureMap or callable, default "elu+1"
        phi: "elu+1", "relu", "identity"; "softmax", over the features; "efficient", softmax of a query over its
        features and of a feature over all keys; "taylor", phi(q).phi(k) = 1 + s + s^2 / 2 with s = scale q.k;
        "squared", s^2; "cosformer", relu and a cosine of the distance over max(L, S); what `cosformer_features` and
        `fourier_features` return; or a function that turns float64 (..., n, E) into (..., n, M).
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where a key takes part. The streaming forms, and a state, know of masks of keys alone: boolean arrays
        broadcastable to (..., 1, 1, S).
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the query before phi; default 1, and 1/sqrt(E) for "taylor" and "squared".
    normalize : bool, default True
        Whether to divide by the normaliser phi(q_i).z_i.
    eps : float, default 0.0
        What keeps the normaliser off 0.
    eps_rule : {"add", "clamp"}, default "add"
        Whether `eps` is added to the normaliser, or is its least value.
    position : int, default 0
        Position of the first query and key, which cosFormer's features depend on.
    state : LinearState, optional
        What earlier keys left behind; all queries see it.
    return_state : bool, default False
        Also return the state after the last key.
    return_normalizer : bool, default False
        Also return phi(q_i).z_i, whose sign and size tell what a division by it means.
    form : {"quadratic", "recurrent", "chunked"}, default "quadratic"
        All similarities at once; key by key; or chunk by chunk, with similarities inside a chunk. They agree.
    chunk : int, default 64
        Keys in a chunk of the chunked form.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`. Must be given for float8 and integer queries.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    array, shape (..., H, L, Ev), or LinearResult
        The output in `dtype`, on the namespace and device of the inputs. With `return_state` or `return_normalizer`
        the named tuple (output, state, normalizer): state S (..., Hk, M, Ev), z (..., Hk, M), and normalizer
        (..., H, L) in float64.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit and values without meaning.
    ImplementationError
        For an `implementation` that does not exist, and a mask that a form or a state does not know of.

    Notes
    -----
    Cost: with M features, 2 M (Ev + 1) multiply-adds a token in the recurrent form and a state of M (Ev + 1) numbers;
    L S (M + Ev) multiply-adds and O(L S) memory in the quadratic form, the default.

    Numerics: float64, one rounding at the end; `linear_error_bound` says how far it, or a kernel, may be off.

    A row that may attend to nothing gives zeros, as the mask says; a state counts as something. A normaliser of 0 is
    not that: it gives 0/0 = NaN or x/0 = inf where `eps` is 0, as the formula says. Features that are not all of one
    sign ("identity", Fourier) may make it negative: the weights then still add up to 1, but some are negative, and an
    output may lie outside the hull of the values.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
       ICML 2020, arXiv:2006.16236, eqs. (4) to (12) and (16) to (20).
    .. [2] Z. Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, arXiv:1812.01243.
    .. [3] S. Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff", ICML 2024,
       arXiv:2402.18668.
    .. [4] Y. Aksenov et al., "Linear Transformers with Learnable Kernel Functions are Better In-Context Models", ACL
       2024, arXiv:2402.10644.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, k = np.array([[[1.0], [3.0]]]), np.array([[[0.0], [2.0]]])
    >>> v = np.array([[[0.0], [1.0]]])
    >>> ra.linear_attention(q, k, v)
    array([[[0.75],
            [0.75]]])
    >>> part = ra.linear_attention(q[:, :1], k[:, :1], v[:, :1], is_causal=True, return_state=True)
    >>> ra.linear_decode(part.state, q[:, 1:], k[:, 1:], v[:, 1:]).output
    array([[[0.75]]])
    """
    choose(CAPABILITIES, implementation)
    name = CAPABILITIES.function
    check_flag(name, "return_state", return_state)
    check_flag(name, "return_normalizer", return_normalizer)
    chunk = check_integer(name, "chunk", chunk, least=1)
    call = gather(
        name, query, key, value, feature_map=feature_map, mask=mask, is_causal=is_causal, scale=scale,
        normalize=normalize, eps=eps, eps_rule=eps_rule, position=position, state=state, form=form,
        keeps_state=return_state, dtype=dtype,
    )  # fmt: skip
    output, state, normalizer = run(call, form, chunk)
    if not (return_state or return_normalizer):
        return output
    return LinearResult(output, state if return_state else None, normalizer if return_normalizer else None)
