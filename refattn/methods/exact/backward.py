"""The public face of exact attention's gradient."""

from __future__ import annotations

from refattn import biases, masks
from refattn._call import AttentionGradient, prepare_gradient
from refattn._core.arrays import Array, quiet
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
    arguments=(*(name for name in WHOLE.arguments if not name.startswith(("return_", "descale"))), "grad_lse"),
    accumulation="float64",
    time="O(L S (E + Ev))",
    memory="O(L S)",
    cost=GRADIENT_FORMS,
)


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
    given = prepare_gradient(
        CAPABILITIES.function, grad_output, query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale,
        softcap=softcap, sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, grad_lse=grad_lse, dtype=dtype,
    )  # fmt: skip
    call, (dO, dlse) = given.call, given.cotangents()
    (Q, K, V), score, xp = call.grouped(), call.score, call.xp
    O, lse = reference.attention(Q, K, V, score=score, xp=xp)
    dQ, dK, dV, dS, dsink = gradient.attention_gradient(
        Q, K, V, O, lse, dO[...], None if dlse is None else dlse[...], score=score, xp=xp
    )
    return given.rounded(
        {
            "query": call.headed(dQ, 2),
            "key": xp.sum(dK, axis=-3),
            "value": xp.sum(dV, axis=-3),
            "bias": call.headed(dS, 2),
            "sinks": given.of_sinks(dsink),
        }
    )
