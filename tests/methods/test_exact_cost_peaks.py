"""Memory and traffic of exact attention where one moment or another holds the most."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.methods.test_exact_cost import counted, formula, nonzero

# Sizes that make rows, cells, values or heads the largest; every shape of cells.
SIZES = {
    "cells": ((2,), (4, 2), (3, 120), (2, 1)),
    "rows": ((1,), (2, 1), (40, 1), (1, 1)),
    "values": ((), (2, 2), (3, 2), (1, 60)),
    "heads": ((), (30, 6), (1, 1), (1, 1)),
    "no keys": ((), (4, 2), (9, 0), (2, 5)),
    "no keys and no values": ((), (4, 2), (9, 0), (2, 0)),
    "no keys and one value": ((), (4, 2), (9, 0), (2, 1)),
}
FULL = {"mask": True, "bias": True, "dropout_mask": True}
GIVEN: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": True},
    "mask": {"mask": True},
    "bias": {"bias": True},
    "dropout": {"dropout_mask": True},
    "mask and bias": {"mask": True, "bias": True},
    "all": {"softcap": 2.0, "sinks": True, **FULL},
}


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("sizes", SIZES)
def test_the_reference_where_something_is_large(sizes: str, given: str, weights: bool) -> None:
    batch, (H, Hk), (L, S), features = SIZES[sizes]
    call = {"softcap": None, "sinks": False, "mask": None, "bias": None, "dropout_mask": None} | GIVEN[given]
    call |= {name: (*batch, H, L, S) for name in FULL if call[name]}
    call["sizes"] = batch, (H, Hk), (L, S), features
    c, cost = counted(call, weights=weights), formula(call, return_weights=weights)
    assert nonzero(cost.operations) == nonzero(c.operations)
    assert (cost.bytes_read, cost.bytes_written) == (c.read, c.written)
    assert 0 <= c.peak - cost.peak_bytes <= math.prod(batch) * H * L + H + 1


def cost(function: Any, L: int, S: int, E: int, Ev: int, **more: Any) -> ra.Cost:
    """Cost of one head of float32."""
    return ra.cost(function, (1, L, E), (1, S, E), (1, S, Ev), dtype="float32", form="standard", **more)


@pytest.mark.parametrize(("S", "Ev", "held"), [(7, 3, 2 * 7), (3, 7, 3 + 7)], ids=["S and P", "P and O"])
@pytest.mark.parametrize("return_lse", [False, True])
def test_the_standard_form_holds_two_matrices(S: int, Ev: int, held: int, return_lse: bool) -> None:
    found = cost(ra.attention, 5, S, 2, Ev, return_lse=return_lse)
    assert found.peak_bytes == 4 * 5 * (held + return_lse)
    assert (found.function, found.form) == ("attention", "standard")


@pytest.mark.parametrize(
    ("E", "Ev", "softcap", "held"),
    [
        (2, 3, None, 3 * 5 * 7 + 7 * 3),  # P, dP, dS and dV
        (2, 3, 1.0, 4 * 5 * 7 + 7 * 3),  # and the capped scores
        (40, 3, None, 5 * 7 + 5 * 40 + 7 * 40 + 7 * 3),  # dS, dQ, dK and dV
        (40, 3, 1.0, 5 * 7 + 5 * 40 + 7 * 40 + 7 * 3),
    ],
)
def test_the_standard_gradient_holds_three_matrices_or_its_results(
    E: int, Ev: int, softcap: float | None, held: int
) -> None:
    found = cost(ra.attention_gradient, 5, 7, E, Ev, softcap=softcap)
    assert found.peak_bytes == 4 * held
    assert (found.function, found.form) == ("attention_gradient", "standard")


def test_dropout_is_read_once_and_by_the_gradient_twice() -> None:
    kept = {"dropout_mask": np.ones((1, 5, 7), bool), "dropout_p": 0.5}
    for function, times in ((ra.attention, 1), (ra.attention_gradient, 2)):
        with_it, without = cost(function, 5, 7, 2, 3, **kept), cost(function, 5, 7, 2, 3)
        assert with_it.bytes_read - without.bytes_read == times * 5 * 7
        assert with_it.bytes_written == without.bytes_written
    with_it, without = (cost(ra.attention, 5, 7, 2, 3, return_weights=True, **more) for more in (kept, {}))
    # The weights before dropout are a result beside those after it, which the values get.
    assert (with_it.bytes_read, with_it.bytes_written) == (without.bytes_read + 35, without.bytes_written + 4 * 35)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("return_weights", [False, True])
def test_the_reference_casts_what_is_not_float64(dtype: str, return_weights: bool) -> None:
    shapes = (2, 5, 4), (1, 7, 4), (1, 7, 3)
    wide, found = (
        ra.cost(ra.attention, *shapes, dtype=name, form="reference", return_weights=return_weights)
        for name in ("float64", dtype)
    )
    size = {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]
    inputs, results = sum(map(math.prod, shapes)), 2 * 5 * 3 + return_weights * 2 * 5 * 7
    moved = size != 8
    assert found.bytes_read - wide.bytes_read == moved * (size * inputs + 8 * results)
    assert found.bytes_written - wide.bytes_written == moved * (8 * inputs + size * results)
    assert (found.function, found.form) == ("attention", "reference")


@pytest.mark.parametrize("form", ["reference", "standard"])
@pytest.mark.parametrize("given", [{"tile": (4, 4)}, {"on_chip": 1024}], ids=str)
def test_forms_without_tiles_say_so(form: str, given: dict[str, Any]) -> None:
    (name, x), functions = next(iter(given.items())), [ra.attention]
    functions += [ra.attention_gradient] if form == "standard" else []
    for function in functions:
        with pytest.raises(ValueError, match="has no tiles") as caught:
            ra.cost(function, (1, 2, 2), (1, 2, 2), (1, 2, 2), dtype="float32", form=form, **given)
        assert str(caught.value) == f"cost: {name} must be None for form={form!r}, which has no tiles; got {x}."
