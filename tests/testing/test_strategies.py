"""What is drawn for a kernel lies within its spec, at the edges of tiles too, and prints as what makes it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn.testing import Case, KernelSpec, strategies
from refattn.testing.inputs.cases import NUMBERS, limits
from refattn.testing.spec import LAWS
from tests.testing.stored_kernels import ragged

ANY = ("mask", "bias", "is_causal", "scale", "softcap", "sinks", "dropout_mask", "dropout_p")
QUICK = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def spec_of(**fields: Any) -> KernelSpec:
    """A spec of attention."""
    return KernelSpec(ra.attention, **fields)


@pytest.mark.parametrize(
    ("lengths", "allowed"),
    [
        (((1, 64), (1, 256)), lambda L, S: L == 1 and 64 <= S <= 256 and S % 64 == 0),
        (((16, 16), (64, 64)), lambda L, S: L == S and L in (16, 32, 48, 64)),
        (((3, 5),), lambda L, S: (L, S) == (3, 5)),
        (((1, 1), (16, 130)), lambda L, S: L <= S <= 130 and L <= 16),
        (((130, 7), (2, 70)), lambda L, S: 2 <= L <= 130 and 7 <= S <= 70),
    ],
)
def test_lengths_lie_within_those_of_the_spec(lengths: Any, allowed: Any) -> None:
    @QUICK
    @given(strategies.lengths(spec_of(lengths=lengths)))
    def check(pair: tuple[int, int]) -> None:
        assert allowed(*pair)

    check()


def test_both_sides_of_tile_edges_are_drawn() -> None:
    found: set[int] = set()

    @settings(QUICK, max_examples=400, derandomize=True)
    @given(strategies.lengths(spec_of()))
    def collect(pair: tuple[int, int]) -> None:
        found.add(pair[1])

    collect()
    assert found >= {n + d for n in (16, 32, 64, 128, 256) for d in (-1, 0, 1)}
    assert found - {n + d for n in (16, 32, 64, 128, 256) for d in (-1, 0, 1)}


@QUICK
@given(case=strategies.cases(spec_of(accepts=ANY, dims=(8, (4, 2)), lengths=((1, 1), (20, 33)))))
def test_a_case_is_a_problem_of_the_spec_and_prints_as_what_makes_it(case: Case) -> None:
    spec = spec_of(accepts=ANY, dims=(8, (4, 2)), lengths=((1, 1), (20, 33)))
    assert eval(repr(case), {"Case": Case}) == case
    inputs = case.inputs(spec)
    (L, S), (E, Ev) = case.lengths, case.dims
    assert inputs.query.shape == (case.batch, 4, L, E)
    assert inputs.key.shape == (case.batch, 2, S, E)
    assert inputs.value.shape == (case.batch, 2, S, Ev)
    assert set(inputs.passed) == set(ANY)
    words = {"empty_rows": "mask", "causal_mask": "mask"}
    for name in case.asks:
        assert inputs.passed[words.get(name, name)] is not None
    assert ra.attention(inputs.query, inputs.key, inputs.value, **inputs.arguments).shape == (case.batch, 4, L, Ev)
    again = case.inputs(spec)
    assert np.array_equal(inputs.query, again.query)


def test_everything_that_a_spec_accepts_is_asked_for() -> None:
    spec = spec_of(accepts=ANY, dims=(8,), lengths=((1, 1), (9, 9)))
    found: set[str] = set()

    @settings(QUICK, max_examples=300, derandomize=True)
    @given(strategies.cases(spec))
    def collect(case: Case) -> None:
        found.update(case.asks)
        found.add(case.law)

    collect()
    assert found == {*LAWS, *NUMBERS, "mask", "empty_rows", "causal_mask", "bias", "is_causal", "dropout_mask"}


def test_a_kernel_is_asked_for_nothing_that_it_does_not_accept() -> None:
    @QUICK
    @given(strategies.cases(spec_of(dims=(8,))))
    def check(case: Case) -> None:
        assert case.asks == ()
        assert case.table is None

    check()


def test_cases_shrink_to_the_first_of_everything() -> None:
    spec = spec_of(accepts=ANY, dims=(8, 16))
    least = find(strategies.cases(spec), lambda case: case.lengths[1] > 64, settings=QUICK)
    assert least in (Case((1, 65), (8, 8)), Case((65, 65), (8, 8)))
    assert repr(least) == f"Case({least.lengths}, (8, 8))"


def test_sequences_are_drawn_within_the_lengths() -> None:
    spec = KernelSpec(ragged(), accepts=("cu_seqlens_q", "cu_seqlens_k"), dims=(8,), lengths=((1, 1), (9, 20)))
    inputs = Case((9, 20), (8, 8), batch=2, table="cu_seqlens_k", seed=3).inputs(spec)
    assert inputs.batch is not None
    assert inputs.batch.queries.max() == 9
    assert inputs.batch.keys.max() == 20
    assert (inputs.batch.keys == 0).any()
    assert np.isnan(inputs.key[inputs.batch.keys == 0]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64"])
def test_arrays_are_hard_numbers_of_the_format(dtype: str) -> None:
    seen: set[float] = set()

    @settings(QUICK, derandomize=True)
    @given(strategies.arrays((2, 3), dtype))
    def check(x: np.ndarray) -> None:
        assert x.shape == (2, 3)
        assert x.dtype.name == dtype
        assert np.isfinite(x.astype(np.float64)).all()
        seen.update(x.astype(np.float64).reshape(-1).tolist())

    check()
    assert any(0 < abs(x) < 1e-2 for x in seen)
    assert max(seen) > 400


def test_what_cannot_be_drawn_is_refused() -> None:
    for dtype in ("int8", "tf32", "half"):
        with pytest.raises(ValueError, match=f"arrays: dtype must be a floating-point dtype; got '{dtype}'"):
            strategies.arrays((1,), dtype)
    spec = spec_of(computes={"is_causal": True}, lengths=((3, 5),))
    with pytest.raises(ValueError, match="lengths: is_causal=True has no meaning for L != S"):
        strategies.cases(spec)
    with pytest.raises(ValueError, match="Case: asks must name one of"):
        Case((1, 1), (1, 1), asks=("mask", "bias"))
    with pytest.raises(ValueError, match="Case: law must be one of"):
        Case((1, 1), (1, 1), law="odd")


def test_limits_that_are_square_stay_so() -> None:
    allowed = limits(spec_of(computes={"is_causal": True}, lengths=((3, 5), (8, 8), (4, 4))))
    assert allowed.pairs == ((8, 8), (4, 4))
    assert allowed.allow(8, 8)
    assert not allowed.allow(4, 8)
    assert isinstance(strategies.lengths(spec_of()), st.SearchStrategy)
