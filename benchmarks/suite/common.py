"""The grid that every benchmark walks: forms of public functions, the arguments they declare, and drawn inputs."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

import refattn as ra

HEADS, DIM = 8, 64


def forms(*, rows: bool) -> list[str]:
    """`function/form`, for every declared form of a public function of query, key and value, with or without `rows`."""
    public = (getattr(getattr(ra, name), "capabilities", None) for name in ra.__all__)
    return [
        f"{declared.function}/{form}"
        for declared in public
        if isinstance(declared, ra.Capabilities) and declared.inputs == ("query", "key", "value")
        if ("rows" in declared.arguments) == rows
        for form in declared.implementations
    ]


def softmax_forms() -> list[str]:
    """Those of `forms`, without rows, that compute what the contract's theorem is about."""
    whole = forms(rows=False)
    return [x for x in whole if getattr(ra, x.partition("/")[0]).capabilities.bound is ra.contract.softmax_bound]


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of a call, by the name under which they are plotted."""
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "window": {"mask": ra.masks.window(127, 0)},
        "alibi": {"is_causal": True, "bias": ra.biases.alibi(HEADS)},
        "softcap": {"softcap": 30.0},
    }


def needed(function: str, length: int) -> dict[str, Any]:
    """What a function can't do without besides its arrays: the drawn numbers of those that estimate, of fixed sizes."""
    made = {
        "projection": lambda: ra.random_projection(256, DIM, rng=0),
        "key_projection": lambda: ra.linformer_projection(length, 64, rng=0),
    }
    parameters = inspect.signature(getattr(ra, function)).parameters.values()
    names = [x.name for x in parameters if x.kind is x.KEYWORD_ONLY and x.default is x.empty]
    return {name: made[name]().astype(np.float32) for name in names}


def arguments(form: str, case: str, length: int) -> dict[str, Any]:
    """Arguments of a case; NotImplementedError, which asv shows as n/a, where the function declares too few."""
    function, implementation = form.split("/")
    given, declared = cases()[case], getattr(ra, function).capabilities.arguments
    if not set(given) <= set(declared):
        raise NotImplementedError
    given = {**given, **needed(function, length)}
    return given if implementation == "reference" else {**given, "implementation": implementation}


def drawn(length: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard normal query, key and value (1, HEADS, length, DIM), the same in every process."""
    random = np.random.default_rng(0)
    return tuple(random.standard_normal((1, HEADS, length, DIM)).astype(dtype) for _ in range(3))
