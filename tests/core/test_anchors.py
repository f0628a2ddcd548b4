"""Integers that arguments of masks and biases are made of."""

from __future__ import annotations

import numpy as np
import pytest

from refattn._core.anchors import frozen, integer, integers
from tests.messages import assert_raises


def test_a_number_is_a_python_integer_and_an_array_a_copy_on_the_host() -> None:
    assert type(integers("f", "x", np.int8(3), "a number")) is int
    assert type(integers("f", "x", np.array(3), "a number")) is int
    given = np.array([1, 2])
    found = integers("f", "x", given, "a number")
    given[...] = 7
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1, 2]
    assert not found.flags.writeable


def test_an_empty_list_holds_integers_and_an_empty_array_what_it_is_of() -> None:
    for empty in ([], (), [[]]):
        found = np.asarray(integers("f", "x", empty, "integers"))
        assert found.dtype == np.int64
        assert found.shape == np.shape(empty)
    assert_raises(lambda: integers("f", "x", np.zeros(0), "integers"), TypeError, "f: x must be integers; got float64.")


@pytest.mark.parametrize(("x", "name"), [([1.0], "float64"), ([True], "bool"), ("1", "'1'"), (1.0, "1.0")])
def test_what_holds_no_integers_is_refused(x: object, name: str) -> None:
    text = f"f: x must be integers; got {name}."
    assert_raises(lambda: integers("f", "x", x, "integers"), TypeError, text)


@pytest.mark.parametrize("x", [[1, True], [[1, 2], [np.False_, 3]], (True, np.int64(1))])
def test_a_boolean_among_integers_is_refused(x: object) -> None:
    text = "f: x must be integers; got a list with booleans among its integers."
    assert_raises(lambda: integers("f", "x", x, "integers"), TypeError, text)


def test_rows_of_different_lengths_are_no_array() -> None:
    text = "f: x must be integers; got a list whose rows differ in length."
    assert_raises(lambda: integers("f", "x", [[1], [2, 3]], "integers"), ValueError, text)


@pytest.mark.parametrize("x", [True, np.True_, np.array(3), 1.0, "1", None])
def test_what_is_no_integer(x: object) -> None:
    with pytest.raises(TypeError):
        integer(x)


def test_what_is_frozen_is_a_copy_that_cannot_be_written() -> None:
    x = np.arange(3)
    held = frozen(x)
    x[0] = 9
    assert held.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 9
