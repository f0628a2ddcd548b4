"""What the probes read out of a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refattn.testing.explanation import Explanation


@dataclass(frozen=True, kw_only=True, eq=False)
class Readings:
    """What a kernel really did on inputs whose right answer is known without a tolerance.

    Parameters
    ----------
    explanations : tuple of Explanation
        What was read that the spec does not ask for, first causes first.
    applied_mask, asked_mask : array of bool, shape (H, L, S), or None
        Who takes part, and who is to, in the first problem where the two differ.
    calls : int
        Number of times that the kernel was called.
    skipped : tuple of (str, str)
        Probes that were not run, each with its reason.
    """

    explanations: tuple[Explanation, ...] = ()
    applied_mask: npt.NDArray[np.bool_] | None = None
    asked_mask: npt.NDArray[np.bool_] | None = None
    calls: int = 0
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the kernel was called and did nothing but what it was asked to."""
        return self.calls > 0 and not self.explanations
