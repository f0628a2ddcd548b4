"""The public face of exact attention for chosen rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn import biases, masks
from refattn._call import AttentionResult, prepare
from refattn._core.arrays import Array, device, quiet, taken
from refattn._core.checks import check_flag, check_rows
from refattn._core.choice import Capabilities, declare
from refattn._core.tiles import tiles
from refattn.methods.exact import reference
from refattn.methods.exact.capabilities import CAPABILITIES as WHOLE

# 512 rows by 2048 keys of float64 are 8 MiB: a few of them fit into a last-level cache, and BLAS runs at its full rate.
TILE_ROWS, TILE_KEYS = 512, 2048

CAPABILITIES = Capabilities(
    function="attention_rows",
    method=WHOLE.method,
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=("rows", *(name for name in WHOLE.arguments if name != "return_weights")),
    accumulation="float64",
    time="O(S (E + Ev)) a row",
    memory="O(tile)",
    bound=WHOLE.bound,
)


@declare(CAPABILITIES)
@quiet
def attention_rows(
    query: Array,
    key: Array,
    value: Array,
    *,
    rows: Array,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: masks.Mask | Array | None = None,
    dropout_p: float = 0.0,
    descale: tuple[Any, Any, Any] | None = None,
    dtype: object = None,
    return_lse: bool = False,
) -> Array | AttentionResult:
    """Exact softmax attention of chosen rows, in time and memory of those rows alone.

        O[r] = softmax(softcap(scale * Q[r] K^T) + bias[r]) V    for r in rows

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries; everything as in `attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    rows : integer array, shape (R, n)
        One row of output each: its indices along the n axes (..., H, L) of `query`, for example (batch, head, row).
    mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        As in `attention`, as are all arguments that follow.
    bias : Bias or array broadcastable to (..., H, L, S), optional
        Added to the scores.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    softcap : float, optional
        Cap on the scores.
    sinks : array, shape (H,), optional
        One extra logit per head.
    dropout_mask : Mask or boolean array broadcastable to (..., H, L, S), optional
        True where dropout kept the weight.
    dropout_p : float, default 0.0
        Probability with which dropout drops a weight.
    descale : tuple (query, key, value), optional
        Factors of quantised operands.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`.
    return_lse : bool, default False
        Also return the natural log-sum-exp.

    Returns
    -------
    array, shape (R, Ev), or AttentionResult
        The rows in the order asked for; with `return_lse` the named tuple (output, lse, None), lse (R,) in float64.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit and rows outside the query.

    Notes
    -----
    Cost: S (E + Ev) multiply-adds and S exponentials a row; memory O(tile) beyond inputs and outputs: keys and values
    are cast to float64 tile by tile, and masks and biases answer for the tile only. Keys that no chosen row sees are
    not read.

    Numerics: as `attention`, up to the order of float64 summation.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, eq. (1).

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = np.ones((2, 3, 5, 4))
    >>> v = np.arange(30.0).reshape(2, 3, 5, 1)
    >>> ra.attention_rows(q, q, v, rows=[(1, 2, 0), (0, 0, 4)], is_causal=True)
    array([[25.],
           [ 2.]])
    """
    call = prepare(
        "attention_rows", query, key, value, mask=mask, bias=bias, is_causal=is_causal, scale=scale, softcap=softcap,
        sinks=sinks, dropout_mask=dropout_mask, dropout_p=dropout_p, descale=descale, dtype=dtype,
    )  # fmt: skip
    check_flag("attention_rows", "return_lse", return_lse)
    xp = call.xp
    index = check_rows("attention_rows", rows, tuple(query.shape[:-1]))
    heads, of_head = np.unique(index[:, :-1], axis=0, return_inverse=True)
    order = np.argsort(of_head, kind="stable")
    outputs = [xp.zeros((0, value.shape[-1]), dtype=xp.float64, device=device(query))]
    lses = [xp.zeros((0,), dtype=xp.float64, device=device(query))]
    for number, head in enumerate(heads):
        slab = call.slab(tuple(head.tolist()))
        of_slab = index[of_head == number, -1]
        for part in tiles(len(of_slab), TILE_ROWS):
            positions = of_slab[part]
            Q = slab.query.take(positions)
            O, lse = reference.attention_rows(
                Q, slab.key, slab.value, rows=positions, score=slab.score, tile_k=TILE_KEYS, xp=xp
            )
            outputs.append(O)
            lses.append(lse)
    back = np.argsort(order)
    output = call.rounded(taken(xp.concat(outputs), back, -2, xp))
    return AttentionResult(output, taken(xp.concat(lses), back, -1, xp)) if return_lse else output
