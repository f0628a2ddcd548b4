"""The Llama decoder in plain NumPy, with attention passed in as a function.

One sequence, no batch axis, no cache: each call sees the whole sequence. Letters: L tokens, D model width, F width of
the feed-forward layer, V vocabulary, H query heads, Hk key heads, E head dimension. The matrices are stored as
checkpoints store them, (out, in), so a projection of x (L, in) is ``x @ W.T``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refattn.analysis.models.blocks import rms_norm, rotary, swiglu

__all__ = ["LlamaConfig", "LlamaLayer", "LlamaWeights", "forward"]

Array = NDArray[Any]
Attention = Callable[[Array, Array, Array], Any]
Collect = Callable[[int, Array, Array, Array], object]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes and constants of a Llama model.

    Parameters
    ----------
    layers : int
        Number of decoder layers.
    heads : int
        Query heads H, a multiple of ``key_heads``.
    key_heads : int
        Key (and value) heads Hk. Query head h reads key head ``h // (H // Hk)`` [1]_.
    head_dim : int
        Head dimension E, even.
    width : int
        Model width D.
    hidden : int
        Width F of the feed-forward layer.
    vocabulary : int
        Number of tokens V.
    context : int
        Longest sequence the model was trained for, in tokens.
    rope_base : float
        Base of the rotary angles.
    norm_eps : float
        Constant added to the mean square in RMSNorm.

    Raises
    ------
    ValueError
        A size or constant that is not positive, H not a multiple of Hk, an odd E.

    References
    ----------
    .. [1] Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, EMNLP
       2023, arXiv:2305.13245.

    Examples
    --------
    >>> LlamaConfig(layers=30, heads=9, key_heads=3, head_dim=64, width=576, hidden=1536, vocabulary=49152,
    ...             context=8192, rope_base=1e5, norm_eps=1e-5).heads
    9
    """

    layers: int
    heads: int
    key_heads: int
    head_dim: int
    width: int
    hidden: int
    vocabulary: int
    context: int
    rope_base: float
    norm_eps: float

    def __post_init__(self) -> None:
        """Refuse sizes that no Llama model can have."""
        for field in fields(self):
            size = getattr(self, field.name)
            if not size > 0:
                msg = f"LlamaConfig: {field.name} must be positive; got {size}."
                raise ValueError(msg)
        if self.heads % self.key_heads:
            msg = (
                f"LlamaConfig: heads (H) must be a multiple of key_heads (Hk); got heads={self.heads} and "
                f"key_heads={self.key_heads}."
            )
            raise ValueError(msg)
        if self.head_dim % 2:
            msg = f"LlamaConfig: head_dim (E) must be even, rotary angles turn pairs; got {self.head_dim}."
            raise ValueError(msg)


@dataclass(frozen=True, kw_only=True, eq=False)
class LlamaLayer:
    """Weights of one decoder layer, each matrix (out, in).

    Parameters
    ----------
    attention_norm : array, shape (D,)
        Scale of the RMSNorm before attention.
    query : array, shape (H * E, D)
        Query projection; rows of a head in rotate-half order (see `blocks.halves_from_interleaved`).
    key : array, shape (Hk * E, D)
        Key projection, in the same order.
    value : array, shape (Hk * E, D)
        Value projection.
    output : array, shape (D, H * E)
        Projection of the heads' concatenated outputs.
    hidden_norm : array, shape (D,)
        Scale of the RMSNorm before the feed-forward layer.
    gate : array, shape (F, D)
        Gate projection of SwiGLU.
    up : array, shape (F, D)
        Linear projection of SwiGLU.
    down : array, shape (D, F)
        Projection back to the model width.

    Examples
    --------
    >>> one = np.ones
    >>> layer = LlamaLayer(attention_norm=one(8), query=one((8, 8)), key=one((4, 8)), value=one((4, 8)),
    ...                    output=one((8, 8)), hidden_norm=one(8), gate=one((16, 8)), up=one((16, 8)),
    ...                    down=one((8, 16)))
    >>> layer.down.shape
    (8, 16)
    """

    attention_norm: Array
    query: Array
    key: Array
    value: Array
    output: Array
    hidden_norm: Array
    gate: Array
    up: Array
    down: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class LlamaWeights:
    """A whole model: its sizes and its arrays, all of one floating dtype.

    The embedding is tied: the matrix that turns tokens into vectors also turns the last vectors into logits [1]_.

    Parameters
    ----------
    config : LlamaConfig
        The sizes that every array must have.
    embedding : array, shape (V, D)
        Token embedding, used at both ends.
    layers : tuple of LlamaLayer
        The decoder layers, first to last.
    norm : array, shape (D,)
        Scale of the RMSNorm before the logits.

    Raises
    ------
    ValueError
        An array whose shape does not follow from `config`, or a wrong number of layers.
    TypeError
        An array that is not floating, or whose dtype is not that of the embedding.

    References
    ----------
    .. [1] Press and Wolf, Using the Output Embedding to Improve Language Models, EACL 2017, arXiv:1608.05859.

    Examples
    --------
    >>> config = LlamaConfig(layers=1, heads=2, key_heads=1, head_dim=4, width=8, hidden=16, vocabulary=5, context=9,
    ...                      rope_base=1e4, norm_eps=1e-5)
    >>> LlamaWeights(config=config, embedding=np.ones((5, 7)), layers=(), norm=np.ones(8))
    Traceback (most recent call last):
    ValueError: LlamaWeights: embedding must have shape (V, D) = (5, 8); got (5, 7).
    """

    config: LlamaConfig
    embedding: Array
    layers: tuple[LlamaLayer, ...]
    norm: Array

    def __post_init__(self) -> None:
        """Hold every array against the config."""
        c = self.config
        D, F, HE, HkE = c.width, c.hidden, c.heads * c.head_dim, c.key_heads * c.head_dim
        shapes = {
            "attention_norm": ("(D,)", (D,)),
            "query": ("(H * E, D)", (HE, D)),
            "key": ("(Hk * E, D)", (HkE, D)),
            "value": ("(Hk * E, D)", (HkE, D)),
            "output": ("(D, H * E)", (D, HE)),
            "hidden_norm": ("(D,)", (D,)),
            "gate": ("(F, D)", (F, D)),
            "up": ("(F, D)", (F, D)),
            "down": ("(D, F)", (D, F)),
        }
        self._check("embedding", self.embedding, "(V, D)", (c.vocabulary, D))
        self._check("norm", self.norm, "(D,)", (D,))
        if len(self.layers) != c.layers:
            msg = f"LlamaWeights: layers must hold config.layers = {c.layers} layers; got {len(self.layers)}."
            raise ValueError(msg)
        for n, layer in enumerate(self.layers):
            for name, (letters, shape) in shapes.items():
                self._check(f"layers[{n}].{name}", getattr(layer, name), letters, shape)

    def _check(self, name: str, array: Array, letters: str, shape: tuple[int, ...]) -> None:
        """Refuse an array of another shape, or of another dtype than the embedding's."""
        if array.shape != shape:
            msg = f"LlamaWeights: {name} must have shape {letters} = {shape}; got {array.shape}."
            raise ValueError(msg)
        if array.dtype.kind != "f":
            msg = f"LlamaWeights: {name} must be floating; got {array.dtype}."
            raise TypeError(msg)
        if array.dtype != self.embedding.dtype:
            msg = f"LlamaWeights: {name} must have the embedding's dtype {self.embedding.dtype}; got {array.dtype}."
            raise TypeError(msg)


def forward(weights: LlamaWeights, tokens: ArrayLike, attention: Attention, *, collect: Collect | None = None) -> Array:
    """Logits of the next token at each position of one sequence.

        x = x + output(attention(rotary(query), rotary(key), value))      of rms_norm(x)
        x = x + swiglu(rms_norm(x))                                       layer by layer
        logits = rms_norm(x) embedding^T

    Parameters
    ----------
    weights : LlamaWeights
        The model.
    tokens : array of int, shape (L,)
        Token ids, the first at position 0; L from 1 to ``config.context``.
    attention : callable
        ``attention(query, key, value) -> output`` with query (H, L, E), key and value (Hk, L, E), output (H, L, E).
        It is called once a layer and masks by itself: a decoder needs it causal. The logits' scale is 1/sqrt(E).
    collect : callable, optional
        ``collect(layer, query, key, value)``, called before `attention` with the same arrays.

    Returns
    -------
    array, shape (L, V)
        Logits in the dtype of the weights; row t predicts token t + 1.

    Raises
    ------
    TypeError
        Tokens that are not integers.
    ValueError
        Tokens of another rank, none, more than the context, or outside the vocabulary; an attention whose result has
        another shape.

    Notes
    -----
    Cost: 2 L multiply-adds for each weight of the layers, L V D for the logits, and the attention passed in.
    Numerics: everything is computed in the dtype of the weights, and the attention's result is rounded to it.

    References
    ----------
    .. [1] Touvron et al., LLaMA: Open and Efficient Foundation Language Models, 2023, arXiv:2302.13971, section 2.2.

    Examples
    --------
    A model with one layer, and an attention in which each token sees only itself:

    >>> config = LlamaConfig(layers=1, heads=2, key_heads=1, head_dim=4, width=8, hidden=16, vocabulary=5, context=9,
    ...                      rope_base=1e4, norm_eps=1e-5)
    >>> draw = np.random.default_rng(0).standard_normal
    >>> layer = LlamaLayer(attention_norm=np.ones(8), query=draw((8, 8)), key=draw((4, 8)), value=draw((4, 8)),
    ...                    output=draw((8, 8)), hidden_norm=np.ones(8), gate=draw((16, 8)), up=draw((16, 8)),
    ...                    down=draw((8, 16)))
    >>> weights = LlamaWeights(config=config, embedding=draw((5, 8)), layers=(layer,), norm=np.ones(8))
    >>> forward(weights, [3, 1, 4], lambda query, key, value: np.repeat(value, 2, axis=0)).shape
    (3, 5)
    """
    config, E = weights.config, weights.config.head_dim
    tokens = _checked_tokens(tokens, config)
    positions = np.arange(tokens.size)

    def norm(x: Array, weight: Array) -> Array:
        return rms_norm(x, weight, eps=config.norm_eps)

    def heads(x: Array) -> Array:
        """(L, heads * E) as (heads, L, E)."""
        return x.reshape(tokens.size, -1, E).swapaxes(0, 1)

    x = weights.embedding[tokens]
    for n, layer in enumerate(weights.layers):
        y = norm(x, layer.attention_norm)
        query = rotary(heads(y @ layer.query.T), positions, base=config.rope_base)
        key = rotary(heads(y @ layer.key.T), positions, base=config.rope_base)
        value = heads(y @ layer.value.T)
        if collect is not None:
            collect(n, query, key, value)
        output = _checked_output(attention(query, key, value), query)
        x = x + output.swapaxes(0, 1).reshape(tokens.size, -1) @ layer.output.T
        x = x + swiglu(norm(x, layer.hidden_norm), layer.gate, layer.up, layer.down)
    return np.asarray(norm(x, weights.norm) @ weights.embedding.T)


def _checked_tokens(tokens: ArrayLike, config: LlamaConfig) -> Array:
    """Tokens as an integer array (L,), or the message that says why they are none."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1:
        msg = f"llama.forward: tokens must have one axis, (L,); got shape {tokens.shape}. Pass one sequence at a time."
        raise ValueError(msg)
    if not 1 <= tokens.size <= config.context:
        msg = (
            f"llama.forward: tokens must have length L (axis 0) from 1 to config.context = {config.context}; got "
            f"{tokens.size}."
        )
        raise ValueError(msg)
    if tokens.dtype.kind not in "iu":
        msg = f"llama.forward: tokens must be integers; got {tokens.dtype}."
        raise TypeError(msg)
    if tokens.min() < 0 or tokens.max() >= config.vocabulary:
        at = int(np.flatnonzero((tokens < 0) | (tokens >= config.vocabulary))[0])
        msg = (
            f"llama.forward: tokens must be from 0 to V - 1 = {config.vocabulary - 1}; got {tokens[at]} at "
            f"position {at}."
        )
        raise ValueError(msg)
    return tokens


def _checked_output(output: Any, query: Array) -> Array:
    """Result of the attention passed in, in the dtype of the query."""
    output = np.asarray(output)
    if output.shape != query.shape:
        msg = (
            f"llama.forward: attention must return an array of the query's shape (H, L, E) = {query.shape}; got "
            f"{output.shape}."
        )
        raise ValueError(msg)
    return np.asarray(output, dtype=query.dtype)
