"""What the public faces of tiled attention share: sizes of tiles, and the kernels that are asked for by name."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from refattn._call import Call
from refattn._core.arrays import library_of
from refattn._core.checks import check_integer
from refattn._core.choice import Capabilities, refusal
from refattn.methods.flash.reference_cost import fitting


def check_sizes(function: str, **given: object) -> list[int | None]:
    """Numbers of a tile, of splits or of threads, each positive, or None where the form is to choose."""
    return [None if n is None else check_integer(function, name, n, least=1) for name, n in given.items()]


def tile_sizes(call: Call, tile_q: int | None, tile_k: int | None) -> tuple[int, int]:
    """Queries and keys in a tile of the plain forms."""
    query, key = call.query.shape, call.key.shape
    heads, key_heads = math.prod(query[:-2]), math.prod(key[:-2])
    return fitting(heads, key_heads, query[-2], query[-1] + call.value.shape[-1], tile_q, tile_k)


def kernels(capabilities: Capabilities, call: Call) -> Any:
    """The numba kernels, for a call that they serve."""
    library = library_of(call.query)
    if library not in capabilities.serves("numba"):
        raise refusal(capabilities, "numba", f"serves NumPy arrays; got {library}. Pass implementation=None.")
    try:
        return import_module("refattn.methods.flash.kernel_numba")
    except ModuleNotFoundError as error:
        why = f'needs {error.name}, which is not installed: pip install "refattn[numba]".'
        raise refusal(capabilities, "numba", why) from error


def no_threads(function: str, threads: int | None) -> None:
    """A plain form leaves threads to the library of its arrays."""
    if threads is not None:
        raise ValueError(
            f'{function}: threads must be None without implementation="numba": the arrays\' library chooses them; got '
            f"{threads}."
        )
