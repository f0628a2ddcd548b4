"""The one tuple of public names: what it serves, each name alone in a fresh process, and who carries capabilities."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import refattn

# Functions that compute no attention, and so declare no capabilities.
WITHOUT_CAPABILITIES = {
    "absorb_mla",
    "cosformer_features",
    "cost",
    "expand_mla",
    "fourier_features",
    "fourier_frequencies",
    "from_numpy",
    "linear_error_bound",
    "linformer_error_bound",
    "linformer_projection",
    "performer_error_bound",
    "random_projection",
    "recurrent_error_bound",
    "rotary_cos_sin",
    "rotary_embedding",
    "to_numpy",
}

PUBLIC = [(name, getattr(refattn, name)) for name in refattn.__all__]
MODULES = [(name, item) for name, item in PUBLIC if isinstance(item, types.ModuleType)]


def run(code: str) -> str:
    """What a fresh Python process prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_names_are_sorted_and_each_is_there_once() -> None:
    assert isinstance(refattn.__all__, tuple)
    assert list(refattn.__all__) == sorted(set(refattn.__all__))


def test_dir_shows_what_all_says() -> None:
    shown = run("import refattn; print(*(name for name in dir(refattn) if not name.startswith('_')))").split()
    assert set(shown) == set(refattn.__all__)


def test_star_import_gives_the_public_names() -> None:
    given = run("from refattn import *; print(*(name for name in dir() if not name.startswith('_')))").split()
    assert set(given) == set(refattn.__all__)


def test_each_name_is_served_where_nothing_of_the_package_was_imported() -> None:
    code = f"""
import sys
for name in {refattn.__all__!r}:
    for loaded in [x for x in sys.modules if x.partition(".")[0] == "refattn"]:
        del sys.modules[loaded]
    served = {{}}
    exec(f"from refattn import {{name}}; import refattn", served)
    assert served[name] is getattr(served["refattn"], name), name
print("all")
"""
    assert run(code) == "all\n"


def test_a_name_that_is_not_public_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'refattn' has no attribute 'no_such_name'"):
        _ = refattn.no_such_name


@pytest.mark.parametrize(("name", "module"), MODULES)
def test_a_public_module_lists_what_it_offers(name: str, module: types.ModuleType) -> None:
    offered = getattr(module, "__all__", ())
    assert offered, f"refattn.{name} has no __all__"
    assert list(offered) == sorted(set(offered)), f"refattn.{name}.__all__ is not sorted"
    for member in offered:
        assert hasattr(module, member), f"refattn.{name}.__all__ lists {member}, which is not there"
    functions = inspect.getmembers(module, lambda item: inspect.isfunction(item) and item.__module__ == module.__name__)
    left_out = {member for member, _ in functions if not member.startswith("_")} - set(offered)
    assert not left_out, f"refattn.{name}.__all__ leaves out {left_out}"


@pytest.mark.parametrize(("name", "item"), PUBLIC)
def test_every_public_function_declares_what_it_serves(name: str, item: object) -> None:
    if not inspect.isfunction(item) or name in WITHOUT_CAPABILITIES:
        assert not hasattr(item, "capabilities")
        return
    capabilities = item.capabilities
    parameters = inspect.signature(item).parameters
    assert capabilities.function == name
    assert set(capabilities.arguments) <= set(parameters), "declares an argument that the signature lacks"
    assert capabilities.implementations[:1] == ("reference",)


def test_the_list_of_functions_without_capabilities_holds_no_stranger() -> None:
    assert set(refattn.__all__) >= WITHOUT_CAPABILITIES
