"""What bugs of mask geometry look for in a problem, and the cells that they see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from refattn.masks import Mask
from refattn.masks import window as window_mask
from refattn.masks.bands import Band
from refattn.masks.segments import Prefix
from refattn.masks.tree import Tree
from refattn.testing.bugs.engine import Floats, Head, Ints, State
from refattn.testing.bugs.mask_edits import all_bands, anchors, bands, edited, offset, parts
from refattn.testing.bugs.problems import Problem
from refattn.testing.bugs.record import ragged_tiles, tile_sizes


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


def window_before(x: Head) -> int:
    """Width of the narrowest window."""
    return min(band.left for band in bands(x.mask) if band.left is not None)


def prefix_from_start(name: str, x: Head) -> Floats:
    """Keys P - W .. P - 1 read from 0 .. W - 1."""
    P, W = x.S - x.L, window_before(x)
    at, from_start = np.arange(x.S), x.right(name)
    cached_keys = (at >= P - W) & (at < P) & (P > W)
    return np.asarray(from_start[np.where(cached_keys, at - (P - W), at)])


def clipped_stride(x: Head) -> Any:
    """Cells of the whole mask, of row stride S, read with row stride W + T."""
    P, W = x.S - x.L, window_before(x)
    width = W + x.L
    tree = next(part for part in parts(x.mask) if isinstance(part, Tree))
    whole = tree.dense(x.L, x.S).reshape(-1)
    keep = np.zeros((len(x.rows), x.S), np.bool_)
    keep[:, P - W :] = whole[x.rows[:, None] * width + np.arange(width)]
    return keep


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
    m, l, _ = x.right("state")
    first = x.of(rows=x.rows // x.choice * x.choice).keep.argmax(axis=-1)
    start = first // x.choice * x.choice
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
    tile, at = x.choice, np.arange(x.S)
    anchor = next(part.anchor for part in parts(x.mask) if isinstance(part, Band | Prefix))
    last = np.minimum((x.rows // tile + 1) * tile, x.L) - 1 + offset(Band(None, 0, anchor, ""), x.L, x.S)
    return x.right("keep") & (at // tile * tile <= last[:, None])


def bidirectional(p: Problem) -> bool:
    """A diagonal, and keys behind it that are seen all the same."""
    found = list(parts(p.mask))
    return any(isinstance(part, Prefix) for part in found) or (diagonal(p) and len(found) > 1)


def padding(x: Head, rows: Any = True) -> State:
    """State of the keys S .. ceil(S / tile) tile - 1, of score 0 and value 0, in some rows."""
    count = np.where(rows, -x.S % x.choice, 0.0) * np.ones(len(x.rows))
    m = np.where(count > 0, 0.0, -math.inf)
    return State(m, count, np.zeros((len(x.rows), x.problem.dims[1])))


def past_diagonal(x: Head) -> Any:
    """Rows whose whole tile stands behind the padding."""
    return x.rows // x.choice * x.choice + first_offset(x) >= -(-x.S // x.choice) * x.choice


def reaches_past(p: Problem) -> Any:
    """Sizes of tiles with rows behind the padding."""
    sizes = [n for n in ragged_tiles(p) if n < p.lengths[0]]
    heads = [Head(p, b, 0, np.arange(int(n)), None, 0) for b, n in enumerate(p.sequences[0])]
    for size in sizes:
        for x in heads:
            x.choice = size
            if x.S % size and past_diagonal(x).any():
                yield size
                break


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


def mask_of_heads(p: Problem) -> bool:
    """As many heads as batch entries, and a mask given for each head."""
    lead = () if p.mask is None else p.mask.lead
    return len(lead) > 0 and lead[-1] == p.heads[0] == len(p.query) > 1 and set(lead[:-1]) <= {1}


def other_mask_before(p: Problem) -> bool:
    """A call before this one that had a mask of the same lengths."""
    before = p.previous
    return before is not None and before.mask is not None and before.lengths == p.lengths


def earlier_mask(x: Head) -> Mask:
    """The mask of the call before."""
    before = x.problem.previous
    assert before is not None
    assert before.mask is not None
    return before.mask.at(x.index)


def mask_by_entry(x: Head) -> Mask:
    """The mask of the head whose number is that of the batch entry."""
    assert x.problem.mask is not None
    return x.problem.mask.at((*x.index[:-1], x.b))


def bias_of_first_head(x: Head) -> Any:
    """The bias of head 0."""
    assert x.problem.bias is not None
    return x.tile(x.problem.bias.at((*x.index[:-1], 0)))


def clipped_window(p: Problem) -> bool:
    """A window that is shorter than the keys before the first query."""
    return any(0 < (band.left or 0) < p.lengths[1] - p.lengths[0] for band in bands(p.mask))


def skipped_tiles(p: Problem) -> list[int]:
    """Sizes of tiles of which some row has one before its window."""
    return [n for n in tile_sizes(p) if any((first_seen(x) >= n).any() for x in last_rows(p))]
