"""Kernels with planted bugs: those of the catalogue that a forward kernel can show, and some that are in none."""

from __future__ import annotations

from typing import Any

from refattn.testing import KernelSpec
from tests.judge.facts import Facts
from tests.judge.outside import OUTSIDE
from tests.judge.planted_masks import MASKS
from tests.judge.planted_memory import MEMORY
from tests.judge.planted_merging import MERGING
from tests.judge.planted_scores import SCORES
from tests.judge.planted_softmax import SOFTMAX
from tests.judge.planting import Bug, spec_of
from tests.judge.tiled import Tiled

PLANTED: dict[str, Bug] = MASKS | SOFTMAX | SCORES | MEMORY | MERGING
EVERY: dict[str, Bug] = PLANTED | OUTSIDE

# What a kernel without a bug may compute and accept, by name, for the tests and for false alarms.
RIGHT: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"facts": {"causal": True}, "accepts": ("scale",)},
    "upper left": {"facts": {"causal": True, "anchor": "upper_left"}},
    "window": {"facts": {"window": (37, 0)}},
    "both sides": {"facts": {"window": (19, 11)}},
    "prefix": {"facts": {"causal": True, "prefix": 70}},
    "alibi": {"facts": {"causal": True, "slopes": True}, "heads": (6, 2)},
    "arguments": {"accepts": ("mask", "bias", "is_causal", "scale", "softcap", "sinks")},
    "softcap": {"facts": {"softcap": 3.0, "causal": True}, "accepts": ("bias", "sinks")},
    "one head": {"facts": {"scale": 0.2}, "heads": (2, 1), "dims": ((48, 32),)},
    "paged": {"facts": {"causal": True}, "accepts": ("block_table", "seqused_k")},
    "packed": {"facts": {"causal": True}, "accepts": ("cu_seqlens_q", "cu_seqlens_k")},
    "padded": {"facts": {"window": (37, 0)}, "accepts": ("seqused_k",)},
}


def kernel(bug: str | None = None, **facts: Any) -> Tiled:
    """A kernel, with one of `EVERY` planted in it; what is not said is as the bug needs it."""
    if bug is None:
        return Tiled(Facts(**facts))
    return EVERY[bug].kernel(Facts(**{**EVERY[bug].facts, **facts}))


def spec(bug: str, dtype: str, n: int, **facts: Any) -> KernelSpec:
    """The KernelSpec of a kernel with a bug, whose arguments and lengths show what the bug needs."""
    return spec_of(EVERY[bug], dtype, n, **facts)


def right(feature: str, dtype: str, n: int, **facts: Any) -> KernelSpec:
    """The KernelSpec of a kernel without a bug, for one of `RIGHT`."""
    return spec_of(Bug(feature, feature, Tiled, **RIGHT[feature]), dtype, n, **facts)
