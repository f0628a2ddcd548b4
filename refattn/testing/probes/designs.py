"""The operands of each probe: enumerated, exact in the formats of the contract, and the slack that a right kernel has.

All weights are 0 or 1 before they are divided, or known to the accuracy of the sums; where that can't be had a design
is an explanation of why not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refattn.contract.formats import FORMATS, unit
from refattn.testing.probes.measured import Slack
from refattn.testing.probes.model import Floats, Ints, Operands, rounded
from refattn.testing.probes.setting import Setting, in_format, power, shaped

# Keys of one stair, levels of a staircase, and the common offset of its lowest ones.
STAIR, OFFSET = 16, 512.0
# Numbers of the coded values, a prime for each number of significant bits, so that neighbours never agree.
PRIMES = {3: 7, 4: 13, 8: 251}
# Base of the columns that tell slot and key: its digits plus one are exact in every format.
BASE = 7
# Keys between those that have the larger of two scores.
ANCHORS = 8
# Scores of rows that are far from 0: within the range of float16 and beyond it.
FAR = (-57344.0, -131072.0, 131072.0)
# Multiply-adds of all passes of one needle probe.
NEEDLE_WORK = 2.0e9


class NotPossible(Exception):
    """A probe that says nothing in a setting, with the reason."""


Design = Callable[[Setting, bool], Iterator[tuple[Operands, Slack]]]


def exact(setting: Setting) -> Slack:
    """The slack of rows whose weights are 0 or equal."""
    bias = setting.model.bias
    size = 0.0 if bias is None else 8 * unit(setting.contract.accumulator) * float(np.abs(bias).max())
    return Slack(setting.eps, 4 * setting.eps, setting.eps, size)


def mask(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """All scores equal, and the identity for values: the weights show who takes part, and how often."""
    query, key, _ = shaped(setting)
    yield Operands(query, key, None), exact(setting)


def groups(setting: Setting) -> Iterator[Floats]:
    """Values that are one-hot over groups of keys, those some columns apart and those beside each other.

    No two keys share both groups, unless there are more than columns squared.
    """
    S, Ev = setting.lengths[1], setting.dims[1]
    j = np.arange(S)
    for column in (j % Ev, j // -(-S // Ev)):
        _, _, value = shaped(setting)
        value[:, j, column] = 1.0
        yield value


def needle(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Each query has score 0 with one key and none to speak of with others: the output is one row of the values.

    Over the passes each head reads every row of the values that one of its queries may see.
    """
    _apart(setting)
    (L, S), (H, _), (E, _) = setting.lengths, setting.heads, setting.dims
    B, width = setting.batch, setting.dims[0] // 2
    digits = max(1, math.ceil(math.log2(max(S, 2))))
    if width < digits:
        raise NotPossible(f"codes of {S} keys need {2 * digits} features; query and key have {E}")
    amount = setting.gap / (setting.model.scale * (width // digits))
    if (amount := power(amount)) > setting.most:
        raise NotPossible(f"queries would have to be {amount:g}, which their format does not hold")
    values = coded(setting)
    targets = aims(setting)
    passes = len(targets)
    limit = 2 if quick else max(2, int(NEEDLE_WORK / (B * H * L * S * (E + setting.dims[1]))))
    for number in range(min(passes, limit) if passes > 1 else 2):
        target = targets[number % passes]
        query, key, _ = shaped(setting)
        code = codes(setting, width, digits, complement=number % 2 == 1)
        key[..., :width], key[..., width : 2 * width] = code, 1.0 - code
        aimed = np.take_along_axis(code[setting.model.key_heads], np.maximum(target, 0)[..., None], axis=1)
        query[..., :width], query[..., width : 2 * width] = -amount * (1.0 - aimed), -amount * aimed
        yield Operands(query, key, values), _aimed_slack(setting)


def _aimed_slack(setting: Setting) -> Slack:
    """The slack of rows in which one key has all of the weight: two roundings at most, where no sink shares it."""
    eps = setting.eps if setting.model.sinks is not None else 2 * unit(setting.contract.accumulator) + setting.exp_error
    return Slack(eps, 4 * setting.eps, setting.eps)


def codes(setting: Setting, width: int, digits: int, *, complement: bool) -> Floats:
    """Binary codes (B Hk, S, width) of the keys, shifted from slot to slot; each digit as often as there is room."""
    S, M = setting.lengths[1], setting.batch * setting.heads[1]
    number = (np.arange(S) + np.arange(M)[:, None] * (S // M + 1)) % S
    bits = number[..., None] >> (np.arange(width) % digits) & 1
    # Digits that not every code could have are left out, so that all are as far apart.
    bits = np.where(np.arange(width) < width // digits * digits, bits, 0)
    return (1 - bits if complement else bits).astype(np.float64)


def coded(setting: Setting) -> Floats:
    """Values (B Hk, S, Ev) that tell slot and key in their first columns, and differ from their neighbours in all."""
    _, _, value = shaped(setting)
    M, S, Ev = value.shape
    prime = PRIMES[max(p for p in PRIMES if p <= setting.bits)]
    slot, j, c = np.arange(M)[:, None, None], np.arange(S)[:, None], np.arange(Ev)
    value[:] = 1 + (slot * 5 + j * 3 + j // 16 * 2 + c * 2) % prime
    for column, digit in enumerate(identity(setting)):
        value[..., column] = digit
    return value


def identity(setting: Setting) -> list[Floats]:
    """The columns (B Hk, S) that tell slot and key, none where the values are too narrow for them."""
    M, S, Ev = setting.batch * setting.heads[1], setting.lengths[1], setting.dims[1]
    slot, j = np.broadcast_arrays(np.arange(M)[:, None], np.arange(S))
    columns = [1.0 + x // BASE**n % BASE for x, size in ((slot, M), (j, S)) for n in range(places(size))]
    return columns if len(columns) <= Ev else []


def places(size: int) -> int:
    """Digits that a number below `size` has."""
    return max(1, math.ceil(math.log(max(size, 2)) / math.log(BASE) - 1e-9))


def aims(setting: Setting) -> list[Ints]:
    """Keys (N, L) that the queries aim at, pass by pass, until each head has aimed at all that it may see; -1: none."""
    N, L, _ = setting.model.counts.shape
    seen = setting.model.counts > 0
    same = bool((seen == seen[:1]).all())
    found = [_aims(seen[n]) for n in range(1 if same else N)]
    most = max(len(x) for x in found)
    of = [np.stack([x[p % len(x)] for x in found]) for p in range(most)]
    return [np.broadcast_to(x, (N, L)) if same else x for x in of]


def _aims(seen: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> list[Ints]:
    """Keys (L,) that the queries of one head aim at, pass by pass."""
    S = seen.shape[1]
    left: Any = seen.any(axis=0)
    reach = seen.sum(axis=1)
    last = S - 1 - np.argmax(seen[:, ::-1], axis=1)
    found: list[Ints] = []
    while not found or (left.any() and len(found) < S):
        aim = np.where(reach > 0, last, -1)
        # Queries that see few keys choose first.
        for i in np.argsort(reach, kind="stable"):
            free = np.flatnonzero(seen[i] & left)
            if len(free):
                aim[i] = free[-1]
                left[free[-1]] = False
        found.append(aim)
    return found


def key_bits(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Keys of bits, and queries that take part with the keys whose bit in one column is 0: every element of the keys.

    A second set has the bits of every other key flipped, so that neighbours differ in one of the two.
    """
    _apart(setting)
    _even(setting)
    (L, S), (E, _) = setting.lengths, setting.dims
    amount = _amount(setting)
    slot = np.arange(setting.batch * setting.heads[1])[:, None, None]
    bits = hashed(slot, np.arange(S)[:, None], np.arange(E)) & 1
    for number in range(2 if quick else 2 * math.ceil(E / L)):
        query, key, _ = shaped(setting)
        key[:] = bits ^ (number & 1 & np.arange(S))[:, None]
        query[:, np.arange(L), (np.arange(L) + number // 2 * L) % E] = -amount
        yield Operands(query, key, None), exact(setting)


def query_bits(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Queries of bits, and keys that look at one column each: every element of the queries."""
    _apart(setting)
    _even(setting)
    (L, S), (E, Ev) = setting.lengths, setting.dims
    slot = np.arange(setting.batch * setting.heads[0])[:, None, None]
    for number in range(1 if quick else min(4, math.ceil(E / S))):
        query, key, value = shaped(setting)
        query[:] = hashed(slot, np.arange(L)[:, None], np.arange(E)) & 1
        column = (np.arange(S) + number * S) % E
        key[:, np.arange(S), column] = -_amount(setting)
        value[:, np.arange(S), column % Ev] = 1.0
        yield Operands(query, key, value), exact(setting)


def temperature(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Two scores, 0 and -x in row x, with e^-x next to a number of the weights' format: rounding is no excuse."""
    (L, S), contract = setting.lengths, setting.contract
    amounts, slack = neutral(setting, L)
    query, key, value = shaped(setting)
    query[..., 0], key[..., 0] = amounts, np.where(np.arange(S) % ANCHORS, -1.0, 0.0)
    low = np.arange(S) % ANCHORS > 0
    Ev = value.shape[-1]
    value[:, low, 0], value[:, ~low, 1 % Ev], value[..., Ev - 1] = 1.0, 1.0, 1.0
    size = 7.0 + (0.0 if setting.model.sinks is None else float(np.abs(setting.model.sinks).max()))
    relative = slack + setting.eps + setting.sum_error + setting.score_error(size)
    lagging = (setting.model.counts[..., :1] == 0) | (setting.model.sinks is not None) | setting.uneven
    lagging = lagging & bool(contract.lazy) | bool(contract.ahead) | setting.uneven
    u = unit(contract.probabilities)
    rows = np.broadcast_to(relative + 2 * u * lagging, (len(query), L, 1))
    yield (
        Operands(query, key, value),
        Slack(rows, 2 * float(np.max(relative)) + 2 * u, 1.1 * u, setting.score_error(size)),
    )


def neutral(setting: Setting, rows: int) -> tuple[Floats, float]:
    """Queries (L,) whose weights e^-x need no rounding in the format of the weights, and how much they need at most."""
    contract, model = setting.contract, setting.model
    step = 2.0 ** -(setting.bits - 1)
    fractions = np.arange(1.0, 2.0, step)
    x = np.concatenate([fractions * 2.0**e for e in range(-2, 3)])
    x = x[(x > 0.3) & (x < 6.5)]
    query = in_format(setting, "query", x / model.scale)
    raw = -query * model.scale
    weight = np.exp(raw if model.cap is None else model.cap(raw))
    error = np.abs(rounded(weight, contract.probabilities) / weight - 1.0)
    best = np.argsort(error, kind="stable")[: max(8, min(rows, len(x) // 16))]
    if error[best].max() < unit(contract.accumulator):
        best = np.arange(len(x))
    # Evenly over all sizes.
    best = np.sort(best)[np.linspace(0, len(best) - 1, rows).astype(int)]
    return query[best], float(error[best].max())


def stairs(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Scores that rise, fall or jump about, a stair of a few keys at a time: what is done when the maximum changes."""
    _apart(setting)
    (_, S), scale, contract = setting.lengths, setting.model.scale, setting.contract
    group = np.arange(S) // STAIR
    count = min(64, 2**setting.bits)
    orders = {"rising": group % count, "falling": (-1 - group) % count, "zigzag": group * 29 % count}
    kinds = [("rising", 0.5, 0.0), ("zigzag", 0.5, -OFFSET), ("rising", setting.gap, 0.0)]
    if not quick:
        kinds += [
            ("falling", 0.5, 0.0),
            ("zigzag", setting.gap, 0.0),
            ("falling", setting.gap, 0.0),
            ("rising", 0.5, -OFFSET),
        ]
        kinds += [("falling", 0.5, -(2.0**17))] * (setting.bits == 8 and scale >= 2.0**-4)
    for name, step, offset in kinds:
        steps = in_format(setting, "query", np.array([step, offset / (1 if abs(offset) <= OFFSET else 64)]) / scale)
        if not np.abs(steps).max() <= setting.most:  # NaN, where the format has no infinity
            continue
        query, key, value = shaped(setting)
        key[..., 0], query[..., 0] = orders[name], steps[0]
        if key.shape[-1] > 1:
            key[..., 1], query[..., 1] = (1.0 if abs(offset) <= OFFSET else 64.0), steps[1]
        value[:, np.arange(S), group % value.shape[-1]] = 1.0
        largest = abs(offset) + count * step
        slack = (
            setting.eps
            + setting.sum_error
            + 2 * unit(contract.probabilities)
            + setting.score_error(largest if step < 1 else abs(offset))
        )
        # Where each stair outweighs all that lie below, what is lost in adding large numbers changes nothing.
        yield Operands(query, key, value), Slack(slack, slack + setting.score_error(largest), slack)


def accumulator(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Averages of integers whose sums fill the accumulator's bits but no more."""
    _even(setting)
    if setting.contract.accumulator_bits is not None:
        raise NotPossible("the contract's accumulator has too few bits for sums of integers")
    query, key, value = shaped(setting)
    M, S, Ev = value.shape
    half = 2 ** (setting.bits - 1)
    value[:] = half + hashed(np.arange(M)[:, None, None], np.arange(S)[:, None], np.arange(Ev)) % half
    value[:, 1::2, 1::4] *= -1
    yield Operands(query, key, value), exact(setting)


def score_bits(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Scores near 256 that differ by eighths, and operands whose last bits are all that is left."""
    contract, E = setting.contract, setting.dims[0]
    if setting.capped:
        raise NotPossible("the softcap bounds the scores")
    if FORMATS[contract.scores].precision < FORMATS[contract.accumulator].precision or contract.rounded:
        raise NotPossible("the contract lets scores or operands lose bits")
    if setting.bits < 8 or E < 5:
        raise NotPossible("the operands have too few bits or features")
    S, scale = setting.lengths[1], setting.model.scale
    f = (np.arange(S) % 8).astype(np.float64)
    for fine in (False, True):
        query, key, value = shaped(setting)
        if fine:
            if min(FORMATS[contract.query].precision, FORMATS[contract.key].precision) < 11:
                continue
            key[..., 0], key[..., 1] = 1 + 2.0**-9, -1.0
            query[..., 0] = in_format(setting, "query", np.array(256 / scale))
            query[..., 1] = query[..., 0]
            query[..., 2], query[..., 3] = 1 + 2.0**-9, 1.0
            factor = power(512 / (8 * scale)) / 64
            key[..., 2], key[..., 3] = factor * f, -factor * f
        else:
            key[..., 0], key[..., 1] = 1.0, f
            query[..., 0], query[..., 1] = in_format(setting, "query", np.array([256, 0.125]) / scale)
        value[:, np.arange(S), np.arange(S) % 8 % value.shape[-1]] = 1.0
        slack = setting.eps + setting.sum_error + 2 * unit(contract.probabilities) + setting.score_error(512.0)
        yield Operands(query, key, value), Slack(slack, slack + setting.score_error(512.0), slack)


def means(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """All scores equal, and values that are numbers far from 0: every row is a mean of what it sees."""
    query, key, value = shaped(setting)
    M, S, Ev = value.shape
    half = 2 ** (setting.bits - 1)
    value[:] = half + hashed(np.arange(M)[:, None, None], np.arange(S)[:, None], np.arange(Ev)) % half
    yield Operands(query, key, value), exact(setting)


def far(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """All scores of a row equal and far from 0: the weights are those of scores that are 0."""
    _apart(setting)
    _even(setting)
    if setting.contract.scores == "float16":
        raise NotPossible("the contract's scores do not hold numbers beyond 65504")
    levels = np.array(FAR)[np.arange(setting.lengths[0]) % len(FAR)] / setting.model.scale
    factor = power(max(1.0, float(np.abs(levels).max()) / setting.most))
    if factor > setting.most:
        raise NotPossible(f"queries would have to be {setting.most * factor:g}, which their format does not hold")
    query, key, value = shaped(setting)
    query[..., 0], key[..., 0] = in_format(setting, "query", levels / factor), factor
    value[:, np.arange(setting.lengths[1]), np.arange(setting.lengths[1]) % value.shape[-1]] = 1.0
    slack = setting.eps + setting.sum_error + 2 * unit(setting.contract.probabilities) + setting.score_error(-FAR[1])
    yield Operands(query, key, value), Slack(slack, 2 * slack, slack)


def sunk_rows(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """All scores of a row equal, and another score in each row, some about as large as the sinks are."""
    query, key, value = shaped(setting)
    L, S = setting.lengths
    sinks = np.zeros(1) if setting.model.sinks is None else setting.model.sinks
    scores = (np.arange(L) * 5 % 23 - 11) / 4.0 + np.rint(np.mean(sinks)) * (np.arange(L) & 1)
    query[..., 0], key[..., 0] = in_format(setting, "query", scores / setting.model.scale), 1.0
    value[:, np.arange(S), np.arange(S) % value.shape[-1]] = 1.0
    size = 3.0 + 2.0 * float(np.abs(sinks).max())
    slack = setting.eps + setting.sum_error + 2 * unit(setting.contract.probabilities) + setting.score_error(size)
    yield Operands(query, key, value), Slack(slack, 2 * slack, slack)


def hashed(*index: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Ints:
    """Numbers below 2**31 without a pattern, the same every time."""
    x = np.zeros(np.broadcast_shapes(*(np.shape(i) for i in index)), dtype=np.uint64)
    for i in index:
        x = (x ^ (i.astype(np.uint64) + np.uint64(0x9E37))) * np.uint64(0x9E3779B97F4A7C15)
        x ^= x >> np.uint64(29)
    return ((x * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(33)).astype(np.int64)


def _apart(setting: Setting) -> None:
    """Refuse settings in which scores can't be so far apart that weights vanish."""
    if setting.capped:
        raise NotPossible("the softcap bounds the scores, so that no weight vanishes")


def _even(setting: Setting) -> None:
    """Refuse settings in which scores differ by themselves."""
    if setting.uneven:
        raise NotPossible("the bias makes the weights uneven")


def _amount(setting: Setting) -> float:
    """What a query must hold for a bit of the keys to take them out."""
    amount = power(setting.gap / setting.model.scale)
    if amount > setting.most:
        raise NotPossible(f"queries would have to be {amount:g}, which their format does not hold")
    return amount


# In the order in which a mistake in one shows in the others.
DESIGNS: dict[str, Design] = {
    "mask": mask,
    "needle": needle,
    "temperature": temperature,
    "accumulator": accumulator,
    "score bits": score_bits,
    "far": far,
    "stairs": stairs,
    "query bits": query_bits,
    "key bits": key_bits,
}
