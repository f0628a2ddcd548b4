"""The whole text of every message about arguments that only tiled attention, its cache and online_softmax have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.methods.flash import forms
from tests.messages import ANY, ONE, Case, K, Q, V, assert_raises, attend, strict

POOL = np.zeros((5, 4, 2, 8))
PACKED = np.zeros((9, 2, 8))
TABLE = np.array([[2, 0], [4, 1]])


def decode(key: Any = POOL, value: Any = POOL, query: Any = Q, **arguments: Any) -> Any:
    """A call of flash_decode on pages, where no tables are given."""
    given = arguments or {"block_table": TABLE, "seqused_k": [3, 8]}
    return ra.flash_decode(query, key, value, **given)


FUNCTIONS = ("flash_attention", "flash_attention_gradient", "flash_decode")
TILED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tile_q": 0}, ValueError, "tile_q must be at least 1; got 0."),
    ({"tile_k": True}, TypeError, "tile_k must be an integer; got bool."),
    ({"tile_k": 1.5}, TypeError, "tile_k must be an integer; got float."),
]
THREADS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"threads": 0}, ValueError, "threads must be at least 1; got 0."),
    (
        {"threads": 2},
        ValueError,
        'threads must be None without implementation="numba": the arrays\' library chooses them; got 2.',
    ),
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("arguments", "error", "text"), [*TILED, *THREADS], ids=lambda x: str(x)[:20])
def test_tiles_and_threads(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    if set(arguments) <= set(getattr(ra, function).capabilities.arguments):
        assert_raises(lambda: attend(function, **arguments), error, f"{function}: {text}")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_kernel_on_another_library(function: str) -> None:
    more = {"grad_output": strict(np.zeros((2, 4, 3, 6)))} if function.endswith("gradient") else {}
    assert_raises(
        lambda: attend(function, *map(strict, (Q, K, V)), implementation="numba", **more),
        ra.ImplementationError,
        f'{function}: implementation="numba" serves NumPy arrays; got array_api_strict. Pass implementation=None.',
    )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_kernel_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def missing(name: str) -> Any:
        assert name == "refattn.methods.flash.kernel_numba"
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(forms, "import_module", missing)
    assert_raises(
        lambda: attend(function, implementation="numba"),
        ra.ImplementationError,
        f'{function}: implementation="numba" needs numba, which is not installed: pip install "refattn[numba]".',
    )


@pytest.mark.parametrize(
    ("function", "choices"),
    [
        ("flash_attention", "'reference', 'flash_2022', 'numba'"),
        ("flash_attention_gradient", "'reference', 'numba'"),
        ("flash_decode", "'reference', 'numba'"),
    ],
)
def test_a_form_that_does_not_exist(function: str, choices: str) -> None:
    assert_raises(
        lambda: attend(function, implementation="cuda"),
        ra.ImplementationError,
        f"{function}: implementation must be one of {choices}, or None for 'reference'; got 'cuda'.",
    )


PAGES: list[Case] = [
    ("no parts", lambda: attend("flash_decode", splits=0), ValueError, "splits must be at least 1; got 0."),
    (
        "pages in no order",
        lambda: decode(block_table=TABLE, seqused_k=[3, 8], pages="dnh"),
        ValueError,
        "pages must be one of 'nhd', 'hnd'; got 'dnh'.",
    ),
    (
        "a query of other axes",
        lambda: decode(query=Q[0]),
        ValueError,
        "query must have 4 axes (B, H, L, E) where keys come with tables; got (4, 3, 8).",
    ),
    ("a key that is a list", lambda: decode([[0.0]]), TypeError, f"key {ANY} list."),
    (
        "a table without lengths",
        lambda: decode(block_table=TABLE),
        ValueError,
        "block_table must come with the numbers of keys; got neither seqused_k nor cu_seqlens_k.",
    ),
    (
        "a table of other sequences",
        lambda: decode(block_table=TABLE[:1], seqused_k=[3, 8]),
        ValueError,
        "block_table must have shape (B, max_pages) with B=2; got (1, 2).",
    ),
    (
        "lengths of other sequences",
        lambda: decode(block_table=TABLE, seqused_k=[3]),
        ValueError,
        "seqused_k must have shape (B,)=(2,); got (1,).",
    ),
    (
        "a negative length",
        lambda: decode(block_table=TABLE, seqused_k=[3, -1]),
        ValueError,
        "seqused_k must not be negative; got -1 for sequence 1.",
    ),
    (
        "lengths that are no integers",
        lambda: decode(block_table=TABLE, seqused_k=[3.0, 1.0]),
        TypeError,
        "seqused_k must be an integer array of shape (B,); got float64.",
    ),
    (
        "a page outside the pool",
        lambda: decode(POOL[:4], block_table=TABLE, seqused_k=[3, 8]),
        ValueError,
        "block_table must lie in the pool of P=4 pages where a page is needed; got 4 for page 0 of sequence 1.",
    ),
    (
        "a value's page outside its pool",
        lambda: decode(POOL, POOL[:4], block_table=TABLE, seqused_k=[3, 8]),
        ValueError,
        "block_table must lie in the pool of P=4 pages where a page is needed; got 4 for page 0 of sequence 1.",
    ),
    (
        "more keys than pages",
        lambda: decode(block_table=TABLE, seqused_k=[3, 9]),
        ValueError,
        "seqused_k must fit in the pages of block_table, 2 pages of 4; got 9 for sequence 1.",
    ),
    (
        "a pool without an axis",
        lambda: decode(POOL[0]),
        ValueError,
        "key must have pages, (P, page_size, Hk, E); got (4, 2, 8).",
    ),
    (
        "a pool of empty pages",
        lambda: decode(POOL, POOL[:, :0]),
        ValueError,
        "value must have pages, (P, page_size, Hk, E); got (5, 0, 2, 8).",
    ),
    (
        "pages of two sizes",
        lambda: decode(POOL, POOL[:, :3]),
        ValueError,
        "key and value must have pages of one size; got 4 and 3.",
    ),
    (
        "packed keys with an axis too many",
        lambda: decode(K, V, cu_seqlens_k=[0, 4, 9]),
        ValueError,
        "key must have 3 axes (T, Hk, E) beside cu_seqlens_k; got (2, 2, 5, 8).",
    ),
    (
        "offsets of other sequences",
        lambda: decode(PACKED, PACKED, cu_seqlens_k=[0, 9]),
        ValueError,
        "cu_seqlens_k must have shape (B + 1,)=(3,); got (2,).",
    ),
    (
        "offsets that end early",
        lambda: decode(PACKED, PACKED, cu_seqlens_k=[0, 4, 8]),
        ValueError,
        "cu_seqlens_k must end at the number of tokens T=9; got 8.",
    ),
    (
        "values of fewer tokens",
        lambda: decode(PACKED, PACKED[:8], cu_seqlens_k=[0, 4, 9]),
        ValueError,
        "cu_seqlens_k must end at the number of tokens T=8; got 9.",
    ),
    (
        "more keys than a sequence has",
        lambda: decode(PACKED, PACKED, cu_seqlens_k=[0, 4, 9], seqused_k=[4, 6]),
        ValueError,
        "seqused_k must not be more than the sequence has; got 6 of 5 keys of sequence 1.",
    ),
    (
        "a padded cache of other sequences",
        lambda: decode(K[:1], V, seqused_k=[1, 2]),
        ValueError,
        "key must have 4 axes (B, Hk, S, E) beside seqused_k, with B=2; got (1, 2, 5, 8).",
    ),
    (
        "more keys than a padded cache has",
        lambda: decode(K, V, seqused_k=[1, 6]),
        ValueError,
        "seqused_k must lie from 0 to S=5; got 6 for sequence 1.",
    ),
    (
        "a mask of other lengths",
        lambda: decode(K, V, seqused_k=[1, 4], mask=np.ones((3, 5), bool)),
        ValueError,
        "mask must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 4); got (3, 5).",
    ),
    (
        "a mask of other sequences",
        lambda: decode(K, V, seqused_k=[1, 4], mask=masks.lengths([1, 2, 3])),
        ValueError,
        "mask must have at least 2 axes and broadcast to (..., H, L, S)=(2, 4, 3, 4); got (3, 1, 1, 1).",
    ),
    (
        "a mask that is no mask",
        lambda: decode(K, V, seqused_k=[1, 4], mask="causal"),
        TypeError,
        "mask must be a Mask or a boolean array; got str.",
    ),
    (
        "pages of other heads",
        lambda: decode(POOL, POOL[:, :, :1]),
        ValueError,
        "key and value must have the same number of heads Hk (axis -3); got key (1, 2, 3, 8) and value (1, 1, 3, 8).",
    ),
    (
        "pages of another library",
        lambda: decode(strict(POOL), strict(POOL)),
        TypeError,
        (
            "query and key must come from one array library; got query from numpy and key from array_api_strict. Convert "
            "one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
]


@pytest.mark.parametrize("case", PAGES, ids=[x[0] for x in PAGES])
def test_flash_decode(case: Case) -> None:
    _, call, error, text = case
    assert_raises(call, error, f"flash_decode: {text}")


ONLINE: list[Case] = [
    ("a list", lambda: ra.online_softmax([1.0]), TypeError, f"scores {ANY} list."),
    (
        "integers",
        lambda: ra.online_softmax(np.ones(3, int)),
        TypeError,
        "scores must have a real floating-point dtype; got int64.",
    ),
    (
        "no axis",
        lambda: ra.online_softmax(np.array(1.0)),
        ValueError,
        "scores must have an axis S (axis -1); got ().",
    ),
    ("a tile of 0", lambda: ra.online_softmax(ONE, tile=0), ValueError, "tile must be at least 1; got 0."),
    (
        "a tile that is no integer",
        lambda: ra.online_softmax(ONE, tile=math.inf),
        TypeError,
        "tile must be an integer; got float.",
    ),
    (
        "an integer dtype",
        lambda: ra.online_softmax(ONE, dtype="int8"),
        TypeError,
        "dtype must be a real floating-point dtype; got int8.",
    ),
    (
        "a dtype that strict lacks",
        lambda: ra.online_softmax(strict(ONE), dtype="float16"),
        TypeError,
        "dtype must be one that array_api_strict has; got float16.",
    ),
    (
        "a form that does not exist",
        lambda: ra.online_softmax(ONE, implementation="numba"),
        ra.ImplementationError,
        "implementation must be one of 'reference', or None for 'reference'; got 'numba'.",
    ),
]


@pytest.mark.parametrize("case", ONLINE, ids=[x[0] for x in ONLINE])
def test_online_softmax(case: Case) -> None:
    _, call, error, text = case
    assert_raises(call, error, f"online_softmax: {text}")
