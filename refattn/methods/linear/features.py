"""Feature maps phi, each with the derivative that pulls a gradient of the features back to what they are made of.

A product phi(q).phi(k) stands for the similarity of a query and a key. `positions` is (n, 1), counted from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refattn._core.arrays import Array, Namespace, array_namespace, device, float64, moved

Phi = Callable[[Array, Array, Namespace], Array]
Pull = Callable[[Array, Array, Array, Namespace], Array]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One feature map, or one for queries and one for keys.

    `query` and `key` make features (..., n, M) of float64 x (..., n, E) at their positions; `pull_query` and `pull_key`
    are their transposed derivatives, None where none is known. `scaled` says that the scale is 1/sqrt(E) where none is
    given, else 1; `whole` that a key's features depend on all keys.
    """

    name: str
    query: Phi
    key: Phi
    width: Callable[[int], int] | None
    pull_query: Pull | None = None
    pull_key: Pull | None = None
    scaled: bool = False
    whole: bool = False
    dim: int | None = None
    numbers: Any = None

    def __call__(self, x: Array) -> Array:
        """Features of queries x (..., n, E), the first of which stands at position 0, in float64."""
        xp = array_namespace(self.name, x=x)
        return self.query(float64(x, xp), counted(x, 0, xp), xp)

    def __repr__(self) -> str:
        """Its name."""
        return f"<feature map {self.name}>"


def counted(x: Array, start: int, xp: Namespace) -> Array:
    """Positions (n, 1), counted from 1, of the rows of x, the first of which is `start` behind the first of all."""
    n = x.shape[-2]
    return xp.expand_dims(xp.arange(start + 1, start + n + 1, dtype=xp.float64, device=device(x)), axis=-1)


def one(name: str, phi: Phi, width: Callable[[int], int] | None, pull: Pull | None, **more: Any) -> FeatureMap:
    """The same map for queries and keys."""
    return FeatureMap(name, phi, phi, width, pull, pull, **more)


def _same(E: int) -> int:
    return E


def _identity(x: Array, positions: Array, xp: Namespace) -> Array:
    """The numbers themselves: phi(x) = x."""
    return x


def _identity_pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
    return dphi


def _elu_plus_one(x: Array, positions: Array, xp: Namespace) -> Array:
    """Katharopoulos et al. 2020, eq. (7): elu(x) + 1, which is exp(x) for x <= 0, without the cancellation of elu."""
    return xp.where(x > 0, x + 1.0, xp.exp(xp.where(x > 0, 0.0, x)))


def _elu_plus_one_pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
    return dphi * xp.exp(xp.where(x > 0, 0.0, x))


def _relu(x: Array, positions: Array, xp: Namespace) -> Array:
    """The positive part: max(x, 0)."""
    return xp.where(x <= 0, 0.0, x)


def _relu_pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
    return xp.where(x <= 0, 0.0, dphi)


def _softmax_along(axis: int) -> tuple[Phi, Pull]:
    """Softmax along one axis: exp(x) / sum exp(x)."""

    def softmax(x: Array, positions: Array, xp: Namespace) -> Array:
        if 0 in x.shape:
            return x
        e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
        return e / xp.sum(e, axis=axis, keepdims=True)

    def pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
        p = softmax(x, positions, xp)
        return p * (dphi - xp.sum(p * dphi, axis=axis, keepdims=True))

    return softmax, pull


def _outer(x: Array, xp: Namespace) -> Array:
    """All products x_a x_b, (..., n, E * E)."""
    pairs = xp.expand_dims(x, axis=-1) * xp.expand_dims(x, axis=-2)
    return xp.reshape(pairs, (*x.shape[:-1], x.shape[-1] ** 2))


def _outer_pull(x: Array, dphi: Array, xp: Namespace) -> Array:
    """The sums over b of (d_ab + d_ba) x_b."""
    d = xp.reshape(dphi, (*x.shape, x.shape[-1]))
    return xp.squeeze(xp.matmul(d + xp.matrix_transpose(d), xp.expand_dims(x, axis=-1)), axis=-1)


def _squared(x: Array, positions: Array, xp: Namespace) -> Array:
    """ReBased, Aksenov et al. 2024: x (x) x, whose product is (q.k)^2."""
    return _outer(x, xp)


def _squared_pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
    return _outer_pull(x, dphi, xp)


def _taylor(x: Array, positions: Array, xp: Namespace) -> Array:
    """Based, Arora et al. 2024: [1, x, x (x) x / sqrt(2)], whose product is 1 + s + s^2 / 2 with s = q.k."""
    return xp.concat([xp.ones_like(x[..., :1]), x, _outer(x, xp) / math.sqrt(2.0)], axis=-1)


def _taylor_pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
    E = x.shape[-1]
    return dphi[..., 1 : E + 1] + _outer_pull(x, dphi[..., E + 1 :], xp) / math.sqrt(2.0)


def cosformer(length: int) -> FeatureMap:
    """Qin et al. 2022: max(x_i, 0) (sin, cos)(pi i / 2M), whose product is that of relu times cos(pi (i - j) / 2M)."""

    def waves(positions: Array, xp: Namespace) -> tuple[Array, Array]:
        angle = positions * (math.pi / (2 * length))
        return xp.sin(angle), xp.cos(angle)

    def phi(x: Array, positions: Array, xp: Namespace) -> Array:
        r = _relu(x, positions, xp)
        return xp.concat([r * wave for wave in waves(positions, xp)], axis=-1)

    def pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
        (sin, cos), E = waves(positions, xp), x.shape[-1]
        return _relu_pull(x, dphi[..., :E] * sin + dphi[..., E:] * cos, positions, xp)

    return one("cosformer", phi, lambda E: 2 * E, pull, numbers=length)


def fourier(frequencies: Array, scale: float) -> FeatureMap:
    """Rahimi & Recht 2007: m^(-1/2) [cos(W x), sin(W x)], of x times sqrt(scale), with m rows of W."""
    m = frequencies.shape[0]

    def angles(x: Array, xp: Namespace) -> tuple[Array, Array]:
        W = moved(frequencies, xp, device(x)) * math.sqrt(scale)
        return W, xp.matmul(x, xp.matrix_transpose(W))

    def phi(x: Array, positions: Array, xp: Namespace) -> Array:
        _, a = angles(x, xp)
        return xp.concat([xp.cos(a), xp.sin(a)], axis=-1) / math.sqrt(m)

    def pull(x: Array, dphi: Array, positions: Array, xp: Namespace) -> Array:
        W, a = angles(x, xp)
        return xp.matmul(dphi[..., m:] * xp.cos(a) - dphi[..., :m] * xp.sin(a), W) / math.sqrt(m)

    return one("fourier", phi, lambda E: 2 * m, pull, dim=frequencies.shape[1], numbers=(frequencies, scale))


def of_callable(phi: Callable[[Array], Array]) -> FeatureMap:
    """A function of the caller's own, of which nothing more is known."""
    return one("callable", lambda x, positions, xp: phi(x), None, None)


_OVER_FEATURES, _OVER_KEYS = _softmax_along(-1), _softmax_along(-2)
NAMED = {
    "elu+1": one("elu+1", _elu_plus_one, _same, _elu_plus_one_pull),
    "relu": one("relu", _relu, _same, _relu_pull),
    "identity": one("identity", _identity, _same, _identity_pull),
    "softmax": one("softmax", _OVER_FEATURES[0], _same, _OVER_FEATURES[1]),
    "efficient": FeatureMap(
        "efficient", _OVER_FEATURES[0], _OVER_KEYS[0], _same, _OVER_FEATURES[1], _OVER_KEYS[1], whole=True
    ),
    "taylor": one("taylor", _taylor, lambda E: 1 + E + E**2, _taylor_pull, scaled=True),
    "squared": one("squared", _squared, lambda E: E**2, _squared_pull, scaled=True),
}
NAMES = (*NAMED, "cosformer")
