"""Layouts: how kernels store things, order of axes, packed, paged, padded, strided, to and from logical arrays."""

from refattn.layouts.orders import from_order, pack_kv, pack_qkv, to_order, unpack_kv, unpack_qkv
from refattn.layouts.padded import LeftPadded, pad_left, unpad_left
from refattn.layouts.paged import PageTable, pack_paged, page_table, unpack_paged
from refattn.layouts.quantise import quantise, quantise_mx, quantise_nvfp4
from refattn.layouts.quantised import Quantised, dequantise, unpack_e2m1
from refattn.layouts.ragged import Ragged, pack_ragged, unpack_ragged
from refattn.layouts.record import Layout
from refattn.layouts.scatter import scatter
from refattn.layouts.strides import expanded, poisoned

__all__ = (
    "Layout",
    "LeftPadded",
    "PageTable",
    "Quantised",
    "Ragged",
    "dequantise",
    "expanded",
    "from_order",
    "pack_kv",
    "pack_paged",
    "pack_qkv",
    "pack_ragged",
    "pad_left",
    "page_table",
    "poisoned",
    "quantise",
    "quantise_mx",
    "quantise_nvfp4",
    "scatter",
    "to_order",
    "unpack_e2m1",
    "unpack_kv",
    "unpack_paged",
    "unpack_qkv",
    "unpack_ragged",
    "unpad_left",
)
