"""Laws of what a row is made of: the keys that it sees, their order, their values, and their parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import quiet, round_to
from refattn.contract.formats import FORMATS, unit
from refattn.testing.inputs.cases import Case, asked_of, limits, put_together
from refattn.testing.inputs.cutting import cut
from refattn.testing.inputs.problems import Inputs, operand_dtypes
from refattn.testing.laws.calls import random_of
from refattn.testing.laws.observing import (
    NotApplicable,
    Right,
    Seen,
    hold,
    hold_results,
    later,
    observe,
    right_values,
    visible,
)
from refattn.testing.laws.stating import cells_of, computes, free, law, masked, masking, without
from refattn.testing.spec import KernelSpec

# How far scores are moved: past where exp overflows in float32, so that a maximum that is not subtracted shows.
SHIFT = 128.0


def _unseen(spec: KernelSpec, given: Inputs) -> tuple[int, npt.NDArray[np.bool_]]:
    """The first of the last keys that many rows (B, H, L) do not see, and these rows."""
    seen = visible(spec, given)
    S = seen.shape[-1]
    last = np.where(seen.any(axis=-1), S - 1 - np.argmax(seen[..., ::-1], axis=-1), -1)
    blind = np.array([np.count_nonzero(last < t) for t in range(S)]) * (S - np.arange(S))
    if not S or not blind.max():
        raise NotApplicable("each query of the problem sees the last key")
    first = int(np.argmax(blind))
    return first, last < first


@quiet
def _replaced(spec: KernelSpec, given: Inputs, first: int, key: Any, value: Any) -> Inputs:
    """The problem with other keys and values from one on; None leaves them."""
    _, of_key, of_value = operand_dtypes(spec)
    k, v = given.key.copy(), given.value.copy()
    for x, new, name in ((k, key, of_key), (v, value, of_value)):
        if new is not None:
            x[:, :, first:] = round_to(np.broadcast_to(np.float64(new), x[:, :, first:].shape), name, np)
    return replace(given, key=k, value=v)


def _allowance(spec: KernelSpec, given: Inputs) -> Callable[[], Right] | None:
    """How far a row may move by what it does not see: not at all, but where others have a say in what is subtracted."""
    contract = spec.numerics()
    return later(spec, given) if contract.ahead or contract.lazy else None


@law(masking, masked)
def check_causality(spec: KernelSpec, given: Inputs) -> None:
    """A row is the same number for number whatever finite keys and values stand where it does not look."""
    first, rows = _unseen(spec, given)
    rng = random_of(given)
    shape = given.key[:, :, first:].shape
    base, right = observe(spec, given), _allowance(spec, given)
    for what, key, value in (
        ("keys", 8.0 * rng.standard_normal(shape), None),
        ("values", None, 8.0 * rng.standard_normal((*shape[:-1], given.value.shape[-1]))),
        ("keys and values", 64.0, -64.0),
    ):
        other = observe(spec, _replaced(spec, given, first, key, value))
        changed = f"other {what} from key {first} on, which these rows do not see, change them"
        hold_results(other, base, right, rows=rows, changed=changed)


@law(masking, masked)
def check_masked_nan(spec: KernelSpec, given: Inputs) -> None:
    """A row is the same number for number where the keys and values that it does not see are NaN or infinite."""
    first, rows = _unseen(spec, given)
    base, right = observe(spec, given), _allowance(spec, given)
    for word, fill in (("NaN", np.nan), ("inf", np.inf)):
        for what, key, value in (("keys", fill, None), ("values", None, fill)):
            other = observe(spec, _replaced(spec, given, first, key, value))
            changed = f"{word} in the {what} from key {first} on, which these rows do not see, changes them"
            hold_results(other, base, right, rows=rows, changed=changed)


@law(free, without("is_causal"))
def check_key_permutation(spec: KernelSpec, given: Inputs) -> None:
    """Keys have no order: moved together with their values and the columns of mask and bias they change nothing."""
    if "is_causal" in given.arguments:
        raise NotApplicable("is_causal tells keys apart by place")
    order = random_of(given).permutation(given.key.shape[2])
    moved = cut(spec, given, keys=order)
    base, right = observe(spec, given), later(spec, given)
    hold_results(observe(spec, moved), base, right, changed="the keys in another order change the result")


@law()
def check_value_linearity(spec: KernelSpec, given: Inputs) -> None:
    """The output is linear in the values: exactly so for a factor of 2, and within the bounds for a sum."""
    base = observe(spec, given)
    doubled = round_to(2.0 * given.value.astype(np.float64), operand_dtypes(spec)[2], np)
    exact = np.array_equal(doubled.astype(np.float64), 2.0 * given.value.astype(np.float64), equal_nan=True)
    if exact:
        twice = observe(spec, replace(given, value=doubled))
        # Below the normal numbers of the output a rounding depends on the exponent, and above the largest it overflows.
        kept = FORMATS[spec.numerics().output]
        size = np.abs(base.output)
        where = (size >= 2.0**kept.min_exponent) & (2 * size <= kept.max / 2)
        changed = "values that are twice as large do not give exactly twice the output"
        hold("output", twice.output, 2.0 * base.output, where=where, changed=changed)
    even = (np.arange(given.value.shape[2]) % 2 == 0)[:, None]
    zero = np.zeros_like(given.value)
    parts = [replace(given, value=np.where(chosen, given.value, zero)) for chosen in (even, ~even)]
    one, other = (observe(spec, part) for part in parts)
    bound = sum(right_values(spec, part).output_bound for part in (given, *parts))
    total = one.output + other.output
    changed = "the outputs for the values at even keys and at odd keys do not add up to that for all"
    hold("output", base.output, total, bound + 2.0**-52 * np.abs(total), changed=changed)


def _shifts(spec: KernelSpec) -> str | None:
    """Why adding to the scores of a row is not free in this kernel."""
    always = computes(spec, "softcap", "sinks")
    if always:
        return f"it always computes with {' and '.join(always)}, which a constant in the scores does not leave alone"
    return None


def _with_bias(spec: KernelSpec, case: Case) -> Case:
    """A case without sinks and softcap, every other one with a bias where the kernel takes one."""
    case = without("softcap", "sinks")(spec, case)
    return case.asking("bias") if "bias" in cells_of(spec) and case.seed % 2 else case


@law(_shifts, _with_bias)
def check_logit_shift(spec: KernelSpec, given: Inputs) -> None:
    """A constant added to all scores of a row leaves its output, and moves its log-sum-exp by as much."""
    if {"softcap", "sinks"} & set(given.arguments):
        raise NotApplicable("scores that are capped, or stand beside a sink, change with a constant")
    low, high, move = _shifted(spec, given)
    one, other = observe(spec, low), observe(spec, high)
    near, far = right_values(spec, low), right_values(spec, high)
    changed = f"a constant of {move.min():.4g} to {move.max():.4g} added to all scores of a row changes its output"
    hold("output", other.output, one.output, near.output_bound + far.output_bound, changed=changed)
    if one.lse is not None and other.lse is not None:
        want = one.lse + move
        bound = near.lse_bound + far.lse_bound + 4 * unit("float64") * (np.abs(one.lse) + np.abs(move))
        hold("lse", other.lse, want, bound, changed=changed.replace("changes its output", "moves it by another amount"))


@quiet
def _shifted(spec: KernelSpec, given: Inputs) -> tuple[Inputs, Inputs, npt.NDArray[np.float64]]:
    """Two problems whose scores differ by a constant in each row (B, H, L), and the constants.

    The constants come from a bias, or from a feature that is 0 in all keys of the one and a power of two in the other.
    """
    of_query, of_key, _ = operand_dtypes(spec)
    if "bias" in asked_of(spec, given):
        size = np.where(np.arange(given.query.shape[2]) % 2 == 0, 1.0, -1.0) * SHIFT
        move = np.array(np.broadcast_to(size, given.query.shape[:3]))
        rows = np.broadcast_to(move[..., None], given.passed["bias"].shape)
        found = [round_to(x, of_query, np) for x in (np.zeros_like(rows), rows)]
        asked = asked_of(spec, given)
        low, high = (
            put_together(spec, given.query, given.key, given.value, asked | {"bias": x}, given.batch) for x in found
        )
        return low, high, move
    E = given.query.shape[-1]
    scale = float(given.arguments.get("scale") or 1 / math.sqrt(E))
    largest = np.nanmax(np.abs(given.query[..., -1].astype(np.float64)), initial=0.0)
    # At most SHIFT in the scores, and half of the largest number of the format.
    room = min(SHIFT / max(abs(scale) * largest, 2.0**-40), FORMATS[of_key].max / 2)
    keys = given.key.astype(np.float64)
    pair = []
    for feature in (0.0, 2.0 ** math.floor(math.log2(room))):
        keys[..., -1] = np.where(np.isnan(keys[..., -1]), np.nan, feature)
        pair.append(replace(given, key=round_to(keys, of_key, np)))
    return pair[0], pair[1], scale * feature * given.query[..., -1].astype(np.float64)


def _splits(spec: KernelSpec) -> str | None:
    """Why this kernel's results over parts of the keys cannot be merged."""
    if len(spec.returns) == 1:
        return "it returns no log-sum-exp"
    allowed = limits(spec)
    if allowed.pairs and (allowed.square or 2 * allowed.side(1)[0] > allowed.side(1)[1]):
        return "lengths= allows no two parts of the keys of a problem"
    return free(spec)


@law(_splits, without("is_causal", "sinks"))
def check_split_merge(spec: KernelSpec, given: Inputs) -> None:
    """Results over two parts of the keys, merged by their log-sum-exp, are the result over all of them."""
    if {"is_causal", "sinks"} & set(given.arguments):
        raise NotApplicable("a sink, or causality by flag, is not shared out over parts of the keys")
    L, S = given.query.shape[2], given.key.shape[2]
    allowed = limits(spec)
    cuts = [t for t in range(1, S) if allowed.allow(L, t) and allowed.allow(L, S - t)]
    if not cuts:
        raise NotApplicable("lengths= allows no parts of the keys of the problem")
    t = cuts[int(random_of(given).integers(len(cuts)))]
    parts = [cut(spec, given, keys=keys) for keys in (np.arange(t), np.arange(t, S))]
    seen, right = [observe(spec, part) for part in parts], [right_values(spec, part) for part in parts]
    merged, lse, bound, lse_bound = _merged(seen, right)
    whole = right_values(spec, given)
    changed = f"the results over keys 0..{t - 1} and {t}..{S - 1}, merged by log-sum-exp, are not that over all"
    hold("output", merged, whole.output, bound, changed=changed)
    hold("lse", lse, whole.lse, lse_bound, changed=changed)


@quiet
def _merged(seen: list[Seen], right: list[Right]) -> tuple[Any, Any, Any, Any]:
    """Output and log-sum-exp of merged parts, and how far those of right kernels may be from the exact ones.

    With log-sum-exps that are off by at most b, the weights w of the parts are off by at most (e^2b - 1) w, and add up
    to 1 however far they are off: the error is that of the parts, weighted, and (e^2b - 1) w |O_i - O| of what they
    differ. The last term is the rounding of these very sums.
    """
    lse = np.stack([x.lse for x in seen if x.lse is not None])
    merged_lse = np.logaddexp(*lse)
    weights = np.where(lse == -np.inf, 0.0, np.exp(lse - merged_lse))[..., None]
    outputs = np.stack([x.output for x in seen])
    output = np.sum(np.where(weights == 0, 0.0, weights * outputs), axis=0)
    expected = np.stack([x.lse for x in right])
    shares = np.exp(expected - np.logaddexp(*expected))[..., None]
    shares = np.where(np.isnan(shares), 0.0, shares)
    values, bounds = np.stack([x.output for x in right]), np.stack([x.output_bound for x in right])
    off = np.stack([x.lse_bound for x in right]).max(axis=0)
    grown = np.expm1(2.0 * off)[..., None]
    mean = np.sum(shares * values, axis=0)
    bound = np.sum(shares * (1.0 + grown) * bounds + grown * shares * np.abs(values - mean), axis=0)
    largest = np.where(np.isfinite(expected), np.abs(expected), 0.0).max(axis=0)
    rounding = 16 * unit("float64") * (1 + largest)
    bound = bound + rounding[..., None] * np.sum(shares * np.abs(values), axis=0)
    empty: Any = np.isinf(expected).all(axis=0)
    lse_bound = np.where(empty, 0.0, off + rounding)
    return output, merged_lse, np.where(empty[..., None], 0.0, bound), lse_bound
