"""What a function declares of itself hangs on it, and a form is chosen by its name alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

import refattn as ra
from refattn._core.choice import choose, declare
from tests.messages import assert_raises

TWO = replace(ra.attention.capabilities, function="example", implementations=("reference", "other"))


def test_the_record_hangs_on_the_function_itself() -> None:
    def example() -> None: ...

    assert declare(TWO)(example) is example
    assert example.capabilities is TWO


@pytest.mark.parametrize(("name", "form"), [(None, "reference"), ("reference", "reference"), ("other", "other")])
def test_a_form_is_chosen_by_its_name(name: str | None, form: str) -> None:
    assert choose(TWO, name) == form


@pytest.mark.parametrize("name", ["numba", "Reference", "", 1])
def test_no_form_is_taken_in_place_of_another(name: object) -> None:
    text = f"example: implementation must be one of 'reference', 'other', or None for 'reference'; got {name!r}."
    assert_raises(lambda: choose(TWO, name), ra.ImplementationError, text)
