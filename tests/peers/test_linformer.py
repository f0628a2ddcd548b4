"""Low-rank attention: the stored outputs of linformer and nystrom-attention, which compute in float32."""

from __future__ import annotations

import numpy as np
import pytest

import refattn as ra
from refattn.methods.linformer.reference import pseudo_inverse
from tests.peers.cases import DATA, load, split_heads

# Of 1 + |value|.
SHARE = 2e-5


def stored(name: str, array: str) -> np.ndarray:
    """An array that is neither an input nor an output: a parameter."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        found: np.ndarray = arrays[array]
    return found


def assert_near(got: np.ndarray, want: np.ndarray) -> None:
    """As near as float32 comes."""
    assert got.shape == want.shape
    assert (np.abs(got - want) <= SHARE * (1 + np.abs(want))).all()


@pytest.mark.parametrize("name", ["linformer_default_n48", "linformer_sharekv_n48"])
def test_linformer(name: str) -> None:
    case = load(name)
    q, k, v = (split_heads(case.inputs[x], 4) for x in "qkv")
    E, F = stored(name, "w_E"), stored(name, "w_F")
    if case.meta.get("share_kv"):
        # One projection of the input serves as key and as value.
        v = k
    got = ra.linformer_attention(q, k, v, key_projection=E, value_projection=F, dtype="float64")
    heads = case.outputs["heads"]
    assert_near(got.swapaxes(1, 2).reshape(heads.shape), heads)


def test_the_iteration() -> None:
    with np.load(DATA / "nystrom_pinv.npz", allow_pickle=False) as arrays:
        A, want = arrays["in_x"].astype(np.float64), arrays["out"]
    assert_near(pseudo_inverse(A, iterations=6, coupled=True, xp=np), want)


def test_nystrom() -> None:
    case = load("nystrom_attention")
    q, k, v = (case.inputs[x] for x in "qkv")
    got = ra.nystrom_attention(q, k, v, landmarks=8, coupled=True, dtype="float64")
    weights = stored("nystrom_attention", "w_conv")[:, 0, :, 0].astype(np.float64)
    # A convolution of the values along their length, which the peer adds, with as many zeros at either end.
    half = weights.shape[1] // 2
    padded = np.pad(v.astype(np.float64), ((0, 0), (0, 0), (half, half), (0, 0)))
    for n in range(weights.shape[1]):
        got = got + weights[None, :, n, None, None] * padded[:, :, n : n + v.shape[2]]
    heads = case.outputs["heads"]
    assert_near(got.swapaxes(1, 2).reshape(heads.shape), heads)
