"""A tiled kernel in NumPy that may be built in any of the ways that are right, and given one mistake at a time."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.namespaces import numpy_dtype

F = np.float32
LOG2E = F(math.log2(math.e))
LN2 = F(math.log(2))

MERGES = ("logs in base 2", "rounded logs", "rounded outputs", "sum of one part", "lse of one part")


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to a dtype, as float32."""
    with np.errstate(over="ignore"):
        return x.astype(numpy_dtype(dtype)).astype(F)


@dataclass(eq=False)
class TiledKernel:
    """Softmax attention of arrays (B, H, L, E), key tile by key tile; `mistake` says what is wrong with it."""

    dtype: str = "float32"
    mistake: str = ""
    tile: int = 32
    splits: int = 1
    backward: bool = False
    exp2: bool = False
    weights: str = "float32"
    rounded_sum: bool = False
    lazy: float = 0.0
    exp_error: float = 0.0
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    calls: int = field(default=0, init=False)
    mask: np.ndarray | None = field(default=None, init=False)
    __name__ = "tiled"

    def __call__(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, **given: Any) -> Any:
        """Output in the dtype, and log-sum-exp in float32."""
        self.calls += 1
        if self.mistake == "raises":
            raise ValueError("no kernel for these shapes")
        with np.errstate(all="ignore"):
            q, k, v = self._read(*(x.astype(F) for x in (query, key, value)))
            s, seen = self._scores(q, k, given)
            output, lse = self._attend(s, seen, v, given)
            if self.mistake == "output of other heads":
                output = np.swapaxes(output, 1, 2).reshape(output.shape)
            return self._stored(output), lse.astype(F)

    def _read(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Operands, with a key and value head for each query head."""
        (B, H, L, E), (Hk, S), Ev = q.shape, k.shape[1:3], v.shape[-1]
        q, k, v = q.copy(), k.copy(), v.copy()
        match self.mistake:
            case "stale value element":
                v[:, 0, 65 % S, 5] = v[:, 0, 65 % S - 1, 5]
            case "stale key element":
                k[:, 1, 65 % S, 7] = k[:, 1, 65 % S - 1, 7]
            case "stale query element":
                q[:, 2, 41 % L, 9] = q[:, 2, 41 % L - 1, 9]
            case "swapped rows":
                q[:, 0, [17, 41]] = q[:, 0, [41, 17]]
            case "key strides for values":
                flat = v.reshape(-1)
                at = np.arange(B * Hk)[:, None, None] * S * E + np.arange(S)[:, None] * E + np.arange(Ev)
                v = flat[np.minimum(at, flat.size - 1)].reshape(v.shape)
            case "reshaped":
                k, v = (np.swapaxes(x.reshape(B, S, Hk, -1), 1, 2) for x in (k, v))
            case "bfloat16 operands":
                q, k = cast(q, "bfloat16"), cast(k, "bfloat16")
            case "values one late":
                v = np.roll(v, 1, axis=2)
            case "shared page":
                v[:, :, 48:64] = v[:, :, 32:48]
        right, modulo = np.arange(H) // (H // Hk), np.arange(H) % Hk
        of_key = modulo if self.mistake in ("modulo", "key heads modulo") else right
        of_value = modulo if self.mistake in ("modulo", "value heads modulo") else right
        return q, k[:, of_key], v[:, of_value]

    def _scores(self, q: np.ndarray, k: np.ndarray, given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Scores in base e, and who takes part."""
        E, H = q.shape[-1], q.shape[1]
        scale = given.get("scale") or 1 / math.sqrt(E)
        match self.mistake:
            case "given scale ignored":
                scale = 1 / math.sqrt(E)
            case "scale of E + 1":
                scale = 1 / math.sqrt(E + 1)
            case "scale of heads":
                scale = 1 / math.sqrt(H)
            case "not scaled":
                scale = 1.0
            case "scores times 0.98":
                scale *= 0.98
        s = q @ np.swapaxes(k, -1, -2)
        cap = given.get("softcap") or self.softcap
        if cap is not None and self.mistake == "softcap before scale":
            s, cap = F(cap) * np.tanh(s / F(cap)), None
        s = (
            cast(q * F(scale), "float16") @ np.swapaxes(k, -1, -2)
            if self.mistake == "queries rounded"
            else s * F(scale)
        )
        s = cast(s, "float16") if self.mistake == "float16 scores" else s
        s = cast(s, "bfloat16") if self.mistake == "bfloat16 scores" else s
        bias = given.get("bias")
        bias = None if bias is None or self.mistake == "bias ignored" else bias.astype(F)
        if bias is not None and self.mistake == "bias scaled":
            bias = bias * F(scale)
        if bias is not None and self.mistake == "bias of the first tile":
            bias = bias[..., np.arange(bias.shape[-1]) % self.tile]
        if bias is not None and self.mistake == "bias transposed":
            bias = np.swapaxes(bias, -1, -2).reshape(bias.shape)
        if bias is not None and self.mistake == "bias before softcap":
            s, bias = s + bias, None
        if cap is not None and self.mistake != "softcap ignored":
            inner = s / F(1.0 if self.mistake == "no inner softcap" else cap)
            s = np.tanh(inner) * F(1.0 if self.mistake == "no outer softcap" else cap)
        s = s if bias is None else s + bias
        seen = self._seen(q, k, given)
        if self.mistake == "softcap after mask":
            s, seen = np.where(seen, s, -F(cap)), np.ones_like(seen)
        if self.mistake == "log2e forgotten":
            s = s * LN2
        if self.mistake == "log2e cut":
            s = s * (F(1.44) * LN2)
        return s, seen

    def _seen(self, q: np.ndarray, k: np.ndarray, given: dict[str, Any]) -> np.ndarray:
        """Who takes part."""
        (B, H, L, _), S = q.shape, k.shape[2]
        i, j = np.arange(L)[:, None] + (0 if self.mistake == "anchor" else S - L), np.arange(S)
        seen = np.ones((B, H, L, S), dtype=bool)
        window = self.window
        if window is not None:
            window += {"window wide": 1, "window narrow": -1, "window ignored": S}.get(self.mistake, 0)
            seen &= j >= i - window
        if self.causal or given.get("is_causal"):
            seen &= j <= i + {"future key": 1, "diagonal masked": -1, "causal ignored": S}.get(self.mistake, 0)
        mask = given.get("mask")
        if self.mistake == "stale mask":
            self.mask = mask = self.mask if mask is None or mask.shape[2:] != (L, S) else mask
        if mask is not None and self.mistake == "mask stride":
            flat, stride = mask.reshape(B, H, -1), -(-S // 32) * 32
            mask = flat[..., np.minimum(np.arange(L)[:, None] * stride + j, L * S - 1)]
        if mask is not None and self.mistake != "mask ignored":
            mask = ~mask if self.mistake == "mask inverted" else mask
            mask = np.swapaxes(mask, -1, -2).reshape(mask.shape) if self.mistake == "mask transposed" else mask
            seen &= mask[:, :1] if self.mistake == "mask of head 0" else mask
        match self.mistake:
            case "heads in rows":
                seen = np.broadcast_to(j <= (i * 2 + np.arange(H)[:, None, None] % 2) - (S - L), seen.shape)
            case "lost key":
                seen[:, 2, 64:, 65] = False
            case "lost tile":
                seen[..., 64:96] = False
            case "last key lost":
                seen[..., S - 1] = False
            case "keys past L lost":
                seen[..., L:] = False
            case "invented causal mask":
                seen &= j <= i
        return seen

    def _attend(self, s: np.ndarray, seen: np.ndarray, v: np.ndarray, given: dict[str, Any]) -> Any:
        """Output and log-sum-exp."""
        S = s.shape[-1]
        s = np.where(seen, s, F(-np.inf))
        edges = np.linspace(0, S, self.splits + 1).astype(int)
        parts = [self._part(s, v, a, b) for a, b in itertools.pairwise(edges)]
        if self.mistake in MERGES:
            return self._merged(parts)
        if self.mistake == "split lost":
            parts = parts[:-1]
        m = np.max([part[0] for part in parts], axis=0)
        sinks = None if self.mistake == "sinks ignored" else given.get("sinks")
        if sinks is not None:
            sinks = self._sinks(sinks.astype(F), s)
            m = m if self.mistake == "sinks linear" else np.maximum(m, sinks)
        m = np.maximum(m, F(0)) if self.mistake == "padding counted" else np.where(np.isfinite(m), m, F(0))
        l = sum(part[1] * np.exp(part[0] - m) for part in parts)
        O = sum(part[2] * np.exp(part[0] - m)[..., None] for part in parts)
        if sinks is not None:
            other = m[..., np.arange(m.shape[-1]) // 32 * 32] if self.mistake == "sink of another row" else m
            l = l + (sinks if self.mistake == "sinks linear" else np.exp(sinks - other))
        if self.mistake == "sum of the next row":
            l = l + np.roll(l, -1, axis=-1)
        if self.mistake == "mask multiplied" and given.get("mask") is not None:
            l = l * F(np.nan)
        if self.mistake == "padding counted":
            l = l + F(-S % 64) * np.exp(-m)
        if self.mistake == "empty rows nan":
            return O / l[..., None], m + np.log(l)
        lse = np.where(l > 0, self._lse(m, l, given), F(-np.inf))
        output = np.where(l[..., None] > 0, O / np.where(l > 0, l, F(1))[..., None], F(0))
        if self.mistake == "empty rows mean":
            output = np.where(l[..., None] > 0, output, v.mean(axis=-2, keepdims=True))
        return output, lse

    def _merged(self, parts: Any) -> Any:
        """Output and log-sum-exp of parts that are finished each by itself."""
        logs = [m + np.log(l) for m, l, _ in parts]
        outputs = [O / l[..., None] for _, l, O in parts]
        match self.mistake:
            case "logs in base 2":
                logs = [x * LOG2E for x in logs]
            case "rounded logs":
                logs = [cast(x, "bfloat16") for x in logs]
            case "rounded outputs":
                outputs = [cast(x, "bfloat16") for x in outputs]
        top = np.max(logs, axis=0)
        weights = [np.exp(x - top) for x in logs]
        total = F(1) if self.mistake == "sum of one part" else sum(weights)
        output = sum(w[..., None] * x for w, x in zip(weights, outputs, strict=True))
        lse = logs[0] if self.mistake == "lse of one part" else top + np.log(total)
        return output / np.asarray(total)[..., None], lse

    def _sinks(self, sinks: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Sinks for each row."""
        match self.mistake:
            case "sinks scaled":
                sinks = sinks / F(8)
            case "sink per split":
                sinks = sinks + F(math.log(4))
            case "sinks reversed":
                sinks = sinks[::-1]
        return np.broadcast_to(sinks[:, None], s.shape[:-1])

    def _lse(self, m: np.ndarray, l: np.ndarray, given: dict[str, Any]) -> np.ndarray:
        """Log-sum-exp."""
        match self.mistake:
            case "lse in base 2":
                return (m + np.log(l)) * LOG2E
            case "lse of mixed bases":
                return m * LOG2E + np.log(l)
            case "lse without maximum":
                return np.log(l)
            case "lse one row late":
                return np.roll(m + np.log(l), 1, axis=-1)
            case "lse zero":
                return np.zeros_like(l)
        return m + np.log(l)

    def _part(self, s: np.ndarray, v: np.ndarray, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Maximum, row sum and unnormalised output over some keys."""
        m = np.full(s.shape[:-1], -np.inf, F)
        l = np.zeros_like(m)
        O = np.zeros((*m.shape, v.shape[-1]), F)
        starts = range(first, stop, self.tile)
        for a in reversed(starts) if self.backward else starts:
            j = slice(a, min(a + self.tile, stop))
            top = np.maximum(m, s[..., j].max(axis=-1))
            top = np.maximum(top, F(-5e4)) if self.mistake == "sentinel" else top
            top = np.where((m > -np.inf) & (top - m <= self.lazy), m, top)
            safe = np.where(top > -np.inf, top, F(0))
            p, alpha = self._exp(s[..., j], safe[..., None]) * F(1 + self.exp_error), self._exp(m, safe)
            narrow = cast(p, self.weights)
            if self.mistake == "lane":
                p = np.where(np.arange(p.shape[-1]) == 17, F(0), p)
            if self.mistake == "key twice" and a <= 70 < j.stop:
                narrow[:, 1, :, 70 - a] *= 2
                p = narrow
            l = l * (F(1) if self.mistake in ("sum not rescaled", "nothing rescaled") else alpha)
            O = O * (F(1) if self.mistake in ("output not rescaled", "nothing rescaled") else alpha[..., None])
            l = l + (narrow if self.rounded_sum else p).sum(axis=-1, dtype=F)
            O = O + narrow @ v[..., j, :]
            if self.mistake in ("float16 accumulator", "bfloat16 accumulator"):
                O = cast(O, self.mistake.split()[0])
            m = top
        return np.where(np.isfinite(m), m, F(-np.inf)), l, O

    def _exp(self, s: np.ndarray, m: np.ndarray) -> np.ndarray:
        """exp(s - m) in one of two ways."""
        return np.exp2(s * LOG2E - m * LOG2E) if self.exp2 else np.exp(s - m)

    def _stored(self, output: np.ndarray) -> np.ndarray:
        """Output as it is stored."""
        dtype = numpy_dtype(self.dtype)
        if self.mistake == "two ulp":
            up = np.nextafter(np.nextafter(output, F(np.inf)), F(np.inf))
            return np.where(output > 0, up, output).astype(dtype)
        if self.mistake == "output cut off":
            stored = output.astype(dtype)
            return np.where(np.abs(stored.astype(F)) > np.abs(output), np.nextafter(stored, dtype.type(0)), stored)
        return output.astype(dtype)
