"""The public face of linear attention's gradient."""

from __future__ import annotations

from refattn import masks
from refattn._core.arrays import FLOATS, Array, array_namespace, float64, quiet, round_to
from refattn._core.checks import check_array, check_held, check_integer, check_output_dtype, check_shape
from refattn._core.choice import Capabilities, ImplementationError, choose, declare
from refattn.methods.linear import gradient
from refattn.methods.linear.arguments import Linear, Phi, gather, memory_of, state_of
from refattn.methods.linear.capabilities import ARGUMENTS
from refattn.methods.linear.capabilities import CAPABILITIES as WHOLE
from refattn.methods.linear.features import counted
from refattn.methods.linear.forms import quotient, sums_of
from refattn.methods.linear.interface import CHUNK
from refattn.methods.linear.records import LinearGradient, LinearState
from refattn.methods.linear.reference import Memory, Sums, empty_memory

CAPABILITIES = Capabilities(
    function="linear_attention_gradient",
    method="gradient of linear attention, Katharopoulos et al. 2020",
    inputs=("grad_output", *WHOLE.inputs),
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=(*ARGUMENTS, "grad_state", "form", "chunk", "dtype"),
    accumulation="float64",
    time=WHOLE.time,
    memory=WHOLE.memory,
)


@declare(CAPABILITIES)
@quiet
def linear_attention_gradient(
    grad_output: Array,
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
    grad_state: LinearState | None = None,
    form: str = "quadratic",
    chunk: int = CHUNK,
    dtype: object = None,
    implementation: str | None = None,
) -> LinearGradient:
    """Gradients of a loss with respect to the inputs of `linear_attention`, from those with respect to its results.

        dN_i = do_i / (phi(q_i).z_i + eps),    dn_i = -dN_i.o_i
        dphi(q_i) = S_i dN_i + z_i dn_i
        dphi(k_j) = R_j v_j + r_j,    dv_j = R_j^T phi(k_j)
        R_j = sum_i phi(q_i) dN_i^T,    r_j = sum_i phi(q_i) dn_i

    Parameters
    ----------
    grad_output : array, shape (..., H, L, Ev)
        Gradient do of the loss with respect to the output; what it holds in rows that see nothing is not read.
    query : array, shape (..., H, L, E)
        Queries; everything as in `linear_attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    feature_map : str or FeatureMap, default "elu+1"
        phi; of a function of the caller's own no derivative is known.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `linear_attention`, as are all arguments up to `state`.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the query before phi.
    normalize : bool, default True
        Whether the output was divided by the normaliser.
    eps : float, default 0.0
        What kept the normaliser off 0.
    eps_rule : {"add", "clamp"}, default "add"
        Whether `eps` was added, or was the least value; a normaliser below that has no gradient.
    position : int, default 0
        Position of the first query and key.
    state : LinearState, optional
        What earlier keys left behind.
    grad_state : LinearState, optional
        Gradient of the loss with respect to the state after the last key; default 0.
    form : {"quadratic", "recurrent", "chunked"}, default "quadratic"
        By way of all similarities; or the state runs forward, and its gradient backward, key by key or chunk by chunk.
    chunk : int, default 64
        Keys in a chunk of the chunked form.
    dtype : dtype or str, optional
        Dtype of the gradients of query, key and value; default that of each. Must be given where one of these is float8
        or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    LinearGradient
        The named tuple (query, key, value, state) of arrays, shapes (..., H, L, E), (..., Hk, S, E), (..., Hk, S, Ev)
        and those of the state, on the namespace and device of the inputs; the state's are float64, and None where none
        was given.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit and values without meaning.
    ImplementationError
        For an `implementation` that does not exist, a mask that a form or a state does not know of, and a feature map
        without a known derivative.

    Notes
    -----
    Cost: three times that of `linear_attention`, the forward pass among it; the streaming forms keep the state before
    each chunk.

    Numerics: float64, one rounding of each gradient at the end.

    Keys that no query sees, and queries that see nothing, have the gradient 0, whatever they hold.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
       ICML 2020, arXiv:2006.16236, eqs. (13) to (15).

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, k = np.array([[[1.0]]]), np.array([[[0.0], [2.0]]])
    >>> v = np.array([[[0.0], [1.0]]])
    >>> grad = ra.linear_attention_gradient(np.ones((1, 1, 1)), q, k, v)
    >>> grad.query.tolist(), grad.key.tolist(), grad.value.tolist()
    ([[[0.0]]], [[[-0.1875], [0.0625]]], [[[0.25], [0.75]]])
    """
    choose(CAPABILITIES, implementation)
    name = CAPABILITIES.function
    check_array(name, "grad_output", grad_output, FLOATS)
    chunk = check_integer(name, "chunk", chunk, least=1)
    call = gather(
        name, query, key, value, feature_map=feature_map, mask=mask, is_causal=is_causal, scale=scale,
        normalize=normalize, eps=eps, eps_rule=eps_rule, position=position, state=state, form=form,
        keeps_state=grad_state is not None, dtype="float64",
    )  # fmt: skip
    of_call = call.call
    xp = array_namespace(name, query=query, grad_output=grad_output)
    dtypes = [check_output_dtype(name, dtype, x, n) for x, n in zip((query, key, value), WHOLE.inputs, strict=True)]
    for to in dtypes:
        check_held(name, to, xp)
    L, Ev = of_call.score.lengths[0], value.shape[-1]
    check_shape(name, "grad_output", grad_output, "(..., H, L, Ev)", (*of_call.lead, L, Ev))
    dO = of_call.split(float64(grad_output, xp), 2)
    after = empty_memory(call.phi_K, call.V, xp=xp)
    if grad_state is not None:
        after = memory_of(name, grad_state, query, call.phi_K, call.V, "grad_state")
    dQ, dK, dV, before = _gradients(call, dO, gradient.Memory(*after), form, chunk)
    found = (of_call.headed(dQ, 2), xp.squeeze(dK, axis=-3), xp.squeeze(dV, axis=-3))
    query, key, value = (round_to(x, to, xp) for x, to in zip(found, dtypes, strict=True))
    return LinearGradient(
        query,
        key,
        value,
        state=None if state is None else state_of(Memory(*before), xp),
    )


def _gradients(
    call: Linear, dO: Array, after: gradient.Memory, form: str, chunk: int
) -> tuple[Array, Array, Array, gradient.Memory]:
    """Gradients of query, key, value and of the state that came in."""
    xp, phi = call.call.xp, call.phi
    if phi.pull_query is None or phi.pull_key is None:
        raise ImplementationError(
            "linear_attention_gradient: feature_map must be one whose derivative is known; got a function. Take the "
            "derivative of linear_attention by torch.autograd or JAX."
        )
    sums = sums_of(call, form, chunk)
    dN, dZ = _of_quotient(call, sums, dO)
    given = (call.phi_Q, call.phi_K, call.V, dN, dZ, gradient.Memory(*call.before), after)
    if form == "quadratic":
        found = gradient.quadratic(*given, keep=call.keep, xp=xp)
    else:
        size = 1 if form == "recurrent" else chunk
        found = gradient.streamed(*given, causal=call.causal, chunk=size, xp=xp)
    dQ = phi.pull_query(call.Q, found.dphi_Q, counted(call.Q, call.position, xp), xp)
    dK = phi.pull_key(call.K, found.dphi_K, counted(call.K, call.position, xp), xp)
    return call.shown(dQ * call.scale), call.shown_keys(dK), call.shown_keys(found.dV), found.memory


def _of_quotient(call: Linear, sums: Sums, dO: Array) -> tuple[Array, Array]:
    """Gradients of numerators and normalisers; 0 in rows that see nothing."""
    xp = call.call.xp
    if not call.normalize:
        return dO, xp.zeros_like(sums.Z)
    dN, dZ = gradient.of_quotient(quotient(call, sums), dO, sums.Z, least=call.least, eps=call.eps, xp=xp)
    return call.shown(dN), call.shown(dZ)
