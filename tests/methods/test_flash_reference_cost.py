"""Cost of the plain form of tiled attention: the formulas against the reference, which counts as it runs."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import masks
from refattn._core.score import Dropout, Score
from refattn.methods.flash import reference
from tests.counted import nonzero
from tests.counting import Counter, Tile
from tests.methods.test_exact_cost import calls

TILES = st.tuples(st.integers(1, 4), st.integers(1, 4))


class Rule(Tile):
    """A mask of which the tiles to visit are known."""

    readable = False

    def __init__(self, x: Any, hull: Any = None) -> None:
        super().__init__(x)
        self.bounds = hull

    def hull(self, L: int, S: int) -> Any:
        """First and stop of each row."""
        return self.bounds

    def interval(self, L: int, S: int) -> Any:
        """The same."""
        return self.bounds


def counted(call: dict[str, Any], tile: tuple[int, int], mask: masks.Mask | None) -> Counter:
    """The reference, run on a counting namespace."""
    batch, (H, Hk), (L, S), (E, Ev) = call["sizes"]
    c, rng = Counter(), np.random.default_rng(0)

    def numbers(*shape: int) -> Any:
        return c.array(rng.standard_normal(shape))

    seen = None
    if mask is not None:
        seen = Rule(c.array(mask.dense(L, S)), mask.hull(L, S))
    elif call["mask"] is not None:
        every = np.ones(call["mask"], bool)
        # In a batch without entries nothing is seen.
        seen = Rule(c.array(every)) if every.size else masks.array(every)
    kept = None if call["dropout_mask"] is None else Tile(c.array(rng.random(call["dropout_mask"]) < 0.7))
    score = Score(
        lengths=(L, S),
        scale=0.3,
        softcap=call["softcap"],
        bias=None if call["bias"] is None else Tile(numbers(*call["bias"])),
        mask=seen,
        sink=numbers(Hk, H // Hk, 1, 1) if call["sinks"] else None,
        dropout=None if kept is None else Dropout(kept, 0.2),
        groups=(Hk, H // Hk),
    )
    Q, K, V = numbers(*batch, Hk, H // Hk, L, E), numbers(*batch, Hk, 1, S, E), numbers(*batch, Hk, 1, S, Ev)
    O, lse = reference.flash_attention(Q, K, V, score=score, tile_q=tile[0], tile_k=tile[1], xp=c)
    assert (O.shape, lse.shape) == ((*Q.shape[:-1], Ev), Q.shape[:-1])
    return c


def formula(call: dict[str, Any], mask: masks.Mask | None, **more: Any) -> ra.Cost:
    """The cost of the same call."""
    batch, (H, Hk), (L, S), (E, Ev) = call["sizes"]
    cells = None if call["mask"] is None else np.ones(call["mask"], bool)
    return ra.cost(
        ra.flash_attention,
        (*batch, H, L, E),
        (*batch, Hk, S, E),
        (*batch, Hk, S, Ev),
        dtype="float64",
        softcap=call["softcap"],
        sinks=(H,) if call["sinks"] else None,
        mask=cells if mask is None else mask,
        bias=call["bias"],
        dropout_mask=call["dropout_mask"],
        **more,
    )


def assert_counted(call: dict[str, Any], tile: tuple[int, int], mask: masks.Mask | None = None) -> None:
    """The formulas are what the reference was seen to do; in peak memory, up to the booleans of one test of rows."""
    c, cost = counted(call, tile, mask), formula(call, mask, tile=tile)
    assert nonzero(cost.operations) == nonzero(c.operations)
    assert (cost.bytes_read, cost.bytes_written) == (c.read, c.written)
    batch, (H, _), (L, _), _ = call["sizes"]
    assert 0 <= c.peak - cost.peak_bytes <= math.prod(batch) * H * L + H + 1
    assert (cost.function, cost.form, cost.tile) == ("flash_attention", "reference", tile)


NO_ENTRIES = {
    "sizes": ((0,), (1, 1), (1, 1), (1, 0)), "softcap": None, "sinks": False, "mask": (0, 1, 1, 1), "bias": None,
    "dropout_mask": (1, 1, 1, 1),
}  # fmt: skip


@given(call=calls(), tile=TILES)
@example(call=NO_ENTRIES, tile=(1, 1))
def test_the_reference_does_what_its_formulas_say(call: dict[str, Any], tile: tuple[int, int]) -> None:
    assert_counted(call, tile)


MASKS = {
    "causal": masks.causal("lower_right"),
    "window": masks.window(2, 1, "upper_left"),
    "none seen": masks.window(0, 0, anchor=500),
    "some seen": masks.lengths(4, 3),
}


@pytest.mark.parametrize("name", MASKS)
@given(call=calls(), tile=TILES)
@settings(max_examples=50)
def test_tiles_that_are_passed_over_cost_nothing(name: str, call: dict[str, Any], tile: tuple[int, int]) -> None:
    batch, heads, _, features = call["sizes"]
    call = call | {"sizes": (batch, heads, (7, 9), features), "mask": None, "bias": None, "dropout_mask": None}
    assert_counted(call, tile, MASKS[name])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("tile", "E"), [((64, 96), 32), ((64, 4), 400), ((64, 96), 400)], ids=["S", "Q", "K"])
@pytest.mark.parametrize("more", [{}, {"is_causal": True, "sinks": np.ones(4)}], ids=["plain", "causal"])
def test_peak_memory_is_what_python_allocates(more: dict[str, Any], tile: tuple[int, int], E: int, dtype: str) -> None:
    arrays = [np.ones(shape, dtype) for shape in ((2, 4, 256, E), (2, 2, 256, E), (2, 2, 256, 16))]
    ra.flash_attention(*(x[..., :1, :] for x in arrays))
    tracemalloc.start()
    try:
        ra.flash_attention(*arrays, **more, tile_q=tile[0], tile_k=tile[1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    formula = ra.cost(ra.flash_attention, *arrays, **more, tile=tile).peak_bytes
    # Python's own objects come on top: fewer than a row of scores for each head takes.
    assert 0 <= peak - formula <= 2 * 4 * 256 * 8


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_tiles_of_other_formats_are_cast_where_they_are_read(dtype: str) -> None:
    shapes, tile = ((2, 10, 4), (1, 7, 4), (1, 7, 3)), (4, 2)  # three tiles of queries read all keys
    wide, found = (ra.cost(ra.flash_attention, *shapes, dtype=name, tile=tile) for name in ("float64", dtype))
    size, moved = {"float64": 8, "float32": 4, "bfloat16": 2}[dtype], dtype != "float64"
    inputs, results = 2 * 10 * 4 + 3 * 7 * (4 + 3), 2 * 10 * 3
    assert found.bytes_read - wide.bytes_read == moved * (size * inputs + 8 * results)
    assert found.bytes_written - wide.bytes_written == moved * (8 * inputs + size * results)


def test_the_default_tile_is_the_reference_s_own() -> None:
    arrays = [np.zeros((1, n, 8)) for n in (300, 900, 900)]
    cost = ra.cost(ra.flash_attention, *arrays)
    assert cost.tile == (256, 512)
    assert cost.operations == ra.cost(ra.flash_attention, *arrays, tile=(256, 512)).operations


def test_memory_on_chip_is_not_what_its_tiles_follow_from() -> None:
    with pytest.raises(ValueError, match="on_chip must be None") as error:
        ra.cost(ra.flash_attention, *[(1, 2, 2)] * 3, dtype="float32", on_chip=1024)
    assert str(error.value) == (
        "cost: on_chip must be None for form='reference', whose tiles do not follow from it; got 1024."
    )


def test_tiles_are_given_in_the_words_of_costs() -> None:
    for function in (ra.flash_attention, ra.flash_attention_gradient):
        with pytest.raises(TypeError, match=r"; got tile_q\.$"):
            ra.cost(function, *[(1, 2, 2)] * 3, dtype="float32", tile_q=3)
