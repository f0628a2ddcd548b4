"""A small FlashAttention in NumPy, the kind of kernel that refattn judges, and the same with one line missing."""

from __future__ import annotations

import ml_dtypes
import numpy as np

import refattn as ra

TILE = 64


def tiled_attention(query, key, value, *, rescale=True):
    """Causal attention over (B, H, L, E) arrays by 64 x 64 tiles; float32 inside, weights in the input dtype."""
    B, H, L, E = query.shape
    group = H // key.shape[1]
    output = np.empty((B, H, L, value.shape[-1]), dtype=query.dtype)
    lse = np.empty((B, H, L), dtype=np.float32)
    for b, h in np.ndindex(B, H):
        K, V = (x[b, h // group].astype(np.float32) for x in (key, value))
        for start in range(0, L, TILE):
            rows = np.arange(start, min(start + TILE, L))
            Q = query[b, h, rows].astype(np.float32)
            m = np.full((len(rows), 1), -np.inf, np.float32)
            l = np.zeros((len(rows), 1), np.float32)
            O = np.zeros((len(rows), V.shape[-1]), np.float32)
            for first in range(0, rows[-1] + 1, TILE):
                keys = np.arange(first, min(first + TILE, L))
                S = Q @ K[keys].T * np.float32(E**-0.5)
                S = np.where(keys <= rows[:, None], S, -np.inf)
                m_new = np.maximum(m, S.max(axis=1, keepdims=True))
                P = np.exp(S - m_new)
                alpha = np.exp(m - m_new)
                l = l * alpha + P.sum(axis=1, keepdims=True)
                if rescale:
                    O = O * alpha
                O = O + P.astype(query.dtype).astype(np.float32) @ V[keys]
                m = m_new
            output[b, h, rows] = (O / l).astype(query.dtype)
            lse[b, h, rows] = (m + np.log(l))[:, 0]
    return output, lse


def without_rescale(query, key, value):
    """The same, but what is summed so far is not scaled down when a larger score turns up."""
    return tiled_attention(query, key, value, rescale=False)


def spec(function, contract):
    """What the judge has to know of these kernels."""
    return ra.testing.KernelSpec(
        function,
        computes={"is_causal": True},
        returns=("output", "lse"),
        contract=contract,
        heads=(9, 3),
        dims=(64,),
        lengths=((64, 64), (65, 65), (130, 130)),
    )


FLOAT32 = spec(tiled_attention, "float32")
BFLOAT16 = spec(tiled_attention, "bfloat16")
WRONG = spec(without_rescale, "float32")

if __name__ == "__main__":
    x = np.random.default_rng(0).normal(size=(1, 2, 100, 64)).astype(ml_dtypes.bfloat16)
    print(ra.testing.check(tiled_attention(x, x, x)[0], x, x, x, is_causal=True).text)
