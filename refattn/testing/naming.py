"""Kernels by name, module:NAME, as they are given on a command line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from refattn.testing.spec import KernelSpec


def named(function: str, text: str) -> Any:
    """The object that module:NAME names; modules of the current folder are found too."""
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{function}: a kernel must be given as module:NAME; got {text!r}.")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ImportError(f"{function}: {module} could not be imported: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise AttributeError(f"{function}: {module} has no {name!r}.")
        found = getattr(found, part)
    return found


def named_spec(function: str, text: str) -> KernelSpec:
    """The KernelSpec that module:NAME names, or that of the function that it names."""
    found = named(function, text)
    return found if isinstance(found, KernelSpec) else KernelSpec(found)
