"""Laws of what does not belong together: a head, and a batch entry, knows nothing of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import round_to
from refattn.testing.inputs.problems import Inputs, operand_dtypes
from refattn.testing.laws.calls import random_of
from refattn.testing.laws.observing import NotApplicable, hold_results, later, observe
from refattn.testing.laws.stating import batched, law
from refattn.testing.spec import KernelSpec

# Heads, or batch entries, that are held against the others one by one.
FEW = 3

Array = npt.NDArray[np.bool_]


def _others(spec: KernelSpec, given: Inputs, query: Array, key: Array) -> Inputs:
    """The problem with other numbers in the chosen (batch entry, head) of query, and of key and value."""
    rng = random_of(given)
    found = []
    operands = (given.query, given.key, given.value)
    for x, chosen, name in zip(operands, (query, key, key), operand_dtypes(spec), strict=True):
        other = round_to(3.0 * rng.standard_normal(x.shape), name, np)
        # What belongs to no token stays NaN.
        found.append(np.where(chosen[..., None, None] & ~np.isnan(x.astype(np.float64)), other, x))
    return replace(given, query=found[0], key=found[1], value=found[2])


def _few(given: Inputs, n: int) -> list[int]:
    """Some of n entries, all where there are few."""
    return sorted(random_of(given).permutation(n)[:FEW].tolist())


@law(lambda spec: None if spec.heads[0] > 1 else "it has one head")
def check_head_independence(spec: KernelSpec, given: Inputs) -> None:
    """A query head reads its own query and the key head h // (H // Hk), and nothing of the others."""
    (B, H), Hk = given.query.shape[:2], given.key.shape[1]
    if H == 1:
        raise NotApplicable("the problem has one head")
    if given.batch is not None and given.batch.prefix is not None:
        raise NotApplicable("two sequences of the problem share a page")
    base, right = observe(spec, given), later(spec, given)
    for h in _few(given, H):
        own = np.arange(H) == h
        own_key = np.arange(Hk) == h // (H // Hk)
        other = _others(spec, given, np.tile(~own, (B, 1)), np.tile(~own_key, (B, 1)))
        rows = np.broadcast_to(own[:, None], base.output.shape[:3])
        changed = f"other numbers in the heads that head {h} does not read change it"
        hold_results(observe(spec, other), base, right, rows=rows, changed=changed)


@law(lambda spec: None if max(spec.batch) > 1 or spec.tables else "batch= allows one entry", batched)
def check_batch_independence(spec: KernelSpec, given: Inputs) -> None:
    """An entry of the batch, or a sequence, reads nothing of the others."""
    (B, H), Hk = given.query.shape[:2], given.key.shape[1]
    if B == 1:
        raise NotApplicable("the problem has one batch entry")
    if given.batch is not None and given.batch.prefix is not None:
        raise NotApplicable("two sequences of the problem share a page")
    base, right = observe(spec, given), later(spec, given)
    for b in _few(given, B):
        own = np.arange(B) == b
        other = _others(spec, given, *(np.repeat(~own[:, None], n, axis=1) for n in (H, Hk)))
        rows = np.broadcast_to(own[:, None, None], base.output.shape[:3])
        changed = f"other numbers in the batch entries beside {b} change it"
        hold_results(observe(spec, other), base, right, rows=rows, changed=changed)


@law(lambda spec: None if max(spec.batch) * spec.heads[1] > 1 or spec.tables else "it has one key head", batched)
def check_nan_containment(spec: KernelSpec, given: Inputs) -> None:
    """A NaN in the keys or values of one batch entry and head reaches no row of the others."""
    (B, H), Hk = given.query.shape[:2], given.key.shape[1]
    if B * Hk == 1:
        raise NotApplicable("the problem has one batch entry and key head")
    if given.batch is not None and given.batch.prefix is not None:
        raise NotApplicable("two sequences of the problem share a page")
    base, right = observe(spec, given), later(spec, given)
    rng = random_of(given)
    b, h = int(rng.integers(B)), int(rng.integers(Hk))
    rows = np.ones(base.output.shape[:3], dtype=np.bool_)
    rows[b, h * (H // Hk) : (h + 1) * (H // Hk)] = False
    for name in ("key", "value"):
        x = getattr(given, name).copy()
        x[b, h] = np.nan
        changed = f"NaN in the {name} of batch entry {b}, key head {h}, reaches other rows"
        hold_results(observe(spec, replace(given, **{name: x})), base, right, rows=rows, changed=changed)
