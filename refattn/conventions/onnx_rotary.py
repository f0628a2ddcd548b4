"""ONNX's RotaryEmbedding, opset 23."""

from __future__ import annotations

from refattn._core.arrays import Array
from refattn._core.checks import check_array, check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import Convention, gather, switch

ROTARY = "conventions.onnx_rotary_embedding"


def onnx_rotary_embedding(
    *,
    opset: int,
    position_ids: Array | None = None,
    interleaved: int | bool = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Convention:
    """Node of ONNX's ``RotaryEmbedding``, in the arguments of `rotary_embedding`.

    Parameters
    ----------
    opset : int
        Opset of the model's default domain, at least 23.
    position_ids : array of int, shape (B, L), optional
        Rows of the caches, which are (P, R/2) with it and (B, L, R/2) without.
    interleaved : {0, 1} or bool, default 0
        Whether a pair is two neighbours, or one feature of each half.
    num_heads : int, default 0
        H, for 3-D inputs and for those alone.
    rotary_embedding_dim : int, default 0
        R, the number of features that are turned; 0: all.

    Returns
    -------
    Convention
        With keyword arguments for `rotary_embedding`, beside the node's ``X``, ``cos_cache`` and ``sin_cache``.
        ``layout="bhld"``, or "blhd" for 3-D inputs, whose last axis is (H, E) with the head outside.

    Raises
    ------
    ConventionError
        For an opset without the operator.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For values without meaning.

    Notes
    -----
    The operator's reference computes in the dtype of its inputs.

    References
    ----------
    .. [1] ONNX, "Operator Schemas: RotaryEmbedding", version 23; onnx/reference/ops/op_rotary_embedding.py.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> call = ra.conventions.onnx_rotary_embedding(opset=23, num_heads=2, position_ids=np.array([[2, 0, 1]]))
    >>> X, cache = np.ones((1, 3, 8)), np.ones((5, 2))
    >>> x = X.reshape(1, 3, 2, 4).swapaxes(1, 2)
    >>> call.layout, ra.rotary_embedding(x, cache, cache, **call.arguments).shape
    ('blhd', (1, 2, 3, 4))
    """
    version = check_integer(ROTARY, "opset", opset, least=1)
    if version < 23:
        raise ConventionError(f"{ROTARY}: opset must be at least 23, the first with RotaryEmbedding; got {version}.")
    if position_ids is not None:
        check_array(ROTARY, "position_ids", position_ids)
    heads = check_integer(ROTARY, "num_heads", num_heads)
    turned = check_integer(ROTARY, "rotary_embedding_dim", rotary_embedding_dim)
    if turned % 2:
        raise ValueError(
            f"{ROTARY}: rotary_embedding_dim must be even, for features are turned in pairs; got {turned}."
        )
    paired = switch(ROTARY, "interleaved", interleaved)
    return Convention(
        gather(positions=position_ids, rotary_dim=turned or None, interleaved=paired or None),
        layout="blhd" if heads else "bhld",
    )
