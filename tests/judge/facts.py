"""What the tiled kernel is made of and what it is given: its records, its products, and legitimate variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tests.bounds.emulator import product

F = np.float32
LOG2E = F(1 / math.log(2))
# What memory holds that nobody wrote to.
LEFTOVER = F(0.5)
ORDERS = ("forward", "backward", "permuted")


@dataclass(frozen=True)
class Facts:
    """What a kernel is made of: its numerics, its tiles, and what it always computes."""

    dtype: str = "float32"
    weights: str | None = None  # format of the weights; None: `dtype`
    tile_q: int = 64
    tile_k: int = 32
    order: str = "forward"
    splits: int = 1
    product: str = "blas"
    exponential: str = "exp2"
    lazy: float = 0.0
    sum_of_rounded: bool = False
    reciprocal: bool = False
    seed: int = 0
    anchor: str = "lower_right"
    causal: bool = False
    window: tuple[int | None, int | None] | None = None
    prefix: int = 0
    slopes: bool | tuple[float, ...] = False  # True: those of the ALiBi paper
    scale: float | None = None
    softcap: float | None = None

    @property
    def half(self) -> str:
        """A half-precision format: the kernel's own, or bfloat16."""
        return self.dtype if self.dtype in ("bfloat16", "float16") else "bfloat16"


@dataclass
class Problem:
    """One dense problem, or one sequence of a batch that is packed, paged or padded."""

    query: np.ndarray  # (B, H, L, E)
    key: np.ndarray  # as stored
    value: np.ndarray
    S: int
    key_heads: int
    dims: tuple[int, int]
    causal: bool = False
    mask: np.ndarray | None = None
    bias: np.ndarray | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: np.ndarray | None = None
    b: int = 0  # number of the sequence
    longest: int = 0  # keys of the longest sequence
    start: int | None = None  # first token of the sequence among packed keys
    table: np.ndarray | None = None  # block table of the whole batch

    @property
    def H(self) -> int:
        """Number of query heads."""
        return self.query.shape[1]

    @property
    def L(self) -> int:
        """Number of queries."""
        return self.query.shape[2]

    @property
    def group(self) -> int:
        """Number of query heads that read one key head."""
        return self.H // self.key_heads


class State(NamedTuple):
    """Number that is subtracted, row sum and unnormalised output, (B, H, rows, 1 or Ev)."""

    m: np.ndarray
    l: np.ndarray
    O: np.ndarray


class Part(NamedTuple):
    """Normalised output and log-sum-exp of some of the keys, (B, H, rows, Ev or 1)."""

    o: np.ndarray
    lse: np.ndarray


def matmul(name: str, a: np.ndarray, b: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
    """A B, added to `total`: by BLAS, in sums of 16 exact products that are cut off, or as the emulator names it."""
    if total is None:
        total = np.zeros((*a.shape[:-1], b.shape[-1]), F)
    if name == "blas":
        return total + a @ b
    if name == "truncating":
        for k in range(0, a.shape[-1], 16):
            exact = total.astype(np.float64) + a[..., k : k + 16].astype(np.float64) @ b[..., k : k + 16, :]
            nearest = exact.astype(F)
            total = np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, F(0)), nearest)
        return total
    lead = a.shape[:-2]
    total = np.broadcast_to(total, (*lead, *total.shape[-2:]))
    return np.stack([product(name, a[at], b[at], total[at]) for at in np.ndindex(lead)]).reshape(total.shape)


def published_slopes(H: int) -> np.ndarray:
    """The ALiBi paper's slopes, of its power of two below H, and every other one of the next."""
    below = 2 ** int(math.log2(H))
    exponents = [8 * (h + 1) / below for h in range(below)]
    exponents += [8 * (h + 1) / (2 * below) for h in range(0, 2 * (H - below), 2)]
    return np.exp2(-np.array(exponents)).astype(F)


def legit(rng: np.random.Generator, facts: Facts) -> Facts:
    """A legitimate variant: other tiles, order, splits, exponential, weights and products, all within the contract."""
    narrow = facts.dtype in ("bfloat16", "float16")
    return replace(
        facts,
        tile_q=int(rng.choice([16, 32, 64, 128])),
        tile_k=int(rng.choice([16, 32, 64, 128, 256])),
        order=str(rng.choice(ORDERS)),
        splits=int(rng.choice([1, 1, 2, 3, 8])),
        weights=str(rng.choice([facts.dtype, "float32"])),
        product=str(rng.choice(["blas", "truncating"])) if narrow else "blas",
        exponential=str(rng.choice(["exp", "exp2"])),
        lazy=float(rng.choice([0.0, 8 * math.log(2)])) if narrow else 0.0,
        sum_of_rounded=bool(rng.integers(2)),
        reciprocal=bool(rng.integers(2)),
        seed=int(rng.integers(2**31)),
    )
