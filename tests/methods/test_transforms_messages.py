"""What rotary embedding and latent attention say to wrong arguments, in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import refattn as ra
from tests.messages import ANY, Case, assert_raises, strict

X, ROWS, TABLE = np.zeros((2, 4, 3, 8)), np.zeros((3, 4)), np.zeros((9, 4))
LATENTS = {
    "q_nope": np.zeros((2, 4, 3, 8)),
    "q_rope": np.zeros((2, 4, 3, 2)),
    "c_kv": np.zeros((2, 5, 6)),
    "k_rope": np.zeros((2, 5, 2)),
    "W_UK": np.zeros((4, 8, 6)),
    "W_UV": np.zeros((4, 7, 6)),
}
PLACES = "rotary_embedding: positions must have shape (..., L)=(2, 3), or broadcast to it before L; got"
FITS = "rotary_embedding: cos must have shape (..., L, R/2)=(2, 3, 4), or broadcast to it before L; got"
HINT = "Pass positions= for a table of all positions."


def turned(x: Any = X, cos: Any = ROWS, sin: Any = None, **more: Any) -> Callable[[], Any]:
    """A call of rotary_embedding; the sines are of the cosines' kind where none are given."""
    return lambda: ra.rotary_embedding(x, cos, cos if sin is None else sin, **more)


def angles(positions: Any = ROWS, rotary_dim: Any = 8, **more: Any) -> Callable[[], Any]:
    """A call of rotary_cos_sin."""
    return lambda: ra.rotary_cos_sin(positions, rotary_dim, **more)


def latent(function: str, **changed: Any) -> Callable[[], Any]:
    """A call of one of the two forms."""
    return lambda: getattr(ra, function)(**LATENTS | changed)


WRONG: list[Case] = [
    ("a list", turned([1.0]), TypeError, f"rotary_embedding: x {ANY} list."),
    (
        "integer cosines",
        turned(cos=ROWS.astype(int)),
        TypeError,
        "rotary_embedding: cos must have a real floating-point dtype; got int64.",
    ),
    (
        "integer sines",
        turned(sin=ROWS.astype(int)),
        TypeError,
        "rotary_embedding: sin must have a real floating-point dtype; got int64.",
    ),
    (
        "cosines of another library",
        lambda: ra.rotary_embedding(X, strict(ROWS), ROWS),
        TypeError,
        (
            "rotary_embedding: x and cos must come from one array library; got x from numpy and cos from "
            "array_api_strict. Convert one of them: refattn.from_numpy(refattn.to_numpy(x), like=y)."
        ),
    ),
    (
        "integers without a dtype for the result",
        turned(X.astype(np.int8)),
        TypeError,
        (
            "rotary_embedding: dtype must be given where x is int8, which is no dtype for a result. Pass "
            "dtype='float32' or the namespace's own dtype."
        ),
    ),
    (
        "no heads",
        turned(X[0, 0]),
        ValueError,
        "rotary_embedding: x must have at least 3 axes (..., H, L, E); got (3, 8).",
    ),
    (
        "an odd number of features",
        turned(X[..., :7]),
        ValueError,
        "rotary_embedding: rotary_dim must be even and at most E=7 (axis -1 of x); got 7.",
    ),
    (
        "more features than there are",
        turned(rotary_dim=10),
        ValueError,
        "rotary_embedding: rotary_dim must be even and at most E=8 (axis -1 of x); got 10.",
    ),
    (
        "half a feature",
        turned(rotary_dim=0.5),
        TypeError,
        "rotary_embedding: rotary_dim must be an integer; got float.",
    ),
    (
        "interleaved of 1",
        turned(interleaved=1),
        TypeError,
        "rotary_embedding: interleaved must be True or False; got int.",
    ),
    (
        "other sines",
        turned(sin=ROWS[:1]),
        ValueError,
        "rotary_embedding: cos and sin must have the same shape; got (3, 4) and (1, 4).",
    ),
    ("cosines of all features", turned(cos=np.zeros((3, 8))), ValueError, f"{FITS} (3, 8). {HINT}"),
    ("a table without positions", turned(cos=TABLE), ValueError, f"{FITS} (9, 4). {HINT}"),
    ("another batch", turned(cos=np.zeros((3, 3, 4))), ValueError, f"{FITS} (3, 3, 4). {HINT}"),
    ("cosines for each head", turned(cos=np.zeros((2, 4, 3, 4))), ValueError, f"{FITS} (2, 4, 3, 4). {HINT}"),
    ("cosines of one token", turned(cos=np.zeros(4)), ValueError, f"{FITS} (4,). {HINT}"),
    (
        "rows of a batch beside positions",
        turned(cos=np.zeros((2, 3, 4)), positions=[0, 1, 2]),
        ValueError,
        "rotary_embedding: cos must have shape (P, R/2)=(P, 4) beside positions; got (2, 3, 4).",
    ),
    (
        "fractions of positions",
        turned(cos=TABLE, positions=np.array([0.5])),
        TypeError,
        "rotary_embedding: positions must be an integer array (..., L); got float64.",
    ),
    ("one position", turned(cos=TABLE, positions=1), ValueError, f"{PLACES} ()."),
    ("too few positions", turned(cos=TABLE, positions=[0, 1]), ValueError, f"{PLACES} (2,)."),
    (
        "positions of another batch",
        turned(cos=TABLE, positions=np.zeros((3, 3), int)),
        ValueError,
        f"{PLACES} (3, 3).",
    ),
    (
        "a position behind the table",
        turned(cos=TABLE, positions=[0, 9, 1]),
        ValueError,
        "rotary_embedding: positions must lie within the P=9 rows of cos; got 0 to 9.",
    ),
    (
        "a position before the table",
        turned(cos=TABLE, positions=[0, -1, 1]),
        ValueError,
        "rotary_embedding: positions must lie within the P=9 rows of cos; got -1 to 1.",
    ),
    ("positions in a list", angles([0, 1]), TypeError, f"rotary_cos_sin: positions {ANY} list."),
    (
        "an odd number of turned features",
        angles(rotary_dim=7),
        ValueError,
        "rotary_cos_sin: rotary_dim must be even, for features are turned in pairs; got 7.",
    ),
    ("no base", angles(base=None), TypeError, "rotary_cos_sin: base must be a real number; got NoneType."),
    ("a base of 0", angles(base=0), ValueError, "rotary_cos_sin: base must be positive; got 0."),
    (
        "frequencies of all features",
        angles(frequencies=np.ones(8)),
        ValueError,
        "rotary_cos_sin: frequencies must have shape (R/2,)=(4,); got (8,).",
    ),
    *(
        case
        for function in ("absorb_mla", "expand_mla")
        for case in (
            (
                f"{function}: a list of latents",
                latent(function, c_kv=[1.0]),
                TypeError,
                f"{function}: c_kv {ANY} list.",
            ),
            (
                f"{function}: queries of one token",
                latent(function, q_nope=np.zeros((4, 8))),
                ValueError,
                f"{function}: q_nope must have shape (..., H, L, D)=(H, L, D); got (4, 8).",
            ),
            (
                f"{function}: queries of another length",
                latent(function, q_rope=np.zeros((2, 4, 5, 2))),
                ValueError,
                f"{function}: q_rope must have shape (..., H, L, Dr)=(2, 4, 3, Dr); got (2, 4, 5, 2).",
            ),
            (
                f"{function}: latents for each head",
                latent(function, c_kv=np.zeros((2, 4, 5, 6))),
                ValueError,
                f"{function}: c_kv must have shape (..., S, C)=(2, S, C); got (2, 4, 5, 6).",
            ),
            (
                f"{function}: another number of turned features",
                latent(function, k_rope=np.zeros((2, 5, 4))),
                ValueError,
                f"{function}: k_rope must have shape (..., S, Dr)=(2, 5, 2); got (2, 5, 4).",
            ),
            (
                f"{function}: a map the other way",
                latent(function, W_UK=np.zeros((4, 6, 8))),
                ValueError,
                f"{function}: W_UK must have shape (H, D, C)=(4, 8, 6); got (4, 6, 8).",
            ),
            (
                f"{function}: a map for each batch entry",
                latent(function, W_UV=np.zeros((2, 4, 7, 6))),
                ValueError,
                f"{function}: W_UV must have shape (H, Dv, C)=(4, Dv, 6); got (2, 4, 7, 6).",
            ),
            (
                f"{function}: no features",
                latent(
                    function,
                    q_nope=np.zeros((2, 4, 3, 0)),
                    q_rope=np.zeros((2, 4, 3, 0)),
                    k_rope=np.zeros((2, 5, 0)),
                    W_UK=np.zeros((4, 0, 6)),
                ),
                ValueError,
                f"{function}: q_nope and q_rope must have at least one feature together; got D=0 and Dr=0.",
            ),
        )
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), [pytest.param(*case[1:], id=case[0]) for case in WRONG])
def test_text(call: Any, error: type[Exception], text: str) -> None:
    assert_raises(call, error, text)
