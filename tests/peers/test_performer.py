"""Random features: what performer-pytorch stores of its own, features, projections and outputs."""

from __future__ import annotations

import numpy as np
import pytest

import refattn as ra
from tests.peers.cases import load

# Of 1 + |value|: the peer computes in float32.
SHARE = 2e-5


@pytest.mark.parametrize(
    ("name", "kind", "eps"),
    [("performer_pytorch_softmax_noncausal_scaling0", "positive", 1e-4), ("performer_pytorch_relu", "relu", 1e-3)],
)
def test_fast_attention(name: str, kind: str, eps: float) -> None:
    case = load(name)
    q, k, v = (case.inputs[x] for x in "qkv")
    with_eps = {"projection": stored(name), "features": kind, "eps": eps, "dtype": "float64"}
    got = ra.performer_attention(q, k, v, **with_eps)
    want = case.outputs["out"]
    assert (np.abs(got - want) <= SHARE * (1 + np.abs(want))).all()
    # Without what it adds to its features it is another function.
    other = ra.performer_attention(q, k, v, **{**with_eps, "eps": 0.0})
    assert (np.abs(other - want) > SHARE * (1 + np.abs(want))).any()


def test_projection() -> None:
    """Blocks that are orthogonal, of vectors with lengths of their own, and signs that were not corrected."""
    W = load("performer_pytorch_projection_seed0").outputs["out"].astype(np.float64)
    M, E = W.shape
    ours = ra.random_projection(M, E, qr="lapack", rng=0)
    for start in range(0, M, E):
        for some in (W[start : start + E], ours[start : start + E]):
            rows = some / np.linalg.norm(some, axis=1, keepdims=True)
            # Float32's QR: E sqrt(E) roundings of unit vectors.
            np.testing.assert_array_less(np.abs(rows @ rows.T - np.eye(len(rows))), 2 * E**1.5 * 2.0**-24)
            assert some[0, 0] < 0


def stored(name: str) -> np.ndarray:
    """The projection that a case was computed with."""
    from tests.peers.cases import DATA

    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        found: np.ndarray = arrays["w_projection"]
    return found
