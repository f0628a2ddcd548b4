"""What is lost in sums, in the recurrence over tiles and where parts are merged, by known mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from refattn.testing.probes.model import Floats, Model, Split, Tiled
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects.record import SPLITS, TILES, Suspect


def of_numbers(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What is lost on the way."""
    for name in ("bfloat16", "float16", "tf32"):
        bug = "B12" if name == "float16" else None
        yield Suspect(bug, f"scores are stored in {name}", replace(model, scores=name))
        yield Suspect(None, f"query and key are rounded to {name}", replace(model, operands=name))
    for size in TILES:
        for backward in (False, True):
            way = f"tiles of {size} keys" + (", last first" if backward else "")
            for text, output, total in (
                ("neither output nor row sum is rescaled", False, False),
                ("the output is not rescaled", False, True),
                ("the row sum is not rescaled", True, False),
            ):
                tiled = Tiled(size, output, total, backward=backward)
                yield Suspect("B2", f"{text} when the maximum rises ({way})", replace(model, tiled=tiled))
        if size < setting.lengths[1]:
            for stored in ("float16", "bfloat16"):
                name = f"the output is accumulated in {stored} (tiles of {size} keys)"
                bug = "B12" if stored == "float16" else None
                yield Suspect(bug, name, replace(model, tiled=Tiled(size, stored=stored)))
    yield from _of_queries(model)
    # FlashAttention's weights of FP8, which a maximum that lags by 8 binary orders lets grow past the largest number.
    lag, most = 8 * math.log(2), 448 / 256
    for size in TILES:
        for backward in (False, True):
            for whole in (False, True):
                tiled = Tiled(size, lazy=lag, most=most, sum_cut=whole, backward=backward)
                way = f"tiles of {size} keys" + (", last first" if backward else "")
                yield Suspect("B13", f"weights saturate while the maximum lags ({way})", replace(model, tiled=tiled))


def _of_queries(model: Model) -> Iterator[Suspect]:
    """Queries that are rounded after they were multiplied by the scale."""
    for stored in ("bfloat16", "float16", "tf32"):
        name = f"queries times the scale are rounded to {stored}"
        yield Suspect("B15", name, replace(model, prescaled=(stored, 1.0)))
        name = f"queries times scale and log2(e) are rounded to {stored}"
        yield Suspect("B20", name, replace(model, prescaled=(stored, 1 / math.log(2))))


def of_splits(setting: Setting, model: Model) -> Iterator[Suspect]:
    """How parts of the keys are merged."""
    if setting.spec.tables or model.split is not None:
        return
    log2e = 1 / math.log(2)
    for stops in partitions(setting.lengths[1]):
        way = f"{len(stops)} parts of {stops[0]} keys and less"
        yield Suspect(
            "B1",
            f"the row sum is not updated where parts are merged ({way})",
            replace(model, split=Split(stops, kept=True)),
        )
        yield Suspect(
            "F1",
            f"log-sum-exps in base 2 are merged as natural ones ({way})",
            replace(model, split=Split(stops, factor=log2e)),
        )
        for stored in ("bfloat16", "float16"):
            yield Suspect(
                "B17",
                f"outputs of parts are rounded to {stored} before they are merged ({way})",
                replace(model, split=Split(stops, parts=stored)),
            )
            yield Suspect(
                "B19",
                f"log-sum-exps of parts are rounded to {stored} before they are merged ({way})",
                replace(model, split=Split(stops, logs=stored)),
            )
        yield from _dropped(setting, model, stops)


def _dropped(setting: Setting, model: Model, stops: tuple[int, ...]) -> Iterator[Suspect]:
    """The last parts left out, where a reduction goes by several at a time."""
    S = setting.lengths[1]
    for several in (2, 4, 8, 16, 32):
        left = len(stops) // several * several
        # An incomplete last tile alone may be lost without any parts.
        if 0 < left < len(stops) and S - stops[left - 1] >= min(TILES):
            counts = model.counts * (np.arange(S) < stops[left - 1])
            name = f"the last {len(stops) - left} of {len(stops)} parts are dropped: {several} are added at a time"
            yield Suspect("D17", name, replace(model, counts=counts))


def partitions(S: int) -> list[tuple[int, ...]]:
    """Where the parts of S keys end, as tiles are dealt out: as evenly as may be, or a fixed number to each part."""
    found: dict[tuple[int, ...], None] = {}
    for size in TILES:
        count = -(-S // size)
        for parts in (*SPLITS, 5, 6, 7):
            if 1 < parts <= count:
                even = np.cumsum([len(x) for x in np.array_split(np.arange(count), parts)])
                each = -(-count // parts)
                fixed = np.minimum(np.arange(1, -(-count // each) + 1) * each, count)
                for ends in (even, fixed):
                    found[tuple(np.minimum(ends * size, S).tolist())] = None
    return list(found)


def of_rows(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Row sums and outputs that are mixed up among rows."""
    B, H, L = setting.batch, setting.heads[0], setting.lengths[0]

    def neighbours(size: int, shift: int) -> Callable[[Floats, Floats], Floats]:
        def summed(m: Floats, l: Floats) -> Floats:
            tiles = [l[:, start : start + size] for start in range(0, l.shape[1], size)]
            other: Floats = np.concatenate([np.roll(x, shift, axis=1) for x in tiles], axis=1)
            return l + other

        return summed

    for size in dict.fromkeys((*(x for x in TILES if x < L), L)):
        for shift, which in ((-1, "next"), (1, "previous")):
            name = f"the row sum of row i takes in that of the {which} row (tiles of {size} rows)"
            yield Suspect("B11", name, replace(model, row_sum=neighbours(size, shift)))

    def swapped(x: Floats) -> Floats:
        return np.swapaxes(x.reshape(B, H, L, -1), 1, 2).reshape(x.shape)

    def unswapped(x: Floats) -> Floats:
        return np.swapaxes(x.reshape(B, L, H, -1), 1, 2).reshape(x.shape)

    for form, order in (
        (swapped, "(B, L, H, E) as if it were (B, H, L, E)"),
        (unswapped, "(B, H, L, E) as if it were (B, L, H, E)"),
    ):
        yield Suspect("D10", f"the output is written in the order {order}", replace(model, writes=form))
