"""The page on where systems disagree: every cell of its table and every picture is asked of the converters.

``python docs/conventions_page.py`` prints it.
"""

from __future__ import annotations

import numpy as np

import refattn
from refattn import conventions, masks
from refattn.conventions import Convention

HEAD = ("call", "diagonal", "window of {W}", "softcap", "log-sum-exp", "row without keys", "key head", "axes")
# The number that each call is given for its window.
W = 4
# Each as it is typed: a call with a diagonal, and with a window where the system has one.
CALLS: tuple[tuple[str, str | None], ...] = (
    ("flash_attn(causal=True)", "flash_attn(causal=True, window_size=({W}, 0))"),
    ("torch_sdpa(is_causal=True)", None),
    ("onnx(opset=25, is_causal=1)", "onnx(opset=25, is_causal=1, left_window_size={W})"),
    (
        "onnxruntime_gqa(num_heads=8, kv_num_heads=2)",
        "onnxruntime_gqa(num_heads=8, kv_num_heads=2, local_window_size={W})",
    ),
    ("flashinfer(causal=True)", "flashinfer(causal=True, window_left={W})"),
    ("jax_nn(is_causal=True)", "jax_nn(is_causal=True, local_window_size={W})"),
    ("xformers(attn_bias='LowerTriangularMask')", None),
    (
        "xformers(attn_bias='LowerTriangularFromBottomRightMask')",
        "xformers(attn_bias='LowerTriangularFromBottomRightLocalAttentionMask', window_size={W})",
    ),
    ("cudnn(use_causal_mask=True)", "cudnn(use_causal_mask=True, sliding_window_length={W})"),
    (
        "cudnn(use_causal_mask_bottom_right=True)",
        "cudnn(use_causal_mask_bottom_right=True, sliding_window_length={W})",
    ),
    ("mlx(scale=1.0, mask='causal')", None),
    (
        "transformer_engine(attn_mask_type='causal')",
        "transformer_engine(attn_mask_type='causal', window_size=({W}, 0))",
    ),
    (
        "transformer_engine(attn_mask_type='causal_bottom_right')",
        "transformer_engine(attn_mask_type='causal_bottom_right', window_size=({W}, 0))",
    ),
    ("transformers()", "transformers(sliding_window={W})"),
    (
        "transformers(attn_implementation='flash_attention')",
        "transformers(attn_implementation='flash_attention', sliding_window={W})",
    ),
    (
        "transformers(attn_implementation='eager')",
        "transformers(attn_implementation='eager', sliding_window={W})",
    ),
)
# What is shown, the two calls, and the numbers of queries and keys.
EXAMPLES: tuple[tuple[str, str, str, int, int], ...] = (
    (
        "The corner of the diagonal: two queries at the end of a cache of four keys.",
        "flash_attn(causal=True)",
        "torch_sdpa(is_causal=True)",
        2,
        4,
    ),
    (
        "What a window counts: the keys before the query's own, or its own among them.",
        "flash_attn(causal=True, window_size=(3, 0))",
        "transformers(sliding_window=3)",
        6,
        6,
    ),
    (
        "The same between two layers of one vendor.",
        "cudnn(diagonal_band_left_bound=3, diagonal_band_right_bound=0)",
        "transformer_engine(attn_mask_type='causal', window_size=(3, 0), qkv_format='bshd')",
        6,
        6,
    ),
    (
        "A window that lies at the upper left diagonal, whatever the cache is.",
        "flash_attn(window_size=(1, 1))",
        "jax_nn(local_window_size=(1, 1))",
        3,
        6,
    ),
    (
        "Both sides of a window, by distance and in one number.",
        "transformers(is_causal=False, sliding_window=2)",
        "from_hf_longformer(attention_window=2)",
        5,
        5,
    ),
    (
        "One model, two attention functions: the side of a bidirectional window.",
        "transformers(is_causal=False, sliding_window=2, attn_implementation='sdpa')",
        "transformers(is_causal=False, sliding_window=2, attn_implementation='flash_attention')",
        5,
        5,
    ),
    (
        "Chunks that start at the first key, or at the first token that is no padding.",
        "flash_attn(causal=True, attention_chunk=2)",
        "transformers(attention_chunk_size=2, attention_mask=np.array([[0, 1, 1, 1, 1, 1]]))",
        6,
        6,
    ),
    (
        "More queries than keys: rows without keys, and what is left in them.",
        "flash_attn(causal=True)",
        "xformers(attn_bias='LowerTriangularFromBottomRightMask')",
        4,
        2,
    ),
)


def call(source: str) -> Convention:
    """The record of a call as it is typed."""
    made = eval(f"conventions.{source}", {"conventions": conventions, "np": np})
    assert isinstance(made, Convention)
    return made


def diagonal(made: Convention) -> str:
    """The corner in which the mask of two queries and four keys has its diagonal."""
    cells = made.arguments["mask"].dense(2, 4)
    corners = ("lower_right", "upper_left")
    (found,) = (corner for corner in corners if np.array_equal(cells, masks.causal(corner).dense(2, 4)))
    return found.replace("_", " ")


def window(source: str | None) -> str:
    """Keys that a query sees far from both ends of the sequence."""
    if source is None:
        return "-"
    mask = call(source.format(W=W)).arguments["mask"]
    return f"{len(mask.row(3 * W, 6 * W, 6 * W, index=(0,) * len(mask.lead)))} keys"


def table() -> str:
    """The table in Markdown, one row for each call."""
    rows = []
    for source, windowed in CALLS:
        made = call(source)
        cells = (f"`{source}`", diagonal(made), window(windowed), made.softcap_order)
        rows.append((*cells, f"base {made.lse_base}", made.empty_row, f"`{made.head_map}`", f"`{made.layout}`"))
    head = tuple(name.format(W=W) for name in HEAD)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ("---",) * len(head), *rows])


def example(title: str, first: str, second: str, L: int, S: int) -> str:
    """One pair of calls, and what `disagree` says of it."""
    found = conventions.disagree(call(first), call(second), L=L, S=S)
    code = f">>> first = {first}\n>>> second = {second}\n>>> print(disagree(first, second, L={L}, S={S}))"
    return f"{title}\n\n```text\n{code}\n{found}\n```\n"


INTRODUCTION = """\
# Where systems disagree

Made by refattn {version} from its converters. The diagonal is read off the mask of two queries and four keys, the
window is the number of keys that a query sees when the call is given {W}. The other columns are what the record of the
call says; `refattn.testing.check` takes them over with `convention=`. The log-sum-exp is natural where a system returns
none. `none` under softcap: the call cannot cap scores. A row without keys is `undefined` where it depends on the kernel
that runs. The masks of ONNX and of Hugging Face lie where the cache says that they are given; without one, here, at the
upper left.

{table}

## Drawn

"""


def page() -> str:
    """The whole page in Markdown."""
    introduction = INTRODUCTION.format(version=refattn.__version__, W=W, table=table())
    return introduction + "\n".join(example(*one) for one in EXAMPLES)


if __name__ == "__main__":
    print(page())
