"""The ground truth for attention: what is right, whether a kernel is, and what each method costs and loses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refattn import biases, contract, conventions, data, masks, testing
    from refattn._call import AttentionResult
    from refattn._core.arrays import from_numpy, to_numpy
    from refattn._core.choice import Capabilities, ConventionError, ImplementationError
    from refattn.contract import Contract
    from refattn.methods.exact.interface import attention
    from refattn.methods.exact.merge import merge_states
    from refattn.methods.exact.rows import attention_rows

__version__ = "0.1.0"

__all__ = (
    "AttentionResult",
    "Capabilities",
    "Contract",
    "ConventionError",
    "ImplementationError",
    "attention",
    "attention_rows",
    "biases",
    "contract",
    "conventions",
    "data",
    "from_numpy",
    "masks",
    "merge_states",
    "testing",
    "to_numpy",
)

_HOMES = {
    "AttentionResult": "_call",
    "Capabilities": "_core.choice",
    "Contract": "contract",
    "ConventionError": "_core.choice",
    "ImplementationError": "_core.choice",
    "attention": "methods.exact.interface",
    "attention_rows": "methods.exact.rows",
    "from_numpy": "_core.arrays",
    "merge_states": "methods.exact.merge",
    "to_numpy": "_core.arrays",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'refattn' has no attribute {name!r}")
    if name not in _HOMES:
        return import_module(f"refattn.{name}")
    value = getattr(import_module(f"refattn.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
