"""Weights that share a scale in blocks: what each part of the bound is for, by inputs that need it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refattn import contract
from tests.bounds.cases import Case
from tests.bounds.emulator import Kernel

MX, NV = contract.mxfp8("float32"), contract.nvfp4("float32")
UP = replace(MX, probability_scale="e8m0 up")
NEAREST_BELOW = 1 - 2.0**-12


def weights(w: list[float], v: list[float]) -> Case:
    """A row whose weights are w over their largest, and values v."""
    return Case(np.ones((1, 1)), np.log(np.array(w))[:, None], np.array(v)[:, None], 1.0)


def narrow(scale: str, **more: object) -> Kernel:
    """A kernel within MX or NV, but for the rule of its scales."""
    claim = NV if scale.startswith("e4m3") else MX
    fields = {"weights": claim.probabilities, "block": claim.probability_block, "block_scale": scale, "tile": 64}
    return Kernel(**{**fields, "matmul": "tensor_core_16", **more})


# Of the second block all numbers lie just under a power of two, and are clipped; of the first, 1 is exact.
CLIPPED = weights([1.0] + [1e-3] * 31 + [0.5 * NEAREST_BELOW] * 32, [0.0] * 32 + [1.0] * 32)
# 15 weights just under a quarter of the scale 1/6 become 0.
SMALL = weights([1.0] + [NEAREST_BELOW / 24] * 15, [0.0] + [1.0] * 15)
# The scale of the second block, 2**-10 / (1 + 1/4), becomes 0, and so do its weights; the largest are left.
LOST = weights([1.0] * 16 + [6 * 2.0**-10 * 0.8] * 16, [0.0] * 16 + [1.0] * 16)
# The same numbers near the middle of two.
MIDDLE = weights([1.0] + [5 / 6 * NEAREST_BELOW] * 15, [0.0] + [1.0] * 15)


@pytest.mark.parametrize(
    ("case", "kernel", "claim", "other"),
    [
        pytest.param(CLIPPED, narrow("e8m0 down"), MX, UP, id="clipped"),
        pytest.param(SMALL, narrow("e4m3"), NV, replace(UP, min_tile=16), id="small"),
        pytest.param(LOST, narrow("e4m3"), NV, replace(NV, probability_scale="e8m0 up"), id="a scale becomes 0"),
        pytest.param(MIDDLE, narrow("e4m3"), NV, replace(UP, min_tile=16), id="rounded"),
    ],
)
def test_each_part_of_the_bound_is_needed(
    case: Case, kernel: Kernel, claim: contract.Contract, other: contract.Contract
) -> None:
    assert case.used(kernel, claim)[0] <= 1 < case.used(kernel, other)[0]


def test_a_factor_keeps_scales_in_their_range() -> None:
    plain, lifted = (LOST.used(narrow("e4m3", factor=factor), NV)[0] for factor in (1.0, 2.0**11))
    assert lifted < plain <= 1


@pytest.mark.parametrize(("claim", "small"), [(UP, 2.0**-20), (NV, 0.04)], ids=["mxfp8", "nvfp4"])
def test_scales_of_blocks_are_no_scales_of_rows(claim: contract.Contract, small: float) -> None:
    case = weights([1.0] * 32 + [small] * 992, [0.0] * 32 + [1.0] * 992)
    own = narrow(str(claim.probability_scale))
    of_row = replace(own, block=1024, tile=1024)
    assert case.used(own, claim)[0] <= 1 < case.used(of_row, claim)[0]


@pytest.mark.parametrize("claim", [MX, NV], ids=["mxfp8", "nvfp4"])
def test_a_row_sum_of_rounded_weights_is_another_claim(claim: contract.Contract) -> None:
    kernel = narrow("e8m0 down" if claim is MX else "e4m3", sum_of_rounded=True)
    case = CLIPPED if claim is MX else SMALL
    # Values of 1 throughout: errors of weights cancel in the quotient, where both sums have them, and only there.
    same = replace(case, v=np.ones_like(case.v))
    assert same.used(kernel, replace(claim, rounded_sum=True))[0] <= 1
    assert case.used(kernel, replace(claim, rounded_sum=True))[1] <= 1 < case.used(kernel, claim)[1]
