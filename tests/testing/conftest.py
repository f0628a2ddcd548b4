"""Fixtures of the judge's tests."""

from __future__ import annotations

import pytest

from refattn.testing import Readings


@pytest.fixture
def without_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """No laws, which have tests of their own."""
    monkeypatch.setattr("refattn.testing.kernel.CHECKS", ())


@pytest.fixture
def without_probes(monkeypatch: pytest.MonkeyPatch, without_laws: None) -> None:
    """No probes, whose findings would come before all others, and no laws: what lies between."""
    monkeypatch.setattr("refattn.testing.kernel.probe", lambda spec, quick: Readings())


@pytest.fixture
def without_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fit of the catalogue's bugs, much of the time of a report on a wrong kernel, for what else it says."""
    monkeypatch.setattr("refattn.testing.diagnosis.fitting.fits", lambda samples: [])
