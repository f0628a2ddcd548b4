"""Hugging Face transformers: the masks of its models, and Longformer's window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import masks
from refattn._core.arrays import FLOATS, INTEGERS, Array, dtype_name, to_numpy
from refattn._core.checks import check_array, check_flag, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import (
    Convention,
    band,
    both,
    gather,
    mask_or_bias,
    number,
    refuse_dropout,
    scale_of,
    word,
)

TRANSFORMERS = "conventions.transformers"
LONGFORMER = "conventions.from_hf_longformer"
EMPTY_ROWS = {"sdpa": "zeros", "flex_attention": "zeros", "eager": "mean", "flash_attention": "zeros"}


def transformers(
    *,
    attention_mask: Array | None = None,
    is_causal: bool = True,
    sliding_window: int | None = None,
    attention_chunk_size: int | None = None,
    q_offset: int = 0,
    kv_offset: int = 0,
    position_ids: Array | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Array | None = None,
    dropout: float = 0.0,
    attn_implementation: str = "sdpa",
) -> Convention:
    """Attention of a model of Hugging Face transformers, with the masks of its ``masking_utils``.

        query i stands on key p = i + q_offset - kv_offset and sees key j  iff
        attention_mask[j + kv_offset]  and  j <= p  and  j > p - sliding_window  and  both are in one chunk

    Parameters
    ----------
    attention_mask : array, optional
        Two axes (B, n): of integers or booleans, not 0 where a token is no padding, wherever it lies; keys from n on
        are hidden. Four axes, broadcastable to (B, H, L, S): taken as it is, boolean or added to the scores, and the
        other masks are not made.
    is_causal : bool, default True
        Whether a query sees no key behind the one it stands on.
    sliding_window : int, optional
        Causal: keys that a query sees, its own among them. Otherwise the greatest distance of a key on either side,
        one less with "flash_attention".
    attention_chunk_size : int, optional
        Causal only: a query sees the keys of its own chunk. Chunks start at the first token that is no padding.
    q_offset, kv_offset : int, default 0
        Position of query 0, the length of the cache before the call, and of key 0, not 0 where a sliding cache has
        dropped keys.
    position_ids : array of int, shape (B, L), optional
        A step other than 1 begins a new sequence, which sees none of the others. Without mask and cache only.
    scaling : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, optional
        Scores s become ``softcap * tanh(s / softcap)``, before the mask.
    s_aux : array, shape (H,), optional
        One extra logit per head that takes weight and carries no value (gpt-oss).
    dropout : float, default 0.0
        Must be 0.
    attn_implementation : {"sdpa", "eager", "flex_attention", "flash_attention"}, default "sdpa"
        Any "flash_attention_2", "_3" and "_4" is "flash_attention".

    Returns
    -------
    Convention
        With ``layout="bhld"``, which is the order of what the attention function takes; it returns (B, L, H, Ev).
        ``empty_row`` is "mean" for "eager", where hidden scores have the lowest finite number added, "zeros" for the
        others and with `s_aux`.

    Raises
    ------
    ConventionError
        For dropout; for a `softcap` with "sdpa", which drops it, and for `s_aux` with "sdpa"; for padding and for
        chunks with "flash_attention", which takes the padding out of its arrays and refuses longer chunks; for a
        boolean mask of four axes with "eager", which adds True as 1.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning, and for arguments that exclude each other.

    Notes
    -----
    With "flash_attention" the diagonal is in the lower right corner whatever the offsets say: give those of the cache.
    Before August 2025 its window was one key wider [2]_.

    References
    ----------
    .. [1] huggingface/transformers: src/transformers/masking_utils.py, integrations/sdpa_attention.py,
       modeling_flash_attention_utils.py, models/gpt_oss/modeling_gpt_oss.py, models/gemma2/modeling_gemma2.py.
    .. [2] huggingface/transformers issues 29623 and 39408, pull request 40163.

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.transformers(sliding_window=2, q_offset=2)
    >>> print(call.arguments["mask"].draw(3, 5))
      01234
    0 .##..
    1 ..##.
    2 ...##
    """
    refuse_dropout(TRANSFORMERS, dropout, name="dropout")
    form = _form(attn_implementation)
    causal = check_flag(TRANSFORMERS, "is_causal", is_causal)
    offset = check_integer(TRANSFORMERS, "q_offset", q_offset), check_integer(TRANSFORMERS, "kv_offset", kv_offset)
    window = _positive("sliding_window", sliding_window)
    chunk = _positive("attention_chunk_size", attention_chunk_size)
    cap = None if softcap is None else number(TRANSFORMERS, "softcap", softcap)
    _check_form(form, attention_mask, cap, chunk, s_aux)
    if chunk is not None and (window is not None or not causal):
        raise ValueError(
            f"{TRANSFORMERS}: attention_chunk_size must not be given with sliding_window or is_causal=False; got "
            f"{chunk}."
        )
    bias = None
    if attention_mask is not None and getattr(attention_mask, "ndim", 0) == 4:
        mask, bias = mask_or_bias(TRANSFORMERS, "attention_mask", attention_mask)
        if mask is not None and form == "eager":
            raise ConventionError(
                f"{TRANSFORMERS}: attention_mask of four axes must be floating-point with attn_implementation='eager', "
                "which adds it, True as 1; got bool. Pass 0 for True and -inf for False."
            )
    else:
        padding = _padding(attention_mask)
        mask = both(
            _band(causal, window, form, offset[0] - offset[1]),
            _chunks(chunk, padding, *offset),
            None if padding is None else _seen(padding, offset[1]),
            _sequences(position_ids, padding, offset),
        )
    notes = []
    if form == "flash_attention" and window is not None:
        notes.append("Before August 2025 the window was one key wider.")
    return Convention(
        gather(
            mask=mask, bias=bias, scale=scale_of(TRANSFORMERS, "scaling", scaling), softcap=cap or None, sinks=s_aux
        ),
        layout="bhld",
        empty_row="zeros" if s_aux is not None else EMPTY_ROWS[form],
        notes=tuple(notes),
        softcap_order="none" if form == "sdpa" else "before bias",
    )


def from_hf_longformer(attention_window: int, *, global_attention_mask: Array | None = None) -> Convention:
    """Local attention of Hugging Face's Longformer, which counts both sides of its window in one number.

        query i sees key j  iff  |i - j| <= attention_window / 2

    Parameters
    ----------
    attention_window : int
        Twice the number of keys that a query sees on either side, beside its own: even and positive.
    global_attention_mask : None
        Must not be given.

    Returns
    -------
    Convention
        With ``layout="bhld"``; the layer splits its (B, L, H*E) into heads itself.

    Raises
    ------
    ConventionError
        For global attention, which has projections of its own: it is a second attention.
    TypeError
        If `attention_window` is no integer.
    ValueError
        If it is odd or not positive.

    Notes
    -----
    A window of 512 sees 513 keys. Padding beside it is `masks.lengths`.

    References
    ----------
    .. [1] huggingface/transformers: src/transformers/models/longformer/modeling_longformer.py
       (``one_sided_attn_window_size = attention_window // 2``).
    .. [2] I. Beltagy, M. E. Peters, A. Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150.

    Examples
    --------
    >>> import refattn as ra
    >>> ra.conventions.from_hf_longformer(4).arguments
    {'mask': masks.window(2, 2)}
    """
    if global_attention_mask is not None:
        raise ConventionError(
            f"{LONGFORMER}: global_attention_mask must be None; got an array. Global tokens have projections of their "
            "own: compute them as a second attention."
        )
    window = check_integer(LONGFORMER, "attention_window", attention_window, least=1)
    if window % 2:
        raise ValueError(f"{LONGFORMER}: attention_window must be even, half of it on either side; got {window}.")
    return Convention({"mask": masks.window(window // 2, window // 2)}, layout="bhld", softcap_order="none")


def _form(attn_implementation: object) -> str:
    """The attention function, whichever version of FlashAttention it is."""
    name = attn_implementation
    if isinstance(name, str) and name in ("flash_attention_2", "flash_attention_3", "flash_attention_4"):
        return "flash_attention"
    return word(TRANSFORMERS, "attn_implementation", name, tuple(EMPTY_ROWS))


def _positive(name: str, x: int | None) -> int | None:
    """A positive integer, or None."""
    return None if x is None else check_integer(TRANSFORMERS, name, x, least=1)


def _check_form(form: str, mask: Array | None, cap: float | None, chunk: int | None, s_aux: Array | None) -> None:
    """Refuse what an attention function drops, refuses or does in another way."""
    if s_aux is not None:
        check_array(TRANSFORMERS, "s_aux", s_aux, FLOATS)
    if form == "sdpa":
        for name, x in (("softcap", cap), ("s_aux", s_aux)):
            if x is not None:
                raise ConventionError(
                    f"{TRANSFORMERS}: {name} is dropped by attn_implementation='sdpa'. Pass the one that the model "
                    "uses with it, such as 'eager'."
                )
    if form == "flash_attention":
        for name, y in (("attention_mask", mask), ("attention_chunk_size", chunk)):
            if y is not None:
                raise ConventionError(
                    f"{TRANSFORMERS}: {name} with attn_implementation='flash_attention' cannot be expressed, for "
                    "padding is taken out of the arrays and chunks are refused. Pass the arrays without padding."
                )
    if cap is not None and cap < 0:
        raise ConventionError(f"{TRANSFORMERS}: softcap must not be negative; got {cap}. Pass None for no softcap.")


def _band(causal: bool, window: int | None, form: str, offset: int) -> masks.Mask | None:
    """The causal mask and the window."""
    anchor: str | int = "lower_right" if form == "flash_attention" else offset
    if causal:
        return band(None if window is None else window - 1, 0, anchor)
    reach = None if window is None else window - 1 if form == "flash_attention" else window
    return band(reach, reach, anchor)


def _padding(attention_mask: Array | None) -> npt.NDArray[np.bool_] | None:
    """The tokens (B, n) that are no padding."""
    if attention_mask is None:
        return None
    check_array(TRANSFORMERS, "attention_mask", attention_mask, (*FLOATS, *INTEGERS, "bool"))
    if len(attention_mask.shape) != 2:
        raise ValueError(
            f"{TRANSFORMERS}: attention_mask must have shape (B, n) or four axes; got {tuple(attention_mask.shape)}."
        )
    if dtype_name(attention_mask) not in (*INTEGERS, "bool"):
        raise TypeError(
            f"{TRANSFORMERS}: attention_mask (B, n) must be of integers or booleans; got {dtype_name(attention_mask)}."
        )
    return np.asarray(to_numpy(attention_mask) != 0)


def _seen(padding: npt.NDArray[np.bool_], kv_offset: int) -> masks.Mask:
    """The keys that are no padding; those behind the mask's end are hidden."""
    batch, n = padding.shape
    closed = np.concatenate([padding, np.zeros((batch, 1), np.bool_)], axis=1)

    def is_no_padding(b: Any, h: Any, q: Any, kv: npt.NDArray[np.int64]) -> Any:
        return closed[b, np.minimum(kv + kv_offset, n)]

    return masks.from_function(is_no_padding, batch=batch)


def _chunks(
    size: int | None, padding: npt.NDArray[np.bool_] | None, q_offset: int, kv_offset: int
) -> masks.Mask | None:
    """The keys of the query's own chunk."""
    if size is None:
        return None
    if padding is None and kv_offset == 0:
        return masks.chunked(size, anchor=q_offset)
    start = np.zeros(1, np.int64) if padding is None else (np.cumsum(padding, axis=-1) == 0).sum(axis=-1)

    def in_one_chunk(b: npt.NDArray[np.int64], h: Any, q: Any, kv: Any) -> Any:
        return (kv + kv_offset - start[b]) // size == (q + q_offset - start[b]) // size

    return masks.from_function(in_one_chunk, batch=len(start))


def _sequences(
    position_ids: Array | None, padding: npt.NDArray[np.bool_] | None, offset: tuple[int, int]
) -> masks.Mask | None:
    """The sequences that lie packed in one row."""
    if position_ids is None:
        return None
    if padding is not None or offset != (0, 0):
        raise ValueError(f"{TRANSFORMERS}: position_ids must not be given with attention_mask or a cache; got both.")
    check_array(TRANSFORMERS, "position_ids", position_ids, (*FLOATS, *INTEGERS))
    if dtype_name(position_ids) not in INTEGERS or len(position_ids.shape) != 2:
        raise TypeError(
            f"{TRANSFORMERS}: position_ids must be an integer array (B, L); got {dtype_name(position_ids)} "
            f"{tuple(position_ids.shape)}."
        )
    x = to_numpy(position_ids).astype(np.int64)
    return masks.documents(np.cumsum(np.diff(x, axis=-1, prepend=x[:, :1] - 1) != 1, axis=-1))
