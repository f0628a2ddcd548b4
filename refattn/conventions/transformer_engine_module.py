"""Transformer Engine's DotProductAttention for PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._core.anchors import Anchor
from refattn._core.arrays import FLOATS, Array, array_namespace, float64, to_numpy
from refattn._core.checks import check_array, check_flag, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import (
    Convention,
    added,
    band,
    boolean,
    both,
    gather,
    integers_of,
    number,
    per_head,
    refuse_dropout,
    scale_of,
    word,
)

ENGINE = "conventions.transformer_engine"
LAYOUTS = {"sbhd": "lbhd", "bshd": "blhd", "thd": "blhd"}
MASK_TYPES = (
    "no_mask",
    "causal",
    "causal_bottom_right",
    "padding",
    "padding_causal",
    "padding_causal_bottom_right",
    "arbitrary",
)


def transformer_engine(
    *,
    attn_mask_type: str = "causal",
    attention_mask: Array | tuple[Array, Array] | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_kv: Array | None = None,
    window_size: tuple[int, int] | None = None,
    bottom_right_diagonal: bool | None = None,
    core_attention_bias_type: str = "no_bias",
    core_attention_bias: Array | None = None,
    alibi_slopes: Array | None = None,
    num_attention_heads: int | None = None,
    softmax_type: str = "vanilla",
    softmax_offset: Array | None = None,
    softmax_scale: float | None = None,
    attention_dropout: float = 0.0,
    qkv_format: str = "sbhd",
) -> Convention:
    """Call of Transformer Engine's ``DotProductAttention``, in refattn's arguments.

        query i sees key j  iff  i + offset - left <= j <= i + offset + right  and  the cell is not masked out

    Parameters
    ----------
    attn_mask_type : str, default "causal"
        "no_mask", "causal" (offset 0), "causal_bottom_right" (offset S - L), "padding", "padding_causal",
        "padding_causal_bottom_right" or "arbitrary". "padding,causal" and "causal,padding" are "padding_causal".
    attention_mask : array of bool, or a pair of them, optional
        True where a token or a cell is masked OUT. Of "padding": (B, 1, 1, L) for queries and keys, or a pair
        (B, 1, 1, L), (B, 1, 1, S). Of "arbitrary": broadcastable to (B, H, L, S).
    cu_seqlens_q, cu_seqlens_kv : array of int, shape (B + 1,), optional
        The same of "padding" by lengths: ends of the queries and of the keys of each batch entry, 0 first.
    window_size : (int, int), optional
        (left, right): keys before and behind the one that the query stands on, which is in; -1: no end. Causal masks
        set right to 0. For the others (-1, 0) is (-1, -1), as in Transformer Engine, which warns.
    bottom_right_diagonal : bool, optional
        Where the diagonal of the window and of ALiBi lies; default: in the lower right corner but for "causal" and
        "padding_causal". With padding it is the corner of each entry's own lengths.
    core_attention_bias_type : {"no_bias", "pre_scale_bias", "post_scale_bias", "alibi"}, default "no_bias"
        Whether `core_attention_bias` is added before or after the scores are scaled, or ALiBi after it.
    core_attention_bias : array, broadcastable to (B, H, L, S), optional
        What is added.
    alibi_slopes : array, shape (H,) or (B, H), optional
        Default: the published slopes for `num_attention_heads`.
    num_attention_heads : int, optional
        Number of query heads H; needed for the default slopes and for "off-by-one".
    softmax_type : {"vanilla", "off-by-one", "learnable"}, default "vanilla"
        "off-by-one" adds one logit of 0 to every head, which takes weight and carries no value, "learnable" that of
        `softmax_offset`.
    softmax_offset : array, shape (H,) or (1, H, 1, 1), optional
        The module's parameter, for "learnable".
    softmax_scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    attention_dropout : float, default 0.0
        Must be 0.
    qkv_format : {"sbhd", "bshd", "thd"}, default "sbhd"
        Order of the axes. "thd" packs the tokens of a batch, as `cu_seqlens_q` and `cu_seqlens_kv` say: give refattn
        the arrays (B, L, H, E) that they unpack to.

    Returns
    -------
    Convention
        With ``layout`` "lbhd" for "sbhd", else "blhd"; the module's output has heads and features in one axis.
        ``empty_row="zeros"`` with padding, "undefined" without: it depends on the backend. The call returns no
        log-sum-exp.

    Raises
    ------
    ConventionError
        For dropout, for "pre_scale_bias" without `softmax_scale`, which the bias is multiplied by, and for a
        `bottom_right_diagonal` against a causal mask's own corner.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning or that Transformer Engine refuses, and for arguments that are needed and not given.

    Notes
    -----
    PyTorch's boolean masks are the other way round: there True takes part.

    The record follows the documentation. The mask of the unfused backend counts an open left side as S keys, so that
    under "causal" with L > S + 1 the last queries lose the first keys.

    References
    ----------
    .. [1] NVIDIA/TransformerEngine: transformer_engine/pytorch/attention/dot_product_attention/
       dot_product_attention.py (documentation), utils.py (``get_full_mask``, ``check_set_window_size``, ``get_alibi``),
       backends.py (``UnfusedDotProductAttention``).

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.transformer_engine(attn_mask_type="causal_bottom_right", window_size=(1, 0))
    >>> call.arguments, call.layout
    ({'mask': masks.window(1, 0, anchor='lower_right')}, 'lbhd')
    """
    refuse_dropout(ENGINE, attention_dropout, name="attention_dropout")
    kind = word(ENGINE, "attn_mask_type", _underscored(attn_mask_type), MASK_TYPES)
    word(ENGINE, "qkv_format", qkv_format, tuple(LAYOUTS))
    padded = kind.startswith("padding")
    if qkv_format == "thd" and not padded:
        raise ValueError(f"{ENGINE}: attn_mask_type must be one with padding where qkv_format='thd'; got {kind!r}.")
    left, right = _sides(kind, window_size)
    corner = _corner(kind, bottom_right_diagonal)
    given, offset = _given(kind, attention_mask, cu_seqlens_q, cu_seqlens_kv)
    anchor: Anchor = offset if padded and corner == "lower_right" else corner
    return Convention(
        gather(
            mask=both(band(left, right, anchor), given),
            bias=_bias(
                core_attention_bias_type, core_attention_bias, alibi_slopes, num_attention_heads, softmax_scale, anchor
            ),
            scale=scale_of(ENGINE, "softmax_scale", softmax_scale),
            sinks=_sinks(softmax_type, softmax_offset, num_attention_heads),
        ),
        layout=LAYOUTS[qkv_format],
        empty_row="zeros" if padded else "undefined",
        notes=("The arrays are those that cu_seqlens_q and cu_seqlens_kv unpack to.",) if qkv_format == "thd" else (),
        softcap_order="none",
    )


def _underscored(kind: object) -> object:
    """The name with an underscore of a mask type with a comma."""
    if not isinstance(kind, str):
        return kind
    name = kind.replace(",", "_")
    return "padding_causal" if name == "causal_padding" else name


def _sides(kind: str, window_size: object) -> tuple[int | None, int | None]:
    """The two sides of the window, after what the module makes of them."""
    pair = (-1, -1) if window_size is None else window_size
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{ENGINE}: window_size must be a pair (left, right); got {window_size!r}.")
    left, right = (check_integer(ENGINE, f"window_size[{n}]", x, least=-1) for n, x in enumerate(pair))
    if "causal" in kind:
        return (None if left == -1 else left), 0
    if (left, right) in ((-1, -1), (-1, 0)):
        return None, None
    if left == -1 or right == -1:
        raise ValueError(
            f"{ENGINE}: window_size must be (-1, -1) or two numbers from 0 on with attn_mask_type={kind!r}; got "
            f"{(left, right)}."
        )
    return left, right


def _corner(kind: str, bottom_right: object) -> str:
    """The corner that the diagonal starts from."""
    own = "upper_left" if kind in ("causal", "padding_causal") else "lower_right"
    if bottom_right is None:
        return own
    wanted = "lower_right" if check_flag(ENGINE, "bottom_right_diagonal", bottom_right) else "upper_left"
    if "causal" in kind and wanted != own:
        raise ConventionError(
            f"{ENGINE}: bottom_right_diagonal={bottom_right} contradicts attn_mask_type={kind!r}. Pass the mask type "
            "of that corner."
        )
    return wanted


def _given(kind: str, mask: Any, cu_q: Array | None, cu_kv: Array | None) -> tuple[masks.Mask | None, Anchor]:
    """What the user masks, and how many keys more than queries each batch entry has."""
    if kind == "arbitrary":
        x = boolean(ENGINE, "attention_mask", mask)
        if x is None:
            raise ValueError(f"{ENGINE}: attention_mask must be given with attn_mask_type='arbitrary'; got None.")
        return ~masks.array(x), None
    if not kind.startswith("padding"):
        for name, x in (("attention_mask", mask), ("cu_seqlens_q", cu_q), ("cu_seqlens_kv", cu_kv)):
            if x is not None:
                raise ValueError(f"{ENGINE}: {name} must not be given with attn_mask_type={kind!r}; got an array.")
        return None, None
    if mask is not None:
        query, key = mask if isinstance(mask, tuple | list) else (mask, mask)
        rows, columns = (_tokens(name, x) for name, x in (("queries", query), ("keys", key)))
        seen = masks.array(rows[:, None, :, None]) & masks.array(columns[:, None, None, :])
        return seen, columns.sum(axis=-1) - rows.sum(axis=-1)
    if cu_q is None or cu_kv is None:
        missing = "cu_seqlens_q" if cu_q is None else "cu_seqlens_kv"
        raise ValueError(
            f"{ENGINE}: attention_mask, or {missing}, must be given with attn_mask_type={kind!r}; got None."
        )
    q, k = (np.diff(integers_of(ENGINE, name, x)) for name, x in (("cu_seqlens_q", cu_q), ("cu_seqlens_kv", cu_kv)))
    return masks.lengths(k, q), k - q


def _tokens(whose: str, x: Any) -> npt.NDArray[np.bool_]:
    """The tokens (B, n) that are no padding."""
    given = boolean(ENGINE, f"attention_mask of the {whose}", x)
    assert given is not None
    if len(given.shape) != 4 or tuple(given.shape[1:3]) != (1, 1):
        raise ValueError(
            f"{ENGINE}: attention_mask of the {whose} must have shape (B, 1, 1, n); got {tuple(given.shape)}."
        )
    return ~to_numpy(given)[:, 0, 0, :]


def _bias(
    kind: str, bias: Array | None, slopes: Array | None, heads: object, scale: float | None, anchor: Anchor
) -> Array | biases.Bias | None:
    """What is added to the scaled scores."""
    word(ENGINE, "core_attention_bias_type", kind, ("no_bias", "pre_scale_bias", "post_scale_bias", "alibi"))
    if (bias is not None) != kind.endswith("scale_bias"):
        must = "must" if bias is None else "must not"
        got = "None" if bias is None else "an array"
        raise ValueError(
            f"{ENGINE}: core_attention_bias {must} be given with core_attention_bias_type={kind!r}; got {got}."
        )
    if kind == "alibi":
        if slopes is None:
            return biases.alibi(_heads(heads, "the default slopes"), anchor=anchor)
        check_array(ENGINE, "alibi_slopes", slopes, FLOATS)
        return biases.alibi(slopes, anchor=anchor)
    x = added(ENGINE, "core_attention_bias", bias)
    if x is None or kind == "post_scale_bias":
        return x
    if scale is None:
        raise ConventionError(
            f"{ENGINE}: core_attention_bias_type='pre_scale_bias' is multiplied by softmax_scale, whose default "
            "depends on E. Pass softmax_scale=."
        )
    return float64(x, array_namespace(ENGINE, core_attention_bias=x)) * number(ENGINE, "softmax_scale", scale)


def _sinks(kind: str, offset: Array | None, heads: object) -> Array | None:
    """The logit that takes weight and carries no value."""
    word(ENGINE, "softmax_type", kind, ("vanilla", "off-by-one", "learnable"))
    if (offset is not None) != (kind == "learnable"):
        must, got = ("must", "None") if offset is None else ("must not", "an array")
        raise ValueError(f"{ENGINE}: softmax_offset {must} be given with softmax_type={kind!r}; got {got}.")
    if kind == "off-by-one":
        return np.zeros(_heads(heads, "softmax_type='off-by-one'"))
    return per_head(ENGINE, "softmax_offset", offset)


def _heads(heads: object, what: str) -> int:
    """The number of query heads, which something is made for."""
    if heads is None:
        raise ValueError(f"{ENGINE}: num_attention_heads must be given for {what}; got None.")
    return check_integer(ENGINE, "num_attention_heads", heads, least=1)
