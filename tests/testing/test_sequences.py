"""Kernels of packed, paged and padded operands: right ones pass, wrong ones are refused, and the mistake is named."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import layouts, masks
from refattn.testing import KernelSpec, check_kernel
from refattn.testing.inputs import problems
from refattn.testing.spec import LAWS, TABLES
from refattn.testing.stored import check_file
from tests.messages import assert_raises
from tests.testing.stored_kernels import PAGED, RAGGED, paged, ragged

pytestmark = pytest.mark.usefixtures("without_probes", "without_fit")

LOWER = {"mask": masks.causal(anchor="lower_right")}
LENGTHS = ((1, 33), (16, 16), (31, 65))
FIELDS: dict[str, Any] = {
    "computes": LOWER,
    "returns": ("output", "lse"),
    "dims": (8, (12, 4)),
    "heads": (2, 1),
    "lengths": LENGTHS,
}
PACKED = ("cu_seqlens_q", "cu_seqlens_k")
VLLM = ("cu_seqlens_q", "block_table", "seqused_k")
CACHE = ("block_table", "seqused_k")


def outcomes(report: ra.testing.Report) -> dict[str, str]:
    """Outcome of each check that was run."""
    return {check.name: check.outcome for check in report.checks if check.outcome != "not run"}


@pytest.mark.parametrize(
    ("kernel", "accepts", "layout"),
    [
        (ragged(), PACKED, "bhld"),
        (paged(), VLLM, "bhld"),
        (paged(), CACHE, "blhd"),
        (paged(page_size=7, order="hnd"), CACHE, layouts.Layout("blhd", page_size=7, pages="hnd")),
        (ragged(), PACKED, layouts.Layout(margin=2)),
    ],
)
def test_right_kernels_pass(kernel: Any, accepts: tuple[str, ...], layout: Any) -> None:
    report = check_kernel(KernelSpec(kernel, accepts=accepts, layout=layout, **FIELDS))
    assert report.passed, report.text
    assert outcomes(report) == dict.fromkeys((*LAWS, *accepts), "right")


NAMED = {
    "ragged_offset": "the mask's offset is S - L = ",
    "ragged_padded": "the queries of sequence b are read from row ",
    "ragged_empty": "wrong are exactly the sequences without keys",
    "paged_offset": "the mask's offset is S - L = ",
    "paged_page": "of each two pages of values the first is read twice",
    "paged_tail": "NaN is read from the tail of a last page: with zeros there the result is finite and wrong",
    "paged_zero_times_tail": "NaN is read from the tail of a last page: with zeros there the result is right",
    "paged_empty": "wrong are exactly the sequences without keys",
    "paged_table": "NaN is read from a page of no sequence",
}
WRONG = [(ragged(mistake), PACKED, "bhld") for mistake in RAGGED]
WRONG += [(paged(mistake), accepts, "blhd") for mistake in PAGED for accepts in (VLLM, CACHE)]


@pytest.mark.parametrize(
    ("kernel", "accepts", "layout"),
    [
        pytest.param(*x, id=f"{x[0].__name__}-{len(x[1])}", marks=[pytest.mark.slow] * (x[1] == CACHE))
        for n, x in enumerate(WRONG)
    ],
)
def test_wrong_kernels_are_refused_and_the_mistake_is_named(kernel: Any, accepts: tuple[str, ...], layout: str) -> None:
    report = check_kernel(KernelSpec(kernel, accepts=accepts, layout=layout, **FIELDS | {"dims": (8,)}), quick=True)
    if kernel.__name__ == "paged_offset" and accepts == CACHE:
        assert not report.passed
        return  # all sequences have as many queries: the offset is that of the longest cache, and what it shows is less
    assert not report.passed
    assert any(NAMED[kernel.__name__] in finding.text for finding in report.findings), report.text
    assert all(len(finding.problem["sequences"]) > 2 for finding in report.findings)
    assert "sequences (L, S) (" in report.text


def legal() -> list[tuple[str, ...]]:
    """Every set of tables that a kernel may take."""
    every = [names for n in range(1, 5) for names in combinations(TABLES, n)]
    return [names for names in every if "block_table" not in names or {"seqused_k", "cu_seqlens_k"} & set(names)]


@pytest.mark.parametrize(
    "accepts",
    [pytest.param(x, id="+".join(x), marks=[pytest.mark.slow] * (n % 3 == 1)) for n, x in enumerate(legal())],
)
def test_every_set_of_tables_runs(accepts: tuple[str, ...]) -> None:
    layout = layouts.Layout("lbhd", page_size=5, pages="hnd", lse="th", margin=1)
    seen: list[dict[str, Any]] = []

    def kernel(query: Any, key: Any, value: Any, **tables: Any) -> Any:
        seen.append({"query": query, "key": key, "value": value, **tables})
        return unstored(layout, query, key, value, **tables)

    fields = {**FIELDS, "lengths": ((5, 12), (3, 3)), "dims": ((4, 2),)}
    report = check_kernel(KernelSpec(kernel, accepts=accepts, layout=layout, **fields), quick=True)
    assert report.passed, report.text
    assert outcomes(report) == dict.fromkeys((*LAWS, *(name for name in TABLES if name in accepts)), "right") | (
        dict.fromkeys(LAWS, "right")
    )
    assert all(call[name].dtype == np.int32 and call[name].flags.c_contiguous for call in seen for name in accepts)
    assert all(not call[name].flags.c_contiguous for call in seen for name in ("key", "value"))
    if "seqused_k" in accepts:
        assert any(np.isnan(call["key"]).any() and np.isnan(call["value"]).any() for call in seen)
        assert any((call["seqused_k"] == 0).any() for call in seen)
    if "cu_seqlens_q" in accepts:
        assert any((np.diff(call["cu_seqlens_q"]) == 0).any() for call in seen)
    assert not any(np.isnan(call["query"]).any() for call in seen)


def unstored(layout: layouts.Layout, query: Any, key: Any, value: Any, **tables: Any) -> tuple[Any, Any]:
    """Right attention, causal and lower right, of operands however they are stored."""
    cu_q, cu_k, used = (tables.get(name) for name in ("cu_seqlens_q", "cu_seqlens_k", "seqused_k"))
    packed = query if cu_q is not None else np.moveaxis(query, 0, 1).reshape(-1, *query.shape[2:])
    L, B = query.shape[:2] if cu_q is None else (None, len(cu_q) - 1)
    first = cu_q if cu_q is not None else np.arange(B + 1) * L
    output = np.zeros((*packed.shape[:2], value.shape[-1]), np.float32)
    lse = np.zeros(packed.shape[:2], np.float32)
    for b in range(B):
        k, v = (sequence(layout, b, x, cu_k, used, tables.get("block_table")) for x in (key, value))
        q = packed[first[b] : first[b + 1]]
        result = ra.attention(*(np.swapaxes(x, 0, 1) for x in (q, k, v)), **LOWER, return_lse=True)
        output[first[b] : first[b + 1]] = np.swapaxes(result.output, 0, 1)
        lse[first[b] : first[b + 1]] = result.lse.T
    if cu_q is not None:
        return output, lse
    return np.moveaxis(output.reshape(B, L, *output.shape[1:]), 0, 1), np.moveaxis(lse.reshape(B, L, -1), 1, 2)


def sequence(layout: layouts.Layout, b: int, x: Any, offsets: Any, used: Any, table: Any) -> np.ndarray:
    """The keys or values (S, Hk, E) of one sequence."""
    if table is not None:
        n = used[b] if used is not None else offsets[b + 1] - offsets[b]
        rows = [x[table[b, i // layout.page_size], :, i % layout.page_size] for i in range(n)]
        return np.stack(rows) if rows else np.zeros((0, x.shape[1], x.shape[3]), x.dtype)
    if offsets is not None:
        return x[offsets[b] :][: used[b] if used is not None else offsets[b + 1] - offsets[b]]
    return x[: len(x) if used is None else used[b], b]


def drawn(accepts: tuple[str, ...], *, quick: bool = False, seed: int = 0, **fields: Any) -> list[problems.Problem]:
    """The problems of a kernel."""
    spec = KernelSpec(ragged(), accepts=accepts, **{**FIELDS, **fields})
    return [item for item in problems.plan(spec, quick=quick, seed=seed) if isinstance(item, problems.Problem)]


@pytest.mark.parametrize("quick", [False, True])
def test_each_table_is_checked_by_what_it_is_for(quick: bool) -> None:
    by_check: dict[str, list[tuple[int, int]]] = {}
    for name in (PACKED, VLLM, CACHE):
        for item in drawn(name, quick=quick):
            by_check.setdefault(f"{item.check} {len(name)}", []).extend(item.sequences)
            queries = [l for l, _ in item.sequences]
            if item.check == "cu_seqlens_q":
                assert queries[0] == queries[-1] == 0 == min(queries[1:-1])
            if name == CACHE:
                assert len(set(queries)) == 1
            if item.check in LAWS:
                assert len(item.sequences) == item.batch + 2
                assert item.lengths in item.sequences
                assert all(l > 0 and s > 0 for l, s in item.sequences)
    for name in ("cu_seqlens_k 2", "seqused_k 3", "seqused_k 2"):
        assert any(s == 0 < l for l, s in by_check[name])
    assert any(s == 1 for _, s in by_check["cu_seqlens_k 2"])
    assert {s % 16 for _, s in by_check["block_table 3"]} >= {15, 0, 1}
    assert {s % 16 for _, s in by_check["block_table 2"]} >= {15, 0, 1}


def test_sequences_stay_within_what_the_lengths_show() -> None:
    for accepts in (PACKED, VLLM, CACHE):
        for item in drawn(accepts, lengths=((1, 40), (1, 7))):
            assert {l for l, _ in item.sequences} <= {0, 1}
        for item in drawn(accepts, lengths=((16, 40), (3, 20))):
            assert all(l <= s for l, s in item.sequences if s > 0)
    for item in drawn(PACKED, lengths=((40, 40), (17, 17))):
        assert all(l == s for l, s in item.sequences)


def test_problems_are_the_same_for_the_same_seed() -> None:
    one, two, other = (drawn(VLLM, quick=True, seed=seed) for seed in (3, 3, 4))
    assert one == two
    assert [item.sequences for item in one] != [item.sequences for item in other]
    spec = KernelSpec(paged("offset"), accepts=VLLM, **FIELDS)
    assert check_kernel(spec, quick=True, seed=3).to_json() == check_kernel(spec, quick=True, seed=3).to_json()


def test_two_sequences_share_a_page_and_no_page_is_read_past_the_end() -> None:
    tables, shared = [], 0

    def kernel(query: Any, key: Any, value: Any, **named: Any) -> Any:
        nonlocal shared
        table, used = named["block_table"], named["seqused_k"]
        needed = np.arange(table.shape[1]) < -(-used // 16)[:, None]
        shared += len(np.unique(table[needed])) < needed.sum()
        beyond = np.unique(table[~needed])
        assert np.isnan(key[beyond]).all()
        assert not np.isin(beyond, table[needed]).any()
        tables.append(table)
        return paged()(query, key, value, **named)

    report = check_kernel(KernelSpec(kernel, accepts=VLLM, **FIELDS), quick=True)
    assert report.passed, report.text
    assert shared == next(check.problems for check in report.checks if check.name == "block_table")
    assert any((np.diff(table[table[:, 0] >= 0], axis=1) != 1).any() for table in tables)


def test_arguments_are_varied_beside_tables() -> None:
    varied: set[str] = set()

    def kernel(query: Any, key: Any, value: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, **given: Any) -> Any:
        varied.update(name for name, x in given.items() if x is not None and x is not False)
        output = np.zeros((*query.shape[:2], value.shape[-1]), np.float32)
        for b, first in enumerate(cu_seqlens_q[:-1]):
            at, keys = slice(first, cu_seqlens_q[b + 1]), slice(cu_seqlens_k[b], cu_seqlens_k[b + 1])
            arrays = (np.swapaxes(x, 0, 1) for x in (query[at], key[keys], value[keys]))
            output[at] = np.swapaxes(ra.attention(*arrays, **given), 0, 1)
        return output

    accepts = (*PACKED, "is_causal", "scale", "softcap", "sinks", "mask", "bias")
    report = check_kernel(KernelSpec(kernel, accepts=accepts, dims=(8,), lengths=((3, 5), (4, 4))), quick=True)
    assert report.passed, report.text
    assert varied == {"is_causal", "scale", "softcap", "sinks"}
    reasons = {check.name: check.reason for check in report.checks if check.outcome == "not run"}
    for name in ("mask", "bias", "empty_rows"):
        assert reasons[name] == "packed sequences have no array (B, H, L, S)"


def test_what_a_kernel_computes_may_depend_on_the_lengths_of_each_sequence() -> None:
    spec = KernelSpec(
        ragged(), accepts=PACKED, **FIELDS | {"computes": lambda L, S: {"mask": masks.causal(anchor=S - L)}}
    )
    report = check_kernel(spec, quick=True)
    assert report.passed, report.text


def test_masks_and_biases_of_padded_sequences_are_cut() -> None:
    def kernel(query: Any, key: Any, value: Any, seqused_k: Any, mask: Any, bias: Any) -> Any:
        output = np.zeros((*query.shape[:3], value.shape[-1]), np.float32)
        for b, n in enumerate(seqused_k):
            own = {name: x[b, :, :, :n] for name, x in (("mask", mask), ("bias", bias)) if x is not None}
            output[b] = ra.attention(query[b], key[b, :, :n], value[b, :, :n], **own)
        return output

    fields: dict[str, Any] = {"accepts": ("seqused_k", "mask", "bias"), "dims": (8,), "lengths": ((3, 9), (12, 7))}
    report = check_kernel(KernelSpec(kernel, **fields), quick=True)
    assert report.passed, report.text
    assert set(outcomes(report)) == {*LAWS, "mask", "bias", "empty_rows", "seqused_k"}


def test_the_capture_runs_packed() -> None:
    report = check_kernel(
        KernelSpec(ragged(), accepts=PACKED, **{**FIELDS, "dims": (64,), "lengths": ((8, 8),)}), quick=True
    )
    assert report.passed, report.text
    assert outcomes(report)["smollm2"] == "right"


def test_a_kernel_that_takes_strides_from_shapes_is_refused() -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        flat = [np.lib.stride_tricks.as_strided(x, x.shape, np.zeros(x.shape, x.dtype).strides) for x in (key, value)]
        return ra.attention(query, *flat, **LOWER)

    fields = {**FIELDS, "returns": ("output",)}
    assert check_kernel(KernelSpec(kernel, **fields), quick=True).passed
    assert not check_kernel(KernelSpec(kernel, layout=layouts.Layout(margin=1), **fields), quick=True).passed


def test_a_wrong_shape_and_a_changed_table_are_findings() -> None:
    def turned(*arrays: Any, **tables: Any) -> Any:
        output, lse = ragged()(*arrays, **tables)
        return output, lse.T

    fields = FIELDS | {"lengths": ((16, 33), (31, 65))}
    (finding,) = check_kernel(KernelSpec(turned, accepts=PACKED, **fields), quick=True).findings
    assert finding.text.startswith("returned lse of shape (")
    spec = KernelSpec(turned, accepts=PACKED, layout=layouts.Layout(lse="th"), **fields)
    assert check_kernel(spec, quick=True).passed

    def scribbles(*arrays: Any, **tables: Any) -> Any:
        result = ragged()(*arrays, **tables)
        tables["cu_seqlens_k"][-1] += 1
        return result

    (finding,) = check_kernel(KernelSpec(scribbles, accepts=PACKED, **fields), quick=True).findings
    assert finding.text == "changed its inputs: cu_seqlens_k"


def test_torch_kernels_get_torch_tables() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def kernel(query: Any, key: Any, value: Any, cu_seqlens_q: Any, cu_seqlens_k: Any) -> Any:
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        output = torch.zeros(*query.shape[:2], value.shape[-1], dtype=query.dtype)
        for b in range(len(cu_seqlens_q) - 1):
            i, j, n, m = (int(x[b + c]) for x in (cu_seqlens_q, cu_seqlens_k) for c in (0, 1))
            if i < j and n < m:
                arrays = [x.transpose(0, 1)[None] for x in (query[i:j], key[n:m], value[n:m])]
                output[i:j] = torch.nn.functional.scaled_dot_product_attention(*arrays, enable_gqa=True)[
                    0
                ].mT.mT.transpose(0, 1)
        return output

    fields: dict[str, Any] = {"dims": (16,), "lengths": ((3, 9), (16, 16)), "accepts": PACKED, "arrays": "torch"}
    report = check_kernel(KernelSpec(kernel, contract=ra.contract.eager("float32"), **fields), quick=True)
    assert report.passed, report.text


def test_shares_of_rows_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refattn.testing.running.MOST_WORK", 0)
    monkeypatch.setattr("refattn.testing.verdict.sequences.SAMPLE", 16)
    report = check_kernel(KernelSpec(ragged("empty"), accepts=PACKED, **FIELDS), quick=True)
    assert not report.passed
    assert " of " in report.findings[0].text.splitlines()[1]
    assert math.isinf(next(check.budget_used for check in report.checks if check.outcome == "WRONG"))


def test_a_file_of_inputs_is_stored_as_the_kernel_takes_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal((2, heads, n, 8), dtype=np.float32)
        for name, heads, n in (("query", 2, 5), ("key", 1, 40), ("value", 1, 40))
    }
    path = str(tmp_path / "inputs.npz")
    np.savez(path, **arrays)
    for mistake, passed in ((None, True), ("page", False)):
        assert check_file(KernelSpec(paged(mistake), accepts=VLLM, **FIELDS), path).passed is passed
    np.savez(path, **{name: x[0] for name, x in arrays.items()})
    text = (
        f"check: query in {path} must have 4 axes (B, H, L, E) for a kernel that accepts block_table, cu_seqlens_q, "
        "seqused_k; got (2, 5, 8)."
    )
    assert_raises(lambda: check_file(KernelSpec(paged(), accepts=VLLM, **FIELDS), path), ValueError, text)
