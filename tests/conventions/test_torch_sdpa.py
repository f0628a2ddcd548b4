"""scaled_dot_product_attention of the PyTorch that is installed, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn.contract import Contract, eager, flash
from refattn.conventions import torch_sdpa
from tests.conventions import loops
from tests.peers.cases import budget_used

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.nn.attention.bias import causal_lower_right, causal_upper_left  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

BACKENDS = {
    "math float64": (SDPBackend.MATH, "float64", eager("float64")),
    "math float32": (SDPBackend.MATH, "float32", eager("float32")),
    "flash float32": (SDPBackend.FLASH_ATTENTION, "float32", flash("float32")),
}
LENGTHS = [(3, 5), (5, 3), (4, 4)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> tuple[Any, str, Contract]:
    """A backend, a dtype that it takes, and the contract of both."""
    return BACKENDS[request.param]


def share(backend: tuple[Any, str, Contract], L: int, S: int, *, Hk: int = 4, **call: Any) -> float:
    """How much of the budget PyTorch's output uses, on drawn inputs."""
    which, dtype, contract = backend
    q, k, v = (torch.from_numpy(x.astype(dtype)) for x in loops.draw(np.random.default_rng(0), L, S, Hk=Hk))
    # CPU flash needs one width of heads.
    v = torch.cat([v, v], dim=-1)[..., :5].contiguous()
    with sdpa_kernel([which]):
        output = scaled_dot_product_attention(q, k, v, **call)
    return budget_used(output.numpy(), q.numpy(), k.numpy(), v.numpy(), contract, **host(call))


def host(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments for NumPy arrays."""
    arguments = dict(torch_sdpa(**call).arguments)
    if "bias" in arguments:
        arguments["bias"] = ra.to_numpy(arguments["bias"])
    return arguments


@pytest.mark.parametrize(("L", "S"), LENGTHS)
def test_is_causal_is_upper_left(backend: tuple[Any, str, Contract], L: int, S: int) -> None:
    assert share(backend, L, S, is_causal=True) <= 1


@pytest.mark.parametrize("shape", [(3, 5), (1, 5), (2, 1, 3, 5), (2, 4, 3, 5)])
def test_boolean_mask_says_which_keys_take_part(backend: tuple[Any, str, Contract], shape: tuple[int, ...]) -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random(shape) < 0.5)
    mask[..., 0, :] = False
    assert share(backend, 3, 5, attn_mask=mask) <= 1


def test_three_axes_of_a_mask_begin_with_the_heads() -> None:
    mask = torch.from_numpy(np.random.default_rng(1).random((4, 3, 5)) < 0.5)
    assert share(BACKENDS["math float64"], 3, 5, attn_mask=mask) <= 1


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 3, 5), (2, 4, 3, 5)])
def test_float_mask_is_added(backend: tuple[Any, str, Contract], shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    mask = np.where(rng.random(shape) < 0.3, -np.inf, rng.standard_normal(shape))
    mask[..., 0, :] = -np.inf
    assert share(backend, 3, 5, attn_mask=torch.from_numpy(mask.astype(backend[1]))) <= 1


@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_scale(backend: tuple[Any, str, Contract], scale: float) -> None:
    assert share(backend, 3, 5, scale=scale) <= 1


@pytest.mark.parametrize("Hk", [1, 2, 4])
def test_enable_gqa_gives_neighbouring_heads_one_key_head(backend: tuple[Any, str, Contract], Hk: int) -> None:
    assert share(backend, 3, 5, Hk=Hk, enable_gqa=True) <= 1


# With more queries than keys PyTorch warns of the lower right one, whose first rows are empty.
@pytest.mark.parametrize("make", [causal_lower_right, causal_upper_left])
@pytest.mark.parametrize(("L", "S"), [(3, 5), (4, 4)])
def test_causal_bias_names_its_corner(L: int, S: int, make: Any) -> None:
    bias = make(L, S)
    mask = torch_sdpa(attn_mask=bias).arguments["mask"]
    np.testing.assert_array_equal(mask.dense(L, S), bias._materialize().numpy())
    assert share(BACKENDS["math float64"], L, S, attn_mask=bias) <= 1


def test_log_sum_exp_is_natural() -> None:
    q, k, v = (torch.from_numpy(x) for x in loops.draw(np.random.default_rng(3), 4, 4, Hk=4))
    v = torch.cat([v, v], dim=-1)[..., :5].contiguous()
    _, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)
    call = torch_sdpa(is_causal=True)
    wanted = ra.attention(q, k, v, **call.arguments, return_lse=True).lse
    assert call.lse_base == "e"
    # The bits that 20 float64 operations may cost, and nothing like a factor ln 2.
    assert torch.all(torch.abs(lse - wanted) <= 20 * 2.0**-52 * (1 + torch.abs(wanted)))


def test_mask_beside_is_causal_is_refused_there_and_here() -> None:
    mask = torch.ones(3, 3, dtype=torch.bool)
    q = torch.zeros(1, 1, 3, 4)
    with sdpa_kernel([SDPBackend.MATH]), pytest.raises(RuntimeError, match="attn_mask should not be set"):
        scaled_dot_product_attention(q, q, q, attn_mask=mask, is_causal=True)
    with pytest.raises(ra.ConventionError, match="attn_mask and is_causal=True"):
        torch_sdpa(attn_mask=mask, is_causal=True)
