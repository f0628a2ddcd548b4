"""The gradient of linear attention: Katharopoulos et al. 2020, eqs. (13) to (15), of given features.

Shapes as in `reference.py`. `dN` and `dZ` are the gradients of numerator and normaliser; those of keys and values still
have the axis of the queries that read them.
"""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import Array, Namespace, device
from refattn._core.state import seen_product
from refattn._core.tiles import some_tiles


class Memory(NamedTuple):
    """What keys leave behind, or its gradient: S (..., M, Ev) and Z (..., M, 1)."""

    S: Array
    Z: Array


class Gradients(NamedTuple):
    """Gradients of phi(Q), phi(K), V, and of the memory before the first key."""

    dphi_Q: Array
    dphi_K: Array
    dV: Array
    memory: Memory


def of_quotient(
    O: Array, dO: Array, Z: Array, *, least: float | None, eps: float, xp: Namespace
) -> tuple[Array, Array]:
    """Gradients of numerator and normaliser, from that of their quotient O."""
    D = Z + eps if least is None else xp.clip(Z, min=least)
    dN = dO / D
    dZ = -xp.sum(dN * O, axis=-1, keepdims=True)
    return dN, dZ if least is None else xp.where(Z < least, 0.0, dZ)


def quadratic(
    phi_Q: Array, phi_K: Array, V: Array, dN: Array, dZ: Array, before: Memory, after: Memory, *, keep: Array | None,
    xp: Namespace,
) -> Gradients:  # fmt: skip
    """By way of all similarities; `before` is the memory that came in, `after` the gradient of the last one."""
    A, dA = xp.matmul(phi_Q, xp.matrix_transpose(phi_K)), xp.matmul(dN, xp.matrix_transpose(V)) + dZ
    if keep is None:
        dphi_Q, dphi_K = xp.matmul(dA, phi_K), xp.matmul(xp.matrix_transpose(dA), phi_Q)
        dV = xp.matmul(xp.matrix_transpose(A), dN)
    else:
        A, dA, seen = xp.where(keep, A, 0.0), xp.where(keep, dA, 0.0), xp.matrix_transpose(keep)
        dphi_Q = seen_product(dA, keep, phi_K, xp=xp)  # eq. (13)
        dphi_K = seen_product(xp.matrix_transpose(dA), seen, phi_Q, xp=xp)  # eq. (14)
        dV = seen_product(xp.matrix_transpose(A), seen, dN, xp=xp)  # eq. (15)
    dphi_Q = dphi_Q + _of_query(dN, dZ, before, xp)
    dphi_K, dV = _over_queries(dphi_K, xp) + _of_key(V, after, xp), _over_queries(dV, xp) + xp.matmul(phi_K, after.S)
    return Gradients(dphi_Q, dphi_K, dV, _pulled(after, phi_Q, dN, dZ, xp))


def streamed(
    phi_Q: Array, phi_K: Array, V: Array, dN: Array, dZ: Array, before: Memory, after: Memory, *, causal: bool,
    chunk: int, xp: Namespace,
) -> Gradients:  # fmt: skip
    """Chunk by chunk: the memory runs forward to the queries, its gradient backward to the keys."""
    parts = list(some_tiles(V.shape[-2], chunk))
    memories = [before]
    for i in parts:
        K_i_T = xp.matrix_transpose(phi_K[..., i, :])
        S, Z = memories[-1]
        memories.append(Memory(S + xp.matmul(K_i_T, V[..., i, :]), Z + xp.sum(K_i_T, axis=-1, keepdims=True)))
    if not causal:
        pulled = _pulled(after, phi_Q, dN, dZ, xp)
        dV = xp.matmul(phi_K, pulled.S)
        return Gradients(_of_query(dN, dZ, memories[-1], xp), _of_key(V, pulled, xp), dV, pulled)
    found = []
    for n in reversed(range(len(parts))):
        i = parts[n]
        at = xp.arange(i.stop - i.start, device=device(V))
        Q_i, K_i, V_i, dN_i, dZ_i = (x[..., i, :] for x in (phi_Q, phi_K, V, dN, dZ))
        lower = xp.expand_dims(at, axis=-1) >= at
        found.append(quadratic(Q_i, K_i, V_i, dN_i, dZ_i, memories[n], after, keep=lower, xp=xp))
        after = found[-1].memory
    dphi_Q, dphi_K, dV = (xp.concat([part[x] for part in reversed(found)], axis=-2) for x in range(3))
    return Gradients(dphi_Q, dphi_K, dV, after)


def _of_query(dN: Array, dZ: Array, memory: Memory, xp: Namespace) -> Array:
    """Gradient of the features of queries that read a memory: eq. (13)."""
    return xp.matmul(dN, xp.matrix_transpose(memory.S)) + dZ * xp.matrix_transpose(memory.Z)


def _of_key(V: Array, pulled: Memory, xp: Namespace) -> Array:
    """Gradient of the features of keys, from that of the memory that they enter: eq. (14)."""
    return xp.matmul(V, xp.matrix_transpose(pulled.S)) + xp.matrix_transpose(pulled.Z)


def _pulled(after: Memory, phi_Q: Array, dN: Array, dZ: Array, xp: Namespace) -> Memory:
    """Gradient of a memory: of what it becomes, and of the queries that read it."""
    Q_T = xp.matrix_transpose(phi_Q)
    return Memory(after.S + _over_queries(xp.matmul(Q_T, dN), xp), after.Z + _over_queries(xp.matmul(Q_T, dZ), xp))


def _over_queries(x: Array, xp: Namespace) -> Array:
    """The sum over the query heads that read a key head, (..., Hk, G, *, *) as (..., Hk, 1, *, *)."""
    return xp.sum(x, axis=-3, keepdims=True)
