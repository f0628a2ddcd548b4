"""Where kernels cut the keys into splits, and of which cuts some row sees keys on both sides."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from refattn.testing.bugs.engine import Head, State
from refattn.testing.bugs.problems import SIZES, Problem
from refattn.testing.bugs.record import sample

Ints = npt.NDArray[np.int64]

# Sizes of tiles that splits are whole numbers of, 1 where they are of any size; and numbers of splits.
CUT_TILES = (1, *SIZES)
COUNTS = (2, 3, 4, 5, 6, 7, 8, 12, 16)


@dataclass(frozen=True)
class Cuts:
    """Keys in `count` splits of whole tiles, all but the last of one size, or as even as can be.

    Parameters
    ----------
    count : int
        Number of splits, of which the last ones may be empty.
    tile : int
        Keys in a tile.
    even : bool
        Whether the numbers of tiles differ by one at most, the larger ones first.
    """

    count: int
    tile: int
    even: bool

    def edges(self, S: int) -> Ints:
        """Return where the splits of S keys begin and end.

        Parameters
        ----------
        S : int
            Number of keys.

        Returns
        -------
        numpy.ndarray of int, shape (count + 1,)
            From 0 to S.
        """
        tiles, n = -(-S // self.tile), np.arange(self.count + 1)
        each, more = divmod(tiles, self.count)
        starts = n * each + np.minimum(n, more) if self.even else n * -(-tiles // self.count)
        return np.minimum(starts * self.tile, S)

    def __str__(self) -> str:
        """In words."""
        of = "" if self.tile == 1 else f" in tiles of {self.tile}"
        return f"{self.count} splits of the keys{of}, " + ("as even as can be" if self.even else "the last one shorter")


@dataclass(frozen=True)
class Past:
    """Keys in two splits, those before the queries' own and these.

    Parameters
    ----------
    own : int
        Number of keys in the second split.
    """

    own: int

    def edges(self, S: int) -> Ints:
        """Return where the splits of S keys begin and end.

        Parameters
        ----------
        S : int
            Number of keys.

        Returns
        -------
        numpy.ndarray of int, shape (3,)
            From 0 to S.
        """
        return np.array([0, max(0, S - self.own), S])

    def __str__(self) -> str:
        """In words."""
        return f"splits before and from the last {self.own} keys"


Cut = Cuts | Past


def parts(x: Head, cut: Cut) -> Iterator[State]:
    """State of each split by itself, those without keys as well, of scores that no bug changes."""
    for at in itertools.pairwise(cut.edges(x.S).tolist()):
        if at not in x.held:
            (x.held[at],) = x.states([slice(*at)])
        yield x.held[at]


# Of problems that several bugs are tried on.
FOUND: WeakKeyDictionary[Problem, dict[int, tuple[Cut, ...]]] = WeakKeyDictionary()


def cuts(problem: Problem, least: int = 2) -> tuple[Cut, ...]:
    """Cuts into splits of which some row sees at least so many, each once."""
    found = FOUND.setdefault(problem, {})
    if least not in found:
        found[least] = tuple(different_cuts(problem, least))
    return found[least]


def different_cuts(problem: Problem, least: int) -> Iterator[Cut]:
    """The cuts one by one."""
    lengths = np.unique(problem.sequences[1]).tolist()
    keeps = None if problem.mask is None else [Head(problem, *at).keep for at in sample(problem)]
    found: set[tuple[int, ...]] = set()
    for cut in every_cut(problem):
        edges = {S: cut.edges(S) for S in lengths}
        key = tuple(np.concatenate(list(edges.values())).tolist())
        if key not in found and (several(edges[lengths[-1]], least) if keeps is None else seen(keeps, edges, least)):
            found.add(key)
            yield cut


def every_cut(problem: Problem) -> Iterator[Cut]:
    """Every cut, those of the kernel's tiles and splits where these are known."""
    (L, S), of = problem.lengths, problem.tile_k
    tiles = CUT_TILES if of is None else (of,) if of < S else (1,)
    counts = COUNTS if problem.splits is None else (problem.splits,)
    for count, tile, even in itertools.product(counts, tiles, (False, True)):
        yield Cuts(count, tile, even)
    if problem.splits is None and L < S:
        yield Past(L)


def several(edges: Ints, least: int) -> bool:
    """Whether at least so many splits have keys."""
    return int((np.diff(edges) > 0).sum()) >= least


def seen(keeps: list[Any], edges: dict[int, Ints], least: int) -> bool:
    """Whether some row sees keys in at least so many splits."""
    for keep in keeps:
        before = np.pad(np.cumsum(keep, axis=-1), ((0, 0), (1, 0)))
        if ((np.diff(before[:, edges[keep.shape[1]]], axis=-1) > 0).sum(axis=-1) >= least).any():
            return True
    return False
