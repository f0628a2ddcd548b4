"""The gradient of attention by complex steps through its definition. Imports nothing of refattn.

The imaginary part of f(x + ih) / h is f'(x) up to O(h^2), and nothing cancels (Squire & Trapp, SIAM Review 40, 1998):
with h = 1e-100 it is as exact as f itself is evaluated.

Each gradient comes with a radius for a float64 evaluation of its formulas. Let every sum and product in them be
replaced by that of absolute values:

    |dP| = |dO| |V|^T |Z|,    |D| = rowsum(P |dP|) + |dlse|,    |dS| = P (|dP| + |D|),    |dR| = |dS| sech^2(R / c)

and so on for dQ, dK and dV. Sums of E, Ev, S, L and G terms and at most 40 single operations on the way to any gradient
give each of these terms a relative error of (E + 2 Ev + 2 S + L + G + 40) u; a weight errs by the errors of two
exponents, (E + 10) u (|scale| |q| |k| + c + |b|) + 4 u |s| each at most, and sech^2 by twice that over c. The second
order is covered by a factor of 2, while the whole stays below 1/4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

U = 2.0**-53
STEP = 1e-100


@dataclass(frozen=True)
class Case:
    """One call: arrays (..., H, L, E), (..., Hk, S, E), (..., Hk, S, Ev), cells that take part, dropout's factors."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    grad_output: np.ndarray
    grad_lse: np.ndarray
    seen: np.ndarray
    scale: float
    softcap: float | None = None
    bias: np.ndarray | None = None
    sinks: np.ndarray | None = None
    factors: np.ndarray | float = 1.0
    tiles: int = 1

    def scores(self, absolute: bool = False) -> np.ndarray:
        """Scores of all cells; with `absolute`, the sums of absolute values that they are made of."""
        q, k = self.query, self.of_head(self.key)
        if absolute:
            found = abs(self.scale) * np.abs(q) @ np.swapaxes(np.abs(k), -1, -2)
            return found + (self.softcap or 0.0) + np.abs(0.0 if self.bias is None else self.bias)
        found = self.scale * (q @ np.swapaxes(k, -1, -2))
        found = found if self.softcap is None else self.softcap * np.tanh(found / self.softcap)
        return found if self.bias is None else found + self.bias

    def of_head(self, x: np.ndarray) -> np.ndarray:
        """Keys or values (..., Hk, S, E), for each query head its own."""
        return np.repeat(x, self.query.shape[-3] // self.key.shape[-3], axis=-3)

    def softmax(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (..., H, L, S) and log-sum-exp (..., H, L), 0 in rows without keys."""
        sinks = np.full((self.query.shape[-3], 1, 1), -np.inf) if self.sinks is None else self.sinks[:, None, None]
        s = self.scores()
        m = np.where(self.seen, s.real, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
        m = np.maximum(m, sinks.real)
        m = np.where(np.isfinite(m), m, 0.0)
        w = np.where(self.seen, np.exp(np.where(self.seen, s - m, 0.0)), 0.0)
        there = np.isfinite(sinks.real)
        sink = np.where(there, np.exp(np.where(there, sinks, m) - m), 0.0)
        l = w.sum(axis=-1, keepdims=True) + sink
        l = np.where(l == 0, 1.0, l)
        return w / l, (m + np.log(l))[..., 0]

    def loss(self) -> Any:
        """The scalar that is differentiated."""
        P, lse = self.softmax()
        O = (P * self.factors) @ self.of_head(self.value)
        counted = np.isfinite(self.grad_lse) & (np.any(self.seen, axis=-1) | (self.sinks is not None))
        return (self.grad_output * O).sum() + (np.where(counted, self.grad_lse, 0.0) * lse).sum()

    def gradient(self, name: str) -> np.ndarray:
        """The gradient of one of the arrays, entry by entry."""
        x = getattr(self, name)
        found = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            moved = x.astype(complex)
            moved[at] += 1j * STEP
            found[at] = replace(self, **{name: moved}).loss().imag / STEP
        return found

    def radius(self, name: str) -> np.ndarray:
        """How far a float64 evaluation of the gradient of one of the arrays may be from the exact one."""
        (H, L, E), (Hk, S, Ev) = self.query.shape[-3:], self.value.shape[-3:]
        k, v, dO = self.of_head(np.abs(self.key)), self.of_head(np.abs(self.value)), np.abs(self.grad_output)
        P, _ = self.softmax()
        exponent = np.where(self.seen, (E + 10) * U * self.scores(absolute=True) + 4 * U * np.abs(self.scores()), 0.0)
        exponent = exponent.max(axis=-1, keepdims=True, initial=0.0)
        rescaled = 10 * self.tiles if self.tiles > 1 else 0
        relative = (E + 2 * Ev + 2 * S + L + H // Hk + 40 + rescaled) * U + 2 * exponent
        slope: Any = 1.0
        if self.softcap is not None:
            relative = relative + 2 * exponent / self.softcap
            slope = (
                1 / np.cosh(self.scale * (self.query @ np.swapaxes(self.of_head(self.key), -1, -2)) / self.softcap) ** 2
            )
        assert relative.max(initial=0.0) < 0.25
        dP = (dO @ np.swapaxes(v, -1, -2)) * self.factors
        D = (P * dP).sum(axis=-1, keepdims=True) + np.abs(self.grad_lse)[..., None]
        dS = 2 * relative * np.where(self.seen, P * (dP + D), 0.0)
        dR = abs(self.scale) * dS * slope
        match name:
            case "query":
                return dR @ k
            case "key":
                return self._of_key(np.swapaxes(dR, -1, -2) @ np.abs(self.query))
            case "value":
                return self._of_key(np.swapaxes(2 * relative * P * self.factors, -1, -2) @ dO)
            case "bias":
                return dS
        sink = 2 * relative * np.maximum(1 - P.sum(axis=-1, keepdims=True), 0.0) + 4 * S * U
        return (sink * D).sum(axis=(*range(dS.ndim - 3), -1, -2))

    def _of_key(self, x: np.ndarray) -> np.ndarray:
        """Summed over the query heads that read a key head."""
        H, Hk = self.query.shape[-3], self.key.shape[-3]
        return x.reshape(*x.shape[:-3], Hk, H // Hk, *x.shape[-2:]).sum(axis=-3)
