"""What documents, prefixes, chunks, trees and drawn masks say to wrong arguments, in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn import masks

ANCHOR = '"lower_right", "upper_left", an integer or an integer array of batch shape'
IDS = "an integer array of shape"
SEED = "masks.bernoulli: seed must be an integer, 0 <= seed < 2**128; got"


class Unreadable(masks.Mask):
    """A mask whose cells cannot be read."""

    readable = False

    def __repr__(self) -> str:
        """Its name."""
        return "Unreadable"


WRONG: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # documents
    (
        lambda: masks.documents(3),
        ValueError,
        f"masks.documents: key must be {IDS} (S,) or (B, S); got 3.",
    ),
    (
        lambda: masks.documents([1], np.array(3)),
        ValueError,
        f"masks.documents: query must be {IDS} (L,) or (B, L); got 3.",
    ),
    (
        lambda: masks.documents([0.5]),
        TypeError,
        f"masks.documents: key must be {IDS} (S,) or (B, S); got float64.",
    ),
    (
        lambda: masks.documents([1], query=[[1], [2, 3]]),
        ValueError,
        f"masks.documents: query must be {IDS} (L,) or (B, L); got a list whose rows differ in length.",
    ),
    (
        lambda: masks.documents(np.array([2**63, 0], np.uint64)),
        ValueError,
        "masks.documents: ids must fit in int64; got 9223372036854775808 in key.",
    ),
    (
        lambda: masks.documents([[1], [2]], [[1], [2], [3]]),
        ValueError,
        "masks.documents: key and query must have the same batch shape; got (2,) and (3,).",
    ),
    (
        lambda: masks.documents([1], inside=np.ones((1, 1), bool)),
        TypeError,
        "masks.documents: inside must be a Mask; got ndarray. Wrap a boolean array in masks.array.",
    ),
    (
        lambda: masks.documents([1], inside=Unreadable()),
        ValueError,
        "masks.documents: inside must have cells that can be read now; got Unreadable.",
    ),
    (
        lambda: masks.documents([[1], [2]], inside=masks.causal([1, 2, 3])),
        ValueError,
        (
            "masks.documents: the leading axes of inside must broadcast with those of the ids; got lead=(3, 1) and "
            "lead=(2, 1)."
        ),
    ),
    (
        lambda: masks.documents([1, 2]).check("attention", 1, 2),
        ValueError,
        "attention: query of masks.documents must be given where L and S differ; got L=1, S=2.",
    ),
    (
        lambda: masks.documents([[1, 2]]).check("attention", 3, 3),
        ValueError,
        "attention: key of masks.documents must have an id for each key, S=3; got shape (1, 2).",
    ),
    (
        lambda: masks.documents([1, 2], [1]).check("attention", 2, 2),
        ValueError,
        "attention: query of masks.documents must have an id for each query, L=2; got shape (1,).",
    ),
    (
        lambda: masks.documents([3, 3, 9, 9], [3, 9, 3], inside=masks.causal()).check("attention", 3, 4),
        ValueError,
        (
            "attention: document 9: masks.causal() is ambiguous for L=1, S=2. "
            'Pass anchor="lower_right" or anchor="upper_left".'
        ),
    ),
    (
        lambda: masks.documents([[3, 9], [7, -1]], [[3, 9], [7, 7]], inside=masks.causal()).check("attention", 2, 2),
        ValueError,
        (
            "attention: document 7 of batch entry (1,): masks.causal() is ambiguous for L=2, S=1. "
            'Pass anchor="lower_right" or anchor="upper_left".'
        ),
    ),
    (
        lambda: masks.documents([4, 4, 4, 8], inside=masks.lengths([1, 2])).check("attention", 4, 4),
        ValueError,
        "attention: document 8: key of masks.lengths must be at most S=1; got 2.",
    ),
    # prefixes
    (
        lambda: masks.prefix(-1),
        ValueError,
        "masks.prefix: length must be a non-negative integer or an array of them, of batch shape; got -1.",
    ),
    (lambda: masks.prefix(1, "right"), ValueError, f"masks.prefix: anchor must be {ANCHOR}; got 'right'."),
    (
        lambda: masks.prefix([1, 2], anchor=[1, 2, 3]),
        ValueError,
        "masks.prefix: length and anchor must have the same batch shape; got (2,) and (3,).",
    ),
    (
        lambda: masks.prefix(4).check("attention", 1, 8),
        ValueError,
        'attention: masks.prefix(4) is ambiguous for L=1, S=8. Pass anchor="lower_right" or anchor="upper_left".',
    ),
    # chunks
    (lambda: masks.chunked(0), ValueError, "masks.chunked: size must be a positive integer; got 0."),
    (lambda: masks.chunked(2.0), TypeError, "masks.chunked: size must be a positive integer; got 2.0."),
    (
        lambda: masks.chunked(2**62 + 1),
        ValueError,
        "masks.chunked: size must be at most 2**62; got 4611686018427387905.",
    ),
    (lambda: masks.chunked(1, 0.5), TypeError, f"masks.chunked: anchor must be {ANCHOR}; got 0.5."),
    (
        lambda: masks.chunked(4).check("attention", 1, 8),
        ValueError,
        'attention: masks.chunked(4) is ambiguous for L=1, S=8. Pass anchor="lower_right" or anchor="upper_left".',
    ),
    # trees
    (lambda: masks.tree(3), ValueError, f"masks.tree: parents must be {IDS} (T,) or (B, T); got 3."),
    (lambda: masks.tree([0.5]), TypeError, f"masks.tree: parents must be {IDS} (T,) or (B, T); got float64."),
    (
        lambda: masks.tree([-1, 0, 2]),
        ValueError,
        "masks.tree: parents must each be an earlier node, or -1 for none; got 2 for node 2.",
    ),
    (
        lambda: masks.tree([[-1, 0], [-1, -2]]),
        ValueError,
        "masks.tree: parents must each be an earlier node, or -1 for none; got -2 for node 1 of batch entry (1,).",
    ),
    (lambda: masks.tree([-1], True), TypeError, f"masks.tree: anchor must be {ANCHOR}; got True."),
    (
        lambda: masks.tree([[-1, 0], [-1, 0]], anchor=[1, 2, 3]),
        ValueError,
        "masks.tree: parents and anchor must have the same batch shape; got (2,) and (3,).",
    ),
    (
        lambda: masks.tree([-1, 0], "lower_right").check("attention", 3, 8),
        ValueError,
        "attention: parents of masks.tree must have a node for each query, T=L=3; got T=2.",
    ),
    (
        lambda: masks.tree([-1, 0]).check("attention", 2, 8),
        ValueError,
        'attention: masks.tree([-1, 0]) is ambiguous for L=2, S=8. Pass anchor="lower_right" or anchor="upper_left".',
    ),
    # drawn
    (
        lambda: masks.bernoulli("0.5", 1),
        TypeError,
        "masks.bernoulli: keep must be a real number; got str.",
    ),
    (
        lambda: masks.bernoulli(float("nan"), 1),
        ValueError,
        "masks.bernoulli: keep must be finite in float64; got nan.",
    ),
    (
        lambda: masks.bernoulli(1.5, 1),
        ValueError,
        "masks.bernoulli: keep must be a probability, 0 <= keep <= 1; got 1.5.",
    ),
    (
        lambda: masks.bernoulli(-0.5, 1),
        ValueError,
        "masks.bernoulli: keep must be a probability, 0 <= keep <= 1; got -0.5.",
    ),
    (lambda: masks.bernoulli(0.5, 1.0), TypeError, f"{SEED} 1.0."),
    (lambda: masks.bernoulli(0.5, True), TypeError, f"{SEED} True."),
    (lambda: masks.bernoulli(0.5, -1), ValueError, f"{SEED} -1."),
    (lambda: masks.bernoulli(0.5, 2**128), ValueError, f"{SEED} {2**128}."),
    (
        lambda: masks.bernoulli(0.5, 1, batch=-1),
        ValueError,
        "masks.bernoulli: batch must be a non-negative integer; got -1.",
    ),
    (
        lambda: masks.bernoulli(0.5, 1, heads=2.0),
        TypeError,
        "masks.bernoulli: heads must be a non-negative integer; got 2.0.",
    ),
    # another anchor
    (
        lambda: masks.lengths(3).reanchored("middle"),
        ValueError,
        f"mask.reanchored: anchor must be {ANCHOR}; got 'middle'.",
    ),
    (
        lambda: masks.prefix([1, 2]).reanchored([1, 2, 3]),
        ValueError,
        "masks.prefix: length and anchor must have the same batch shape; got (2,) and (3,).",
    ),
]


@pytest.mark.parametrize(
    ("call", "kind", "text"), WRONG, ids=[f"{n}-{text.partition(':')[0]}" for n, (_, _, text) in enumerate(WRONG)]
)
def test_message(call: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_hull_checks_first() -> None:
    with pytest.raises(ValueError, match=r"^mask\.hull: masks\.causal\(\) is ambiguous for L=3, S=4\. "):
        masks.causal().hull(3, 4)


def test_what_lies_at_the_edge_of_an_argument_is_taken() -> None:
    assert masks.documents(np.array([2**63 - 1], np.uint64)).count(1, 1) == 1
    assert masks.chunked(2**62).count(2, 2) == 4
    assert masks.chunked(1).count(2, 2) == 2
    assert masks.bernoulli(0, 2**128 - 1).count(1, 1) == 0
    assert masks.bernoulli(1, 0).count(1, 1) == 1
    assert masks.tree([-1, 0, 1]).count(3, 3) == 6
