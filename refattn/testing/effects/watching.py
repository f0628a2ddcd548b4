"""Errors held against what rounding explains, part by part, beside the proven bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from refattn._call import Call
from refattn.contract import Bound, Contract
from refattn.contract.statistics import ALPHA, applies, sigmas, softmax_noise, statistical_bound
from refattn.testing.effects import measuring as effects
from refattn.testing.effects.evidence import Evidence, mean_squares
from refattn.testing.effects.explaining import Wrong
from refattn.testing.effects.measuring import Found
from refattn.testing.effects.record import Effect
from refattn.testing.verdict.judge import Compared, Part, Right
from refattn.testing.verdict.sampling import Rows

Floats = npt.NDArray[np.float64]


# Effects that name a key: they are none's shadow that explains all else.
OWN = ("key", "cell")


@dataclass(frozen=True)
class _Worst:
    """The number that is furthest beyond what rounding explains."""

    share: float
    error: float
    sigma: float
    bias: float
    where: str


@dataclass(eq=False)
class Statistics:
    """The statistical bound of all calls of a verdict, and the evidence of each."""

    contract: Contract
    cases: Sequence[tuple[Call, Rows]]
    worst: _Worst | None = None
    found: list[_OfCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        """All numbers of a verdict share its chance of a false alarm."""
        count = sum(rows.checked * (call.value.shape[-1] + 1) for call, rows in self.cases)
        self.z = sigmas(count)

    def of(self, call: Call) -> _OfCall:
        """Whom the parts of one call are shown to."""
        self.found.append(_OfCall(self, call))
        return self.found[-1]

    @property
    def budget_used(self) -> float | None:
        """Largest |error| over the statistical bound."""
        return None if self.worst is None else self.worst.share

    def effects(self, *, proven: bool) -> tuple[Effect, ...]:
        """What the errors have in common; a single number too large only where all are within the proven bound."""
        found = [self._explained(one, of_call) for of_call in self.found for one in of_call.effects()]
        worst = self.worst
        if proven and worst is not None and worst.share > 1:
            found.append(effects.element(worst.error, worst.sigma, worst.bias, self.z, worst.where))
        if any(effect.explained is not None and effect.causes for effect in found):
            found = [effect for effect in found if effect.causes and (effect.explained or effect.name in OWN)]
        found.sort(key=lambda effect: -effect.sigmas)
        return tuple(found[: effects.MOST])

    def _explained(self, found: Found, of_call: _OfCall) -> Effect:
        """The effect with the least share that it explains of the errors of any call."""
        effect, change = found
        if change is None:
            return effect
        known = effect.explained
        calls = [other.wrong for other in self.found if other.wrong.large and (other is not of_call or known is None)]
        shares = [] if known is None else [known]
        shares += [wrong.explained(change, effect.beta) for wrong in calls]
        return replace(effect, explained=min(shares, default=None))


@dataclass(eq=False)
class _OfCall:
    """The parts of one call."""

    all: Statistics
    call: Call

    def __post_init__(self) -> None:
        """Nothing seen yet."""
        score, E = self.call.score, self.call.query.shape[-1]
        assert score.groups is not None
        self.evidence: Evidence | None = None
        self.wrong = Wrong(self.call)
        if applies(self.all.contract, score):
            least = effects.floors(self.all.contract, score, E)["cell"]
            alpha = ALPHA / effects.KINDS / len(self.all.cases)
            self.evidence = Evidence(self.all.contract, score.groups[1], least, alpha)

    def add(self, part: Part, right: Right) -> None:
        """Take in one part."""
        if self.evidence is None or not part.output.got.size:
            return
        contract, problem = self.all.contract, right.problem
        noise = softmax_noise(contract, problem)
        expected = mean_squares(contract, noise, problem)
        self.wrong.add(part, right, noise, expected)
        if not noise.claim.any():
            return
        proven = Bound(right.output_bound, right.lse_bound)
        bound = statistical_bound(contract, noise, problem, proven, self.all.z)
        self._worst(part, part.output, bound.output, noise.output, noise.output_bias, noise.claim)
        if part.lse is not None and right.natural:
            self._worst(part, part.lse, bound.lse, noise.lse, noise.lse_bias, noise.claim)
        self.evidence.add(part.index, problem, noise, part.output.got, expected)

    def effects(self) -> list[Found]:
        """What the errors of the call have in common."""
        if self.evidence is None or not self.evidence.squares:
            return []
        return effects.effects(self.evidence, self.call.score, self.wrong)

    def _worst(
        self, part: Part, compared: Compared, bound: Floats, sigma: Floats, bias: Floats, claim: npt.NDArray[np.bool_]
    ) -> None:
        """Keep the largest share of the statistical bound."""
        with np.errstate(all="ignore"):
            error = np.abs(compared.got - compared.expected)
            share = np.where(error == 0, 0.0, error / bound)
        share = np.where(np.isnan(compared.share) | ~claim.reshape(-1, *[1] * (share.ndim - 1)), -1.0, share)
        share = np.where(np.isnan(share), np.inf, share)
        at = np.unravel_index(int(share.argmax()), share.shape)
        if share[at] < 0 or (self.all.worst is not None and share[at] <= self.all.worst.share):
            return
        *batch, head = part.index
        words = [*(f"batch {b}" for b in batch), f"head {head}", f"row {part.rows[at[0]]}"]
        words += [f"column {x}" for x in at[1:]] or ["lse"]
        self.all.worst = _Worst(float(share[at]), float(error[at]), float(sigma[at]), float(bias[at]), ", ".join(words))
