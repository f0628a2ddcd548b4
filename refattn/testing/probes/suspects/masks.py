"""Who takes part, by known mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from refattn.masks import Mask
from refattn.testing.probes.model import Model
from refattn.testing.probes.setting import Setting, softcap_of
from refattn.testing.probes.suspects.record import TILES, Suspect


def of_mask(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Who takes part."""
    (L, S), counts = setting.lengths, model.counts
    seen = counts > 0

    def taking(keep: Any, bug: str | None, name: str) -> Iterator[Suspect]:
        keep = np.broadcast_to(np.asarray(keep), counts.shape)
        if (keep != seen).any():
            yield Suspect(bug, name, replace(model, counts=keep.astype(np.float64)))

    asked = setting.arguments.get("mask")
    if isinstance(asked, Mask) and L != S:
        for anchor, offset in (("upper_left", 0), ("lower_right", S - L)):
            keep = asked.reanchored(offset).tile(slice(0, L), slice(0, S), L, S, xp=np)
            other = "lower_right" if anchor == "upper_left" else "upper_left"
            if keep.ndim == 2:
                yield from taking(keep, "A1", f"the mask is anchored {anchor}, not {other}")
    given = setting.varied.startswith("mask")
    yield from _of_band(seen, taking, given=given)
    yield from _of_edges(setting, model, seen)
    for earlier in setting.stale:
        for stale in (earlier, earlier[np.arange(len(earlier)) % setting.heads[0]]):
            yield from taking(seen & (stale > 0), "A18", "the mask of an earlier call is applied, which gives none now")
    causal = bool(setting.arguments.get("is_causal"))
    if not any(x.bug == "A9" and x.model.counts.all() for x in _of_band(seen, taking, given=given)):
        yield from taking(True, None, "is_causal is ignored" if causal else "the mask is ignored")
    i, j = np.arange(L)[:, None], np.arange(S)
    if S > L:
        yield from taking(
            seen & (j < L), "D12", f"keys from {L} on are ignored: their number is taken from the queries"
        )
    if not (setting.arguments.get("mask") is not None or causal):
        yield from taking(j <= i + S - L, None, "a causal mask is applied that nothing asks for")
        yield from taking(j <= i, None, "a causal mask, anchored upper_left, is applied that nothing asks for")
        return
    yield from taking(~seen, None, "the mask is inverted: True masks")
    if L == S:
        yield from taking(np.swapaxes(seen, 1, 2), None, "the mask is transposed")
    flat = np.swapaxes(seen, 1, 2).reshape(seen.shape)
    yield from taking(flat, None, "the mask is read in the order (S, L)")
    H = setting.heads[0]
    first = np.repeat(np.arange(setting.batch) * H, H)
    yield from taking(seen[first], None, "the mask of head 0 is applied to all heads")
    yield from taking(seen[np.arange(len(seen)) % H], None, "the mask of batch entry 0 is applied to all entries")
    if setting.batch == H:
        turned = np.swapaxes(seen.reshape(H, H, L, S), 0, 1).reshape(seen.shape)
        yield from taking(turned, "A15", "the mask's head and batch axes change places")
        yield from taking(seen[np.arange(len(seen)) % H * H], "A15", "the mask's head axis is taken for its batch axis")
    cap = softcap_of(setting)
    if cap is not None:
        yield Suspect("C7", "the softcap is applied after the mask", replace(model, masked=-cap))


def _of_band(seen: Any, taking: Callable[..., Iterator[Suspect]], *, given: bool) -> Iterator[Suspect]:
    """Mistakes at the edges of masks whose rows are intervals; `given` as arrays, they can only be ignored as such."""
    S = seen.shape[-1]
    j = np.arange(S)
    first = np.argmax(seen, axis=-1)[..., None]
    stop = (S - np.argmax(seen[..., ::-1], axis=-1) * seen.any(axis=-1))[..., None]
    stop = np.where(seen.any(axis=-1)[..., None], stop, first)
    if ((j >= first) & (j < stop) != seen).any():
        return
    left, right = (first > 0).any(), (stop < S).any()
    some = stop > first
    if left:
        wide = np.where(first > 0, first - 1, first)
        yield from taking(some & (j >= wide) & (j < stop), "A4", "the window is one key too wide on the left")
        behind = np.concatenate([first[:, 1:], first[:, -1:]], axis=1)
        for narrow in (np.where((first > 0) | (behind > 0), first + 1, first), first + 1):
            yield from taking((j >= narrow) & (j < stop), "A4", "the window is one key too narrow on the left")
        yield from taking(
            some & (j < stop), "A9", "the window is ignored on the left" if right else "the window is ignored"
        )
    if right:
        wide = np.where(stop < S, stop + 1, stop)
        side = "the window is one key too {} on the right" if left else "the causal mask {}"
        words = ("wide", "narrow") if left else ("lets in one key behind the diagonal", "masks the diagonal itself")
        bug = "A4" if left else None
        yield from taking(some & (j >= first) & (j < wide), bug, side.format(words[0]))
        for narrow in (stop - 1, np.where(stop < S, stop - 1, stop)):
            yield from taking((j >= first) & (j < narrow), bug, side.format(words[1]))
        if left:
            yield from taking(some & (j >= first), "A9", "the window is ignored on the right")
            if not given:
                yield from taking(True, "A9", "the window is ignored on both sides")


def of_padding(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Keys that are not there, counted in the row sum."""
    S = setting.lengths[1]
    for size in TILES:
        if more := -S % size:
            name = f"{more} keys of score 0 behind the last one are counted: S is padded to a multiple of {size}"
            yield Suspect("A14", name, replace(model, padding=more))


def _of_edges(setting: Setting, model: Model, seen: Any) -> Iterator[Suspect]:
    """Mistakes in how far a tile of queries reaches, where all heads see the same."""
    L, S = setting.lengths
    if setting.varied.startswith("mask") or seen.all() or (seen != seen[:1]).any():
        return
    i, one = np.arange(L), seen[0]
    first = np.argmax(one, axis=-1)
    stop = np.where(one.any(axis=-1), S - np.argmax(one[:, ::-1], axis=-1), first)
    left, right = (first - i)[first > 0], (stop - i)[(stop < S) & (stop > first)]
    starts = None if not len(left) or np.ptp(left) else int(left[0])
    stops = None if not len(right) or np.ptp(right) else int(right[0])

    def changed(keep: Any, bug: str, name: str) -> Iterator[Suspect]:
        # A mistake that leaves most rows empty would pass for any that leaves them unwritten.
        if (keep != one).any() and 2 * keep.any(axis=-1).mean() > one.any(axis=-1).mean():
            counts = np.broadcast_to(keep.astype(np.float64), seen.shape)
            yield Suspect(bug, name, replace(model, counts=counts))

    yield from _of_folds(setting, seen, (starts, stops), changed)
    yield from _of_loops(setting, seen, changed)
    if starts is not None:
        yield from _of_places(setting, model, first)
    if stops is not None:
        for rows in TILES:
            for size in TILES:
                whole = np.maximum(0, (stops + i // rows * rows) // size * size - S)
                if whole.any():
                    name = f"tiles before the diagonal are not masked past the last key (tiles of {rows} by {size})"
                    yield Suspect("A13", name, replace(model, row_sum=partial(_padded, more=whole)))


def _padded(m: Any, l: Any, *, more: Any) -> Any:
    """Row sums with keys of score 0 in them, another number in each row."""
    return l + more[: m.shape[1]] * np.exp(-m)


def _of_folds(
    setting: Setting, seen: Any, edges: tuple[int | None, int | None], changed: Callable[..., Iterator[Suspect]]
) -> Iterator[Suspect]:
    """Query heads of one group that were folded into the rows; `edges` are those of row 0."""
    (L, S), (H, Hk), (starts, stops) = setting.lengths, setting.heads, edges
    i, j, head = np.arange(L)[:, None], np.arange(S), (np.arange(len(seen)) % H)[:, None, None]
    group = H // Hk
    for name, row in (
        ("i * G + h % G", i * group + head % group),
        ("i * H + h", i * H + head),
        ("h * L + i", head * L + i),
    ):
        keep = np.broadcast_to(True, seen.shape)
        keep = keep if starts is None else keep & (j >= row + starts)
        keep = keep if stops is None else keep & (j < row + stops)
        yield from changed(keep, "A17", f"the mask takes the folded row {name} for the place of the query")
    if stops is None or group == 1:
        return
    packed = i * group + head % group
    for size in TILES:
        end = np.minimum((packed // size + 1) * size, L * group)
        keep = seen & (j < stops - 1 + end // group)
        yield from changed(keep, "A8", f"the last key of a tile of {size} packed rows is rounded down")


def _of_loops(setting: Setting, seen: Any, changed: Callable[..., Iterator[Suspect]]) -> Iterator[Suspect]:
    """Tiles that are left out behind the diagonal, though the mask lets them in."""
    L, S = setting.lengths
    i, j = np.arange(L)[:, None], np.arange(S)
    for offset in dict.fromkeys((S - L, 0)):
        if not (seen & (j > i + offset)).any():
            continue
        for rows in TILES:
            end = np.minimum((i // rows + 1) * rows, L) + offset
            for size in (1, *TILES):
                name = f"keys behind the diagonal's tile are left out (tiles of {rows} by {size})"
                yield from changed(seen[0] & (j < -(-end // size) * size), "A12", name)


def _of_places(setting: Setting, model: Model, first: Any) -> Iterator[Suspect]:
    """Keys and values of a window that are read from other places than those of its scores."""
    L, S = setting.lengths
    i, j = np.arange(L), np.arange(S)
    if first[0] > 0:
        moved = np.maximum(0, j - first[0])
        reads = {**model.reads, "key": lambda x: x[:, moved], "value": lambda x: x[:, moved]}
        yield Suspect("A5", "the keys of the window are read from the start of the cache", replace(model, reads=reads))
    for rows in TILES:
        lowest = first[i // rows * rows]
        for size in TILES:
            takes = j + (lowest // size * size)[:, None]
            if (takes != j).any():
                name = f"values are read from the first tile on, scores from the window's (tiles of {rows} by {size})"
                yield Suspect("A10", name, replace(model, takes=np.where(takes < S, takes, -1)))
