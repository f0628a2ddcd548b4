"""What bugs of mask geometry look for in a problem, and the cells that they see."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.masks import Mask
from refattn.masks import window as window_mask
from refattn.masks.bands import Band
from refattn.masks.families import Dense
from refattn.masks.segments import Prefix
from refattn.masks.tree import Tree
from refattn.testing.bugs.engine import Floats, Head, Ints, State
from refattn.testing.bugs.mask_edits import all_bands, anchors, bands, cut, edited, offset, parts, replaced
from refattn.testing.bugs.problems import PADDED, SIZES, Problem
from refattn.testing.bugs.record import several_keys, tile_pairs


def cornered(p: Problem) -> bool:
    """A diagonal that starts in a corner."""
    return any(anchor is None or isinstance(anchor, str) for anchor in anchors(p.mask))


def cached(p: Problem) -> bool:
    """A diagonal that starts at a length."""
    return any(isinstance(anchor, int | np.ndarray) for anchor in anchors(p.mask))


def causal(p: Problem) -> bool:
    """Keys behind the query are masked."""
    return any(band.right is not None for band in all_bands(p.mask))


def diagonal(p: Problem) -> bool:
    """Keys behind the query are masked, by the place among all keys."""
    return any(band.right is not None for band in bands(p.mask))


def windowed(p: Problem) -> bool:
    """Keys far before the query are masked."""
    return any(band.left is not None for band in all_bands(p.mask))


def first_offset(x: Head) -> int:
    """Key that query 0 stands on, by the first diagonal."""
    return offset(bands(x.mask)[0], x.L, x.S)


def shift_window(p: Problem) -> Any:
    """Left ends and right ends of windows, by one key."""
    ends = ("left", "right")
    return [end for end in ends if any(getattr(band, end) is not None for band in all_bands(p.mask))]


def narrowest(p: Problem) -> int:
    """Keys before the diagonal in the narrowest window."""
    return min(band.left for band in bands(p.mask) if band.left is not None)


def gathers(p: Problem) -> Iterator[tuple[str, int]]:
    """What is read from the start of the cache, and the keys of a window, its diagonal one counted or not."""
    P, W = p.lengths[1] - p.lengths[0], narrowest(p)
    return itertools.product(("cached keys", "all keys"), [n for n in (W, W + 1) if n < P])


def gathered(name: str, x: Head) -> Floats:
    """Keys P - W .. P - 1, or all from P - W on, read from key 0 on."""
    which, W = x.choice
    at, P = np.arange(x.S), x.S - x.L
    shift = max(0, P - W)
    moved = at >= shift if which == "all keys" else (at >= shift) & (at < P)
    return np.asarray(x.right(name)[np.where(moved, at - shift, at)])


def clipped_stride(x: Head) -> Any:
    """Cells of the whole mask, of row stride S, read with row stride W + T."""
    P, W = x.S - x.L, narrowest(x.problem)
    width = W + x.L
    tree = next(part for part in parts(x.mask) if isinstance(part, Tree))
    whole = tree.dense(x.L, x.S).reshape(-1)
    keep = np.zeros((len(x.rows), x.S), np.bool_)
    keep[:, P - W :] = whole[x.rows[:, None] * width + np.arange(width)]
    return keep


def dense(p: Problem) -> list[Dense]:
    """The arrays of cells in a mask."""
    return [part for part in parts(p.mask) if isinstance(part, Dense)]


def strides(p: Problem) -> Iterator[int | str]:
    """Row strides that an array of cells may be read with: multiples that S is padded to, and other lengths."""
    L, S = p.lengths
    if any(part.cells.shape[-2] > 1 for part in dense(p)):
        yield from (n for n in dict.fromkeys(-(-S // n) * n for n in PADDED) if n != S)
        yield from (n for n in (S - 1, S + 1, L) if n not in (0, S))
        yield from ["each sequence's own length"] * bool(np.any(p.sequences[1] != S))


def stride(x: Head) -> int:
    """The row stride that was chosen."""
    return x.S if isinstance(x.choice, str) else int(x.choice)


def other_stride(x: Head) -> Any:
    """Cells m[i stride + j] of arrays of row stride S; those past a head's own are masked."""
    L, S = x.problem.lengths

    def strided(part: Mask) -> Mask:
        if not isinstance(part, Dense):
            return part
        cells = np.broadcast_to(part.cells, (L, S)).reshape(-1)
        at = np.arange(x.L)[:, None] * stride(x) + np.arange(x.S)
        return Dense((at < cells.size) & cells[np.minimum(at, cells.size - 1)])

    assert x.problem.mask is not None
    keep = replaced(x.problem.mask.at(x.index), strided)
    assert keep is not None
    return x.tile(keep)


def past_cells(x: Head) -> Floats:
    """NaN in rows that reach past their head's cells, where any cells may lie."""
    L, S = x.problem.lengths
    return np.where((x.rows * stride(x) + x.S > L * S)[:, None], math.nan, x.right("output"))


def window_by_row(x: Head) -> Mask:
    """The tree's mask with a window that counts rows."""
    tree = next(part for part in parts(x.right("mask")) if isinstance(part, Tree))
    assert x.problem.tree_window is not None
    return tree & window_mask(x.problem.tree_window - 1, 0, anchor="lower_right")


def floored_bound(x: Head) -> Any:
    """Cells before the bound of the packed tile, of rows i g + m."""
    g, tile = x.problem.group, x.choice
    end = np.minimum(((x.rows * g + x.h % g) // tile + 1) * tile, x.L * g)
    stop = first_offset(x) + end // g
    return x.right("keep") & (np.arange(x.S) < stop[:, None])


def untiled_values(x: Head) -> State:
    """Values of each tile of rows read from key 0 on, though its scores start later."""
    tile_q, tile_k = x.choice
    m, l, _ = x.right("state")
    first = x.of(rows=x.rows // tile_q * tile_q).keep.argmax(axis=-1)
    start = first // tile_k * tile_k
    P, O = x.weights * x.kept, np.zeros((len(x.rows), x.value.shape[1]))
    for shift in np.unique(start):
        rows = start == shift
        O[rows] = P[rows][:, shift:] @ x.value[: x.S - shift]
    return State(m, l, O)


def first_seen(x: Head) -> Ints:
    """First key that each row sees; S where it sees none."""
    keep = x.keep
    return np.where(keep.any(axis=-1), keep.argmax(axis=-1), x.S)


def last_rows(p: Problem) -> Iterator[Head]:
    """The last row of each head."""
    for b, h in np.ndindex(p.query.shape[:2]):
        if (L := int(p.sequences[0][b])) > 0:
            yield Head(p, b, h, np.asarray([L - 1]))


def freed_page(x: Head) -> Floats:
    """NaN in rows that have a whole tile of keys before their window."""
    return np.where(first_seen(x)[:, None] >= x.choice, math.nan, x.right("output"))


def causal_loop(x: Head) -> Any:
    """Cells of the key tiles that start at or before the last diagonal key of the tile of rows."""
    (tile_q, tile_k), at = x.choice, np.arange(x.S)
    anchor = next(part.anchor for part in parts(x.mask) if isinstance(part, Band | Prefix))
    last = np.minimum((x.rows // tile_q + 1) * tile_q, x.L) - 1 + offset(Band(None, 0, anchor, ""), x.L, x.S)
    return x.right("keep") & (at // tile_k * tile_k <= last[:, None])


def bidirectional(p: Problem) -> bool:
    """A diagonal, and keys behind it that are seen all the same."""
    found = list(parts(p.mask))
    return any(isinstance(part, Prefix) for part in found) or (diagonal(p) and len(found) > 1)


def padding(x: Head, count: Any) -> State:
    """State of so many keys of score 0 and value 0 in each row."""
    n = np.broadcast_to(np.asarray(count, np.float64), len(x.rows))
    return State(np.where(n > 0, 0.0, -math.inf), n, np.zeros((len(x.rows), x.problem.dims[1])))


def last_tile(x: Head) -> State:
    """State of the keys that fill the last tile."""
    return padding(x, -x.S % x.choice)


def past_keys(x: Head) -> Ints:
    """Keys behind the last one in tiles that end at or before the diagonal of a tile's first row."""
    (tile_q, tile_k), end = x.choice
    stop = (x.rows // tile_q * tile_q + first_offset(x) + 1) // tile_k * tile_k
    most = -(-x.S // tile_k) * tile_k
    ends = stop if end == "the diagonal" else np.where(stop >= most, most, 0)
    return np.asarray(np.maximum(ends - x.S, 0), dtype=np.int64)


def reaches_past(p: Problem) -> Iterator[tuple[tuple[int, ...], str]]:
    """Sizes of tiles with keys behind the last one before the diagonal, and where the loop over them ends."""
    heads = [Head(p, b, 0, np.arange(int(n)), None, 0) for b, n in enumerate(p.sequences[0])]
    for choice in itertools.product(tile_pairs(p, SIZES[-1]), ("the last key's tile", "the diagonal")):
        for x in heads:
            x.choice = choice
        if any(past_keys(x).any() for x in heads):
            yield choice


def folded(x: Head) -> Any:
    """Cells of the positions i g + m."""
    g = x.problem.group
    fixed = edited(x.mask, lambda band: replace(band, anchor=offset(band, x.L, x.S)))
    assert fixed is not None
    rows = x.rows * g + x.h % g
    return np.broadcast_to(fixed.tile(rows, slice(0, x.S), x.L * g, x.S, xp=np), (len(rows), x.S))


def only_bands(p: Problem) -> bool:
    """A mask of diagonals and windows alone, over heads that share keys."""
    found = list(parts(p.mask))
    return p.group > 1 and len(found) > 0 and all(isinstance(part, Band) for part in found)


def has_tree_window(p: Problem) -> bool:
    """A tree behind a prefix that is longer than a window beside it."""
    return clipped_window(p) and any(isinstance(part, Tree) for part in parts(p.mask))


def units(p: Problem) -> tuple[int, int]:
    """Batch entries and heads for which a mask has cells of their own."""
    lead = () if p.mask is None else p.mask.lead
    return math.prod(lead[:-1]), lead[-1] if lead else 1


def other_unit(x: Head) -> int:
    """The unit of the mask that is read for a head, of axes that are read as (B,) or as (H, B)."""
    return x.b if x.choice == "(B, L, S)" else x.h * len(x.problem.query) + x.b


def ranks(p: Problem) -> Iterator[str]:
    """Shapes that a mask of several heads may be read as, of as many units or more."""
    (n, heads), (B, H) = units(p), p.query.shape[:2]
    if n in (1, B) and heads == H > 1:
        yield from ["(B, L, S)"] * (B <= n * heads)
        yield from ["(H, B, L, S)"] * (n == B > 1)


def mask_of_unit(x: Head) -> Mask:
    """The mask's cells of another batch entry and head."""
    assert x.problem.mask is not None
    n, heads = units(x.problem)
    entry, head = divmod(other_unit(x), heads)
    lead = np.unravel_index(entry if n > 1 else 0, x.problem.batch) if x.problem.batch else ()
    return x.problem.mask.at((*(int(at) for at in lead), head))


def earlier_masks(p: Problem) -> list[str]:
    """Batch entries of an earlier call's mask that may be applied: each one's own, or the first."""
    alike = isinstance(p.masked, Dense) and p.masked.cells.shape[-2:] == p.lengths
    n = math.prod(p.masked.lead[:-1]) if alike and p.masked is not None else 0
    return ["each entry's own"] * (n in (1, len(p.query))) + ["the first entry's"] * (n > 0)


def earlier_mask(x: Head) -> Mask | None:
    """The mask of an earlier call."""
    assert x.problem.masked is not None
    index = x.index if x.choice == "each entry's own" else (*(0 for _ in x.index[:-1]), x.h)
    return cut(x.problem.masked.at(index), x.L, x.S)


def bias_of_first_head(x: Head) -> Any:
    """The bias of head 0."""
    assert x.problem.bias is not None
    return x.tile(x.problem.bias.at((*x.index[:-1], 0)))


def clipped_window(p: Problem) -> bool:
    """A window that is shorter than the keys before the first query."""
    return any(0 < (band.left or 0) < p.lengths[1] - p.lengths[0] for band in bands(p.mask))


def skipped_tiles(p: Problem) -> list[int]:
    """Sizes of tiles of which some row has one before its window."""
    return [n for n in several_keys(p) if any((first_seen(x) >= n).any() for x in last_rows(p))]
