"""PyTorch's scaled_dot_product_attention."""

from __future__ import annotations

from typing import Any

from refattn import masks
from refattn._core.arrays import Array
from refattn._core.checks import check_flag
from refattn._core.choice import ConventionError
from refattn.conventions.record import Convention, gather, mask_or_bias, refuse_dropout, scale_of

TORCH_SDPA = "conventions.torch_sdpa"


def torch_sdpa(
    *,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Convention:
    """Call of ``torch.nn.functional.scaled_dot_product_attention``, in refattn's arguments.

    Parameters
    ----------
    attn_mask : array of bool or float, broadcastable to (..., H, L, S), optional
        Boolean: True where a key takes part. Floating-point: added to the scores. A
        ``torch.nn.attention.bias.CausalBias`` becomes the causal mask that it names.
    dropout_p : float, default 0.0
        Must be 0: PyTorch applies it whenever it is not, in training or not.
    is_causal : bool, default False
        Whether query i sees only keys j <= i, from the upper left corner, for every L and S.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    enable_gqa : bool, default False
        Whether key heads are shared: query head h reads key head h // (H // Hk), as in refattn. Without it PyTorch
        takes as many key heads as query heads only, or one.

    Returns
    -------
    Convention
        With ``layout="bhld"``, ``lse_base="e"`` and ``empty_row="zeros"``.

    Raises
    ------
    ConventionError
        For dropout, and for `attn_mask` beside `is_causal`: PyTorch documents an error, its math backend raises it, and
        its CPU flash backend (2.13) applies both.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For a mask of fewer than two axes, which PyTorch refuses too, or a scale that is not finite.

    Notes
    -----
    A boolean mask of PyTorch's ``nn.MultiheadAttention`` is the other way round: True there hides a key.

    The log-sum-exp that the backends return (``torch.ops.aten._scaled_dot_product_*``) is natural.

    References
    ----------
    .. [1] PyTorch documentation, "torch.nn.functional.scaled_dot_product_attention": ``tril(diagonal=0)`` for
       ``is_causal``, ``repeat_interleave`` for ``enable_gqa``.
    .. [2] pytorch/pytorch pull requests 131060 and 133882: rows without keys are 0, NaN before.

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.torch_sdpa(is_causal=True, scale=0.5)
    >>> call.arguments
    {'mask': masks.causal(anchor='upper_left'), 'scale': 0.5}
    >>> call.layout, call.lse_base, call.empty_row
    ('bhld', 'e', 'zeros')
    """
    refuse_dropout(TORCH_SDPA, dropout_p)
    causal = check_flag(TORCH_SDPA, "is_causal", is_causal)
    notes = ["Rows without keys were NaN on the math backend before PyTorch 2.5."]
    if not check_flag(TORCH_SDPA, "enable_gqa", enable_gqa):
        notes.append(
            "enable_gqa=False: with fewer key heads than query heads PyTorch refuses the call, or broadcasts one."
        )
    if causal and attn_mask is not None:
        raise ConventionError(
            f"{TORCH_SDPA}: attn_mask and is_causal=True must not be given together: some backends refuse the call, "
            "others apply both. Pass attn_mask & the causal mask as one attn_mask."
        )
    mask, bias = _mask(attn_mask)
    if causal:
        mask = masks.causal(anchor="upper_left")
    return Convention(
        gather(mask=mask, bias=bias, scale=scale_of(TORCH_SDPA, "scale", scale)),
        layout="bhld",
        notes=tuple(notes),
        softcap_order="none",
    )


def _mask(attn_mask: Any) -> tuple[masks.Mask | None, Array | None]:
    """The mask or the bias that attn_mask is."""
    if type(attn_mask).__name__ == "CausalBias":
        return masks.causal(anchor=attn_mask.variant.name.lower()), None
    return mask_or_bias(TORCH_SDPA, "attn_mask", attn_mask)
