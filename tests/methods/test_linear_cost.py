"""What linear attention costs: the products that its forms were seen to make, and what follows from the counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refattn as ra
from refattn.methods.linear import reference
from tests.counting import Counted, Counter

FORMS = ("quadratic", "recurrent", "chunked")


class Counting(Counter):
    """A counter that also makes positions, which are no operation."""

    int64 = np.int64

    def arange(self, n: int, *, device: Any = None) -> Counted:
        """Positions."""
        return Counted(self, np.arange(n), owned=False)


def seen(form: str, batch: int, heads: tuple[int, int], L: int, S: int, Ev: int, *, causal: bool, chunk: int) -> Any:
    """Multiply-adds and divisions that a form was seen to make, of 3 features as they are."""
    counting, group = Counting(), heads[0] // heads[1]
    shapes = ((batch, heads[1], group, L, 3), (batch, heads[1], 1, S, 3), (batch, heads[1], 1, S, Ev))
    Q, K, V = (counting.array(np.ones(shape)) for shape in shapes)
    if form == "quadratic":
        keep = counting.array(np.tri(L, dtype=bool)) if causal else None
        N, Z = reference.quadratic(Q, K, V, None, keep=keep, xp=counting)
    elif form == "recurrent":
        N, Z, _ = reference.recurrent(Q, K, V, None, causal=causal, xp=counting)
    else:
        N, Z, _ = reference.chunked(Q, K, V, None, causal=causal, chunk=chunk, xp=counting)
    reference.normalised(N, Z, least=None, eps=0.0, xp=counting)
    return counting.operations["multiply_add"], counting.operations["divide"]


@given(data=st.data())
@settings(max_examples=40)
def test_products_are_those_that_the_forms_were_seen_to_make(data: st.DataObject) -> None:
    form, causal = data.draw(st.sampled_from(FORMS)), data.draw(st.booleans())
    batch, heads = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([(1, 1), (4, 2), (3, 1)]))
    L, Ev, chunk = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3)), data.draw(st.integers(1, 10))
    S = L if causal else data.draw(st.integers(1, 9))
    cost = ra.cost(
        ra.linear_attention, (batch, heads[0], L, 3), (batch, heads[1], S, 3), (batch, heads[1], S, Ev),
        dtype="float64", form=form, is_causal=causal, chunk=chunk, feature_map="identity",
    )  # fmt: skip
    found = seen(form, batch, heads, L, S, Ev, causal=causal, chunk=chunk)
    assert (cost.operations["multiply_add"], cost.operations["divide"]) == found
    selected = {"quadratic": L * S, "chunked": sum(min(chunk, L - i) ** 2 for i in range(0, L, chunk))}
    assert cost.operations["select"] == causal * batch * heads[0] * selected.get(form, 0)


SHAPE = (2, 4, 96, 8)


def cost(form: str, **given: Any) -> ra.Cost:
    """Of one shape in float32, 64 bytes of which are two rows."""
    return ra.cost(ra.linear_attention, SHAPE, SHAPE, SHAPE, dtype="float32", form=form, **given)


def test_the_first_form_is_the_quadratic_one() -> None:
    assert ra.cost(ra.linear_attention, SHAPE, SHAPE, SHAPE, dtype="float32").form == "quadratic"


def test_streams_move_operands_once_and_hold_a_state_of_one_size() -> None:
    arrays, heads, state = 4 * math.prod(SHAPE), 8, 4 * 8 * (8 + 1)
    for form in ("recurrent", "chunked"):
        one = cost(form, is_causal=True, chunk=32)
        assert (one.bytes_read, one.bytes_written, one.peak_bytes) == (3 * arrays, arrays, arrays)
        two = cost(form, is_causal=True, chunk=32, state=True, return_state=True)
        assert two.bytes_read - one.bytes_read == two.bytes_written - one.bytes_written == heads * state
        assert two.peak_bytes - one.peak_bytes == heads * state
    assert cost("recurrent").on_chip_bytes == state
    assert cost("chunked", chunk=32).on_chip_bytes == state + 4 * 32 * (4 * 8 + 32)
    matrix = 4 * 8 * 96 * 96
    whole = cost("quadratic")
    assert (whole.bytes_read, whole.bytes_written) == (3 * arrays + matrix, matrix + arrays)


def test_a_state_costs_the_quadratic_form_what_it_costs_the_others() -> None:
    rows = math.prod(SHAPE[:-1])
    plain, given, made = (cost("quadratic", **x) for x in ({}, {"state": True}, {"return_state": True}))
    assert given.operations["multiply_add"] - plain.operations["multiply_add"] == rows * 8 * 9
    assert made.operations["multiply_add"] - plain.operations["multiply_add"] == rows * 8 * 8


def test_without_normaliser_no_sum_of_features_is_read() -> None:
    rows = math.prod(SHAPE[:-1])
    with_it, without = (cost("recurrent", normalize=x) for x in (True, False))
    assert with_it.operations["multiply_add"] - without.operations["multiply_add"] == rows * 8
    assert (with_it.operations["divide"], without.operations["divide"]) == (rows * 8, 0)
    assert cost("recurrent", eps=1e-6).operations["add"] - with_it.operations["add"] == rows
    clamped = cost("recurrent", eps=1e-6, eps_rule="clamp")
    assert clamped.operations["compare"] - with_it.operations["compare"] == rows


# For a row of E = 8.
FEATURES: list[tuple[Any, int, dict[str, int]]] = [
    ("identity", 8, {}),
    ("relu", 8, {"compare": 8}),
    ("elu+1", 8, {"compare": 8, "exp": 8, "add": 8, "select": 8}),
    ("softmax", 8, {"compare": 8, "add": 16, "exp": 8, "divide": 8}),
    ("squared", 64, {"multiply": 64}),
    ("taylor", 73, {"multiply": 128}),
    ("cosformer", 16, {"compare": 8, "multiply": 16}),
    (ra.fourier_features(np.ones((5, 8))), 10, {"multiply_add": 40, "exp": 10, "multiply": 10}),
]


@pytest.mark.parametrize(("feature_map", "M", "operations"), FEATURES, ids=lambda x: str(x)[:20])
def test_features_are_made_once_a_row(feature_map: Any, M: int, operations: dict[str, int]) -> None:
    rows = math.prod(SHAPE[:-1])
    found = cost("recurrent", feature_map=feature_map).operations
    want = {kind: 2 * rows * n for kind, n in operations.items()}
    # Scale, state, normaliser and division.
    want["multiply"] = want.get("multiply", 0) + (rows * 8 if feature_map in ("squared", "taylor") else 0)
    want["multiply_add"] = want.get("multiply_add", 0) + rows * M * (8 + 8 + 1)
    want["add"] = want.get("add", 0) + rows * M
    want["divide"] = want.get("divide", 0) + rows * 8
    assert {kind: n for kind, n in found.items() if n} == {kind: n for kind, n in want.items() if n}


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_a_mask_of_keys_is_asked_once_a_key(form: str) -> None:
    plain, masked = (cost(form, **x) for x in ({}, {"mask": np.ones((2, 1, 1, 96), bool)}))
    assert masked.operations["select"] - plain.operations["select"] == math.prod(SHAPE[:-1]) * (8 + 8)
    assert masked.bytes_read - plain.bytes_read == 2 * 96


def test_the_time_of_a_stream_grows_with_the_length_and_of_all_similarities_with_its_square() -> None:
    for form, power in (("recurrent", 1), ("chunked", 1), ("quadratic", 2)):
        short, long = (
            ra.cost(ra.linear_attention, *[(1, 1, n, 16)] * 3, dtype="float32", form=form, is_causal=True)
            for n in (1024, 2048)
        )
        ratio = long.operations["multiply_add"] / short.operations["multiply_add"]
        assert ratio == 2**power


def test_tiles_of_cost_are_none_of_linear_attention() -> None:
    with pytest.raises(ValueError, match="cost: tile must be None for form='chunked', which has no tiles"):
        cost("chunked", tile=(4, 4))
