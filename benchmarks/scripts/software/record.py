"""A line of the table of software: the spec of its kernel, the contract that it documents, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from refattn import contract
from refattn.contract import Contract
from refattn.testing import KernelSpec

HALVES = ("bfloat16", "float16")
DTYPES = ("float32", *HALVES)
# Queries that are the last of the keys: what a cache asks for.
CACHED = ((1, 1), (1, 129), (16, 16), (63, 65), (128, 128), (127, 257))
NAN_SPREADS = "NaN in a hidden key or value spreads: its weight 0 is multiplied with it"
MEAN = "a row without keys is the mean of the values"
ONE_SEQUENCE = "several queries after a past: refused for more than one sequence"
SPREADING = {"check_masked_nan": NAN_SPREADS}
UNDEFINED = dict.fromkeys(("empty_rows", "check_empty_rows"), "a row without keys is NaN") | SPREADING
MEANING = {"empty_rows": MEAN, "check_empty_rows": MEAN, **SPREADING}


@dataclass(frozen=True)
class Entry:
    """A line of the table: the spec, and what it is the spec of."""

    software: str
    version: str
    backend: str
    dtype: str
    contract: str
    spec: KernelSpec
    conventions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A contract and its name in the table."""

    name: str
    contract: Contract


def flash(dtype: str) -> Claim:
    """A tiled kernel."""
    return Claim("flash", contract.flash(dtype))


def eager(dtype: str) -> Claim:
    """Each stage is stored in the dtype of the inputs."""
    return Claim("eager", contract.eager(dtype))


def scores_in_float32(dtype: str) -> Claim:
    """Scores and softmax in float32, normalised weights rounded to the inputs' dtype."""
    if dtype == "float32":
        return eager(dtype)
    return Claim("eager, scores float32", replace(contract.eager(dtype), scores="float32", rounded=()))


def all_in_float32(dtype: str) -> Claim:
    """Half precision is widened, and only the output is rounded back."""
    if dtype == "float32":
        return eager(dtype)
    widened = replace(contract.eager("float32"), query=dtype, key=dtype, value=dtype, output=dtype, rounded=())
    return Claim("eager in float32, output rounded", widened)


def entry(
    software: str, package: str, backend: str, dtype: str, claim: Claim, kernel: Any, *notes: str, **fields: Any
) -> Entry:
    """A line of the table."""

    def called(*arrays: Any, **arguments: Any) -> Any:
        return kernel(*arrays, **arguments)

    called.__name__ = f"{software} {backend} {dtype}"
    fields = {"dims": (64, 80), **fields}
    spec = KernelSpec(called, contract=claim.contract, **fields)
    return Entry(software, version(package), backend, dtype, claim.name, spec, notes)
