"""What ships with the package: real input, which a trained model fed to its attention, and golden digests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["Capture", "digests", "smollm2"]

Array = NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, eq=False)
class Capture:
    """Queries, keys and values recorded in a model, with what is needed to use, cite and remake them.

    Parameters
    ----------
    query : array of float16, shape (layers, H, L, E)
        Queries as the model's attention got them, so after rotary embedding; read-only.
    key : array of float16, shape (layers, Hk, S, E)
        Keys, after rotary embedding; query head h reads key head ``h // (H // Hk)``; read-only.
    value : array of float16, shape (layers, Hk, S, E)
        Values; read-only.
    layers : tuple of int
        The model's layer, counted from 0, of each entry of axis 0.
    heads : tuple of tuple of int
        For each layer the model's query heads of axis 1.
    key_heads : tuple of tuple of int
        For each layer the model's key heads of axis 1.
    is_causal : bool
        Whether query i attends to the keys j <= i only.
    text : str
        The text whose tokens the positions are.
    description : str
        What was recorded, in a sentence or two.
    licence : str
        SPDX expression. The licences' notices lie beside the data, in ``refattn/data/LICENSE``.
    provenance : mapping of str to str
        Model, weights and text with their licences and SHA-256 digests, digests of the arrays, how they were made.

    Examples
    --------
    >>> capture = smollm2()
    >>> capture.layers, capture.query.dtype, capture.query.flags.writeable
    ((0, 11, 26), dtype('float16'), False)
    """

    query: Array
    key: Array
    value: Array
    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    key_heads: tuple[tuple[int, ...], ...]
    is_causal: bool
    text: str
    description: str
    licence: str
    provenance: Mapping[str, str]


def smollm2() -> Capture:
    """Queries, keys and values of SmolLM2-135M-Instruct on 512 tokens of English prose.

    One key head with its three query heads from each of three layers, chosen because they differ: layer 0 attends
    diffusely, layer 11 mostly to the nearest tokens, layer 26 mostly to the first token (an attention sink). The logits
    of one row span up to 43.

    Returns
    -------
    Capture
        The frozen record, the same object at every call: query (3, 3, 512, 64), key and value (3, 1, 512, 64), float16
        NumPy, read-only; causal, scale 1/sqrt(64).

    Notes
    -----
    Licence: the arrays are computed from weights under Apache-2.0; the text is Python's documentation, under PSF-2.0.
    Cost: about 1 MB on disk, 2 MB in memory.

    Attention is independent per head, so the layers may be laid side by side as heads: the query reshaped to
    (9, 512, 64) and the key and value to (3, 512, 64) are nine query heads that share three key heads.

    References
    ----------
    .. [1] Ben Allal et al., SmolLM2: When Smol Goes Big - Data-Centric Training of a Small Language Model, 2025,
       arXiv:2502.02737.

    Examples
    --------
    >>> capture = smollm2()
    >>> capture.query.shape, capture.key.shape, capture.value.shape
    ((3, 3, 512, 64), (3, 1, 512, 64), (3, 1, 512, 64))
    >>> print(capture.text.splitlines()[3])
    A class can implement certain operations that are invoked by special
    """
    return _load("smollm2.npz")


def digests() -> Mapping[str, str]:
    """Golden digests: SHA-256 of correctly rounded attention on problems that have a name.

    Returns
    -------
    mapping of str to str
        For the name of each problem the 64 hexadecimal digits that every machine arrives at; read-only.

    Notes
    -----
    ``python -m refattn digest`` computes them again and compares.

    Examples
    --------
    >>> digests()["causal-bfloat16"][:16]
    '6a240ef3b3cc766d'
    """
    with (files(__name__) / "digests.json").open("rb") as file:
        return MappingProxyType(json.load(file))


@cache
def _load(name: str) -> Capture:
    """Read a capture from the file that ships under this name."""
    with (files(__name__) / name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in ("query", "key", "value")}
        meta = json.loads(str(archive["meta"]))
    for array in arrays.values():
        array.flags.writeable = False
    return Capture(
        **arrays,
        layers=tuple(meta["layers"]),
        heads=tuple(tuple(heads) for heads in meta["heads"]),
        key_heads=tuple(tuple(heads) for heads in meta["key_heads"]),
        is_causal=meta["is_causal"],
        text=meta["text"],
        description=meta["description"],
        licence=meta["licence"],
        provenance=MappingProxyType(meta["provenance"]),
    )
