"""The input laws: each has the property that it is there for."""

from __future__ import annotations

import math

import numpy as np
import pytest

import refattn as ra
from refattn.testing import KernelSpec
from refattn.testing.inputs.problems import RISE, Inputs, Problem, inputs

SHAPE = (2, (60, 70), (64, 32))  # batch, (L, S), (E, Ev)


def drawn(law: str, contract: str = "float32") -> Inputs:
    """The arrays of a law, of 4 query heads and 2 key heads."""
    spec = KernelSpec(ra.attention, contract=contract)
    return inputs(spec, Problem(law, law, *SHAPE, (0, 1)))


def scores(given: Inputs) -> np.ndarray:
    """Scaled products (B, H, L, S)."""
    q, k = (x.astype(np.float64) for x in (given.query, given.key))
    return q @ np.repeat(np.swapaxes(k, -1, -2), 2, axis=1) / math.sqrt(q.shape[-1])


def assert_normal(x: np.ndarray, mean: float, deviation: float) -> None:
    """Mean and mean square of n independent normal numbers lie within 5 sigma of what they should be."""
    z = (x.astype(np.float64) - mean) / deviation
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / z.size)


@pytest.mark.parametrize(("law", "wide", "centre"), [("normal", 1, 0), ("peaked", 4, 0), ("offset", 1, 4)])
def test_plain_laws_are_normal_numbers_of_their_width_and_centre(law: str, wide: float, centre: float) -> None:
    given = drawn(law)
    assert_normal(given.query, 0, wide)
    assert_normal(given.key, 0, 1)
    assert_normal(given.value, centre, 1)


def test_scores_of_the_rising_law_rise_along_the_keys() -> None:
    means = scores(drawn("rising")).mean(axis=(0, 1, 2))
    # In the mean the last key is RISE (S - 1)/S above the first; so each tile of keys has a new maximum in most rows.
    S = len(means)
    slope = np.polyfit(np.arange(S), means, 1)[0]
    assert round(slope * S / RISE, 0) == 1
    tops = np.stack([part.max(axis=-1) for part in np.split(scores(drawn("rising")), 7, axis=-1)])
    assert np.mean(np.diff(tops, axis=0) > 0) > 0.5


def test_each_query_of_the_coded_law_has_one_key_and_all_keys_have_a_query() -> None:
    weights = np.exp(scores(drawn("coded")))
    weights /= weights.sum(axis=-1, keepdims=True)
    assert weights.max(axis=-1).min() > 0.5
    aims = weights.argmax(axis=-1)
    for key_head in (0, 1):
        of_head = aims[:, 2 * key_head : 2 * key_head + 2]
        assert all(set(entry.ravel()) == set(range(70)) for entry in of_head)
    # The last key first: kernels lose keys where tiles are cut.
    assert (aims[:, 0, 0] == 69).all()


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
def test_arrays_have_the_dtypes_of_the_contract(name: str) -> None:
    contract = ra.contract.fp8() if name.startswith("float8") else ra.contract.flash(name)
    given = drawn("normal", contract)
    assert {x.dtype.name for x in (given.query, given.key, given.value)} == {name}
