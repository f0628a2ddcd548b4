"""The public face of exact attention's gradient."""

from __future__ import annotations

from typing import NamedTuple

from refattn import biases, masks
from refattn._call import prepare
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, float64, quiet, round_to
from refattn._core.checks import check_array, check_output_dtype, check_shape
from refattn._core.choice import Capabilities, choose, declare
from refattn.methods.exact import gradient, reference
from refattn.methods.exact.capabilities import CAPABILITIES as WHOLE
from refattn.methods.exact.cost import GRADIENT_FORMS

CAPABILITIES = Capabilities(
    function="attention_gradient",
    method="gradient of softmax attention, Dao et al. 2022",
    inputs=("grad_output", *WHOLE.inputs),
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=(*(name for name in WHOLE.arguments if not name.startswith("return_")), "grad_lse"),
    accumulation="float64",
    time="O(L S (E + Ev))",
    memory="O(L S)",
    cost=GRADIENT_FORMS,
)


class AttentionGradient(NamedTuple):
    """Gradients of a loss; what the call did not have is None.

    Attributes
    ----------
    query : array, shape (..., H, L, E)
        Of the query.
    key : array, shape (..., Hk, S, E)
        Of the key, summed over the query heads that read it.
    value : array, shape (..., Hk, S, Ev)
        Of the value, summed over the query heads that read it.
    bias : array, shape of the bias, or None
        Of the bias, summed over the axes along which it was broadcast; None for no bias or one that is a rule.
    sinks : array, shape (H,), or None
        Of the sinks, summed over batch and queries.
    """

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    sinks: Array | None = None


@declare(CAPABILITIES)
@quiet
def attention_gradient(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: masks.Mask | Array | None = None,
    dropout_p: float = 0.0,
    grad_lse: Array | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> AttentionGradient:
    """Gradients of a loss with respect to the inputs of `attention`, from those with respect to its results.

        dV = (P Z)^T dO
        dP = (dO V^T) Z,    dS = P (dP - rowsum(dO O) + dlse)
        dR = dS (1 - tanh^2(R / softcap)),    R = scale Q K^T
        dQ = scale dR K,    dK = scale dR^T Q

    Parameters
    ----------
    grad_output : array, shape (..., H, L, Ev)
        Gradient dO of the loss with respect to the output; what it holds in rows that see no key is not read.
    query : array, shape (..., H, L, E)
        Queries; everything as in `attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments up to `dropout_p`.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where the forward pass kept the weight: Z is 1/(1 - dropout_p) there and 0 elsewhere.
    dropout_p : float, default 0.0
        Share of weights that dropout drops.
    grad_lse : array, shape (..., H, L), optional
        Gradient dlse of the loss with respect to the natural log-sum-exp; default 0.
    dtype : dtype or str, optional
        Dtype of all gradients; default that of the array that each is the gradient of. Must be given where one of
        these is float8 or an integer.
    implementation : {"reference"}, optional
        Form of the method; None is the reference.

    Returns
    -------
    AttentionGradient
        The named tuple (query, key, value, bias, sinks) on the namespace and device of the inputs.

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
    Cost: L S (4 E + 3 Ev) multiply-adds per head, the forward pass among them; memory O(L S).

    Numerics: float64, one rounding of each gradient at the end.

    Cells that are masked out have no gradient and give none, whatever their keys and values hold. A row that sees no
    key, whose output is the constant 0, gives none either; its log-sum-exp is the sink, where there is one. Where a
    row sees a key or value that is not finite, its gradients are NaN.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022,
       arXiv:2205.14135, appendix B.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.zeros((1, 1, 2))
    >>> k = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> v = np.array([[[1.0], [3.0]]])
    >>> grad = ra.attention_gradient(np.ones((1, 1, 1)), q, k, v, scale=1.0)
    >>> grad.query.tolist(), grad.value.tolist()
    ([[[-0.5, 0.5]]], [[[0.5], [0.5]]])
    """
    choose(CAPABILITIES, implementation)
    function = CAPABILITIES.function
    check_array(function, "grad_output", grad_output, FLOATS)
    call = prepare(
        function, query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap,
        sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, dtype="float64",
    )  # fmt: skip
    bias = None if isinstance(bias, biases.Bias) else bias
    inputs = {"query": query, "key": key, "value": value, "bias": bias, "sinks": sinks}
    dtypes = [None if x is None else check_output_dtype(function, dtype, x, name) for name, x in inputs.items()]
    L, Ev = call.score.lengths[0], value.shape[-1]
    check_shape(function, "grad_output", grad_output, "(..., H, L, Ev)", (*call.lead, L, Ev))
    if grad_lse is not None:
        check_array(function, "grad_lse", grad_lse, FLOATS)
        check_shape(function, "grad_lse", grad_lse, "(..., H, L)", (*call.lead, L))
    xp = array_namespace(function, query=query, grad_output=grad_output, grad_lse=grad_lse)
    dO = call.split(float64(grad_output, xp), 2)
    dlse = None if grad_lse is None else call.split(float64(grad_lse, xp), 1)
    Q, K, V = call.grouped()
    O, lse = reference.attention(Q, K, V, score=call.score, xp=xp)
    dQ, dK, dV, dS, dsink = gradient.attention_gradient(Q, K, V, O, lse, dO, dlse, score=call.score, xp=xp)
    found = (
        call.headed(dQ, 2),
        xp.sum(dK, axis=-3),
        xp.sum(dV, axis=-3),
        None if bias is None else _summed(call.headed(dS, 2), tuple(bias.shape), xp),
        None if dsink is None else _summed(call.headed(dsink, 2), (call.lead[-1], 1, 1), xp)[:, 0, 0],
    )
    rounded = (None if x is None else round_to(x, str(name), xp) for x, name in zip(found, dtypes, strict=True))
    return AttentionGradient(*rounded)


def _summed(x: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    """The gradient of an array that was broadcast from a shape to that of x."""
    rank, shape = len(shape), (1,) * (x.ndim - len(shape)) + shape
    axes = tuple(axis for axis, n in enumerate(shape) if n == 1 != x.shape[axis])
    x = xp.sum(x, axis=axes, keepdims=True) if axes else x
    return xp.reshape(x, shape[x.ndim - rank :])
