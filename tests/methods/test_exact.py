"""Exact attention against the oracle of these tests: every argument, every library, every edge of its definition."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn.methods.exact import rows as rows_module
from tests import strategies as draws
from tests import tiny
from tests.agreement import assert_agree, rows_of
from tests.bias_rules import alibi_slopes
from tests.namespaces import NARROW, Library, library, name_of
from tests.strategies import Choice, Problem

pytestmark = pytest.mark.usefixtures("poisoned_empty")

NUMPY = library("numpy")
# Formats of inputs that NumPy, or PyTorch, holds; float64 twice, for there the bound is tight.
DTYPES = ("float64", "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8")


def check(problem: Problem, lib: Library, *, rows: list[tuple[int, ...]] | None = None) -> None:
    """Output, lse and weights of `ra.attention` against the oracle, on some rows; kinds and shapes of all."""
    got = problem.call(ra.attention, lib, return_lse=True, return_weights=True)
    (H, _), (L, S), (_, Ev) = problem.heads, problem.lengths, problem.features
    assert tuple(got.output.shape) == (*problem.batch, H, L, Ev)
    assert tuple(got.lse.shape) == (*problem.batch, H, L)
    assert tuple(got.weights.shape) == (*problem.batch, H, L, S)
    assert [name_of(x.dtype) for x in got] == [problem.out, "float64", problem.out]
    rows = problem.rows() if rows is None else rows
    want = problem.answer(rows)
    index = tuple(np.array(rows, dtype=int).reshape(-1, got.lse.ndim).T)
    assert_rows(problem, [lib.values(x)[index] for x in got], want)


def assert_rows(problem: Problem, got: list[Any], want: Any) -> None:
    """Output, lse (and weights, where given) of some rows within twice the radius: ours, and the oracle's own."""
    fields = (("output", problem.out), ("lse", "float64"), ("weights", problem.out))
    for x, (name, dtype) in zip(got, fields, strict=False):
        wanted = getattr(want, name)
        assert_agree(
            x,
            wanted,
            2 * getattr(want, f"{name}_radius"),
            held=rows_of(want.held, wanted),
            dtype=dtype,
            what=name,
        )


@given(data=st.data())
@settings(max_examples=60)
def test_attention_agrees_with_the_oracle(namespace: Library, data: st.DataObject) -> None:
    dtypes = tuple(name for name in DTYPES if name in namespace.dtypes)
    check(data.draw(draws.problems(dtypes)), namespace)


@given(problem=tiny.tiny_problems())
@settings(max_examples=100)
def test_extreme_values_agree_with_the_oracle(namespace: Library, problem: Problem) -> None:
    check(problem, namespace)


@given(data=st.data())
@settings(max_examples=60)
def test_attention_rows_agrees_with_the_oracle_across_tiles(namespace: Library, data: st.DataObject) -> None:
    dtypes = tuple(name for name in DTYPES if name in namespace.dtypes)
    problem = data.draw(draws.problems(dtypes))
    tile_rows, tile_keys = data.draw(st.sampled_from([(1, 1), (3, 16), (16, 32), (512, 2048)]))
    rows = problem.rows(6)
    drawn = data.draw(st.lists(st.sampled_from(rows), max_size=9)) if rows else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "TILE_ROWS", tile_rows)
        patch.setattr(rows_module, "TILE_KEYS", tile_keys)
        index = np.array(drawn, dtype=np.int64).reshape(-1, len(problem.batch) + 2)
        got = problem.call(ra.attention_rows, namespace, rows=index, return_lse=True)
    assert name_of(got.output.dtype) == problem.out
    assert got.weights is None
    want = problem.answer(drawn, tiles=max(1, -(-problem.lengths[1] // tile_keys)))
    assert_rows(problem, [namespace.values(got.output), namespace.values(got.lse)], want)


@given(problem=tiny.tiny_problems())
@settings(max_examples=60)
def test_extreme_values_survive_the_merging_of_tiles(namespace: Library, problem: Problem) -> None:
    rows = problem.rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "TILE_KEYS", 1)
        got = problem.call(ra.attention_rows, namespace, rows=rows, return_lse=True)
    want = problem.answer(rows, tiles=problem.lengths[1])
    assert_rows(problem, [namespace.values(got.output), namespace.values(got.lse)], want)


# One property each, where a reader looks for it, though the draws above meet them too.

GRID = [(1, 1), (1, 8), (8, 1), (5, 7), (16, 17), (65, 64)]


@pytest.mark.parametrize(("L", "S"), [*GRID, (0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (4, 2), (4, 1)], ids=["one", "MHA", "GQA", "MQA"])
def test_lengths_and_heads(namespace: Library, heads: tuple[int, int], L: int, S: int) -> None:
    check(Problem(heads=heads, lengths=(L, S), features=(4, 3)), namespace)


@pytest.mark.parametrize("batch", [(), (2,), (2, 1), (1, 2, 2), (0,), (2, 0)])
def test_batch_axes(namespace: Library, batch: tuple[int, ...]) -> None:
    check(Problem(batch=batch, heads=(2, 1), lengths=(3, 4), features=(2, 5)), namespace)


@pytest.mark.parametrize("law", draws.LAWS)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_laws_of_input(namespace: Library, law: str, softcap: float | None) -> None:
    check(Problem(heads=(2, 1), lengths=(17, 33), features=(8, 4), law=law, softcap=softcap), namespace)


def poisoned(seen: np.ndarray, poison: float) -> Problem:
    """A problem in which every key and value that no query sees is poison."""
    L, S = seen.shape
    problem = Problem(lengths=(L, S), features=(4, 3), mask=Choice("array", seen, lambda _, i, j: bool(seen[i, j])))
    q, k, v = (x.copy() for x in problem.arrays)
    unseen = ~seen.any(axis=0)
    k[:, unseen], v[:, unseen] = poison, poison
    return tiny.Tiny(**{n: getattr(problem, n) for n in problem.__dataclass_fields__}, drawn=(q, k, v))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_keys_and_values_do_not_leak(namespace: Library, poison: float) -> None:
    seen = np.random.default_rng(1).random((9, 12)) < 0.4
    seen[:, [0, 5, 11]], seen[4] = False, False
    problem = poisoned(seen, poison)
    check(problem, namespace)
    got = namespace.values(problem.call(ra.attention, namespace))
    assert np.isfinite(got).all()
    assert not got[:, 4].any()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_query_spoils_its_own_row_only(namespace: Library, poison: float) -> None:
    q, k, v = (x.copy() for x in Problem(lengths=(5, 6), features=(4, 3)).arrays)
    q[:, 2] = poison
    output = namespace.values(ra.attention(*map(namespace.array, (q, k, v))))
    assert np.isnan(output[:, 2]).all()
    assert np.isfinite(np.delete(output, 2, axis=1)).all()


@pytest.mark.parametrize("sinks", [None, (0.5, -math.inf)])
def test_a_row_that_sees_nothing_is_zero(namespace: Library, sinks: tuple[float, ...] | None) -> None:
    seen = np.array([[True, False], [False, False]])
    mask = Choice("array", seen, lambda _, i, j: bool(seen[i, j]))
    problem = Problem(heads=(2, 1), lengths=(2, 2), features=(2, 2), mask=mask, sinks=sinks)
    check(problem, namespace)
    got = problem.call(ra.attention, namespace, return_lse=True, return_weights=True)
    output, lse, weights = map(namespace.values, got)
    assert not output[:, 1].any()
    assert not weights[:, 1].any()
    np.testing.assert_array_equal(lse[:, 1], [-math.inf, -math.inf] if sinks is None else sinks)


def test_emptiness_comes_from_the_mask_and_not_from_the_scores(namespace: Library) -> None:
    # Every score that row 0 sees is -inf: its weights are 0/0. A query of NaN that sees nothing is an empty row.
    q = np.array([[[1.0], [math.nan]]])
    k, v = np.full((1, 2, 1), -math.inf), np.ones((1, 2, 1))
    mask = np.array([[True, True], [False, False]])
    got = ra.attention(*map(namespace.array, (q, k, v)), mask=namespace.array(mask), return_lse=True)
    np.testing.assert_array_equal(namespace.values(got.output), [[[math.nan], [0.0]]])
    np.testing.assert_array_equal(namespace.values(got.lse), [[-math.inf, -math.inf]])


@pytest.mark.parametrize("low", [np.finfo(np.float32).min, np.finfo(np.float64).min])
def test_the_lowest_finite_bias_masks_nothing(namespace: Library, low: float) -> None:
    # Padding code adds it where it means -inf. It is a number: alone in a row it cancels, as the definition says.
    q = k = np.array([[[0.0], [0.0]]])
    v = np.array([[[1.0], [5.0]]])
    bias = np.array([[0.0, float(low)], [float(low), float(low)]])
    output = ra.attention(*map(namespace.array, (q, k, v)), bias=namespace.array(bias))
    np.testing.assert_array_equal(namespace.values(output), [[[1.0], [3.0]]])


def test_softcap_comes_before_bias_and_mask(namespace: Library) -> None:
    # Capped after the bias, key 1 would keep a weight of e^-2; capped after the mask, key 2 would.
    q = k = np.zeros((1, 3, 1))
    v = np.array([[[1.0], [100.0], [1000.0]]])
    bias = np.array([[0.0, -1000.0, 0.0]])
    mask = np.array([[True, True, False]])
    output = ra.attention(
        *map(namespace.array, (q, k, v)), softcap=1.0, bias=namespace.array(bias), mask=namespace.array(mask)
    )
    np.testing.assert_array_equal(namespace.values(output), np.ones((1, 3, 1)))


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20])
def test_alibi_takes_the_published_slopes(heads: int) -> None:
    np.testing.assert_array_equal(ra.biases.alibi_slopes(heads), alibi_slopes(heads))


# For 8 heads the paper prints 1/2, 1/4, ..., 1/256; for 16 it interpolates; its code gives 12 heads those of 8, then
# every other one of 16.
PUBLISHED = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    8: [2.0**-n for n in range(1, 9)],
    12: [*(2.0**-n for n in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
    16: [2.0 ** (-n / 2) for n in range(1, 17)],
}


@pytest.mark.parametrize("heads", PUBLISHED)
def test_alibi_slopes_as_printed(heads: int) -> None:
    np.testing.assert_array_equal(ra.biases.alibi_slopes(heads), PUBLISHED[heads])


@pytest.mark.parametrize("anchor", ["lower_right", "upper_left", 2, -1])
def test_alibi_counts_from_its_anchor(namespace: Library, anchor: str | int) -> None:
    L, S = 3, 5
    offset = {"lower_right": S - L, "upper_left": 0}.get(anchor, anchor)
    slopes = np.array([[0.5, 0.25]]) * np.array([[1.0], [3.0]])  # (batch, heads)
    bias = Choice(
        "alibi",
        ra.biases.alibi(slopes, anchor=anchor),
        lambda index, i, j: -slopes[index] * abs(i + offset - j),
    )
    check(Problem(batch=(2,), heads=(2, 2), lengths=(L, S), features=(3, 2), bias=bias), namespace)


def test_a_bias_of_minus_infinity_masks(namespace: Library) -> None:
    bias = np.array([[0.3, -math.inf, 0.1], [-math.inf, -math.inf, -math.inf]])
    q, k, v = (x.copy() for x in Problem(lengths=(2, 3), features=(2, 2)).arrays)
    k[:, 1], v[:, 1] = math.nan, math.nan
    got = ra.attention(*map(namespace.array, (q, k, v)), bias=namespace.array(bias), return_lse=True)
    keep = [0, 2]
    want = ra.attention(
        *map(namespace.array, (q[:, :1], k[:, keep], v[:, keep])), bias=namespace.array(bias[:1, keep]), return_lse=True
    )
    np.testing.assert_array_equal(namespace.values(got.output)[:, 1], 0)
    # A sum of three terms, one of them 0, and a sum of two: the same number.
    np.testing.assert_array_equal(namespace.values(got.output)[:, 0], namespace.values(want.output)[:, 0])
    np.testing.assert_array_equal(namespace.values(got.lse), [[namespace.values(want.lse)[0, 0], -math.inf]])


@pytest.mark.parametrize("dtype", ["float32", "float16", *NARROW[:5]])
def test_the_output_is_the_float64_output_rounded_once(dtype: str) -> None:
    problem = Problem(heads=(2, 1), lengths=(33, 65), features=(8, 4), dtype=dtype, to=dtype)
    exact = problem.but(to="float64").call(ra.attention, NUMPY)
    got = problem.call(ra.attention, NUMPY)
    assert got.dtype.name == dtype
    assert_agree(got, exact, np.zeros(exact.shape), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), np.zeros(1, np.float32)], ids=repr)
def test_a_dtype_may_be_named_in_any_way(dtype: Any) -> None:
    assert Problem().call(ra.attention, NUMPY, dtype=dtype).dtype == np.float32


def test_a_named_tuple_comes_only_with_what_was_asked_for() -> None:
    problem = Problem(lengths=(2, 3))
    plain = problem.call(ra.attention, NUMPY)
    with_lse = problem.call(ra.attention, NUMPY, return_lse=True)
    with_weights = problem.call(ra.attention, NUMPY, return_weights=True)
    assert isinstance(plain, np.ndarray)
    assert isinstance(with_lse, ra.AttentionResult)
    assert with_lse.weights is None
    assert with_weights.lse is None
    np.testing.assert_array_equal(plain, with_lse.output)
    np.testing.assert_array_equal(plain, with_weights.output)


def test_weights_times_values_is_the_output(namespace: Library) -> None:
    problem = Problem(heads=(2, 2), lengths=(7, 9), features=(4, 3), sinks=(0.5, -1.0))
    got = problem.call(ra.attention, namespace, return_weights=True)
    rows = problem.rows(10**6)
    want = problem.answer(rows)
    product = namespace.values(got.weights) @ problem.arrays[2]
    # Beside the output's radius: each weight errs by its own, and a sum of S products by S u.
    size = namespace.values(got.weights) @ np.abs(problem.arrays[2])
    radius = want.output_radius + want.weights_radius @ np.ones((9, 3)) * np.abs(problem.arrays[2]).max()
    shaped = radius.reshape(product.shape) + 9 * 2.0**-53 * size
    assert_agree(namespace.values(got.output), product, shaped)


class TestRows:
    """attention_rows asks for the same answers, in its own order and in its own memory."""

    problem = Problem(batch=(2,), heads=(4, 2), lengths=(9, 11), features=(3, 2), is_causal=False, softcap=3.0)

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        got = self.problem.call(ra.attention, NUMPY, return_lse=True)
        return got.output, got.lse

    def test_order_and_repeats_are_kept(self, namespace: Library) -> None:
        rows = np.array([(1, 3, 8), (0, 0, 0), (1, 3, 0), (0, 0, 0), (1, 3, 8), (0, 2, 5)])
        output, lse = self.whole()
        want = self.problem.answer([tuple(r) for r in rows.tolist()])
        got = self.problem.call(ra.attention_rows, namespace, rows=rows, return_lse=True)
        assert_agree(namespace.values(got.output), output[tuple(rows.T)], 2 * want.output_radius)
        assert_agree(namespace.values(got.lse), lse[tuple(rows.T)], 2 * want.lse_radius)
        np.testing.assert_array_equal(namespace.values(got.output)[1], namespace.values(got.output)[3])

    def test_all_rows_in_order_are_the_whole(self, namespace: Library) -> None:
        rows = self.problem.rows(10**6)
        got = self.problem.call(ra.attention_rows, namespace, rows=rows)
        want = self.problem.answer(rows)
        output, _ = self.whole()
        assert_agree(namespace.values(got), output.reshape(-1, 2), 2 * want.output_radius)

    @pytest.mark.parametrize("rows", [[(0, 1, 2)], np.array([[0, 1, 2]], dtype=np.uint8), ((0, 1, 2),)])
    def test_rows_may_be_a_list_or_any_integer_array(self, rows: Any) -> None:
        np.testing.assert_array_equal(
            self.problem.call(ra.attention_rows, NUMPY, rows=rows),
            self.problem.call(ra.attention_rows, NUMPY, rows=np.array([[0, 1, 2]])),
        )

    def test_rows_may_be_of_the_library(self, namespace: Library) -> None:
        got = self.problem.call(ra.attention_rows, namespace, rows=namespace.array(np.array([[0, 1, 2]])))
        assert tuple(got.shape) == (1, 2)

    @pytest.mark.parametrize("rows", [[], np.zeros((0, 3), dtype=int)])
    def test_no_rows(self, namespace: Library, rows: Any) -> None:
        got = self.problem.call(ra.attention_rows, namespace, rows=rows, return_lse=True)
        assert tuple(got.output.shape) == (0, 2)
        assert tuple(got.lse.shape) == (0,)

    @pytest.mark.parametrize("options", ["plain", "causal", "window", "alibi"])
    def test_memory_is_that_of_a_tile(self, options: str) -> None:
        # All scores would take 8 L S = 2 GiB; keys and values in float64 16 MiB. A tile is 512 x 2048.
        n = 2**14
        q = k = v = np.zeros((1, n, 64), dtype=np.float32)
        more = {
            "plain": {},
            "causal": {"is_causal": True},
            "window": {"mask": ra.masks.window(5, 5)},
            "alibi": {"bias": ra.biases.alibi(1)},
        }[options]
        rows = [(0, r) for r in (0, 1, n // 2, n - 1)]
        ra.attention_rows(q[:, :8], k[:, :8], v[:, :8], rows=[(0, 0)])  # what is imported on first use
        tracemalloc.start()
        try:
            ra.attention_rows(q, k, v, rows=rows, **more)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        tile = 8 * rows_module.TILE_KEYS * (len(rows) + 2 * 64)
        assert peak < 4 * tile

    def test_keys_that_no_row_sees_are_not_read(self) -> None:
        # A tile of keys outside the window: NaN there would reach the result through 0 * NaN if it were read.
        n = 3 * rows_module.TILE_KEYS

        read = []

        class Counted(np.ndarray):
            def __getitem__(self, item: Any) -> Any:
                if self.shape == (n, 2):
                    read.append(item)
                return super().__getitem__(item)

        k = np.zeros((1, n, 2)).view(Counted)
        ra.attention_rows(np.zeros((1, n, 2)), k, np.zeros((1, n, 2)), rows=[(0, n - 1)], mask=ra.masks.window(1, 1))
        assert read == [(..., slice(2 * rows_module.TILE_KEYS, n), slice(None))]


def test_none_is_the_default_of_every_argument(namespace: Library) -> None:
    problem = Problem(heads=(2, 1), lengths=(3, 3), features=(4, 2))
    plain = problem.call(ra.attention, namespace)
    spelled = problem.call(
        ra.attention, namespace, mask=None, bias=None, is_causal=False, scale=0.5, softcap=None, sinks=None, dtype=None,
        return_lse=False, return_weights=False, implementation="reference",
    )  # fmt: skip
    np.testing.assert_array_equal(namespace.values(plain), namespace.values(spelled))


def test_is_causal_beside_a_mask_means_both(namespace: Library) -> None:
    problem = Problem(lengths=(5, 5), features=(2, 2), is_causal=True)
    window = Choice("window(None, 1)", ra.masks.window(2, None), lambda _, i, j: j >= i - 2)
    check(problem.but(mask=window), namespace)
