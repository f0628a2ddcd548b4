"""Few queries over a long cache, the keys in parts: within the bound, whatever the parts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

import refattn as ra
from refattn import biases, masks
from refattn.methods.flash.kernel_numba import plan, run_decode
from tests.kernels.flash_calls import assert_same_bits, assert_within_the_bound, decode, drawn

RNG = np.random.default_rng(0)
RANDOM = RNG.random((2, 4, 3, 300)) < 0.3
RANDOM[:, :, 1] = False
GIVEN = {
    "causal": {"mask": masks.causal("lower_right")},
    "window": {"mask": masks.window(150, 0, "lower_right")},
    "lengths": {"mask": masks.lengths(np.array([3, 290]))},
    "random": {"mask": RANDOM},
    "nothing": {"mask": np.zeros((3, 300), bool), "sinks": np.array([0.0, -np.inf, 1.0, 2.0])},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": np.array([0.5, -np.inf, 3.0, 0.0]), "mask": RANDOM},
    "bias": {"bias": RNG.standard_normal((2, 1, 3, 300)), "mask": RANDOM, "softcap": 2.0},
    "bias by rule": {"bias": biases.alibi(4, anchor="lower_right")},
    "dropout": {"dropout_mask": RNG.random((1, 4, 3, 300)) < 0.7, "dropout_p": 0.3, "sinks": np.ones(4)},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [(1, 1), (1, 3), (3, 127), (1, 129), (5, 260), (0, 5), (5, 0)], ids=str)
def test_lengths(lengths, dtype):
    arrays = drawn(1, lengths, heads=(4, 2), features=(32, 16), batch=(2,), dtype=dtype)
    for parts in (None, 1, 2, 7):
        assert_within_the_bound(decode(arrays, parts), arrays)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (3, 1)], ids=str)
def test_batch_axes(batch):
    arrays = drawn(11, (2, 5), heads=(4, 2), batch=batch)
    assert_within_the_bound(decode(arrays, sinks=np.ones(4)), arrays, sinks=np.ones(4))


@pytest.mark.parametrize("features", [(1, 1), (16, 64), (33, 80), (64, 96), (128, 128), (128, 200)], ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (6, 1), (9, 3)], ids=str)
def test_features_and_heads(features, heads):
    arrays = drawn(2, (1, 140), heads=heads, features=features)
    assert_within_the_bound(decode(arrays), arrays)


@pytest.mark.parametrize("name", GIVEN)
def test_what_changes_a_score(name):
    arrays = drawn(3, (3, 300), heads=(4, 2), batch=(2,))
    for parts in (None, 3):
        assert_within_the_bound(decode(arrays, parts, **GIVEN[name]), arrays, **GIVEN[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is(dtype):
    arrays = drawn(4, (2, 300), features=(40, 72), dtype=dtype)
    assert_same_bits(decode(arrays), decode(tuple(x.astype(np.float32) for x in arrays)))


def test_a_cache_that_holds_anything_past_its_keys():
    arrays = drawn(5, (1, 300), heads=(4, 2), batch=(2,))
    given = GIVEN["lengths"]
    want = decode(arrays, **given)
    for x in arrays[1:3]:
        x[0, :, 3:], x[1, :, 290:] = np.nan, np.inf
    assert_same_bits(decode(arrays, **given), want)


@pytest.mark.parametrize("name", ["random", "dropout", "causal"])
def test_values_that_are_not_finite(name):
    arrays, given = drawn(6, (3, 300), heads=(4, 2), batch=(2,)), GIVEN[name]
    arrays[2][:, :, 5, 3], arrays[2][:, :, 150, :], arrays[2][:, 0, 299, 2] = np.nan, np.inf, -np.inf
    result = decode(arrays, 2, **given)
    want = ra.attention(*arrays[:3], return_lse=True, **given).output
    for same in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(same(result[0]), same(want))
    assert_within_the_bound(result, arrays, **given)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads, monkeypatch):
    monkeypatch.setattr(run_decode, "PART", 128)
    arrays = drawn(7, (3, 300), heads=(4, 2), batch=(2,))
    assert_same_bits(decode(arrays, threads=threads, mask=RANDOM), decode(arrays, threads=1, mask=RANDOM))


def test_arrays_of_any_strides_that_must_not_be_written_on():
    arrays = drawn(8, (2, 300), heads=(4, 2), batch=(2,))
    turned = []
    for x in arrays:
        y = np.empty((*x.shape[:-3], x.shape[-2], x.shape[-3], 2 * x.shape[-1]), x.dtype).swapaxes(-2, -3)[..., ::-2]
        y[...] = x
        y.flags.writeable = False
        turned.append(y)
    assert_same_bits(decode(tuple(turned), 3), decode(arrays, 3))


def test_keys_at_the_very_end_of_their_memory():
    """The last keys are scored together with others; none is read from behind the array."""
    arrays = drawn(9, (1, 130), features=(16, 16))
    want = decode(arrays)
    cut = []
    for x in arrays:
        memory = np.full(x.size + 64, np.nan, x.dtype)
        y = memory[: x.size].reshape(x.shape)
        y[...] = x
        cut.append(y)
    assert_same_bits(decode(tuple(cut)), want)


def test_scratch_memory_may_hold_anything(monkeypatch):
    arrays, given = drawn(10, (3, 300), heads=(4, 2), batch=(2,), features=(20, 40)), GIVEN["bias"]
    want = decode(arrays, 2, **given)

    def poisoned(count, kind):
        x = plain(count, kind)
        x[...] = np.nan if np.dtype(kind).kind == "f" else -(2**31)
        return x

    plain = plan.aligned
    monkeypatch.setattr(plan, "aligned", poisoned)
    assert_same_bits(decode(arrays, 2, **given), want)
