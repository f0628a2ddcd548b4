"""How a bug is planted: its record, what a kernel must compute to show it, and the KernelSpec that exposes this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refattn import biases, masks
from refattn.layouts import Layout
from refattn.testing import KernelSpec
from tests.judge.facts import Facts
from tests.judge.tiled import Tiled

Lengths = tuple[tuple[int, int], ...]


def lengths(n: int) -> Lengths:
    """Pairs (L, S) about n: square, decoding, a chunk behind a cache, more queries than keys, and one key more."""
    return (n, n), (1, n + 1), (n // 2 + 3, n + 1), (n + 1, n // 2 + 3), (n - 1, n + 1)


def cached(n: int) -> Lengths:
    """Pairs (L, S) of a cache: never more queries than keys."""
    return (1, n + 1), (16, n), (n // 2 + 3, n + 1), (n // 4, n - 1)


def taller(n: int) -> Lengths:
    """Pairs (L, S) whose last has more queries than keys."""
    return (n, n), (1, n + 1), (n // 2 + 3, n + 1), (n - 1, n + 1), (n + 1, n // 2 + 3)


@dataclass(frozen=True, eq=False)
class Bug:
    """A planted bug, and what a spec needs for it to show."""

    key: str  # id in the catalogue, ":" and a word where it is planted more than once
    title: str
    kernel: type[Tiled]
    same: tuple[str, ...] = ()  # ids of bugs that do the same to these kernels
    facts: Mapping[str, Any] = field(default_factory=dict)
    accepts: tuple[str, ...] = ()
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int | tuple[int, int], ...] = (64, (48, 32))
    lengths: Callable[[int], Lengths] = lengths
    batch: tuple[int, ...] = (1, 2)
    layout: str | Layout = "bhld"
    # Of bugs outside the catalogue: what is concerned, by axis; an axis that is left out is concerned as a whole.
    where: Mapping[str, frozenset[int]] | None = None

    @property
    def id(self) -> str:
        """Id in the catalogue; "" outside it."""
        return "" if self.where is not None else self.key.partition(":")[0]

    @property
    def acceptable(self) -> frozenset[str]:
        """Ids that are no wrong name."""
        return frozenset({self.id, *self.same} - {""})


def plant(registry: dict[str, Bug], key: str, title: str, **needs: Any) -> Callable[[type[Tiled]], type[Tiled]]:
    """Class decorator: the kernel class below is bug `key`."""

    def planted(kernel: type[Tiled]) -> type[Tiled]:
        assert key not in registry
        kernel.key = key
        kernel.__doc__ = title
        registry[key] = Bug(key, title, kernel, **needs)
        return kernel

    return planted


def arguments(facts: Facts, heads: int) -> Callable[[int, int], dict[str, Any]]:
    """What a kernel of these facts computes, in refattn's arguments, as `KernelSpec.computes` takes it."""

    def computes(L: int, S: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if facts.prefix:
            found["mask"] = masks.prefix(facts.prefix, anchor=facts.anchor)
        elif facts.window is not None:
            left, right = facts.window
            found["mask"] = masks.window(left, 0 if facts.causal else right, anchor=facts.anchor)
        elif facts.causal:
            found["mask"] = masks.causal(anchor=facts.anchor)
        if facts.slopes:
            slopes = heads if facts.slopes is True else np.array(facts.slopes, np.float32)
            found["bias"] = biases.alibi(slopes, anchor=facts.anchor)
        if facts.scale is not None:
            found["scale"] = facts.scale
        if facts.softcap is not None:
            found["softcap"] = facts.softcap
        return found

    return computes


def spec_of(bug: Bug, dtype: str, n: int, *, right: bool = False, **facts: Any) -> KernelSpec:
    """The spec that exposes what a bug needs, at about n keys; with `right`, of the kernel without the bug."""
    made = replace(Facts(dtype=dtype), **{**bug.facts, **facts})
    return KernelSpec(
        (Tiled if right else bug.kernel)(made),
        computes=arguments(made, bug.heads[0]),
        accepts=bug.accepts,
        returns=("output", "lse"),
        contract=dtype,
        layout=bug.layout,
        batch=bug.batch if n < 1024 or min(bug.batch) > 1 else (1,),
        heads=bug.heads,
        dims=bug.dims,
        lengths=bug.lengths(n),
    )
