"""No radius is violated: 38 kinds of problems in both tiers against balls, in exact inequalities.

`benchmarks/scripts/hunt_radii.py` is the same hunt at any length.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refattn.oracle import double_double, float64
from tests.certified import corners, hunting, kinds

KINDS = {kind.__name__: kind for kind in corners.KINDS}

# Kinds whose balls, or whose cells, cost more.
FEW = {"long": 240, "tiles": 1000, "empty": 600, "sums": 1000, "families": 1200, "combo": 1200}
ELEMENTS = 1550

# radius / max |v|, medians of the float64 and of the double-double tier: a proof that grows laxer shows here.
WIDTHS = {
    "normal": (1.8e-15, 6.4e-24), "wide": (1.2e-15, 2.6e-24), "huge": (2.5e-13, 1e-23), "cancel": (1.8e-15, 7.2e-24),
    "equal": (1.3e-15, 6e-24), "mask": (1.2e-15, 3.1e-24), "bias": (3.5e-15, 7.7e-24), "alibi": (1.8e-15, 6.7e-24),
    "softcap": (7.9e-15, 3.3e-23), "sink": (2.1e-15, 5.6e-24), "subn16": (1.2e-15, 5.9e-24),
    "edge600": (1.2e-214, 2.9e-27), "scale": (2.3e-15, 7.6e-24), "combo": (1.3e-14, 6.9e-23),
    "peaky": (5.5e-15, 9.5e-24), "adv_half": (6.3e-15, 9.9e-24), "near": (1e-12, 6e-24),
}  # fmt: skip

# Kinds that are also cut into small pieces.
IN_PIECES = ("tiles", "long", "mask", "poison", "families", "dropout", "inexact", "softcap")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(x, id=x.__name__, marks=[pytest.mark.slow] * (x.__name__ in IN_PIECES)) for x in corners.KINDS],
)
def test_every_radius_holds(kind):
    """|output + output_low - exact| <= radius, and so for lse; finite inside the domain, and no wider than it was."""
    name = kind.__name__
    found = hunting.of_kind(kind, FEW.get(name, ELEMENTS))
    for place, (tier, tally) in enumerate(found.items()):
        assert not tally.wrong, "\n".join(tally.wrong[:10])
        assert tally.inside > 100
        assert tally.infinite_inside <= 0.01 * tally.inside, tier
        if name in WIDTHS:
            assert np.median(tally.widths) <= 2 * WIDTHS[name][place], tier


@pytest.mark.parametrize("name", IN_PIECES)
def test_every_radius_holds_in_small_pieces(name, monkeypatch):
    """Where a head is too long to be held, or a tile holds few rows, as in problems that are too large for a test."""
    for module, sizes in (
        (float64, {"CELLS": 40, "TALL": 1, "HELD": 0, "CHUNK": 128}),
        (double_double, {"TILE": 40, "TALL": 1, "HELD": 0, "CHUNK": 64}),
    ):
        for constant, value in sizes.items():
            monkeypatch.setattr(module, constant, value)
    for tier, tally in hunting.of_kind(KINDS[name], 200, first=10**6).items():
        assert not tally.wrong, "\n".join(tally.wrong[:10])
        assert tally.infinite_inside <= 0.01 * tally.inside, tier


@pytest.mark.parametrize("tier", hunting.TIERS)
def test_memory_that_no_row_sees_changes_nothing(tier):
    """NaN and infinities behind the mask: the same numbers and the same radii, to the last bit."""
    for seed in range(60):
        case = corners.poison(kinds.kind_rng(corners.poison, seed))
        assert case.visible is not None
        unseen = ~case.visible.any(axis=(0, 1))
        changed = {name: getattr(case, name).copy() for name in ("key", "value")}
        for x in changed.values():
            x[..., unseen, :] = 1.5
        want, got = (hunting.certified(one, tier) for one in (replace(case, **changed), case))
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(a, b)
