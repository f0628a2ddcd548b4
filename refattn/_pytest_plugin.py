"""The pytest plugin: which kernels ``pytest --pyargs refattn.conformance`` runs on. It imports pytest alone."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name kernels."""
    group = parser.getgroup("refattn", "attention kernels (pytest --pyargs refattn.conformance)")
    group.addoption(
        "--attn-kernel",
        action="append",
        default=[],
        metavar="module:SPEC",
        help="a KernelSpec, or a function of (query, key, value), to check; may be given several times",
    )
    group.addoption(
        "--attn-max-examples", type=int, default=25, metavar="N", help="number of problems for each law (default: 25)"
    )
    group.addoption(
        "--attn-repro", default=None, metavar="FOLDER", help="where a bundle and a script of each broken law are saved"
    )
