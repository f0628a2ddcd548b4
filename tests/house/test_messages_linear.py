"""The whole text of every message about arguments that only linear attention has, and its feature maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from tests.messages import ANY, Case, K, Q, V, assert_raises, attend, strict

L_IS_S = {"key": np.zeros((2, 2, 3, 8)), "value": np.zeros((2, 2, 3, 6))}
STATE = ra.LinearState(np.zeros((2, 2, 8, 6)), np.zeros((2, 2, 8)))
MAPS = "'elu+1', 'relu', 'identity', 'softmax', 'efficient', 'taylor', 'squared', 'cosformer'"
FUNCTIONS = ("linear_attention", "linear_attention_gradient", "linear_decode")

# What the functions say of the arguments that they share.
SHARED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "an unknown map",
        {"feature_map": "elu"},
        ValueError,
        (
            f"feature_map must be one of {MAPS}, what cosformer_features or fourier_features return, or a function of an "
            "array; got 'elu'."
        ),
    ),
    (
        "no map",
        {"feature_map": 3},
        ValueError,
        (
            f"feature_map must be one of {MAPS}, what cosformer_features or fourier_features return, or a function of an "
            "array; got int."
        ),
    ),
    (
        "frequencies of another E",
        {"feature_map": ra.fourier_features(np.ones((4, 7)))},
        ValueError,
        "feature_map was made for queries of E=7 features (axis -1); got query (2, 4, 3, 8).",
    ),
    (
        "features of fewer rows",
        {"feature_map": lambda x: x[..., :1, :]},
        ValueError,
        (
            "feature_map must turn (..., n, E) into (..., n, M), with one M for queries and keys; got (2, 2, 2, 1, 8) of "
            "queries (2, 2, 2, 3, 8) and (2, 2, 1, 1, 8) of keys (2, 2, 1, 3, 8)."
        ),
    ),
    ("a map to a number", {"feature_map": len}, TypeError, f"feature_map's result {ANY} int."),
    (
        "a map to another library",
        {"feature_map": lambda x: strict(np.zeros(x.shape))},
        TypeError,
        (
            "query and feature_map's result must come from one array library; got query from numpy and feature_map's "
            "result from array_api_strict. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    ("normalize of 1", {"normalize": 1}, TypeError, "normalize must be True or False; got int."),
    ("a negative eps", {"eps": -1.0}, ValueError, "eps must be at least 0; got -1.0."),
    ("an endless eps", {"eps": math.inf}, ValueError, "eps must be finite in float64; got inf."),
    ("no eps", {"eps": None}, TypeError, "eps must be a real number; got NoneType."),
    ("another rule", {"eps_rule": "floor"}, ValueError, "eps_rule must be one of 'add', 'clamp'; got 'floor'."),
    ("half a position", {"position": 0.5}, TypeError, "position must be an integer; got float."),
    ("a position in front", {"position": -1}, ValueError, "position must be at least 0; got -1."),
    ("a position too far", {"position": 2**31}, ValueError, "position must be below 2**31; got 2147483648."),
    ("no state", {"state": np.zeros(3)}, TypeError, "state must be a LinearState (S, z); got ndarray."),
    ("a list as S", {"state": ([], STATE.z)}, TypeError, f"state.S {ANY} list."),
    (
        "a state of other features",
        {"state": (STATE.S[..., :7, :], STATE.z)},
        ValueError,
        "state.S must have shape (..., Hk, M, Ev)=(2, 2, 8, 6); got (2, 2, 7, 6).",
    ),
    (
        "a z of other heads",
        {"state": (STATE.S, STATE.z[:, :1])},
        ValueError,
        "state.z must have shape (..., Hk, M)=(2, 2, 8); got (2, 1, 8).",
    ),
    (
        "a position for a length of the call's own",
        {"feature_map": "cosformer", "position": 1},
        ValueError,
        (
            "feature_map='cosformer' takes its length from L and S, of which this call is only a part: a state or position "
            "was given. Pass feature_map=cosformer_features(length)."
        ),
    ),
    (
        "a state for all keys at once",
        {"feature_map": "efficient", "state": STATE},
        ValueError,
        (
            "feature_map='efficient' normalises the features over all keys, and so takes neither mask, is_causal nor state; "
            'got one of them. Pass feature_map="softmax".'
        ),
    ),
    (
        "a state of another library",
        {"state": tuple(map(strict, STATE))},
        TypeError,
        (
            "query and S must come from one array library; got query from numpy and S from array_api_strict. Convert one of "
            "them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
]


def call(function: str, **arguments: Any) -> Any:
    """A call of as many queries as keys."""
    if function == "linear_decode":
        return ra.linear_decode(arguments.pop("state", None), Q, *L_IS_S.values(), **arguments)
    return attend(function, **L_IS_S | arguments)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("arguments", "error", "text"), [x[1:] for x in SHARED], ids=[x[0] for x in SHARED])
def test_shared_argument(function: str, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    assert_raises(lambda: call(function, **arguments), error, f"{function}: {text}")


OWN: list[Case] = [
    (
        "no such form",
        lambda: attend("linear_attention", form="parallel"),
        ValueError,
        "linear_attention: form must be one of 'quadratic', 'recurrent', 'chunked'; got 'parallel'.",
    ),
    (
        "an empty chunk",
        lambda: attend("linear_attention", form="chunked", chunk=0),
        ValueError,
        "linear_attention: chunk must be at least 1; got 0.",
    ),
    (
        "a flag of None",
        lambda: attend("linear_attention", return_state=None),
        TypeError,
        "linear_attention: return_state must be True or False; got NoneType.",
    ),
    (
        "another flag",
        lambda: attend("linear_attention", return_normalizer=0),
        TypeError,
        "linear_attention: return_normalizer must be True or False; got int.",
    ),
    (
        "an implementation",
        lambda: attend("linear_attention", implementation="numba"),
        ra.ImplementationError,
        "linear_attention: implementation must be one of 'reference', or None for 'reference'; got 'numba'.",
    ),
    (
        "a rule as mask of a stream",
        lambda: call("linear_attention", mask=masks.causal(), form="chunked"),
        ra.ImplementationError,
        (
            'linear_attention: form="chunked" serves is_causal, and masks of keys alone, boolean arrays broadcastable to '
            '(..., 1, 1, S); got masks.causal(). Pass form="quadratic".'
        ),
    ),
    (
        "cells as mask of a stream",
        lambda: attend("linear_attention", mask=np.ones((3, 5), bool), form="recurrent"),
        ra.ImplementationError,
        (
            'linear_attention: form="recurrent" serves is_causal, and masks of keys alone, boolean arrays broadcastable to '
            '(..., 1, 1, S); got shape (3, 5). Pass form="quadratic".'
        ),
    ),
    (
        "a mask of heads beside a state",
        lambda: attend("linear_attention", mask=np.ones((4, 1, 5), bool), state=STATE),
        ra.ImplementationError,
        (
            "linear_attention: a state serves is_causal, and masks of keys alone, boolean arrays broadcastable to "
            "(..., 1, 1, S); got shape (4, 1, 5)."
        ),
    ),
    (
        "a mask for all keys at once",
        lambda: attend("linear_attention", feature_map="efficient", mask=np.ones((1, 5), bool)),
        ValueError,
        (
            "linear_attention: feature_map='efficient' normalises the features over all keys, and so takes neither mask, "
            'is_causal nor state; got one of them. Pass feature_map="softmax".'
        ),
    ),
    (
        "a gradient that is a list",
        lambda: attend("linear_attention_gradient", grad_output=[1.0]),
        TypeError,
        f"linear_attention_gradient: grad_output {ANY} list.",
    ),
    (
        "a gradient of another shape",
        lambda: attend("linear_attention_gradient", grad_output=np.zeros((2, 4, 3, 5))),
        ValueError,
        "linear_attention_gradient: grad_output must have shape (..., H, L, Ev)=(2, 4, 3, 6); got (2, 4, 3, 5).",
    ),
    (
        "a state's gradient that is none",
        lambda: attend("linear_attention_gradient", grad_state=3),
        TypeError,
        "linear_attention_gradient: grad_state must be a LinearState (S, z); got int.",
    ),
    (
        "a map without derivative",
        lambda: attend("linear_attention_gradient", feature_map=np.exp),
        ra.ImplementationError,
        (
            "linear_attention_gradient: feature_map must be one whose derivative is known; got a function. Take the "
            "derivative of linear_attention by torch.autograd or JAX."
        ),
    ),
    (
        "no length",
        lambda: ra.cosformer_features(0),
        ValueError,
        "cosformer_features: length must be at least 1; got 0.",
    ),
    (
        "frequencies in a list",
        lambda: ra.fourier_features([[1.0]]),
        TypeError,
        f"fourier_features: frequencies {ANY} list.",
    ),
    (
        "frequencies of one axis",
        lambda: ra.fourier_features(np.ones(3)),
        ValueError,
        "fourier_features: frequencies must have shape (m, E), neither of them 0; got (3,).",
    ),
    (
        "a scale of 0",
        lambda: ra.fourier_features(np.ones((3, 2)), scale=0),
        ValueError,
        "fourier_features: scale must be positive; got 0.",
    ),
    (
        "no features",
        lambda: ra.fourier_frequencies(0, 3),
        ValueError,
        "fourier_frequencies: features must be at least 1; got 0.",
    ),
    (
        "a dimension of a half",
        lambda: ra.fourier_frequencies(3, 0.5),
        TypeError,
        "fourier_frequencies: dim must be an integer; got float.",
    ),
    (
        "a cost of a function",
        lambda: ra.cost(ra.linear_attention, Q, K, V, feature_map=len),
        ra.ImplementationError,
        (
            "cost: feature_map must be one whose operations are counted, 'identity', 'relu', 'elu+1', 'softmax', 'efficient', "
            "'taylor', 'squared', 'cosformer', 'fourier'; got <built-in function len>."
        ),
    ),
]


@pytest.mark.parametrize(("act", "error", "text"), [x[1:] for x in OWN], ids=[x[0] for x in OWN])
def test_own_argument(act: Any, error: type[Exception], text: str) -> None:
    assert_raises(act, error, text)
