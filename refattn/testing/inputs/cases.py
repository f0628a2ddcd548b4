"""Problems that print as what makes them again: the drawn case, captured arrays, and which lengths a kernel takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import layouts, masks
from refattn._core.arrays import Array, is_array, round_to, to_numpy
from refattn._core.checks import check_choice, check_integer
from refattn.testing.inputs import batches
from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.problems import DROPPED, LAW, Inputs, operand_dtypes, unvaried
from refattn.testing.spec import LAWS, KernelSpec

# What a case may ask a kernel for: what says something of each cell (L, S), of which a case asks for one, and the rest.
CELLS = ("mask", "empty_rows", "causal_mask", "bias", "is_causal", "dropout_mask")
NUMBERS = ("scale", "softcap", "sinks")
TILES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, repr=False)
class Case:
    """A drawn problem, whose text makes it again: shapes, law and seed, and what the kernel is asked for.

    Parameters
    ----------
    lengths : tuple of int
        Numbers of queries and of keys, (L, S).
    dims : tuple of int
        Numbers of features (E, Ev).
    batch : int, default 1
        Entries of the batch. A kernel that takes tables gets two sequences more, of these and of shorter lengths.
    law : {"normal", "peaked", "offset", "rising", "coded"}, default "normal"
        What the numbers are drawn from: see `check_kernel`.
    factor : float, default 1.0
        The queries are multiplied by it.
    asks : tuple of str, optional
        What the kernel is asked for. At most one of "mask" (random cells), "empty_rows" (random cells, and each third
        row sees no key), "causal_mask" (lower right; upper left where L > S), "bias", "is_causal" and "dropout_mask";
        and any of "scale", "softcap" and "sinks".
    table : str, optional
        The table whose hard sequences are among the drawn ones.
    seed : int, default 0
        Seed of the numbers.

    Raises
    ------
    TypeError
        If a number is no integer.
    ValueError
        If a word is none of the choices, or a number is too small.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import Case, KernelSpec
    >>> Case((65, 65), (16, 16)).inputs(KernelSpec(ra.attention)).query.shape
    (1, 4, 65, 16)
    """

    lengths: tuple[int, int]
    dims: tuple[int, int]
    batch: int = 1
    law: str = "normal"
    factor: float = 1.0
    asks: tuple[str, ...] = ()
    table: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what draws nothing."""
        for name in ("lengths", "dims"):
            for n in getattr(self, name):
                check_integer("Case", name, n, least=1)
        check_integer("Case", "batch", self.batch, least=1)
        check_integer("Case", "seed", self.seed)
        check_choice("Case", "law", self.law, LAWS)
        for name in self.asks:
            check_choice("Case", "asks", name, (*CELLS, *NUMBERS))
        if len(set(CELLS) & set(self.asks)) > 1:
            raise ValueError(f"Case: asks must name one of {', '.join(CELLS)} at most; got {', '.join(self.asks)}.")

    def __repr__(self) -> str:
        """The call that makes the case, without what is as by default."""
        told = [f"{self.lengths}, {self.dims}"]
        for item in fields(self)[2:]:
            if (x := getattr(self, item.name)) != item.default:
                told.append(f"{item.name}={x!r}")
        return f"Case({', '.join(told)})"

    def but(self, **changes: Any) -> Case:
        """Return the case with some fields changed.

        Parameters
        ----------
        **changes
            Fields by name.

        Returns
        -------
        Case
            The other case.
        """
        return replace(self, **changes)

    def asking(self, cells: str | None) -> Case:
        """Return the case with this word of the cells in place of its own.

        Parameters
        ----------
        cells : str or None
            One of the words, or none.

        Returns
        -------
        Case
            The other case.
        """
        others = tuple(name for name in self.asks if name not in CELLS)
        return self.but(asks=others if cells is None else (cells, *others))

    def inputs(self, spec: KernelSpec) -> Inputs:
        """Draw the arrays.

        Parameters
        ----------
        spec : KernelSpec
            The kernel, whose contract says the dtypes.

        Returns
        -------
        Inputs
            Query, key, value and arguments, in NumPy.
        """
        rng = np.random.default_rng(self.seed)
        (H, Hk), (E, _) = spec.heads, self.dims
        batch = None
        if spec.tables:
            square = bool({"is_causal", "causal_mask"} & set(self.asks) or "is_causal" in spec.arguments(1, 1))
            found = batches.lengths_of(spec, self.table or "", self.batch, self.lengths, rng, square=square)
            drawn = batches.drawn(LAW[self.law], rng, found, spec.heads, self.dims)
            queries, keys = np.array(found, dtype=np.int64).T
            batch = Batch(queries, keys, self.seed)
            if self.table == "block_table":
                batch = batches.with_prefix(spec, batch, drawn)
        else:
            drawn = LAW[self.law](rng, (self.batch, H, Hk), self.lengths, self.dims)
        drawn[0] = drawn[0] * self.factor
        q, k, v = (round_to(x, name, np) for x, name in zip(drawn, operand_dtypes(spec), strict=True))
        shape = (len(q), H, q.shape[-2], k.shape[-2])
        asked: dict[str, Any] = {}
        for name in self.asks:
            asked |= _asked(name, rng, shape, E, operand_dtypes(spec)[0])
        return put_together(spec, q, k, v, asked, batch)


@dataclass(frozen=True)
class Limits:
    """The lengths that a kernel is shown to take by those of its spec."""

    pairs: tuple[tuple[int, int], ...]

    @property
    def square(self) -> bool:
        """Whether there are as many queries as keys in all of them."""
        return all(L == S for L, S in self.pairs)

    def side(self, axis: int) -> tuple[int, int, int]:
        """Smallest and largest length, and what all of them are multiples of."""
        sizes = [pair[axis] for pair in self.pairs]
        return min(sizes), max(sizes), math.gcd(*sizes)

    def sizes(self, axis: int) -> list[int]:
        """All lengths between the limits."""
        low, high, step = self.side(axis)
        return list(range(low, high + 1, step))

    def edges(self, axis: int) -> list[int]:
        """Those on both sides of tile edges."""
        return near_edges(self.sizes(axis))

    @property
    def cells(self) -> int:
        """Queries times keys of the smallest pair."""
        low, S = (self.side(axis)[0] for axis in (0, 1))
        return max(low, S) ** 2 if self.square else low * S

    def allow(self, L: int, S: int) -> bool:
        """Whether a pair lies within the limits."""
        if (self.square and L != S) or (L > S and all(l <= s for l, s in self.pairs)):
            return False
        return L in self.sizes(0) and S in self.sizes(1)


def near_edges(sizes: Sequence[int]) -> list[int]:
    """The sizes at the edges of tiles: one less, whole, and one more."""
    near = {tile + d for tile in TILES for d in (-1, 0, 1)}
    return [n for n in sizes if n in near]


def limits(spec: KernelSpec) -> Limits:
    """The lengths that a spec allows: where the kernel is causal by flag, those with L = S."""
    pairs = [(L, S) for L, S in spec.lengths if L == S or not spec.arguments(L, S).get("is_causal", False)]
    return Limits(tuple(pairs))


def put_together(spec: KernelSpec, q: Any, k: Any, v: Any, asked: dict[str, Any], batch: Batch | None = None) -> Inputs:
    """Operands and what the kernel is asked for, in refattn's form and in the kernel's."""
    arguments = spec.arguments(q.shape[-2], k.shape[-2])
    for name, x in asked.items():
        arguments[name] = masks.array(x) if name == "mask" and batch is None else x
    return Inputs(q, k, v, arguments, unvaried(spec, q.shape[-1]) | asked, batch)


def asked_of(spec: KernelSpec, given: Inputs) -> dict[str, Any]:
    """What a kernel is asked for beyond what it always computes."""
    return {name: given.passed[name] for name in spec.accepts if name in given.arguments}


def inputs_of(spec: KernelSpec, problem: Case | Inputs) -> Inputs:
    """The arrays of a problem."""
    return problem if isinstance(problem, Inputs) else problem.inputs(spec)


def captured(spec: KernelSpec, query: Array, key: Array, value: Array, **asked: Any) -> Inputs:
    """Make a problem of arrays that a model computed.

    Parameters
    ----------
    spec : KernelSpec
        The kernel; its contract says the dtypes, into which the operands are rounded.
    query : array, shape (B, H, L, E)
        Queries, in the order of axes that the spec's layout says; of any library and device.
    key : array, shape (B, Hk, S, E)
        Keys.
    value : array, shape (B, Hk, S, Ev)
        Values.
    **asked
        Arguments that the kernel accepts and is asked for here: mask and bias as arrays (B, H, L, S), sinks (H,), and
        numbers.

    Returns
    -------
    Inputs
        What the checks of `refattn.testing.laws`, `shrink` and `save_repro` take.

    Raises
    ------
    ValueError
        If an operand has not 4 axes, or the kernel does not accept an argument.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec, captured
    >>> from refattn.testing.laws import check_forward
    >>> real = ra.data.smollm2()
    >>> spec = KernelSpec(ra.attention, accepts=("is_causal",))
    >>> given = captured(spec, real.query[:1], real.key[:1], real.value[:1], is_causal=True)
    >>> check_forward(spec, given)
    """
    host = []
    for (name, x), dtype in zip((("query", query), ("key", key), ("value", value)), operand_dtypes(spec), strict=True):
        array: npt.NDArray[Any] = to_numpy(x)
        if array.ndim != 4:
            raise ValueError(f"captured: {name} must have 4 axes (B, H, L, E); got {array.shape}.")
        host.append(round_to(layouts.from_order(array, spec.stored.order).astype(np.float64), dtype, np))
    q, k, v = host
    for name in asked:
        if name not in spec.accepts:
            raise ValueError(f"captured: the kernel must accept each argument; got {name}, which it does not.")
        if name == "descale":
            raise ValueError("captured: descale must be left out; got factors. Pass what layouts.dequantise returns.")
    arrays = {name: to_numpy(x) if is_array(x) else x for name, x in asked.items()}
    for name, x in arrays.items():
        if name in ("mask", "bias", "dropout_mask"):
            arrays[name] = np.array(np.broadcast_to(x, (len(q), q.shape[1], q.shape[2], k.shape[2])))
    batch = Batch(np.full(len(q), q.shape[2]), np.full(len(q), k.shape[2])) if spec.tables else None
    return put_together(spec, q, k, v, arrays, batch)


def _asked(
    name: str, rng: np.random.Generator, shape: Sequence[int], E: int, dtype: str
) -> dict[str, npt.NDArray[Any] | float | bool]:
    """Arguments of one word, as the kernel gets them."""
    _, H, L, S = shape
    if name == "is_causal":
        return {name: True}
    if name == "scale":
        return {name: 0.73 / math.sqrt(E)}
    if name == "softcap":
        return {name: 2.0}
    if name == "sinks":
        return {name: round_to(rng.standard_normal(H) + 1.0, dtype, np)}
    if name == "bias":
        return {name: round_to(2.0 * rng.standard_normal(shape), dtype, np)}
    if name == "dropout_mask":
        return {name: rng.random(shape) >= DROPPED, "dropout_p": DROPPED}
    if name == "causal_mask":
        return {"mask": np.array(np.broadcast_to(np.tri(L, S, max(S - L, 0), dtype=np.bool_), shape))}
    keep = rng.random(shape) < 0.5
    keep[..., np.arange(L), rng.integers(0, S, size=L)] = True
    if name == "empty_rows":
        keep[..., ::3, :] = False
    return {"mask": keep}
