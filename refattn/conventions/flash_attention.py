"""FlashAttention's flash_attn_func, versions 2.1 and later, 3 and 4."""

from __future__ import annotations

from refattn import biases, masks
from refattn._core.arrays import FLOATS, Array
from refattn._core.checks import check_array, check_flag, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import (
    Convention,
    band,
    both,
    gather,
    number,
    reach_of,
    refuse_dropout,
    scale_of,
)

FLASH_ATTN = "conventions.flash_attn"


def flash_attn(
    *,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    learnable_sink: Array | None = None,
    attention_chunk: int = 0,
    qv: Array | None = None,
    q_descale: Array | None = None,
    k_descale: Array | None = None,
    v_descale: Array | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Convention:
    """Call of ``flash_attn_func`` (and its ``qkvpacked`` and ``kvpacked`` forms), in refattn's arguments.

        query i sees key j  iff  i + S - L - left <= j <= i + S - L + right
                            and  j // attention_chunk == (i + S - L) // attention_chunk

    Parameters
    ----------
    dropout_p : float, default 0.0
        Must be 0.
    softmax_scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    causal : bool, default False
        Whether a query sees no key behind the one it stands on: right = 0, whatever `window_size` says.
    window_size : (int or None, int or None), default (-1, -1)
        (left, right): keys before and behind the one that the query stands on, which is in. -1 or None: no end.
    softcap : float, default 0.0
        Scores s become ``softcap * tanh(s / softcap)``; 0 or less is off.
    alibi_slopes : array, shape (H,) or (B, H), optional
        Adds -slope * |i + S - L - j| to the scores. Version 2 only.
    learnable_sink : array, shape (H,), optional
        One extra logit per head that takes weight and carries no value. Version 4 only.
    attention_chunk : int, default 0
        Keys in a chunk: a query sees those of the chunk that it stands in, beside what `window_size` and `causal` say;
        0 is off. Version 3 only.
    qv : None
        Must not be given. Version 3 only.
    q_descale, k_descale, v_descale : array of float32, shape (B, Hk), optional
        Factors of float8 operands, those of the query too one for each key head. Version 3 only.
    deterministic : bool, default False
        How the backward pass sums; no part of what the forward pass computes.
    return_attn_probs : bool, default False
        Whether the log-sum-exp is returned too; no part of what the forward pass computes.

    Returns
    -------
    Convention
        With ``layout="blhd"``, ``lse_base="e"`` and ``empty_row="zeros"``; the log-sum-exp is (B, H, L).

    Raises
    ------
    ConventionError
        For dropout and `qv`, which refattn's arguments do not express.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For a side of the window below -1, or a number that is not finite.

    Notes
    -----
    Where L != S, version 2.0 had its causal diagonal in the upper left corner; since 2.1 it is in the lower right.

    The record follows the documented call. Version 2's kernels depart from it in three places that `notes` names where
    they matter: with `causal` and `alibi_slopes` they add +slope * j, so the output is the same and the log-sum-exp is
    higher by slope * (i + S - L); a right side that is open, or longer than S, counts as S where the left side ends and
    as open where it does not, which differs where L > S + 1; the log-sum-exp of a row without keys is +inf (version 3:
    -inf).

    Version 3 finds a query's chunk by a division that is made for places from 0 on: where L > S and no side of the
    window is closed by `causal`, what a query before the first key sees is open. The record says nothing.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023,
       arXiv:2307.08691.
    .. [2] Dao-AILab/flash-attention: README, "2.1: Change behavior of causal flag"; flash_attn_interface.py; of version
       2's kernels csrc/flash_attn/src/mask.h, softmax.h and flash_api.cpp (``window_size_right = seqlen_k``); of
       version 3's hopper/mask.h and hopper/flash_api.cpp (``attention_chunk``).

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.flash_attn(causal=True, window_size=(2, 1), softcap=30.0)
    >>> call.arguments
    {'mask': masks.window(2, 0, anchor='lower_right'), 'softcap': 30.0}
    >>> print(call.arguments["mask"].draw(3, 5))
      01234
    0 ###..
    1 .###.
    2 ..###
    """
    refuse_dropout(FLASH_ATTN, dropout_p)
    if qv is not None:
        raise ConventionError(f"{FLASH_ATTN}: qv must be None; got an array. Append qv to query and value to key.")
    factors = [
        _factor(name, x) for name, x in (("q_descale", q_descale), ("k_descale", k_descale), ("v_descale", v_descale))
    ]
    chunk = check_integer(FLASH_ATTN, "attention_chunk", attention_chunk, least=0)
    check_flag(FLASH_ATTN, "deterministic", deterministic)
    check_flag(FLASH_ATTN, "return_attn_probs", return_attn_probs)
    cap = number(FLASH_ATTN, "softcap", softcap)
    left, right = _sides(window_size)
    if check_flag(FLASH_ATTN, "causal", causal):
        right = 0
    notes = []
    bias = None
    if alibi_slopes is not None:
        check_array(FLASH_ATTN, "alibi_slopes", alibi_slopes, FLOATS)
        bias = biases.alibi(alibi_slopes, anchor="lower_right")
        if left is None and right == 0:
            notes.append("FlashAttention-2 adds +slope * j here: its log-sum-exp is higher by slope * (i + S - L).")
    mask = band(left, right, "lower_right")
    if left is not None and right is None:
        notes.append("FlashAttention-2 hides the keys behind i + 2 S - L, which are some where L > S + 1.")
    if chunk:
        mask = both(mask, masks.chunked(chunk, anchor="lower_right"))
        if right != 0:
            notes.append("Where L > S, FlashAttention-3 leaves open which chunk a query before the first key is in.")
    if mask is not None:
        notes.append("The log-sum-exp of a row without keys is +inf in FlashAttention-2, -inf in FlashAttention-3.")
    if learnable_sink is not None:
        check_array(FLASH_ATTN, "learnable_sink", learnable_sink, FLOATS)
    return Convention(
        gather(
            mask=mask,
            bias=bias,
            scale=scale_of(FLASH_ATTN, "softmax_scale", softmax_scale),
            softcap=cap if cap > 0 else None,
            sinks=learnable_sink,
            descale=None if all(x is None for x in factors) else tuple(factors),
        ),
        layout="blhd",
        notes=tuple(notes),
    )


def _factor(name: str, x: Array | None) -> Array | None:
    """Factors (B, Hk) as refattn's (B, Hk, 1)."""
    if x is None:
        return None
    check_array(FLASH_ATTN, name, x, FLOATS)
    if len(x.shape) != 2:
        raise ValueError(f"{FLASH_ATTN}: {name} must have shape (B, Hk); got {tuple(x.shape)}.")
    return x[..., None]


def _sides(window_size: object) -> tuple[int | None, int | None]:
    """The two sides of a window."""
    if not isinstance(window_size, tuple | list) or len(window_size) != 2:
        raise TypeError(f"{FLASH_ATTN}: window_size must be a pair (left, right); got {window_size!r}.")
    left, right = (reach_of(FLASH_ATTN, f"window_size[{n}]", x) for n, x in enumerate(window_size))
    return left, right
