"""The Llama pass against loops over numbers, and what a decoder promises."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from refattn.analysis.models.llama import LlamaConfig, LlamaLayer, LlamaWeights, forward

CONFIG = LlamaConfig(
    layers=2,
    heads=6,
    key_heads=2,
    head_dim=4,
    width=10,
    hidden=14,
    vocabulary=17,
    context=12,
    rope_base=100.0,
    norm_eps=0.01,
)
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 16, 0])


def draw_weights(config=CONFIG, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)

    def matrix(out, width):
        return (rng.standard_normal((out, width)) / math.sqrt(width)).astype(dtype)

    def scale(width):
        return rng.uniform(0.5, 2.0, width).astype(dtype)

    D, F, HE, HkE = config.width, config.hidden, config.heads * config.head_dim, config.key_heads * config.head_dim
    layers = tuple(
        LlamaLayer(
            attention_norm=scale(D),
            query=3 * matrix(HE, D),
            key=3 * matrix(HkE, D),
            value=matrix(HkE, D),
            output=matrix(D, HE),
            hidden_norm=scale(D),
            gate=matrix(F, D),
            up=matrix(F, D),
            down=matrix(D, F),
        )
        for _ in range(config.layers)
    )
    embedding = matrix(config.vocabulary, D) * dtype(math.sqrt(D))
    return LlamaWeights(config=config, embedding=embedding, layers=layers, norm=scale(D))


def as_dtype(weights, dtype):
    def cast(record):
        arrays = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        return {name: a.astype(dtype) for name, a in arrays.items() if isinstance(a, np.ndarray)}

    layers = tuple(LlamaLayer(**cast(layer)) for layer in weights.layers)
    return LlamaWeights(config=weights.config, layers=layers, **cast(weights))


def attention(query, key, value):
    """Causal softmax attention, written out."""
    H, L, E = query.shape
    output = np.empty((H, L, value.shape[-1]))
    for h in range(H):
        g = h // (H // key.shape[0])
        for i in range(L):
            scores = key[g, : i + 1] @ query[h, i] / math.sqrt(E)
            weights = np.exp(scores - scores.max())
            output[h, i] = weights @ value[g, : i + 1] / weights.sum()
    return output


def loops(weights, tokens):
    """The whole pass over Python floats: no arrays, no axes."""
    c, E = weights.config, weights.config.head_dim
    group = c.heads // c.key_heads

    def times(matrix, vector):
        return [math.fsum(m * x for m, x in zip(row, vector, strict=True)) for row in matrix.tolist()]

    def norm(vector, scale):
        root = math.sqrt(math.fsum(x * x for x in vector) / len(vector) + c.norm_eps)
        return [x / root * s for x, s in zip(vector, scale.tolist(), strict=True)]

    def turn(vector, position):
        """Rotate the pairs (i, i + E/2) of each head."""
        turned = list(vector)
        for start in range(0, len(vector), E):
            for i in range(E // 2):
                angle = position * c.rope_base ** (-2 * i / E)
                a, b = start + i, start + i + E // 2
                turned[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
                turned[b] = vector[b] * math.cos(angle) + vector[a] * math.sin(angle)
        return turned

    stream = [weights.embedding[t].tolist() for t in tokens]
    for layer in weights.layers:
        normed = [norm(x, layer.attention_norm) for x in stream]
        query = [turn(times(layer.query, y), p) for p, y in enumerate(normed)]
        key = [turn(times(layer.key, y), p) for p, y in enumerate(normed)]
        value = [times(layer.value, y) for y in normed]
        for i in range(len(stream)):
            output = []
            for h in range(c.heads):
                g = h // group
                q = query[i][h * E : (h + 1) * E]
                scores = [
                    math.fsum(a * b for a, b in zip(q, key[j][g * E : (g + 1) * E], strict=True)) / math.sqrt(E)
                    for j in range(i + 1)
                ]
                p = [math.exp(s - max(scores)) for s in scores]
                for e in range(E):
                    output.append(math.fsum(p[j] * value[j][g * E + e] for j in range(i + 1)) / math.fsum(p))
            x = [a + b for a, b in zip(stream[i], times(layer.output, output), strict=True)]
            y = norm(x, layer.hidden_norm)
            hidden = [a / (1 + math.exp(-a)) * b for a, b in zip(times(layer.gate, y), times(layer.up, y), strict=True)]
            stream[i] = [a + b for a, b in zip(x, times(layer.down, hidden), strict=True)]
    return np.array([times(weights.embedding, norm(x, weights.norm)) for x in stream])


def rounding(weights, tokens):
    """What rounding may do to the logits: 16 times the error of the float32 pass, scaled to float64's unit."""
    single = as_dtype(weights, np.float32)
    error = forward(single, tokens, attention) - forward(as_dtype(single, np.float64), tokens, attention)
    return 16 * np.abs(error).max() * 2.0**-29


@pytest.mark.parametrize("seed", range(3))
def test_pass_is_the_definition(seed):
    weights = draw_weights(seed=seed)
    got, expected = forward(weights, TOKENS, attention), loops(weights, TOKENS)
    assert np.abs(got - expected).max() <= rounding(weights, TOKENS)


def test_later_tokens_leave_earlier_logits_untouched():
    weights = draw_weights()
    before = forward(weights, TOKENS, attention)
    for n in range(1, len(TOKENS)):
        changed = TOKENS.copy()
        changed[n:] = (changed[n:] + 7) % CONFIG.vocabulary
        after = forward(weights, changed, attention)
        np.testing.assert_array_equal(after[:n], before[:n])
        assert (after[n:] != before[n:]).any(axis=-1).all()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_prefix_gives_the_prefix_of_the_logits(n):
    weights = draw_weights()
    whole = forward(weights, TOKENS, attention)
    assert np.abs(forward(weights, TOKENS[:n], attention) - whole[:n]).max() <= rounding(weights, TOKENS)


def test_shared_key_heads_are_key_heads_repeated_in_place():
    """A model whose key head g is copied to the heads g G .. g G + G - 1 is the same model with Hk = H."""
    weights, E = draw_weights(), CONFIG.head_dim
    group = CONFIG.heads // CONFIG.key_heads

    def repeated(matrix):
        return np.repeat(matrix.reshape(CONFIG.key_heads, E, -1), group, axis=0).reshape(CONFIG.heads * E, -1)

    layers = tuple(dataclasses.replace(w, key=repeated(w.key), value=repeated(w.value)) for w in weights.layers)
    config = dataclasses.replace(CONFIG, key_heads=CONFIG.heads)
    expanded = dataclasses.replace(weights, config=config, layers=layers)
    difference = forward(expanded, TOKENS, attention) - forward(weights, TOKENS, attention)
    assert np.abs(difference).max() <= rounding(weights, TOKENS)


def test_collect_sees_what_attention_sees_layer_by_layer():
    seen, given = [], []

    def watched(query, key, value):
        given.append((query, key, value))
        return attention(query, key, value)

    forward(draw_weights(), TOKENS, watched, collect=lambda layer, *arrays: seen.append((layer, arrays)))
    assert [layer for layer, _ in seen] == [0, 1]
    for (_, collected), arrays in zip(seen, given, strict=True):
        assert all(a is b for a, b in zip(collected, arrays, strict=True))
        assert [a.shape for a in arrays] == [(6, 10, 4), (2, 10, 4), (2, 10, 4)]


def test_position_reaches_query_and_key_but_not_value():
    """In the first layer one token at two positions has one value, and a query and key of one length, turned."""
    taken = {}
    forward(draw_weights(), [5, 5, 5], attention, collect=lambda layer, *arrays: taken.setdefault(layer, arrays))
    query, key, value = taken[0]
    np.testing.assert_array_equal(value[:, 1:], value[:, :1].repeat(2, axis=1))
    for turned in (query, key):
        assert (turned[:, 0] != turned[:, 1]).any()
        assert (turned[:, 1] != turned[:, 2]).any()


def test_layers_that_add_nothing_leave_the_tied_embedding():
    weights = draw_weights()
    layers = tuple(
        dataclasses.replace(layer, output=np.zeros_like(layer.output), down=np.zeros_like(layer.down))
        for layer in weights.layers
    )
    got = forward(dataclasses.replace(weights, layers=layers), TOKENS, attention)
    x = weights.embedding[TOKENS]
    normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + CONFIG.norm_eps) * weights.norm
    np.testing.assert_array_equal(got, normed @ weights.embedding.T)


def test_dtype_of_the_weights_is_kept():
    def double(query, key, value):
        return attention(query.astype(np.float64), key.astype(np.float64), value.astype(np.float64))

    assert forward(as_dtype(draw_weights(), np.float32), TOKENS, double).dtype == np.float32


def weights_with(**arrays):
    return dataclasses.replace(draw_weights(), **arrays)


def layer_with(**arrays):
    weights = draw_weights()
    return dataclasses.replace(weights, layers=(weights.layers[0], dataclasses.replace(weights.layers[1], **arrays)))


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (
            ValueError,
            lambda: forward(draw_weights(), [[1, 2]], attention),
            "llama.forward: tokens must have one axis, (L,); got shape (1, 2). Pass one sequence at a time.",
        ),
        (
            ValueError,
            lambda: forward(draw_weights(), [1] * 13, attention),
            "llama.forward: tokens must have length L (axis 0) from 1 to config.context = 12; got 13.",
        ),
        (
            ValueError,
            lambda: forward(draw_weights(), [], attention),
            "llama.forward: tokens must have length L (axis 0) from 1 to config.context = 12; got 0.",
        ),
        (
            TypeError,
            lambda: forward(draw_weights(), [1.0], attention),
            "llama.forward: tokens must be integers; got float64.",
        ),
        (
            ValueError,
            lambda: forward(draw_weights(), [1, 2, 17, 18], attention),
            "llama.forward: tokens must be from 0 to V - 1 = 16; got 17 at position 2.",
        ),
        (
            ValueError,
            lambda: forward(draw_weights(), [1, -1], attention),
            "llama.forward: tokens must be from 0 to V - 1 = 16; got -1 at position 1.",
        ),
        (
            ValueError,
            lambda: forward(draw_weights(), [1, 2], lambda query, key, value: value),
            "llama.forward: attention must return an array of the query's shape (H, L, E) = (6, 2, 4); got (2, 2, 4).",
        ),
        (
            ValueError,
            lambda: layer_with(key=np.zeros((24, 10))),
            "LlamaWeights: layers[1].key must have shape (Hk * E, D) = (8, 10); got (24, 10).",
        ),
        (
            ValueError,
            lambda: weights_with(layers=()),
            "LlamaWeights: layers must hold config.layers = 2 layers; got 0.",
        ),
        (
            TypeError,
            lambda: weights_with(norm=np.ones(10, np.float32)),
            "LlamaWeights: norm must have the embedding's dtype float64; got float32.",
        ),
        (
            TypeError,
            lambda: weights_with(embedding=np.ones((17, 10), int)),
            "LlamaWeights: embedding must be floating; got int64.",
        ),
        (
            ValueError,
            lambda: dataclasses.replace(CONFIG, key_heads=4),
            "LlamaConfig: heads (H) must be a multiple of key_heads (Hk); got heads=6 and key_heads=4.",
        ),
        (
            ValueError,
            lambda: dataclasses.replace(CONFIG, head_dim=5),
            "LlamaConfig: head_dim (E) must be even, rotary angles turn pairs; got 5.",
        ),
        (ValueError, lambda: dataclasses.replace(CONFIG, layers=0), "LlamaConfig: layers must be positive; got 0."),
        (
            ValueError,
            lambda: dataclasses.replace(CONFIG, norm_eps=math.nan),
            "LlamaConfig: norm_eps must be positive; got nan.",
        ),
    ],
)
def test_message(error, call, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message
