"""Where kernels read packed and paged operands: nothing of right ones, and of each mistake which cells are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refattn import layouts, masks
from refattn.testing import KernelSpec
from refattn.testing.probes import Readings, probe
from tests.testing.stored_kernels import paged, ragged

CAUSAL = {"mask": masks.causal(anchor="lower_right")}
PAGES = ("block_table", "seqused_k", "cu_seqlens_q")
PACKED = ("cu_seqlens_q", "cu_seqlens_k")


def read(kernel: Any, accepts: tuple[str, ...] = PAGES, *, quick: bool = True, **layout: Any) -> Readings:
    """The readings of a kernel that takes tables."""
    spec = KernelSpec(
        kernel,
        computes=CAUSAL,
        accepts=accepts,
        returns=("output", "lse"),
        layout=layouts.Layout(page_size=16, **layout),
        batch=(2,),
        dims=(16,),
        lengths=((20, 75), (33, 50)),
    )
    return probe(spec, quick=quick)


@pytest.mark.parametrize(
    ("kernel", "accepts", "layout"),
    [
        (paged(), PAGES, {}),
        (paged(order="hnd"), PAGES, {"pages": "hnd"}),
        (paged(), ("block_table", "seqused_k"), {"order": "blhd"}),
        (ragged(), PACKED, {}),
    ],
)
def test_nothing_is_read_of_right_kernels(kernel: Any, accepts: tuple[str, ...], layout: dict[str, Any]) -> None:
    readings = read(kernel, accepts, quick=layout == {}, **layout)
    assert readings.explanations == ()
    assert readings.passed


@pytest.mark.parametrize(
    ("kernel", "accepts", "bug", "name"),
    [
        (
            paged("offset"),
            PAGES,
            "A3",
            "the mask's offset is S - L = 17 of the padded lengths, the same for all sequences",
        ),
        (
            paged("page"),
            PAGES,
            "E1",
            "of each 2 pages the first is read 2 times: the page is not advanced within a tile",
        ),
        (
            paged("behind"),
            PAGES,
            "E2",
            "block_table is read one entry past a sequence's last, in the place of that",
        ),
        (
            paged("tail"),
            PAGES,
            "E3",
            "the tail of each last page takes part: its bound is in pages, not in tokens, and masks are anchored there",
        ),
        (paged("empty"), PAGES, "E5", "sequence 15, which has no keys, gives other than zeros"),
        (
            paged("zero times tail"),
            PAGES,
            "B8",
            "NaN in cells that hold no token reaches the output from the values, though their weight is 0",
        ),
        (paged("table"), PAGES, None, "block_table is not looked at: page n of a sequence is page n of the pool"),
        (
            ragged("offset"),
            PACKED,
            "A3",
            "the mask's offset is S - L = 17 of the padded lengths, the same for all sequences",
        ),
        (
            ragged("padded"),
            PACKED,
            "E6",
            "the queries of sequence b are read from row 33 b on, as if they were padded",
        ),
        (ragged("empty"), PACKED, "E5", "sequence 6, which has no keys, gives other than zeros"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_mistake_is_named(kernel: Any, accepts: tuple[str, ...], bug: str | None, name: str) -> None:
    readings = read(kernel, accepts)
    first = readings.explanations[0]
    assert first.name == name
    assert first.bug == bug
    assert readings.skipped == (("all others", "keys or values are read from the wrong places of memory"),)


def test_one_token_of_one_sequence_is_located_by_page_and_offset() -> None:
    tables: list[np.ndarray] = []

    def kernel(query: Any, key: Any, value: Any, block_table: Any, seqused_k: Any, cu_seqlens_q: Any) -> Any:
        tables.append(block_table)
        value = value.copy()
        value[block_table[1, 1], 5] = value[block_table[0, 0], 3]
        return paged()(query, key, value, block_table, seqused_k, cu_seqlens_q)

    first = read(kernel).explanations[0]
    own, other = tables[0][1, 1], tables[0][0, 0]
    assert first.name == f"sequence 1: token 21 is read from page {other} offset 3 instead of page {own} offset 5"


def test_a_kernel_that_raises_on_tables() -> None:
    def kernel(query: Any, key: Any, value: Any, **tables: Any) -> Any:
        raise IndexError("page out of range")

    assert read(kernel).explanations[0].name.startswith("raised IndexError: page out of range")
