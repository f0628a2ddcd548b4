"""The public face of split-KV attention: few queries against a long cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from refattn import biases, masks
from refattn._call import AttentionResult, Call, prepare
from refattn._core.arrays import Array, array_namespace, float64, quiet
from refattn._core.checks import check_choice, check_flag
from refattn._core.choice import Capabilities, choose, declare
from refattn.layouts.paged import PAGES
from refattn.methods.flash import reference
from refattn.methods.flash.cache import Pages, arguments_of, caches
from refattn.methods.flash.capabilities import ARGUMENTS
from refattn.methods.flash.capabilities import CAPABILITIES as WHOLE
from refattn.methods.flash.forms import check_sizes, kernels, no_threads, tile_sizes

SPLITS = 8
TABLES = ("block_table", "seqused_k", "cu_seqlens_k")

CAPABILITIES = Capabilities(
    function="flash_decode",
    method="split-KV attention, Flash-Decoding, Dao et al. 2023",
    implementations=("reference", "numba"),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=(*ARGUMENTS, "descale", "return_lse", "splits", *TABLES, "pages", "threads"),
    accumulation=WHOLE.accumulation,
    time=WHOLE.time,
    memory="O(L tile)",
    laws=tuple(law for law in WHOLE.laws if law != "tile_size"),
    bound=WHOLE.bound,
    narrower=WHOLE.narrower,
)


@declare(CAPABILITIES)
@quiet
def flash_decode(
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
    splits: int | None = None,
    block_table: Array | None = None,
    seqused_k: Array | None = None,
    cu_seqlens_k: Array | None = None,
    pages: str = "nhd",
    implementation: str | None = None,
    threads: int | None = None,
) -> Array | AttentionResult:
    """Attention of few queries over a long cache that is split into parts; the parts merge by their log-sum-exps.

        O = sum_s exp(lse_s - lse) O_s,    lse = log(sum_s exp(lse_s) + exp(sink))

    Parameters
    ----------
    query : array, shape (..., H, L, E), or (B, H, L, E) with tables
        Queries; everything as in `attention`. L is the number of new tokens, often 1.
    key : array, shape (..., Hk, S, E), (P, page_size, Hk, E) with `block_table` or (T, Hk, E) with `cu_seqlens_k`
        Keys, the cache.
    value : array, shape (..., Hk, S, Ev), (P, page_size, Hk, Ev) with `block_table` or (T, Hk, Ev) with `cu_seqlens_k`
        Values, stored as the keys are.
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments up to `dtype`. With tables each sequence is a problem of its own with as
        many keys as it uses: anchors hold inside it, and S of an array is the longest one's.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head, counted once, whatever the number of parts.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where dropout kept the weight.
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight.
    descale : tuple (query, key, value), optional
        Factors of quantised operands; with tables one for each head, or batch entry and head.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`.
    return_lse : bool, default False
        Also return the natural log-sum-exp.
    splits : int, optional
        Most parts that the keys are split into, in whole tiles; a part may hold no key that is seen. Default of the
        reference: 8.
    block_table : array of int, shape (B, max_pages), optional
        Keys and values lie in pages: page n of sequence b is ``block_table[b, n]`` of the pool (`layouts.pack_paged`).
    seqused_k : array of int, shape (B,), optional
        Keys that each sequence uses; what the cache holds past them is not read.
    cu_seqlens_k : array of int, shape (B + 1,), optional
        Keys and values are packed: sequence b is the tokens ``cu_seqlens_k[b] : cu_seqlens_k[b + 1]``
        (`layouts.pack_ragged`).
    pages : {"nhd", "hnd"}, default "nhd"
        Axes of a page: "hnd" is (P, Hk, page_size, E).
    implementation : {"reference", "numba"}, optional
        None and "reference" are array operations; "numba" is compiled, for NumPy arrays.
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
        For shapes that do not fit, tables that name what is not there, and values without meaning.
    ImplementationError
        For an `implementation` that does not exist, is not installed or does not serve these arrays.

    Notes
    -----
    Cost: E + Ev multiply-adds and an exponential for each visible query-key pair; each key is read once for the query
    heads that share it. Memory O(L tile) beyond inputs and outputs; the reference reads pages and packed sequences
    a tile at a time, "numba" copies those of one sequence after another from their pages.

    Numerics: the reference computes in float64 and rounds once; "numba" accumulates in float64 where an operand or the
    output is float64, else in float32. The bound of `refattn.contract` holds with that accumulation and one merge.

    References
    ----------
    .. [1] T. Dao, D. Haziza, F. Massa, G. Sizov, "Flash-Decoding for long-context inference", 2023,
       https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
    .. [2] W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP
       2023, arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> from refattn import layouts
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((2, 1, n, 4)) for n in (1, 9, 9))
    >>> table, _ = layouts.page_table([9, 3], page_size=4, seed=0)
    >>> paged = [layouts.pack_paged(x, [9, 3], table, 4, fill=np.nan) for x in (k, v)]
    >>> o = ra.flash_decode(q, *paged, block_table=table, seqused_k=[9, 3], splits=4)
    >>> bool(np.allclose(o[1], ra.attention(q[1], k[1, :, :3], v[1, :, :3])))
    True
    """
    form, name = choose(CAPABILITIES, implementation), CAPABILITIES.function
    check_flag(name, "return_lse", return_lse)
    check_choice(name, "pages", pages, tuple(PAGES))
    splits, threads = check_sizes(name, splits=splits, threads=threads)
    if form == "reference":
        no_threads(name, threads)
    given = {
        "mask": mask, "bias": bias, "is_causal": is_causal, "scale": scale, "softcap": softcap, "sinks": sinks,
        "dropout_mask": dropout_mask, "dropout_p": dropout_p, "descale": descale, "dtype": dtype,
    }  # fmt: skip
    tables = {"block_table": block_table, "seqused_k": seqused_k, "cu_seqlens_k": cu_seqlens_k}
    if all(x is None for x in tables.values()):
        call = prepare(name, query, key, value, **given)
        output, lse = _decoded(call, None, None, form, splits, threads)
        return AttentionResult(call.rounded(output), lse) if return_lse else call.rounded(output)
    keys, values = caches(name, query, key, value, tables, pages)
    xp, found = array_namespace(name, query=query, key=key, value=value), []
    lead, L, used = tuple(query.shape[:2]), query.shape[2], keys.lengths
    for b in range(lead[0]):
        (K, k), (V, v) = keys.sequence(b, xp), values.sequence(b, xp)
        if descale is not None and k is not None and v is not None:
            K, V, k, v = k.whole(), v.whole(), None, None
        call = prepare(name, query[b : b + 1, ...], K, V, **arguments_of(name, b, lead, L, used, given))
        output, lse = _decoded(call, k, v, form, splits, threads)
        found.append((call.rounded(output), lse))
    if not found:  # no sequence, but arguments that must fit each other
        call = prepare(name, query, keys.nothing(xp), values.nothing(xp), **given)
        output, lse = _decoded(call, None, None, form, splits, threads)
        found.append((call.rounded(output), lse))
    output, lse = (xp.concat(list(x), axis=0) for x in zip(*found, strict=True))
    return AttentionResult(output, lse) if return_lse else output


def _decoded(
    call: Call, k: Pages | None, v: Pages | None, form: str, splits: int | None, threads: int | None
) -> tuple[Array, Array]:
    """Output (..., H, L, Ev) as accumulated, and float64 log-sum-exp (..., H, L); pages stand for keys and values."""
    if form == "numba":
        kernel = kernels(CAPABILITIES, call)
        call = call if k is None or v is None else replace(call, key=k.whole(), value=v.whole())
        output, lse = kernel.decode(call, splits, threads)
        return output, float64(lse, call.xp)
    (Q, K, V), (_, tile_k) = call.views(), tile_sizes(call, None, None)
    parts = {"splits": SPLITS if splits is None else splits, "tile_k": tile_k}
    O, lse = reference.flash_decode(
        Q, K if k is None else k, V if v is None else v, score=call.score, xp=call.xp, **parts
    )
    return call.headed(O, 2), call.headed(lse, 1)
