"""Laws that softmax attention keeps, as functions ``check_*(spec, problem)`` that raise where a kernel breaks one.

A problem is a `Case`, or arrays (see `captured`). Values are compared within the bound that the spec's contract
implies, or must be the same numbers where nothing that enters them has changed. A law that says nothing about a kernel,
or about the given problem, raises `unittest.SkipTest` with the reason.
"""

from __future__ import annotations

from refattn.testing.laws.calls import (
    check_determinism,
    check_empty_rows,
    check_forward,
    check_inputs_untouched,
    check_layouts,
    check_lse,
    check_strides,
    check_tile_edges,
)
from refattn.testing.laws.cells import (
    check_causality,
    check_key_permutation,
    check_logit_shift,
    check_masked_nan,
    check_split_merge,
    check_value_linearity,
)
from refattn.testing.laws.heads import check_batch_independence, check_head_independence, check_nan_containment
from refattn.testing.laws.observing import NotApplicable, Violation
from refattn.testing.laws.stating import Law

__all__ = (
    "CHECKS",
    "Law",
    "NotApplicable",
    "Violation",
    "check_batch_independence",
    "check_causality",
    "check_determinism",
    "check_empty_rows",
    "check_forward",
    "check_head_independence",
    "check_inputs_untouched",
    "check_key_permutation",
    "check_layouts",
    "check_logit_shift",
    "check_lse",
    "check_masked_nan",
    "check_nan_containment",
    "check_split_merge",
    "check_strides",
    "check_tile_edges",
    "check_value_linearity",
)

# In the order in which they run: what the others take for granted comes first.
CHECKS: tuple[Law, ...] = (
    check_forward,
    check_lse,
    check_tile_edges,
    check_layouts,
    check_empty_rows,
    check_causality,
    check_masked_nan,
    check_key_permutation,
    check_logit_shift,
    check_head_independence,
    check_batch_independence,
    check_nan_containment,
    check_value_linearity,
    check_split_merge,
    check_strides,
    check_determinism,
    check_inputs_untouched,
)
