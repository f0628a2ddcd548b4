"""Problems small enough for algorithms that are run loop by loop, and the comparison of what they do with a cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

import refattn as ra
from tests import strategies as draws
from tests.paper_loops import Machine
from tests.strategies import Problem

# Lengths of a few tiles, with arguments of every kind.
SMALL = draws.problems(("float64",), most=9)
LOOPS = settings(max_examples=40)


@st.composite
def problems_of_arrays(draw: st.DrawFn) -> Problem:
    """A problem whose mask, bias and dropout mask are arrays with any axes of length 1, so that all are read."""
    batch, (H, Hk) = draw(st.sampled_from([(), (2,)])), draw(draws.heads(6))
    L, S = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))

    def cells(name: str) -> draws.Choice:
        shape = draw(draws.broadcastable(batch, H, L, S))
        x = rng.standard_normal(shape)
        x = x if name == "bias" else x < draw(st.sampled_from([0.0, 2.0]))
        return draws.Choice(f"{name}{shape}", x, lambda index, i, j: draws.cell(x, index, i, j).item())

    given = {name: cells(name) for name in ("mask", "bias", "dropout_mask") if draw(st.booleans())}
    return Problem(
        batch=batch,
        heads=(H, Hk),
        lengths=(L, S),
        features=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        softcap=draw(st.none() | st.just(3.0)),
        sinks=draw(st.none() | st.just((0.5,) * H)),
        dropout_p=0.25 if "dropout_mask" in given else 0.0,
        **given,
    )


PROBLEMS = SMALL | problems_of_arrays()


def assert_counted(cost: ra.Cost, c: Machine) -> None:
    """Operations and traffic are those that the algorithm was seen to have."""
    assert nonzero(cost.operations) == nonzero(c.operations)
    assert (cost.bytes_read, cost.bytes_written) == (c.loaded, c.stored)


def moderate(problem: Problem) -> Problem:
    """The problem with numbers of moderate size, which every algorithm can compute with."""
    return problem.but(law="normal")


def nonzero(operations: Mapping[str, int]) -> dict[str, int]:
    """The kinds that occur."""
    return {kind: count for kind, count in operations.items() if count}
