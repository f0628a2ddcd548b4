"""PyTorch's own kernels on the CPU, flash and math, right and made wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import refattn as ra
from refattn import masks
from refattn.testing import KernelSpec, check, check_kernel
from tests.testing.kernels import MISTAKES

torch = pytest.importorskip("torch", reason="torch is not installed")

UPPER = {"mask": masks.causal(anchor="upper_left")}
LOWER = {"mask": masks.causal(anchor="lower_right")}


@pytest.fixture(autouse=True)
def stored_scores() -> Iterator[None]:
    """Let the math backend keep its scores in the inputs' dtype, instead of float32."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    yield
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


def sdpa(backend: str, *, is_causal: bool = False) -> Callable[..., Any]:
    """scaled_dot_product_attention on one backend."""

    def kernel(query: Any, key: Any, value: Any) -> Any:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.FLASH_ATTENTION if backend == "flash" else SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=is_causal, enable_gqa=query.shape[-3] != key.shape[-3]
            )

    kernel.__name__ = backend
    return kernel


def with_lse(mistake: str | None = None) -> Callable[..., Any]:
    """The flash backend's own function, causal and lower right, which returns the log-sum-exp too."""

    def kernel(query: Any, key: Any, value: Any) -> Any:
        (H, L, E), (Hk, S) = query.shape[-3:], key.shape[-3:-1]
        reads = torch.arange(H) % Hk if mistake == "heads" else torch.arange(H) // (H // Hk)
        offset = 0 if mistake == "anchor" else S - L
        seen = torch.arange(S) <= torch.arange(L)[:, None] + offset
        if mistake == "tail" and S % 32 and S > 32:
            seen = seen & (torch.arange(S) < S - 1)
        added = torch.zeros(L, S, dtype=query.dtype).masked_fill(~seen, -math.inf)
        scale = (0.98 if mistake == "scale" else 1.0) / math.sqrt(E)
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key[..., reads, :, :], value[..., reads, :, :], attn_mask=added[None, None], scale=scale
        )
        lse = lse.reshape(query.shape[:-1])
        return 0 * output if mistake == "zeros" else output, lse / math.log(2) if mistake == "lse" else lse

    kernel.__name__ = mistake or "right"
    return kernel


def drawn(seed: int, dtype: str) -> tuple[list[Any], bool]:
    """Query, key and value of one of four laws, with lengths at tile edges, and whether the problem is causal."""
    rng = np.random.default_rng(seed)
    edges = [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 200, 257]
    (L, S), E = rng.choice(edges, size=2), int(rng.choice([16, 32, 64, 128]))
    Hk, G, B = rng.integers(1, 3, size=3)
    arrays = [rng.standard_normal(shape) for shape in ((B, Hk * G, L, E), (B, Hk, S, E), (B, Hk, S, E))]
    law = rng.integers(4)
    arrays[0] *= 4 if law == 1 else 1
    arrays[2] += 4 if law == 2 else 0
    arrays[1] += np.arange(S)[:, None] / S * 0.5 if law == 3 else 0
    arrays[0] += 0.5 if law == 3 else 0
    return [torch.from_numpy(x).to(getattr(torch, dtype)) for x in arrays], bool(rng.integers(2))


def judged(seeds: range, backend: str, dtype: str, contract: ra.Contract) -> list[float]:
    """Shares of the budget that a backend uses on drawn problems, each of which it must be right on."""
    shares = []
    for seed in seeds:
        arrays, is_causal = drawn(seed, dtype)
        output = sdpa(backend, is_causal=is_causal)(*arrays)
        verdict = check(output, *arrays, contract=contract, **(UPPER if is_causal else {}))
        assert verdict.passed, f"seed {seed}: {verdict.text}"
        shares.append(verdict.budget_used)
    return shares


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("backend", "contract"), [("flash", ra.contract.flash), ("math", ra.contract.eager)])
def test_a_backend_is_right_under_its_contract(backend: str, contract: Any, dtype: str) -> None:
    shares = judged(range(20), backend, dtype, contract(dtype))
    assert max(shares) < 1
    if (backend, dtype) == ("flash", "bfloat16"):
        # The bound is no idle one: a right kernel comes near it.
        assert 0.1 < max(shares) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("backend", "contract"), [("flash", ra.contract.flash), ("math", ra.contract.eager)])
def test_a_backend_is_right_on_many_problems(backend: str, contract: Any, dtype: str) -> None:
    assert max(judged(range(1000, 1200), backend, dtype, contract(dtype))) < 1


@pytest.mark.usefixtures("without_probes")
def test_math_in_bfloat16_is_refused_under_flash_and_pointed_to_eager() -> None:
    fields: dict[str, Any] = {"arrays": "torch", "dims": (64,), "lengths": ((64, 64), (128, 129))}
    report = check_kernel(KernelSpec(sdpa("math"), contract="bfloat16", **fields), quick=True)
    assert not report.passed
    assert "passes under contract eager('bfloat16'): declare it if the kernel stores its scores" in report.text
    report = check_kernel(KernelSpec(sdpa("math"), contract=ra.contract.eager("bfloat16"), **fields), quick=True)
    assert report.passed, report.text


@pytest.mark.usefixtures("without_probes", "without_fit")
@pytest.mark.parametrize(
    ("mistake", "dtype"),
    [
        pytest.param(mistake, dtype, marks=[pytest.mark.slow] * (mistake is not None and (m + n) % 4 > 0))
        for m, mistake in enumerate((None, *MISTAKES))
        for n, dtype in enumerate(("float32", "bfloat16"))
    ],
)
def test_the_flash_backend_made_wrong_is_refused(mistake: str | None, dtype: str) -> None:
    spec = KernelSpec(
        with_lse(mistake),
        computes=LOWER,
        returns=("output", "lse"),
        contract=dtype,
        arrays="torch",
        dims=(64,),
        lengths=((1, 33), (64, 64), (31, 129)),
    )
    report = check_kernel(spec, quick=True)
    assert report.passed is (mistake is None), report.text


@pytest.mark.usefixtures("without_laws")  # one of which hands it views
def test_a_kernel_gets_tensors_of_its_contract_and_causality_by_flag() -> None:
    seen: list[Any] = []

    def kernel(query: Any, key: Any, value: Any, is_causal: bool, mask: Any, scale: float) -> Any:
        seen.extend((query, key, value, *([] if mask is None else [mask])))
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=True
        )

    spec = KernelSpec(
        kernel,
        accepts=("is_causal", "mask", "scale"),
        contract=ra.contract.eager("float16"),
        arrays="torch",
        dims=(16,),
        lengths=((16, 16), (3, 40)),
    )
    report = check_kernel(spec, quick=True)
    assert report.passed, report.text
    assert {x.dtype for x in seen} == {torch.float16, torch.bool}
    assert all(x.is_contiguous() and not x.requires_grad for x in seen)
