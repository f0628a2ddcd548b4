"""Factors of quantised operands in the oracle: what they make of the operands is exact data."""

from __future__ import annotations

import numpy as np

from refattn import layouts, oracle


def test_factors_are_the_same_as_the_numbers_they_make() -> None:
    rng = np.random.default_rng(0)
    narrow = [rng.integers(-127, 128, shape).astype(np.int8) for shape in ((4, 3, 8), (2, 6, 8), (2, 6, 5))]
    scales = [np.exp2(rng.uniform(-9, -5, shape)).astype(np.float32) for shape in ((2, 1), (2, 2), (1, 1))]
    factors = [np.repeat(scales[0], 2, axis=0)[..., None], scales[1][..., None], scales[2][..., None]]
    blocks = [(None, None), (3, None), (None, None)]
    whole = [layouts.dequantise(*x) for x in zip(narrow, factors, blocks, strict=True)]
    got, want = oracle.certified(*narrow, descale=tuple(scales)), oracle.certified(*whole)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_array_equal(x, y)
    other = oracle.certified(*narrow)
    assert not np.array_equal(other.output, got.output)
    rounded = oracle.rounded(*narrow, descale=tuple(scales), dtype="float32")
    np.testing.assert_array_equal(rounded, oracle.rounded(*whole, dtype="float32"))
    digests = [oracle.digest(*narrow, descale=tuple(scales), dtype="float32"), oracle.digest(*whole, dtype="float32")]
    assert digests[0] == digests[1]
