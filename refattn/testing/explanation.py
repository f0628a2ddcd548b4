"""What may be wrong with a kernel, from one instrument: a probe's reading, a score test, or a known bug that fits."""

from __future__ import annotations

from dataclasses import dataclass

# Instruments in the order in which their words count: what was read out, then what was measured, then what fits.
INSTRUMENTS = ("probe", "score test", "known bug", "symptom")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One explanation of what is wrong with a kernel.

    Parameters
    ----------
    bug : str or None
        Id of the bug in `refattn.testing.bugs`; None where the explanation is no entry of that catalogue.
    name : str
        What is wrong, in a line that stands alone: "the causal mask is anchored upper_left, not lower_right".
    where : str, optional
        Heads, rows, keys or tiles that are concerned, in words.
    effect : str, optional
        How large it is, in the kernel's own terms: "scores times 0.9923 (109 sigma)".
    instrument : {"probe", "score test", "known bug", "symptom"}
        What found it.
    links : tuple of str, optional
        Public threads about kernels that had this bug.
    strength : float, optional
        How well it is supported among explanations of the same instrument; larger is better.
    """

    bug: str | None
    name: str
    where: str = ""
    effect: str = ""
    instrument: str
    links: tuple[str, ...] = ()
    strength: float = 0.0

    @property
    def text(self) -> str:
        """The explanation in one line."""
        parts = [self.name, *(x for x in (self.where, self.effect) if x)]
        return "; ".join(parts) + (f" [{self.bug}]" if self.bug else "")
