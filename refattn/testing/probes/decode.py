"""What came back from a probe that no known mistake accounts for, read element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from refattn.contract.formats import unit
from refattn.testing.explanation import Explanation
from refattn.testing.probes import designs
from refattn.testing.probes.measured import Flags, Measured
from refattn.testing.probes.model import Floats, Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.words import numbers, rows_of, slot, slots

# Readings of one kind that are written out.
FEW = 3
# Weights below this are those of keys that do not count.
LEAST = 1e-30
# Weights below this may be 0 in any format.
SMALL = 1e-6


@dataclass(frozen=True, eq=False)
class Read:
    """Explanations of one measurement, and the model that gives what was measured, if one does.

    `last` says that nothing more can be read from this kernel.
    """

    explanations: tuple[Explanation, ...]
    model: Model | None = None
    applied: Flags | None = None
    last: bool = False


def explained(
    name: str, where: str = "", effect: str = "", bug: str | None = None, strength: float = 0.0
) -> Explanation:
    """An explanation that a probe gives."""
    return Explanation(bug=bug, name=name, where=where, effect=effect, instrument="probe", strength=strength)


def decoded(setting: Setting, measured: Measured, model: Model, wrong: Flags) -> Read:
    """What a wrong measurement shows."""
    rows = wrong.any(axis=-1)
    where = rows_of(rows, setting.batch, setting.heads[0])
    output = measured.output
    if not np.isfinite(output).all():
        return _not_finite(setting, measured, model)
    asked = model.counts.any(axis=-1)
    blank = rows & ~output.any(axis=-1) & asked
    if blank.any() and measured.probe in ("mask", "needle"):
        where = rows_of(blank, setting.batch, setting.heads[0])
        return Read((explained("the output is zero", where),), last=bool((blank == asked).all()))
    empty = rows & ~asked & output.any(axis=-1)
    if empty.any() and (empty == rows).all():
        # The values of the mask's probe are the identity, whose mean is 1/S.
        even = np.abs(output[empty] * setting.lengths[1] - 1) <= 2 * unit(measured.stored.output) + setting.eps
        bug = "B6" if measured.probe == "mask" and even.all() else None
        what = "the mean of the values" if bug else "no zeros"
        text = f"rows that may attend to nothing give {what}"
        return Read((explained(text, rows_of(empty, setting.batch, setting.heads[0]), bug=bug),))
    if measured.probe != "needle" and _cut_off(measured, model):
        return Read((explained("the output is cut off, not rounded to nearest", where),))
    return READERS[measured.probe](setting, measured, model, wrong, where)


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
    what = "NaN" if np.isnan(measured.output).any() else "infinity"
    where = rows_of(found.any(axis=-1), setting.batch, setting.heads[0])
    whole = "" if found.any(axis=-1).sum() * found.shape[-1] == found.sum() else "in some columns only"
    return Read((explained(f"{what} on finite inputs", where, whole),), last=bool(found.all()))


def _mask(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
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
    told = [*_taking(setting, found, counts)]
    changed = replace(model, counts=found)
    left = measured.wrong(changed)
    if left.any():
        total = got.sum(axis=-1)
        at = left.any(axis=-1)
        where = rows_of(at, setting.batch, setting.heads[0])
        low, high = (f"{x:.5g}" for x in (total[at].min(), total[at].max()))
        effect = f"they sum to {low}" if low == high else f"they sum to {low} .. {high}"
        told.append(explained("weights do not sum to 1: the row sum has too much or too little in it", where, effect))
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


def _needle(setting: Setting, measured: Measured, model: Model, wrong: Flags, where: str) -> Read:
    """Which row of the values came back, and which should have."""
    B, (H, Hk), S = setting.batch, setting.heads, setting.lengths[1]
    expected, magnitude = (x for x in measured.answer(model)[::2])
    values, columns = measured.given.value, len(designs.identity(setting))
    assert values is not None
    rows = wrong.any(axis=-1)
    slot_of, key_of = _identity(setting, measured.output)
    told: dict[str, list[tuple[int, int]]] = {}
    aimed_slot, aimed_key = _identity(setting, expected)
    for n, i in zip(*(x.tolist() for x in np.nonzero(rows)), strict=True):
        got, right = measured.output[n, i], expected[n, i]
        m, j = int(slot_of[n, i]), int(key_of[n, i])
        t = int(aimed_key[n, i])
        off = np.flatnonzero(got != right)
        if columns and 0 <= m < len(values) and 0 <= j < S and (got == values[m, j]).all():
            text = _other_row(setting, aimed_key[n], int(aimed_slot[n, i]), (m, j, t))
        elif len(off) <= max(1, len(got) // 4) and magnitude[n, i].any():
            head = slot(int(model.value_heads[n]), B, Hk, "head")
            text = f"value {t} of key {head} is wrong in {numbers('column', off)}"
        else:
            text = _mixture(got, right)
        told.setdefault(text, []).append((n, i))
    most = sorted(told.items(), key=lambda item: -len(item[1]))
    if len(most) > 4 * FEW:
        moved = sum(len(at) for text, at in most if "row" in text or "key" in text)
        return Read((explained("queries get the values of other keys than those they aim at", where, f"{moved} rows"),))
    return Read(tuple(explained(text, rows_of(_flags(at, rows.shape), B, H)) for text, at in most[:FEW]))


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
    if even and abs(ratio - 1) > 1e-6:
        return f"the weight of the only key that counts is {ratio:.5g}, not 1"
    if even:
        return "values are not passed on exactly where one weight is 1 and all others are 0"
    return "several values are mixed where one key has all of the weight"


def _flags(at: list[tuple[int, int]], shape: tuple[int, ...]) -> Flags:
    """Pairs as an array of flags."""
    found = np.zeros(shape, dtype=np.bool_)
    found[tuple(np.array(at).T)] = True
    return found


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
    "mask": _mask,
    "needle": _needle,
    "temperature": _temperature,
    "sinks": _temperature,
    "bias": _temperature,
    "accumulator": _accumulator,
    "score bits": _score_bits,
    "stairs": _stairs,
    "key bits": _key_bits,
    "query bits": _query_bits,
}
