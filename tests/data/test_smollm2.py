"""The capture that ships: what it says about itself is true."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import refattn.data
from refattn.analysis.models.blocks import rotary
from refattn.data import smollm2

FOLDER = Path(refattn.data.__file__).parent
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scripts" / "capture_smollm2.py"
ARRAYS = ("query", "key", "value")


def logits(capture, layer, head):
    """Causal logits in float64, -inf where the key is hidden."""
    query, key = capture.query[layer, head].astype(np.float64), capture.key[layer, 0].astype(np.float64)
    return np.where(np.tri(len(query), dtype=bool), query @ key.T / 8, -np.inf)


def weights(capture, layer, head):
    scores = logits(capture, layer, head)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def test_shapes_and_dtype():
    capture = smollm2()
    assert capture.query.shape == (3, 3, 512, 64)
    assert capture.key.shape == capture.value.shape == (3, 1, 512, 64)
    assert {getattr(capture, name).dtype for name in ARRAYS} == {np.dtype(np.float16)}
    assert capture.layers == (0, 11, 26)
    assert capture.is_causal is True


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_finite_c_ordered_and_not_constant(name):
    array = getattr(smollm2(), name)
    assert np.isfinite(array).all()
    assert array.flags.c_contiguous
    assert (array.std(axis=-2, dtype=np.float64) > 0).all()


def test_nothing_in_it_can_be_changed():
    capture = smollm2()
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(capture, name)[0, 0, 0, 0] = 0
    with pytest.raises(TypeError):
        capture.provenance["model"] = "another"
    with pytest.raises(dataclasses.FrozenInstanceError):
        capture.text = ""
    assert smollm2() is capture


def test_query_heads_read_their_key_head():
    """Heads are the model's: 9 query heads, 3 key heads, head h reads h // 3."""
    capture = smollm2()
    for heads, (key_head,) in zip(capture.heads, capture.key_heads, strict=True):
        assert [h // 3 for h in heads] == [key_head] * 3


@pytest.mark.parametrize("name", ARRAYS)
def test_digest_of_the_array(name):
    capture = smollm2()
    assert hashlib.sha256(getattr(capture, name).tobytes()).hexdigest() == capture.provenance[f"{name}_sha256"]


def test_digest_of_the_text():
    capture = smollm2()
    assert hashlib.sha256(capture.text.encode()).hexdigest() == capture.provenance["text_sha256"]


def test_provenance_names_the_file_that_the_script_fetches():
    assignments = [node for node in ast.parse(SCRIPT.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in assignments
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id.endswith(("SHA256", "FILE", "GROUPS"))
    }
    capture = smollm2()
    assert capture.provenance["wheel_sha256"] == constants["WHEEL_SHA256"]
    assert capture.provenance["weights_sha256"] == constants["WEIGHTS_SHA256"]
    assert capture.provenance["weights_file"] == constants["WEIGHTS_FILE"]
    pairs = zip(capture.layers, capture.key_heads, strict=True)
    assert tuple((layer, g) for layer, (g,) in pairs) == constants["GROUPS"]


def test_file_beside_the_arrays_says_the_same():
    with np.load(FOLDER / "smollm2.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["meta"])) == json.loads((FOLDER / "smollm2.json").read_text(encoding="utf-8"))
        assert set(archive.files) == {*ARRAYS, "meta"}


def test_licences_lie_beside_the_data():
    capture = smollm2()
    assert capture.licence == "Apache-2.0 AND PSF-2.0"
    notice = (FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License, Version 2.0" in notice
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in notice
    assert "Copyright (c) 2001-2023 Python Software Foundation; All Rights Reserved" in notice


def test_it_is_about_one_megabyte():
    assert 800_000 <= (FOLDER / "smollm2.npz").stat().st_size <= 1_500_000


@pytest.mark.parametrize("name", ["query", "key"])
def test_first_layer_turned_back_depends_on_the_token_alone(name):
    """Query and key are taken after rotary embedding with base 1e5 in rotate-half order.

    The first layer's input is the embedding, so equal tokens (those with equal values) have equal queries and keys once
    the rotation is undone. Rounding to float16 moves a pair by sqrt(2) half ulp of its length, twice.
    """
    capture = smollm2()
    _, token, count = np.unique(capture.value[0, 0], axis=0, return_inverse=True, return_counts=True)
    assert (count > 1).sum() > 50
    turned = getattr(capture, name)[0].astype(np.float64)
    straight = rotary(turned, -np.arange(512), base=1e5)
    pairs = np.hypot(straight[..., :32], straight[..., 32:])
    bound = 2 * np.sqrt(2) * (2.0**-11 * np.concatenate([pairs, pairs], axis=-1) + 2.0**-25)
    apart = False
    for first, second in ((np.flatnonzero(token == t)[[0, -1]]) for t in np.flatnonzero(count > 1)):
        assert (np.abs(straight[:, first] - straight[:, second]) <= bound[:, first] * (1 + 2.0**-9)).all()
        apart |= bool((np.abs(turned[:, first] - turned[:, second]) > bound[:, first]).any())
    assert apart


def test_layer_0_attends_diffusely():
    """Half of the late queries spread their weight over more than 2^7.5 keys."""
    for head in range(3):
        p = weights(smollm2(), 0, head)[256:]
        entropy = -np.sum(p * np.log2(p, where=p > 0, out=np.zeros_like(p)), axis=-1)
        assert np.median(entropy) > 7.5


def test_layer_11_attends_to_the_nearest_tokens():
    """More than half of the weight lies on the query's own token and the four before it."""
    distance = np.subtract.outer(np.arange(512), np.arange(512))
    for head in range(3):
        assert weights(smollm2(), 1, head)[(distance >= 0) & (distance <= 4)].sum() > 0.5 * 512


def test_layer_26_attends_to_the_first_token():
    """The sink takes more than half of the weight of late queries, and leaves enough for the rest to matter."""
    for head in range(3):
        assert 0.5 < weights(smollm2(), 2, head)[64:, 0].mean() < 0.75


def test_logits_of_one_row_span_what_is_documented():
    capture, hidden = smollm2(), ~np.tri(512, dtype=bool)
    every = np.stack([logits(capture, layer, head) for layer in range(3) for head in range(3)])
    span = every.max(axis=-1) - np.where(hidden, np.inf, every).min(axis=-1)
    assert 43 <= span.max() < 44
