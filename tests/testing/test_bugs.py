"""The bug catalogue: each bug changes some problem, the attention beneath is right, and each entry is well formed."""

from __future__ import annotations

import doctest
import importlib
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import biases, masks
from refattn.testing import bugs
from refattn.testing.bugs import mask_edits
from refattn.testing.bugs.engine import run
from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.problems import Inputs
from tests.testing.kernels import normal

# Entries of the catalogue, family by family, and those that no formula of a forward pass tells.
ENTRIES = {"A": 19, "B": 20, "C": 16, "D": 17, "E": 13, "F": 13, "G": 13}
LEFT_OUT = {"A19", "B18", "C10", "D4", "D6", "D7", "D16", "E2"} | {f"G{n}" for n in range(1, 14)} - {"G8"}


def made(
    batch: int = 2,
    heads: tuple[int, int] = (4, 2),
    lengths: tuple[int, int] = (40, 70),
    dims: tuple[int, int] = (16, 16),
    size: float = 1.0,
    **given: Any,
) -> bugs.Problem:
    """A problem of standard normal numbers, the queries times `size`."""
    (H, Hk), (L, S), (E, Ev) = heads, lengths, dims
    shapes = ((batch, H, L, E), (batch, Hk, S, E), (batch, Hk, S, Ev))
    q, k, v = (normal(shape, "float64", seed) for seed, shape in enumerate(shapes))
    return bugs.problem(size * q, k, v, **given)


def cells(shape: tuple[int, ...], share: float = 0.5) -> np.ndarray:
    """Random cells, of which every fifth row is empty."""
    keep = np.random.default_rng(5).random(shape) < share
    keep[..., ::5, :] = False
    return keep


def by_depth(parents: list[int], prefix: int, width: int) -> masks.Mask:
    """Keys fewer than `width` levels above a node, of a tree behind a prefix."""
    depth = np.zeros(len(parents), int)
    for n, parent in enumerate(parents):
        depth[n] = 0 if parent < 0 else depth[parent] + 1
    levels = np.concatenate([np.arange(prefix), prefix + depth])
    return masks.array(levels[prefix:, None] - levels < width)


def repeated(p: bugs.Problem) -> bugs.Problem:
    """Values that are the first columns of the keys."""
    return replace(p, value=p.key[..., :8])


def spoilt(p: bugs.Problem) -> bugs.Problem:
    """A key and a value that are NaN, which nothing but the first rows may not see."""
    key, value = p.key.copy(), p.value.copy()
    key[:, :, 60], value[:, :, 60] = np.nan, np.nan
    return replace(p, key=key, value=value)


TREE = [-1, 0, 0, 1, 1, 2, 3, 5]
QUERIES, KEYS = np.array([20, 40, 7]), np.array([50, 70, 0])
LOWER, UPPER = (masks.causal(anchor=anchor) for anchor in ("lower_right", "upper_left"))
ELSE = made(scale=0.1, mask=masks.array(cells((40, 70))))
PADDED = cells((3, 1, 40, 70))
TABLE = np.array([[3, 70000, 2, 9, 0], [1, 4, 2**28, 5, 6], [0, 0, 0, 0, 0]])

PROBLEMS = {
    "nothing": made(scale=0.3, previous=ELSE, masked=masks.array(cells((2, 4, 40, 70)))),
    "default scale": made(dims=(16, 24), margin=2, order="blhd"),
    "causal": made(mask=LOWER, previous=ELSE),
    "square": made(lengths=(70, 70), is_causal=True),
    "upper left": made(lengths=(40, 70), dims=(24, 16), mask=UPPER),
    "window": made(lengths=(20, 150), mask=masks.window(30, 0, "lower_right"), softcap=1.5),
    "window on both sides": made(lengths=(70, 70), mask=masks.window(10, 5, "upper_left")),
    "many queries": made(lengths=(150, 70), mask=masks.causal(-3)),
    "cache": made(mask=masks.causal([30, 10]) & masks.lengths([70, 50])),
    "prefix": made(lengths=(70, 70), mask=masks.prefix(40)),
    "documents": made(lengths=(70, 70), mask=masks.documents([0] * 30 + [1] * 40, inside=masks.window(5, 0))),
    "tree": made(lengths=(8, 40), mask=masks.tree(TREE, "lower_right") & masks.window(20, 0, "lower_right")),
    "tree by depth": made(
        lengths=(8, 40), mask=masks.tree(TREE, "lower_right") & by_depth(TREE, 32, 3), tree_window=3
    ),
    "alibi": made(
        batch=1, heads=(12, 4), dims=(16, 24), mask=LOWER, bias=biases.alibi(12, anchor="lower_right"),
        sinks=normal((12,)),
    ),
    "mask of heads": made(batch=4, mask=masks.array(cells((4, 40, 70)))),
    "sinks, empty rows": made(
        mask=masks.array(cells((2, 4, 40, 70))), sinks=normal((4,)), bias=normal((4, 40, 70)), softcap=2.0, scale=0.5
    ),
    "dropout": made(dropout_mask=masks.array(cells((2, 4, 40, 70), 0.7)), dropout_p=0.3),
    "sequences": made(batch=3, queries=QUERIES, keys=KEYS, page_size=16, block_table=TABLE),
    "causal sequences": made(batch=3, mask=LOWER, queries=QUERIES, keys=KEYS, page_size=16),
    "padded cells": made(
        batch=3, mask=masks.array(PADDED) & LOWER, bias=normal((4, 40, 70)), queries=QUERIES, keys=KEYS
    ),
    "quantised": made(descale=(np.full(4, 0.5), np.array([0.5, 2.0]), np.array([3.0, 0.1]))),
    "latent": repeated(made(heads=(4, 1), dims=(16, 8), descale=(1.0, 0.5, 0.25))),
    "listed": made(mask=masks.array(cells((2, 1, 40, 70), 0.1)), top_k=20),
    "rotated": made(lengths=(3, 70), mask=LOWER, rotary_base=10000.0),
    "low logits": made(size=0.0, bias=np.full((40, 70), -6e4)),
    "huge logits": made(size=1e12, lengths=(8, 20)),
    "large products": made(size=1e4, scale=1e-6),
    "not finite": spoilt(made(mask=UPPER)),
    "many tiles": made(batch=1, heads=(1, 1), lengths=(2, 530), dims=(4, 4)),
    "many keys": made(
        batch=1, heads=(1, 1), lengths=(2, 33000), dims=(2, 2),
        mask=masks.array(np.random.default_rng(3).random((2, 33000)) < 0.5), size=3.0,
    ),
}  # fmt: skip

# Choices of a bug that are tried on a problem.
FEW = 3

# Problems that are there for one bug: of equal weights, of weights that are 0 but for one, and of many keys.
EXTREME = {"low logits": "B4", "huge logits": "B10", "many keys": "D14", "many tiles": "D17"}


def relative(got: np.ndarray, right: np.ndarray) -> float:
    """The largest difference, relative to the largest number; infinite where one is finite and the other is not."""
    if not np.array_equal(np.isnan(got), np.isnan(right)) or not np.array_equal(np.isinf(got), np.isinf(right)):
        return np.inf
    finite = np.isfinite(right)
    size = np.abs(right[finite]).max(initial=1e-300)
    return float(np.abs(got[finite] - right[finite]).max(initial=0.0) / size)


def changed(got: Any, right: Any) -> float:
    """The largest relative difference of output or log-sum-exp."""
    return max(relative(got.output, right.output), relative(got.lse, right.lse))


def of_attention(p: bugs.Problem) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of the public function, sequence by sequence."""
    output, lse = np.zeros((*p.query.shape[:3], p.value.shape[3])), np.full(p.query.shape[:3], -np.inf)
    queries, keys = p.sequences
    for b in range(len(p.query)):
        # Each sequence stands in its own place, so that masks of a batch are asked for it.
        whole = [np.broadcast_to(x[b], x.shape) for x in (p.query, p.key, p.value)]
        q, k, v = (x[:, :, :n] for x, n in zip(whole, (queries[b], keys[b], keys[b]), strict=True))
        mask, bias = p.mask, p.bias
        if p is PROBLEMS["padded cells"]:
            mask = masks.array(PADDED[..., : queries[b], : keys[b]]) & LOWER
            bias = bias.values[..., : queries[b], : keys[b]]
        result = ra.attention(
            q, k, v, scale=p.scale, softcap=p.softcap, mask=mask, bias=bias, sinks=p.sinks,
            dropout_mask=p.dropout_mask, dropout_p=p.dropout_p, return_lse=True,
        )  # fmt: skip
        output[b, :, : queries[b]], lse[b, :, : queries[b]] = result.output[b], result.lse[b]
    return output, lse


@pytest.mark.parametrize("name", PROBLEMS)
def test_without_a_bug_it_is_attention(name: str) -> None:
    got = run(PROBLEMS[name], {})
    output, lse = of_attention(PROBLEMS[name])
    assert relative(got.output, output) <= 1e-12
    assert relative(got.lse, lse) <= 1e-12


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (n % 2)) for n, x in enumerate(PROBLEMS)])
def test_where_a_bug_applies_it_changes_something(name: str) -> None:
    right = run(PROBLEMS[name], {})
    for bug in bugs.BUGS:
        if name in EXTREME and bug.id != EXTREME[name]:
            continue
        variants = list(bug.variants(PROBLEMS[name]))
        for variant in variants[:: -(-len(variants) // FEW) or 1]:
            assert changed(variant.apply(), right) > 1e-6, (bug.id, bug.name, variant.label)


def test_each_bug_applies_somewhere() -> None:
    nowhere = [bug.id for bug in bugs.BUGS if not any(bug.applies(p) for p in PROBLEMS.values())]
    assert nowhere == []


@pytest.mark.parametrize(
    "name", ["causal", "window", "tree", "alibi", "sinks, empty rows", "dropout", "causal sequences", "quantised"]
)
def test_some_rows_are_those_of_the_whole(name: str) -> None:
    p = PROBLEMS[name]
    H, (queries, _) = p.query.shape[1], p.sequences
    rows = [(b, b % H, np.arange(n)[::-7]) for b, n in enumerate(queries)]
    for bug in bugs.BUGS:
        for variant in list(bug.variants(p))[:1]:
            whole, some = variant.apply(), variant.apply(rows)
            output, lse = (np.concatenate([x[b, h, at] for b, h, at in rows]) for x in (whole.output, whole.lse))
            np.testing.assert_allclose(some.output, output, rtol=1e-9, atol=1e-11, err_msg=bug.name)
            np.testing.assert_allclose(some.lse, lse, rtol=1e-9, atol=1e-11, err_msg=bug.name)


def test_every_entry_is_there_or_left_out_with_a_reason() -> None:
    entries = {f"{family}{n + 1}" for family, count in ENTRIES.items() for n in range(count)}
    words = {bug.id for bug in bugs.BUGS if bug.family == "not in the catalogue"}
    assert {bug.id for bug in bugs.BUGS} - words == entries - LEFT_OUT
    assert {id for id, _ in bugs.LEFT_OUT} == LEFT_OUT
    assert all(reason for _, reason in bugs.LEFT_OUT)


def test_entries_are_well_formed() -> None:
    assert len(set(bugs.names())) == len(bugs.BUGS)
    for bug in bugs.BUGS:
        assert re.fullmatch(r"[A-G]\d+|[a-z0-9]+(-[a-z0-9]+)*", bug.id)
        assert all((bug.name, bug.symptom, bug.formula))
        assert len(bug.name) <= 110
        assert not bug.name.endswith(".")
        for link in bug.links:
            assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+/(issues/\d+|commit/[0-9a-f]{8})", link)
        assert len(set(bug.links)) == len(bug.links)
    families = {bug.id[0]: bug.family for bug in bugs.BUGS if bug.id[0].isupper()}
    assert all(bug.family == families[bug.id[0]] for bug in bugs.BUGS if bug.id[0].isupper())


def applicable(p: bugs.Problem) -> set[str]:
    """Names of the bugs that a problem has the feature of."""
    return {bug.id for bug in bugs.BUGS if bug.applies(p)}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        (
            "square",
            "A1 A2 A3 A5 A6 A7 A9 A10 A11 A14 A18 B3 B6 B7 C2 C3 C9 C11 D3 D8 D12 E1 E3 E8 F3 F9 F13 G8 no-bias",
        ),
        ("nothing", "A1 A4 A8 A12 A13 A16 A17 B5 B8 B9 no-mask E6 E5 E13 C7 C8"),
        ("default scale", "C2 F3 C6 B4 B10 stale-call"),
        ("latent", "D1 D8 E10"),
        ("many queries", "D12 A1 D14 A18"),
        ("sinks, empty rows", "B3 B6 B7 E7 F4"),
        ("prefix", "A13 A8 A17 A9"),
        ("documents", "A8 A12 A13 A17"),
    ],
)
def test_where_a_bug_would_change_nothing_it_does_not_apply(name: str, absent: str) -> None:
    assert applicable(PROBLEMS[name]) & set(absent.split()) == set()


def test_one_tile_and_one_split_have_nothing_to_merge() -> None:
    one = made(lengths=(5, 16), tile_k=16, splits=1)
    merging = {"B1", "B2", "B5", "B13", "B17", "B19", "F1", "F5", "F6", "F7", "last-tile", "A10", "A14"}
    assert applicable(one) & merging == set()
    assert {"B2", "B13", "F1", "F7"} <= applicable(replace(one, tile_k=8, splits=2))


def test_a_choice_is_what_is_known_or_all_that_is_usual() -> None:
    (bug,) = (bug for bug in bugs.get("B2") if bug.name.startswith("the output"))
    problem = made(lengths=(4, 200))
    assert [x.label for x in bug.variants(problem)] == [f"key tiles of {n}" for n in (16, 32, 64, 128)]
    assert [x.label for x in bug.variants(replace(problem, tile_k=48))] == ["key tiles of 48"]


def test_a_bug_that_does_not_apply_is_not_computed() -> None:
    (bug,) = bugs.get("F9")
    with pytest.raises(ValueError, match=r"^bugs\.Bug\.apply: problem must have what F9 needs, "):
        bug.apply(PROBLEMS["nothing"])


def test_an_entry_is_found_and_described() -> None:
    assert [bug.id for bug in bugs.get("A1")] == ["A1", "A1"]
    assert bugs.describe("A1").count("\n\n") == 1
    assert "https://github.com/Dao-AILab/flash-attention/issues/282" in bugs.describe("A1")
    with pytest.raises(ValueError, match=r"^bugs\.get: id must be one of A1, .*; got 'Z1'\.$"):
        bugs.get("Z1")


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_axes_may_lead(batch: tuple[int, ...]) -> None:
    q, k, v = (normal((*batch, h, n, 8), "float64") for h, n in ((4, 5), (2, 7), (2, 7)))
    keep = cells((*batch, 4, 5, 7))
    got = run(bugs.problem(q, k, v, mask=keep), {})
    right = ra.attention(q, k, v, mask=keep, return_lse=True)
    assert relative(got.output.reshape(right.output.shape), right.output) <= 1e-12
    assert relative(got.lse.reshape(right.lse.shape), right.lse) <= 1e-12


def test_a_problem_is_made_from_what_a_kernel_was_run_on() -> None:
    p = PROBLEMS["causal sequences"]
    padding = np.arange(70) >= KEYS[:, None]
    key = np.where(padding[:, None, :, None], np.nan, p.key)
    value = np.where(padding[:, None, :, None], np.nan, p.value)
    inputs = Inputs(p.query, key, value, {"is_causal": True}, batch=Batch(QUERIES, KEYS))
    assert changed(run(bugs.Problem.of_inputs(inputs), {}), run(p, {})) == 0
    dense = Inputs(p.query, p.key, p.value, {"scale": 0.3})
    assert (
        changed(
            run(bugs.Problem.of_inputs(dense), {}), run(replace(p, mask=None, queries=None, keys=None, scale=0.3), {})
        )
        == 0
    )


def test_operands_of_narrow_dtypes_are_read_exactly() -> None:
    q, k, v = (normal((1, 2, 9, 8), "float32", seed) for seed in range(3))
    got = run(bugs.problem(q, k, v), {})
    right = ra.attention(*(x.astype(np.float64) for x in (q, k, v)))
    assert relative(got.output, right) <= 1e-12


def test_masks_are_edited_inside_of_others() -> None:
    one, two = masks.window(4, 0, 3), masks.lengths(5)
    inside = masks.documents([0] * 8, [0] * 8, inside=one)
    for mask, wider in (
        (~one & two, ~masks.window(5, 0, 3) & two),
        (two | one, two | masks.window(5, 0, 3)),
        (inside, masks.documents([0] * 8, [0] * 8, inside=masks.window(5, 0, 3))),
    ):
        assert repr(mask_edits.moved(mask, left=1)) == repr(wider)
    for mask in (two, ~two, two & masks.prefix(3), masks.causal(), None):
        assert mask_edits.moved(mask, left=1) is mask
    assert mask_edits.anchors(inside | masks.prefix(2, "upper_left")) == ["upper_left", 3]


@pytest.mark.parametrize("name", ["refattn.testing.bugs", "refattn.testing.bugs.problems"])
def test_examples_are_right(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
