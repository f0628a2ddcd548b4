"""Calls that a converter refuses, and the comparison of the whole text."""

from __future__ import annotations

from typing import Any

import pytest

from refattn import conventions


def refused(name: str, error: type[Exception], text: str, **arguments: Any) -> Any:
    """One call and what is said of it."""
    return pytest.param(name, arguments, error, text, id=f"{name}-{text[:40]}-{len(arguments)}")


def assert_refused(name: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """The error is of this very type, and its text is this, character by character."""
    with pytest.raises(error) as caught:
        getattr(conventions, name)(**arguments)
    assert type(caught.value) is error
    assert str(caught.value) == f"conventions.{name}: {text}"
