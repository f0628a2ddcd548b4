"""The public face of tiled attention."""

from __future__ import annotations

from typing import Any

from refattn import biases, masks
from refattn._call import AttentionResult, prepare
from refattn._core.arrays import Array, float64, quiet
from refattn._core.checks import check_flag
from refattn._core.choice import choose, declare
from refattn.methods.flash import reference
from refattn.methods.flash.capabilities import CAPABILITIES
from refattn.methods.flash.forms import check_sizes, kernels, no_threads, tile_sizes


@declare(CAPABILITIES)
@quiet
def flash_attention(
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
    tile_q: int | None = None,
    tile_k: int | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    threads: int | None = None,
) -> Array | AttentionResult:
    """Exact softmax attention tile by tile, in memory that does not grow with the scores; equal to `attention`.

        m' = max(m, rowmax(S)),    P = exp(S - m'),    l' = exp(m - m') l + rowsum(P),    O' = exp(m - m') O + P V

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; everything as in `attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments up to `dtype`. Tiles of which it leaves nothing are not computed.
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
        True where dropout kept the weight.
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight.
    descale : tuple (query, key, value), optional
        Factors of quantised operands.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`.
    tile_q, tile_k : int, optional
        Queries and keys in a tile; any will do. Default: what fits into a cache.
    return_lse : bool, default False
        Also return the natural log-sum-exp.
    implementation : {"reference", "flash_2022", "numba"}, optional
        None and "reference" are FlashAttention-2, Algorithm 1, in array operations; "flash_2022" is Algorithm 1 of the
        first FlashAttention, which takes key tiles one by one; "numba" is compiled, for NumPy arrays.
    threads : int, optional
        Threads of "numba"; default: all processors that the process may use.

    Returns
    -------
    array, shape (..., H, L, Ev), or AttentionResult
        The output in `dtype`, on the namespace and device of the inputs; with `return_lse` the named tuple
        (output, lse, None), lse (..., H, L) in float64.

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
    Cost: E + Ev multiply-adds and an exponential for each cell of the tiles that the mask does not leave empty; memory
    O(tile) beyond inputs and outputs, which the plain forms join from tiles of float64.

    Numerics: the plain forms compute in float64 and round once; "numba" accumulates in float64 where an operand or the
    output is float64, else in float32. The bound of `refattn.contract` holds with that accumulation.

    Where tiles are skipped, and where no value can be read, as in `attention`.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023,
       arXiv:2307.08691, Algorithm 1.
    .. [2] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022,
       arXiv:2205.14135, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> v = np.array([[[1.0], [3.0]]])
    >>> ra.flash_attention(q, q, v, is_causal=True, scale=0.0, tile_q=1, tile_k=1)
    array([[[1.],
            [2.]]])
    """
    form, name = choose(CAPABILITIES, implementation), CAPABILITIES.function
    check_flag(name, "return_lse", return_lse)
    tile_q, tile_k, threads = check_sizes(name, tile_q=tile_q, tile_k=tile_k, threads=threads)
    call = prepare(
        name, query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap, sinks=sinks,
        dropout_mask=dropout_mask, dropout_p=dropout_p, descale=descale, dtype=dtype,
    )  # fmt: skip
    if form == "numba":
        O, lse = kernels(CAPABILITIES, call).forward(call, tile_q, tile_k, threads)
        lse = float64(lse, call.xp)
    else:
        no_threads(name, threads)
        q, k = tile_sizes(call, tile_q, tile_k)
        plain = reference.flash_attention_2022 if form == "flash_2022" else reference.flash_attention
        O, lse = plain(*call.views(), score=call.score, tile_q=q, tile_k=k, xp=call.xp)
        O, lse = call.headed(O, 2), call.headed(lse, 1)
    return AttentionResult(call.rounded(O), lse) if return_lse else call.rounded(O)
