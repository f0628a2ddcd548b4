"""What linear attention costs in each of its forms: exact counts over the paper's loops.

Features are made of queries and keys as these are read, once; the state of a head stays on chip. What it takes to make
sines and cosines of positions is not counted; one of a product with frequencies counts as an exponential.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from refattn._core.checks import check_integer
from refattn._core.choice import ImplementationError
from refattn._core.cost import STATISTIC, Cost, Tally, Work, untiled
from refattn._core.tiles import tiles
from refattn.methods.linear.features import NAMED, FeatureMap, cosformer


def quadratic(work: Work) -> Cost:
    """Eq. (4): similarities go through memory, in the dtype of the output."""
    M, normalize, tally = _begun(work, "quadratic")
    cells, Ev = work.cells, work.features[1]
    q, k, v, o = work.operand_bytes
    matrix = work.dtype_bytes[3] * cells
    tally.does(multiply_add=cells * M)
    tally.moves(q + k, matrix)
    if work.mask is not None:
        tally.does(select=cells)
        tally.moves(0 if work.masked is None else work.masked.stored)
    tally.does(multiply_add=cells * Ev, add=cells * normalize)
    tally.moves(matrix + v, o)
    if _has(work, "state"):
        tally.does(multiply_add=work.rows * M * (Ev + normalize), add=work.rows * (Ev + normalize))
    if _has(work, "return_state"):
        _update(tally, work, M)
    return _finished(tally, work, "quadratic", M, matrix + o)


def recurrent(work: Work) -> Cost:
    """Eqs. (16) to (20): every key enters the state, every query is answered from it."""
    M, normalize, tally = _begun(work, "recurrent")
    q, k, v, o = work.operand_bytes
    tally.moves(q + k + v, o)
    _keys_masked(tally, work, M)
    _update(tally, work, M)
    tally.does(multiply_add=work.rows * M * (work.features[1] + normalize))
    return _finished(tally, work, "recurrent", M, o, on_chip=_state(work, M))


def chunked(work: Work) -> Cost:
    """Similarities inside a chunk, and the state of the chunks before it; without a diagonal there are none inside."""
    M, normalize, tally = _begun(work, "chunked")
    q, k, v, o = work.operand_bytes
    (L, S), Ev, chunk = (
        work.lengths,
        work.features[1],
        check_integer("cost", "chunk", work.given.get("chunk", 64), least=1),
    )
    tally.moves(q + k + v, o)
    _keys_masked(tally, work, M)
    _update(tally, work, M)
    tally.does(multiply_add=work.rows * M * (Ev + normalize))
    if work.given.get("is_causal", False) and L:
        cells = work.rows // L * sum((i.stop - i.start) ** 2 for i in tiles(L, chunk))
        tally.does(multiply_add=cells * (M + Ev), select=cells, add=cells * normalize)
        tally.does(add=work.rows * (Ev + normalize))
    width = min(chunk, S)
    on_chip = _state(work, M) + STATISTIC * width * (2 * M + 2 * Ev + width)
    return _finished(tally, work, "chunked", M, o, on_chip=on_chip, tile=(width, width))


def _begun(work: Work, form: str) -> tuple[int, int, Tally]:
    """Number of features, 1 where the output is normalised, and a count of what it takes to make the features."""
    untiled(work, form)
    phi, E = _map(work), work.features[0]
    assert phi.width is not None
    M, tally = phi.width(E), Tally()
    if work.given.get("scale") is not None or phi.scaled:
        tally.does(multiply=work.elements[0])
    for kind, count in FEATURES[phi.name](E, M).items():
        tally.does(**{kind: count * (work.rows + work.key_rows)})
    return M, int(work.given.get("normalize", True)), tally


def _map(work: Work) -> FeatureMap:
    """The feature map of a call, which must be one whose operations are known."""
    phi: Any = work.given.get("feature_map", "elu+1")
    phi = (
        cosformer(max(1, *work.lengths)) if phi == "cosformer" else NAMED.get(phi, phi) if isinstance(phi, str) else phi
    )
    if not isinstance(phi, FeatureMap):
        raise ImplementationError(
            f"cost: feature_map must be one whose operations are counted, {', '.join(map(repr, FEATURES))}; got "
            f"{phi!r}."
        )
    return phi


def _has(work: Work, name: str) -> bool:
    """Whether an argument was given that is neither None nor False."""
    return work.given.get(name) not in (None, False)


def _update(tally: Tally, work: Work, M: int) -> None:
    """All keys enter the state."""
    tally.does(multiply_add=work.key_rows * M * work.features[1], add=work.key_rows * M)


def _keys_masked(tally: Tally, work: Work, M: int) -> None:
    """A mask of keys alone, which sets features and values to 0."""
    if work.masked is not None and work.given.get("mask") is not None:
        tally.does(select=work.key_rows * (M + work.features[1]))
        tally.moves(work.masked.stored)


def _state(work: Work, M: int) -> int:
    """Bytes of the state of a key head, in float32."""
    return STATISTIC * M * (work.features[1] + 1)


def _finished(
    tally: Tally, work: Work, form: str, M: int, peak: int, *, on_chip: int = 0, tile: tuple[int, int] | None = None
) -> Cost:
    """The cost, after the division; a state that comes in is read, one that goes out written."""
    if work.given.get("normalize", True):
        tally.does(divide=work.rows * work.features[1])
        if work.given.get("eps", 0.0):
            tally.does(**{"compare" if work.given.get("eps_rule") == "clamp" else "add": work.rows})
    heads = work.heads[1]
    for n in work.batch:
        heads *= n
    states = heads * _state(work, M)
    tally.moves(states if _has(work, "state") else 0, states if _has(work, "return_state") else 0)
    peak += states if _has(work, "return_state") else 0
    return tally.cost(work, form, peak, on_chip_bytes=on_chip, tile=tile)


# Operations for the features of one row, by the number of its features E and of its new ones M.
FEATURES: Mapping[str, Callable[[int, int], dict[str, int]]] = MappingProxyType(
    {
        "identity": lambda E, M: {},
        "relu": lambda E, M: {"compare": E},
        "elu+1": lambda E, M: {"compare": E, "exp": E, "add": E, "select": E},
        "softmax": lambda E, M: {"compare": E, "add": 2 * E, "exp": E, "divide": E},
        "efficient": lambda E, M: {"compare": E, "add": 2 * E, "exp": E, "divide": E},
        "taylor": lambda E, M: {"multiply": 2 * E**2},
        "squared": lambda E, M: {"multiply": E**2},
        "cosformer": lambda E, M: {"compare": E, "multiply": 2 * E},
        "fourier": lambda E, M: {"multiply_add": M // 2 * E, "exp": M, "multiply": M},
    }
)
FORMS = MappingProxyType({"quadratic": quadratic, "recurrent": recurrent, "chunked": chunked})
