"""Every law, on each kernel that ``--attn-kernel`` names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from refattn.testing.naming import named_spec
from refattn.testing.suite import parameters

OPTION = "--attn-kernel"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the tests of the kernels that were named."""
    option = metafunc.config.getoption
    kernels: list[str] = option(OPTION, default=[])
    if not kernels:
        raise pytest.UsageError(f"refattn.conformance: a kernel must be named: {OPTION} module:SPEC")
    try:
        specs = [named_spec(OPTION, text) for text in kernels]
        found = parameters(specs, max_examples=option("--attn-max-examples"), repro=option("--attn-repro"))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise pytest.UsageError(f"refattn.conformance: {error}") from None
    metafunc.parametrize("check", found)


def test_conformance(check: Callable[[], None]) -> None:
    """Run one law on one kernel."""
    check()
