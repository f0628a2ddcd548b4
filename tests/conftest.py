"""Array libraries, poisoned memory, and the two hypothesis profiles.

"quick" is the default; `--hypothesis-profile=long` draws 20,000 examples in every test that does not say how many it
needs, which are the fuzz tests alone. In continuous integration (CI is set) the quick profile draws the same examples
every time.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.namespaces import COSTLY, NAMES, Library, library

# No Phase.explain: it traces every line, and its report names lines of NumPy. No deadline: the first call imports.
COMMON: dict[str, Any] = {
    "deadline": None,
    "phases": [phase for phase in Phase if phase is not Phase.explain],
    "suppress_health_check": [HealthCheck.too_slow],
    "print_blob": True,
}
IN_CI = bool(os.environ.get("CI"))
settings.register_profile(
    "quick", max_examples=200, derandomize=IN_CI, **COMMON, **({"database": None} if IN_CI else {})
)
settings.register_profile("long", max_examples=20_000, **COMMON)
settings.load_profile("quick")


# What holds of arrays that may not be written to holds of others; those have their turn in `make test-all`.
ONCE = [pytest.param(name, marks=pytest.mark.slow) if name == "numpy" else name for name in NAMES]


@pytest.fixture(scope="session", params=ONCE)
def namespace(request: pytest.FixtureRequest) -> Library:
    """Every array library in turn; PyTorch is skipped, and counted as skipped, where it is not installed."""
    return library(request.param)


@pytest.fixture(scope="session", params=COSTLY)
def costly(request: pytest.FixtureRequest) -> Library:
    """JAX, dask and CuPy in turn, each skipped, and counted as skipped, where it cannot run."""
    return library(request.param)


@pytest.fixture(scope="session", params=[*NAMES, *COSTLY])
def every(request: pytest.FixtureRequest) -> Library:
    """Every array library in turn, the costly ones among them."""
    return library(request.param)


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what numpy.empty and torch.empty hand out with NaN, so that a cell that is never written shows.

    Compiled code does not go through these functions: its tests must poison the buffers they hand in.
    """
    modules = [np]
    try:
        import torch
    except ImportError:
        pass
    else:
        modules.append(torch)
    for module in modules:
        for name in ("empty", "empty_like"):
            monkeypatch.setattr(module, name, _poisoned(getattr(module, name)))


def _poisoned(empty: Any) -> Any:
    """`empty`, with NaN in every cell of a floating-point result."""

    def filled(*args: Any, **kwargs: Any) -> Any:
        x = empty(*args, **kwargs)
        if "float" in str(x.dtype):
            x[...] = np.nan
        return x

    return filled
