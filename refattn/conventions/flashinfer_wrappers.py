"""FlashInfer's prefill and decode: single_prefill_with_kv_cache and its batched and single-query kin."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import biases
from refattn._core.arrays import FLOATS, Array
from refattn._core.checks import check_array, check_flag, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import Convention, band, boolean, both, gather, number, reach_of, scale_of, word
from refattn.masks import array

FLASHINFER = "conventions.flashinfer"


def flashinfer(
    *,
    causal: bool = False,
    custom_mask: Array | None = None,
    packed_custom_mask: Array | None = None,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    num_qo_heads: int | None = None,
    use_fp16_qk_reduction: bool = False,
    sm_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    sinks: Array | None = None,
    scale_q: Array | None = None,
    scale_k: Array | None = None,
    scale_v: Array | None = None,
    return_lse: bool = False,
    lse_base: str = "log2",
) -> Convention:
    """Call of ``single_prefill_with_kv_cache``, ``single_decode_with_kv_cache`` or a batch wrapper of FlashInfer.

        query i sees key j  iff  i + S - L - window_left <= j   and, with `causal`,   j <= i + S - L

    Parameters
    ----------
    causal : bool, default False
        Whether a query sees no key behind the one it stands on. `custom_mask` overrides it.
    custom_mask : array of bool, shape (L, S) or broadcastable to (..., H, L, S), optional
        True where a key takes part; of a batch wrapper, which takes it flattened, the mask before that. `window_left`
        holds beside it, `causal` does not.
    packed_custom_mask : None
        Must not be given.
    kv_layout : {"NHD", "HND"}, default "NHD"
        Order of the axes of key and value; query and output are "NHD" in both.
    pos_encoding_mode : {"NONE", "ALIBI"}, default "NONE"
        "ALIBI" adds slope * (j - i) to the scores, with the published slopes. "ROPE_LLAMA" is refused.
    num_qo_heads : int, optional
        Number of query heads H; needed for "ALIBI".
    use_fp16_qk_reduction : bool, default False
        How scores are summed; no part of the value that is rounded.
    sm_scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    window_left : int, default -1
        Keys before the one that the query stands on, which is in; -1: no end. There is no right side.
    logits_soft_cap : float, optional
        Scores s become ``cap * tanh(s / cap)``; None and 0 are off.
    rope_scale, rope_theta : float, optional
        Not looked at without "ROPE_LLAMA".
    sinks : array, shape (H,), optional
        One extra logit per head that takes weight and carries no value, as the attention-sink wrappers and the
        trtllm-gen functions take it.
    scale_q, scale_k, scale_v : None
        Must not be given.
    return_lse : bool, default False
        Whether the log-sum-exp is returned too; no part of what is computed.
    lse_base : {"log2", "ln"}, default "log2"
        Unit of the log-sum-exp, an argument of the newer prefill wrappers.

    Returns
    -------
    Convention
        With ``layout="blhd"``: query and output are (L, H, E), ragged over the requests of a batch. ``key_layout`` is
        "bhld" for "HND". ``lse_base="2"`` and ``empty_row="zeros"``; the log-sum-exp is (L, H).

    Raises
    ------
    ConventionError
        For "ROPE_LLAMA", which rotates query and key before attention; for a packed mask and for scales of quantised
        operands; for "ALIBI" beside a softcap, where the kernel multiplies the scores by `sm_scale` twice.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning, and for `num_qo_heads` that is needed and not given.

    Notes
    -----
    With "ALIBI" a query counts from 0 and not from S - L, and keys behind it are raised, not lowered: the outputs of
    causal attention are ALiBi's, the log-sum-exp is higher by slope * (S - L). Older kernels added the slopes to scores
    that were in units of log 2, so that they worked as slope * ln 2 [2]_.

    Rows without keys had a finite log-sum-exp before August 2026 [3]_.

    References
    ----------
    .. [1] FlashInfer documentation, "flashinfer.prefill.single_prefill_with_kv_cache".
    .. [2] flashinfer-ai/flashinfer: include/flashinfer/attention/variants.cuh (two versions), flashinfer/utils.py
       (``get_alibi_slopes``), tests/attention/test_attention_sink.py.
    .. [3] flashinfer-ai/flashinfer pull requests 4401 (rows without keys) and 5257 (``lse_base``), issue 4485 (bases of
       the MLA backends).

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.flashinfer(causal=True, window_left=1, logits_soft_cap=30.0)
    >>> call.arguments
    {'mask': masks.window(1, 0, anchor='lower_right'), 'softcap': 30.0}
    >>> call.layout, call.lse_base
    ('blhd', '2')
    """
    for name, x, target in (("scale_q", scale_q, "query"), ("scale_k", scale_k, "key"), ("scale_v", scale_v, "value")):
        if x is not None:
            raise ConventionError(f"{FLASHINFER}: {name} must be None; got an array. Multiply {target} by it first.")
    if packed_custom_mask is not None:
        raise ConventionError(
            f"{FLASHINFER}: packed_custom_mask must be None; got an array. Pass the mask itself as custom_mask=."
        )
    word(FLASHINFER, "kv_layout", kv_layout, ("NHD", "HND"))
    word(FLASHINFER, "lse_base", lse_base, ("log2", "ln"))
    check_flag(FLASHINFER, "use_fp16_qk_reduction", use_fp16_qk_reduction)
    returns = check_flag(FLASHINFER, "return_lse", return_lse)
    cap = 0.0 if logits_soft_cap is None else number(FLASHINFER, "logits_soft_cap", logits_soft_cap)
    left, right = reach_of(FLASHINFER, "window_left", window_left), None
    given = boolean(FLASHINFER, "custom_mask", custom_mask)
    if check_flag(FLASHINFER, "causal", causal) and given is None:
        right = 0
    if sinks is not None:
        check_array(FLASHINFER, "sinks", sinks, FLOATS)
    notes = []
    if returns and lse_base == "log2":
        notes.append("The cute-dsl backend of MLA returns a natural log-sum-exp.")
    if causal and given is not None:
        notes.append("custom_mask overrides causal=True.")
    if pos_encoding_mode == "ALIBI":
        notes.append("Older kernels add slope * ln 2 * (j - i).")
    return Convention(
        gather(
            mask=both(None if given is None else array(given), band(left, right, "lower_right")),
            bias=_bias(pos_encoding_mode, num_qo_heads, cap),
            scale=scale_of(FLASHINFER, "sm_scale", sm_scale),
            softcap=cap if cap > 0 else None,
            sinks=sinks,
        ),
        layout="blhd",
        lse_base="2" if lse_base == "log2" else "e",
        notes=tuple(notes),
        key_layout="bhld" if kv_layout == "HND" else None,
        softcap_order="after bias",
    )


def _bias(pos_encoding_mode: str, num_qo_heads: int | None, cap: float) -> biases.Bias | None:
    """What the positions add to the scores."""
    word(FLASHINFER, "pos_encoding_mode", pos_encoding_mode, ("NONE", "ROPE_LLAMA", "ALIBI"))
    if pos_encoding_mode == "ROPE_LLAMA":
        raise ConventionError(
            f"{FLASHINFER}: pos_encoding_mode='ROPE_LLAMA' rotates query and key before attention and cannot be "
            "expressed. Pass the rotated arrays and pos_encoding_mode='NONE'."
        )
    if pos_encoding_mode == "NONE":
        return None
    if cap > 0:
        raise ConventionError(
            f"{FLASHINFER}: pos_encoding_mode='ALIBI' beside logits_soft_cap={cap} is a formula that multiplies the "
            "scores by sm_scale twice and cannot be expressed. Pass one of them."
        )
    if num_qo_heads is None:
        raise ValueError(
            f"{FLASHINFER}: num_qo_heads must be given with pos_encoding_mode='ALIBI', for the slopes follow from it; "
            "got None."
        )
    slopes = biases.alibi_slopes(check_integer(FLASHINFER, "num_qo_heads", num_qo_heads, least=1))

    def alibi_from_0(b: Any, h: npt.NDArray[np.int64], q: Any, kv: Any) -> Any:
        return slopes[h] * (kv - q)

    return biases.from_function(alibi_from_0, heads=len(slopes))
