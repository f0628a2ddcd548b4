"""Every law that a public function declares has its file here, and every file its function."""

from __future__ import annotations

from pathlib import Path

from tests.public import methods

HERE = Path(__file__).parent


def test_every_law_has_a_file_and_every_file_a_function() -> None:
    declared = {law for function in methods() for law in function.capabilities.laws}
    written = {path.stem.removeprefix("test_") for path in HERE.glob("test_*.py")} - {"declared"}
    assert written == declared
    assert declared


def test_attention_declares_its_laws() -> None:
    # A record that lost its laws would leave the files above with nothing to test.
    by_name = {function.capabilities.function: function.capabilities.laws for function in methods()}
    assert {"key_permutation", "causal_prefix", "merge", "inputs_untouched"} <= set(by_name["attention"])
