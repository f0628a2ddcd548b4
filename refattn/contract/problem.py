"""What a bound is asked about, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.score import Score
from refattn.contract.errors import Floats


@dataclass(frozen=True)
class Problem:
    """Chosen rows of one (batch, head) and their reference values, all NumPy float64.

    Attributes
    ----------
    query : array, shape (R, E)
        The rows' queries.
    key : array, shape (S, E)
        All keys.
    value : array, shape (S, Ev)
        All values.
    score : Score
        What changes the scores; its mask and bias have no leading axes.
    rows : integer array, shape (R,)
        The rows' positions among the L queries.
    output : array, shape (R, Ev)
        The reference's output.
    lse : array, shape (R,)
        The reference's log-sum-exp.
    output_radius : array, shape (R, Ev), optional
        How far the reference's output may be from the exact one, where more is proven than that it is a float64
        evaluation; inf where not.
    lse_radius : array, shape (R,), optional
        How far its log-sum-exp may be.
    """

    query: Floats
    key: Floats
    value: Floats
    score: Score
    rows: npt.NDArray[np.int64]
    output: Floats
    lse: Floats
    output_radius: Floats | None = None
    lse_radius: Floats | None = None

    def part(self, rows: slice) -> Problem:
        """Return the problem of some of the rows.

        Parameters
        ----------
        rows : slice
            Which of the R rows.

        Returns
        -------
        Problem
            With the same keys and values.
        """
        of_rows = (self.query[rows], self.key, self.value, self.score, self.rows[rows])
        radii = (None if x is None else x[rows] for x in (self.output_radius, self.lse_radius))
        return Problem(*of_rows, self.output[rows], self.lse[rows], *radii)


class Bound(NamedTuple):
    """Proven bounds on |kernel - reference|; inf where the theorem makes no claim.

    Attributes
    ----------
    output : array, shape (R, Ev)
        For the output as the kernel stores it. 0 in rows that see nothing: there the kernel must give zeros.
    lse : array, shape (R,)
        For the natural log-sum-exp. 0 in rows that see nothing and have no sink: there it must be -inf.
    gradients : None
        No bound on gradients is proved here.
    """

    output: Floats
    lse: Floats
    gradients: None = None
