"""The hunt has teeth: every fault that is planted in the oracle is found, within fewer elements than it looks at."""

from __future__ import annotations

import pytest

from tests.certified import corners, faults, hunting, ties
from tests.certified.faults import Fault

FAULTS = [(fault, tier) for tier, some in zip(hunting.TIERS, (faults.FLOAT64, faults.DOUBLE_DOUBLE), strict=True)
          for fault in some]  # fmt: skip
KINDS = {kind.__name__: kind for kind in corners.KINDS}


def named(x: Fault | str) -> str:
    """The fault, or the tier, in the test's name."""
    return x.name if isinstance(x, Fault) else x


@pytest.mark.parametrize(("fault", "tier"), FAULTS, ids=named)
def test_the_hunt_finds_a_fault(fault, tier, monkeypatch):
    """A term that is dropped, a rule that is broken: some radius is violated."""
    faults.plant(fault, monkeypatch)
    found = hunting.of_kind(KINDS[fault.kind], 4000, tiers=(tier,), to_first=True)
    assert found[tier].wrong


@pytest.mark.parametrize("fault", faults.ROUNDING, ids=named)
def test_the_balls_find_a_fault_of_rounding(fault, monkeypatch):
    """A boundary, a zero or a tie that is taken wrongly: some number is not the nearest."""
    faults.plant(fault, monkeypatch)
    assert any(
        verdict.wrong or verdict.undecided
        for seed in range(20)
        for verdict in (ties.verdict(name, [seed]) for name in ties.NAMES)
    )
