"""Masks whose cells are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core.anchors import integer
from refattn._core.arrays import Array, moved
from refattn._core.checks import check_real
from refattn.masks.arguments import positions
from refattn.masks.base import Ints, Mask, Positions
from refattn.masks.families import heads_of


@dataclass(frozen=True, eq=False, repr=False)
class Bernoulli(Mask):
    """Cells that are each drawn on their own."""

    keep: float
    seed: int
    b: Ints
    h: Ints
    text: str

    @property
    def lead(self) -> tuple[int, ...]:
        """(batch, heads) as far as they were given."""
        return np.broadcast_shapes(self.b.shape, self.h.shape)

    def _tile(self, i: Positions, j: Positions, L: int, S: int, *, xp: Any, device: Any) -> Array:
        q, k = positions(i, np, None), positions(j, np, None)
        block = int(np.min(k, initial=S)) // 4
        drawn = max(0, int(np.max(k, initial=-1)) + 1 - 4 * block)
        cells = np.zeros((*self.lead, q.size, k.size), np.bool_)
        for index in np.ndindex(self.lead):
            b, h = (int(np.broadcast_to(x, self.lead)[index]) for x in (self.b, self.h))
            # A word of the counter each for row, head and batch entry: no two rows share a number.
            rows = [np.random.Philox(key=self.seed, counter=[block, r, h, b]).random_raw(drawn) for r in q.tolist()]
            bits = np.array(rows, np.uint64).reshape(q.size, drawn)[:, k - 4 * block]
            cells[index] = (bits >> 11) * 2.0**-53 < self.keep
        return moved(cells, xp, device)

    def _at(self, index: tuple[int, ...]) -> Mask:
        b, h = (np.asarray(np.broadcast_to(x, self.lead)[index]) for x in (self.b, self.h))
        return Bernoulli(self.keep, self.seed, b, h, f"{self.text}.at({index})")

    def __repr__(self) -> str:
        """The call that makes it."""
        return self.text


def bernoulli(keep: float, seed: int, *, batch: int | None = None, heads: int | None = None) -> Mask:
    """Mask of random cells, as dropout takes them.

        query i sees key j  iff  u[b, h, i, j] < keep,  u uniform in [0, 1)

    Parameters
    ----------
    keep : float
        Probability of True, 0 <= keep <= 1: one minus the share that dropout drops.
    seed : int
        Which numbers, 0 <= seed < 2**128.
    batch, heads : int, optional
        Number of batch entries and of query heads. Default: the cells are the same for all.

    Returns
    -------
    Mask
        With ``lead`` of ``()``, ``(heads,)``, ``(batch, 1)`` or ``(batch, heads)``.

    Raises
    ------
    TypeError
        If `keep` is no real number, or `seed`, `batch` or `heads` no integer.
    ValueError
        If `keep` is no probability, `seed` lies outside its range, or `batch` or `heads` is negative.

    Notes
    -----
    Nothing is kept and nothing depends on L or S: u[b, h, i, j] is the j-th double of NumPy's Philox4x64-10 with the
    seed as its key and the counter (0, i, h, b), the top 53 bits of a word times 2^-53. A batch or heads that were not
    given count as 0. Of one seed, what is kept by less is kept by more. Cost: each tile is drawn anew, from its first
    key to its last.

    References
    ----------
    .. [1] J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import masks
    >>> mask = masks.bernoulli(0.75, seed=1, heads=2)
    >>> print(mask.at((1,)).draw(3, 12))
      0         1
      012345678901
    0 #.##.##..###
    1 .########.##
    2 .###....###.
    >>> u = np.random.Generator(np.random.Philox(key=1, counter=[0, 2, 1, 0])).random(12)
    >>> np.array_equal(mask.dense(3, 12)[1, 2], u < 0.75)
    True
    """
    share = check_real("masks.bernoulli", "keep", keep, "a real number")
    if not 0 <= share <= 1:
        raise ValueError(f"masks.bernoulli: keep must be a probability, 0 <= keep <= 1; got {keep}.")
    rule = "masks.bernoulli: seed must be an integer, 0 <= seed < 2**128; got"
    try:
        number = integer(seed)
    except TypeError:
        raise TypeError(f"{rule} {seed!r}.") from None
    if not 0 <= number < 2**128:
        raise ValueError(f"{rule} {number}.")
    b, h, given = heads_of("masks.bernoulli", batch, heads)
    return Bernoulli(share, number, b, h, f"masks.bernoulli({', '.join([f'{share}, {number}', *given])})")
