"""ONNX Runtime's contributed operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn import masks
from refattn._core.arrays import FLOATS, Array
from refattn._core.checks import check_array, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import (
    Convention,
    both,
    gather,
    is_boolean_mask,
    lengths_of,
    reach_of,
    scale_of,
    softcap_of,
    switch,
)

GQA = "conventions.onnxruntime_gqa"


def onnxruntime_gqa(
    *,
    num_heads: int,
    kv_num_heads: int,
    L: int | None = None,
    total_sequence_length: int | None = None,
    seqlens_k: Array | None = None,
    causal: int | bool = 1,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
    smooth_softmax: int = -1,
    head_sink: Array | None = None,
    attention_bias: Array | None = None,
    do_rotary: int | bool = 0,
    k_quant_type: str = "NONE",
    v_quant_type: str = "NONE",
    sliding_window_cache: int | bool = 0,
    q_norm_weight: Array | None = None,
    k_norm_weight: Array | None = None,
    qk_output: int = 0,
) -> Convention:
    """Node of ONNX Runtime's ``com.microsoft.GroupQueryAttention``, in refattn's arguments.

        query i sees key j  iff  i + offset - W < j <= i + offset,   offset = number of keys before the new ones

    Parameters
    ----------
    num_heads, kv_num_heads : int
        H and Hk; query head h reads key head h // (H // Hk).
    L : int, optional
        Number of queries; needed beside `seqlens_k`.
    total_sequence_length : int, optional
        Longest of the batch entries, past and new keys together; needed beside `seqlens_k`. Where it is L, the node is
        at a prompt, and the past is empty.
    seqlens_k : array of int, shape (B,), optional
        Keys of each batch entry, past and new together, less one. The keys behind them are hidden. Default: all S keys
        take part, and the last query stands on the last of them.
    causal : {0, 1} or bool, default 1
        Whether a query sees no key behind the one it stands on.
    scale : float, default 0.0
        Factor on the scores; 0 means 1/sqrt(E).
    softcap : float, default 0.0
        Scores s become ``softcap * tanh(s / softcap)``, before `attention_bias`; 0 is off.
    local_window_size : int, default -1
        Keys that a query sees, its own among them; -1: no end.
    smooth_softmax : {-1, 0, 1}, default -1
        1 adds one logit of 0 to every head, which takes weight and carries no value: NumPy zeros in the record.
        `head_sink` overrides it.
    head_sink : array, shape (H,), optional
        That logit for each head.
    attention_bias : array, shape (B or 1, H or 1, L, S), optional
        Added to the scores.
    do_rotary : {0, 1} or bool, default 0
        Must be 0.
    k_quant_type, v_quant_type : str, default "NONE"
        Must be "NONE".
    sliding_window_cache : {0, 1} or bool, default 0
        Must be 0.
    q_norm_weight, k_norm_weight : None
        Must not be given.
    qk_output : {0, 1, 2}, default 0
        What the fourth output holds; no part of the first.

    Returns
    -------
    Convention
        With ``layout="blhd"``: the node's query (B, L, H*E) is ``query.reshape(B, L, H, E)``, key and value likewise,
        and past_key (B, Hk, P, E) comes before them. ``empty_row="zeros"``. The node returns no log-sum-exp.

    Raises
    ------
    ConventionError
        For rotary embedding, norms and a quantised or evicting cache: what they make of query, key and value must be
        passed in their place. For a negative `softcap`.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning, and for lengths that are needed and not given.

    Notes
    -----
    Before September 2025 the window was one key wider: `local_window_size` did not count the query's own [2]_.

    In a prompt of unequal lengths the rows behind an entry's own are padding; what the kernels leave there under a
    window is not what the record says.

    References
    ----------
    .. [1] ONNX Runtime, docs/ContribOperators.md, "com.microsoft.GroupQueryAttention";
       onnxruntime/contrib_ops/cpu/bert/gqa_attention_base.h.
    .. [2] microsoft/onnxruntime pull request 25927: the window counts the current token.

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.onnxruntime_gqa(num_heads=4, kv_num_heads=2, local_window_size=2)
    >>> print(call.arguments["mask"].draw(3, 5))
      01234
    0 .##..
    1 ..##.
    2 ...##
    """
    H, Hk = (
        check_integer(GQA, "num_heads", num_heads, least=1),
        check_integer(GQA, "kv_num_heads", kv_num_heads, least=1),
    )
    if H % Hk:
        raise ValueError(f"{GQA}: num_heads must be a multiple of kv_num_heads; got {H} and {Hk}.")
    _refuse_preparation(do_rotary, k_quant_type, v_quant_type, sliding_window_cache, q_norm_weight, k_norm_weight)
    anchor, lengths = _place(L, total_sequence_length, seqlens_k)
    window = reach_of(GQA, "local_window_size", local_window_size)
    if window == 0:
        raise ValueError(f"{GQA}: local_window_size must be -1 (no end) or positive; got 0.")
    mask = None
    if switch(GQA, "causal", causal):
        mask = masks.causal(anchor=anchor) if window is None else masks.window(window - 1, 0, anchor=anchor)
    elif window is not None:
        raise ValueError(f"{GQA}: local_window_size must be -1 where causal=0; got {window}.")
    if attention_bias is not None and is_boolean_mask(GQA, "attention_bias", attention_bias, least_axes=2):
        raise TypeError(f"{GQA}: attention_bias must be floating-point, it is added to the scores; got bool.")
    output = check_integer(GQA, "qk_output", qk_output, least=0)
    if output > 2:
        raise ValueError(f"{GQA}: qk_output must be at most 2; got {output}.")
    notes = ["Before September 2025 the window was one key wider."] if window is not None else []
    if output:
        notes.append(f"The fourth output is {('the scores', 'the weights')[output - 1]}.")
    return Convention(
        gather(
            mask=both(mask, None if lengths is None else masks.lengths(lengths)),
            bias=attention_bias,
            scale=scale_of(GQA, "scale", scale) or None,
            softcap=softcap_of(GQA, softcap),
            sinks=_sinks(H, smooth_softmax, head_sink),
        ),
        layout="blhd",
        notes=tuple(notes),
    )


def _refuse_preparation(
    do_rotary: object,
    k_quant_type: object,
    v_quant_type: object,
    sliding_window_cache: object,
    q_norm_weight: object,
    k_norm_weight: object,
) -> None:
    """Refuse what the node does to its arrays before it attends."""
    what = "is done to query and key before attention and cannot be expressed. Pass the rotated arrays and do_rotary=0."
    if switch(GQA, "do_rotary", do_rotary):
        raise ConventionError(f"{GQA}: do_rotary=1 {what}")
    for name, kind in (("k_quant_type", k_quant_type), ("v_quant_type", v_quant_type)):
        if kind != "NONE":
            raise ConventionError(
                f"{GQA}: {name}={kind!r} rounds the cache and cannot be expressed. Pass the dequantised arrays and "
                f"{name}='NONE'."
            )
    if switch(GQA, "sliding_window_cache", sliding_window_cache):
        raise ConventionError(
            f"{GQA}: sliding_window_cache=1 drops keys from the cache and cannot be expressed. Pass the keys that are "
            "left and sliding_window_cache=0."
        )
    for name, weight in (("q_norm_weight", q_norm_weight), ("k_norm_weight", k_norm_weight)):
        if weight is not None:
            raise ConventionError(
                f"{GQA}: {name} normalises before attention and cannot be expressed. Pass the normalised array and "
                f"{name}=None."
            )


def _place(
    L: int | None, total_sequence_length: int | None, seqlens_k: Array | None
) -> tuple[str | int | Array, np.ndarray[Any, Any] | None]:
    """Where the queries stand among the keys, and how many keys each batch entry has."""
    if seqlens_k is None:
        return "lower_right", None
    for name, x in (("L", L), ("total_sequence_length", total_sequence_length)):
        if x is None:
            raise ValueError(
                f"{GQA}: {name} must be given beside seqlens_k, for the queries' place follows from both; got None."
            )
    queries = check_integer(GQA, "L", L, least=1)
    total = check_integer(GQA, "total_sequence_length", total_sequence_length, least=queries)
    lengths = lengths_of(GQA, "seqlens_k", seqlens_k) + 1
    return (0 if total == queries else lengths - queries), lengths


def _sinks(H: int, smooth_softmax: object, head_sink: Array | None) -> Array | None:
    """The logit that takes weight and carries no value."""
    smooth = check_integer(GQA, "smooth_softmax", smooth_softmax, least=-1)
    if smooth > 1:
        raise ValueError(f"{GQA}: smooth_softmax must be -1, 0 or 1; got {smooth}.")
    if head_sink is not None:
        check_array(GQA, "head_sink", head_sink, FLOATS)
        return head_sink
    return np.zeros(H) if smooth == 1 else None
