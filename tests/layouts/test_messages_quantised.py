"""What the layouts of quantised operands refuse, word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn import layouts
from tests.messages import assert_raises

X = np.zeros((2, 3, 5, 4), np.float32)

CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: layouts.quantise(X, "int4"),
        ValueError,
        (
            "layouts.quantise: dtype must be one of 'int8', 'float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz', "
            "'float8_e5m2fnuz'; got 'int4'."
        ),
    ),
    (
        lambda: layouts.quantise(X, "int8", "head"),
        ValueError,
        "layouts.quantise: block must be one of 'tensor'; got 'head'.",
    ),
    (
        lambda: layouts.quantise(X, "int8", (0, None)),
        ValueError,
        "layouts.quantise: block must be at least 1; got 0.",
    ),
    (
        lambda: layouts.quantise(X, "int8", 4),
        TypeError,
        "layouts.quantise: block must be a pair (tokens, features); got 4.",
    ),
    (
        lambda: layouts.quantise(X[0, 0], "int8"),
        ValueError,
        "layouts.quantise: x must have at least 3 axes (..., H, L, E); got (5, 4).",
    ),
    (
        lambda: layouts.quantise(X + np.inf, "int8"),
        ValueError,
        "layouts.quantise: x must be finite; got NaN or an infinity.",
    ),
    (
        lambda: layouts.quantise(np.full((1, 1, 1), 1e300), "int8"),
        ValueError,
        "layouts.quantise: x must have magnitudes that float32 scales hold; got 1e+300.",
    ),
    (
        lambda: layouts.quantise_mx(X, "int8"),
        ValueError,
        "layouts.quantise_mx: dtype must be one of 'float8_e4m3fn', 'float8_e5m2', 'float4_e2m1fn'; got 'int8'.",
    ),
    (
        lambda: layouts.quantise_mx(X, axis=0),
        ValueError,
        "layouts.quantise_mx: axis must be -1 (features) or -2 (tokens); got 0.",
    ),
    (
        lambda: layouts.quantise_mx(X, scale="nearest"),
        ValueError,
        "layouts.quantise_mx: scale must be one of 'down', 'up'; got 'nearest'.",
    ),
    (
        lambda: layouts.quantise_nvfp4(X[..., :3]),
        ValueError,
        "layouts.quantise_nvfp4: x must have an even number of features, two in a byte; got 3.",
    ),
    (
        lambda: layouts.quantise_nvfp4(np.full((1, 1, 2), 1e300)),
        ValueError,
        "layouts.quantise_nvfp4: x must have magnitudes that a float32 scale holds; got 1e+300.",
    ),
    (
        lambda: layouts.dequantise(X.astype(np.float64), X),
        TypeError,
        "layouts.dequantise: values must be float32 or narrower, or integers of up to 16 bits; got float64.",
    ),
    (
        lambda: layouts.dequantise(X, X.astype(np.uint8)),
        TypeError,
        "layouts.dequantise: scales must be floating-point; got uint8. View bytes as the float8 that they are.",
    ),
    (
        lambda: layouts.dequantise(X, X.astype(np.float64)),
        TypeError,
        "layouts.dequantise: scales must be float32 or narrower, as kernels hold it; got float64.",
    ),
    (
        lambda: layouts.dequantise(X, X[:, :, :2], (2, None)),
        ValueError,
        (
            "layouts.dequantise: scales must have the axes (..., H, blocks of tokens, blocks of features), each 1 or "
            "as in (2, 3, 3, 1); got (2, 3, 2, 4)."
        ),
    ),
    (
        lambda: layouts.dequantise(X, X[..., :1, :1] + np.nan),
        ValueError,
        "layouts.dequantise: scales must be finite; got NaN or an infinity.",
    ),
    (
        lambda: layouts.dequantise(X, X[..., :1, :1], tensor_scale=np.ones(1, np.float32)),
        ValueError,
        "layouts.dequantise: tensor_scale must have shape (); got (1,).",
    ),
    (
        lambda: layouts.dequantise(X, X[..., :1, :1], tensor_scale=np.array(1, np.float32)),
        ValueError,
        (
            "layouts.dequantise: values, scales and tensor_scale must have at most 53 significant bits together, so "
            "that their product is exact; got 72. Multiply two of them yourself."
        ),
    ),
    (
        lambda: layouts.dequantise(X, X[..., :1, :1], packed=True),
        TypeError,
        "layouts.dequantise: values must be bytes (uint8) of two numbers each; got float32.",
    ),
    (
        lambda: layouts.unpack_e2m1(X),
        TypeError,
        "layouts.unpack_e2m1: packed must be bytes (uint8) of two numbers each; got float32.",
    ),
    (
        lambda: layouts.Layout(descale=((None, None), (None, None))),
        TypeError,
        "layouts.Layout: descale must be three pairs (tokens, features); got ((None, None), (None, None)).",
    ),
    (
        lambda: layouts.Layout(descale=((None, None), (0, None), (None, None))),
        ValueError,
        "layouts.Layout: descale must be at least 1; got 0.",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[2])
def test_message(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    assert_raises(*case)
