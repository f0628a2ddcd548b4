"""The public functions that are attention methods, found by what they declare, and what a law may miss by."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import contract
from refattn._call import prepare
from refattn.methods.linear.bound import linear_bound
from tests.namespaces import Library, library
from tests.strategies import Problem

NUMPY = library("numpy")
OPTIONAL = {"numba": "numba", "cuda": "cupy"}


@dataclass(frozen=True)
class Form:
    """One form of one public function."""

    function: Callable[..., Any]
    implementation: str

    @property
    def name(self) -> str:
        """Its name in test ids."""
        return f"{self.function.capabilities.function}-{self.implementation}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of its optional arguments."""
        return self.function.capabilities.arguments

    def __call__(self, problem: Problem, lib: Library = NUMPY, **more: Any) -> Any:
        """The function's result on a problem."""
        return problem.call(self.function, lib, **more, **self.named())

    def on(self, arrays: tuple[np.ndarray, ...], problem: Problem, lib: Library = NUMPY, **more: Any) -> Any:
        """The function's result on other arrays, with a problem's arguments."""
        arguments = problem.arguments(lib) | more | self.named()
        return self.function(*map(lib.array, arrays), **arguments)

    def full(self, problem: Problem, lib: Library = NUMPY, **more: Any) -> ra.AttentionResult:
        """Output, and the log-sum-exp where the function has one."""
        return self.full_on(problem.arrays, problem, lib, **more)

    def full_on(
        self, arrays: tuple[np.ndarray, ...], problem: Problem, lib: Library = NUMPY, **more: Any
    ) -> ra.AttentionResult:
        """The same on other arrays, with a problem's arguments."""
        if "return_lse" in self.arguments:
            return self.on(arrays, problem, lib, return_lse=True, **more)
        return ra.AttentionResult(self.on(arrays, problem, lib, **more))

    def serves(self, lib: Library) -> bool:
        """Whether the form serves the library's arrays."""
        return lib.module in self.function.capabilities.serves(self.implementation)

    def refuses(self, lib: Library) -> None:
        """The form says so where it gets the arrays of a library that it does not serve."""
        with pytest.raises(ra.ImplementationError, match=f'implementation="{self.implementation}" serves '):
            self(Problem(heads=(2, 1), lengths=(3, 3), features=(2, 2)), lib)

    def radii(self, problem: Problem, **more: Any) -> dict[str, np.ndarray]:
        """What `radius` says of each result that the function has, by its name."""
        found = dict(zip(("output", "lse"), self.radius(problem, **more), strict=True))
        return found if "return_lse" in self.arguments else {"output": found["output"]}

    def radius(
        self, problem: Problem, arrays: tuple[np.ndarray, ...] | None = None, min_tile: int = 16
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far two evaluations of output and lse on this problem may lie apart: the method's own proven bound.

        The contract is that of the form's accumulation, for float64 arrays in and out and tiles of so many keys.
        """
        capabilities = self.function.capabilities
        if capabilities.bound is linear_bound:
            given = (problem.arguments(NUMPY) | {"dtype": "float64"}).items()
            found = ra.linear_error_bound(
                *(problem.arrays if arrays is None else arrays), contract=contract.flash(capabilities.accumulation),
                **{name: x for name, x in given if name in self.arguments},
            )  # fmt: skip
            return found, np.zeros(found.shape[:-1])
        arguments = dict.fromkeys(["mask", "bias", "scale", "softcap", "sinks", "dtype"]) | {"is_causal": False}
        arrays = problem.arrays if arrays is None else arrays
        call = prepare("test", *arrays, **(arguments | problem.arguments(NUMPY)))
        (H, _), (L, _S), (_, Ev) = problem.heads, problem.lengths, problem.features
        lead = (*problem.batch, H)
        output, lse = np.zeros((*lead, L, Ev)), np.zeros((*lead, L))
        reference = self.on(arrays, problem, return_lse=True)
        promised = replace(contract.flash(capabilities.accumulation), min_tile=min_tile)
        for index in np.ndindex(lead):
            q, k, v, score = call.slab(index)
            bound = capabilities.bound(
                promised,
                contract.Problem(
                    q[...], k[...], v[...], score, np.arange(L), reference.output[index], reference.lse[index]
                ),
            )
            output[index], lse[index] = bound.output, bound.lse
        return output, lse

    def named(self) -> dict[str, str]:
        """The argument that asks for this form, where the function has several."""
        several = len(self.function.capabilities.implementations) > 1
        return {"implementation": self.implementation} if several else {}


def methods() -> list[Callable[..., Any]]:
    """Every public function that declares what it serves."""
    return [x for x in (getattr(ra, name) for name in ra.__all__) if callable(x) and hasattr(x, "capabilities")]


def forms(law: str) -> Any:
    """Parametrize a test over every form of every public function that declares the law."""
    found = [
        Form(function, implementation)
        for function in methods()
        if law in function.capabilities.laws
        for implementation in function.capabilities.implementations
    ]
    return pytest.mark.parametrize("form", [_param(form) for form in found])


def _param(form: Form) -> Any:
    """The form as a parameter, skipped and counted where what it needs is not installed."""
    needs = OPTIONAL.get(form.implementation)
    missing = needs is not None and importlib.util.find_spec(needs) is None
    marks = [pytest.mark.skipif(missing, reason=f"{needs} is not installed")] if needs else []
    return pytest.param(form, id=form.name, marks=marks)
