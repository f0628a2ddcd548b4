"""JAX's jax.nn.dot_product_attention, on XLA and on cuDNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import masks
from refattn._core.arrays import Array
from refattn._core.checks import check_flag, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import (
    Convention,
    added,
    band,
    boolean,
    both,
    gather,
    lengths_of,
    scale_of,
)

JAX_NN = "conventions.jax_nn"


def jax_nn(
    *,
    bias: Array | None = None,
    mask: Array | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: Array | None = None,
    key_value_seq_lengths: Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Convention:
    """Call of ``jax.nn.dot_product_attention``, in refattn's arguments.

        query i sees key j  iff  mask  and  i - left <= j <= i + right  and, with `is_causal`, j <= i

    Parameters
    ----------
    bias : array, broadcastable to (..., H, L, S), optional
        Added to the scores.
    mask : array of bool, broadcastable to (..., H, L, S), optional
        True where a key takes part.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    is_causal : bool, default False
        Whether query i sees only keys j <= i, from the upper left corner, for every L and S.
    query_seq_lengths, key_value_seq_lengths : array of int, shape (B,), optional
        Queries and keys that are no padding in each batch entry.
    local_window_size : int or (int, int), optional
        (left, right): keys before and behind key i, which is in; an integer is both. The window lies at the upper left
        diagonal, also where L != S.
    implementation : {"xla", "cudnn"}, optional
        None is "xla".
    return_residual : bool, default False
        Whether the log-sum-exp is returned too; no part of what is computed.

    Returns
    -------
    Convention
        With ``layout="blhd"`` and ``lse_base="e"``; the log-sum-exp is (B, L, H). ``empty_row="mean"`` on XLA, where
        hidden scores become a large negative number, the same for all keys; on cuDNN so with a `mask`, else "zeros".

    Raises
    ------
    ConventionError
        For windows that cuDNN does not take: a right side without `is_causal`, or with lengths beside it, and a left
        side alone, which JAX hands on without its right side of 0, so that queries see all later keys [2]_.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For a negative side of the window, a scale that is not finite, or another implementation.

    Notes
    -----
    The rows behind `query_seq_lengths` are zeros, on both. A row whose keys a bias of -inf hides is NaN on XLA.

    Before October 2025 XLA dropped `local_window_size` where nothing else masked [3]_.

    References
    ----------
    .. [1] JAX documentation, "jax.nn.dot_product_attention"; jax/_src/nn/functions.py (``_apply_masks``,
       ``_get_window_mask``) and jax/_src/cudnn/fused_attention_stablehlo.py (``combine_bias_and_mask``) of jax 0.10.2.
    .. [2] jax-ml/jax pull request 39576.
    .. [3] jax-ml/jax issue 32300, pull request 32357.

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.jax_nn(is_causal=True, local_window_size=1)
    >>> print(call.arguments["mask"].draw(3, 5))
      01234
    0 #....
    1 ##...
    2 .##..
    >>> call.layout, call.empty_row
    ('blhd', 'mean')
    """
    if implementation not in (None, "xla", "cudnn"):
        raise ValueError(f"{JAX_NN}: implementation must be 'xla', 'cudnn' or None; got {implementation!r}.")
    check_flag(JAX_NN, "return_residual", return_residual)
    causal = check_flag(JAX_NN, "is_causal", is_causal)
    sides = _sides(local_window_size)
    padded = query_seq_lengths is not None or key_value_seq_lengths is not None
    if implementation == "cudnn" and sides is not None:
        _check_cudnn(sides, causal, padded)
    left, right = (None, None) if sides is None else sides
    given = boolean(JAX_NN, "mask", mask)
    notes = []
    if query_seq_lengths is not None:
        notes.append("The rows behind query_seq_lengths are zeros.")
    if implementation != "cudnn" and sides is not None:
        notes.append("Before October 2025 the window was dropped where nothing else masked.")
    return Convention(
        gather(
            mask=both(
                None if given is None else masks.array(given),
                band(left, 0 if causal else right, "upper_left"),
                _padding(query_seq_lengths, key_value_seq_lengths),
            ),
            bias=added(JAX_NN, "bias", bias),
            scale=scale_of(JAX_NN, "scale", scale),
        ),
        layout="blhd",
        empty_row="zeros" if implementation == "cudnn" and given is None else "mean",
        notes=tuple(notes),
        softcap_order="none",
    )


def _sides(local_window_size: object) -> tuple[int, int] | None:
    """The two sides of a window."""
    if local_window_size is None:
        return None
    pair = local_window_size if isinstance(local_window_size, tuple | list) else (local_window_size,) * 2
    if len(pair) != 2:
        raise TypeError(
            f"{JAX_NN}: local_window_size must be an integer or a pair (left, right); got {local_window_size!r}."
        )
    left, right = (check_integer(JAX_NN, f"local_window_size[{n}]", x) for n, x in enumerate(pair))
    return left, right


def _check_cudnn(sides: tuple[int, int], causal: bool, padded: bool) -> None:
    """Refuse windows that cuDNN refuses, or that JAX hands on to it wrongly."""
    if sides[1] and (padded or not causal):
        raise ConventionError(
            f"{JAX_NN}: local_window_size={sides} has a right side, which implementation='cudnn' takes with is_causal "
            f"and without sequence lengths only. Pass ({sides[0]}, 0)."
        )
    if not causal:
        raise ConventionError(
            f"{JAX_NN}: local_window_size={sides} without is_causal reaches implementation='cudnn' with no right side. "
            "Pass is_causal=True."
        )


def _padding(query: Array | None, key: Array | None) -> masks.Mask | None:
    """The queries and keys of each batch entry that are no padding."""
    rows = None if query is None else lengths_of(JAX_NN, "query_seq_lengths", query)
    if key is not None:
        return masks.lengths(lengths_of(JAX_NN, "key_value_seq_lengths", key), rows)
    if rows is None:
        return None

    def is_no_padding(b: npt.NDArray[np.int64], h: Any, q: Any, kv: Any) -> Any:
        return q < rows[b]

    return masks.from_function(is_no_padding, batch=len(rows))
