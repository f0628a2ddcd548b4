"""Memory-efficient attention of xFormers, and the classes of its attn_bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn import masks
from refattn._core.arrays import Array
from refattn._core.checks import check_integer
from refattn._core.choice import ConventionError
from refattn.conventions.record import Convention, added, band, gather, integers_of, refuse_dropout, scale_of

XFORMERS = "conventions.xformers"


class Kind(NamedTuple):
    """A class of attn_bias: where its diagonal lies, which window it has, and how keys are laid out."""

    anchor: str | None = None
    causal: bool = False
    window: str | None = None
    blocks: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments that the class is made from."""
        windows = {None: (), "size": ("window_size",), "sides": ("window_left", "window_right")}
        blocks = {None: (), "plain": ("q_seqlen",), "padded": ("q_seqlen", "kv_seqlen", "kv_padding")}
        return (*windows[self.window], *blocks[self.blocks])


LEFT, RIGHT = "upper_left", "lower_right"
KINDS = {
    "LowerTriangularMask": Kind(LEFT, True),
    "LowerTriangularMaskWithTensorBias": Kind(LEFT, True),
    "LowerTriangularFromBottomRightMask": Kind(RIGHT, True),
    "LowerTriangularFromBottomRightLocalAttentionMask": Kind(RIGHT, True, "size"),
    "LocalAttentionFromBottomRightMask": Kind(RIGHT, False, "sides"),
    "BlockDiagonalMask": Kind(blocks="plain"),
    "BlockDiagonalCausalMask": Kind(LEFT, True, blocks="plain"),
    "BlockDiagonalCausalFromBottomRightMask": Kind(RIGHT, True, blocks="plain"),
    "BlockDiagonalCausalLocalAttentionMask": Kind(LEFT, True, "size", "plain"),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": Kind(RIGHT, True, "size", "plain"),
    "BlockDiagonalPaddedKeysMask": Kind(blocks="padded"),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": Kind(RIGHT, True, blocks="padded"),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": Kind(RIGHT, True, "size", "padded"),
    "BlockDiagonalLocalAttentionPaddedKeysMask": Kind(RIGHT, False, "sides", "padded"),
}


def xformers(
    *,
    attn_bias: str | Array | None = None,
    bias: Array | None = None,
    window_size: int | None = None,
    window_left: int | None = None,
    window_right: int | None = None,
    q_seqlen: Sequence[int] | Array | None = None,
    kv_seqlen: Sequence[int] | Array | None = None,
    kv_padding: int | None = None,
    p: float = 0.0,
    scale: float | None = None,
) -> Convention:
    """Call of ``xformers.ops.memory_efficient_attention``, in refattn's arguments.

    Parameters
    ----------
    attn_bias : str or array, broadcastable to (..., H, L, S), optional
        An array is added to the scores. A string is the name of a class of ``xformers.ops.fmha.attn_bias``; what it is
        made from are the next arguments.
    bias : array, broadcastable to (..., H, L, S), optional
        The tensor of "LowerTriangularMaskWithTensorBias".
    window_size : int, optional
        Keys that a query sees, its own among them, of the "...LocalAttention..." classes that are causal.
    window_left, window_right : int, optional
        Keys before and behind the one that the query stands on, which is in, of the two that are not.
    q_seqlen, kv_seqlen : sequence of int, optional
        Queries and keys in each block of the "BlockDiagonal..." classes; the blocks lie one after the other in arrays
        of one batch entry. `kv_seqlen` defaults to `q_seqlen`.
    kv_padding : int, optional
        Keys for which each block of the "...PaddedKeys..." classes has room; those behind `kv_seqlen` are hidden.
    p : float, default 0.0
        Dropout; must be 0.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).

    Returns
    -------
    Convention
        With ``layout="blhd"``; of five axes (B, L, G, H, E) the two of the heads are one here. ``lse_base="e"`` and
        ``empty_row="undefined"``: the code that xFormers documents gives NaN, some of its operators give zeros.

    Raises
    ------
    ConventionError
        For dropout, and for the classes of paged and of gappy keys, whose keys must be gathered first.
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For an unknown class, for arguments that it is not made from or lacks, and for blocks that xFormers refuses:
        more queries than keys at the lower right diagonal, or more than keys and window together at the upper left.

    Notes
    -----
    "LowerTriangularMask" has its diagonal in the upper left corner, "...FromBottomRight..." in the lower right; blocks
    have theirs each in their own corner. `window_size` counts the query's own key, `window_left` does not.

    References
    ----------
    .. [1] facebookresearch/xformers: xformers/ops/fmha/attn_bias.py (``materialize`` of each class) and
       xformers/ops/fmha/__init__.py ("Equivalent pytorch code").
    .. [2] facebookresearch/xformers issue 923 (how the window counts).

    Examples
    --------
    >>> import refattn as ra
    >>> call = ra.conventions.xformers(
    ...     attn_bias="BlockDiagonalCausalFromBottomRightMask", q_seqlen=[1, 2], kv_seqlen=[2, 3]
    ... )
    >>> print(call.arguments["mask"].draw(3, 5))
      01234
    0 ##...
    1 ..##.
    2 ..###
    """
    refuse_dropout(XFORMERS, p, name="p")
    given = {
        "window_size": window_size,
        "window_left": window_left,
        "window_right": window_right,
        "q_seqlen": q_seqlen,
        "kv_seqlen": kv_seqlen,
        "kv_padding": kv_padding,
        "bias": bias,
    }
    if isinstance(attn_bias, str):
        mask = _mask(attn_bias, given)
    else:
        bias, mask = added(XFORMERS, "attn_bias", attn_bias), None
        _check_unused("attn_bias of another kind than a class", given, ())
    return Convention(
        gather(mask=mask, bias=bias, scale=scale_of(XFORMERS, "scale", scale)),
        layout="blhd",
        empty_row="undefined",
        softcap_order="none",
    )


def _mask(name: str, given: dict[str, object]) -> masks.Mask | None:
    """The mask that a class makes."""
    if name.startswith("Paged") or "Gappy" in name:
        raise ConventionError(
            f"{XFORMERS}: attn_bias={name!r} reads keys that do not lie one after the other and cannot be expressed. "
            "Gather the keys of each block and pass the class without pages and gaps."
        )
    if name not in KINDS:
        raise ValueError(f"{XFORMERS}: attn_bias must be one of {', '.join(KINDS)}; got {name!r}.")
    kind = KINDS[name]
    with_bias = ("bias",) if name.endswith("WithTensorBias") else ()
    optional = ("kv_seqlen",) if kind.blocks == "plain" else ()
    _check_unused(f"attn_bias={name!r}", given, (*kind.needs, *with_bias, *optional))
    for needed in (*kind.needs, *with_bias):
        if given[needed] is None:
            raise ValueError(f"{XFORMERS}: {needed} must be given with attn_bias={name!r}; got None.")
    if with_bias:
        added(XFORMERS, "bias", given["bias"])
    left, right = _window(kind, given)
    inside = band(left, right, kind.anchor)
    if kind.blocks is None:
        return inside
    queries = integers_of(XFORMERS, "q_seqlen", given["q_seqlen"])
    keys = queries if given["kv_seqlen"] is None else integers_of(XFORMERS, "kv_seqlen", given["kv_seqlen"])
    room = _room(kind, queries, keys, given)
    _check_rows(name, kind, queries, keys, left)
    return masks.documents(_ids(keys, room), _ids(queries, queries), inside=inside)


def _check_unused(of: str, given: dict[str, object], used: tuple[str, ...]) -> None:
    """Refuse arguments that nothing reads."""
    for name, x in given.items():
        if x is not None and name not in used:
            raise ValueError(f"{XFORMERS}: {name} must not be given with {of}; got {type(x).__name__}.")


def _window(kind: Kind, given: dict[str, object]) -> tuple[int | None, int | None]:
    """Keys before and behind the diagonal one."""
    if kind.window == "sides":
        before, behind = (check_integer(XFORMERS, name, given[name]) for name in ("window_left", "window_right"))
        return before, behind
    left = None if kind.window is None else check_integer(XFORMERS, "window_size", given["window_size"], least=1) - 1
    return left, 0 if kind.causal else None


def _room(kind: Kind, queries: list[int], keys: list[int], given: dict[str, object]) -> list[int]:
    """Keys that each block takes up, hidden ones among them."""
    if len(queries) != len(keys):
        raise ValueError(
            f"{XFORMERS}: q_seqlen and kv_seqlen must have one length for each block; got {len(queries)} and "
            f"{len(keys)}."
        )
    if kind.blocks == "plain":
        return keys
    padding = check_integer(XFORMERS, "kv_padding", given["kv_padding"])
    if max(keys, default=0) > padding:
        raise ValueError(f"{XFORMERS}: kv_seqlen must be at most kv_padding={padding}; got {max(keys)}.")
    return [padding] * len(keys)


def _check_rows(name: str, kind: Kind, queries: list[int], keys: list[int], left: int | None) -> None:
    """Refuse the blocks that the class itself refuses, for some of their queries would see no key."""
    if kind.blocks != "plain" or not kind.causal:
        return
    for n, (L, S) in enumerate(zip(queries, keys, strict=True)):
        most = S if kind.anchor == RIGHT else L if left is None else S + left
        if most < L:
            raise ValueError(
                f"{XFORMERS}: q_seqlen[{n}] must be at most {most} with attn_bias={name!r}, for kv_seqlen[{n}]={S}; "
                f"got {L}."
            )


def _ids(lengths: list[int], room: list[int]) -> npt.NDArray[np.int64]:
    """The block that each token belongs to; -1 behind a block's length."""
    ids = [[n] * used + [-1] * (size - used) for n, (used, size) in enumerate(zip(lengths, room, strict=True))]
    return np.array([x for block in ids for x in block], dtype=np.int64)
