"""Places in a kernel's results, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

# Runs of numbers that are written out.
WRITTEN = 4


def numbers(name: str, found: Iterable[int], total: int | None = None, plural: str = "") -> str:
    """Numbers as runs: "rows 0..63, 70"; "all 4 heads" where all of a total are meant."""
    of = np.unique(np.fromiter(found, dtype=np.int64))
    if total is not None and len(of) == total > 1:
        return f"all {total} {plural or name + 's'}"
    runs = np.split(of, np.flatnonzero(np.diff(of) > 1) + 1)
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs[:WRITTEN]]
    more = len(of) - sum(len(run) for run in runs[:WRITTEN])
    word = name if len(of) == 1 else plural or name + "s"
    return f"{word} {', '.join(words)}" + (f" and {more} more" if more else "")


def slots(found: Iterable[int], batch: int, heads: int) -> str:
    """Slots (batch entry by head) as heads, and batch entries where not all are meant."""
    of = np.unique(np.fromiter(found, dtype=np.int64))
    entries, of_head = np.divmod(of, heads)
    text, some = numbers("head", of_head, heads), np.unique(entries)
    if len(some) == batch:
        return text
    return f"{numbers('batch entry', some, plural='batch entries')}, {text}"


def slot(n: int, batch: int, heads: int, kind: str = "head") -> str:
    """One slot: "head 2", and its batch entry where there are several."""
    entry, head = divmod(n, heads)
    return f"{kind} {head}" + (f" of batch entry {entry}" if batch > 1 else "")


def rows_of(wrong: Any, batch: int, heads: int) -> str:
    """Where (N, L) is true."""
    n, i = np.nonzero(wrong)
    return f"{slots(n, batch, heads)}, {numbers('row', i, wrong.shape[1])}"
