"""Costs of tiled attention: the formulas against the papers' loops, run on a counting namespace, and Theorem 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import masks
from refattn._core.cost import Given
from refattn.methods.flash import visits as visits_module
from tests import paper_loops as loops
from tests import strategies as draws
from tests.counted import LOOPS, PROBLEMS, assert_counted, moderate
from tests.strategies import Problem

FORMS = {"flash": loops.flash_2023, "flash_2022": loops.flash_2022}
TILES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@pytest.mark.parametrize("form", FORMS)
@given(problem=PROBLEMS, tile=TILES, packed=st.booleans(), return_lse=st.booleans())
@LOOPS
def test_tiled_forms_are_their_papers_algorithms(
    form: str, problem: Problem, tile: tuple[int, int], packed: bool, return_lse: bool
) -> None:
    x, c = loops.Inputs(moderate(problem), return_lse=return_lse), loops.Machine()
    output, _ = FORMS[form](c, x, tile, packed)
    more = {"form": form, "tile": tile, "pack_gqa": packed, "return_lse": return_lse}
    assert_counted(ra.cost(ra.attention, x.q, x.k, x.v, **more, **x.cost_arguments), c)
    x.assert_same(output, ra.attention(x.q, x.k, x.v, **x.cost_arguments))


@given(problem=PROBLEMS, tile=TILES, packed=st.booleans())
@LOOPS
def test_the_flash_gradient_is_algorithm_2(problem: Problem, tile: tuple[int, int], packed: bool) -> None:
    x, c = loops.Inputs(moderate(problem)), loops.Machine()
    gradient = x.gradient()
    result = ra.attention(x.q, x.k, x.v, return_lse=True, **x.cost_arguments)
    found = loops.flash_2023_gradient(c, x, gradient, result.output, result.lse[..., None], tile, packed)
    more = {"form": "flash", "tile": tile, "pack_gqa": packed}
    assert_counted(ra.cost(ra.attention_gradient, x.q, x.k, x.v, **more, **x.cost_arguments), c)
    for ours, theirs in zip(found, ra.attention_gradient(gradient, x.q, x.k, x.v, **x.cost_arguments), strict=False):
        x.assert_same(ours, theirs)


def square(N: int, d: int, **more: Any) -> ra.Cost:
    """One head of N queries and keys, in float32, whose elements are 4 bytes as the rows' statistics are."""
    return ra.cost(ra.attention, (1, N, d), (1, N, d), (1, N, d), dtype="float32", **more)


@given(data=st.data(), d=st.integers(1, 256))
def test_theorem_2_with_its_constants(data: st.DataObject, d: int) -> None:
    # Tc = ceil(N / ceil(M / 4d)) lies in [4/5, 5] N d / M for d <= M <= N d. Each of Tc passes moves Q once, O, l and m
    # twice, and once K and V, O, l and m are moved: at least 3 N d Tc, at most 2 N d + 7 N d Tc + 3 N d.
    N = data.draw(st.integers(1, 2**24))
    M = data.draw(st.integers(d, N * d))
    elements = square(N, d, form="flash_2022", on_chip=4 * M).bytes_moved // 4
    assert 12 * N**2 * d**2 <= 5 * M * elements
    assert M * elements <= 40 * N**2 * d**2


@given(
    L=st.integers(1, 2**24), S=st.integers(1, 2**24), d=st.integers(1, 256), tile=st.tuples(*[st.integers(1, 999)] * 2)
)
def test_traffic_is_what_the_table_says(L: int, S: int, d: int, tile: tuple[int, int]) -> None:
    def elements(function: Any, form: str, **more: Any) -> tuple[int, int]:
        x = ra.cost(function, (1, L, d), (1, S, d), (1, S, d), dtype="float32", form=form, tile=tile, **more)
        return x.bytes_read // 4, x.bytes_written // 4

    T_r, T_c = -(-L // tile[0]), -(-S // tile[1])
    assert elements(ra.attention, "flash", return_lse=True) == (L * d + 2 * T_r * S * d, L * d + L)
    assert elements(ra.attention, "flash_2022") == (2 * S * d + T_c * L * (2 * d + 2), (T_c + 1) * L * (d + 2))
    assert elements(ra.attention_gradient, "flash") == (
        2 * L * d + 2 * S * d + T_c * L * (3 * d + 2),
        L * d + L + T_c * L * d + 2 * S * d,
    )


@given(d=st.integers(1, 600), M=st.integers(1, 2**20))
def test_tiles_follow_line_1_of_algorithm_1(d: int, M: int) -> None:
    columns = -(-M // (4 * d))
    cost = square(2**20, d, form="flash", on_chip=4 * M)
    assert cost.tile == (min(columns, d), columns)


@given(G=st.integers(1, 8), d=st.integers(1, 128), M=st.integers(64, 2**18))
def test_packed_heads_share_the_rows_of_a_tile(G: int, d: int, M: int) -> None:
    shapes = ((G, 2**20, d), (1, 2**20, d), (1, 2**20, d))
    packed = ra.cost(ra.attention, *shapes, dtype="float32", form="flash", on_chip=4 * M)
    rows = min(-(-M // (4 * d)), d)
    assert packed.tile[0] == max(1, rows // G)
    alone = ra.cost(ra.attention, *shapes, dtype="float32", form="flash", on_chip=4 * M, pack_gqa=False)
    assert alone.tile == (rows, packed.tile[1])


@given(
    S=st.integers(1, 2**24), G=st.integers(1, 16), Hk=st.integers(1, 8), E=st.integers(1, 256), Ev=st.integers(1, 256)
)
def test_a_decoding_step_reads_each_key_and_value_once(S: int, G: int, Hk: int, E: int, Ev: int) -> None:
    H = G * Hk
    shapes = ((3, H, 1, E), (3, Hk, S, E), (3, Hk, S, Ev))
    cost = ra.cost(ra.attention, *shapes, dtype="bfloat16", form="flash")
    assert cost.bytes_read == 2 * 3 * (H * E + Hk * S * (E + Ev))
    assert cost.bytes_written == 2 * 3 * H * Ev
    alone = ra.cost(ra.attention, *shapes, dtype="bfloat16", form="flash", pack_gqa=False)
    assert alone.bytes_read == 2 * 3 * (H * E + H * S * (E + Ev))
    assert alone.operations == cost.operations


@given(n=st.integers(1, 40), t=st.integers(1, 40))
@settings(max_examples=60)
def test_a_causal_mask_leaves_the_lower_triangle_of_tiles(n: int, t: int) -> None:
    plain, causal = (square(n * t, 8, form="flash", tile=(t, t), is_causal=is_causal) for is_causal in (False, True))
    assert causal.operations["multiply_add"] * 2 * n == plain.operations["multiply_add"] * (n + 1)
    # The diagonal tiles alone are asked; tiles of one cell are full.
    assert causal.operations["select"] == (n * t**2 if t > 1 else 0)
    reference = [square(n * t, 8, is_causal=is_causal).operations["multiply_add"] for is_causal in (False, True)]
    assert reference[0] == reference[1] == plain.operations["multiply_add"]


@dataclass(frozen=True, eq=False)
class Rows(masks.Mask):
    """A mask of any interval of keys in each row of each head."""

    first: np.ndarray
    stop: np.ndarray

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes before the rows."""
        return self.first.shape[:-1]

    def _tile(self, i: slice, j: slice, L: int, S: int, *, xp: Any, device: Any) -> np.ndarray:
        keys = np.arange(S)[j]
        return (keys >= self.first[..., i, None]) & (keys < self.stop[..., i, None])

    def _at(self, index: tuple[int, ...]) -> masks.Mask:
        return Rows(self.first[index], self.stop[index])

    def _interval(self, L: int, S: int) -> tuple[np.ndarray, np.ndarray]:
        return self.first, self.stop


def rows(shape: tuple[int, ...], S: int) -> Rows:
    """Intervals of all lengths from 0."""
    ends = np.sort(np.random.default_rng(3).integers(0, S + 1, (2, *shape)), axis=0)
    return Rows(ends[0], ends[1])


FAMILIES = {
    "intervals": rows((70,), 97),
    "intervals per head": rows((4, 70), 97),
    "causal": masks.causal("lower_right"),
    "window": masks.window(20, 7, "upper_left"),
    "none seen": masks.window(0, 0, anchor=500),
    "padded": masks.lengths([0, 33, 97]),
    "apart": masks.lengths(97) & ~masks.lengths(40),
    "per head": masks.from_function(lambda b, h, q, kv: (q + 3 * h) // 16 == kv // 16, heads=4),
    "per head and batch": masks.from_function(lambda b, h, q, kv: kv < 20 * (b + h), batch=3, heads=4),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tile", [(9, 7), (16, 32), (64, 64), (7, 130), (300, 300)])
@pytest.mark.parametrize("name", FAMILIES)
def test_visits_are_the_tiles_that_hold_a_visible_cell(name: str, tile: tuple[int, int], packed: bool) -> None:
    # Rows are looked at in parts, so that their seams are seen too.
    B, H, Hk, L, S = 3, 4, 2, 70, 97
    dense = np.broadcast_to(FAMILIES[name].dense(L, S), (B, H, L, S))
    G = H // Hk if packed else 1
    every, partial, columns = np.zeros(4, int), np.zeros(4, int), 0
    for b, h in np.ndindex(B, H // G):
        used = np.zeros(S, bool)
        for i in loops.tiles(L, tile[0]):
            for j in loops.tiles(S, tile[1]):
                cells = dense[b, h * G : h * G + G, i, j]
                sums = np.array([1, G * cells.shape[1], cells.shape[2], cells.size]) * cells.any()
                every, partial = every + sums, partial + sums * (not cells.all())
                used[j] |= cells.any()
        columns += int(used.sum())
    work = work_of(FAMILIES[name], (B, H, Hk, L, S), packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visits_module, "ROWS", 2 * tile[0])
        found = visits_module.visits(work, tile)
    assert (found.all, found.partial, found.columns) == (tuple(every), tuple(partial), columns)


def work_of(mask: masks.Mask, sizes: tuple[int, int, int, int, int], packed: bool) -> Any:
    """The record of a call with a mask, as the forms get it."""
    B, H, Hk, L, S = sizes
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ra.cost.__globals__["TILED"], "attention", {"caught": caught.append})
        shapes = ((B, H, L, 1), (B, Hk, S, 1), (B, Hk, S, 1))
        ra.cost(ra.attention, *shapes, dtype="float32", form="caught", mask=mask, pack_gqa=packed)
    return caught[0]


def test_long_masks_of_intervals_are_counted_in_time_of_their_rows() -> None:
    N = 2**17
    cost = square(N, 64, form="flash", tile=(64, 64), mask=masks.window(N // 2 - 1, 0))
    # Row tile i sees the tiles from i - 1024 to i.
    tiles = sum(min(i, 1024) + 1 for i in range(N // 64))
    assert cost.operations["exp"] == tiles * 64 * 65


@given(shape=draws.broadcastable((2,), 4, 9, 11), tile=TILES, packed=st.booleans())
@settings(max_examples=40)
def test_an_operand_that_is_a_rule_is_read_from_nowhere(
    shape: tuple[int, ...], tile: tuple[int, int], packed: bool
) -> None:
    seen = visits_module.visits(work_of(masks.window(3, 2, 0), (2, 4, 2, 9, 11), packed), tile)
    assert seen.read(Given(shape, 4, rule=True), seen.all) == seen.read(None, seen.all) == 0
    assert seen.read(Given(shape, 4, rule=False), seen.all) > 0


@given(N=st.integers(1, 500), d=st.integers(1, 64), tile=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_tiles_on_chip_are_cut_to_the_lengths(N: int, d: int, tile: tuple[int, int]) -> None:
    rows, keys = min(tile[0], N), min(tile[1], N)
    # Q_i and O_i, K_j and V_j, S_ij, m and l, all in float32.
    assert square(N, d, form="flash", tile=tile).on_chip_bytes == 4 * (2 * (rows + keys) * d + rows * (keys + 2))


@given(problem=draws.problems(("float64",), most=9), tile=TILES)
@settings(max_examples=40)
def test_beyond_the_operands_tiled_forms_hold_their_results(problem: Problem, tile: tuple[int, int]) -> None:
    (H, _), (L, _), (_, Ev) = problem.heads, problem.lengths, problem.features
    rows = int(np.prod(problem.batch, dtype=int)) * H * L
    cost = {form: ra.cost(ra.attention, *problem.arrays, form=form, tile=tile) for form in FORMS}
    assert cost["flash"].peak_bytes == rows * Ev * 8
    assert cost["flash_2022"].peak_bytes == rows * (Ev * 8 + 2 * 4)
