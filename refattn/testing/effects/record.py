"""One thing that errors have in common, as a verdict tells it."""

from __future__ import annotations

from dataclasses import dataclass

from refattn.testing.explanation import Explanation

# Share of the squared errors beyond the proven bound from which on an effect is their cause.
EXPLAINS = 0.99


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One thing that errors have in common, and that the contract does not explain.

    Parameters
    ----------
    name : str
        What was tested: "scale", "gain", "softcap", "bias", "key", "cell", "edge", "head", "noise", "row" or "element".
    beta : float
        Size: the relative error of the scale or output; the relative change of a key's weight, -1 for a lost one; 1 for
        a head that is read instead of another; how many times larger errors are than rounding makes them.
    sigmas : float
        How many standard errors of its estimate `beta` is from 0.
    allowed : float
        How many the contract and the number of tests allow.
    where : str
        Heads, rows and keys that are concerned.
    text : str
        All of it in a line.
    bug : str or None
        Id of a bug of refattn's catalogue that has this size. The `explanation` leaves it out where `explained` is
        below 0.99: the cause may be another one.
    explained : float or None
        Share of the squared errors beyond the proven bound, what rounding adds left out, that the effect explains: a
        kernel that has it, and nothing else wrong, is computed on some of the rows. None where there are no such
        errors, or the effect is none that could be computed.
    """

    name: str
    beta: float
    sigmas: float
    allowed: float
    where: str
    text: str
    bug: str | None = None
    explained: float | None = None

    @property
    def causes(self) -> bool:
        """Whether no error beyond the proven bound speaks against it."""
        return self.explained is None or self.explained >= EXPLAINS

    @property
    def explanation(self) -> Explanation:
        """The effect among the explanations of other instruments."""
        name, _, effect = self.text.partition(": ")
        return Explanation(
            bug=self.bug if self.causes else None,
            name=name,
            where=self.where,
            effect=effect,
            instrument="score test",
            strength=self.sigmas,
        )
