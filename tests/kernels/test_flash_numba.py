"""The compiled forward pass: as near to the float64 answer as its contract says, whatever a call may ask for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

import refattn as ra
from refattn import biases, masks
from refattn.methods.flash.kernel_numba import plan
from tests.kernels.flash_calls import assert_same_bits, assert_within_the_bound, drawn, forward

RNG = np.random.default_rng(0)
RANDOM = RNG.random((2, 2, 70, 100)) < 0.3
RANDOM[:, :, 17] = False
RANDOM[0, 1, 30:64, 32:96] = True
RANDOM[..., 96:] = False
MASKS = {
    "causal": masks.causal("lower_right"),
    "upper left": masks.causal("upper_left"),
    "window": masks.window(9, 2, "lower_right"),
    "lengths": masks.lengths(np.array([3, 100])),
    "documents": masks.documents(np.arange(100) // 17, np.arange(70) // 13),
    "empty rows": masks.causal(-20),
    "random": masks.array(RANDOM),
    "blocks": masks.array(np.kron(RNG.random((3, 4)) < 0.4, np.ones((32, 32), bool))[:70, :100]),
    "none": masks.array(np.zeros((70, 100), bool)),
}
ARGUMENTS = {
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": np.array([0.5, -np.inf])},
    "sinks and empty rows": {"sinks": np.array([0.5, -3.0]), "mask": MASKS["random"]},
    "scale": {"scale": -0.7},
    "bias": {"bias": RNG.standard_normal((2, 1, 70, 100)), "mask": MASKS["causal"]},
    "bias by column": {"bias": RNG.standard_normal((1, 100)).astype(np.float16), "softcap": 3.0},
    "bias that hides": {"bias": np.where(RANDOM, 0.0, -np.inf)},
    "bias by rule": {"bias": biases.alibi(2, anchor="lower_right"), "mask": MASKS["window"]},
    "dropout": {"dropout_mask": RNG.random((2, 2, 70, 100)) < 0.7, "dropout_p": 0.3, "mask": MASKS["causal"]},
    "everything": {
        "softcap": 2.0, "sinks": np.array([0.5, 1.0]), "bias": RNG.standard_normal((2, 70, 100)),
        "mask": MASKS["random"], "dropout_mask": masks.bernoulli(0.5, seed=1), "dropout_p": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [(1, 1), (31, 33), (32, 64), (33, 127), (65, 129), (0, 5), (5, 0)], ids=str)
def test_lengths_at_the_edges_of_tiles(lengths, dtype):
    arrays = drawn(1, lengths, heads=(4, 2), features=(20, 9), batch=(2,), dtype=dtype)
    for tile in ((None, None), (32, 32), (1, 64)):
        assert_within_the_bound(forward(arrays, tile), arrays)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (3, 1)], ids=str)
def test_batch_axes(batch):
    arrays = drawn(16, (2, 5), heads=(4, 2), batch=batch)
    assert_within_the_bound(forward(arrays, sinks=np.ones(4)), arrays, sinks=np.ones(4))


@pytest.mark.parametrize("features", [(1, 1), (8, 64), (64, 80), (128, 128)], ids=str)
def test_features(features):
    arrays = drawn(2, (40, 140), features=features)
    assert_within_the_bound(forward(arrays), arrays)


@pytest.mark.parametrize("tile", [(None, None), (32, 32)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, tile):
    arrays = drawn(3, (70, 100), batch=(2,))
    assert_within_the_bound(forward(arrays, tile, mask=MASKS[mask]), arrays, mask=MASKS[mask])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_changes_a_score(name):
    arrays, given = drawn(4, (70, 100), heads=(2, 1), batch=(2,)), ARGUMENTS[name]
    for tile in ((None, None), (32, 64)):
        assert_within_the_bound(forward(arrays, tile, **given), arrays, **given)


@pytest.mark.parametrize("dtype", ["float64"])
def test_everything_at_once_in_float64(dtype):
    arrays, given = drawn(5, (70, 100), heads=(2, 1), batch=(2,), dtype=dtype), ARGUMENTS["everything"]
    assert_within_the_bound(forward(arrays, **given), arrays, **given)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is(dtype):
    arrays = drawn(6, (40, 70), dtype=dtype)
    wide = tuple(x.astype(np.float32) for x in arrays)
    # The call's dtype is that of the query, and float32 holds the values of both.
    assert_same_bits(forward(arrays), forward(wide))


@pytest.mark.parametrize("law", ["rising", "falling", "large", "peaked", "subnormal"])
def test_hard_inputs(law):
    q, k, v, g = drawn(7, (40, 300), dtype="float64")
    match law:
        case "rising" | "falling":
            k[...] = 0
            k[..., 0] = np.arange(300) * (3.0 if law == "rising" else -3.0)
            q[..., 0] = np.abs(q[..., 0])
        case "large":
            q *= 1e4
        case "peaked":
            q *= 40
        case "subnormal":
            v *= 1e-42
    arrays = tuple(x.astype(np.float32) for x in (q, k, v, g))
    assert_within_the_bound(forward(arrays), arrays)


def test_real_queries_keys_and_values():
    capture = ra.data.smollm2()
    arrays = capture.query, capture.key, capture.value
    assert_within_the_bound(forward(arrays, is_causal=True), arrays, is_causal=True)


@pytest.mark.parametrize("case", ["masked", "seen", "dropped"])
def test_values_that_are_not_finite(case):
    arrays = drawn(8, (40, 200))
    arrays[2][..., 5, 3], arrays[2][..., 150, :], arrays[2][..., 151, 2] = np.nan, np.inf, -np.inf
    mask = masks.causal("upper_left") if case == "masked" else masks.window(30, 0, "lower_right")
    given = {"mask": mask}
    if case == "dropped":
        kept = np.ones((40, 200), bool)
        kept[:, [5, 150]] = False
        given |= {"dropout_mask": kept, "dropout_p": 0.0}
    result = forward(arrays, (32, 64), **given)
    want = ra.attention(*arrays[:3], return_lse=True, **given).output
    for same in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(same(result[0]), same(want))
    assert_within_the_bound(result, arrays, **given)


def test_keys_that_are_masked_are_not_read():
    arrays = drawn(9, (40, 200))
    given = {"mask": masks.lengths(np.array([77]))}
    want = forward(arrays, **given)
    for x in arrays[1:3]:
        x[..., 77:, :] = np.nan
    assert_same_bits(forward(arrays, **given), want)


def test_a_row_whose_scores_overflow_is_not_an_empty_row():
    arrays = drawn(10, (3, 40))
    arrays[0][..., 1, :], arrays[1][...] = -np.inf, np.abs(arrays[1])
    output, lse = forward(arrays)
    assert np.isnan(output[..., 1, :]).all()
    assert (lse[..., 1] == -np.inf).all()
    assert np.isfinite(output[..., [0, 2], :]).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["causal", "random"])
def test_threads_change_no_bit(threads, name):
    arrays = drawn(11, (70, 100), heads=(4, 2), batch=(2,))
    given = {"mask": MASKS["causal"] if name == "causal" else masks.array(RANDOM[:, :1])}
    assert_same_bits(forward(arrays, (32, 32), threads, **given), forward(arrays, (32, 32), 1, **given))


def test_arrays_of_any_strides_that_must_not_be_written_on():
    arrays = drawn(12, (40, 70), heads=(4, 2), batch=(2, 3))
    want = forward(arrays)
    turned = []
    for x in arrays:
        y = np.empty((*x.shape[:-3], x.shape[-2], x.shape[-3], 2 * x.shape[-1]), x.dtype)
        y = y.swapaxes(-2, -3)[..., ::-2]
        y[...] = x
        y.flags.writeable = False
        turned.append(y)
    assert_same_bits(forward(tuple(turned)), want)
    flipped = tuple(np.ascontiguousarray(x[..., ::-1, :, :, :])[..., ::-1, :, :, :] for x in arrays)
    assert_same_bits(forward(flipped), want)
    assert_same_bits(forward(tuple(x.astype(">f4") for x in arrays)), want)


def test_batches_that_are_one_array_repeated():
    arrays = drawn(13, (40, 70))
    wide = tuple(np.broadcast_to(x, (3, *x.shape[1:])) for x in arrays)
    output, lse = forward(wide)
    assert_same_bits((output[2:], lse[2:]), forward(arrays))


def test_scratch_memory_may_hold_anything(monkeypatch):
    arrays, given = drawn(14, (70, 100), batch=(2,)), ARGUMENTS["everything"]
    want = forward(arrays, **given)

    def poisoned(count, kind):
        x = plain(count, kind)
        x[...] = np.nan if np.dtype(kind).kind == "f" else -(2**31)
        return x

    plain = plan.aligned
    monkeypatch.setattr(plan, "aligned", poisoned)
    assert_same_bits(forward(arrays, **given), want)


def test_inputs_are_left_as_they_are():
    arrays = drawn(15, (40, 70))
    before = [x.copy() for x in arrays]
    forward(arrays)
    assert_same_bits(arrays, before)
