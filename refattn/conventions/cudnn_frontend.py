"""The graph operation sdpa of the cuDNN frontend."""

from __future__ import annotations

from typing import Any

from refattn import biases, masks
from refattn._core.anchors import Anchor
from refattn._core.arrays import Array
from refattn._core.checks import check_flag, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import Convention, added, band, both, gather, lengths_of, number, per_head, word

CUDNN = "conventions.cudnn"


def cudnn(
    *,
    attn_scale: float | None = None,
    bias: Array | None = None,
    block_mask: Array | None = None,
    use_alibi_mask: bool = False,
    num_heads: int | None = None,
    use_padding_mask: bool = False,
    seq_len_q: Array | None = None,
    seq_len_kv: Array | None = None,
    use_causal_mask: bool = False,
    use_causal_mask_bottom_right: bool = False,
    sliding_window_length: int | None = None,
    diagonal_alignment: Any = "TOP_LEFT",
    diagonal_band_left_bound: int | None = None,
    diagonal_band_right_bound: int | None = None,
    dropout: Any = None,
    sink_token: Array | None = None,
    generate_stats: bool = False,
    stats_use_log2: bool = False,
) -> Convention:
    """Call of ``graph.sdpa`` of the cuDNN frontend, in refattn's arguments.

        query i sees key j  iff  i + offset - left_bound < j <= i + offset + right_bound,
                                 offset = 0 at TOP_LEFT, S - L at BOTTOM_RIGHT

    Parameters
    ----------
    attn_scale : float, optional
        Factor on the scores; default 1, not 1/sqrt(E).
    bias : array, broadcastable to (B, H, L, S), optional
        Added to the scores.
    block_mask : None
        Must not be given.
    use_alibi_mask : bool, default False
        Whether slope * (j - i) is added, with the published slopes; needs a right bound of 0.
    num_heads : int, optional
        Number of query heads H; needed for `use_alibi_mask`.
    use_padding_mask : bool, default False
        Whether queries behind `seq_len_q` and keys behind `seq_len_kv` take no part.
    seq_len_q, seq_len_kv : array of int, shape (B,) or (B, 1, 1, 1), optional
        Queries and keys of each batch entry that are no padding. At BOTTOM_RIGHT the corner is theirs, offset =
        seq_len_kv - seq_len_q.
    use_causal_mask, use_causal_mask_bottom_right : bool, default False
        The older words for TOP_LEFT and BOTTOM_RIGHT, with a right bound of 0 where none is given.
    sliding_window_length : int, optional
        The older word for `diagonal_band_left_bound`.
    diagonal_alignment : {"TOP_LEFT", "BOTTOM_RIGHT"}, default "TOP_LEFT"
        Where the diagonal lies; a ``cudnn.diagonal_alignment`` is taken by its name.
    diagonal_band_left_bound : int, optional
        Keys before the diagonal one, itself among them; None: no end.
    diagonal_band_right_bound : int, optional
        Keys behind the diagonal one, itself not among them; None: no end.
    dropout : None
        Must not be given.
    sink_token : array, shape (H,) or (1, H, 1, 1), optional
        One extra logit per head that takes weight and carries no value.
    generate_stats : bool, default False
        Whether the log-sum-exp is returned too; no part of what is computed.
    stats_use_log2 : bool, default False
        Whether it is in base 2.

    Returns
    -------
    Convention
        With ``layout="bhld"``: the graph's dimensions are (B, H, L, E), whatever the strides are. ``lse_base`` is "2"
        with `stats_use_log2`; the log-sum-exp is (B, H, L, 1). ``empty_row="zeros"``.

    Raises
    ------
    ConventionError
        For dropout and block masks; for what cuDNN refuses: BOTTOM_RIGHT with a right bound beside a bias or ALiBi,
        ALiBi without a right bound of 0, a left bound of 0, which hides the diagonal key too; and for ALiBi beside a
        bias.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning, and for the old and the new word of one thing together.

    Notes
    -----
    The left bound counts the diagonal key, the right bound does not: a window of W keys that ends at the diagonal is
    ``diagonal_band_left_bound=W, diagonal_band_right_bound=0``. A left bound alone leaves the right side open.

    cuDNN refuses BOTTOM_RIGHT with a right bound, and a left bound, where L > S and nothing is padded; the record does
    not know the lengths.

    References
    ----------
    .. [1] NVIDIA/cudnn-frontend: docs/operations/Attention.md; include/cudnn_frontend/node/sdpa_support_surface.h (what
       is refused) and diagonal_band_mask.h; test/python/sdpa/fp16_ref.py (``_ScoreMask``, ``compute_ref``).

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.cudnn(diagonal_band_left_bound=2, diagonal_band_right_bound=0, attn_scale=0.125)
    >>> call.arguments
    {'mask': masks.window(1, 0, anchor='upper_left'), 'scale': 0.125}
    """
    if dropout is not None:
        raise ConventionError(
            f"{CUDNN}: dropout must be None; got {type(dropout).__name__}. Pass the mask that the kernel used to "
            "attention as dropout_mask=."
        )
    if block_mask is not None:
        raise ConventionError(
            f"{CUDNN}: block_mask must be None; got an array. Pass its bits, each for 128 x 128 cells, to attention as "
            "mask=."
        )
    alignment, left, right = _diagonal(
        use_causal_mask,
        use_causal_mask_bottom_right,
        sliding_window_length,
        diagonal_alignment,
        diagonal_band_left_bound,
        diagonal_band_right_bound,
    )
    check_flag(CUDNN, "generate_stats", generate_stats)
    padding, anchor = _padding(use_padding_mask, seq_len_q, seq_len_kv, alignment)
    alibi = check_flag(CUDNN, "use_alibi_mask", use_alibi_mask)
    if alignment == "BOTTOM_RIGHT" and right is not None and (bias is not None or alibi):
        raise ConventionError(
            f"{CUDNN}: diagonal_alignment='BOTTOM_RIGHT' with a right bound beside a bias or ALiBi is refused by "
            "cuDNN. Pass one of them."
        )
    return Convention(
        gather(
            mask=both(band(left, right, anchor), padding),
            bias=_bias(bias, alibi, num_heads, right),
            scale=1.0 if attn_scale is None else number(CUDNN, "attn_scale", attn_scale),
            sinks=per_head(CUDNN, "sink_token", sink_token),
        ),
        layout="bhld",
        lse_base="2" if check_flag(CUDNN, "stats_use_log2", stats_use_log2) else "e",
        softcap_order="none",
    )


def _diagonal(
    causal: object, bottom_right: object, window: object, alignment: Any, left: object, right: object
) -> tuple[str, int | None, int | None]:
    """Where the diagonal lies, and how many keys are visible before and behind it."""
    old = {
        "use_causal_mask": check_flag(CUDNN, "use_causal_mask", causal),
        "use_causal_mask_bottom_right": check_flag(CUDNN, "use_causal_mask_bottom_right", bottom_right),
    }
    where = word(CUDNN, "diagonal_alignment", getattr(alignment, "name", alignment), ("TOP_LEFT", "BOTTOM_RIGHT"))
    if all(old.values()):
        raise ValueError(
            f"{CUDNN}: use_causal_mask and use_causal_mask_bottom_right must not be given together; got both."
        )
    if old["use_causal_mask"] and where == "BOTTOM_RIGHT":
        raise ValueError(
            f"{CUDNN}: use_causal_mask must be False with diagonal_alignment='BOTTOM_RIGHT'; got True. Pass "
            "use_causal_mask_bottom_right=True."
        )
    if window is not None and left is not None:
        raise ValueError(
            f"{CUDNN}: sliding_window_length and diagonal_band_left_bound must not be given together; got {window} "
            f"and {left}."
        )
    name, bound = ("diagonal_band_left_bound", left) if window is None else ("sliding_window_length", window)
    before = None if bound is None else check_integer(CUDNN, name, bound) - 1
    if before == -1:
        raise ConventionError(f"{CUDNN}: {name}=0 hides the diagonal key too and cannot be expressed. Pass 1 or more.")
    behind = None if right is None else check_integer(CUDNN, "diagonal_band_right_bound", right)
    if any(old.values()) and behind is None:
        behind = 0
    return "BOTTOM_RIGHT" if old["use_causal_mask_bottom_right"] else where, before, behind


def _padding(use: object, query: Array | None, key: Array | None, alignment: str) -> tuple[masks.Mask | None, Anchor]:
    """The tokens that are no padding, and where the diagonal lies."""
    corner = "lower_right" if alignment == "BOTTOM_RIGHT" else "upper_left"
    if not check_flag(CUDNN, "use_padding_mask", use):
        for name, x in (("seq_len_q", query), ("seq_len_kv", key)):
            if x is not None:
                raise ValueError(f"{CUDNN}: {name} must not be given with use_padding_mask=False; got an array.")
        return None, corner
    if query is None or key is None:
        missing = "seq_len_q" if query is None else "seq_len_kv"
        raise ValueError(f"{CUDNN}: {missing} must be given with use_padding_mask=True; got None.")
    rows, columns = (
        lengths_of(CUDNN, name, x[:, 0, 0, 0] if tuple(x.shape[1:]) == (1, 1, 1) else x)
        for name, x in (("seq_len_q", query), ("seq_len_kv", key))
    )
    return masks.lengths(columns, rows), columns - rows if corner == "lower_right" else corner


def _bias(bias: Array | None, alibi: bool, num_heads: object, right: int | None) -> Array | biases.Bias | None:
    """What is added to the scores."""
    if not alibi:
        return added(CUDNN, "bias", bias)
    if bias is not None:
        raise ConventionError(f"{CUDNN}: bias beside use_alibi_mask=True cannot be expressed. Pass their sum as bias=.")
    if right != 0:
        raise ConventionError(
            f"{CUDNN}: use_alibi_mask=True with a right bound of {right} is refused by cuDNN. Pass "
            "diagonal_band_right_bound=0."
        )
    if num_heads is None:
        raise ValueError(
            f"{CUDNN}: num_heads must be given with use_alibi_mask=True, for the slopes follow from it; got None."
        )
    # slope * (j - i) is -slope * |i - j| for the keys that a right bound of 0 leaves.
    return biases.alibi(check_integer(CUDNN, "num_heads", num_heads, least=1), anchor="upper_left")
