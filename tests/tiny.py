"""Problems of a few extreme values, drawn number by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.strategies import ADDED, EXTREME, NONE, Choice, Problem, cell, sink_logits


@dataclass(frozen=True)
class Tiny(Problem):
    """A problem whose arrays were drawn value by value."""

    drawn: tuple[np.ndarray, np.ndarray, np.ndarray] = field(default=(), compare=False)  # type: ignore[assignment]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, key and value as they were drawn."""
        return self.drawn


@st.composite
def tiny_problems(draw: st.DrawFn, values: tuple[float, ...] = EXTREME) -> Problem:
    """At most 4 queries, 4 keys and 3 features of extreme values, an arbitrary mask and an arbitrary bias."""
    L, S, E, Ev = (draw(st.integers(1, n)) for n in (4, 4, 3, 2))
    elements = st.sampled_from(values)
    drawn = tuple(
        draw(hnp.arrays(np.float64, shape, elements=elements)) for shape in ((1, L, E), (1, S, E), (1, S, Ev))
    )
    cells = draw(hnp.arrays(np.bool_, (L, S)))
    added = draw(hnp.arrays(np.float64, (L, S), elements=st.sampled_from(ADDED)))
    kept = draw(hnp.arrays(np.bool_, (L, S)))
    dropout = Choice(f"{kept.tolist()}", kept, lambda *at: bool(cell(kept, *at)))
    dropped = draw(st.booleans())
    bias = Choice(f"{added.tolist()}", added, lambda *at: float(cell(added, *at)))
    return Tiny(
        lengths=(L, S),
        features=(E, Ev),
        mask=Choice(f"{cells.tolist()}", cells, lambda *at: bool(cell(cells, *at))),
        bias=draw(st.sampled_from([NONE, bias])),
        scale=draw(st.none() | st.sampled_from([0.0, 1.0, -2.0, 1e300, 5e-324])),
        softcap=draw(st.none() | st.sampled_from([1.0, 5e-324, 1e308])),
        sinks=draw(st.none() | st.tuples(sink_logits())),
        dropout_mask=dropout if dropped else NONE,
        dropout_p=0.5 if dropped else 0.0,
        drawn=drawn,
    )
