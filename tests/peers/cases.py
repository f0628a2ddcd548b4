"""Stored outputs of other people's implementations, and how far they may be from refattn's answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import refattn as ra
from refattn._call import prepare
from refattn.contract import Contract, Problem, softmax_bound

DATA = Path(__file__).parent / "data"
NOTHING = {"mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None}


@dataclass(frozen=True)
class Case:
    """One stored call: how it was made, what went in, what came out."""

    name: str
    meta: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


@cache
def load(name: str) -> Case:
    """A case by the name of its file; those named bf16 hold bfloat16 values as float32."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files if key != "meta"}
        meta = json.loads(str(stored["meta"])) if "meta" in stored.files else {}
    if "bf16" in name:
        arrays = {key: x.astype(ml_dtypes.bfloat16) if x.dtype == np.float32 else x for key, x in arrays.items()}
    return Case(
        name,
        meta,
        {key.removeprefix("in_"): x for key, x in arrays.items() if key.startswith("in_")},
        {key.removeprefix("out_"): x for key, x in arrays.items() if key.startswith("out")},
    )


def names_of(op: str) -> list[str]:
    """Names of the stored calls of one operator."""
    names = [path.relative_to(DATA).with_suffix("").as_posix() for path in sorted(DATA.rglob("*.npz"))]
    return [name for name in names if load(name).meta.get("op") == op]


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, L, H*E) as (B, H, L, E): the head is the outer part of the last axis."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def budget_used(
    output: np.ndarray,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    contract: Contract,
    *,
    more: float = 0.0,
    **arguments: Any,
) -> float:
    """Largest error of an output (B, H, L, Ev) over the bound that is proved for its contract, plus ``more * |exact|``.

    At most 1 where the output is right.
    """
    call = prepare("attention", query, key, value, **NOTHING | arguments, dtype="float64")
    exact, lse, _ = ra.attention(query, key, value, **arguments, dtype="float64", return_lse=True)
    assert output.shape == exact.shape
    used = [0.0]
    for index in np.ndindex(call.lead):
        q, k, v, score = call.slab(index)
        rows = np.arange(q.shape[0])
        proved = softmax_bound(contract, Problem(q[:], k[:], v[:], score, rows, exact[index], lse[index])).output
        bound = proved + more * np.abs(exact[index])
        error = np.abs(output[index].astype(np.float64) - exact[index])
        used.append(np.max(np.where(error > 0, error / np.where(bound > 0, bound, 2.0**-1074), 0.0), initial=0.0))
    return max(used)
