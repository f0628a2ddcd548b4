"""Linear attention: Katharopoulos et al., "Transformers are RNNs", ICML 2020, arXiv:2006.16236, of given features.

`phi_Q` is (..., Hk, G, L, M), `phi_K` (..., Hk, 1, S, M), `V` (..., Hk, 1, S, Ev).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, device
from refattn._core.state import seen_product
from refattn._core.tiles import some_tiles


class Memory(NamedTuple):
    """What the keys so far have left: S (..., M, Ev) and Z (..., M, 1)."""

    S: Array
    Z: Array


class Sums(NamedTuple):
    """Numerator (..., L, Ev) and normaliser (..., L, 1) of each query, and the memory of all keys."""

    numerator: Array
    Z: Array
    memory: Memory


Step = Callable[[Array, Array, Array, Memory], Sums]


def empty_memory(phi_K: Array, V: Array, *, xp: Namespace) -> Memory:
    """Memory of no keys."""
    made = {"dtype": xp.float64, "device": device(V)}
    lead, M = tuple(V.shape[:-2]), phi_K.shape[-1]
    return Memory(xp.zeros((*lead, M, V.shape[-1]), **made), xp.zeros((*lead, M, 1), **made))  # eqs. (16), (17)


def remember(memory: Memory, phi_K: Array, V: Array, *, xp: Namespace) -> Memory:
    """Memory after further keys."""
    phi_K_T = xp.matrix_transpose(phi_K)
    S = memory.S + xp.matmul(phi_K_T, V)  # eqs. (10), (18)
    Z = memory.Z + xp.sum(phi_K_T, axis=-1, keepdims=True)  # eqs. (11), (19)
    return Memory(S, Z)


def recall(phi_Q: Array, memory: Memory, *, xp: Namespace) -> tuple[Array, Array]:
    """Numerator and normaliser of queries that see all of a memory."""
    return xp.matmul(phi_Q, memory.S), xp.matmul(phi_Q, memory.Z)  # eqs. (5), (12)


def quadratic(
    phi_Q: Array, phi_K: Array, V: Array, memory: Memory | None, *, keep: Array | None, xp: Namespace
) -> tuple[Array, Array]:
    """Numerator and normaliser by all similarities at once; `keep` (..., L, S) says which count."""
    A = xp.matmul(phi_Q, xp.matrix_transpose(phi_K))  # eq. (4), sim(Q_i, K_j)
    A = A if keep is None else xp.where(keep, A, 0.0)
    numerator = xp.matmul(A, V) if keep is None else seen_product(A, keep, V, xp=xp)  # eqs. (4), (8)
    Z = xp.sum(A, axis=-1, keepdims=True)
    if memory is None:
        return numerator, Z
    # Deviates: the paper's sums begin with the first key; here those of a memory come before it.
    before = recall(phi_Q, memory, xp=xp)
    return numerator + before[0], Z + before[1]


def recurrent(phi_Q: Array, phi_K: Array, V: Array, memory: Memory | None, *, causal: bool, xp: Namespace) -> Sums:
    """One key after the other, section 3.4; under a causal mask each query follows its own key."""

    def step(phi_Q_i: Array, phi_K_i: Array, V_i: Array, memory: Memory) -> Sums:
        memory = remember(memory, phi_K_i, V_i, xp=xp)
        return Sums(*recall(phi_Q_i, memory, xp=xp), memory)  # eq. (20)

    return _streamed(phi_Q, phi_K, V, memory, step if causal else None, size=1, xp=xp)


def chunked(
    phi_Q: Array, phi_K: Array, V: Array, memory: Memory | None, *, causal: bool, chunk: int, xp: Namespace
) -> Sums:
    """Some keys after the others: similarities inside a chunk, and the memory of the chunks before it."""

    def step(phi_Q_i: Array, phi_K_i: Array, V_i: Array, memory: Memory) -> Sums:
        sums = quadratic(phi_Q_i, phi_K_i, V_i, memory, keep=lower(V_i, xp=xp), xp=xp)
        return Sums(*sums, remember(memory, phi_K_i, V_i, xp=xp))

    return _streamed(phi_Q, phi_K, V, memory, step if causal else None, size=chunk, xp=xp)


def _streamed(
    phi_Q: Array, phi_K: Array, V: Array, memory: Memory | None, step: Step | None, *, size: int, xp: Namespace
) -> Sums:
    """Keys part by part: each with its queries by `step`, or all before the queries where there is none."""
    memory = empty_memory(phi_K, V, xp=xp) if memory is None else memory
    found = []
    for i in some_tiles(V.shape[-2], size):
        if step is None:
            memory = remember(memory, phi_K[..., i, :], V[..., i, :], xp=xp)
        else:
            found.append(step(phi_Q[..., i, :], phi_K[..., i, :], V[..., i, :], memory))
            memory = found[-1].memory
    if step is None:
        return Sums(*recall(phi_Q, memory, xp=xp), memory)
    numerator, Z = (xp.concat([sums[n] for sums in found], axis=-2) for n in (0, 1))
    return Sums(numerator, Z, memory)


def lower(like: Array, *, xp: Namespace) -> Array:
    """Which keys (..., n, M) each of as many queries sees: those that are not behind it."""
    at = xp.arange(like.shape[-2], device=device(like))
    return xp.expand_dims(at, axis=-1) >= at


def normalised(numerator: Array, Z: Array, *, least: float | None, eps: float, xp: Namespace) -> Array:
    """V'_i of eq. (4) from its numerator and normaliser; `eps` is added, or the normaliser raised to `least`."""
    # Deviates: eq. (4) divides by the normaliser alone, as eps = 0 does; the authors' program adds 1e-6.
    return numerator / (Z + eps if least is None else xp.clip(Z, min=least))  # eqs. (4), (8)
