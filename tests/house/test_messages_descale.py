"""The whole text of every message about factors of quantised operands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refattn import layouts, testing
from tests.messages import K, Q, V, assert_raises, attend

CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "two factors",
        {"descale": (1.0, 1.0)},
        TypeError,
        "descale must be a tuple (query, key, value) of arrays, numbers or None; got 2 entries.",
    ),
    (
        "one factor",
        {"descale": 0.5},
        TypeError,
        "descale must be a tuple (query, key, value) of arrays, numbers or None; got float.",
    ),
    (
        "a flag as factor",
        {"descale": (None, True, None)},
        TypeError,
        "descale[1] (of key) must be an array, a number or None; got bool.",
    ),
    (
        "a factor that no float32 holds",
        {"descale": (0.1, None, None)},
        ValueError,
        (
            "descale[0] (of query) must be a finite number that float32 holds, as kernels do; got 0.1. Round it with "
            "numpy.float32."
        ),
    ),
    (
        "an endless factor",
        {"descale": (None, None, math.inf)},
        ValueError,
        (
            "descale[2] (of value) must be a finite number that float32 holds, as kernels do; got inf. Round it with "
            "numpy.float32."
        ),
    ),
    (
        "factors in float64",
        {"descale": (np.ones((2, 4, 1)), None, None)},
        TypeError,
        "descale[0] (of query) must be float32 or narrower, as kernels hold it; got float64.",
    ),
    (
        "factors of batch entries and heads alone",
        {"query": Q.astype(np.float32), "descale": (np.ones((2, 4), np.float32), None, None)},
        ValueError,
        (
            "descale[0] (of query) must have the axes (..., heads, blocks), one fewer than query (2, 4, 3, 8), or (..., "
            "heads, blocks of tokens, blocks of features); got (2, 4). Pass x[..., None] for one factor for each head."
        ),
    ),
    (
        "factors of other heads",
        {"query": Q.astype(np.float32), "descale": (np.ones((2, 3, 1), np.float32), None, None)},
        ValueError,
        (
            "descale[0] (of query) must have 1 or as many heads, or key heads, and batch entries as query (2, 4, 3, 8); "
            "got (2, 3, 1)."
        ),
    ),
    (
        "blocks that do not fit",
        {"key": K.astype(np.float32), "descale": (None, np.ones((2, 2, 2), np.float32), None)},
        ValueError,
        (
            "descale[1] (of key) must cut the 5 tokens of key into blocks of one size; got 2 blocks. Pass "
            "layouts.dequantise(...) where the last block is shorter."
        ),
    ),
    (
        "NaN as factor",
        {"key": K.astype(np.float32), "descale": (None, np.full((2, 2, 1), math.nan, np.float32), None)},
        ValueError,
        "descale[1] (of key) must be finite; got NaN or an infinity.",
    ),
    (
        "a factor of wide operands",
        {"descale": (0.5, None, None)},
        TypeError,
        (
            "query must have at most 24 significant bits where descale multiplies it, so that the product is exact; got "
            "float64. Multiply it yourself and leave its entry of descale None."
        ),
    ),
]


@pytest.mark.parametrize("function", ["attention", "attention_rows", "flash_attention", "flash_decode"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_factors(function: str, case: tuple[str, dict[str, Any], type[Exception], str]) -> None:
    _, arguments, error, text = case
    assert_raises(lambda: attend(function, **arguments), error, f"{function}: {text}")


def test_blocks_of_tokens_beside_tables() -> None:
    narrow = [x.astype(np.float32) for x in (Q, K, V)]
    blocks = (None, np.ones((2, 2, 5), np.float32), None)
    text = (
        "descale[1] (of key) must have shape (B, heads, 1), with B=2 or 1, where sequences have lengths of their own; got "
        "(2, 2, 5). Pass layouts.dequantise(...) for blocks of tokens."
    )
    given = {"descale": blocks, "seqused_k": [5, 3]}
    assert_raises(lambda: attend("flash_decode", *narrow, **given), ValueError, f"flash_decode: {text}")
    output = np.zeros((2, 4, 3, 6), np.float32)
    assert_raises(lambda: testing.check(output, *narrow, **given), ValueError, f"check: {text}")
    assert layouts.dequantise(narrow[1], blocks[1][..., None], (1, None)).shape == K.shape
