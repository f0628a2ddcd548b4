"""What is told of one measurement."""

from __future__ import annotations

from dataclasses import dataclass

from refattn.testing.explanation import Explanation
from refattn.testing.probes.measured import Flags
from refattn.testing.probes.model import Model


@dataclass(frozen=True, eq=False)
class Read:
    """Explanations of one measurement, and the model that gives what was measured, if one does.

    `last` says that nothing more can be read from this kernel.
    """

    explanations: tuple[Explanation, ...]
    model: Model | None = None
    applied: Flags | None = None
    last: bool = False


def explained(
    name: str, where: str = "", effect: str = "", bug: str | None = None, strength: float = 0.0
) -> Explanation:
    """An explanation that a probe gives."""
    return Explanation(bug=bug, name=name, where=where, effect=effect, instrument="probe", strength=strength)
