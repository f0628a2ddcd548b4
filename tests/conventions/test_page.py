"""The page on where systems disagree, which is made from the converters."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest

from refattn import conventions

# By hand, from what each system documents: the corner of the diagonal, and how many keys a window of 4 is.
FACTS = {
    "flash_attn(causal=True)": ("lower right", "5 keys"),
    "torch_sdpa(is_causal=True)": ("upper left", "-"),
    "onnx(opset=25, is_causal=1)": ("upper left", "5 keys"),
    "onnxruntime_gqa(num_heads=8, kv_num_heads=2)": ("lower right", "4 keys"),
    "flashinfer(causal=True)": ("lower right", "5 keys"),
    "jax_nn(is_causal=True)": ("upper left", "5 keys"),
    "xformers(attn_bias='LowerTriangularMask')": ("upper left", "-"),
    "xformers(attn_bias='LowerTriangularFromBottomRightMask')": ("lower right", "4 keys"),
    "cudnn(use_causal_mask=True)": ("upper left", "4 keys"),
    "cudnn(use_causal_mask_bottom_right=True)": ("lower right", "4 keys"),
    "mlx(scale=1.0, mask='causal')": ("lower right", "-"),
    "transformer_engine(attn_mask_type='causal')": ("upper left", "5 keys"),
    "transformer_engine(attn_mask_type='causal_bottom_right')": ("lower right", "5 keys"),
    "transformers()": ("upper left", "4 keys"),
    "transformers(attn_implementation='flash_attention')": ("lower right", "4 keys"),
    "transformers(attn_implementation='eager')": ("upper left", "4 keys"),
}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What docs/conventions_page.py defines."""
    return runpy.run_path(str(Path(__file__).parents[2] / "docs" / "conventions_page.py"))


def test_the_table_says_what_the_systems_document(script: dict[str, Any]) -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in script["table"]().splitlines()[2:]]
    assert {row[0].strip("`"): (row[1], row[2]) for row in rows} == FACTS


def test_every_system_is_on_the_page(script: dict[str, Any]) -> None:
    page = script["page"]()
    converters = [name for name in conventions.__all__ if inspect.isfunction(getattr(conventions, name))]
    systems = [
        name for name in converters if inspect.signature(getattr(conventions, name)).return_annotation == "Convention"
    ]
    # FlexAttention's masks are graphs, and a rotary embedding has none: they have no diagonal to show.
    assert {name for name in systems if f"{name}(" not in page} <= {"onnx_flex", "onnx_rotary_embedding"}


def test_every_example_shows_a_difference(script: dict[str, Any]) -> None:
    examples = [script["example"](*one) for one in script["EXAMPLES"]]
    assert len(examples) == script["page"]().count("The two calls differ in") >= 8
