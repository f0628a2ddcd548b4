"""mx.fast.scaled_dot_product_attention against the fallback of mlx/fast.cpp, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn.contract import eager
from refattn.conventions import mlx
from tests.conventions import loops
from tests.peers.cases import budget_used

LENGTHS = [(3, 5), (4, 4), (1, 6), (5, 3)]


@pytest.mark.parametrize(("L", "S"), LENGTHS)
def test_causal_is_lower_right(L: int, S: int) -> None:
    wanted = loops.seen(lambda b, h, i, j: i + S - L >= j, L, S)
    np.testing.assert_array_equal(loops.dense(mlx(scale=1.0, mask="causal"), L, S), wanted)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (1, 4, 3, 5), (2, 1, 1, 5)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_arrays_and_sinks(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(6)
    q, k, v = loops.draw(rng, 3, 5)
    mask: Any = rng.random(shape) < 0.6 if kind == "bool" else rng.standard_normal(shape)
    sinks = rng.standard_normal(4)
    cells = np.broadcast_to(mask, (2, 4, 3, 5))
    call = mlx(scale=0.5, mask=mask, sinks=sinks)
    wanted = loops.attention(
        q,
        k,
        v,
        sees=lambda b, h, i, j: kind == "float" or cells[b, h, i, j],
        adds=lambda b, h, i, j: 0.0 if kind == "bool" else cells[b, h, i, j],
        scale=0.5,
        sinks=sinks,
    )
    assert budget_used(wanted, q, k, v, eager("float64"), **call.arguments) <= 1


def test_rows_without_keys() -> None:
    assert mlx(scale=1.0).arguments == {"scale": 1.0}
    assert (mlx(scale=1.0).layout, mlx(scale=1.0).empty_row) == ("bhld", "undefined")
    assert mlx(scale=1.0, sinks=np.zeros(4)).empty_row == "zeros"
