"""KernelSpec: what it keeps, and what it refuses in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import refattn as ra
from refattn import masks
from refattn.testing import KernelSpec
from refattn.testing.spec import LAW_CHECKS

STORAGE = "descale, block_table, cu_seqlens_q, cu_seqlens_k, seqused_k"
ACCEPTED = f"mask, bias, is_causal, scale, softcap, sinks, dropout_mask, dropout_p, {STORAGE}, out"
LAWS = "normal, peaked, offset, rising, coded, smollm2"
NAMES = (
    f"probes, {LAWS}, mask, bias, is_causal, scale, softcap, sinks, dropout_mask, empty_rows, gradients, {STORAGE}, "
    f"{', '.join(LAW_CHECKS)}"
)


def kernel(query: Any, key: Any, value: Any) -> Any:
    """Any kernel."""


def test_defaults_are_those_of_a_plain_function() -> None:
    spec = KernelSpec(kernel)
    assert spec.method is ra.attention
    assert (spec.accepts, spec.returns, spec.layout, spec.arrays) == ((), ("output",), "bhld", "numpy")
    assert spec.features == ((64, 64), (192, 128))
    assert spec.numerics() == ra.contract.flash("float32")
    assert spec.name == "kernel"


def test_a_spec_is_frozen_and_replaced_field_by_field() -> None:
    spec = KernelSpec(kernel, contract="bfloat16", dims=[8, (16, 4)], lengths=[[3, 5]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.layout = "blhd"  # type: ignore[misc]
    other = dataclasses.replace(spec, layout="blhd")
    assert other.features == ((8, 8), (16, 4))
    assert other.lengths == ((3, 5),)
    assert other.numerics() == ra.contract.flash("bfloat16")


def test_what_a_kernel_always_computes_may_depend_on_the_lengths() -> None:
    spec = KernelSpec(kernel, computes=lambda L, S: {"mask": masks.causal(S - L), "scale": 1.0})
    assert repr(spec.arguments(3, 7)["mask"]) == "masks.causal(anchor=4)"
    assert KernelSpec(kernel, computes={"softcap": 3.0}).arguments(3, 7) == {"softcap": 3.0}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"function": 3}, TypeError, "KernelSpec: function must be callable; got int."),
        ({"backward": 3}, TypeError, "KernelSpec: backward must be callable or None; got int."),
        ({"method": kernel}, TypeError, "KernelSpec: method must be a public function of refattn; got kernel."),
        (
            {"method": ra.merge_states},
            ValueError,
            "KernelSpec: method must have a proven bound; merge_states has none yet.",
        ),
        ({"computes": ["mask"]}, TypeError, "KernelSpec: computes must be a mapping; got list."),
        (
            {"computes": {"causal": True}},
            ValueError,
            "KernelSpec: computes must name only mask, bias, is_causal, scale, softcap, sinks; got causal.",
        ),
        (
            {"accepts": ("causal",)},
            ValueError,
            f"KernelSpec: accepts must name only {ACCEPTED}; got causal.",
        ),
        (
            {"contract": ra.contract.nvfp4()},
            ValueError,
            (
                "KernelSpec: contract must be one without scales of weights; check judges the arrays of a kernel with "
                f"them; got {ra.contract.nvfp4().describe()}."
            ),
        ),
        (
            {"accepts": ("out",), "arrays": "jax"},
            ValueError,
            "KernelSpec: accepts must not name out where arrays is 'jax', whose arrays are not written to; got out.",
        ),
        ({"accepts": "mask"}, TypeError, "KernelSpec: accepts must be a sequence of names; got str."),
        (
            {"accepts": ("mask", "scale"), "computes": {"mask": masks.causal()}},
            ValueError,
            "KernelSpec: computes and accepts must name each argument once; got mask in both.",
        ),
        (
            {"returns": ("lse", "output")},
            ValueError,
            "KernelSpec: returns must be ('output',), ('output', 'lse') or ('output', 'lse2'); got ('lse', 'output').",
        ),
        (
            {"layout": "paged"},
            ValueError,
            "KernelSpec: layout must be one of 'bhld', 'blhd', 'lbhd' or a layouts.Layout; got 'paged'.",
        ),
        (
            {"accepts": ("block_table",)},
            ValueError,
            'KernelSpec: accepts must name "seqused_k" or "cu_seqlens_k" beside "block_table"; got block_table.',
        ),
        (
            {"arrays": "tensorflow"},
            ValueError,
            "KernelSpec: arrays must be one of 'numpy', 'torch', 'jax', 'cupy'; got tensorflow.",
        ),
        ({"batch": ()}, TypeError, "KernelSpec: batch must be a sequence of at least one integer; got ()."),
        ({"batch": (0,)}, ValueError, "KernelSpec: batch must hold positive integers; got 0."),
        ({"heads": (3, 2)}, ValueError, "KernelSpec: heads must be (H, Hk) with H a multiple of Hk; got (3, 2)."),
        ({"heads": (4.0, 2)}, TypeError, "KernelSpec: heads must hold integers; got float."),
        ({"dims": ((8, 8, 8),)}, ValueError, "KernelSpec: dims must hold pairs (E, Ev) or numbers E; got (8, 8, 8)."),
        ({"lengths": (8,)}, ValueError, "KernelSpec: lengths must hold pairs (L, S); got 8."),
        ({"lengths": 8}, TypeError, "KernelSpec: lengths must be a sequence of at least one pair of integers; got 8."),
        (
            {"expected_failures": {"speed": "slow"}},
            ValueError,
            f"KernelSpec: expected_failures must name only {NAMES}; got speed.",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(fields: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        KernelSpec(**{"function": kernel, **fields})
    assert str(caught.value) == message


def test_a_contract_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="contract must be a Contract, a string or None; got int"):
        KernelSpec(kernel, contract=3)  # type: ignore[arg-type]
