"""Masks: who may attend to whom, as rules that answer for a tile, a row or the whole, and combine with ``& | ~``."""

from __future__ import annotations

from refattn.masks.bands import causal, window
from refattn.masks.base import Mask
from refattn.masks.blocks import Blocks
from refattn.masks.documents import documents
from refattn.masks.families import array, as_mask, from_function, lengths
from refattn.masks.random import bernoulli
from refattn.masks.segments import chunked, prefix
from refattn.masks.tree import tree

__all__ = (
    "Blocks",
    "Mask",
    "array",
    "as_mask",
    "bernoulli",
    "causal",
    "chunked",
    "documents",
    "from_function",
    "lengths",
    "prefix",
    "tree",
    "window",
)
