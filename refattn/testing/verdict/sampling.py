"""Which rows a verdict is about: all of them while that is cheap, else a sample that looks where kernels break."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn._core.checks import check_integer, check_rows

Ints = npt.NDArray[np.int64]

# Multiply-adds up to which all rows are checked: about ten seconds on two cores.
MOST_WORK = 2e11
SAMPLE = 4096
# The reference's Q K^T and P V, and about as many products over E and over Ev again for the bound.
PRODUCTS_E, PRODUCTS_EV = 3, 5


class Rows(NamedTuple):
    """Rows to check, by slab: one (batch ..., head) each, in an order that keeps the heads of a key head together."""

    slabs: tuple[tuple[tuple[int, ...], Ints], ...]
    checked: int
    total: int


def work(rows: int, S: int, E: int, Ev: int) -> float:
    """Multiply-adds that checking so many rows takes."""
    return float(rows) * S * (PRODUCTS_E * E + PRODUCTS_EV * Ev)


def choose_rows(function: str, call: Call, rows: Any) -> Rows:
    """The rows asked for: all (None, while cheap), a number of them, or the very rows (R, n)."""
    L, S = call.score.lengths
    shape = (*call.lead, L)
    total = math.prod(shape)
    if rows is None:
        cheap = work(total, S, call.query.shape[-1], call.value.shape[-1]) <= MOST_WORK
        return _every(call.lead, L) if cheap else _sample(call, min(SAMPLE, total))
    if np.ndim(rows) == 0:
        wanted = check_integer(function, "rows", rows, least=1)
        return _every(call.lead, L) if wanted >= total else _sample(call, wanted)
    index = np.unique(check_rows(function, rows, shape), axis=0)
    heads, of_head = np.unique(index[:, :-1], axis=0, return_inverse=True)
    slabs = tuple((tuple(head.tolist()), index[of_head.reshape(-1) == n, -1]) for n, head in enumerate(heads))
    return Rows(slabs, len(index), total)


def _every(lead: tuple[int, ...], L: int) -> Rows:
    """All rows."""
    slabs = tuple((index, np.arange(L)) for index in np.ndindex(lead)) if L else ()
    return Rows(slabs, len(slabs) * L, math.prod(lead) * L)


def _sample(call: Call, wanted: int) -> Rows:
    """So many rows, spread over all heads: the places where kernels break, then random ones."""
    rng = np.random.default_rng(0)
    lead, L = call.lead, call.score.lengths[0]
    *batch, heads = lead
    # Where there are more slabs than rows, every head comes before any head comes twice.
    entries = np.stack([rng.permutation(math.prod(batch)) for _ in range(heads)], axis=1)
    order = (entries * heads + np.arange(heads)).reshape(-1)[: min(wanted, math.prod(lead))]
    least, more = divmod(wanted, len(order))
    shared = None if call.score.mask is not None and call.score.mask.lead else _special(call, (0,) * len(lead))
    slabs = []
    for n, flat in enumerate(np.sort(order)):
        index = tuple(int(x) for x in np.unravel_index(flat, lead))
        special = _special(call, index) if shared is None else shared
        size = min(L, least + (n < more))
        # Half at most are special rows; each slab begins where the one before it stopped.
        turn = np.roll(special, -n * max(1, size // 2))[: max(1, size // 2)]
        drawn = np.concatenate([turn, rng.choice(L, size=size, replace=False)])
        _, first = np.unique(drawn, return_index=True)
        slabs.append((index, np.sort(drawn[np.sort(first)[:size]])))
    return Rows(tuple(slabs), sum(len(rows) for _, rows in slabs), math.prod(lead) * L)


def _special(call: Call, index: tuple[int, ...]) -> Ints:
    """First and last rows, both sides of tile edges, and rows where the mask's intervals change their course."""
    L, S = call.score.lengths
    edges = [0, 1, L - 2, L - 1]
    for tile in (256, 192, 128, 64, 32, 16):
        last = (L - 1) // tile * tile
        edges += [tile - 1, tile, last - 1, last]
    mask = call.score.at(index).mask
    interval = None if mask is None else mask.interval(L, S)
    if interval is not None:
        for end in interval:
            steps = np.diff(np.broadcast_to(end, (L,)))
            turns = np.flatnonzero(np.diff(steps)) + 1
            edges += [*turns.tolist(), *(turns + 1).tolist()]
    found = np.array(list(dict.fromkeys(edges)), dtype=np.int64)
    return found[(found >= 0) & (found < L)]
