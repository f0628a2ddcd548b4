"""The operands of the probes: exact in their formats, and enumerated, so that no element is left unread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import contract, masks
from refattn.contract.formats import unit
from refattn.testing import KernelSpec, probe
from refattn.testing.probes import designs
from refattn.testing.probes.measured import within
from refattn.testing.probes.model import rounded
from refattn.testing.probes.setting import Setting, plain

CAUSAL = masks.causal(anchor="lower_right")
CONTRACTS = {name: contract.flash(name) for name in ("float64", "float32", "bfloat16", "float16")}
CONTRACTS["float8_e4m3fn"] = contract.fp8()


def setting_of(
    lengths: tuple[int, int], name: str = "float32", dims: tuple[int, int] = (64, 64), **computes: Any
) -> Setting:
    """A plain call of attention."""
    spec = KernelSpec(ra.attention, computes=computes, contract=CONTRACTS[name], dims=(dims,), lengths=(lengths,))
    return plain(spec, 2, lengths, dims)


@pytest.mark.parametrize("lengths", [(33, 70), (70, 33), (1, 40), (40, 1), (48, 48)])
@pytest.mark.parametrize("mask", [None, CAUSAL, masks.window(9, 2, anchor="lower_right")])
def test_each_head_aims_at_every_key_that_it_may_see(lengths: tuple[int, int], mask: masks.Mask | None) -> None:
    setting = setting_of(lengths, **({} if mask is None else {"mask": mask}))
    seen = setting.model.counts > 0
    read = np.zeros(seen.shape[::2], dtype=np.bool_)
    for aim in designs.aims(setting):
        for n, i in np.argwhere(aim >= 0):
            assert seen[n, i, aim[n, i]]
            read[n, aim[n, i]] = True
        np.testing.assert_array_equal(aim >= 0, seen.any(axis=-1))
    np.testing.assert_array_equal(read, seen.any(axis=1))


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("dims", [(64, 64), (192, 128), (48, 32)])
def test_operands_are_exact_in_the_formats_of_the_contract(name: str, dims: tuple[int, int]) -> None:
    setting = setting_of((33, 70), name, dims)
    for design in designs.DESIGNS.values():
        try:
            made = list(design(setting, False))
        except designs.NotPossible:
            continue
        assert made
        for given, _ in made:
            for operand, x in zip(("query", "key", "value"), given[:3], strict=True):
                if x is not None:
                    np.testing.assert_array_equal(rounded(x, getattr(setting.contract, operand)), x)


@pytest.mark.parametrize("name", CONTRACTS)
def test_queries_of_the_needle_have_one_key_at_0_and_no_other_within_the_gap(name: str) -> None:
    setting = setting_of((33, 70), name)
    for given, _ in designs.needle(setting, False):
        scores = np.sort(setting.model.scored(given), axis=-1)
        np.testing.assert_array_equal(scores[..., -1], 0.0)
        assert (scores[..., -2] <= -setting.gap).all()


@pytest.mark.parametrize("name", ["float32", "float8_e4m3fn"])
def test_values_tell_slot_and_key_and_differ_from_their_neighbours(name: str) -> None:
    setting = setting_of((33, 70), name)
    value = designs.coded(setting)
    assert len(np.unique(value.reshape(-1, value.shape[-1]), axis=0)) == value.shape[0] * value.shape[1]
    own = value[..., len(designs.identity(setting)) :]
    assert (own[:, 1:] != own[:, :-1]).all()
    assert (own[..., 1:] != own[..., :-1]).all()
    assert (own[1:] != own[:-1]).all()


def test_every_bit_of_the_keys_differs_from_its_neighbours_in_one_of_two_sets() -> None:
    first, second = (given.key for given, _ in designs.key_bits(setting_of((65, 70)), True))
    for step in (1, 3, 17):
        assert ((first[:, step:] != first[:, :-step]) | (second[:, step:] != second[:, :-step])).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_weights_of_the_two_scores_need_no_rounding(name: str) -> None:
    setting = setting_of((33, 70), name)
    queries, error = designs.neutral(setting, 33)
    weights = np.exp(-queries * setting.model.scale)
    assert error < unit(name) / 16
    np.testing.assert_allclose(rounded(weights, name), weights, rtol=1.01 * error)
    assert len(np.unique(queries)) >= 8


def test_what_is_accepted_is_what_a_number_within_reach_is_rounded_to() -> None:
    x = np.array([1.0])
    one_up, two_up = np.nextafter(np.float32(1), np.float32(2)), 1 + 2 * 2.0**-23
    assert within(np.array([float(one_up)]), x, 2.0**-23, "float32")
    assert not within(np.array([two_up]), x, 2.0**-23, "float32")
    assert not within(np.array([np.nan]), x, 2.0**-23, "float32")
    assert within(np.array([1.0]), np.array([1 + 2.0**-8]), 0.0, "bfloat16")
    assert not within(np.array([1 + 2.0**-7]), np.array([1 + 2.0**-8]), 0.0, "bfloat16")
    assert within(np.array([1 + 2.0**-7]), np.array([1 + 2.0**-8]), 2.0**-19, "bfloat16")


def quotients(query: np.ndarray, key: np.ndarray, value: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    """A right kernel that divides its weights before their product, and adds one term after the other.

    Its exponential errs by 500 ulp below 0.
    """
    key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
    scores = query @ np.swapaxes(key, -1, -2) / np.float32(np.sqrt(query.shape[-1]))
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))], axis=-1)
    x = (scores - scores.max(axis=-1, keepdims=True)).astype(np.float64)
    weights = (np.exp(x) * (1 + 500 * 2.0**-23 * (x < 0))).astype(np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    terms = weights[..., : key.shape[2], None] * value[..., None, :, :]
    return np.add.accumulate(terms, axis=-2)[..., -1, :]


@pytest.mark.parametrize(("accepts", "S"), [((), 257), ((), 20), (("sinks",), 20)])
def test_sums_of_quotients_and_exponentials_below_0_are_allowed_for(accepts: tuple[str, ...], S: int) -> None:
    numerics = replace(contract.eager("float32"), exp_ulp=1024.0)
    spec = KernelSpec(quotients, accepts=accepts, contract=numerics, lengths=((17, S),), dims=((64, 80),))
    assert probe(spec).passed


def test_rows_without_keys_are_left_alone_where_they_are_expected_to_differ() -> None:
    def mean(query: Any, key: Any, value: Any, *, mask: Any = None) -> Any:
        output = ra.attention(query, key, value, mask=mask)
        if mask is None:
            return output
        means = np.repeat(value.mean(axis=2, keepdims=True), query.shape[1] // value.shape[1], axis=1)
        return np.where(mask.any(axis=-1, keepdims=True), output, means).astype(output.dtype)

    fields = {"accepts": ("mask",), "lengths": ((17, 20),), "dims": (8,)}
    assert not probe(KernelSpec(mean, **fields), quick=True).passed
    found = probe(KernelSpec(mean, **fields, expected_failures={"empty_rows": "their mean"}), quick=True)
    assert found.passed
    assert ("mask (some rows see nothing)", "expected to fail: their mean") in [tuple(x) for x in found.skipped]


def test_a_log_sum_exp_may_overflow_in_its_own_format() -> None:
    def kernel(query: Any, key: Any, value: Any) -> Any:
        output, lse, _ = ra.attention(query, key, value, return_lse=True)
        with np.errstate(over="ignore"):
            return output, lse.astype(np.float16)

    numerics = replace(contract.flash("float16"), lse="float16")
    fields = {"lengths": ((17, 20),), "dims": (64,), "returns": ("output", "lse")}
    assert probe(KernelSpec(kernel, contract=numerics, **fields), quick=True).passed

    def zero(*arrays: Any) -> Any:
        output, lse = kernel(*arrays)
        return output, np.where(np.isinf(lse), np.float16(0), lse)

    assert not probe(KernelSpec(zero, contract=numerics, **fields), quick=True).passed
