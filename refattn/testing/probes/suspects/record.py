"""A known mistake as a model, and the sizes that are tried of tiles and splits."""

from __future__ import annotations

from dataclasses import dataclass

from refattn.testing.probes.model import Model

TILES = (16, 32, 64, 128, 256)
SPLITS = (2, 3, 4, 8, 16)


@dataclass(frozen=True)
class Suspect:
    """A mistake, and the model of a kernel that makes it."""

    bug: str | None
    name: str
    model: Model
