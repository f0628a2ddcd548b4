"""Bugs of scale, softcap, bias and position: the scores before the mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from refattn.biases.families import Alibi
from refattn.testing.bugs.engine import Floats, Head
from refattn.testing.bugs.problems import SIZES, Problem
from refattn.testing.bugs.record import Bug, threads
from refattn.testing.bugs.rounding import rounded

Entry = partial(Bug, family="scale, softcap, bias, position")


def scaled(scale: Callable[[Head], float]) -> dict[str, Any]:
    """The step of another scale."""
    return {"scale": scale}


def dimensions(p: Problem) -> list[tuple[str, int]]:
    """Numbers that are taken for E, and their names."""
    (H, _), (E, Ev) = p.heads, p.dims
    named = [("the latent's 576", 576), ("the number of heads", H), ("the value's", Ev), ("all heads together", H * E)]
    return [(name, n) for name, n in named if n != E]


def sized(p: Problem) -> bool:
    """A scale other than 0."""
    return p.scale != 0


def capped_mask(x: Head) -> Floats:
    """Softcap of scores that are -inf where masked."""
    cap = x.problem.softcap
    assert cap is not None
    return np.asarray(cap * np.tanh(np.where(x.keep, x.raw, -math.inf) / cap) + x.bias)


def hides_under_softcap(p: Problem) -> bool:
    """Softcap and a mask."""
    return p.softcap is not None and p.mask is not None


def miscapped(x: Head) -> Floats:
    """Softcap without one of its factors."""
    cap, s = x.problem.softcap, x.raw
    assert cap is not None
    if x.choice == "tanh(s / cap)":
        return np.asarray(np.tanh(s / cap))
    return np.asarray(np.tanh(s * cap) if x.choice == "tanh(s cap)" else s * np.tanh(s / cap))


def capped_bias(x: Head) -> Floats:
    """Softcap of the score with its bias."""
    cap = x.problem.softcap
    assert cap is not None
    return np.asarray(cap * np.tanh((x.raw + x.bias) / cap))


def alibi(p: Problem) -> bool:
    """ALiBi, as a rule."""
    return isinstance(p.bias, Alibi)


def sloped(slopes: Callable[[Any, int], Floats]) -> Callable[[Head], Any]:
    """The bias with other slopes, made from those of all heads and their number."""

    def step(x: Head) -> Any:
        bias, H = x.problem.bias, x.problem.heads[0]
        assert isinstance(bias, Alibi)
        numbers = np.broadcast_to(bias.numbers, (*bias.numbers.shape[:-1], H))
        changed = replace(bias, numbers=np.broadcast_to(slopes(numbers, H), numbers.shape))
        return x.tile(changed.at(x.index))

    return step


def geometric(H: int, first: int) -> Floats:
    """2^(-8 n / H) for n = first, first + 1, ..."""
    return np.asarray(2.0 ** (-8.0 * (np.arange(H) + first) / H))


def turned_back(x: Head) -> Floats:
    """The query of position i + S - L turned to the position i."""
    base, q = x.problem.rotary_base, x.right("query")
    assert base is not None
    half = q.shape[1] // 2
    angle = (x.S - x.L) * base ** (-np.arange(half) / half)
    a, b = q[:, :half], q[:, half:]
    return np.concatenate([np.cos(angle) * a + np.sin(angle) * b, np.cos(angle) * b - np.sin(angle) * a], axis=1)


def first_block(x: Head) -> Any:
    """The bias of the first block of rows or keys, for every block."""
    bias, (axis, size) = x.problem.bias, x.choice
    assert bias is not None
    rows, keys = (x.rows % size, np.arange(x.S)) if axis == "rows" else (x.rows, np.arange(x.S) % size)
    return np.asarray(bias.at(x.index).tile(rows, keys, x.L, x.S, xp=np))


def blocks(p: Problem) -> list[tuple[str, int]]:
    """Axes of a bias and sizes of its blocks, several of them."""
    rows, keys = (SIZES if n is None else (n,) for n in (p.tile_q, p.tile_k))
    some = (("rows", rows, p.lengths[0]), ("keys", keys, p.lengths[1]))
    return [(axis, size) for axis, sizes, most in some for size in sizes if size < most]


CAPS = ("tanh(s / cap)", "tanh(s cap)", "s tanh(s / cap)")
LN2 = math.log(2)

SCORE_BUGS = (
    Entry(
        id="C1",
        name="exponentials of base 2 are taken of scores in base e",
        symptom="attention is flatter than it should be",
        formula="p = 2^s (log2(e) is forgotten)",
        links=threads("FI#787"),
        steps={
            "scores": lambda x: x.right("scores") * LN2,
            "sink": lambda x: None if x.right("sink") is None else x.right("sink") * LN2,
        },
    ),
    Entry(
        id="C2",
        name="the scale that was asked for is ignored",
        symptom="wrong wherever the scale is not 1/sqrt(E)",
        formula="scale = 1/sqrt(E)",
        links=threads("FI#1072 Megatron-LM#3698"),
        steps=scaled(lambda x: 1 / math.sqrt(x.problem.dims[0])),
        seen_in="scale",
    ),
    Entry(
        id="C3",
        name="the scale of the call before is used",
        symptom="a second call with another scale is wrong",
        formula="scale = that of the first call, kept in the graph's key",
        links=threads("FI#4014"),
        needs=lambda p: p.previous is not None,
        steps=scaled(lambda x: x.problem.previous.scale),  # type: ignore[union-attr]
        seen_in="scale",
    ),
    Entry(
        id="C4",
        name="the scale is made from another dimension",
        symptom="attention is flatter or sharper for some models",
        formula="1/sqrt(576), 1/sqrt(H), 1/sqrt(Ev) or 1/sqrt(H E) (should be 1/sqrt(E))",
        links=threads("ollama#13893 vllm#31380 Megatron-LM#1501"),
        choices=dimensions,
        label="{0[0]}",
        steps=scaled(lambda x: 1 / math.sqrt(x.choice[1])),
        seen_in="scale",
    ),
    Entry(
        id="C5",
        name="the scale is left out",
        symptom="attention is far too sharp",
        formula="scale = 1",
        links=threads("mlc-llm#3426 maxtext#1370"),
        steps=scaled(lambda x: 1.0),
        seen_in="scale",
    ),
    Entry(
        id="C5",
        name="the scale is inverted",
        symptom="attention is far too sharp",
        formula="scores times sqrt(E) (should be divided by it)",
        links=threads("mlc-llm#3426 maxtext#1370"),
        needs=sized,
        steps=scaled(lambda x: 1 / x.problem.scale),
        seen_in="scale",
    ),
    Entry(
        id="C6",
        name="YaRN's factor enters the scale once instead of squared",
        symptom="attention is too flat for stretched contexts",
        formula="mscale / sqrt(E) (should be mscale^2 / sqrt(E))",
        links=threads("Megatron-LM#1429"),
        needs=lambda p: p.scale > 0,
        steps=scaled(lambda x: math.sqrt(x.problem.scale / math.sqrt(x.problem.dims[0]))),
        seen_in="scale",
    ),
    Entry(
        id="C7",
        name="softcap comes after the mask",
        symptom="masked keys take weight",
        formula="softcap tanh(-inf / softcap) = -softcap, which leaks e^-softcap",
        links=threads("onnx#7865 onnx#7867 FI#350"),
        needs=hides_under_softcap,
        steps={"scores": capped_mask},
        seen_in="scores",
    ),
    Entry(
        id="C8",
        name="softcap lacks one of its factors",
        symptom="scores are cut to another range",
        formula="tanh(s / cap), tanh(s cap) or s tanh(s / cap) (should be cap tanh(s / cap))",
        links=threads("onnxruntime#21683 unsloth-zoo#593"),
        needs=lambda p: p.softcap is not None,
        choices=lambda p: CAPS,
        steps={"capped": miscapped},
    ),
    Entry(
        id="C9",
        name="the bias is added before softcap instead of after it",
        symptom="large biases are cut",
        formula="cap(s + b) (should be cap(s) + b)",
        links=threads("onnxruntime#28370 onnx#7867"),
        needs=lambda p: p.softcap is not None and p.bias is not None,
        steps={"biased": capped_bias},
    ),
    Entry(
        id="C11",
        name="ALiBi's slopes are those of a power of two for any number of heads",
        symptom="wrong where H is no power of two",
        formula="2^(-8 (h + 1) / H) for all heads",
        links=threads("MLX#343 MLX#3071 TensorRT-LLM#1611"),
        needs=alibi,
        steps={"bias": sloped(lambda numbers, H: geometric(H, 1))},
        seen_in="bias",
    ),
    Entry(
        id="C12",
        name="ALiBi's slopes start at 1, one head too early",
        symptom="all heads have too steep a slope",
        formula="2^(-8 h / H) with h from 0",
        links=threads("aprender#2143"),
        needs=alibi,
        steps={"bias": sloped(lambda numbers, H: geometric(H, 0))},
        seen_in="bias",
    ),
    Entry(
        id="C13",
        name="ALiBi's distance is off by one",
        symptom="the log-sum-exp is shifted, and the output beside sinks",
        formula="slope * (j - n) (should be slope * (j - n + 1))",
        links=threads("vllm#945"),
        needs=alibi,
        steps={"bias": lambda x: x.right("bias") - x.problem.bias.at(x.index).numbers},  # type: ignore[union-attr]
    ),
    Entry(
        id="C14",
        name="ALiBi's slopes are rounded to bfloat16",
        symptom="far keys have another bias",
        formula="bf16(slope) * distance",
        links=threads("FA#846"),
        needs=alibi,
        steps={"bias": sloped(lambda numbers, H: rounded(numbers, "bfloat16"))},
        seen_in="bias",
    ),
    Entry(
        id="C15",
        name="rotary embedding turns the query as if there were no keys before it",
        symptom="decoding and chunked prefill see wrong distances",
        formula="query i is turned to the position i (should be i + S - L)",
        links=threads("FI#847 FI#619 NVTE#2077"),
        needs=lambda p: p.rotary_base is not None,
        steps={"query": turned_back},
        seen_in="query",
    ),
    Entry(
        id="C16",
        name="the correction of the first block of rows or keys is added in every block",
        symptom="right in the first tile only",
        formula="c[block 0] (should be c[block of i], or of j)",
        links=threads("FI#3838"),
        needs=lambda p: p.bias is not None,
        choices=blocks,
        label="tiles of {0[1]} {0[0]}",
        steps={"bias": first_block},
        seen_in="bias",
    ),
)
