"""Hypothesis strategies of what kernels are checked on: drawn cases within what a spec allows, and hard little arrays.

They need hypothesis: ``pip install "refattn[testing]"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import assume
from hypothesis import strategies as st

from refattn._core.arrays import round_to
from refattn.contract.formats import FORMATS
from refattn.testing.inputs.cases import NUMBERS, TILES, Case, Limits, limits, near_edges
from refattn.testing.laws.stating import cells_of
from refattn.testing.spec import LAWS, KernelSpec

__all__ = ("arrays", "cases", "lengths")

# Work of one drawn problem, in (batch entry, query, key): the judge takes hundredths of a second.
MOST_CELLS = 2**17
PLAIN = (0.0, 1.0, -1.0, 0.5, 3.0)


def lengths(spec: KernelSpec) -> st.SearchStrategy[tuple[int, int]]:
    """Draw pairs (L, S) within what the lengths of a spec allow, many of them at the edges of tiles.

    Parameters
    ----------
    spec : KernelSpec
        The kernel.

    Returns
    -------
    strategy of (int, int)
        Each between the smallest and the largest of ``spec.lengths``, a multiple of what all are multiples of; L = S
        where that is so in all of them, and no more queries than keys where there never are.

    Raises
    ------
    ValueError
        If the kernel is causal by flag and all lengths differ.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, strategies
    >>> strategies.lengths(KernelSpec(ra.attention, lengths=((1, 64), (1, 256))))
    _pair(...
    """
    allowed = limits(spec)
    if not allowed.pairs:
        raise ValueError(
            "lengths: is_causal=True has no meaning for L != S, and all lengths differ. Pass a mask in computes=."
        )
    return _pair(allowed)


@st.composite
def _pair(draw: st.DrawFn, allowed: Limits, most: float = math.inf) -> tuple[int, int]:
    """A pair of lengths, often of the same, of at most so many cells."""
    least = allowed.side(0)[0]
    S = draw(_side([n for n in allowed.sizes(1) if n * (n if allowed.square else least) <= most]))
    if allowed.square or (S in allowed.sizes(0) and S * S <= most and draw(st.booleans())):
        return S, S
    L = draw(_side([n for n in allowed.sizes(0) if n * S <= most]))
    assume(allowed.allow(L, S))
    return L, S


def _side(sizes: list[int]) -> st.SearchStrategy[int]:
    """One length: any, or, twice as often, one at the edge of a tile."""
    edges = set(near_edges(sizes))
    return st.one_of(st.sampled_from(sizes), *(_edge(edges) for _ in range(2 if edges else 0)))


@st.composite
def _edge(draw: st.DrawFn, edges: set[int]) -> int:
    """One key or query behind a tile, before it, or a whole one; the side is drawn first, so that it stays."""
    side = draw(st.sampled_from([d for d in (1, -1, 0) if any(tile + d in edges for tile in TILES)]))
    return side + draw(st.sampled_from([tile for tile in TILES if tile + side in edges]))


@st.composite
def drawn(draw: st.DrawFn, spec: KernelSpec, most: float = math.inf) -> Case:
    """A case of at most so many cells (batch entry, query, key), which asks for nothing that is expected to fail."""
    L, S = draw(_pair(limits(spec), most / min(spec.batch)))
    batch = draw(st.sampled_from(sorted(set(spec.batch))))
    if batch * L * S > min(most, MOST_CELLS):
        batch = min(spec.batch)
    dims = draw(st.sampled_from(sorted(set(spec.features))))
    law = draw(st.sampled_from(_hopeful(spec, LAWS) or LAWS))
    factor = draw(st.sampled_from([1.0, 0.25, 2.0]))
    cells: str | None = draw(st.sampled_from([None, *cells_of(spec)]))
    if cells == "is_causal" and L != S:
        cells = None
    numbers = _hopeful(spec, [name for name in NUMBERS if name in spec.accepts])
    asks = draw(st.lists(st.sampled_from(numbers), unique=True).map(sorted)) if numbers else []
    table = draw(st.sampled_from([None, *_hopeful(spec, spec.tables)]))
    seed = draw(st.integers(0, 2**16))
    return Case((L, S), dims, batch, law, factor, (*([cells] if cells else []), *asks), table, seed)


def _hopeful(spec: KernelSpec, words: Sequence[str]) -> list[str]:
    """Words whose own check is not expected to fail."""
    return [word for word in words if word not in spec.expected_failures]


def cases(spec: KernelSpec) -> st.SearchStrategy[Case]:
    """Draw problems for a kernel, within what its spec allows: shapes, law, factor, what is asked, and a seed.

    Parameters
    ----------
    spec : KernelSpec
        The kernel: its lengths, dims, batch sizes, and the arguments that it accepts.

    Returns
    -------
    strategy of Case
        The numbers are drawn by a NumPy generator when a case is run, so that it shrinks, and prints, as its fields.

    Raises
    ------
    ValueError
        If the kernel is causal by flag and all lengths differ.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, strategies
    >>> spec = KernelSpec(ra.attention, dims=(8,), lengths=((1, 1), (9, 9)))
    >>> @settings(max_examples=3, database=None)
    ... @given(strategies.cases(spec))
    ... def test_output_has_the_shape_of_the_query(case):
    ...     query, key, value = (getattr(case.inputs(spec), name) for name in ("query", "key", "value"))
    ...     assert ra.attention(query, key, value).shape == query.shape
    >>> test_output_has_the_shape_of_the_query()
    """
    lengths(spec)
    return drawn(spec)


def arrays(shape: tuple[int, ...], dtype: str = "float32") -> st.SearchStrategy[npt.NDArray[Any]]:
    """Draw small arrays of hard numbers, each cell by itself: zeros of both signs, ones, and both ends of a format.

    Parameters
    ----------
    shape : tuple of int
        Shape; each cell is drawn, so a few dozen are a good number.
    dtype : str, default "float32"
        Name of a floating-point dtype.

    Returns
    -------
    strategy of numpy.ndarray
        Arrays of the dtype, without NaN and infinity.

    Raises
    ------
    ValueError
        If `dtype` is no floating-point format.

    Examples
    --------
    >>> from hypothesis import given, settings
    >>> from refattn.testing import strategies
    >>> @settings(max_examples=3, database=None)
    ... @given(strategies.arrays((2, 3), "bfloat16"))
    ... def test_shape(x):
    ...     assert x.shape == (2, 3)
    >>> test_shape()
    """
    if dtype not in FORMATS or dtype == "tf32":
        raise ValueError(f"arrays: dtype must be a floating-point dtype; got {dtype!r}.")
    kept = FORMATS[dtype]
    least = 2.0 ** (kept.min_exponent - kept.precision + 1)
    next_to_one = 1.0 + 2.0 ** (1 - kept.precision)
    ends = (-0.0, next_to_one, kept.max, -kept.max, 2.0**kept.min_exponent, least, -least)
    cells = st.lists(st.sampled_from((*PLAIN, *ends)), min_size=(size := math.prod(shape)), max_size=size)
    return cells.map(lambda found: round_to(np.array(found, dtype=np.float64).reshape(shape), dtype, np))
