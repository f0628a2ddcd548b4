"""MLX's mx.fast.scaled_dot_product_attention."""

from __future__ import annotations

from typing import Any

from refattn import masks
from refattn._core.arrays import FLOATS, Array
from refattn._core.checks import check_array
from refattn.conventions.record import Convention, gather, mask_or_bias, number

MLX = "conventions.mlx"


def mlx(*, scale: float, mask: str | Array | None = None, sinks: Array | None = None) -> Convention:
    """Call of ``mx.fast.scaled_dot_product_attention``, in refattn's arguments.

    Parameters
    ----------
    scale : float
        Factor on the scores; MLX has no default.
    mask : {"causal"} or array of bool or float, broadcastable to (..., H, L, S), optional
        "causal" has its diagonal in the lower right corner. Boolean: True where a key takes part. Floating-point: added
        to the scores.
    sinks : array, shape (H,), optional
        One extra logit per head that takes weight and carries no value.

    Returns
    -------
    Convention
        With ``layout="bhld"``. ``empty_row="undefined"``, or "zeros" with `sinks`, which then take all the weight. The
        call returns no log-sum-exp.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For another word than "causal", a mask without axes, or a scale that is not finite.

    Notes
    -----
    A row that a boolean or causal mask leaves without keys is the mean of all values where MLX falls back on its plain
    operations, and zeros in the vector kernel, which skips hidden keys; before September 2025 it could be NaN [2]_. A
    row that a floating-point mask of -inf hides is NaN in the plain operations.

    References
    ----------
    .. [1] ml-explore/mlx: python/src/fast.cpp ("The causal mask uses lower-right alignment"), mlx/fast.cpp (the
       fallback of ``scaled_dot_product_attention``), mlx/backend/metal/kernels/sdpa_vector.h.
    .. [2] ml-explore/mlx issue 2395, pull request 2608.

    Examples
    --------
    >>> import refattn as ra
    >>> ra.conventions.mlx(scale=0.125, mask="causal").arguments
    {'mask': masks.causal(anchor='lower_right'), 'scale': 0.125}
    """
    keep: masks.Mask | None
    if isinstance(mask, str):
        if mask != "causal":
            raise ValueError(f"{MLX}: mask must be 'causal', an array or None; got {mask!r}.")
        keep, bias = masks.causal(anchor="lower_right"), None
    else:
        keep, bias = mask_or_bias(MLX, "mask", _two_axes(mask))
    if sinks is not None:
        check_array(MLX, "sinks", sinks, FLOATS)
    return Convention(
        gather(mask=keep, bias=bias, scale=number(MLX, "scale", scale), sinks=sinks),
        layout="bhld",
        empty_row="undefined" if sinks is None else "zeros",
        softcap_order="none",
    )


def _two_axes(mask: Any) -> Any:
    """A mask (S,), which MLX broadcasts over the queries, with the axis of the queries."""
    return mask[None, ...] if getattr(mask, "ndim", None) == 1 else mask
