"""The compiled backward pass: within a bound that is computed from the data of the float64 gradient."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

import refattn as ra
from refattn import masks
from refattn.methods.flash.kernel_numba import plan
from tests.kernels.flash_calls import assert_gradients, assert_same_bits, backward, call_of, drawn
from tests.kernels.gradient_bound import gradient_bound
from tests.kernels.test_flash_numba import ARGUMENTS, MASKS


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lengths", [(1, 1), (33, 31), (64, 33), (65, 129), (0, 5), (5, 0)], ids=str)
def test_lengths_at_the_edges_of_tiles(lengths, dtype):
    arrays = drawn(1, lengths, heads=(4, 2), features=(20, 9), batch=(2,), dtype=dtype)
    for tile in ((None, None), (32, 32), (1, 64)):
        assert_gradients(backward(arrays, tile), arrays)


@pytest.mark.parametrize("batch", [(), (0,), (2, 0), (3, 1)], ids=str)
def test_batch_axes(batch):
    arrays = drawn(16, (2, 5), heads=(4, 2), batch=batch)
    assert_gradients(backward(arrays, sinks=np.ones(4)), arrays, sinks=np.ones(4))


@pytest.mark.parametrize("features", [(1, 1), (8, 64), (64, 80), (128, 128)], ids=str)
def test_features(features):
    arrays = drawn(2, (40, 140), features=features)
    assert_gradients(backward(arrays), arrays)


@pytest.mark.parametrize("tile", [(None, None), (32, 32)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, tile):
    arrays = drawn(3, (70, 100), batch=(2,))
    assert_gradients(backward(arrays, tile, mask=MASKS[mask]), arrays, mask=MASKS[mask])


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_changes_a_score(name, threads):
    arrays, given = drawn(4, (70, 100), heads=(2, 1), batch=(2,)), ARGUMENTS[name]
    assert_gradients(backward(arrays, (32, 64), threads, **given), arrays, **given)


def test_everything_at_once_in_float64():
    arrays, given = drawn(5, (70, 100), heads=(2, 1), batch=(2,), dtype="float64"), ARGUMENTS["everything"]
    assert_gradients(backward(arrays, **given), arrays, **given)


def test_of_the_log_sum_exp_too():
    arrays = drawn(6, (40, 70))
    grad_lse = np.random.default_rng(0).standard_normal(arrays[3].shape[:-1]).astype(np.float32)
    assert_gradients(backward(arrays, grad_lse=grad_lse), arrays, grad_lse=grad_lse)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_as_it_is(dtype):
    arrays = drawn(7, (40, 70), dtype=dtype)
    assert_same_bits(backward(arrays), backward(tuple(x.astype(np.float32) for x in arrays)))


@pytest.mark.parametrize("place", ["query", "key", "value", "dO"])
@pytest.mark.parametrize("mask", ["upper left", "window"])
def test_what_is_not_finite_spreads_along_what_is_seen(place, mask):
    arrays, mask = drawn(8, (70, 100)), MASKS[mask]
    x = arrays[("query", "key", "value", "dO").index(place)]
    x[..., 20, 3], x[..., 40, :] = np.nan, np.nan
    assert_gradients(backward(arrays, mask=mask), arrays, mask=mask)


def test_gradients_of_the_outputs_of_empty_rows_are_not_read():
    arrays, given = drawn(9, (70, 100)), {"mask": MASKS["empty rows"], "sinks": np.array([0.5, -1.0])}
    want = backward(arrays, **given)
    arrays[3][..., :20, :] = np.nan
    assert_same_bits(backward(arrays, **given), want)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("name", ["causal", "random", "plain"])
def test_threads_change_no_bit(threads, name):
    """Few threads take whole heads, many share the queries of a head, and then its keys."""
    arrays = drawn(10, (170, 100), heads=(4, 2))
    keep = np.random.default_rng(1).random((1, 4, 170, 100)) < 0.3
    given = {"causal": {"mask": masks.causal("lower_right")}, "random": {"mask": keep}, "plain": {}}[name]
    assert_same_bits(backward(arrays, (32, 32), threads, **given), backward(arrays, (32, 32), 1, **given))


def test_arrays_of_any_strides_that_must_not_be_written_on():
    arrays = drawn(11, (40, 70), heads=(4, 2), batch=(2,))
    want, turned = backward(arrays), []
    for x in arrays:
        y = np.empty((*x.shape[:-3], x.shape[-2], x.shape[-3], 2 * x.shape[-1]), x.dtype).swapaxes(-2, -3)[..., ::-2]
        y[...] = x
        y.flags.writeable = False
        turned.append(y)
    assert_same_bits(backward(tuple(turned)), want)


@pytest.mark.parametrize("name", ["everything", "bias by rule"])
def test_scratch_memory_may_hold_anything(name, monkeypatch):
    arrays, given = drawn(12, (70, 100), heads=(2, 1), batch=(2,)), ARGUMENTS[name]
    want = backward(arrays, (32, 32), **given)

    def poisoned(count, kind):
        x = plain(count, kind)
        x[...] = np.nan if np.dtype(kind).kind == "f" else -(2**31)
        return x

    plain = plan.aligned
    monkeypatch.setattr(plan, "aligned", poisoned)
    assert_same_bits(backward(arrays, (32, 32), **given), want)


MUTANTS = {
    "no D": lambda g, a: backward((*a[:3], a[3] * 1.01)),
    "a scale of 1/sqrt(E + 1)": lambda g, a: backward(a, scale=17**-0.5),
    "a lost key": lambda g, a: backward(a, mask=(np.arange(70) != 33)[None]),
    "another head": lambda g, a: tuple(None if x is None else x[:, ::-1] for x in g),
    "one wrong number": lambda g, a: (*g[:2], np.where(np.arange(16) == 3, g[2] * (1 + 1e-4), g[2]), *g[3:]),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_bound_is_sharp_enough_to_see(name):
    arrays = drawn(13, (40, 70), heads=(2, 2))
    with pytest.raises(AssertionError):
        assert_gradients(MUTANTS[name](backward(arrays), arrays), arrays)


def test_the_bound_is_not_far_from_the_errors():
    arrays = drawn(14, (128, 128), features=(64, 64))
    wide = [x.astype(np.float64) for x in arrays]
    want = ra.attention_gradient(wide[3], *wide[:3])
    radii = gradient_bound(call_of(wide), wide[3], None, "float32")
    for x, y, radius in zip(backward(arrays)[:3], want, radii, strict=False):
        assert 1e-3 < np.max(np.abs(x - y) / radius) < 1
