"""What a form of a method costs: operations by kind, bytes moved, memory. Exact counts in Python integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from refattn._core.checks import check_real
from refattn._core.score import Keep


class TileMask(Keep, Protocol):
    """What tiled forms ask of a mask; `refattn.masks.Mask` is one."""

    def at(self, index: tuple[int, ...]) -> TileMask: ...
    def blocks(self, L: int, S: int, tile_q: int, tile_k: int) -> Any: ...


# Floating-point operations that one of a kind counts for.
FLOPS = {
    "multiply_add": 2,
    "add": 1,
    "multiply": 1,
    "divide": 1,
    "exp": 1,
    "log": 1,
    "tanh": 1,
    "compare": 1,
    "select": 0,
    "logic": 0,
}
STATISTIC = 4  # bytes of a row's maximum, sum or log-sum-exp, which kernels keep in float32


@dataclass(frozen=True)
class Cost:
    """What one call costs in one form: exact counts, and what follows from them.

    Attributes
    ----------
    function, form : str
        What is computed, and by which algorithm.
    operations : mapping of str to int
        Number of operations of each kind: multiply_add (of matrix products), add (subtractions and sums too), multiply,
        divide, exp, log, tanh, compare (maxima and tests too), select, logic. A sum of n products is n multiply-adds, a
        sum or maximum of n numbers n operations.
    bytes_read, bytes_written : int
        Traffic of the memory that holds the operands.
    peak_bytes : int
        Most memory that is held at once beyond the operands: results and intermediates.
    on_chip_bytes : int
        For tiled forms: what one tile's operands and results take on chip.
    tile : (int, int) or None
        For tiled forms: queries and keys in a tile.
    """

    function: str
    form: str
    operations: Mapping[str, int]
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    on_chip_bytes: int = 0
    tile: tuple[int, int] | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 for a multiply-add, 0 for selections and logic, 1 for all else."""
        return sum(FLOPS[kind] * count for kind, count in self.operations.items())

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def intensity(self) -> float:
        """Floating-point operations for each byte moved; 0 where nothing is moved."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0

    def seconds(self, *, peak_flops: float, bandwidth: float, rates: Mapping[str, float] | None = None) -> float:
        """Time below which no machine of these rates can stay: the roofline.

            max(flops / peak_flops, bytes / bandwidth)

        Parameters
        ----------
        peak_flops : float
            Floating-point operations a second.
        bandwidth : float
            Bytes a second.
        rates : mapping of str to float, optional
            Operations a second of kinds that have a unit of their own, such as ``{"exp": 4e12}``: these leave the
            flops, and each bounds the time alone.

        Returns
        -------
        float
            Seconds.

        Raises
        ------
        TypeError
            If a rate is no number.
        ValueError
            If a rate is not positive and finite, or of a kind that is not counted.

        References
        ----------
        .. [1] S. Williams, A. Waterman, D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
           Architectures", Communications of the ACM 52(4), 2009.
        """
        rates = {} if rates is None else rates
        unknown = sorted(set(rates) - set(FLOPS))
        if unknown:
            raise ValueError(f"Cost.seconds: rates must be of the kinds {', '.join(FLOPS)}; got {unknown[0]!r}.")
        own = {kind: _rate(f"rates[{kind!r}]", rate) for kind, rate in rates.items()}
        flops = sum(FLOPS[kind] * count for kind, count in self.operations.items() if kind not in own)
        return max(
            flops / _rate("peak_flops", peak_flops),
            self.bytes_moved / _rate("bandwidth", bandwidth),
            *(self.operations[kind] / rate for kind, rate in own.items()),
        )

    def __str__(self) -> str:
        """A short table."""
        tiles = "" if self.tile is None else f", {self.tile[0]} queries x {self.tile[1]} keys a tile"
        counts = ", ".join(f"{kind} {count:,}" for kind, count in self.operations.items() if count)
        lines = {
            "operations": counts or "none",
            "flops": f"{self.flops:,}",
            "read": f"{self.bytes_read:,} bytes",
            "written": f"{self.bytes_written:,} bytes",
            "peak": f"{self.peak_bytes:,} bytes beyond the operands",
            "on chip": f"{self.on_chip_bytes:,} bytes a tile" if self.tile else "",
            "intensity": f"{self.intensity:.2f} flops a byte",
        }
        return "\n".join([f"{self.function}, {self.form}{tiles}", *(f"  {k:<11}{v}" for k, v in lines.items() if v)])


class Given(NamedTuple):
    """An operand with a value for each cell: the shape that broadcasts to (..., H, L, S), and how it is given."""

    shape: tuple[int, ...]
    dtype_bytes: int
    rule: bool  # made where it is used, and never read from memory

    @property
    def size(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def stored(self) -> int:
        """Bytes that it takes in memory."""
        return 0 if self.rule else self.dtype_bytes * self.size


@dataclass(frozen=True)
class Work:
    """What is to be computed: sizes, bytes of an element, and the arguments that add operations."""

    function: str
    batch: tuple[int, ...]
    heads: tuple[int, int]  # H, Hk
    lengths: tuple[int, int]  # L, S
    features: tuple[int, int]  # E, Ev
    dtypes: tuple[str, str, str, str]  # query, key, value, output
    dtype_bytes: tuple[int, int, int, int]
    softcap: bool = False
    sinks: int = 0  # bytes of one; 0 for none
    mask: TileMask | None = None
    masked: Given | None = None
    bias: Given | None = None
    dropout: Given | None = None
    return_lse: bool = False
    return_weights: bool = False
    tile: tuple[int, int] | None = None
    on_chip: int | None = None
    pack_gqa: bool = True
    given: Mapping[str, Any] = field(default_factory=dict)  # the arguments as they came, for what one method alone has

    @property
    def rows(self) -> int:
        """Query rows of all heads."""
        return math.prod(self.batch) * self.heads[0] * self.lengths[0]

    @property
    def cells(self) -> int:
        """Query-key pairs of all heads, masked or not."""
        return self.rows * self.lengths[1]

    @property
    def key_rows(self) -> int:
        """Key rows of all key heads: with grouped heads, fewer than the query heads have."""
        return math.prod(self.batch) * self.heads[1] * self.lengths[1]

    @property
    def elements(self) -> tuple[int, int, int, int]:
        """Elements of query, key, value and output."""
        E, Ev = self.features
        return self.rows * E, self.key_rows * E, self.key_rows * Ev, self.rows * Ev

    @property
    def operand_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of query, key, value and output."""
        q, k, v, o = (n * b for n, b in zip(self.elements, self.dtype_bytes, strict=True))
        return q, k, v, o

    def changes_scores(self, tally: Tally, cells: int, partial: int) -> None:
        """Count what kernels do to so many products q.k, of which `partial` lie where the mask must be asked."""
        tally.does(multiply=cells)  # by the scale, which is divided by the softcap where there is one
        if self.softcap:
            tally.does(tanh=cells, multiply=cells)
        if self.bias is not None:
            tally.does(add=cells)
        if self.masked is not None:
            tally.does(select=partial)


class Tally:
    """A running count, from which a cost is made."""

    def __init__(self) -> None:
        self.operations = dict.fromkeys(FLOPS, 0)
        self.read = 0
        self.written = 0

    def moves(self, read: int = 0, written: int = 0) -> None:
        """Count traffic."""
        self.read += read
        self.written += written

    def does(self, **operations: int) -> None:
        """Count operations."""
        for kind, count in operations.items():
            self.operations[kind] += count

    def adds(self, other: Tally, times: int) -> None:
        """Count what another tally counted, so many times."""
        self.moves(times * other.read, times * other.written)
        self.does(**{kind: times * count for kind, count in other.operations.items()})

    def cost(
        self, work: Work, form: str, peak_bytes: int, *, on_chip_bytes: int = 0, tile: tuple[int, int] | None = None
    ) -> Cost:
        """All that was counted."""
        counted = MappingProxyType(dict(self.operations))
        return Cost(work.function, form, counted, self.read, self.written, peak_bytes, on_chip_bytes, tile)


def untiled(work: Work, form: str) -> None:
    """Refuse what only tiled forms have."""
    for name, x in (("tile", work.tile), ("on_chip", work.on_chip)):
        if x is not None:
            raise ValueError(f"cost: {name} must be None for form={form!r}, which has no tiles; got {x}.")


def _rate(name: str, x: object) -> float:
    """A positive number."""
    rate = check_real("Cost.seconds", name, x, "a real number")
    if rate <= 0:
        raise ValueError(f"Cost.seconds: {name} must be positive; got {x}.")
    return rate
