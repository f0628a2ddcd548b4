"""What each public function declares of itself, and the choice of a form by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from refattn._core.cost import Cost

F = TypeVar("F", bound=Callable[..., Any])


class ImplementationError(NotImplementedError):
    """A form of a method that can't serve the call it was asked for."""


class ConventionError(ValueError):
    """A call of another system that refattn's arguments can't express."""


@dataclass(frozen=True)
class Capabilities:
    """What a public function serves. Dispatch, law tests, support table and benchmarks are made from it.

    Attributes
    ----------
    function : str
        Its public name.
    method : str
        What it computes, with the paper.
    implementations : tuple of str
        Names of its forms, for ``implementation=``.
    namespaces : tuple of str
        Array libraries that it is tested on.
    dtypes : tuple of str
        Input dtypes that it is tested on.
    arguments : tuple of str
        Its keyword arguments.
    accumulation : str
        Dtype that it computes in.
    time, memory : str
        Order of its cost.
    laws : tuple of str
        Names of the law tests that hold for it.
    inputs : tuple of str
        Its positional arguments, all arrays.
    bound : callable or None
        The theorem on a kernel's error, ``bound(contract, problem)``; None where nothing is proved.
    cost : mapping of str to callable, or None
        What each form costs, ``cost[form](work)``; None where nothing is counted.
    narrower : mapping of str to tuple of str
        Array libraries of each form that serves fewer than `namespaces`.
    """

    function: str
    method: str
    implementations: tuple[str, ...]
    namespaces: tuple[str, ...]
    dtypes: tuple[str, ...]
    arguments: tuple[str, ...]
    accumulation: str
    time: str
    memory: str
    laws: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("query", "key", "value")
    bound: Callable[..., Any] | None = field(default=None, repr=False)
    cost: Mapping[str, Callable[[Any], Cost]] | None = field(default=None, repr=False)
    narrower: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def serves(self, implementation: str) -> tuple[str, ...]:
        """Array libraries that one form serves.

        Parameters
        ----------
        implementation : str
            One of `implementations`.

        Returns
        -------
        tuple of str
            Their names.
        """
        return self.narrower.get(implementation, self.namespaces)


def declare(capabilities: Capabilities) -> Callable[[F], F]:
    """Decorator that hangs the record on the function as ``function.capabilities``."""

    def hang(function: F) -> F:
        function.capabilities = capabilities  # type: ignore[attr-defined]
        return function

    return hang


def choose(capabilities: Capabilities, implementation: object) -> str:
    """The form asked for by name; None is the reference. Nothing else is ever taken in its place."""
    if implementation is None:
        return "reference"
    if isinstance(implementation, str) and implementation in capabilities.implementations:
        return implementation
    choices = ", ".join(repr(name) for name in capabilities.implementations)
    raise ImplementationError(
        f"{capabilities.function}: implementation must be one of {choices}, or None for 'reference'; "
        f"got {implementation!r}."
    )


def refusal(capabilities: Capabilities, implementation: str, why: str) -> ImplementationError:
    """The error of a form that was asked for by name and can't serve the call."""
    return ImplementationError(f'{capabilities.function}: implementation="{implementation}" {why}')
