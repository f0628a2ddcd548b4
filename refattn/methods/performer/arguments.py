"""The arguments of random-feature attention: checked, and turned into features of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

from refattn._call import Call, prepare
from refattn._core import checks
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, float64
from refattn._core.random_features import Features
from refattn.methods.performer import reference

KINDS = ("positive", "hyperbolic", "trigonometric", "relu")
# What is added to features where the call says nothing, by kind; the other kinds add nothing.
EPS = {"positive": 0.0, "relu": 1e-3}


@dataclass(frozen=True, eq=False)
class Performer:
    """A checked call in float64: features of queries (..., Hk, G, L, M) and keys (..., Hk, 1, S, M), values, and W."""

    call: Call
    Q: Features
    K: Features
    V: Array
    W: Array
    causal: bool


def gather(
    function: str,
    query: Array,
    key: Array,
    value: Array,
    *,
    projection: Array,
    features: str,
    is_causal: bool,
    scale: float | None,
    eps: float | None,
    dtype: object,
) -> Performer:
    """Check the arguments, and make the features."""
    checks.check_choice(function, "features", features, KINDS)
    added = check_eps(function, eps, features, is_causal=is_causal)
    call = prepare(function, query, key, value, is_causal=is_causal, scale=scale, dtype=dtype)
    W = check_projection(function, projection, query)
    if call.score.scale < 0:
        raise ValueError(f"{function}: scale must not be negative: its root goes into queries and keys; got {scale}.")
    root = math.sqrt(call.score.scale)
    Q, K, V = call.grouped()
    of_query, of_key = (
        features_of(root * X, W, features, added, axes=axes, xp=call.xp) for X, axes in ((Q, (-1,)), (K, (-2, -1)))
    )
    return Performer(call, of_query, of_key, V, W, is_causal)


def features_of(X: Array, W: Array, kind: str, eps: float, *, axes: tuple[int, ...], xp: Namespace) -> Features:
    """Features of one kind, without the factor 1/sqrt(M), which cancels in attention."""
    if kind == "relu":
        return reference.relu(X, W, eps=eps, xp=xp)
    if kind == "positive" and eps and X.shape[-2]:
        return reference.stabilised(X, W, eps=eps, axes=axes, xp=xp)
    made: Features = getattr(reference, kind)(X, W, xp=xp)
    return made


def check_projection(function: str, projection: Array, like: Array) -> Array:
    """A projection (M, E) in float64, on the library and device of the queries."""
    checks.check_array(function, "projection", projection, FLOATS)
    xp = array_namespace(function, query=like, projection=projection)
    shape, E = tuple(projection.shape), like.shape[-1]
    if len(shape) != 2 or shape[1] != E or shape[0] == 0:
        raise ValueError(f"{function}: projection must have shape (M, E) with M >= 1 and E={E}; got {shape}.")
    return float64(projection, xp)


def check_eps(function: str, eps: object, kind: str, *, is_causal: bool) -> float:
    """What is added to each feature."""
    if eps is None:
        return EPS.get(kind, 0.0)
    if kind not in EPS:
        raise ValueError(f"{function}: eps must be None for features={kind!r}; got {eps}.")
    added = checks.check_real(function, "eps", eps)
    if added < 0:
        raise ValueError(f"{function}: eps must not be negative; got {eps}.")
    if added and kind == "positive" and is_causal is True:
        raise ValueError(
            f"{function}: eps must be 0 for positive features with is_causal=True, since it is added after a division "
            f"by the maximum over all keys, later ones among them; got {eps}."
        )
    return added
