"""Fixtures of the judge's tests."""

from __future__ import annotations

import pytest

from refattn.testing import Readings


@pytest.fixture
def without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probes, whose findings would come before all others."""
    monkeypatch.setattr("refattn.testing.kernel.probe", lambda spec, quick: Readings())
