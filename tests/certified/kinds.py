"""Kinds of problems that certified results are hunted with, drawn by seed: the array call, and what its cells mean.

Most are aimed at one term of a proof; each says at which.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from refattn import biases, masks
from tests import bias_rules
from tests.certified.balls import Head

Rng = np.random.Generator
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
EXACT = DTYPES[2:]  # narrow enough for float64 products and sums of them to be exact, as a rule


@dataclass(frozen=True, eq=False)
class Case:
    """A call of the oracle, and its cells (..., H, L, S) as they are defined: seen, added, kept by dropout."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    arguments: dict[str, Any] = field(default_factory=dict)
    visible: np.ndarray | None = None
    added: np.ndarray | None = None
    kept: np.ndarray | None = None
    rows: np.ndarray | None = None  # (R, n) positions into (..., H, L); None for all

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes (..., H, L) of the answer."""
        return self.query.shape[:-1]

    def asked(self) -> np.ndarray:
        """Rows of the answer, (R, n)."""
        return np.array([*np.ndindex(self.lead)], int).reshape(-1, len(self.lead)) if self.rows is None else self.rows

    def heads(self) -> Iterator[tuple[np.ndarray, Head]]:
        """Each batch entry and head that is asked for: places among the rows, and the problem in float64."""
        group = self.query.shape[-3] // self.key.shape[-3]
        asked = self.asked()
        sinks = self.arguments.get("sinks")
        for index in sorted({tuple(at) for at in asked[:, :-1].tolist()}):
            places = np.flatnonzero((asked[:, :-1] == index).all(axis=1))
            i = asked[places, -1]
            key, value = (x[(*index[:-1], index[-1] // group)].astype(np.float64) for x in (self.key, self.value))
            cells = (
                None if x is None else np.broadcast_to(x, (*self.lead, len(key)))[index][i]
                for x in (self.visible, self.added, self.kept)
            )
            visible, added, kept = cells
            if added is not None and np.isneginf(added).any():
                hidden = np.isneginf(added)
                visible = ~hidden if visible is None else visible & ~hidden
                added = np.where(hidden, 0.0, added)
            head = Head(
                self.query[index][i].astype(np.float64), key, value, self.arguments.get("scale"),
                self.arguments.get("softcap"), visible, added, -math.inf if sinks is None else float(sinks[index[-1]]),
                kept, self.arguments.get("dropout_p", 0.0),
            )  # fmt: skip
            yield places, head


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """The array in a dtype, what is too large for it at its ends; what is not finite where the dtype can say so."""
    target = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if dtype == "float64":
        return np.array(x, dtype=target)
    if target.kind == "i":
        return np.clip(np.rint(8 * x), -120, 120).astype(target)
    most = float(ml_dtypes.finfo(target).max)
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(x), np.clip(x, -most, most), x).astype(target)


def pick(rng: Rng, *options: Any) -> Any:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def size(rng: Rng, largest: int) -> int:
    """A length from 1 to largest, short ones more often."""
    most = rng.integers(1, largest + 1) if rng.random() < 0.3 else largest
    return int(rng.integers(1, most + 1))


@dataclass
class Draw:
    """Operands as float64 normal numbers, which a kind changes before they are cast."""

    rng: Rng
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    dtype: str

    def case(self, *, dtypes: tuple[str, str, str] | None = None, rows: Any = None, **cells: Any) -> Case:
        """The call; `visible`, `added` and `kept` are cells, all else arguments."""
        arrays = [
            cast(x, to) for x, to in zip((self.query, self.key, self.value), dtypes or [self.dtype] * 3, strict=True)
        ]
        meant = {name: cells.pop(name) for name in ("visible", "added", "kept") if name in cells}
        return Case(*arrays, arguments=cells, rows=rows, **meant)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """H, L and S."""
        return self.query.shape[-3], self.query.shape[-2], self.key.shape[-2]


def draw(
    rng: Rng,
    *,
    S: int | None = None,
    E: int | None = None,
    L: int | None = None,
    Ev: int | None = None,
    dtype: str | None = None,
    heads: tuple[int, int] | None = None,
    batch: tuple[int, ...] = (),
) -> Draw:
    """Operands of a drawn size, S to 48 and E to 64."""
    H, Hk = heads or pick(rng, (1, 1), (1, 1), (2, 1))
    S = size(rng, 48) if S is None else S
    E = size(rng, 64) if E is None else E
    L = int(rng.integers(1, 5)) if L is None else L
    Ev = int(rng.integers(1, 9)) if Ev is None else Ev
    query = rng.standard_normal((*batch, H, L, E))
    key, value = rng.standard_normal((*batch, Hk, S, E)), rng.standard_normal((*batch, Hk, S, Ev))
    return Draw(rng, query, key, value, dtype or pick(rng, *DTYPES[:5]))


def normal(rng: Rng) -> Case:
    """Numbers as in a model."""
    return draw(rng).case()


def wide(rng: Rng) -> Case:
    """Magnitudes over many powers of two in every operand."""
    d = draw(rng)
    for x, spread in ((d.query, 3), (d.key, 3), (d.value, 6)):
        x *= np.exp2(rng.uniform(-spread, 0, x.shape))
    return d.case()


def huge(rng: Rng) -> Case:
    """Logits from 1 to 1e77, past what a radius can be had for."""
    d = draw(rng, dtype=pick(rng, *DTYPES[:4]))
    most = pick(rng, 4.0, 8.0, 38.0)
    d.query *= 10 ** rng.uniform(0, most)
    d.key *= 10 ** rng.uniform(0, most)
    return d.case(scale=pick(rng, None, 1.0, 0.125))


def cancel(rng: Rng) -> Case:
    """Values that come in pairs v, -v with keys that are nearly, or wholly, the same."""
    d = draw(rng, S=2 * size(rng, 24))
    half = d.key.shape[-2] // 2
    d.key[..., half:, :] = d.key[..., :half, :] * pick(rng, 1.0, 1 + 2.0**-20, 0.75)
    d.value[..., half:, :] = -d.value[..., :half, :]
    return d.case()


def equal(rng: Rng) -> Case:
    """Keys that are all the same: every weight is 1, and the sums of values alone err."""
    d = draw(rng)
    d.key[...] = d.key[..., :1, :]
    return d.case()


def mask(rng: Rng) -> Case:
    """Random cells, some rows empty."""
    d = draw(rng)
    H, L, S = d.lengths
    visible = rng.random((H, L, S)) < pick(rng, 0.1, 0.5, 0.9)
    visible[rng.random((H, L)) < 0.2] = False
    return d.case(mask=visible, visible=visible, sinks=pick(rng, None, rng.standard_normal(H)))


def bias(rng: Rng) -> Case:
    """Bias of any size, some cells -inf."""
    d = draw(rng)
    H, L, S = d.lengths
    added = rng.standard_normal((H, L, S)) * pick(rng, 1.0, 1.0, 10.0, 1e3, 1e15)
    if rng.random() < 0.3:
        added[rng.random((H, L, S)) < 0.3] = -math.inf
    if rng.random() < 0.3:
        added = added.astype(np.float32)
    return d.case(bias=added, added=added.astype(np.float64))


def alibi(rng: Rng) -> Case:
    """Published slopes, causal or not."""
    d = draw(rng, heads=pick(rng, (1, 1), (2, 2), (3, 1), (4, 2)), L=2, Ev=3)
    H, L, S = d.lengths
    slopes, distance = bias_rules.alibi_slopes(H), np.arange(L)[:, None] + S - L - np.arange(S)
    added = -slopes[:, None, None] * np.abs(distance)
    cells: dict[str, Any] = {"bias": biases.alibi(H, anchor="lower_right"), "added": added}
    if rng.random() < 0.5:
        cells |= {"mask": masks.causal("lower_right"), "visible": distance >= 0}
    return d.case(**cells)


def softcap(rng: Rng) -> Case:
    """Caps from 1e-3 to 1e6."""
    d = draw(rng)
    d.query *= 10 ** rng.uniform(-1, 2)
    return d.case(softcap=float(pick(rng, 1e-3, 0.5, 5.0, 8.0, 15.0, 20.0, 30.0, 50.0, 1e3, 1e6)))


def sink(rng: Rng) -> Case:
    """Sinks from far below the logits to 1e5 above, and -inf for none."""
    d = draw(rng)
    H, _, _ = d.lengths
    sinks = rng.standard_normal(H) * pick(rng, 1.0, 1.0, 5.0, 30.0, 700.0, 1e5)
    return d.case(sinks=np.where(rng.random(H) < 0.1, -math.inf, sinks))


def subn(rng: Rng) -> Case:
    """Values down to float64's subnormal numbers, columns of many sizes."""
    d = draw(rng, Ev=6, dtype="float64")
    d.value *= 10 ** rng.uniform(-324, -295, 6)
    return d.case()


def subn16(rng: Rng) -> Case:
    """Operands among the subnormal numbers of a narrow format, with a scale that brings the logits back."""
    d = draw(rng, dtype=pick(rng, "float16", "float16", "bfloat16", "float32", "float8_e4m3fn"))
    tiny = float(ml_dtypes.finfo(np.dtype(getattr(ml_dtypes, d.dtype, d.dtype))).smallest_normal)
    d.query *= tiny
    d.value *= tiny
    return d.case(scale=pick(rng, None, 0.1 / tiny, 1 / tiny))


def edge600(rng: Rng) -> Case:
    """Weights about e^-600, below which a key may be dropped, and a heavy key whose value is 0."""
    d = draw(rng, S=int(rng.integers(2, 48)), E=1, dtype=pick(rng, "float64", "float32"))
    d.query[...] = 1.0
    d.key[..., 0, :] = 0.0
    low = pick(rng, -700.0, -650.0, -601.0)
    d.key[..., 1:, :] = rng.uniform(low, low + pick(rng, 2.0, 200.0, 200.0), d.key[..., 1:, :].shape)
    d.value[..., 0, :] = 0.0
    return d.case(scale=1.0)


def scale(rng: Rng) -> Case:
    """Scales of 0, of either sign, no power of two, and 1/sqrt(E) where E is no square."""
    d = draw(rng, E=pick(rng, None, 3, 48, 64))
    drawn = float(rng.standard_normal()) * pick(rng, 1.0, 1e-3, 1.0)
    return d.case(scale=pick(rng, None, None, 0.0, -0.0, 1.0, -0.125, 1 / 3, drawn, drawn))


def combo(rng: Rng) -> Case:
    """Mask, bias, softcap, sink, scale and dropout at once, on a batch of grouped heads."""
    heads = pick(rng, (2, 1), (2, 2), (4, 2))
    d = draw(rng, L=2, Ev=3, heads=heads, batch=pick(rng, (), (2,)))
    H, L, S = d.lengths
    visible, kept = rng.random((2, H, L, S)) < 0.7
    added = rng.standard_normal((H, L, S)) * pick(rng, 1.0, 20.0)
    dropped = {"dropout_mask": kept, "kept": kept, "dropout_p": float(pick(rng, 0.1, 0.3))}
    return d.case(
        mask=visible, visible=visible, bias=added, added=added, softcap=float(pick(rng, 5.0, 30.0)),
        scale=pick(rng, None, 0.3), sinks=rng.standard_normal(H) * 3, **(dropped if rng.random() < 0.5 else {}),
    )  # fmt: skip


def peaky(rng: Rng) -> Case:
    """Weights that one key, or a few, take almost alone."""
    d = draw(rng)
    d.query *= pick(rng, 5.0, 10.0, 30.0)
    return d.case()


def adv_half(rng: Rng) -> Case:
    """Exponents midway between entries of the exponential's table, where its remainder is largest."""
    d = draw(rng, S=size(rng, 12) + 1, E=1, dtype="float64", L=1)
    steps = pick(rng, 256, 512, 1024, 4096)
    odd = rng.integers(-40 * steps, 1, d.key.shape) + 0.5
    d.query[...] = 1.0
    d.key[...] = odd * math.log(2) / steps * (1 + rng.integers(-2, 3, d.key.shape) * 2.0**-52)
    d.key[..., 0, :] = 0.0
    return d.case(scale=1.0)


def near(rng: Rng) -> Case:
    """Large logits that nearly tie: what their errors are is all that the weights show."""
    d = draw(rng, E=pick(rng, 2, 4, 16, 64), dtype=pick(rng, "float64", "float64", "float32"))
    common = rng.standard_normal(d.query.shape[-1]) * pick(rng, 8.0, 30.0, 100.0)
    d.query[...] = common * (1 + rng.standard_normal(d.query.shape) * 2.0**-40)
    d.key[...] = common * (1 + rng.standard_normal(d.key.shape) * pick(rng, 2.0**-50, 2.0**-40, 2.0**-20))
    return d.case()


TABLE = (normal, wide, huge, cancel, equal, mask, bias, alibi, softcap, sink, subn, subn16, edge600, scale, combo,
         peaky, adv_half, near)  # fmt: skip


def kind_rng(kind: Callable[[Rng], Case], seed: int) -> Rng:
    """The generator of a kind's case: the same whatever other kinds there are."""
    return np.random.default_rng([zlib.crc32(kind.__name__.encode()), seed])
