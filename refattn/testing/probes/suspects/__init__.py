"""Known mistakes as models: what each would make of the operands of a probe, to be held against what came back."""

from __future__ import annotations

from collections.abc import Iterator

from refattn.testing.probes.model import Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects.logs import lse_suspects
from refattn.testing.probes.suspects.masks import of_mask, of_padding
from refattn.testing.probes.suspects.operands import of_heads, of_layout, of_scale
from refattn.testing.probes.suspects.record import Suspect
from refattn.testing.probes.suspects.scores import of_bias, of_sinks, of_softcap
from refattn.testing.probes.suspects.sums import of_numbers, of_rows, of_splits

__all__ = ("Suspect", "lse_suspects", "suspects")

FAMILIES = (
    of_mask,
    of_padding,
    of_heads,
    of_layout,
    of_scale,
    of_softcap,
    of_bias,
    of_sinks,
    of_rows,
    of_numbers,
    of_splits,
)


def suspects(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Mistakes that a kernel could have made besides what the model has already."""
    for family in FAMILIES:
        yield from family(setting, model)
