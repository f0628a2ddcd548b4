"""Correct rounding against balls: nothing is rounded wrongly, and without softcap nothing is left undecided.

`benchmarks/scripts/hunt_radii.py --rounding` is the same at any length.
"""

from __future__ import annotations

import pytest

from tests.certified import ties


@pytest.mark.parametrize("name", [*ties.NAMES, *ties.OTHERS])
def test_every_number_is_the_nearest(name):
    """Ordinary problems, adversarial ones, and a third of numbers that lie exactly where the rounding turns."""
    found = ties.verdict(name, range(120 if name in ties.NAMES else 40))
    assert not found.wrong, "\n".join(found.wrong[:10])
    assert not found.undecided, "\n".join(found.undecided[:10])
    assert found.elements > 250
    assert found.ties >= 0.2 * found.elements
