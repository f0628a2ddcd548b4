"""What `refattn.testing.check` makes of a converted call whose rows without keys hold anything."""

from __future__ import annotations

import numpy as np
import pytest

import refattn as ra
from refattn.conventions import Convention, flashinfer, jax_nn, torch_sdpa, transformer_engine, xformers
from tests.conventions import loops

LOWER_RIGHT = "LowerTriangularFromBottomRightMask"
CALLS = {
    "mean": jax_nn(mask=np.arange(5)[:, None] >= 5 - np.arange(1, 4)),
    "undefined": xformers(attn_bias=LOWER_RIGHT),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fill", [0.0, 7.0, np.nan, np.inf])
def test_rows_without_keys_are_not_judged(name: str, fill: float) -> None:
    call = CALLS[name]
    assert call.empty_row == name
    verdict = judged(call, fill)
    # Two of five queries, of 2 entries and 4 heads, with 3 features and a log-sum-exp each.
    assert verdict.passed
    assert verdict.not_judged == 2 * 2 * 4 * (3 + 1)
    assert not judged(Convention(call.arguments, call.layout), 7.0).passed


@pytest.mark.parametrize("name", CALLS)
def test_the_other_rows_are(name: str) -> None:
    assert not judged(CALLS[name], 0.0, wrong=1e-6).passed


@pytest.mark.parametrize(
    ("call", "axes", "key_axes"),
    [
        (flashinfer(causal=True, kv_layout="HND"), (0, 2, 1, 3), (0, 1, 2, 3)),
        (flashinfer(causal=True), (0, 2, 1, 3), (0, 2, 1, 3)),
        (transformer_engine(attn_mask_type="causal_bottom_right"), (2, 0, 1, 3), (2, 0, 1, 3)),
    ],
)
def test_arrays_are_taken_as_the_call_stores_them(
    call: Convention, axes: tuple[int, ...], key_axes: tuple[int, ...]
) -> None:
    # As many keys as heads, so that no shape tells the order.
    q, k, v = loops.draw(np.random.default_rng(14), 3, 2)
    output, lse, _ = ra.attention(q, k, v, **call.arguments, return_lse=True)
    output[..., :1, :] = np.where(np.isneginf(lse[..., :1])[..., None], 0.0, output[..., :1, :])
    arrays = [np.transpose(x, axes) for x in (output, q)] + [np.transpose(x, key_axes) for x in (k, v)]
    assert ra.testing.check(*arrays, convention=call, contract="float64").passed
    wrong = [*arrays[:2], *(np.swapaxes(x, 1, 2) for x in arrays[2:])]
    assert k.shape[1] == k.shape[2]
    assert axes[0] != 0 or not ra.testing.check(*wrong, convention=call, contract="float64").passed


def test_the_mask_that_dropout_drew_goes_beside_the_call() -> None:
    q, k, v = loops.draw(np.random.default_rng(15), 5, 3)
    kept = np.random.default_rng(16).random((*q.shape[:-1], 3)) < 0.75
    with pytest.raises(ra.ConventionError) as caught:
        torch_sdpa(dropout_p=0.25)
    assert str(caught.value).endswith("to attention dropout_p=0.25 and the mask that the kernel used as dropout_mask=.")
    call = torch_sdpa(dropout_p=0.0)
    drawn = {"dropout_mask": kept, "dropout_p": 0.25}
    output = ra.attention(q, k, v, **call.arguments, **drawn)
    assert ra.testing.check(output, q, k, v, convention=call, **drawn).passed
    assert not ra.testing.check(output, q, k, v, convention=call).passed


def judged(call: Convention, fill: float, *, wrong: float = 0.0) -> ra.testing.Verdict:
    """The verdict on exact results with rows of 0 and 1 filled, and something added to row 2."""
    q, k, v = loops.draw(np.random.default_rng(13), 5, 3)
    output, lse, _ = ra.attention(q, k, v, **call.arguments, return_lse=True)
    assert np.all(np.isneginf(lse[..., :2]))
    output[..., :2, :], lse[..., :2] = fill, fill
    output[..., 2, :] += wrong
    arrays = (np.swapaxes(x, 1, 2) for x in (output, q, k, v))
    return ra.testing.check(*arrays, lse=lse, convention=call, contract="float64")
