"""What the probes read out of a kernel: nothing of any right one, and of each mistake what it is and where."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import biases, contract, masks
from refattn.testing import KernelSpec
from refattn.testing.probes import probe
from refattn.testing.probes.tells import TELLS
from tests.namespaces import numpy_dtype
from tests.testing.probe_kernels import TiledKernel

FORMATS = ("float32", "bfloat16", "float16")
EVERY = ("mask", "bias", "is_causal", "scale", "softcap", "sinks")
OWN = TiledKernel.__dataclass_fields__
CAUSAL = {"causal": True, "computes": {"mask": masks.causal(anchor="lower_right")}}
WINDOW = {"causal": True, "window": 40, "computes": {"mask": masks.window(40, 0, anchor="lower_right")}}


def spec_of(dtype: str, mistake: str = "", **given: Any) -> KernelSpec:
    """The spec of a tiled kernel; arguments are the kernel's or the spec's, by their names."""
    own = {"weights": dtype, **{name: given.pop(name) for name in list(given) if name in OWN}}
    fields = {"lengths": ((65, 130),), "dims": (64,), "returns": ("output", "lse"), "contract": dtype, **given}
    return KernelSpec(TiledKernel(dtype, mistake, **own), **fields)


LAZY = {"tile": 32, "lazy": 5.5}
ROUGH = {"tile": 32, "exp_error": 3e-4}  # exponentials as PyTorch's on the CPU
BUILT = [
    {"tile": 16},
    {"tile": 32, "splits": 3, "exp2": True, "rounded_sum": True},
    {"tile": 64, "backward": True, "weights": "float32"},
    {"tile": 128, "splits": 2, "backward": True, "exp2": True},
]


@pytest.mark.parametrize(
    ("dtype", "built"),
    [
        pytest.param(dtype, built, marks=[pytest.mark.slow] * ((m + n) % 2))
        for m, dtype in enumerate(FORMATS)
        for n, built in enumerate(BUILT)
    ]
    + [(dtype, built) for dtype in ("bfloat16", "float16") for built in (LAZY, ROUGH)],
)
def test_nothing_is_read_of_kernels_that_are_right_each_in_its_own_way(dtype: str, built: dict[str, Any]) -> None:
    for given in (
        {"accepts": EVERY, "lengths": ((33, 70), (48, 48)), "dims": (64, (32, 48))},
        {"lengths": ((65, 130), (70, 33)), **CAUSAL},
        {"lengths": ((49, 97),), **WINDOW},
        {"lengths": ((1, 129),), "softcap": 2.0, "computes": {"softcap": 2.0}},
    ):
        read = probe(spec_of(dtype, batch=(2,), **built, **given), quick=True)
        assert read.explanations == ()
        assert read.passed
        assert read.applied_mask is None


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_lengths_and_passes_of_a_right_kernel(dtype: str) -> None:
    kernel = spec_of(dtype, accepts=EVERY, lengths=((33, 70), (70, 33), (1, 40), (48, 48)), dims=(64, (32, 48)))
    read = probe(kernel)
    assert read.explanations == ()
    assert read.calls == kernel.function.calls
    assert read.calls > 100


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_the_reference_passes_in_every_format(name: str) -> None:
    given = {"accepts": EVERY, "dims": (32, (48, 24)), "lengths": ((33, 70), (48, 48))}
    assert probe(KernelSpec(ra.attention, contract=name, **given), quick=True).explanations == ()


@dataclass(frozen=True)
class Case:
    """A mistake, how the kernel is called, and what the first explanation must say."""

    mistake: str
    bug: str | None
    words: str
    given: dict[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = FORMATS


MASKED = {"accepts": ("mask",)}
BIASED = {"accepts": ("bias",)}
SUNK = {"accepts": ("sinks",)}
CAPPED = {"softcap": 3.0, "computes": {"softcap": 3.0}}
LONGER = {**CAUSAL, "lengths": ((70, 65),)}
FINE = ("float32",)
PARTS = {"splits": 4, "lengths": ((65, 128),)}
UPPER = {"causal": True, "computes": {"mask": masks.causal(anchor="lower_right")}}
CASES = [
    Case("anchor", "A1", "the mask is anchored upper_left, not lower_right; all 4 heads", CAUSAL),
    Case("window wide", "A4", "the window is one key too wide on the left", WINDOW),
    Case("window narrow", "A4", "the window is one key too narrow on the left", WINDOW),
    Case("window ignored", "A9", "the window is ignored on the left", WINDOW),
    Case("future key", None, "the causal mask lets in one key behind the diagonal", CAUSAL),
    Case("diagonal masked", None, "the causal mask masks the diagonal itself", CAUSAL),
    Case("causal ignored", None, "the mask is ignored", CAUSAL),
    Case("mask ignored", None, "the mask is ignored", MASKED),
    Case("mask inverted", None, "the mask is inverted: True masks", MASKED),
    Case("mask transposed", None, "the mask is read in the order (S, L)", MASKED),
    Case("mask of head 0", None, "the mask of head 0 is applied to all heads; heads 1..3", MASKED),
    Case("lost key", None, "key 65 takes no part; head 2, rows 64..129", {"lengths": ((130, 130),)}),
    Case("lost tile", None, "keys 64..95 take no part; all 4 heads, all 65 rows"),
    Case("last key lost", None, "key 129 takes no part; all 4 heads, all 65 rows"),
    Case("split lost", None, "keys 86..129 take no part", {"splits": 3}),
    Case("key twice", None, "key 70 is counted 2 times; head 1, all 65 rows"),
    Case("keys past L lost", "D12", "keys from 65 on are ignored"),
    Case("invented causal mask", None, "a causal mask is applied that nothing asks for"),
    Case(
        "padding counted", "A14", "62 keys of score 0 behind the last one are counted: S is padded to a multiple of 64"
    ),
    Case("modulo", "D1", "query head h reads key head h % Hk, not h // (H // Hk); heads 1..2"),
    Case("key heads modulo", "D1", "(keys only); heads 1..2"),
    Case("value heads modulo", "D1", "(values only); heads 1..2"),
    Case("key strides for values", "D3", "values are read with the strides of the keys", {"dims": ((64, 32),)}),
    Case("reshaped", "D2", "memory of key and value in the order"),
    Case("values one late", None, "value is read one row too early"),
    Case("shared page", None, "values of keys 48..63 are read from keys 32..47"),
    Case("stale value element", None, "value 65 of key head 0 is wrong in column 5; heads 0..1, row"),
    Case("stale key element", None, "keys are read wrong at key 65, feature 7; key head 1"),
    Case("stale query element", None, "queries are read wrong at feature 9; head 2, row 41"),
    Case("swapped rows", None, "the row holds what query 41 aims at; head 0, row 17"),
    Case(
        "given scale ignored", "C2", "the scale that was given is ignored: 1/sqrt(E) is taken", {"accepts": ("scale",)}
    ),
    Case("scale of E + 1", "C4", "the scale is 1/sqrt(E + 1)"),
    Case("scale of heads", "C4", "the scale is 1/sqrt(H), of the number of heads"),
    Case("not scaled", "C5", "scores are not scaled"),
    Case("scores times 0.98", None, "scores are multiplied by 0.98"),
    Case("log2e forgotten", "C1", "log2(e) is forgotten: weights are 2^score"),
    Case("log2e cut", None, "log2(e) is cut to 1.44"),
    Case("softcap ignored", None, "the softcap is ignored", CAPPED),
    Case("softcap before scale", None, "the softcap is applied before the scale", CAPPED),
    Case("no inner softcap", "C8", "softcap * tanh(score), without the inner factor", CAPPED),
    Case("no outer softcap", "C8", "tanh(score / softcap), without the outer factor", CAPPED),
    Case(
        "softcap after mask",
        "C7",
        "the softcap is applied after the mask",
        {"softcap": 3.0, "causal": True, "computes": {"softcap": 3.0, **CAUSAL["computes"]}},
    ),
    Case("bias ignored", None, "the bias is ignored", BIASED),
    Case("bias scaled", None, "the bias is multiplied by the scale", BIASED),
    Case("bias transposed", None, "the bias is read in the order (S, L)", BIASED),
    Case("bias before softcap", "C9", "the bias is added before the softcap", {**CAPPED, **BIASED}),
    Case("output not rescaled", "B2", "the output is not rescaled when the maximum rises (tiles of 32 keys)"),
    Case("sum not rescaled", "B2", "the row sum is not rescaled when the maximum rises (tiles of 32 keys)"),
    Case("nothing rescaled", "B2", "neither output nor row sum is rescaled when the maximum rises (tiles of 32 keys)"),
    Case("float16 accumulator", "B12", "the output is accumulated in float16", formats=("float32", "bfloat16")),
    Case("bfloat16 accumulator", None, "the output is accumulated in bfloat16", formats=FINE),
    Case("bfloat16 scores", None, "scores are stored in bfloat16"),
    Case("bfloat16 operands", None, "query and key are rounded to bfloat16", formats=("float32", "float16")),
    Case("sinks ignored", "F12", "the sinks are ignored", SUNK),
    Case("sinks scaled", "F11", "the sinks are multiplied by the scale", SUNK),
    Case("sink per split", "F10", "the sink is counted 4 times", SUNK),
    Case("sinks linear", "F9", "the sink itself is added to the row sum", SUNK),
    Case("sinks reversed", None, "the heads have the sinks in reverse", SUNK),
    Case("lse in base 2", "F1", "the log-sum-exp is in base 2, not e"),
    Case("lse of mixed bases", "F2", "the log-sum-exp mixes bases: the maximum"),
    Case("lse without maximum", None, "the log-sum-exp lacks the maximum"),
    Case("lse one row late", "D11", "the log-sum-exp of row i is that of row i - 1"),
    Case("lse zero", "F8", "the log-sum-exp is all zeros"),
    Case("two ulp", None, "values are not passed on exactly", formats=FINE),
    Case("output cut off", None, "the output is cut off, not rounded", formats=("bfloat16",)),
    Case("empty rows nan", "B3", "rows that may attend to nothing give NaN; all 4 heads, rows 0..4", LONGER),
    Case("empty rows mean", "B6", "rows that may attend to nothing give the mean of the values", LONGER),
    Case("sum of one part", "B1", "the row sum is not updated where parts are merged", PARTS),
    Case("rounded outputs", "B17", "outputs of parts are rounded to bfloat16 before they are merged", PARTS, FINE),
    Case("rounded logs", "B19", "log-sum-exps of parts are rounded to bfloat16 before they are merged", PARTS),
    Case("logs in base 2", "F1", "log-sum-exps in base 2 are merged as natural ones", PARTS),
    Case("lse of one part", "F6", "the log-sum-exp is that of the first of", PARTS),
    Case("sum of the next row", "B11", "the row sum of row i takes in that of the next row (tiles of 65 rows)"),
    Case("queries rounded", "B15", "queries times the scale are rounded to float16", {"dims": (48,)}, FINE),
    Case("sink of another row", "B14", "against the maximum of the first row of each 32", SUNK, FINE),
    Case("sentinel", "B4", "rows whose scores are all -57344 or less are lost", formats=("float32", "bfloat16")),
    Case("bias of the first tile", "C16", "the bias of the first 32 keys is added to every 32", BIASED),
    Case("output of other heads", "D10", "the output is written in the order (B, L, H, E)", formats=FINE),
    Case("heads in rows", "A17", "the mask takes the folded row i * G + h % G for the place of the query", UPPER),
    Case("mask stride", "A6", "rows of the mask are read 160 cells apart, not 130", MASKED),
    Case("stale mask", "A18", "the mask of an earlier call is applied", {"accepts": ("mask", "bias")}),
    Case("mask multiplied", "A16", "where a mask is given: cells that it lets in are multiplied by -inf", MASKED),
    Case("lane", None, "keys 17, 49, 81, 113 are not in the row sum as often as in the output"),
    Case("raises", None, "raised ValueError: no kernel for these shapes"),
]

COSTLY = (
    "rounded outputs", "rounded logs", "logs in base 2", "lse of one part", "queries rounded", "sink of another row",
    "bias of the first tile", "output of other heads", "stale mask", "mask multiplied", "lane",
)  # fmt: skip


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n % 2 or case.mistake in COSTLY), id=case.mistake)
        for n, case in enumerate(CASES)
    ],
)
def test_a_mistake_is_named_by_the_first_explanation(number: int) -> None:
    case = CASES[number]
    dtype = case.formats[number % len(case.formats)]
    read = probe(spec_of(dtype, case.mistake, **{"batch": (1,), **case.given}), quick=True)
    assert not read.passed
    first = read.explanations[0]
    assert case.words in first.text
    assert first.bug == case.bug
    assert first.instrument == "probe"


def test_what_follows_from_a_mistake_is_not_told_again() -> None:
    for mistake, given in (
        ("anchor", CAUSAL),
        ("modulo", {}),
        ("padding counted", {}),
        ("not scaled", {}),
        ("shared page", {}),
    ):
        assert len(probe(spec_of("float32", mistake, **given), quick=True).explanations) == 1


@pytest.mark.slow
def test_scores_of_float16_are_told_from_others_as_short_by_their_range() -> None:
    told = probe(spec_of("float32", "float16 scores"), quick=True).explanations
    assert "scores are stored in float16, or scores are stored in tf32" in told[0].name
    assert (told[1].bug, told[1].name) == (
        "B12",
        "rows whose scores are beyond 65504 are lost: scores overflow float16",
    )


def test_a_row_sum_that_is_doubled_is_not_taken_for_one_of_padding() -> None:
    read = probe(spec_of("float32", "sum of the next row", lengths=((128, 128),)), quick=True)
    assert [x.bug for x in read.explanations] == ["B11"]


def test_each_probe_declares_the_bugs_that_it_names() -> None:
    folder = Path(ra.__file__).parent / "testing" / "probes"
    sources = [path.read_text() for path in folder.rglob("*.py") if path.name != "tells.py"]
    named = {found for text in sources for found in re.findall(r'"([A-G]\d+)"', text)}
    assert named == set(itertools.chain(*TELLS.values()))


def test_many_keys_are_looked_at_in_groups_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"lengths": ((16, 300),), "dims": (32,), "batch": (1,)}
    few, all_keys, wrong = (spec_of("float32", mistake, **given) for mistake in ("", "", "last key lost"))
    assert probe(few, quick=True).passed
    assert probe(wrong, quick=True).explanations[0].name == "key 299 takes no part"
    monkeypatch.setattr("refattn.testing.probes.record.MANY", 300)
    assert probe(all_keys, quick=True).passed
    assert all_keys.function.calls - few.function.calls >= math.ceil(300 / 32) - 2


def test_two_mistakes_are_both_named() -> None:
    kernel = spec_of("float32", "scale of E + 1", causal=True, computes={"mask": masks.causal(anchor="upper_left")})
    told = [(x.bug, x.name) for x in probe(kernel, quick=True).explanations]
    assert told == [
        ("A1", "the mask is anchored lower_right, not upper_left"),
        ("C4", "the scale is 1/sqrt(E + 1)"),
    ]


def test_the_applied_and_the_asked_mask_of_the_first_problem() -> None:
    read = probe(spec_of("bfloat16", "anchor", **CAUSAL), quick=True)
    i, j = np.arange(65)[:, None], np.arange(130)
    np.testing.assert_array_equal(read.applied_mask, np.broadcast_to(j <= i, (4, 65, 130)))
    np.testing.assert_array_equal(read.asked_mask, np.broadcast_to(j <= i + 65, (4, 65, 130)))
    lost = probe(spec_of("float32", "lost key", lengths=((130, 130),)), quick=True)
    head, row, key = np.nonzero(lost.applied_mask != lost.asked_mask)
    assert set(head) == {2}
    assert set(row) == set(range(64, 130))
    assert set(key) == {65}


@pytest.mark.parametrize("ulps", [2, 3])
def test_every_output_a_few_ulp_off_is_found(ulps: int) -> None:
    def off(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        output, _ = TiledKernel()(query, key, value)
        for _ in range(ulps):
            output = np.nextafter(output, np.float32(0))
        return output

    spec = KernelSpec(off, lengths=((33, 70),), dims=(32,))
    assert probe(spec, quick=True).explanations[0].name.startswith("values are not passed on exactly")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_row_of_one_head_one_ulp_off_is_found_and_located(dtype: str) -> None:
    def off(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        output, _ = TiledKernel(dtype)(query, key, value)
        output[:, 1, 20] = np.nextafter(output[:, 1, 20], numpy_dtype(dtype).type(np.inf))
        return output

    spec = KernelSpec(off, contract=contract.flash(dtype), batch=(1,), lengths=((33, 70),), dims=(32,))
    assert probe(spec, quick=True).explanations[0].where.startswith("head 1, row 20, ")


@pytest.mark.parametrize(
    ("heads", "bug", "words", "slopes"),
    [
        ((4, 2), "C12", "the slopes are 2^(-8h/H) with h from 0", 2.0 ** (-2 * np.arange(4))),
        ((6, 3), "C11", "the slopes are 2^(-8h/H) though H is no power of two", 2.0 ** (-8 * np.arange(1, 7) / 6)),
        ((6, 3), None, "the bias is in base 2", biases.alibi_slopes(6) * np.log(2)),
        ((6, 3), None, "", biases.alibi_slopes(6)),
    ],
)
def test_slopes_of_a_bias_that_is_always_added(
    heads: tuple[int, int], bug: str | None, words: str, slopes: np.ndarray
) -> None:
    def kernel(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        return ra.attention(query, key, value, bias=biases.alibi(slopes, anchor="lower_right"))

    asked = {"bias": biases.alibi(biases.alibi_slopes(heads[0]), anchor="lower_right")}
    for dtype in ("float32", "bfloat16"):
        spec = KernelSpec(kernel, computes=asked, contract=dtype, heads=heads, dims=(32,), lengths=((33, 70),))
        told = [(x.bug, x.name.startswith(words)) for x in probe(spec, quick=True).explanations]
        assert told == ([(bug, True)] if words else [])


def test_a_small_softcap_leaves_the_probes_out_that_it_makes_meaningless() -> None:
    skipped = dict(probe(spec_of("float32", **CAPPED), quick=True).skipped)
    assert skipped["needle"] == "the softcap bounds the scores, so that no weight vanishes"
    assert "temperature" not in skipped


def test_the_plain_call_of_a_kernel_that_takes_a_softcap_is_probed_without_one() -> None:
    assert probe(spec_of("float32", accepts=("softcap",)), quick=True).skipped == ()


def test_keys_too_many_for_their_features() -> None:
    skipped = dict(probe(KernelSpec(ra.attention, dims=(8,), lengths=((5, 40),)), quick=True).skipped)
    assert skipped["needle"] == "codes of 40 keys need 12 features; query and key have 8"


def test_only_specs_are_taken() -> None:
    with pytest.raises(TypeError, match="probe: spec must be a KernelSpec; got function"):
        probe(spec_of)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_scales_that_are_not_positive_leave_out_what_needs_one(scale: float) -> None:
    def kernel(query: Any, key: Any, value: Any, bias: Any) -> Any:
        return ra.attention(query, key, value, scale=scale, bias=bias)

    spec = KernelSpec(kernel, computes={"scale": scale}, accepts=("bias",), dims=(16,), lengths=((31, 65),))
    read = probe(spec)
    assert read.passed, read.explanations
    assert "needle" in dict(read.skipped)


def test_sums_of_many_terms_that_round_alike_are_right() -> None:
    """One float32 total that each key is added to: the contract allows as many roundings."""

    def kernel(query: Any, key: Any, value: Any) -> Any:
        scores = np.float32(0.25) * query @ np.swapaxes(key, -1, -2)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        total = np.add.accumulate(weights, axis=-1, dtype=np.float32)[..., -1:]
        return weights @ value / total

    spec = KernelSpec(kernel, batch=(1,), heads=(1, 1), dims=(16,), lengths=((64, 1024),))
    read = probe(spec, quick=True)
    assert read.passed, read.explanations


def test_rows_that_hold_what_was_there_before_are_not_called_a_mean() -> None:
    lower = masks.causal("lower_right")

    def kernel(query: Any, key: Any, value: Any) -> Any:
        output = np.array(ra.attention(query, key, value, mask=lower))
        output[..., : query.shape[-2] - key.shape[-2], :] = 0.5
        return output

    spec = KernelSpec(kernel, computes={"mask": lower}, batch=(1,), dims=(16,), lengths=((40, 31),))
    first = probe(spec, quick=True).explanations[0]
    assert first.bug is None
    assert first.name == "rows that may attend to nothing give no zeros"
