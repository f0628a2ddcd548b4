"""Which key head a query head reads, where what it returns is not what its own one gives."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn.contract.statistics import sigmas
from refattn.testing.effects.explaining import Change, Rows, Wrong, answer
from refattn.testing.effects.record import Effect

Floats = npt.NDArray[np.float64]

# Least share of a query head's squared error that another key head must explain.
LEAST = 0.9
# Query heads that are looked at, and rows that each needs.
HEADS, FEWEST_ROWS = 16, 8
# Multiply-adds that are spent on it.
WORK = 1e10

# Whether the keys are another head's, and the values.
KINDS = ((True, True), (True, False), (False, True))

Read = tuple[int, int]  # key heads of the keys and of the values


def heads(wrong: Wrong, alpha: float) -> tuple[Effect, Change] | None:
    """The key heads that some query heads read instead of their own, as one effect.

    The hypothesis has no size: the error of each row is the output of the other head less that of the own one. It is
    tested by the share of the squared error that it explains, with a row as one draw.
    """
    call, groups = wrong.call, wrong.call.score.groups
    assert groups is not None
    (Hk, G), (_, S) = groups, call.score.lengths
    of_head: dict[int, list[Rows]] = {}
    for rows in wrong.parts:
        of_head.setdefault(rows.index[-1], []).append(rows)
    loud = [h for h, parts in of_head.items() if sum(len(rows.rows) for rows in parts) >= FEWEST_ROWS]
    tried = [loud[n] for n in np.unique(np.linspace(0, len(loud) - 1, HEADS).astype(int))] if loud else []
    each = sum(len(rows.rows) for h in tried for rows in of_head[h]) * S * (call.query.shape[-1] + call.value.shape[-1])
    if Hk == 1 or not tried or each * 3 * (Hk - 1) > WORK:
        return None
    z = sigmas(3 * (Hk - 1) * len(tried), alpha)
    found = {h: read for h in tried if (read := _read(call, of_head[h], h // G, Hk, z)) is not None}
    if not found:
        return None
    reads = {h: read for h, (read, _, _) in found.items()}
    which = _by_remainder(reads, groups)
    # Then all heads are wrong for which the two differ.
    if set(of_head) != {h for h in range(Hk * G) if h % Hk != h // G}:
        which = None

    def change(call: Call, rows: Rows, beta: float) -> Floats:
        """What the heads that were found read; of those that were not tried, what a map of all heads would have."""
        h = rows.index[-1]
        read = reads.get(h, (h // G, h // G) if which is None or h in tried else _remainder(h, groups, which))
        return beta * (answer(rows.reading(call, *read)) - rows.output)

    strongest = max(found, key=lambda h: found[h][1])
    _, strength, allowed = found[strongest]
    effect = Effect(
        name="head",
        beta=1.0,
        sigmas=strength,
        allowed=allowed,
        where=f"head{'s' * (len(reads) > 1)} {', '.join(map(str, reads))}",
        text=f"{_words(reads, G)}: {strength:.0f} sigma",
        bug=None if which is None else "D1",
    )
    return effect, change


def _read(call: Call, parts: list[Rows], own: int, Hk: int, z: float) -> tuple[Read, float, float] | None:
    """The key heads that explain most of one query head's errors, their sigmas and those allowed, if any do."""
    best: tuple[float, Read] = (0.0, (own, own))
    error, weight = (np.concatenate(x) for x in zip(*((rows.error, _weight(rows)) for rows in parts), strict=True))
    total = float((error**2 * weight).sum())
    if not (math.isfinite(total) and total > 0):
        return None
    others = [head for head in range(Hk) if head != own]
    for other, (of_keys, of_values) in product(others, KINDS):
        read = other if of_keys else own, other if of_values else own
        changes = np.concatenate([answer(rows.reading(call, *read)) - rows.output for rows in parts])
        share = 1 - float(((error - changes) ** 2 * weight).sum()) / total
        best = max(best, (share, read))
    share, read = best
    freedom = len(error) - 1
    strength = math.sqrt(freedom * share / max(1 - share, 1e-12))
    # Student's t exceeds this with the probability that a normal number exceeds z.
    allowed = math.sqrt(freedom * math.expm1(min(600.0, z * z / (freedom - 0.5))))
    return (read, strength, allowed) if share >= LEAST and strength > allowed else None


def _weight(rows: Rows) -> Floats:
    """Inverse of the squared bound, 0 where there is none."""
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(rows.bound) & (rows.bound > 0), 1 / rows.bound**2, 0.0)


def _by_remainder(reads: dict[int, Read], groups: tuple[int, int]) -> tuple[bool, bool] | None:
    """Whether query heads h read keys, values or both of head h % Hk; None where that is not what they do."""
    kinds = [which for which in KINDS if all(read == _remainder(h, groups, which) for h, read in reads.items())]
    return kinds[0] if kinds else None


def _remainder(h: int, groups: tuple[int, int], which: tuple[bool, bool]) -> Read:
    """The key heads that query head h reads where some of them go by the remainder."""
    keys, values = (h % groups[0] if each else h // groups[1] for each in which)
    return keys, values


def _words(reads: dict[int, Read], G: int) -> str:
    """Who reads what."""
    told = []
    for h, (key, value) in reads.items():
        own = h // G
        other, what = (key, " (keys)") if value == own else (value, " (values)")
        told.append(f"query head {h} reads key head {other}{'' if key == value else what}, not {own}")
    return "; ".join(told)
