"""What came back from a probe that no known mistake accounts for, read element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refattn.contract.formats import unit
from refattn.testing.probes import designs
from refattn.testing.probes.decode_masks import read_mask
from refattn.testing.probes.decode_needle import read_needle
from refattn.testing.probes.measured import Flags, Measured
from refattn.testing.probes.model import Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects.record import TILES
from refattn.testing.probes.told import Read, explained
from refattn.testing.probes.words import numbers, rows_of, slots

# Readings of one kind that are written out.
FEW = 3
# Weights below this are those of keys that do not count.
LEAST = 1e-30
# Weights below this may be 0 in any format.
SMALL = 1e-6


def decoded(setting: Setting, measured: Measured, model: Model, wrong: Flags) -> Read:
    """What a wrong measurement shows."""
    rows: Flags = np.logical_or.reduce(wrong, axis=-1)
    where = rows_of(rows, setting.batch, setting.heads[0])
    output = measured.output
    if measured.probe == "far":
        return _far(setting, measured, model, wrong, where)
    if not np.isfinite(output).all():
        return _not_finite(setting, measured, model)
    asked = model.counts.any(axis=-1)
    blank: Flags = rows & ~output.any(axis=-1) & asked
    if blank.any() and measured.probe in ("mask", "needle"):
        where = rows_of(blank, setting.batch, setting.heads[0])
        if (blank == rows).all() and (told := _behind_masked(setting, blank, model)) is not None:
            return Read((explained(told, where, bug="B5", strength=1.0),))
        return Read((explained("the output is zero", where),), last=bool((blank == asked).all()))
    empty: Flags = rows & ~asked & output.any(axis=-1)
    if empty.any() and (empty == rows).all():
        return _of_empty(setting, measured, model, empty)
    if measured.probe != "needle" and _cut_off(measured, model):
        return Read((explained("the output is cut off, not rounded to nearest", where),))
    return READERS[measured.probe](setting, measured, model, wrong, where)


def _of_empty(setting: Setting, measured: Measured, model: Model, empty: Flags) -> Read:
    """Rows that see nothing and hold something."""
    where = rows_of(empty, setting.batch, setting.heads[0])
    value = measured.given.value
    S = setting.lengths[1]
    # The values of the mask's probe are the identity, whose mean is 1/S.
    mean = np.full((len(empty), 1), 1 / S) if value is None else value.mean(axis=1)[model.value_heads]
    reach = 2 * unit(measured.stored.output) + setting.eps
    share = measured.output / np.maximum(mean, 1e-300)[:, None]
    # Of the keys that fill the last tile too, whose values are 0.
    if any((np.abs(share[empty] * (-(-S // size) * size / S) - 1) <= reach).all() for size in (1, *TILES)):
        return Read((explained("rows that may attend to nothing give the mean of the values", where, bug="B6"),))
    # Values that are numbers far from 0 have no mean that is this small or this large.
    least, most = (0.0, 0.0) if value is None else (value.min() * S / (S + max(TILES)), value.max())
    if most > 0 and ((measured.output < least) | (measured.output > most))[empty].all():
        text = "rows that may attend to nothing are not written: they hold what no values give"
        return Read((explained(text, where, bug="E7", strength=1.0),))
    return Read((explained("rows that may attend to nothing give no zeros", where),))


def _behind_masked(setting: Setting, wrong: Flags, model: Model) -> str | None:
    """Whether wrong rows are those that meet a tile of masked keys alone before any other, and in what tiles."""
    seen = model.counts > 0
    first = np.where(seen.any(axis=-1), np.argmax(seen, axis=-1), -1)
    if (first != first[:1]).any() or (wrong != wrong[:1]).any():
        return None
    i = np.arange(first.shape[1])
    for size in TILES:
        for rows in (*TILES, len(i)):
            lowest = np.array([first[0][start : start + rows].min() for start in range(0, len(i), rows)])[i // rows]
            if (wrong[0] == (first[0] >= np.maximum(lowest, 0) // size * size + size)).all():
                return f"rows are lost in which the first tile of {size} keys is masked whole: -inf is taken from -inf"
    return None


def _cut_off(measured: Measured, model: Model) -> bool:
    """Whether all of the output lies within one unit in the last place below what it should be."""
    right = measured.answer(model).output
    u = unit(measured.stored.output)
    small = np.abs(measured.output) <= np.abs(right) * (1 + u / 8)
    near = np.abs(measured.output - right) <= 2.2 * u * np.abs(right) + measured.stored.floor
    return bool((small & near).all())


def _not_finite(setting: Setting, measured: Measured, model: Model) -> Read:
    """NaN and infinities."""
    found = ~np.isfinite(measured.output)
    empty = ~model.counts.any(axis=-1) & (model.sinks is None)
    if empty.any() and (found.any(axis=-1) == empty).all():
        where = rows_of(empty, setting.batch, setting.heads[0])
        return Read((explained("rows that may attend to nothing give NaN", where, bug="B3"),))
    rows: Flags = np.logical_and.reduce(found, axis=-1)
    if measured.probe == "mask" and (told := _behind_masked(setting, rows, model)) is not None:
        where = rows_of(rows, setting.batch, setting.heads[0])
        return Read((explained(told, where, bug="B5", strength=1.0),))
    what = "NaN" if np.isnan(measured.output).any() else "infinity"
    where = rows_of(found.any(axis=-1), setting.batch, setting.heads[0])
    whole = "" if found.any(axis=-1).sum() * found.shape[-1] == found.sum() else "in some columns only"
    return Read((explained(f"{what} on finite inputs", where, whole),), last=bool(found.all()))


def _temperature(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """A factor on all scores, or weights of too little accuracy."""
    answer = measured.answer(model)
    factor = None if measured.fits(model) else _factor(measured, model)
    if factor is not None:
        return Read((explained(f"scores are multiplied by {factor:.4g}", where),))
    error = (
        np.abs(measured.output - answer.output) / answer.magnitude.max(axis=-1, keepdims=True, initial=1e-300)
    ).max()
    text = "weights are less accurate than the contract says, where scores differ"
    return Read((explained(text, where, f"by up to {error:.2g} of themselves"),))


def _factor(measured: Measured, model: Model) -> float | None:
    """The factor on scores that gives a measurement of two scores, if one does."""
    grid = np.arange(model.counts.shape[1])
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, 32).astype(int))]
    part, few = measured.rows(grid), model.rows(grid)

    def share(factor: float) -> float:
        return float((~part.wrong(replace(few, base=model.base * factor), doubt=part.slack.doubt)).mean())

    tried = np.concatenate([np.linspace(0.9, 1.1, 81), np.geomspace(0.05, 20.0, 97)])
    found = np.array([share(float(f)) for f in tried])
    best = tried[found == found.max()]
    if found.max() < 0.5:
        return None
    factor = float(np.median(best))
    for width in (2e-2, 2e-3, 2e-4):
        near = factor * (1 + np.linspace(-width, width, 41))
        found = np.array([share(float(f)) for f in near])
        factor = float(np.mean(near[found == found.max()]))
    changed = replace(model, base=model.base * factor)
    return factor if measured.fits(changed) else None


def _accumulator(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Sums of integers that lost bits."""
    answer = measured.answer(model)
    got, right = measured.output, answer.output
    error = np.abs(got - right)[wrong] / np.maximum(answer.magnitude[wrong], 1e-300)
    text = "sums lose bits that the accumulator should hold"
    return Read((explained(text, where, f"averages of integers are off by up to {error.max():.2g} of themselves"),))


def _score_bits(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Scores near each other that came out equal."""
    return Read((explained("scores near 256 that differ by 1/8 get the wrong weights", where),))


def _means(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Averages of the values that a row sees."""
    return Read((explained("rows are not the means of the values that they see, where all scores are equal", where),))


def _far(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Scores far from 0, by what becomes of rows of each."""
    lost = wrong.any(axis=-1) & (~np.isfinite(measured.output) | (measured.output == 0)).all(axis=-1)
    levels = np.arange(wrong.shape[1]) % len(designs.FAR)
    asked = model.counts.any(axis=-1)
    bad = [bool((lost | ~asked)[:, levels == n].all()) for n in range(len(designs.FAR))]
    if (lost == wrong.any(axis=-1)).all() and wrong.any():
        low, lower, high = bad
        if lower and not high:
            most = designs.FAR[0 if low else 1]
            text = f"rows whose scores are all {most:g} or less are lost: -inf stands for a finite number"
            return Read((explained(text, where, bug="B4", strength=1.0),))
        if lower and high and not low:
            text = "rows whose scores are beyond 65504 are lost: scores overflow float16"
            return Read((explained(text, where, bug="B12", strength=1.0),))
    return Read((explained("rows are wrong whose scores are all alike and far from 0", where),))


def _sunk_rows(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Shares of a sink beside scores of several sizes."""
    return Read((explained("the sink's share is wrong where the scores of rows differ", where),))


def _stairs(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """What goes wrong as the maximum changes."""
    scores = model.scored(measured.given)
    top = scores.max(axis=-1, initial=-math.inf)
    finite = top[np.isfinite(top)]
    steps = np.diff(scores[0, -1][np.isfinite(scores[0, -1])])
    way = "rise" if (steps >= 0).all() else "fall" if (steps <= 0).all() else "rise and fall"
    text = f"rows are wrong where scores {way} along the keys"
    effect = f"largest scores {finite.min():g} .. {finite.max():g}" if len(finite) else ""
    return Read((explained(text, where, effect),))


def _key_bits(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Elements of the keys that are read wrong: query i looks at one column."""
    seen: Flags = np.asarray(measured.output > LEAST)
    asked: Flags = np.asarray(measured.answer(model).output > LEAST)
    n, i, j = np.nonzero((seen != asked) & asked.any(axis=-1, keepdims=True))
    if not len(n):
        return Read((explained("weights of keys that are picked by one feature are wrong", where),))
    column = np.argmax(measured.given.query[n, i] != 0, axis=-1)
    heads = slots(np.unique(model.key_heads[n]), setting.batch, setting.heads[1]).replace("head", "key head")
    return Read((explained(f"keys are read wrong at {numbers('key', j)}, {numbers('feature', column)}", heads),))


def _query_bits(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Elements of the queries that are read wrong: key j looks at one column."""
    E = setting.dims[0]
    right = measured.answer(model).output
    changed = wrong & ((measured.output > LEAST) != (right > LEAST))
    _, _, c = np.nonzero(changed)
    if not len(c):
        return Read((explained("weights of queries that are told apart by one feature are wrong", where),))
    where = rows_of(changed.any(axis=-1), setting.batch, setting.heads[0])
    return Read((explained(f"queries are read wrong at {numbers('feature', c % E)}", where),))


READERS: dict[str, Callable[[Setting, Measured, Model, Flags, str], Read]] = {
    "mask": read_mask,
    "means": _means,
    "far": _far,
    "sunk rows": _sunk_rows,
    "needle": read_needle,
    "temperature": _temperature,
    "sinks": _temperature,
    "bias": _temperature,
    "accumulator": _accumulator,
    "score bits": _score_bits,
    "stairs": _stairs,
    "key bits": _key_bits,
    "query bits": _query_bits,
}
