"""The public face of the scores that exact attention goes through."""

from __future__ import annotations

from refattn import biases, masks
from refattn._call import prepare
from refattn._core.arrays import Array, float64, quiet
from refattn._core.checks import check_choice
from refattn._core.choice import Capabilities, choose, declare
from refattn.methods.exact import reference
from refattn.methods.exact.capabilities import CAPABILITIES as WHOLE

STAGES = ("raw", "softcapped", "biased", "weights", "log_weights")

CAPABILITIES = Capabilities(
    function="attention_scores",
    method=WHOLE.method,
    inputs=("query", "key"),
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=("stage", "mask", "bias", "is_causal", "scale", "softcap", "sinks", "dtype"),
    accumulation="float64",
    time="O(L S E)",
    memory="O(L S)",
)


@declare(CAPABILITIES)
@quiet
def attention_scores(
    query: Array,
    key: Array,
    *,
    stage: str = "biased",
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> Array:
    """Scores of all query-key pairs, at one of the stages that `attention` takes them through.

        raw = scale * Q K^T,    softcapped = softcap * tanh(raw / softcap),    biased = softcapped + bias
        log_weights = biased - lse,    weights = exp(log_weights)

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; everything as in `attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    stage : {"raw", "softcapped", "biased", "weights", "log_weights"}, default "biased"
        How far to go. An argument that the stage does not reach changes nothing.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments that follow.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head, which takes its share of the weights.
    dtype : dtype or str, optional
        Dtype of the result; default that of `query`.
    implementation : {"reference"}, optional
        Form of the method; None is the reference.

    Returns
    -------
    array, shape (..., H, L, S)
        In `dtype`, on the namespace and device of the inputs.

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
    Cost: L S E multiply-adds per head; memory O(L S).

    Numerics: float64, one rounding at the end. Masked cells are -inf from "biased" on, and weight 0, log-weight -inf;
    before, they hold the score of the pair, whatever it is.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, eq. (1).

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.array([[[1.0], [2.0]]])
    >>> ra.attention_scores(q, q, is_causal=True)
    array([[[  1., -inf],
            [  2.,   4.]]])
    >>> ra.attention_scores(q, q, is_causal=True, scale=0.0, stage="weights")
    array([[[1. , 0. ],
            [0.5, 0.5]]])
    """
    choose(CAPABILITIES, implementation)
    check_choice("attention_scores", "stage", stage, STAGES)
    call = prepare(
        "attention_scores", query, key, None, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap,
        sinks=sinks, dtype=dtype, has_value=False,
    )  # fmt: skip
    Q, K = call.split(float64(query, call.xp), 2), call.xp.expand_dims(float64(key, call.xp), axis=-3)
    return call.rounded(call.headed(reference.attention_scores(Q, K, stage=stage, score=call.score, xp=call.xp), 2))
