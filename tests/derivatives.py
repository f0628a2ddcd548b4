"""Problems of which a derivative is taken: the losses, and the problem as the oracle of gradients takes it."""

from __future__ import annotations

import math

import numpy as np

from tests.gradient_oracle import Case
from tests.strategies import Problem


def cotangents(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of a loss with respect to output and lse."""
    rng = np.random.default_rng(problem.seed + 1)
    shape = (*problem.batch, problem.heads[0], problem.lengths[0])
    return rng.standard_normal((*shape, problem.features[1])), rng.standard_normal(shape)


def case(problem: Problem) -> Case:
    """The problem as the oracle takes it; a bias of every cell."""
    q, k, v = (x.astype(np.float64) for x in problem.arrays)
    (H, _), (L, S) = problem.heads, problem.lengths
    kept, p = problem.dropout_mask.given, problem.dropout_p
    bias = problem.bias.given
    seen = np.broadcast_to(problem.mask.given, (*problem.batch, H, L, S))
    return Case(
        q, k, v, *cotangents(problem), seen=seen,
        scale=1 / math.sqrt(q.shape[-1]) if problem.scale is None else problem.scale, softcap=problem.softcap,
        bias=bias, sinks=None if problem.sinks is None else np.array(problem.sinks),
        factors=1.0 if kept is None else kept / (1 - p),
    )  # fmt: skip
