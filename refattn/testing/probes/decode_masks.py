"""Who takes part, and how often, read from weights of equal scores that no known mistake accounts for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from refattn.contract.formats import unit
from refattn.testing.explanation import Explanation
from refattn.testing.probes.measured import Flags, Measured
from refattn.testing.probes.model import Floats, Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects.record import TILES
from refattn.testing.probes.suspects.sums import partitions
from refattn.testing.probes.told import Read, explained
from refattn.testing.probes.words import numbers, rows_of, slots

# Weights below this may be 0 in any format.
SMALL = 1e-6
SUMS_WRONG = "weights do not sum to 1"


def read_mask(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Who took part, and how often, from weights of equal scores."""
    got, counts = measured.output, model.counts
    if setting.uneven:
        right = measured.answer(model).output
        found = np.where(got > 0, counts.clip(1.0), np.where(right < SMALL, counts, 0.0))
        masked = tuple(_taking(setting, found, counts))
        effect = f"by up to {np.abs(got - right).max():.2g}"
        return Read(
            masked or (explained("weights are not those of the bias, where query and key are zero", where, effect),)
        )
    least = np.where(got > 0, got, np.inf).min(axis=-1)
    with np.errstate(invalid="ignore"):
        times = np.where(np.isfinite(least)[..., None], got / np.where(np.isfinite(least), least, 1.0)[..., None], 0.0)
    found = np.rint(times)
    near = np.abs(times - found) <= found * (4 * unit(measured.stored.output) + 4 * setting.eps) + 1e-6
    if (got < 0).any() or not near.all():
        low, high = least.min(initial=np.inf), got.max(initial=0.0)
        effect = f"weights of equal scores lie between {low:.4g} and {high:.4g}"
        return Read((explained("keys of equal score get unequal weights", where, effect),))
    moved = _moved(setting, found, counts)
    if moved is not None:
        name, reads = moved
        changed = replace(model, reads={"value": reads})
        if not measured.wrong(changed).any():
            return Read((explained(name, where),), changed, None)
    changed = replace(model, counts=found)
    if (known := _known(setting, found, counts)) is not None and not measured.wrong(changed).any():
        bug, name = known
        applied = None if bug == "F7" else found > 0
        return Read((explained(name, where, bug=bug, strength=1.0),), changed, applied)
    told = [*_taking(setting, found, counts)]
    left = measured.wrong(changed)
    if left.any():
        total = got.sum(axis=-1)
        at = left.any(axis=-1)
        where = rows_of(at, setting.batch, setting.heads[0])
        low, high = (f"{x:.5g}" for x in (total[at].min(), total[at].max()))
        effect = f"they sum to {low}" if low == high else f"they sum to {low} .. {high}"
        told.append(explained(f"{SUMS_WRONG}: the row sum has too much or too little in it", where, effect))
    asked = counts > 0
    applied = found > 0
    return Read(tuple(told), None if left.any() else changed, applied if (applied != asked).any() else None)


def _moved(setting: Setting, found: Floats, counts: Floats) -> tuple[str, Callable[[Floats], Floats]] | None:
    """Values that are read from the place of others, where each key that is missing makes up for one that is double."""
    lost, more = (x.any(axis=(0, 1)) for x in ((found == 0) & (counts > 0), found > np.maximum(counts, 1)))
    many = np.rint(found.max(axis=(0, 1)))[more] - 1
    here, there = np.flatnonzero(lost), np.repeat(np.flatnonzero(more), many.astype(int))
    if not len(here) or len(here) != len(there):
        return None
    places = np.arange(counts.shape[-1])
    places[here] = there
    text = f"values of {numbers('key', here)} are read from {numbers('key', there)}"
    return text, lambda x: x[:, places]


def _taking(setting: Setting, found: Floats, counts: Floats) -> Iterator[Explanation]:
    """Keys that take part where they should not, or too often."""
    both = (found > 0) & (counts > 0)
    kinds: tuple[tuple[Flags, Callable[[bool], str]], ...] = (
        ((found == 0) & (counts > 0), lambda one: f"take{'s' * one} no part"),
        ((found > 0) & (counts == 0), lambda one: f"take{'s' * one} part although masked"),
        (
            both & (found > counts),
            lambda one: f"{'is' if one else 'are'} counted {found[both & (found > counts)].max():g} times",
        ),
    )
    for at, verb in kinds:
        if at.any():
            n, i, j = np.nonzero(at)
            keys, rows = np.unique(j), np.unique(n * at.shape[1] + i)
            of = slots(n, setting.batch, setting.heads[0])
            whole = len(rows) == len(np.unique(n)) * len(np.unique(i)) and len(rows) * len(keys) == at.sum()
            text = f"{numbers('key', keys, at.shape[2])} {verb(len(keys) == 1)}"
            where = f"{of}, {numbers('row', i, at.shape[1])}"
            yield explained(text, where, "" if whole else f"in {at.sum()} cells, not in all of these")


def _known(setting: Setting, found: Floats, counts: Floats) -> tuple[str, str] | None:
    """A known mistake that leaves some of what is seen open: bug and words."""
    seen, asked = found > 0, counts > 0
    if setting.varied.startswith("mask") and (stride := _stride(seen, asked)) is not None:
        return "A6", f"rows of the mask are read {stride} cells apart, not {asked.shape[2]}"
    heads = (seen != asked).any(axis=(1, 2)).reshape(setting.batch, -1)
    some = heads.all(axis=0)
    if asked.all() and some.any() and not some.all() and (heads == some).all():
        part = seen[np.tile(some, setting.batch)]
        ends = {edge for stops in partitions(asked.shape[2]) for edge in (stops[0], stops[-2])}
        keys = part[0, 0]
        edge = int(np.argmax(keys != keys[0]))
        if (part == keys).all() and (np.diff(keys.astype(int)) != 0).sum() == 1 and edge in ends:
            return "F7", f"{'first' if keys[0] else 'last'} part of the keys alone counts: others are not merged"
    return None


def _stride(seen: Flags, asked: Flags) -> int | None:
    """The distance of the rows of a mask as they are read, if the rows that lie within it tell of one alone."""
    N, L, S = asked.shape
    flat, found = asked.reshape(N, -1), []
    for stride in dict.fromkeys(-(-S // size) * size for size in (8, *TILES)):
        rows = np.arange(min(L, (flat.shape[1] - S) // stride + 1))
        if stride != S and len(rows) > 2:
            read = flat[:, rows[:, None] * stride + np.arange(S)]
            if (seen[:, rows] == read).all() and (read != asked[:, rows]).any():
                found.append(stride)
    return found[0] if len(found) == 1 else None
