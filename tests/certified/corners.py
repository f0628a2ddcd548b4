"""More kinds of problems to hunt certified results with: ends of ranges, edges of tiles, rules of masks, poison."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from refattn import masks
from tests import bias_rules, mask_rules
from tests.certified.kinds import DTYPES, TABLE, Case, Rng, draw, pick, size

EDGES = (127, 128, 129, 255, 256, 257, 511, 512, 513)


def families(rng: Rng) -> Case:
    """Every family of masks and biases, on a batch of grouped heads."""
    heads, batch = pick(rng, (2, 1), (4, 2)), pick(rng, (), (2,))
    d = draw(rng, S=size(rng, 24), L=int(rng.integers(1, 7)), Ev=2, heads=heads, batch=batch)
    H, L, S = d.lengths
    anchor = pick(rng, "lower_right", "upper_left", int(rng.integers(-3, 9)))
    offset = S - L if anchor == "lower_right" else 0 if anchor == "upper_left" else anchor
    kind = pick(rng, *mask_rules.KINDS, "causal", "window", "lengths")
    if kind in mask_rules.KINDS:
        _, mask, rule = mask_rules.made(kind, rng, batch, H, L, S, anchor, lambda index: offset)
        cells = np.array([rule(at[:-2], at[-2], at[-1]) for at in np.ndindex(*batch, H, L, S)], dtype=bool)
        visible = cells.reshape(*batch, H, L, S)
    else:
        left, right, length = (int(x) for x in rng.integers(0, S + 1, 3))
        i, j = np.arange(L)[:, None] + offset, np.arange(S)
        mask, visible = {
            "causal": (masks.causal(anchor), j <= i),
            "window": (masks.window(left, right, anchor), (j >= i - left) & (j <= i + right)),
            "lengths": (masks.lengths(length), np.broadcast_to(j < length, (L, S))),
        }[kind]
    more: dict[str, Any] = {}
    if rng.random() < 0.5:
        _, bias, added = bias_rules.made(pick(rng, *bias_rules.KINDS), rng, batch, H, anchor, lambda index: offset)
        cells = np.array([added(at[:-2], at[-2], at[-1]) for at in np.ndindex(*batch, H, L, S)], dtype=float)
        more = {"bias": bias, "added": cells.reshape(*batch, H, L, S)}
    rows = None
    if rng.random() < 0.3:  # in any order, some twice
        rows = np.stack([rng.integers(0, n, 7) for n in (*batch, H, L)], axis=1)
    return d.case(rows=rows, mask=mask, visible=visible, **more)


def dropout(rng: Rng) -> Case:
    """Dropout, which multiplies by a real number that float64 need not hold, and can drop all that a row sees."""
    d = draw(rng)
    H, L, S = d.lengths
    p = float(pick(rng, 0.0, 0.1, 0.3, 0.5, 2 / 3, 0.9, 1 - 2.0**-10, 1e-17))
    kept = rng.random((H, L, S)) >= p
    visible = rng.random((H, L, S)) < pick(rng, 0.5, 1.0)
    return d.case(dropout_mask=kept, kept=kept, dropout_p=p, mask=visible, visible=visible)


def inexact(rng: Rng) -> Case:
    """Products that cancel: logits of 1 from operands whose norms multiply to far more."""
    d = draw(rng, E=2 * size(rng, pick(rng, 1, 2, 16)), dtype=pick(rng, "float64", "float64", "float32"))
    half = d.query.shape[-1] // 2
    large = pick(rng, 2.0**6, 2.0**12, 2.0**20)
    common = rng.standard_normal(half) * large
    d.query[..., half:] = common
    d.query[..., :half] = common * (1 + rng.standard_normal(half) * 2.0**-30)
    k = rng.standard_normal((*d.key.shape[:-1], half)) * large
    d.key[..., :half] = k
    d.key[..., half:] = -k * (1 + rng.standard_normal(k.shape) / large**2)
    return d.case(scale=pick(rng, None, 1.0))


def sums(rng: Rng) -> Case:
    """Values that a running sum loses, one after the other: each just below half a unit of it."""
    S = int(pick(rng, 8, 40, 128, 129, 256, 300, 1024))
    d = draw(rng, S=S, E=1, L=int(rng.integers(1, 5)), Ev=4, heads=(1, 1), dtype="float64")
    d.query[...] = 0.0
    block = pick(rng, 32, 64, 128, 128, 256, 10**6)
    d.value[...] = 2.0**-53 * rng.uniform(0.95, 1.0, d.value.shape)
    d.value[..., np.arange(S) % block == 0, :] = 1.0
    if rng.random() < 0.3:
        d.value *= -1
    return d.case()


def top(rng: Rng) -> Case:
    """Logits whose common part is so large that float64 rounds the differences away."""
    d = draw(rng, S=size(rng, 12) + 1, E=2, dtype="float64")
    a, b = (float(x) for x in rng.integers(*pick(rng, (8, 24), (24, 32), (31, 37)), 2))
    d.query[..., 0], d.query[..., 1] = 2.0**a, pick(rng, 1.0, 1.0, 2.0**-20)
    d.key[..., 0] = 2.0**b
    d.key[..., 1] *= pick(rng, 1.0, 2000.0, 2.0**20)
    if rng.random() < 0.3:  # exact products
        d.query[..., 1], d.key[..., 1] = 1.0, rng.integers(-9, 10, d.key.shape[:-1]) / 8
    sinks = pick(rng, None, np.full(d.lengths[0], 2.0 ** (a + b)))
    return d.case(scale=pick(rng, 1.0, 0.3, None), sinks=sinks)


def reach(rng: Rng) -> Case:
    """Operands on both sides of 2^-900 and 2^900, subnormal ones too, whose logits the other factors bring back."""
    d = draw(rng, dtype="float64")
    exponents = (0, 0, 100, 500, 530, 880, 899, 901, 950, 1010)
    e, f = (int(pick(rng, *exponents)) * int(pick(rng, 1, -1)) for _ in range(2))
    if rng.random() < 0.4:
        f = -e
    d.query *= 2.0**e
    d.key *= 2.0**f
    if rng.random() < 0.2:
        e, d.query = -1070, rng.integers(-9, 10, d.query.shape) * 2.0**-1074
    scale = None if e == -f else math.ldexp(pick(rng, 1.0, 0.7), max(-1074, min(1023, -e - f)))
    d.value *= 2.0 ** int(pick(rng, 0, -1070, -1000, -901, -899, -500, 500, 890, 900, 1000))
    return d.case(scale=scale)


def extremes(rng: Rng) -> Case:
    """What overflows: products of 1e200, values of 1e300 that cancel, bias 1e15 and more, sinks far above."""
    d = draw(rng, dtype="float64")
    H, L, S = d.lengths
    for x in (d.query, d.key):
        if rng.random() < 0.5:
            x *= 10.0 ** pick(rng, -300, -200, 30, 77, 154, 200, 300)
    d.value *= 10.0 ** pick(rng, -300, 0, 0, 270, 300)
    if rng.random() < 0.3:
        d.value[..., ::2, :] = -d.value[..., :1, :]
    more: dict[str, Any] = {}
    if rng.random() < 0.3:
        more["bias"] = more["added"] = rng.standard_normal((H, L, S)) * 10.0 ** pick(rng, 9, 15, 100, 300)
    if rng.random() < 0.3:
        more["sinks"] = rng.standard_normal(H) * 10.0 ** pick(rng, 5, 15, 100, 300)
    if rng.random() < 0.3:
        more["softcap"] = 10.0 ** pick(rng, -300, -3, 6, 15, 300)
    return d.case(scale=pick(rng, None, 1.0, -1.0, 0.0, 1e-300, 1e300), **more)


def poison(rng: Rng) -> Case:
    """NaN and infinities: in memory that no row sees, in keys and values that some rows see, in queries."""
    d = draw(rng, L=int(rng.integers(2, 5)))
    H, L, S = d.lengths
    visible = rng.random((H, L, S)) < 0.8
    bad = rng.random(S) < 0.3
    visible[..., bad] &= rng.random((L, 1)) < pick(rng, 0.0, 0.0, 0.5)
    for x in (d.key, d.value):
        found = rng.random(x.shape) < pick(rng, 0.1, 1.0)
        x[found & bad[:, None]] = pick(rng, math.nan, math.inf, -math.inf)
    if rng.random() < 0.2:
        d.query[..., 0, 0] = pick(rng, math.nan, math.inf)
        visible[:, 0] &= rng.random() < 0.5
    dtypes = ("float64", "float32", "float16", "bfloat16", "float8_e5m2")
    return d.case(dtypes=(pick(rng, *dtypes),) * 3, mask=visible, visible=visible)


def empty(rng: Rng) -> Case:
    """No key, one key, no query, no column; rows that see nothing; sinks alone, and sinks of -inf."""
    d = draw(rng, S=pick(rng, 0, 1, 1, 2), L=pick(rng, 0, 1, 2, 4), Ev=pick(rng, 0, 1, 3, 3))
    H, L, S = d.lengths
    more: dict[str, Any] = {}
    if rng.random() < 0.6:
        more["mask"] = more["visible"] = rng.random((H, L, S)) < pick(rng, 0.0, 0.5)
    if rng.random() < 0.6:
        more["sinks"] = np.where(rng.random(H) < 0.4, -math.inf, rng.standard_normal(H) * pick(rng, 1.0, 1e5))
    return d.case(**more)


def tiles(rng: Rng) -> Case:
    """Lengths about the edges of tiles."""
    d = draw(rng, S=int(pick(rng, *EDGES)), L=pick(rng, 1, 2, 3), E=size(rng, 16), Ev=6, heads=(1, 1))
    _, L, S = d.lengths
    law, j = pick(rng, "all", "rows", "window"), np.arange(S)
    if law == "all":
        return d.case()
    if law == "window":
        left, right, anchor = (int(x) for x in rng.integers(0, S + 1, 3))
        i = np.arange(L)[:, None] + anchor
        return d.case(mask=masks.window(left, right, anchor), visible=(j >= i - left) & (j <= i + right))
    first, stop = np.sort(rng.integers(0, S + 1, (2, L)), axis=0)
    visible = (j >= first[:, None]) & (j < stop[:, None])
    return d.case(mask=visible, visible=visible)


def long(rng: Rng) -> Case:
    """Up to 4,096 keys, of which a few rows and columns are looked at."""
    S, L = int(rng.integers(900, 4097)), int(rng.integers(64, 300))
    d = draw(rng, S=S, L=L, E=int(pick(rng, 16, 64, 64)), Ev=8, heads=(1, 1))
    rows = np.stack([np.zeros(3, int), np.sort(rng.choice(L, 3, replace=False))], axis=1)
    law = pick(rng, "normal", "peaked", "capped", "causal", "dropped")
    if law == "peaked":
        d.query *= 10
    if law == "capped":
        return d.case(rows=rows, softcap=30.0, sinks=np.array([2.0]))
    if law == "causal":
        j, i = np.arange(S), np.arange(L)[:, None] + S - L
        return d.case(rows=rows, mask=masks.causal("lower_right"), visible=j <= i)
    if law == "dropped":
        kept = rng.random((L, S)) < 0.9
        return d.case(rows=rows, dropout_mask=kept, kept=kept, dropout_p=0.1)
    return d.case(rows=rows)


def narrow(rng: Rng) -> Case:
    """The 8-bit formats, some numbers at their largest, some subnormal."""
    name = pick(rng, "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    d = draw(rng, dtype=name)
    info = ml_dtypes.finfo(np.dtype(getattr(ml_dtypes, name)))
    for x in (d.query, d.key, d.value):
        x[rng.random(x.shape) < 0.1] *= float(info.max)
        x[rng.random(x.shape) < 0.1] *= float(info.smallest_normal)
    return d.case(scale=pick(rng, None, 0.01, 1e-4))


def mixed(rng: Rng) -> Case:
    """Operands of three dtypes, integers among them."""
    dtypes = (*DTYPES, "int8", "int64")
    return draw(rng).case(dtypes=(pick(rng, *dtypes), pick(rng, *dtypes), pick(rng, *dtypes)))


def features(rng: Rng) -> Case:
    """Many features, about the powers of two where slices of the operands change their widths."""
    d = draw(rng, S=size(rng, 12), E=int(pick(rng, 127, 128, 129, 192, 256, 257, 512, 513)), heads=(1, 1), L=3)
    d.key[...] *= pick(rng, 1.0, 1.0, 4.0)
    return d.case()


def uneven(rng: Rng) -> Case:
    """Operands whose numbers lie so many powers of two apart that slices of fixed width leave rests."""
    d = draw(rng)
    for x in (d.query, d.key, d.value):
        spread = pick(rng, 0, 12, 30, 60, 120)
        x *= np.exp2(-rng.integers(0, spread + 1, pick(rng, x.shape, (x.shape[-2], 1), x.shape[-1:])))
    if rng.random() < 0.3:
        d.value = np.round(d.value * 2.0**20) / 2.0**20
    return d.case(scale=pick(rng, None, 1.0))


def shifted(rng: Rng) -> Case:
    """A large number common to all logits, by bias or by a feature, and a sink near them."""
    d = draw(rng)
    H, L, S = d.lengths
    shift = float(pick(rng, 1e3, -1e6, 1e9, 3e11)) * float(rng.uniform(0.5, 1))
    added = np.broadcast_to(shift + rng.standard_normal((H, 1, S)) * pick(rng, 0.0, 1.0), (H, L, S)).copy()
    return d.case(bias=added, added=added, sinks=pick(rng, None, np.full(H, shift)))


def capped(rng: Rng) -> Case:
    """Caps that logits barely feel, or that flatten all of them; the bias comes after the cap."""
    d = draw(rng, dtype=pick(rng, "float64", "float32", "bfloat16"))
    H, L, S = d.lengths
    d.query *= pick(rng, 1e-12, 1e-3, 1.0, 1e3, 1e6)
    added = rng.standard_normal((H, L, S)) * pick(rng, 0.0, 1.0, 30.0)
    return d.case(softcap=float(pick(rng, 1e-3, 1.0, 30.0, 1e4)), bias=added, added=added)


def drowned(rng: Rng) -> Case:
    """Outputs far below the values: a sink, or a key of value 0, takes nearly all the weight."""
    d = draw(rng, S=size(rng, 12) + 1)
    H, _, _ = d.lengths
    if rng.random() < 0.5:
        return d.case(sinks=np.full(H, float(pick(rng, 10.0, 40.0, 300.0, 590.0, 620.0, 720.0))))
    d.query[...], d.value[..., 0, :] = 1.0, 0.0
    d.key[...] = -rng.uniform(0, pick(rng, 10.0, 40.0, 100.0), (d.key.shape[-2], 1)) / d.key.shape[-1]
    d.key[..., 0, :] = 0.0
    return d.case(scale=float(pick(rng, 1.0, 6.0)))


def constant(rng: Rng) -> Case:
    """Values that are all one number, zeros of either sign among them."""
    d = draw(rng)
    d.value[...] = rng.standard_normal(d.value.shape[-1]) * pick(rng, 1.0, 1e-3, 0.0, -0.0)
    d.query *= pick(rng, 1.0, 1.0, 0.0, -0.0)
    return d.case()


def pair(rng: Rng) -> Case:
    """Two or three keys whose values differ in sign: the errors of their exponentials do not average out."""
    d = draw(rng, S=pick(rng, 2, 2, 3), E=pick(rng, 1, 2), L=4, Ev=4, dtype="float64", heads=(1, 1))
    d.value[..., 0, :] = 1.0
    d.value[..., 1, :] = rng.uniform(-1, 1, d.value.shape[-1])
    d.key *= pick(rng, 0.1, 1.0, 10.0)
    return d.case(scale=pick(rng, 1.0, None))


CORNERS = (families, dropout, inexact, sums, top, reach, extremes, poison, empty, tiles, long, narrow, mixed, features,
           uneven, shifted, capped, drowned, constant, pair)  # fmt: skip
KINDS = (*TABLE, *CORNERS)
