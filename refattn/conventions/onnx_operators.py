"""ONNX's Attention, opsets 23 to 25, and FlexAttention of its preview domain."""

from __future__ import annotations

import math

import numpy as np

from refattn import masks
from refattn._core.arrays import Array, array_namespace, device, to_numpy
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

ONNX = "conventions.onnx"
FLEX = "conventions.onnx_flex"
PRECISIONS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
STAGES = ("raw", "softcapped", "biased", "weights")


def onnx(
    *,
    opset: int,
    L: int | None = None,
    S: int | None = None,
    is_causal: int | bool = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
) -> Convention:
    """Node of ONNX's ``Attention``, in refattn's arguments.

        query i stands on key i + offset,   offset = P with past_key, nonpad_kv_seqlen[b] - L with that, else 0

    Parameters
    ----------
    opset : int
        Opset of the model's default domain, at least 23. The operator changed in 24 and 25.
    L, S : int, optional
        Number of queries and of keys, past included. L is needed beside `nonpad_kv_seqlen` where the mask depends on
        the diagonal, S beside `attn_mask` from opset 24 on.
    is_causal : {0, 1} or bool, default 0
        Whether a query sees no key behind the one it stands on.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, default 0.0
        Scores s become ``softcap * tanh(s / softcap)``, before `attn_mask`; 0 is off.
    q_num_heads, kv_num_heads : int, optional
        H and Hk, both for 3-D inputs and for those alone.
    softmax_precision : {1, 10, 11, 16}, optional
        ONNX's number of the dtype that the softmax runs in: float32, float16, float64, bfloat16. It changes the
        rounding, not the value that is rounded.
    qk_matmul_output_mode : {0, 1, 2, 3}, default 0
        Which scores the fourth output holds: raw, after softcap, after bias and mask, or the weights. No part of the
        first.
    left_window_size, right_window_size : int, default -1
        Keys before and behind the one that the query stands on, which is in; -1: no end. From opset 25 on.
    attn_mask : array of bool or float, broadcastable to (B, H, L, S), optional
        Boolean: True where a key takes part. Floating-point: added to the scores. Axes are matched from the right, so
        three are (H, L, S). From opset 24 on the last axis may be shorter than S: the keys behind it are hidden.
    past_key, past_value : array, shape (B, Hk, P, E) and (B, Hk, P, Ev), optional
        Only P is read: concatenate them in front of key and value.
    nonpad_kv_seqlen : array of int, shape (B,), optional
        Keys that are no padding in each batch entry; the others are hidden. From opset 24 on.

    Returns
    -------
    Convention
        With ``layout="bhld"``, or "blhd" for 3-D inputs, whose last axis is (H, E) with the head outside:
        ``x.reshape(B, L, H, E)``. ``empty_row="zeros"``. `scores_stage` is that of the fourth output, which has the
        heads apart, (B, H, L, S), for 3-D inputs too. The operator returns no log-sum-exp.

    Raises
    ------
    ConventionError
        For an opset without the operator or without the attribute, for a negative `scale` (each of Q and K is
        multiplied by its square root) and for a negative `softcap` (ONNX's reference takes it for none, its function
        body for a cap).
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning, and for L or S that is needed and not given.

    Notes
    -----
    Three things of older opsets were mended in place, and the record has them as they are in onnx 1.23: softcap comes
    before the mask, modes 1 and 2 of `qk_matmul_output_mode` follow that order (before, 1 was after the mask and 2
    after softcap), and the diagonal beside `nonpad_kv_seqlen` is in the lower right corner of each batch entry. Rows
    without keys are zeros since then, NaN before.

    Without a cache the diagonal is in the upper left corner, for every L and S.

    The operator's reference computes in the dtype of its inputs, after multiplying Q and K each by sqrt(scale) in it.
    In mode 0 with a softcap that reference returns the capped scores as its fourth output; the specification and its
    function body say the raw ones.

    References
    ----------
    .. [1] ONNX, "Operator Schemas: Attention", versions 23, 24 and 25; onnx/defs/nn/defs.cc, old.cc and utils.cc and
       onnx/reference/ops/op_attention.py of onnx 1.23.2.
    .. [2] onnx/onnx pull requests 7867 (softcap before the mask), 7913 (numbers of the modes), 8068 (diagonal with an
       external cache, rows without keys) and 8108 (windows).

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> past = np.zeros((1, 2, 3, 8))
    >>> call = ra.conventions.onnx(opset=25, is_causal=1, left_window_size=1, past_key=past, past_value=past)
    >>> print(call.arguments["mask"].draw(2, 5))
      01234
    0 ..##.
    1 ...##
    >>> ra.conventions.onnx(opset=23, q_num_heads=4, kv_num_heads=2, softcap=2.0).layout
    'blhd'
    """
    _check_opset(opset, left_window_size, right_window_size, nonpad_kv_seqlen)
    is_3d = _check_heads(q_num_heads, kv_num_heads)
    _check_cache(past_key, past_value, nonpad_kv_seqlen)
    left, right = (
        reach_of(ONNX, name, x)
        for name, x in (("left_window_size", left_window_size), ("right_window_size", right_window_size))
    )
    causal = switch(ONNX, "is_causal", is_causal)
    lengths = None if nonpad_kv_seqlen is None else lengths_of(ONNX, "nonpad_kv_seqlen", nonpad_kv_seqlen)
    band = None
    if causal or left is not None or right is not None:
        anchor = _anchor(L, past_key, lengths)
        band = both(
            masks.causal(anchor=anchor) if causal else None,
            None if left is None and right is None else masks.window(left, right, anchor=anchor),
        )
    mask, bias = _mask(attn_mask, S, pad=opset >= 24)
    arguments = gather(
        mask=both(band, mask, None if lengths is None else masks.lengths(lengths)),
        bias=bias,
        scale=_scale(ONNX, scale),
        softcap=softcap_of(ONNX, softcap),
    )
    mode = check_integer(ONNX, "qk_matmul_output_mode", qk_matmul_output_mode, least=0)
    if mode > 3:
        raise ValueError(f"{ONNX}: qk_matmul_output_mode must be at most 3; got {qk_matmul_output_mode}.")
    return Convention(
        arguments,
        layout="blhd" if is_3d else "bhld",
        notes=tuple(_precision(ONNX, softmax_precision)),
        scores_stage=STAGES[mode],
    )


def onnx_flex(
    *,
    scale: float | None = None,
    softmax_precision: int | None = None,
    score_mod: object = None,
    prob_mod: object = None,
) -> Convention:
    """Node of ONNX's ``FlexAttention`` (domain ai.onnx.preview), in refattn's arguments, as far as it has no graphs.

    Parameters
    ----------
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softmax_precision : {1, 10, 11, 16}, optional
        ONNX's number of the dtype that the softmax runs in; default float32 for float16 and bfloat16 inputs, else
        theirs. It changes the rounding, not the value that is rounded.
    score_mod, prob_mod : None
        Must not be given: they are graphs, which can be anything.

    Returns
    -------
    Convention
        With ``layout="bhld"`` and ``empty_row="nan"``. The operator returns no log-sum-exp.

    Raises
    ------
    ConventionError
        For a graph, and for a negative `scale` (each of Q and K is multiplied by its square root).
    TypeError
        For arguments of the wrong kind.
    ValueError
        For values without meaning.

    Notes
    -----
    A `score_mod` that adds, hides or caps is `attention`'s ``bias`` (`biases.from_function`), ``mask`` or ``softcap``;
    write it as one of them.

    References
    ----------
    .. [1] ONNX, "Operator Schemas: FlexAttention", version 1 of ai.onnx.preview;
       onnx/reference/ops/aionnx_preview/op_flex_attention.py of onnx 1.23.2.

    Examples
    --------
    >>> import refattn as ra
    >>> ra.conventions.onnx_flex(scale=0.25).arguments
    {'scale': 0.25}
    """
    for name, graph, words in (
        ("score_mod", score_mod, "Pass what it does as mask=, bias= or softcap= of attention"),
        ("prob_mod", prob_mod, "Apply it to attention(..., return_weights=True)"),
    ):
        if graph is not None:
            raise ConventionError(f"{FLEX}: {name} must be None, for a graph can be anything; got a graph. {words}.")
    notes = tuple(_precision(FLEX, softmax_precision))
    return Convention(gather(scale=_scale(FLEX, scale)), layout="bhld", empty_row="nan", notes=notes)


def _check_opset(opset: object, left: object, right: object, nonpad_kv_seqlen: object) -> None:
    """Refuse what the opset does not have."""
    version = check_integer(ONNX, "opset", opset, least=1)
    if version < 23:
        raise ConventionError(f"{ONNX}: opset must be at least 23, the first with Attention; got {version}.")
    if version < 24 and nonpad_kv_seqlen is not None:
        raise ConventionError(f"{ONNX}: nonpad_kv_seqlen came with opset 24; got opset={version}.")
    if version < 25 and (left, right) != (-1, -1):
        raise ConventionError(
            f"{ONNX}: left_window_size and right_window_size came with opset 25; got {left} and {right} for "
            f"opset={version}."
        )


def _check_heads(q_num_heads: int | None, kv_num_heads: int | None) -> bool:
    """Whether the inputs are 3-D."""
    if (q_num_heads is None) != (kv_num_heads is None):
        raise ValueError(
            f"{ONNX}: q_num_heads and kv_num_heads must be given together; got {q_num_heads} and {kv_num_heads}."
        )
    if q_num_heads is None:
        return False
    H, Hk = (
        check_integer(ONNX, name, x, least=1)
        for name, x in (("q_num_heads", q_num_heads), ("kv_num_heads", kv_num_heads))
    )
    if H % Hk:
        raise ValueError(f"{ONNX}: q_num_heads must be a multiple of kv_num_heads; got {H} and {Hk}.")
    return True


def _check_cache(past_key: Array | None, past_value: Array | None, nonpad_kv_seqlen: Array | None) -> None:
    """A past has both halves, and no padding beside it."""
    if (past_key is None) != (past_value is None):
        given = "past_key" if past_value is None else "past_value"
        raise ValueError(f"{ONNX}: past_key and past_value must be given together; got only {given}.")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ValueError(f"{ONNX}: nonpad_kv_seqlen must not be given beside past_key and past_value; got both.")
    for name, x in (("past_key", past_key), ("past_value", past_value)):
        if x is not None:
            check_array(ONNX, name, x)
            if len(x.shape) != 4:
                raise ValueError(f"{ONNX}: {name} must have shape (B, Hk, P, E); got {tuple(x.shape)}.")


def _scale(function: str, scale: object) -> float | None:
    """A scale whose square root is real."""
    factor = scale_of(function, "scale", scale)
    if factor is not None and factor < 0:
        raise ConventionError(
            f"{function}: scale must not be negative, for Q and K are each multiplied by its square root; got {scale}. "
            "Negate Q and pass -scale."
        )
    return factor


def _anchor(L: int | None, past_key: Array | None, lengths: Array | None) -> str | int | Array:
    """Where the queries stand among the keys."""
    if past_key is not None:
        return int(past_key.shape[2])
    if lengths is None:
        return "upper_left"
    if L is None:
        raise ValueError(
            f"{ONNX}: L must be given where is_causal or a window meets nonpad_kv_seqlen, for query 0 stands on key "
            "nonpad_kv_seqlen - L; got None. Pass the number of queries."
        )
    return lengths - check_integer(ONNX, "L", L, least=0)


def _mask(attn_mask: Array | None, S: int | None, *, pad: bool) -> tuple[masks.Mask | None, Array | None]:
    """The mask or the bias that attn_mask is, over all keys; those behind its end are hidden."""
    if attn_mask is None:
        return None, None
    boolean = is_boolean_mask(ONNX, "attn_mask", attn_mask, least_axes=1)
    if len(attn_mask.shape) == 1:
        attn_mask = attn_mask[None, :]
    missing = 0
    if pad:
        if S is None:
            raise ValueError(
                f"{ONNX}: S must be given beside attn_mask, for a mask shorter than S hides the keys behind its end; "
                "got None. Pass the number of keys, past included."
            )
        missing = check_integer(ONNX, "S", S, least=0) - attn_mask.shape[-1]
        if missing < 0:
            raise ValueError(
                f"{ONNX}: attn_mask must have at most S={S} entries on its last axis; got {tuple(attn_mask.shape)}."
            )
    if boolean:
        cells = to_numpy(attn_mask)
        return masks.array(np.pad(cells, [(0, 0)] * (cells.ndim - 1) + [(0, missing)])), None
    if not missing:
        return None, attn_mask
    xp = array_namespace(ONNX, attn_mask=attn_mask)
    hidden = (*attn_mask.shape[:-1], missing)
    tail = xp.full(hidden, -math.inf, dtype=attn_mask.dtype, device=device(attn_mask))
    return None, xp.concat([attn_mask, tail], axis=-1)


def _precision(function: str, softmax_precision: object) -> list[str]:
    """A note on the dtype of the softmax."""
    if softmax_precision is None:
        return []
    code = check_integer(function, "softmax_precision", softmax_precision, least=0)
    if code not in PRECISIONS:
        raise ValueError(f"{function}: softmax_precision must be one of 1, 10, 11 and 16; got {code}.")
    return [f"The softmax runs in {PRECISIONS[code]}."]
