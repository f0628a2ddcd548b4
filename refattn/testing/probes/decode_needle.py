"""Which row of the values came back, where each query aims at one key."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from refattn.testing.explanation import Explanation
from refattn.testing.probes import designs
from refattn.testing.probes.measured import Flags, Measured
from refattn.testing.probes.model import Floats, Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.told import Read, explained
from refattn.testing.probes.words import numbers, rows_of, slot

# Readings of one kind that are written out.
FEW = 3
NOT_SUMMED = "not in the row sum as often as in the output"


@dataclass
class Kind:
    """Rows that are wrong in one way: where they are, what they aim at, and what is told of each by itself."""

    at: list[tuple[int, int]] = field(default_factory=list)
    aims: set[int] = field(default_factory=set)
    columns: set[int] = field(default_factory=set)
    told: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def add(self, at: tuple[int, int], aim: int, text: str, columns: list[int] | None = None) -> None:
        """One more row."""
        self.at.append(at)
        self.aims.add(aim)
        self.columns.update(columns or ())
        self.told.setdefault(text, []).append(at)


def read_needle(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Which row of the values came back, and which should have."""
    B, Hk, S = setting.batch, setting.heads[1], setting.lengths[1]
    expected, magnitude = (x for x in measured.answer(model)[::2])
    values, columns = measured.given.value, len(designs.identity(setting))
    assert values is not None
    rows: Flags = np.logical_or.reduce(wrong, axis=-1)
    slot_of, key_of = _identity(setting, measured.output)
    moved, partly, mixed = Kind(), Kind(), Kind()
    aimed_slot, aimed_key = _identity(setting, expected)
    for n, i in zip(*(x.tolist() for x in np.nonzero(rows)), strict=True):
        got, right = measured.output[n, i], expected[n, i]
        m, j = int(slot_of[n, i]), int(key_of[n, i])
        t = int(aimed_key[n, i])
        off = np.flatnonzero(got != right)
        if columns and 0 <= m < len(values) and 0 <= j < S and (got == values[m, j]).all():
            moved.add((n, i), t, _other_row(setting, aimed_key[n], int(aimed_slot[n, i]), (m, j, t)))
        elif len(off) <= max(1, len(got) // 4) and magnitude[n, i].any():
            head = slot(int(model.value_heads[n]), B, Hk, "head")
            partly.add((n, i), t, f"value {t} of key {head} is wrong in {numbers('column', off)}", off.tolist())
        else:
            mixed.add((n, i), t, _mixture(got, right))
    kinds = sorted((moved, partly, mixed), key=lambda kind: -len(kind.at))
    found = [x for kind in kinds for x in _of_kind(kind, rows, setting, partly is kind)]
    return Read(tuple(found[:FEW]))


def _of_kind(kind: Kind, rows: Flags, setting: Setting, columns: bool) -> list[Explanation]:
    """Row by row where these are few, or all as one."""
    B, H = setting.batch, setting.heads[0]
    if len(kind.told) <= 4 * FEW:
        most = sorted(kind.told.items(), key=lambda item: -len(item[1]))
        return [explained(text, rows_of(_flags(at, rows.shape), B, H)) for text, at in most]
    aims = numbers("key", kind.aims, setting.lengths[1])
    text = f"queries that aim at {aims} get the values of other keys"
    if columns:
        text = f"values of {aims} are wrong in {numbers('column', kind.columns)}"
    return [explained(text, rows_of(_flags(kind.at, rows.shape), B, H), f"{len(kind.at)} rows")]


def weighed(setting: Setting, weights: Measured, model: Model) -> Explanation | None:
    """Which keys weigh in rows that aim at others, or not in those that aim at them; `weights` has them all."""
    got, right = weights.output, weights.answer(model).output
    aim = np.argmax(right, axis=-1)
    own = np.take_along_axis(got, aim[..., None], axis=-1)[..., 0]
    extra = (got > 0) & (right == 0) & (own > 0)[..., None]
    lost = (own == 0) & right.any(axis=-1)
    keys = np.union1d(np.flatnonzero(extra.any(axis=(0, 1))), aim[lost])
    if not len(keys) or 2 * len(keys) > setting.lengths[1]:
        return None
    rows = rows_of(extra.any(axis=-1) | lost, setting.batch, setting.heads[0])
    return explained(f"{numbers('key', keys)} weigh where queries aim at others, or not where they aim at these", rows)


def summed(measured: list[Measured], model: Model) -> str | None:
    """Which keys are missing from the row sum, or too often in it, by the rows that aim at them."""
    found, others = set[int](), set[int]()
    for x in measured:
        wrong = x.wrong(model).any(axis=-1)
        aim, asked = np.argmax(model.scored(x.given), axis=-1), model.counts.any(axis=-1)
        found |= set(aim[wrong & asked].tolist())
        others |= set(aim[~wrong & asked].tolist())
    if not found or 2 * len(found) > model.counts.shape[-1] or found & others:
        return None
    return f"{numbers('key', found)} {'is' if len(found) == 1 else 'are'} {NOT_SUMMED}"


def _identity(setting: Setting, x: Floats) -> tuple[Floats, Floats]:
    """Slot and key (N, L) that rows of the coded values tell of; -1 where they tell of none."""
    M, S = setting.batch * setting.heads[1], setting.lengths[1]
    first = designs.places(M)
    found = []
    for start, size in ((0, M), (first, S)):
        digits = x[..., start : start + designs.places(size)] - 1
        whole = ((digits == np.rint(digits)) & (digits >= 0) & (digits < designs.BASE)).all(axis=-1)
        number = (digits * float(designs.BASE) ** np.arange(digits.shape[-1])).sum(axis=-1)
        found.append(np.where(whole, number, -1.0))
    return found[0], found[1]


def _other_row(setting: Setting, aims: Floats, own: int, read: tuple[int, int, int]) -> str:
    """A row of the values that is not the one aimed at."""
    m, j, t = read
    name = slot(m, setting.batch, setting.heads[1], "key head")
    if m != own:
        right = slot(own, setting.batch, setting.heads[1], "key head")
        return f"{name} is read, not {right}" + ("" if j == t else ", at other keys")
    others = np.flatnonzero(aims == j)
    if len(others):
        return f"the row holds what query {others[0]} aims at"
    return f"key {j} answers in the place of key {t}"


def _mixture(got: Floats, right: Floats) -> str:
    """A row that is no row of the values."""
    some = right != 0
    ratio = np.median(got[some] / right[some]) if some.any() else math.nan
    even = np.abs(got - ratio * right).max() <= 0.02 * np.abs(right).max() if math.isfinite(ratio) else False
    if even and abs(ratio - 1) > 1e-4:
        return f"the weight of the only key that counts is {ratio:.5g}, not 1"
    if even:
        return "values are not passed on exactly where one weight is 1 and all others are 0"
    return "several values are mixed where one key has all of the weight"


def _flags(at: list[tuple[int, int]], shape: tuple[int, ...]) -> Flags:
    """Pairs as an array of flags."""
    found = np.zeros(shape, dtype=np.bool_)
    found[tuple(np.array(at).T)] = True
    return found
