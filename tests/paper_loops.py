"""Algorithms of softmax attention as their papers print them, run on a counting namespace and a metered memory.

Algorithms 0, 1 and 3 of Dao et al. 2022 (arXiv:2205.14135) and 1 and 2 of Dao 2023 (arXiv:2307.08691). Traffic is what
the memory beside the chip must give and take, `load` and `store`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.counting import Counted, Counter
from tests.namespaces import library
from tests.strategies import Problem

Gradients = tuple[np.ndarray, np.ndarray, np.ndarray]
# Biases that padding code adds overflow, as they would in any kernel.
quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")

STATISTIC = np.float32


class Machine(Counter):
    """A counting namespace with a memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = self.stored = 0

    def load(self, x: np.ndarray) -> Counted:
        """Bytes of an array read, and its values in float64."""
        self.loaded += x.nbytes
        return self.array(x.astype(bool if x.dtype == bool else float))

    def store(self, into: np.ndarray, x: Counted | float) -> None:
        """Bytes of an array written."""
        self.stored += into.nbytes
        into[...] = x.data if isinstance(x, Counted) else x


@dataclass
class Cells:
    """An operand with a value for each cell: its values, and the array that it is read from, if it is."""

    values: np.ndarray  # (..., H, L, S)
    given: np.ndarray | None


class Inputs:
    """A problem's operands on one machine."""

    def __init__(self, problem: Problem, *, out: str = "float64", return_lse: bool = True) -> None:
        self.problem, self.out, self.return_lse = problem, out, return_lse
        self.q, self.k, self.v = problem.arrays
        self.lead = (*problem.batch, problem.heads[0])
        full = (*self.lead, *problem.lengths)
        index = list(np.ndindex(full))

        def cells(name: str, rule: Any) -> Cells | None:
            if rule is None:
                return None
            given = problem.arguments(library("numpy")).get(name)
            kind = float if name == "bias" else bool
            values = np.array([rule(at[:-2], at[-2], at[-1]) for at in index], kind).reshape(full)
            return Cells(values, given if isinstance(given, np.ndarray) else None)

        masked = problem.mask.rule is not None or problem.is_causal
        self.mask = cells("mask", problem.allowed if masked else None)
        self.bias = cells("bias", problem.bias.rule)
        self.dropout = cells("dropout_mask", problem.dropout_mask.rule)
        self.sinks = None if problem.sinks is None else np.array(problem.sinks)
        E = problem.features[0]
        self.scale = 1 / math.sqrt(E) if problem.scale is None else problem.scale
        self.cost_arguments = problem.arguments(library("numpy")) | {"dtype": out}

    def gradient(self) -> np.ndarray:
        """A gradient of the output."""
        shape = (*self.q.shape[:-1], self.v.shape[-1])
        return np.random.default_rng(self.problem.seed + 1).standard_normal(shape).astype(self.out)

    def assert_same(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Two ways to compute one thing agree to half of float32's digits, as no other algorithm would.

        Where biases are so large that a rounding of a score is a factor of the weight, nothing is compared.
        """
        eps = np.finfo(np.float32).eps
        if self.bias is not None and np.abs(self.bias.values).max(initial=0.0) * np.finfo(float).eps > eps:
            return
        ours, theirs = ours.astype(float), theirs.astype(float)
        largest = max(1.0, np.abs(theirs).max(initial=0.0))
        assert np.abs(ours - theirs).max(initial=0.0) <= math.sqrt(eps) * largest

    def units(self, packed: bool) -> Iterator[tuple[tuple[int, ...], slice, int]]:
        """Batch entry, query heads that share tiles, and their key head."""
        H, Hk = self.problem.heads
        G = H // Hk if packed else 1
        for b in np.ndindex(self.problem.batch):
            for h in range(0, H, G):
                yield b, slice(h, h + G), h // (H // Hk)

    def cells(self, c: Machine, x: Cells, b: tuple[int, ...], h: slice, i: slice, j: slice) -> Counted:
        """A tile of cells; the part of the array that it lies in is read."""
        if x.given is not None:
            c.load(_part(x.given, (*b, h, i, j)))
        return c.array(x.values[(*b, h, i, j)])

    def seen(self, b: tuple[int, ...], h: slice, i: slice, j: slice) -> np.ndarray:
        """What the mask says of a tile; by looking at it from outside."""
        return np.ones(1, bool) if self.mask is None else self.mask.values[(*b, h, i, j)]

    def products(self, c: Machine, Q: Counted, K: Counted) -> Counted:
        """Scores of one tile, after scale and softcap."""
        S, cap = c.matmul(Q, c.matrix_transpose(K)), self.problem.softcap
        return S * self.scale if cap is None else c.tanh(S * (self.scale / cap)) * cap

    def changed(self, c: Machine, S: Counted, *at: Any, ask: bool) -> Counted:
        """Scores of one tile, after bias and mask."""
        S = S if self.bias is None else S + self.cells(c, self.bias, *at)
        return c.where(self.cells(c, self.mask, *at), S, -math.inf) if ask and self.mask is not None else S

    def dropped(self, c: Machine, P: Counted, *at: Any) -> Counted:
        """Weights of one tile after dropout, whose factor 1 / (1 - p) is left out."""
        return P if self.dropout is None else c.where(self.cells(c, self.dropout, *at), P, 0.0)


def _part(x: np.ndarray, at: tuple[Any, ...]) -> np.ndarray:
    """The part of an array that broadcasts to the cells at an index."""
    own = at[len(at) - x.ndim :]
    return x[
        tuple((slice(0, 1) if isinstance(a, slice) else 0) if n == 1 else a for a, n in zip(own, x.shape, strict=True))
    ]


def tiles(length: int, size: int) -> list[slice]:
    """Tiles of an axis."""
    return [slice(n, min(n + size, length)) for n in range(0, length, size)]


def finite(c: Machine, m: Counted) -> Counted:
    """The maximum, or 0 for a row that has seen nothing, which no paper asks for: not counted."""
    return c.array(np.where(np.isneginf(m.data), 0.0, m.data))


def or_zero(c: Machine, x: Counted, empty: np.ndarray) -> Counted:
    """0 in the rows that have seen nothing, which no paper asks for: not counted."""
    return c.array(np.where(empty, 0.0, x.data))


def begin(c: Machine, x: Inputs, h: slice, rows: int) -> tuple[Counted, Counted]:
    """m and l before the first key: none, or the sink."""
    heads = h.stop - h.start
    if x.sinks is None:
        return c.array(np.full((heads, rows, 1), -math.inf)), c.array(np.zeros((heads, rows, 1)))
    m = np.broadcast_to(x.sinks[h, None, None], (heads, rows, 1))
    return c.array(m), c.array(np.where(np.isneginf(m), 0.0, 1.0))


def weights(c: Machine, x: Inputs, S: Counted, b: tuple[int, ...], h: slice) -> tuple[Counted, Counted, Counted]:
    """Line 2 of Algorithm 0 up to the division: m, l and exp(S - m)."""
    m = c.max(S, axis=-1, keepdims=True, initial=-math.inf)
    if x.sinks is None:
        P = c.exp(S - finite(c, m))
        return m, c.sum(P, axis=-1, keepdims=True), P
    sink = c.array(x.sinks[h, None, None])
    m = c.maximum(m, sink)
    P = c.exp(S - finite(c, m))
    return m, c.sum(P, axis=-1, keepdims=True) + c.exp(sink - finite(c, m)), P


def once(c: Machine, *operands: Cells | np.ndarray | None) -> None:
    """Read whole operands, which are then at hand."""
    for x in operands:
        if isinstance(x, np.ndarray):
            c.load(x)
        elif x is not None and x.given is not None:
            c.load(x.given)
            x.given = None


@quiet
def algorithm_0(c: Machine, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The standard algorithm. S and P have the dtype of the output."""
    (L, S_), Ev = x.problem.lengths, x.problem.features[1]
    O, lse = np.zeros((*x.lead, L, Ev), x.out), np.zeros((*x.lead, L, 1), STATISTIC)
    S, P = (np.zeros((*x.lead, L, S_), x.out) for _ in range(2))
    once(c, x.mask, x.bias, x.dropout, x.sinks)
    for b, h, hk in x.units(packed=True):
        at, everything = (*b, h), (b, h, slice(0, L), slice(0, S_))
        s = x.products(c, c.load(x.q[at]), c.load(x.k[(*b, hk)]))
        c.store(S[at], s)  # line 1
        c.load(S[at])
        m, l, p = weights(c, x, x.changed(c, s, *everything, ask=True), b, h)
        p = x.dropped(c, p, *everything)
        p = or_zero(c, p / (l if x.dropout is None else l * (1 - x.problem.dropout_p)), l.data == 0)
        c.store(P[at], p)  # line 2
        c.load(P[at])
        c.store(O[at], c.matmul(p, c.load(x.v[(*b, hk)])))  # line 3
        if x.return_lse:
            c.store(lse[at], m + c.log(l))
    return O, lse


@quiet
def flash_2023(c: Machine, x: Inputs, tile: tuple[int, int], packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """FlashAttention-2, Algorithm 1."""
    (L, S_), Ev = x.problem.lengths, x.problem.features[1]
    O, lse = np.zeros((*x.lead, L, Ev), x.out), np.zeros((*x.lead, L, 1), STATISTIC)
    for b, h, hk in x.units(packed):
        for i in tiles(L, tile[0]):
            at = (*b, h, i)
            Q = c.load(x.q[at])  # line 4
            if x.sinks is not None:
                c.load(x.sinks[h])
            m, l = begin(c, x, h, Q.shape[-2])  # line 5
            o = c.array(np.zeros((*Q.shape[:-1], Ev)))
            for j in tiles(S_, tile[1]):  # line 6
                seen = x.seen(b, h, i, j)
                if not seen.any():
                    continue
                K, V = c.load(x.k[(*b, hk, j)]), c.load(x.v[(*b, hk, j)])  # line 7
                S = x.changed(c, x.products(c, Q, K), b, h, i, j, ask=not seen.all())  # line 8
                new = c.maximum(m, c.max(S, axis=-1, keepdims=True))  # line 9
                P = c.exp(S - finite(c, new))
                alpha = c.exp(m - finite(c, new))
                l, m = alpha * l + c.sum(P, axis=-1, keepdims=True), new
                P = x.dropped(c, P, b, h, i, j)
                o = c.array((alpha * o).data + c.matmul(P, V).data)  # line 10: the product adds to O
            divisor = l if x.dropout is None else l * (1 - x.problem.dropout_p)
            c.store(O[at], or_zero(c, o / divisor, l.data == 0))  # lines 12, 14
            if x.return_lse:
                c.store(lse[at], m + c.log(l))  # lines 13, 15
    return O, lse


@quiet
def flash_2022(c: Machine, x: Inputs, tile: tuple[int, int], packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """FlashAttention, Algorithm 1, without the pairs of tiles that the mask leaves empty (Algorithm 5)."""
    (L, S_), Ev = x.problem.lengths, x.problem.features[1]
    O, lse = np.zeros((*x.lead, L, Ev), x.out), np.zeros((*x.lead, L, 1), STATISTIC)
    l, m = np.zeros((*x.lead, L, 1), STATISTIC), np.zeros((*x.lead, L, 1), STATISTIC)
    exact = {"l": np.zeros((*x.lead, L, 1)), "m": np.zeros((*x.lead, L, 1))}  # what float32 would round
    kept = 1 - x.problem.dropout_p
    if x.sinks is not None:
        c.load(x.sinks)
    for b, h, hk in x.units(packed):
        at = (*b, h)
        c.store(O[at], 0.0)  # line 2
        for name, into, value in zip("ml", (m, l), begin(c, x, h, L), strict=True):
            c.store(into[at], value)
            exact[name][at] = value.data
        for j in tiles(S_, tile[1]):  # line 5
            visited = [i for i in tiles(L, tile[0]) if x.seen(b, h, i, j).any()]
            if visited:
                K, V = c.load(x.k[(*b, hk, j)]), c.load(x.v[(*b, hk, j)])  # line 6
            for i in visited:  # line 7
                at = (*b, h, i)
                Q, O_i, _, _ = c.load(x.q[at]), c.load(O[at]), c.load(l[at]), c.load(m[at])  # line 8
                l_i, m_i = c.array(exact["l"][at]), c.array(exact["m"][at])
                S = x.changed(c, x.products(c, Q, K), b, h, i, j, ask=not x.seen(b, h, i, j).all())  # line 9
                m_ = c.max(S, axis=-1, keepdims=True)  # line 10
                P = c.exp(S - finite(c, m_))
                l_ = c.sum(P, axis=-1, keepdims=True)
                new = c.maximum(m_i, m_)  # line 11
                old, beta = c.exp(m_i - finite(c, new)) * l_i, c.exp(m_ - finite(c, new))
                total = old + beta * l_
                P = x.dropped(c, P, b, h, i, j)
                O_i = (old * O_i + beta * c.matmul(P, V)) / total  # line 12
                c.store(O[at], or_zero(c, O_i, total.data == 0))
                c.store(l[at], total)  # line 13
                c.store(m[at], new)
                exact["l"][at], exact["m"][at] = total.data, new.data
    for b, h, _ in x.units(packed):
        at = (*b, h)
        if x.dropout is not None:  # the factor is in the last divisor
            c.operations.update(multiply=(h.stop - h.start) * L)
            O[at] /= kept
        if x.return_lse:
            c.load(l[at]), c.load(m[at])
            c.store(lse[at], c.array(exact["m"][at]) + c.log(c.array(exact["l"][at])))
    return O, lse


@quiet
def algorithm_3(c: Machine, x: Inputs, dO: np.ndarray) -> Gradients:
    """The standard backward pass, after lines 1 and 2 of Algorithm 0; all matrices have the dtype of the output."""
    (L, S_), factor, cap = x.problem.lengths, 1 / (1 - x.problem.dropout_p), x.problem.softcap
    dQ, dK, dV = (np.zeros_like(a) for a in (x.q, x.k, x.v))
    S, P, dP, dS = (np.zeros((*x.lead, L, S_), x.out) for _ in range(4))
    bias = None if x.bias is None else x.bias.given
    once(c, x.mask, x.bias, x.sinks)
    if x.dropout is not None and x.dropout.given is not None:
        once(c, x.dropout.given, x.dropout)
    if bias is not None:
        c.store(np.zeros_like(bias), 0.0)
    if x.sinks is not None:
        c.store(np.zeros_like(c.load(x.sinks).data), 0.0)
    for b, h, hk in x.units(packed=True):
        at, key, everything = (*b, h), (*b, hk), (b, h, slice(0, L), slice(0, S_))
        s = x.products(c, c.load(x.q[at]), c.load(x.k[key]))
        c.store(S[at], s)
        c.load(S[at])
        m, l, p = weights(c, x, x.changed(c, s, *everything, ask=True), b, h)
        p = or_zero(c, p / l, l.data == 0)
        c.store(P[at], p)
        c.load(P[at])
        o = c.load(dO[at])
        z = p if x.dropout is None else x.dropped(c, p, *everything) * factor
        c.store(dV[key], c.array(c.matmul(c.matrix_transpose(z), o).data.sum(axis=0)))  # line 1
        c.load(dO[at])
        dp = c.matmul(o, c.matrix_transpose(c.load(x.v[key])))
        dp = dp if x.dropout is None else x.dropped(c, dp, *everything) * factor
        c.store(dP[at], dp)  # line 2
        c.load(P[at]), c.load(dP[at])
        D = c.sum(p * dp, axis=-1, keepdims=True)
        ds = p * (dp - D)
        if bias is not None:
            c.sum(ds)
        if x.sinks is not None:
            c.sum(c.exp(c.array(x.sinks[h, None, None]) - m) / l * D)
        if cap is not None:
            c.load(S[at])
            t = s * (1 / cap)
            ds = ds * (1.0 - t * t)
        ds = ds * x.scale
        c.store(dS[at], ds)  # line 3
        c.load(dS[at])
        c.store(dQ[at], c.matmul(ds, c.load(x.k[key])))  # line 4
        c.load(dS[at])
        c.store(dK[key], c.array(c.matmul(c.matrix_transpose(ds), c.load(x.q[at])).data.sum(axis=0)))  # line 5
    return dQ, dK, dV


@quiet
def flash_2023_gradient(
    c: Machine, x: Inputs, dO: np.ndarray, O: np.ndarray, lse: np.ndarray, tile: tuple[int, int], packed: bool
) -> Gradients:
    """FlashAttention-2, Algorithm 2; without packing, the sum over query heads comes at the end."""
    (L, S_), factor, cap = x.problem.lengths, 1 / (1 - x.problem.dropout_p), x.problem.softcap
    Hk, G = x.problem.heads[1], x.problem.heads[0] // x.problem.heads[1]
    dQ, parts = np.zeros_like(x.q), 1 if packed else G
    dKs, dVs = (np.zeros((*x.problem.batch, Hk, parts, *a.shape[-2:]), a.dtype) for a in (x.k, x.v))
    c.store(dQ, 0.0)  # line 3
    D = c.sum(c.load(dO) * c.load(O), axis=-1, keepdims=True)
    c.store(np.zeros(D.shape, STATISTIC), D)  # line 4
    if x.sinks is not None:
        c.load(lse.astype(STATISTIC))
        c.sum(c.exp(c.load(x.sinks[:, None, None]) - c.array(lse)) * D)
        c.store(np.zeros_like(x.sinks), 0.0)
    for b, h, hk in x.units(packed):
        part = 0 if packed else h.start % G
        for j in tiles(S_, tile[1]):  # line 5
            visited = [i for i in tiles(L, tile[0]) if x.seen(b, h, i, j).any()]
            if visited:
                K, V = c.load(x.k[(*b, hk, j)]), c.load(x.v[(*b, hk, j)])  # line 6
            for i in visited:  # line 8
                at, cell = (*b, h, i), (b, h, i, j)
                Q, o = c.load(x.q[at]), c.load(dO[at])
                c.load(lse[at].astype(STATISTIC)), c.load(D.data[at].astype(STATISTIC))
                s = x.products(c, Q, K)
                S = x.changed(c, s, *cell, ask=not x.seen(*cell).all())  # line 10
                P = c.exp(S - finite(c, c.array(lse[at])))  # line 11
                dP, Z = c.matmul(o, c.matrix_transpose(V)), P  # line 13
                if x.dropout is not None:
                    kept = x.cells(c, x.dropout, *cell)
                    dP, Z = c.where(kept, dP, 0.0) * factor, c.where(kept, P, 0.0) * factor
                dVs[(*b, hk, part, j)] += c.matmul(c.matrix_transpose(Z), o).data.sum(axis=0)  # line 12
                dS = P * (dP - c.array(D.data[at]))  # line 14
                if x.bias is not None and x.bias.given is not None:
                    own = x.cells(c, x.bias, *cell)
                    c.stored += _part(x.bias.given, (*b, h, i, j)).nbytes
                    c.operations.update(add=own.data.size)
                if cap is not None:
                    t = c.array(s.data / cap)
                    dS = dS * (1.0 - t * t)
                dS = dS * x.scale
                c.store(dQ[at], c.array(c.load(dQ[at]).data + c.matmul(dS, K).data))  # line 15
                dKs[(*b, hk, part, j)] += c.matmul(c.matrix_transpose(dS), Q).data.sum(axis=0)  # line 16
    for sums in (dKs, dVs):
        c.store(sums, c.array(sums.copy()))  # line 18
    if parts > 1:
        dKs, dVs = (c.sum(c.load(a), axis=-3, keepdims=True).data.astype(a.dtype) for a in (dKs, dVs))
        c.store(dKs, c.array(dKs.copy())), c.store(dVs, c.array(dVs.copy()))
    return dQ, dKs[..., 0, :, :], dVs[..., 0, :, :]
