"""The public face of tiled attention's gradient."""

from __future__ import annotations

from dataclasses import replace

from refattn import biases, masks
from refattn._call import AttentionGradient, GradientCall, prepare_gradient
from refattn._core.arrays import Array, quiet
from refattn._core.choice import Capabilities, choose, declare
from refattn.methods.flash import gradient, reference
from refattn.methods.flash.capabilities import ARGUMENTS
from refattn.methods.flash.capabilities import CAPABILITIES as WHOLE
from refattn.methods.flash.cost import GRADIENT_FORMS
from refattn.methods.flash.forms import check_sizes, kernels, no_threads, tile_sizes

CAPABILITIES = Capabilities(
    function="flash_attention_gradient",
    method="gradient of tiled softmax attention, FlashAttention-2, Dao 2023",
    inputs=("grad_output", *WHOLE.inputs),
    implementations=("reference", "numba"),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=(*ARGUMENTS, "grad_lse", "tile_q", "tile_k", "threads"),
    accumulation=WHOLE.accumulation,
    time=WHOLE.time,
    memory=WHOLE.memory,
    cost=GRADIENT_FORMS,
    narrower=WHOLE.narrower,
)


@declare(CAPABILITIES)
@quiet
def flash_attention_gradient(
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
    tile_q: int | None = None,
    tile_k: int | None = None,
    implementation: str | None = None,
    threads: int | None = None,
) -> AttentionGradient:
    """Gradients of a loss through `flash_attention`, tile by tile, from scores that are computed again.

        P = exp(S - lse),    D = rowsum(dO O) - dlse
        dV += (P Z)^T dO,    dP = (dO V^T) Z,    dS = P (dP - D),    dQ += scale dR K,    dK += scale dR^T Q

    with dR the gradient before the softcap, as in `attention_gradient`, to which it is equal.

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
    tile_q, tile_k : int, optional
        Queries and keys in a tile; any will do. Default: what fits into a cache.
    implementation : {"reference", "numba"}, optional
        None and "reference" are FlashAttention-2, Algorithm 2, in array operations; "numba" is compiled, for NumPy
        arrays.
    threads : int, optional
        Threads of "numba"; default: all processors that the process may use.

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
        For an `implementation` that does not exist, is not installed or does not serve these arrays.

    Notes
    -----
    Cost: 4 E + 3 Ev multiply-adds for each cell of the tiles that the mask does not leave empty, the forward pass among
    them; memory O(tile) beyond inputs and gradients, which the reference joins from tiles of float64, and the output
    with its log-sum-exp.

    Numerics: the reference computes in float64 and rounds each gradient once; "numba" accumulates in float64 where an
    operand is float64, else in float32.

    What is masked, rows that see no key, and values that are not finite: as in `attention_gradient`.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023,
       arXiv:2307.08691, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.zeros((1, 1, 2))
    >>> k = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> v = np.array([[[1.0], [3.0]]])
    >>> grad = ra.flash_attention_gradient(np.ones((1, 1, 1)), q, k, v, scale=1.0, tile_k=1)
    >>> grad.query.tolist(), grad.value.tolist()
    ([[[-0.5, 0.5]]], [[[0.5], [0.5]]])
    """
    form, name = choose(CAPABILITIES, implementation), CAPABILITIES.function
    tile_q, tile_k, threads = check_sizes(name, tile_q=tile_q, tile_k=tile_k, threads=threads)
    given = prepare_gradient(
        name, grad_output, query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap,
        sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, grad_lse=grad_lse, dtype=dtype,
    )  # fmt: skip
    if form == "numba":
        return _compiled(given, tile_q, tile_k, threads)
    no_threads(name, threads)
    return _plain(given, *tile_sizes(given.call, tile_q, tile_k))


def _plain(given: GradientCall, tile_q: int, tile_k: int) -> AttentionGradient:
    """By array operations."""
    call, (dO, dlse) = given.call, given.cotangents()
    (Q, K, V), score, xp = call.views(), call.score, call.xp
    size = {"score": score, "tile_q": tile_q, "tile_k": tile_k, "xp": xp}
    O, lse = reference.flash_attention(Q, K, V, **size)
    bias = given.arrays["bias"]
    shape = None if bias is None else given.grouped_shape(tuple(bias.shape))
    dQ, dK, dV, dB, dsink = gradient.flash_attention_gradient(Q, K, V, O, lse, dO, dlse, bias=shape, **size)
    return given.rounded(
        {
            "query": call.headed(dQ, 2),
            "key": xp.squeeze(dK, axis=-3),
            "value": xp.squeeze(dV, axis=-3),
            "bias": None if dB is None else call.headed(dB, 2),
            "sinks": given.of_sinks(dsink),
        }
    )


def _compiled(given: GradientCall, tile_q: int | None, tile_k: int | None, threads: int | None) -> AttentionGradient:
    """By the numba kernels."""
    wide = "float64" if "float64" in given.dtypes.values() else "float32"
    call = replace(given.call, dtype=wide)
    kernel = kernels(CAPABILITIES, call)
    output, lse = kernel.forward(call, tile_q, tile_k, threads)
    found = kernel.backward(call, output, lse, given.grad_output, given.grad_lse, tile_q, tile_k, threads)
    names = ("query", "key", "value", "bias", "sinks")
    return given.rounded(dict(zip(names, found, strict=True)))
