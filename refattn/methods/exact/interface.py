"""The public face of exact attention."""

from __future__ import annotations

from typing import Any

from refattn import biases, masks
from refattn._call import AttentionResult, prepare
from refattn._core.arrays import Array, quiet
from refattn._core.checks import check_flag
from refattn._core.choice import choose, declare
from refattn._core.state import weights
from refattn.methods.exact import reference
from refattn.methods.exact.capabilities import CAPABILITIES


@declare(CAPABILITIES)
@quiet
def attention(
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
    descale: tuple[Any, Any, Any] | None = None,
    dtype: object = None,
    return_lse: bool = False,
    return_weights: bool = False,
    implementation: str | None = None,
) -> Array | AttentionResult:
    """Exact softmax attention, computed in float64 and rounded once.

        O = (softmax(softcap(scale * Q K^T) + bias) * dropout_mask / (1 - dropout_p)) V

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; any real floating-point or integer dtype. H is a multiple of Hk: query head h reads key head
        h // (H // Hk).
    key : array, shape (..., Hk, S, E)
        Keys; batch axes, library and device of `query`.
    value : array, shape (..., Hk, S, Ev)
        Values, one for each key.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where a key takes part. Keys and values that are masked out are never read into the result, NaN or not.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores after softcap; -inf masks the cell, NaN and +inf are refused.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; beside a mask, both hold. Refused for L != S, where the diagonal could
        lie in two places: pass ``mask=masks.causal(anchor=...)``.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)``, before bias and mask.
    sinks : array, shape (H,), optional
        One extra logit per head that takes weight and carries no value.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where dropout kept the weight: a value gets ``weight / (1 - dropout_p)`` there and nothing elsewhere. The
        softmax, its log-sum-exp and the returned weights are those without dropout.
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight, below 1; needs the mask that it drew.
    descale : tuple (query, key, value), optional
        Factors of quantised operands: each None, a number, or an array of float32 or narrower. An array is (..., heads,
        blocks), one axis fewer than its operand: the tokens lie in so many blocks of one size, with a factor each; or
        (..., heads, blocks of tokens, blocks of features). A length of 1 stands for one factor for all; a query may
        also have one for each key head. The products are exact.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`. Must be given for float8 and integer queries.
    return_lse : bool, default False
        Also return the natural log-sum-exp of the scores (and sink).
    return_weights : bool, default False
        Also return the weights.
    implementation : {"reference"}, optional
        Form of the method; None is the reference.

    Returns
    -------
    array, shape (..., H, L, Ev), or AttentionResult
        The output in `dtype`, on the namespace and device of the inputs. With `return_lse` or `return_weights` the
        named tuple (output, lse, weights): lse (..., H, L) in float64, weights (..., H, L, S) in `dtype`.

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
    Cost: L S (E + Ev) multiply-adds and L S exponentials per head; memory O(L S), for it is the definition written
    out. `attention_rows` takes O(tile) memory for chosen rows.

    Numerics: all arithmetic is float64; the bound of `refattn.contract` with float64 accumulation holds for it.

    A row that may attend to nothing gives zeros and lse = -inf (the sink, where there is one), never NaN. A row whose
    visible scores are all -inf, by overflow or by infinite keys, is not such a row: its weights are 0/0, and it is NaN.

    Derivatives of output and lse may be taken through it by torch.autograd, and by the transformations of torch.func
    and JAX, forward and backward; rounding to `dtype` counts as the identity. Inside a transformation (jit, vmap,
    grad), and on dask arrays, which are computed when the caller asks, no value is read: NaN in a bias or sink is not
    refused, and five products with the values, which sort out infinity and NaN, take the place of one. JAX must have
    x64 switched on; on a CPU it takes float64 numbers below 2**-1022 for 0.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, eq. (1).
    .. [2] J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
       EMNLP 2023, arXiv:2305.13245.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> v = np.array([[[1.0], [3.0]]])
    >>> ra.attention(q, q, v, is_causal=True, scale=0.0)
    array([[[1.],
            [2.]]])
    """
    choose(CAPABILITIES, implementation)
    check_flag("attention", "return_lse", return_lse)
    check_flag("attention", "return_weights", return_weights)
    call = prepare(
        "attention", query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap,
        sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, descale=descale, dtype=dtype,
    )  # fmt: skip
    Q, K, V = call.grouped()
    O, lse = reference.attention(Q, K, V, score=call.score, xp=call.xp)
    output = call.rounded(call.headed(O, 2))
    if not (return_lse or return_weights):
        return output
    i, j = (slice(0, n) for n in call.score.lengths)
    P = weights(call.score(Q, K, i, j, xp=call.xp), lse, xp=call.xp) if return_weights else None
    return AttentionResult(
        output,
        call.headed(lse, 1) if return_lse else None,
        None if P is None else call.rounded(call.headed(P, 2)),
    )
