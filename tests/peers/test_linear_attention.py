"""Linear attention of other libraries: stored outputs, within the tolerances that are stated beside the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.peers.cases import DATA, load, split_heads

# Of these peers: relative to 1 + |ref|, tests/peers/data/README.md.
SINGLE = 2e-5
FORMS = ("quadratic", "recurrent", "chunked")


def off(got: np.ndarray, want: np.ndarray) -> float:
    """Largest distance, relative to 1 + |ref|, as a share of what is allowed."""
    want = want.astype(np.float64)
    assert got.shape == want.shape
    return float(np.max(np.abs(got - want) / (1 + np.abs(want)))) / SINGLE


def operands(name: str, *, heads_first: bool = False) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Query, key and value (B, H, L, E) of a case in float64, and its outputs."""
    case = load(name)
    arrays = [case.inputs[x].astype(np.float64) for x in "qkv"]
    return arrays if heads_first else [x.swapaxes(1, 2) for x in arrays], case.outputs


# Name of the case and of its output; what refattn is asked for; and what must not fit.
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("idiap_linear_elu", "out", {"eps": 1e-6}, {"feature_map": "relu", "eps": 1.0}),
    ("fla_based", "out", {"feature_map": "taylor", "is_causal": True, "eps": 1e-6}, {"scale": 1.0}),
    # The peer adds its eps to the sum times 8^(-1/2).
    ("fla_linear_normalised_elu", "out", {"is_causal": True, "eps": 1e-10 * 8**0.5}, {"is_causal": False}),
    ("fla_linear_normalised_elu", "chunk", {"is_causal": True, "eps": 1e-10 * 8**0.5}, {"normalize": False}),
]


@pytest.mark.parametrize(("name", "output", "arguments", "wrong"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_forms(name: str, output: str, arguments: dict[str, Any], wrong: dict[str, Any]) -> None:
    arrays, outputs = operands(name)
    want = outputs[output].swapaxes(1, 2)
    for form in FORMS:
        assert off(ra.linear_attention(*arrays, **arguments, form=form, chunk=16), want) <= 1, form
    assert off(ra.linear_attention(*arrays, **arguments | wrong), want) > 1


@pytest.mark.parametrize("form", FORMS)
def test_flash_linear_attention_with_a_state(form: str) -> None:
    arrays, outputs = operands("fla_linear_recurrent")
    state = ra.LinearState(load("fla_linear_recurrent").inputs["h0"], np.zeros((2, 2, 8)))
    given: dict[str, Any] = {"feature_map": "identity", "is_causal": True, "normalize": False, "scale": 8**-0.5}
    got = ra.linear_attention(*arrays, **given, state=state, return_state=True, form=form, chunk=24)
    assert off(got.output, outputs["out"].swapaxes(1, 2)) <= 1
    assert off(got.state.S, outputs["state"]) <= 1


@pytest.mark.parametrize("form", FORMS)
def test_onnxruntime_s_linear_rule(form: str) -> None:
    case = load("ort_linear_attention_linear")
    heads = {"q": case.meta["q_num_heads"], "k": case.meta["kv_num_heads"], "v": case.meta["kv_num_heads"]}
    arrays = [split_heads(case.inputs[x].astype(np.float64), n) for x, n in heads.items()]
    state = ra.LinearState(case.inputs["past_state"], np.zeros((2, 2, 16)))
    given: dict[str, Any] = {"feature_map": "identity", "is_causal": True, "normalize": False, "scale": 16**-0.5}
    got = ra.linear_attention(*arrays, **given, state=state, return_state=True, form=form, chunk=10)
    assert off(got.output, split_heads(case.outputs["out"], heads["q"])) <= 1
    assert off(got.state.S, case.outputs["state"]) <= 1


def test_onnx_s_linear_rule_of_one_token() -> None:
    case = load("onnx/test_linear_attention_linear_t1_no_past")
    heads = case.meta["attrs"]["kv_num_heads"]
    arrays = [split_heads(case.inputs[x].astype(np.float64), heads) for x in ("query", "key", "value")]
    got = ra.linear_decode(None, *arrays, feature_map="identity", normalize=False, scale=arrays[0].shape[-1] ** -0.5)
    assert off(got.output, split_heads(case.outputs["output"], heads)) <= 1
    assert off(got.state.S, case.outputs["present_state"]) <= 1


def test_performer_pytorch_without_projection_is_efficient_attention() -> None:
    arrays, outputs = operands("performer_pytorch_no_projection", heads_first=True)
    assert off(ra.linear_attention(*arrays, feature_map="efficient"), outputs["out"]) <= 1
    assert off(ra.linear_attention(*arrays, feature_map="softmax"), outputs["out"]) > 1


@pytest.mark.parametrize("of", ["x", "y"])
def test_idiap_s_random_fourier_features(of: str) -> None:
    case = load("idiap_rff")
    phi = ra.fourier_features(_omega().T, scale=case.meta["softmax_temp"])
    assert off(phi(case.inputs[of]), case.outputs[of]) <= 1


def test_the_kernel_of_idiap_s_features_has_half_the_factor_that_its_docstring_says() -> None:
    t, phi = 0.5, ra.fourier_features(ra.fourier_frequencies(200_000, 2, rng=1), scale=0.5)
    x, y = np.array([[0.3, -1.0]]), np.array([[1.0, 0.2]])
    squared = float(np.sum((x - y) ** 2))
    found, sigma = float((phi(x) @ phi(y).T).item()), 200_000**-0.5
    assert abs(found - np.exp(-t * squared / 2)) <= 5 * sigma
    assert abs(found - np.exp(-t * squared)) > 5 * sigma


def _omega() -> np.ndarray:
    """The frequencies of idiap's case, which are no input of a call."""
    with np.load(DATA / "idiap_rff.npz", allow_pickle=False) as stored:
        omega: np.ndarray = stored["w_omega"]
    return omega
