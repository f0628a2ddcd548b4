"""Problems for correct rounding: a third of the columns lie exactly where the rounding to a format turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from refattn.oracle.climb import rounded
from tests.certified.balls import FORMATS, correct
from tests.certified.corners import KINDS
from tests.certified.kinds import Case, Rng, cast, pick

NAMES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")
OTHERS = ("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def neighbours(rng: Rng, name: str) -> tuple[float, float]:
    """Two numbers of the format, one next to the other; rarely the smallest, or the largest and what follows it."""
    digits, lowest, largest = FORMATS[name][:3]
    where = rng.random()
    if where < 0.1:
        exponent, count = lowest, int(rng.integers(0, 3))
    elif where < 0.2 and name != "float64":
        return largest, largest + math.ldexp(1.0, math.frexp(largest)[1] - digits)
    else:
        exponent = int(rng.integers(max(lowest, -20), 6))
        count = int(rng.integers(2 ** (digits - 1), 2**digits))
    unit = exponent - digits + 1
    sign = pick(rng, 1.0, -1.0)
    return sign * math.ldexp(float(count), unit), sign * math.ldexp(float(count + 1), unit)


def balanced(rng: Rng, a: float, b: float, n: int) -> np.ndarray:
    """n values, n even, whose mean is (a + b) / 2: pairs a - d, b + d with d a multiple of b - a."""
    pairs = []
    for _ in range(n // 2):
        d = (b - a) * float(rng.integers(0, 3))
        # Moved only where float64 holds the moved numbers.
        exact = (a - d) + d == a and (b + d) - d == b and (a - d) - a == -d and (b + d) - b == d
        pairs += [a - d, b + d] if exact else [a, b]
    return rng.permutation(np.array(pairs))


def tied(rng: Rng, name: str) -> Case:
    """A call whose values are balanced about midpoints of the format, or about 0, by groups of equal logits."""
    form = pick(rng, "equal", "groups", "sink", "sink of many", "added", "dropout", "almost", "softcap")
    E, L, Ev = int(pick(rng, 1, 2, 3, 4, 7, 16)), int(rng.integers(1, 3)), int(rng.integers(2, 6))
    columns = [(0.0, 0.0) if rng.random() < 0.15 else neighbours(rng, name) for _ in range(Ev)]
    query, more = rng.standard_normal((1, L, E)), {}
    sizes = [2 * int(rng.integers(1, 4)) for _ in range(1 if form == "equal" else int(rng.integers(1, 4)))]
    if form in ("sink", "sink of many"):
        # Values 2a, 2b and 0, and the sink: four members whose mean is (a + b) / 2.
        values = [np.array([[2 * a, 2 * b, 0.0] for a, b in columns]).T]
        key = np.zeros((3, E))
        if form == "sink of many":
            sizes = [3, *sizes]
            values += [_pairs(rng, columns, n) for n in sizes[1:]]
            key = np.concatenate([key, np.repeat(rng.standard_normal((len(sizes) - 1, E)), sizes[1:], axis=0)])
        z = float(pick(rng, 0.0, rng.standard_normal(), 20.0))
        more["sinks"] = np.array([z])
        added = np.zeros(len(key))
        added[:3] = z
        if rng.random() < 0.5:  # the same logit by another road: an exact product and what is left of it
            c = rng.integers(-8, 9, 3).astype(float)
            query[..., 0], key[:3, 0], added[:3] = 1.0, c, np.round(z * 8) / 8 - c
            more |= {"sinks": np.array([np.round(z * 8) / 8]), "scale": 1.0}
        more["bias"] = more["added"] = np.broadcast_to(added, (1, L, len(key))).copy()
        value = np.concatenate(values)
    else:
        key = np.repeat(rng.standard_normal((len(sizes), E)), sizes, axis=0)
        value = np.concatenate([_pairs(rng, columns, n) for n in sizes])
        if form == "equal":
            query = query * pick(rng, 0.0, 1.0)
    n = len(key)
    if form == "added":
        # Logits of equal sums, from products and biases that differ.
        key, query[..., 0] = key * 0.0, 1.0
        key[:, 0] = rng.integers(-9, 10, n)
        more |= {"bias": -key[:, 0] * np.ones((1, L, 1)), "added": -key[:, 0] * np.ones((1, L, 1)), "scale": 1.0}
    if form == "dropout":
        # What is dropped counts 0, what is kept twice.
        kept = np.ones((1, L, 2 * n), dtype=bool)
        kept[..., n:] = False
        value, key = np.concatenate([value, rng.standard_normal(value.shape)]), np.concatenate([key, key])
        more |= {"dropout_mask": kept, "kept": kept, "dropout_p": 0.5}
    if form == "almost":
        # One more key, whose weight is down to e^-400: the value is beside the midpoint by that much.
        query[...], E = 0.0, key.shape[1]
        added = np.zeros((1, L, n + 1))
        added[..., -1] = -float(pick(rng, 5.0, 40.0, 100.0, 400.0))
        key = np.concatenate([key, np.ones((1, E))])
        value = np.concatenate([value, rng.standard_normal((1, Ev)) * np.array([abs(a) or 1.0 for a, _ in columns])])
        more |= {"bias": added, "added": added}
    if form == "softcap":
        more["softcap"] = float(pick(rng, 0.5, 30.0))
    order = rng.permutation(len(key)) if not more.keys() & {"bias", "kept"} else np.arange(len(key))
    key, value = key[order], value[order]
    meant = {cells: more.pop(cells) for cells in ("added", "kept") if cells in more}
    return Case(query, key[None], value[None], arguments=more, **meant)


def _pairs(rng: Rng, columns: list[tuple[float, float]], n: int) -> np.ndarray:
    """Values (n, columns), each column balanced."""
    drawn = []
    for a, b in columns:
        x = balanced(rng, a, b, n)
        if a == b == 0:
            half = rng.standard_normal(n // 2)
            x = np.concatenate([half, -half])
        drawn.append(x)
    return np.stack(drawn, axis=1)


def loose(rng: Rng, name: str) -> Case:
    """An ordinary call, in a dtype of its own, whose outputs fall anywhere."""
    S, E, L, Ev = (int(x) for x in rng.integers(1, (24, 17, 4, 7)))
    x = [rng.standard_normal(shape) for shape in ((1, L, E), (1, S, E), (1, S, Ev))]
    x[2] *= 10.0 ** pick(rng, 0, 0, -3, -8, 3)
    x = [cast(a, pick(rng, *NAMES)) for a in x]
    more: dict[str, Any] = {}
    if rng.random() < 0.3:
        more["mask"] = more["visible"] = rng.random((1, L, S)) < 0.6
    if rng.random() < 0.3:
        more["sinks"] = rng.standard_normal(1)
    if rng.random() < 0.2:
        more["bias"] = more["added"] = rng.standard_normal((1, L, S))
    if rng.random() < 0.2:
        more["softcap"] = float(pick(rng, 1.0, 30.0))
    more["scale"] = pick(rng, None, None, 0.5, 0.3)
    meant = {cells: more.pop(cells) for cells in ("visible", "added") if cells in more}
    return Case(*x, arguments=more, **meant)


def hunted(rng: Rng, name: str) -> Case:
    """A case of the hunt for violations, its values on the scale of the format now and then."""
    case = pick(rng, *(kind for kind in KINDS if kind.__name__ not in ("long", "tiles", "sums", "poison")))(rng)
    if rng.random() < 0.5 and case.value.dtype == np.float64:
        digits, lowest, largest = FORMATS[name][:3]
        unit = pick(rng, largest, math.ldexp(1.0, lowest), math.ldexp(1.0, max(-1074, lowest - digits)))
        with np.errstate(all="ignore"):
            case = replace(case, value=np.nan_to_num(case.value * unit))
    return case


FORMS: tuple[Callable[[Rng, str], Case], ...] = (tied, tied, loose, hunted)


def drawn(name: str, seed: int) -> Case:
    """The case of a format and seed: about a third of all elements are ties."""
    rng = np.random.default_rng([(*NAMES, *OTHERS).index(name), seed, 7])
    return pick(rng, *FORMS)(rng, name)


class Verdict(NamedTuple):
    """What became of the elements of some cases."""

    elements: int
    ties: int
    wrong: list[str]
    undecided: list[str]


def verdict(name: str, seeds: Iterable[int]) -> Verdict:
    """Correctly rounded results of the cases of a format, against the balls."""
    elements = ties = 0
    wrong, undecided = [], []
    for seed in seeds:
        case = drawn(name, seed)
        R, Ev = len(case.asked()), case.value.shape[-1]
        want, turns, known = np.zeros((R, Ev)), np.zeros((R, Ev), dtype=bool), np.ones((R, Ev), dtype=bool)
        for places, head in case.heads():
            want[places], turns[places], known[places] = correct(head, name)
        elements, ties = elements + want.size, ties + int(turns.sum())
        try:
            got = rounded(case.query, case.key, case.value, dtype=name, rows=case.rows, **case.arguments)
        except Exception as error:
            if type(error) is not ArithmeticError:
                wrong.append(f"{name} {seed}: {error!r}")
            # A cap that logits reach up to exp(-1e9) leaves a number that near to a boundary; nothing decides that.
            elif case.arguments.get("softcap") is None:
                undecided.append(f"{name} {seed}: {error}")
            continue
        got = got.reshape(R, Ev)
        same = ((got == want) & (np.signbit(got) == np.signbit(want))) | (np.isnan(got) & np.isnan(want))
        wrong += [
            f"{name} {seed} {tuple(at)}: {float(got[tuple(at)])!r}, not {float(want[tuple(at)])!r}"
            for at in np.argwhere(known & ~same).tolist()
        ]
    return Verdict(elements, ties, wrong, undecided)
