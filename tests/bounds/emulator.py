"""NumPy emulators of attention kernels, every operation rounded as the kernel would round it.

They share nothing with refattn.contract but the names of formats: a kernel's numbers are float32 arrays (float64 where
the accumulator is), and each rounding is written out here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

F = np.float32
LOG2E, LN2 = F(math.log2(math.e)), F(math.log(2))


def rounded(x, name):
    """x in the format, to nearest, as float32 (float64 for float64)."""
    if name == "float64":
        return np.asarray(x, dtype=np.float64)
    x = np.asarray(x, dtype=F)
    if name == "float32":
        return x
    if name == "tf32":
        bits = x.view(np.uint32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(F)
    return x.astype(getattr(ml_dtypes, name, name)).astype(F)


def cut(x, name):
    """x in the format, toward zero, as float32; for formats with float32's range and for float16."""
    x = np.asarray(x, dtype=F)
    drop = {"tf32": 13, "bfloat16": 16}.get(name)
    if drop is not None:
        return (x.view(np.uint32) & np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)).view(F)
    y = x.astype(getattr(ml_dtypes, name, name))
    return np.where(np.abs(y.astype(F)) > np.abs(x), np.nextafter(y, y.dtype.type(0)), y).astype(F)


def blockwise(P, size, name, scale, factor):
    """Weights (R, n) in the format after a division by a scale for each `size` of them, as float32."""
    most = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "float4_e2m1fn": 6.0}[name]
    out = np.empty_like(P)
    for first in range(0, P.shape[1], size):
        x = P[:, first : first + size] * F(factor)
        b = x.max(axis=1, keepdims=True)
        if scale.startswith("e8m0"):
            _, exponent = np.frexp(b)
            power = exponent - 1 - int(np.log2(most))
            power = power + (b > np.ldexp(most, power)) * (scale == "e8m0 up")
            s = np.ldexp(F(1), np.maximum(power, -127))
        else:
            s = rounded(b / F(most), "float8_e4m3fn")
            if scale == "e4m3 up":
                above = np.nextafter(s.astype(ml_dtypes.float8_e4m3fn), ml_dtypes.float8_e4m3fn(448)).astype(F)
                s = np.where(s * F(most) < b, above, s)
        y = np.where(s > 0, x / np.where(s > 0, s, F(1)), F(0))
        out[:, first : first + size] = rounded(np.minimum(y, F(most)), name) * s / F(factor)
    return out


def _blas(a, b, total):
    return total + a @ b


def _sequential(a, b, total):
    """Product rounded, then added, one term after the other."""
    for k in range(a.shape[1]):
        total = total + a[:, k, None] * b[k]
    return total


def _fused(a, b, total):
    """One rounding a term: float64 holds the product of two float32 exactly."""
    for k in range(a.shape[1]):
        total = (total.astype(np.float64) + a[:, k, None].astype(np.float64) * b[k]).astype(F)
    return total


def _pairwise(a, b, total):
    terms = a[:, :, None] * b
    while terms.shape[1] > 1:
        odd = terms[:, -1:] if terms.shape[1] % 2 else terms[:, :0]
        half = terms.shape[1] // 2
        terms = np.concatenate([terms[:, :half] + terms[:, half : 2 * half], odd], axis=1)
    return total + terms.sum(axis=1)


def tensor_core(terms: int, bits: int = 24, floor: bool = False) -> Callable:
    """Exact products, `terms` at a time with the sum so far, each cut off at bit `bits` of the largest."""
    cut_off = np.floor if floor else np.trunc

    def matmul(a, b, total):
        a, b, total = a.astype(np.float64), b.astype(np.float64), total.astype(np.float64)
        for k in range(0, a.shape[1], terms):
            addends = np.concatenate([total[:, None], a[:, k : k + terms, None] * b[k : k + terms]], axis=1)
            _, exponent = np.frexp(np.abs(addends).max(axis=1, keepdims=True))
            grid = np.ldexp(1.0, exponent - bits)
            total = (cut_off(addends / grid) * grid).sum(axis=1)
            _, exponent = np.frexp(total)
            grid = np.ldexp(1.0, exponent - bits)
            total = np.trunc(total / grid) * grid
        return total.astype(F)

    return matmul


def product(name, a, b, total=None):
    """A (R, k) B (k, n), added to `total`, by the arithmetic called `name`."""
    return MATMULS[name](a, b, np.zeros((a.shape[0], b.shape[1]), dtype=a.dtype) if total is None else total)


MATMULS = {
    "blas": _blas,
    "sequential": _sequential,
    "fused": _fused,
    "pairwise": _pairwise,
    "tensor_core_4": tensor_core(4),
    "tensor_core_16": tensor_core(16, floor=True),
    "hopper_fp8": tensor_core(32, bits=14),
}


@dataclass(frozen=True)
class Kernel:
    """One tiled kernel: what it rounds, in which order it goes, and how it takes exponentials."""

    operand: str = "float32"  # format that q (and, for "sqrt", k) is rounded to when it is scaled before the product
    prescale: str = "none"  # "none", "query" (scale), "log2" (scale log2 e), "sqrt" (root on both)
    recast: bool = False  # operands are brought into `operand` before the products even unscaled (tf32)
    cast: Callable = rounded
    scores: str = "float32"
    weights: str = "float32"
    sum_of_rounded: bool = False  # row sum over rounded weights
    matmul: str = "blas"
    tile: int = 32
    order: str = "forward"  # "forward", "backward", "shuffled"
    splits: int = 1
    combine: str = "total"  # "total": exp(lse_i - lse); "sum": divided by the sum of weights; "chain": one by one
    exponential: str = "exp"  # "exp", "exp2_fma", "exp2_separate"
    noise: float = 0.0  # relative error of the weights' exponential, + or - this
    rescale_noise: float = 0.0  # the same for rescale factors
    one_sided: bool = False  # all of these errors have the sign of the noise
    lazy: float = 0.0
    shift: int = 0  # weights carry 2**shift
    block: int = 0  # keys that share a scale of their weights
    block_scale: str = ""  # "e8m0 down", "e8m0 up", "e4m3" (to nearest), "e4m3 up"
    factor: float = 1.0  # of weights while they are given scales
    sink_first: bool = False
    reciprocal: bool = False
    dropout: str = "weights"  # where 1 / (1 - p) multiplies: "weights" before they are rounded, "rounded", "output"
    output: str = "float32"
    seed: int = 0

    def __call__(self, q, k, v, *, scale, softcap=None, bias=None, keep=None, sink=None, kept=None, dropout_p=0.0):
        """Output and log-sum-exp of q (R, E), k (S, E), v (S, Ev); bias, keep and kept (R, S)."""
        with np.errstate(all="ignore"):
            rng = np.random.default_rng(self.seed)
            S = len(k)
            keep = np.ones((len(q), S), dtype=bool) if keep is None else keep
            s = self._scores(F(q), F(k), F(scale), softcap, bias)
            s = np.where(keep, s, F(-np.inf))
            v = self.cast(v, self.operand) if self.recast else F(v)
            bounds = np.linspace(0, S, self.splits + 1).astype(int)
            if self.block:
                bounds[1:-1] = bounds[1:-1] // self.block * self.block
            parts = []
            for number, (first, stop) in enumerate(itertools.pairwise(bounds)):
                starts = np.arange(first, stop, self.tile)
                if self.order == "backward":
                    starts = starts[::-1]
                if self.order == "shuffled":
                    rng.shuffle(starts)
                pieces = [np.arange(t, min(t + self.tile, stop)) for t in starts]
                first_sink = sink if self.sink_first and number == 0 else None
                parts.append(self._state(s, v, pieces, first_sink, rng, kept, F(1) / F(1 - F(dropout_p))))
            late = None if self.sink_first else sink
            output, lse = self._finish(*parts[0], late) if self.splits == 1 else self._combined(parts, late)
            if kept is not None and self.dropout == "output":
                output = output * (F(1) / F(1 - F(dropout_p)))
            return rounded(output, self.output), lse

    def _scores(self, q, k, scale, softcap, bias):
        """Scores in units of e, or of 2 where q carries log2 e."""
        factor = {"none": None, "query": scale, "log2": F(scale * LOG2E), "sqrt": F(np.sqrt(np.abs(scale)))}
        c = factor[self.prescale]
        if c is not None:
            q = self.cast(q * c, self.operand)
            k = self.cast(k * c * np.sign(scale), self.operand) if self.prescale == "sqrt" else k
        elif self.recast:
            q, k = self.cast(q, self.operand), self.cast(k, self.operand)
        if self.recast:
            k = self.cast(k, self.operand)
        s = rounded(product(self.matmul, q, k.T), self.scores)
        if self.prescale == "none":
            s = rounded(s * scale, self.scores)
        if self.prescale == "log2":
            s = s * LN2
        if softcap is not None:
            s = rounded(s / F(softcap), self.scores)
            s = rounded(np.tanh(s) * F(1 + self.noise), self.scores)
            s = rounded(s * F(softcap), self.scores)
        return s if bias is None else rounded(s + F(bias), self.scores)

    def _exp(self, s, m, noise, rng):
        """exp(s - m) with the kernel's way of forming the exponent."""
        if self.exponential == "exp":
            x = np.exp((s - m).astype(np.float64))
        elif self.exponential == "exp2_separate":
            x = np.exp2((s * LOG2E - m * LOG2E).astype(np.float64))
        else:
            c = np.float64(LOG2E)
            x = np.exp2(F(s.astype(np.float64) * c - np.float64(F(m * LOG2E))).astype(np.float64))
        sign = 1.0 if self.one_sided else rng.choice([-1.0, 1.0], size=np.shape(x))
        x = F(x * (1 + noise * sign))
        return np.where(np.abs(x) < 2.0**-126, F(0), x)

    def _state(self, s, v, pieces, sink, rng, kept, factor):
        """Running maximum, row sum and unnormalised output over the pieces of keys."""
        R = len(s)
        m = np.full((R, 1), -np.inf, dtype=F) if sink is None else np.full((R, 1), sink, dtype=F)
        l = np.zeros((R, 1), dtype=F) if sink is None else np.ones((R, 1), dtype=F) * F(2.0**self.shift)
        O = np.zeros((R, v.shape[1]), dtype=F)
        for j in pieces:
            top = np.maximum(m, s[:, j].max(axis=1, keepdims=True))
            # A lazy kernel keeps its old number while the maximum has not risen by much.
            top = np.where((m > -np.inf) & (top - m <= self.lazy), m, top)
            safe = np.where(top > -np.inf, top, F(0))
            P = self._exp(s[:, j], safe, self.noise, rng) * F(2.0**self.shift)
            moved = m > -np.inf
            alpha = np.where(moved, self._exp(np.where(moved, m, safe), safe, self.rescale_noise, rng), F(0))
            cast = self._narrow(P)
            l = l * alpha + (cast if self.sum_of_rounded else P).sum(axis=1, keepdims=True, dtype=F)
            if kept is not None:
                cast = self._narrow(P * factor) if self.dropout == "weights" else cast
                cast = np.where(kept[:, j], cast * factor if self.dropout == "rounded" else cast, F(0))
            O = product(self.matmul, cast, v[j], O * alpha)
            m = top
        return m, l, O

    def _narrow(self, P):
        """Weights as they enter the product with the values."""
        if self.block:
            return blockwise(P, self.block, self.weights, self.block_scale, self.factor)
        return self.cast(P, self.weights)

    def _finish(self, m, l, O, sink):
        """Output and log-sum-exp of one state."""
        if sink is not None:
            top = np.maximum(m, F(sink))
            alpha = np.exp(m - top)
            l, O, m = l * alpha + np.exp(F(sink) - top) * F(2.0**self.shift), O * alpha, top
        some = l > 0
        safe = np.where(some, l, F(1))
        o = O * (F(1) / safe) if self.reciprocal else O / safe
        lse = np.where(some, m + (np.log(safe) - F(self.shift) * LN2), F(-np.inf))
        return np.where(some, o, F(0)), lse[:, 0]

    def _combined(self, parts, sink):
        """Splits joined through their stored log-sum-exps, a sink as one more of them."""
        outputs, lses = zip(*(self._finish(*part, None) for part in parts), strict=True)
        outputs, lses = list(outputs), list(lses)
        if sink is not None:
            outputs.append(np.zeros_like(outputs[0]))
            lses.append(np.full_like(lses[0], sink))
        O, lse = np.stack(outputs), np.stack(lses)[..., None]
        top = lse.max(axis=0)
        safe = np.where(top > -np.inf, top, F(0))
        if self.combine == "chain":
            o, total = O[0], lse[0]
            for o_i, lse_i in zip(O[1:], lse[1:], strict=True):
                both = np.maximum(total, lse_i)
                both = np.where(both > -np.inf, both, F(0))
                joined = both + np.log(np.exp(total - both) + np.exp(lse_i - both))
                reach = np.where(joined > -np.inf, joined, F(0))
                o, total = o * np.exp(total - reach) + o_i * np.exp(lse_i - reach), joined
            return o, total[:, 0]
        w = np.exp(lse - safe)
        total = safe + np.log(w.sum(axis=0))
        if self.combine == "total":
            w = np.exp(lse - np.where(total > -np.inf, total, F(0)))
        o = (w * O).sum(axis=0, dtype=F)
        return o if self.combine == "total" else o / np.maximum(w.sum(axis=0), F(1e-30)), total[:, 0]


@dataclass(frozen=True)
class Eager:
    """A plain implementation: each stage one array operation whose result is stored in `dtype`."""

    dtype: str = "bfloat16"
    sqrt_scale: bool = True
    matmul: str = "blas"

    def __call__(self, q, k, v, *, scale, softcap=None, bias=None, keep=None, sink=None, kept=None, dropout_p=0.0):
        """Output and log-sum-exp of q (R, E), k (S, E), v (S, Ev); bias, keep and kept (R, S)."""
        store = lambda x: rounded(x, self.dtype)  # noqa: E731
        with np.errstate(all="ignore"):
            q, k, v, scale = store(q), store(k), store(v), F(scale)
            if self.sqrt_scale:
                root = F(np.sqrt(np.abs(scale)))
                s = store(product(self.matmul, store(q * root * np.sign(scale)), store(k * root).T))
            else:
                s = store(store(product(self.matmul, q, k.T)) * scale)
            if softcap is not None:
                s = store(store(np.tanh(store(s / F(softcap)))) * F(softcap))
            s = s if bias is None else store(s + F(bias))
            s = s if keep is None else np.where(keep, s, F(-np.inf))
            m = s.max(axis=1, keepdims=True)
            m = m if sink is None else np.maximum(m, F(sink))
            m = np.where(m > -np.inf, m, F(0))
            x = s - m if sink is None else store(s - m)
            e = np.exp(x)
            l = e.sum(axis=1, keepdims=True, dtype=F)
            l = l if sink is None else l + np.exp(store(F(sink) - m))
            P = store(e / np.where(l > 0, l, F(1)))
            P = P if kept is None else store(np.where(kept, P * (F(1) / F(1 - F(dropout_p))), F(0)))
            lse = np.where(l > 0, m + np.log(l), F(-np.inf))[:, 0]
            return store(product(self.matmul, P, v)), lse
