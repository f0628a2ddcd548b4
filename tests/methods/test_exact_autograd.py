"""Derivatives of exact attention by PyTorch's autograd."""

from __future__ import annotations

from typing import Any

import pytest

import refattn as ra
from tests.namespaces import library
from tests.strategies import Problem


class TestAutograd:
    """Derivatives flow through the reference on PyTorch: nothing is detached, and no 0 * inf is met on the way."""

    @pytest.mark.parametrize("more", [{}, {"is_causal": True}, {"softcap": 2.0}, {"sinks": (0.3, -1.0)}])
    @pytest.mark.parametrize("function", [ra.attention, ra.attention_rows])
    def test_gradients(self, function: Any, more: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        problem = Problem(heads=(2, 1), lengths=(4, 4), features=(3, 2), **more)
        lib = library("torch")
        inputs = [lib.array(x).requires_grad_() for x in problem.arrays]
        arguments = problem.arguments(lib)
        if function is ra.attention_rows:
            arguments["rows"] = [(1, 3), (0, 0), (0, 2)]
        assert torch.autograd.gradcheck(lambda *x: function(*x, **arguments), inputs)

    def test_empty_rows_give_gradients_of_zero(self) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        q, k, v = (torch.ones((1, 2, 2), dtype=torch.float64, requires_grad=True) for _ in range(3))
        mask = torch.tensor([[True, False], [False, False]])
        got = ra.attention(q, k, v, mask=mask, return_lse=True)
        (got.output.sum() + got.lse[:, 0].sum()).backward()
        assert q.grad[0, 1].tolist() == [0.0, 0.0]
        assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
