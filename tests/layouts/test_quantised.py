"""Quantised operands: what they stand for is exact, and making them errs by half a step of the format."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn import layouts, testing
from tests.namespaces import library, numpy_dtype

NARROW = ("int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
TOP = {"float8_e4m3fn": 2.0**8, "float8_e5m2": 2.0**15, "float4_e2m1fn": 2.0**2}
E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)


def drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers of very different magnitudes along all axes, zeros and blocks of zeros among them."""
    rng = np.random.default_rng(seed)
    x = (
        rng.standard_normal(shape)
        * np.exp2(rng.integers(-6, 7, shape))
        * np.exp2(rng.integers(-9, 9, (*shape[:-1], 1)))
    )
    x[rng.random(shape) < 0.1] = 0.0
    x[..., :1, :] *= rng.integers(2)  # where it is 0, a block of zeros
    return x.astype(np.float32)


def numbers(dtype: str) -> np.ndarray:
    """All finite numbers of a narrow dtype, in order."""
    if dtype == "int8":
        return np.arange(-127.0, 128.0)
    if dtype == "float4_e2m1fn":
        return np.unique(E2M1)
    values = np.arange(256, dtype=np.uint8).view(numpy_dtype(dtype)).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def by_hand(parts: layouts.Quantised) -> np.ndarray:
    """Exact rational products of every number and its scales, as float64."""
    values = E2M1[np.stack([parts.values & 15, parts.values >> 4], -1)] if parts.packed else parts.values
    *lead, E = parts.values.shape
    values = values.reshape(*lead, 2 * E if parts.packed else E).astype(np.float64)
    steps = [n if size is None else size for size, n in zip(parts.block, values.shape[-2:], strict=True)]
    scales, tensor = (
        parts.scales.astype(np.float64),
        Fraction(1 if parts.tensor_scale is None else float(parts.tensor_scale)),
    )
    found = np.empty(values.shape)
    for at in np.ndindex(values.shape):
        place = (*at[:-2], at[-2] // steps[0], at[-1] // steps[1])
        scale = scales[tuple(min(i, n - 1) for i, n in zip(place, scales.shape, strict=True))]
        product = Fraction(values[at]) * Fraction(scale) * tensor
        found[at] = float(product)
        assert Fraction(found[at]) == product
    return found


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(0, 5), st.integers(1, 5)),
    dtype=st.sampled_from(NARROW),
    block=st.one_of(st.just("tensor"), st.tuples(*[st.one_of(st.none(), st.integers(1, 4))] * 2)),
    seed=st.integers(0, 99),
)
def test_quantising_errs_by_half_a_step_and_dequantising_not_at_all(
    shape: tuple[int, int, int], dtype: str, block: Any, seed: int
) -> None:
    x = drawn(shape, seed)
    parts = layouts.quantise(x, dtype, block)
    assert (parts.values.dtype, parts.scales.dtype) == (numpy_dtype(dtype), np.float32)
    found = layouts.dequantise(*parts)
    np.testing.assert_array_equal(found, by_hand(parts))
    nearest(parts, x.astype(np.float64), numbers(dtype))


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 34), st.integers(1, 18)),
    dtype=st.sampled_from(tuple(TOP)),
    axis=st.sampled_from([-1, -2]),
    scale=st.sampled_from(["down", "up"]),
    seed=st.integers(0, 99),
)
def test_blocks_of_a_power_of_two(shape: tuple[int, int, int], dtype: str, axis: int, scale: str, seed: int) -> None:
    packed = dtype == "float4_e2m1fn"
    x = drawn((*shape[:2], 2 * shape[2] if packed else shape[2]), seed)
    parts = layouts.quantise_mx(x, dtype, axis=axis, scale=scale)
    assert (parts.scales.dtype, parts.packed) == (numpy_dtype("float8_e8m0fnu"), packed)
    assert parts.scales.shape[axis] == -(-x.shape[axis] // 32)
    nearest(parts, x.astype(np.float64), numbers(dtype))
    # Each scale is the greatest (least) by which the largest number lies in the top binade (the format).
    largest, top = blocks(x, axis, 32), TOP[dtype]
    some, most = largest > 0, numbers(dtype)[-1]
    share = largest[some] / parts.scales.astype(np.float64)[some]
    least, limit = (top, 2 * top) if scale == "down" else (np.nextafter(most / 2, most), np.nextafter(most, np.inf))
    assert np.all((least <= share) & (share < limit))


@settings(max_examples=25)
@given(shape=st.tuples(st.integers(1, 2), st.integers(1, 18), st.integers(1, 9)), axis=st.sampled_from([-1, -2]),
       seed=st.integers(0, 99))  # fmt: skip
def test_blocks_of_nvfp4(shape: tuple[int, int, int], axis: int, seed: int) -> None:
    x = drawn((*shape[:2], 2 * shape[2]), seed)
    parts = layouts.quantise_nvfp4(x, axis=axis)
    assert (parts.scales.dtype, parts.tensor_scale.dtype) == (numpy_dtype("float8_e4m3fn"), np.float32)
    np.testing.assert_array_equal(layouts.dequantise(*parts), by_hand(parts))
    nearest(parts, x.astype(np.float64), numbers("float4_e2m1fn"))
    # A block's scale is its largest number over 6, rounded in e4m3 on the scale of the tensor.
    wanted = blocks(x, axis, 16) / 6 / max(float(parts.tensor_scale), 2.0**-126)
    assert np.all(np.abs(parts.scales.astype(float) - np.minimum(wanted, 448)) <= np.maximum(wanted * 2**-4, 2**-10))


def nearest(parts: layouts.Quantised, x: np.ndarray, held: np.ndarray) -> None:
    """Each number is the nearest of those that its scale leaves, up to the rounding of one quotient."""
    found = layouts.dequantise(*parts)
    ones = parts._replace(values=np.full_like(parts.values, 0x22 if parts.packed else 1))
    factors = layouts.dequantise(*ones)
    assert found.shape == x.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(factors > 0, x / factors, 0.0)
    best = np.abs(held[:, None] - quotient.ravel()).min(axis=0).reshape(x.shape)
    assert np.all(np.abs(found - x)[factors > 0] <= (best * factors + np.spacing(np.abs(x)))[factors > 0])
    assert not found[factors == 0].any()


def blocks(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Largest magnitude of each block of some size along an axis."""
    parts = [np.abs(part).max(axis=axis, keepdims=True) for part in np.split(x, range(size, x.shape[axis], size), axis)]
    return np.concatenate(parts, axis=axis).astype(np.float64)


def test_ties_go_to_the_even_number() -> None:
    ties = np.array([[[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]]])
    parts = layouts.quantise_mx(np.concatenate([ties, -ties], -1), "float4_e2m1fn")
    even = [6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    np.testing.assert_array_equal(layouts.dequantise(*parts)[0, 0], [*even, *(-x for x in even)])
    assert layouts.quantise(np.array([[[127.0, 0.5, 1.5, -2.5]]]), "int8").values[0, 0].tolist() == [127, 0, 2, -2]


def test_every_byte_of_e2m1() -> None:
    packed = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    pairs = np.stack([packed & 15, packed >> 4], -1).reshape(1, 1, 512)
    found = layouts.unpack_e2m1(packed)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, pairs.view(ml_dtypes.float4_e2m1fn).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), pairs >= 8)


@pytest.mark.parametrize("lib", ["torch", "jax"])
def test_other_libraries_have_the_same_numbers(lib: str) -> None:
    on, x = library(lib), drawn((2, 32, 34), 1)
    for make in (
        lambda x: layouts.quantise(x, "float8_e4m3fn", (8, None)),
        layouts.quantise_mx,
        layouts.quantise_nvfp4,
    ):
        want, got = make(x), make(on.array(x))
        whole = layouts.dequantise(*got)
        assert type(whole) is type(got.values)
        np.testing.assert_array_equal(ra.to_numpy(whole), layouts.dequantise(*want))


def test_torch_arrays_have_factors_too() -> None:
    x = library("torch").array(drawn((2, 4, 6), 1))
    values, scales, *_ = layouts.quantise(x, "int8", (2, None))
    whole = layouts.dequantise(values, scales, (2, None))
    got = ra.attention(values, values, values, descale=(scales,) * 3, dtype="float64")
    np.testing.assert_array_equal(ra.to_numpy(got), ra.to_numpy(ra.attention(whole, whole, whole)))


def operands(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Quantised query (2, 4, 6, 8), key and value (2, 2, 12, 8), and scales of each kind."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (2, 4, 6, 8)).astype(np.int8)
    k, v = (rng.standard_normal((2, 2, 12, 8)).astype(numpy_dtype(n)) for n in ("float8_e4m3fn", "float8_e5m2"))
    sizes = ((2, 4, 1), (1, 2, 3), (2, 1, 4, 2))
    return [q, k, v], [np.exp2(rng.uniform(-8, -4, size)).astype(np.float32) for size in sizes]


@pytest.mark.parametrize("function", ["attention", "attention_rows", "flash_attention", "flash_decode"])
def test_descale_is_multiplying_by_hand(function: str) -> None:
    (q, k, v), scales = operands()
    more = {"rows": list(np.ndindex(2, 4, 6))} if function == "attention_rows" else {}
    whole = [
        layouts.dequantise(q, scales[0][..., None]),
        layouts.dequantise(k, np.broadcast_to(scales[1][..., None], (1, 2, 3, 1)), (4, None)),
        layouts.dequantise(v, scales[2], (3, 4)),
    ]
    call = getattr(ra, function)
    want = call(*whole, **more)
    np.testing.assert_array_equal(call(q, k, v, descale=tuple(scales), dtype="float64", **more), want)
    half = call(whole[0], k, whole[2], descale=(None, 0.5, None), dtype="float64", **more)
    np.testing.assert_array_equal(half, call(whole[0], 0.5 * k.astype(float), whole[2], **more))


def test_a_query_has_the_factors_of_its_key_heads() -> None:
    (q, k, v), _ = operands()
    of_keys = np.float32([[0.5, 0.25], [2.0, 1.0]])
    call = ra.conventions.flash_attn(q_descale=of_keys, k_descale=of_keys, v_descale=of_keys)
    got = ra.attention(q, k, v, dtype="float64", **call.arguments)
    query = np.repeat(of_keys, 2, axis=1)[..., None, None] * q.astype(float)
    key, value = (of_keys[..., None, None] * x.astype(float) for x in (k, v))
    np.testing.assert_array_equal(got, ra.attention(query, key, value))


def test_tables_keep_factors_apart() -> None:
    (q, k, v), scales = operands()
    scales = [scales[0], scales[1][..., :1], scales[2][..., :1, :1]]
    lengths = [12, 5]
    table, _ = layouts.page_table(lengths, 4, seed=0)
    pages = [layouts.pack_paged(x, lengths, table, 4) for x in (k, v)]
    given = {"block_table": table, "seqused_k": np.array(lengths)}
    got = ra.flash_decode(q, *pages, descale=tuple(scales), dtype="float64", **given)
    for b, n in enumerate(lengths):
        own = [s[b : b + 1] if s.shape[0] > 1 else s for s in scales]
        right = ra.flash_decode(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n], descale=own, dtype="float64")
        np.testing.assert_array_equal(got[b : b + 1], right)
    verdict = testing.check(got, q, *(np.swapaxes(x, 1, 2) for x in pages), descale=tuple(scales), **given,
                            contract="float64", layout=layouts.Layout(page_size=4, pages="hnd"))  # fmt: skip
    assert verdict.passed, verdict.text
    swapped = (scales[0], np.broadcast_to(scales[1], (2, 2, 1)).transpose(1, 0, 2), scales[2])
    wrong = testing.check(got, q, *pages, descale=swapped, **given, contract="float64",
                          layout=layouts.Layout(page_size=4))  # fmt: skip
    assert not wrong.passed


def test_the_judge_takes_the_products_as_exact() -> None:
    (q, k, v), scales = operands()
    right = ra.attention(q, k, v, descale=tuple(scales), dtype="float32")
    assert testing.check(right, q, k, v, descale=tuple(scales)).passed
    wrong = ra.attention(q, k, v, descale=(scales[0][:, ::-1], *scales[1:]), dtype="float32")
    assert not testing.check(wrong, q, k, v, descale=tuple(scales)).passed
