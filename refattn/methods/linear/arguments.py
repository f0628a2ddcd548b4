"""The arguments of linear attention: checked, and gathered into one frozen record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refattn import masks
from refattn._call import Call, prepare
from refattn._core import checks
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, float64
from refattn._core.choice import ImplementationError
from refattn.methods.linear.features import NAMED, NAMES, FeatureMap, cosformer, counted, of_callable
from refattn.methods.linear.records import LinearState
from refattn.methods.linear.reference import Memory, empty_memory

Phi = str | FeatureMap | Callable[[Array], Array]
FORMS = ("quadratic", "recurrent", "chunked")
RULES = ("add", "clamp")
LARGEST = 2**31  # positions up to here are exact in float64, and so are their sums


@dataclass(frozen=True, eq=False)
class Linear:
    """A checked call, float64, grouped as `Call.grouped` does: Q times the scale, and features of queries and keys.

    `keep` (..., L, S) is mask and diagonal together, for the quadratic form alone; elsewhere keys that are masked have
    features and values 0. `seen` (..., L, 1) says which queries see a key or a state, and `seen_keys` (..., S, 1)
    which keys some query or a state sees; None that all do.
    """

    call: Call
    phi: FeatureMap
    scale: float
    position: int
    causal: bool
    normalize: bool
    eps: float
    least: float | None
    Q: Array
    K: Array
    V: Array
    phi_Q: Array
    phi_K: Array
    keep: Array | None
    seen: Array | None
    seen_keys: Array | None
    memory: Memory | None
    keeps_state: bool

    @property
    def before(self) -> Memory:
        """The state that came in, or the empty one."""
        return empty_memory(self.phi_K, self.V, xp=self.call.xp) if self.memory is None else self.memory

    def shown(self, x: Array) -> Array:
        """Numbers (..., L, n), with 0 in the rows that see nothing."""
        return x if self.seen is None else self.call.xp.where(self.seen, x, 0.0)

    def shown_keys(self, x: Array) -> Array:
        """Numbers (..., S, n), with 0 in the rows of keys that nothing sees."""
        return x if self.seen_keys is None else self.call.xp.where(self.seen_keys, x, 0.0)


def gather(
    function: str,
    query: Array,
    key: Array,
    value: Array,
    *,
    feature_map: Phi,
    mask: masks.Mask | Array | None,
    is_causal: bool,
    scale: float | None,
    normalize: bool,
    eps: float,
    eps_rule: str,
    position: int,
    state: LinearState | None,
    form: str,
    keeps_state: bool,
    dtype: object,
) -> Linear:
    """Check the arguments, make the features, and gather all."""
    call = prepare(function, query, key, value, mask=mask, is_causal=is_causal, scale=scale, dtype=dtype)
    checks.check_choice(function, "form", form, FORMS)
    checks.check_choice(function, "eps_rule", eps_rule, RULES)
    checks.check_flag(function, "normalize", normalize)
    start = _position(function, position)
    eps = _eps(function, eps)
    has_state = keeps_state or state is not None
    phi = _feature_map(function, feature_map, call, whole=not (is_causal or has_state or mask is not None))
    if has_state or start:
        _no_length(function, feature_map)
    keys = _keys(function, mask, call, form, has_state)
    xp = call.xp
    Q, K, V = call.grouped()
    keep = call.score.seen(query, *map(_all, call.score.lengths), xp=xp) if form == "quadratic" else None
    seen_keys = keys if keep is None or has_state else _over_queries(keep, xp)
    if seen_keys is not None:
        K, V = xp.where(seen_keys, K, 0.0), xp.where(seen_keys, V, 0.0)
    scale = (query.shape[-1] ** -0.5 if phi.scaled else 1.0) if scale is None else call.score.scale
    Q = Q if scale == 1.0 else Q * scale
    phi_Q, phi_K = phi.query(Q, counted(Q, start, xp), xp), phi.key(K, counted(K, start, xp), xp)
    phi_Q, phi_K = _features(function, Q, K, phi_Q, phi_K)
    phi_K = phi_K if seen_keys is None else xp.where(seen_keys, phi_K, 0.0)
    memory = None if state is None else memory_of(function, state, query, phi_K, V)
    seen = None if memory is not None else _seen(V, keep, keys, is_causal, xp)
    least = eps if eps_rule == "clamp" else None
    return Linear(
        call, phi, scale, start, is_causal, normalize, eps, least, Q, K, V, phi_Q, phi_K, keep, seen, seen_keys, memory,
        keeps_state,
    )  # fmt: skip


def _all(n: int) -> slice:
    return slice(0, n)


def _position(function: str, position: object) -> int:
    """Where the first query and key stand."""
    start = checks.check_integer(function, "position", position)
    if start >= LARGEST:
        raise ValueError(f"{function}: position must be below 2**31; got {start}.")
    return start


def _eps(function: str, eps: object) -> float:
    """What is added to a normaliser, or is its least value; not negative."""
    value = checks.check_real(function, "eps", eps, "a real number")
    if value < 0:
        raise ValueError(f"{function}: eps must be at least 0; got {eps}.")
    return value


def _feature_map(function: str, phi: object, call: Call, *, whole: bool) -> FeatureMap:
    """The feature map asked for, which must not need all keys at once where they are not all seen at once."""
    if isinstance(phi, str) and phi == "cosformer":
        return cosformer(max(1, *call.score.lengths))
    if isinstance(phi, str) and phi in NAMED:
        phi = NAMED[phi]
    elif not isinstance(phi, FeatureMap):
        if isinstance(phi, str) or not callable(phi):
            got = repr(phi) if isinstance(phi, str) else type(phi).__name__
            raise ValueError(
                f"{function}: feature_map must be one of {', '.join(map(repr, NAMES))}, what cosformer_features or "
                f"fourier_features return, or a function of an array; got {got}."
            )
        phi = of_callable(phi)
    if phi.dim not in (None, call.query.shape[-1]):
        raise ValueError(
            f"{function}: feature_map was made for queries of E={phi.dim} features (axis -1); got query "
            f"{tuple(call.query.shape)}."
        )
    if phi.whole and not whole:
        raise ValueError(
            f"{function}: feature_map={phi.name!r} normalises the features over all keys, and so takes neither mask, "
            'is_causal nor state; got one of them. Pass feature_map="softmax".'
        )
    return phi


def _no_length(function: str, feature_map: object) -> None:
    """A map whose length is that of the call has no meaning in the next one."""
    if feature_map == "cosformer":
        raise ValueError(
            f"{function}: feature_map='cosformer' takes its length from L and S, of which this call is only a part: a "
            "state or position was given. Pass feature_map=cosformer_features(length)."
        )


def _keys(function: str, mask: object, call: Call, form: str, has_state: bool) -> Array | None:
    """Keys (..., 1, 1, S, 1) that a mask of keys alone lets through; a state knows of no other mask."""
    if mask is None or (form == "quadratic" and not has_state):
        return None
    shape = () if isinstance(mask, masks.Mask) else tuple(mask.shape)  # type: ignore[attr-defined]
    if len(shape) < 2 or shape[-2] != 1 or (len(shape) > 2 and shape[-3] != 1):
        why, what = (f'form="{form}"', ' Pass form="quadratic".') if form != "quadratic" else ("a state", "")
        raise ImplementationError(
            f"{function}: {why} serves is_causal, and masks of keys alone, boolean arrays broadcastable to "
            f"(..., 1, 1, S); got {repr(mask) if isinstance(mask, masks.Mask) else f'shape {shape}'}.{what}"
        )
    xp = call.xp
    lead = shape[:-3] if len(shape) > 2 else ()
    return xp.reshape(xp.broadcast_to(mask, (*shape[:-1], call.score.lengths[1])), (*lead, 1, 1, -1, 1))


def _features(function: str, Q: Array, K: Array, phi_Q: Array, phi_K: Array) -> tuple[Array, Array]:
    """Features (..., n, M) of queries and keys, of one M, in float64."""
    made = "feature_map's result"
    for x in (phi_Q, phi_K):
        checks.check_array(function, made, x)
    xp = array_namespace(function, query=Q, **{made: phi_Q, f"{made} of keys": phi_K})
    fits = phi_Q.shape[:-1] == Q.shape[:-1] and phi_K.shape[:-1] == K.shape[:-1]
    if not fits or phi_Q.shape[-1] != phi_K.shape[-1]:
        raise ValueError(
            f"{function}: feature_map must turn (..., n, E) into (..., n, M), with one M for queries and keys; got "
            f"{tuple(phi_Q.shape)} of queries {tuple(Q.shape)} and {tuple(phi_K.shape)} of keys {tuple(K.shape)}."
        )
    return float64(phi_Q, xp), float64(phi_K, xp)


def memory_of(function: str, state: object, query: Array, phi_K: Array, V: Array, named: str = "state") -> Memory:
    """A state in the shapes of the plain forms: S (..., Hk, 1, M, Ev) and Z (..., Hk, 1, M, 1)."""
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(f"{function}: {named} must be a LinearState (S, z); got {type(state).__name__}.")
    S, z = state
    lead, M, Ev = tuple(V.shape[:-3]), phi_K.shape[-1], V.shape[-1]
    for name, x, axes, shape in (
        (f"{named}.S", S, "(..., Hk, M, Ev)", (*lead, M, Ev)),
        (f"{named}.z", z, "(..., Hk, M)", (*lead, M)),
    ):
        checks.check_array(function, name, x, FLOATS)
        checks.check_shape(function, name, x, axes, shape)
    xp = array_namespace(function, query=query, S=S, z=z)
    return Memory(xp.expand_dims(float64(S, xp), axis=-3), xp.reshape(float64(z, xp), (*lead, 1, M, 1)))


def _over_queries(keep: Array, xp: Namespace) -> Array:
    """Which keys, (..., Hk, 1, S, 1), some query of some head that reads them sees."""
    seen = xp.expand_dims(xp.any(keep, axis=-2), axis=-1)
    return xp.any(seen, axis=-3, keepdims=True) if len(keep.shape) > 2 else seen


def _seen(V: Array, keep: Array | None, keys: Array | None, causal: bool, xp: Namespace) -> Array | None:
    """Which queries see a key, (..., L, 1); None where all do."""
    if V.shape[-2] == 0:
        return xp.zeros((1, 1), dtype=xp.bool)
    if keep is not None:
        return xp.any(keep, axis=-1, keepdims=True)
    if keys is None:
        return None
    if not causal:
        return xp.any(keys, axis=-2, keepdims=True)
    return xp.cumulative_sum(xp.astype(keys, xp.int64), axis=-2) > 0


def state_of(memory: Memory, xp: Namespace) -> LinearState:
    """A memory as it is handed out."""
    return LinearState(xp.squeeze(memory.S, axis=-3), xp.squeeze(xp.squeeze(memory.Z, axis=-1), axis=-2))
