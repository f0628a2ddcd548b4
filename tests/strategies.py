"""What tests draw, named by axes: lengths at the edges of tiles, and whole problems.

A problem is its shape, its law and its seed, so that it prints on one line and shrinks; its arrays are filled by a
NumPy generator, which is fast and draws no value by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refattn import masks
from tests import bias_rules, mask_rules, oracle
from tests.namespaces import Library, numpy_dtype

TILES = (16, 32, 64, 128)
LAWS = ("normal", "peaked", "offset", "rising", "large", "subnormal", "zero")
EXTREME = (
    0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 1e4, -1e4, 5e-324, -5e-324, 2.5e-308, 1e-160, 1e154, -1e154, 1.7e308, -1.7e308,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
# What padding code adds to scores: none, a large number, the lowest number of a format, a mask.
ADDED = (0.0, 1.5, -2.0, -1e4, -1e9, float(np.finfo(np.float32).min), float(np.finfo(np.float64).min), -math.inf)


@dataclass(frozen=True)
class Choice:
    """One value of an argument: as refattn takes it, and as the oracle does."""

    text: str
    given: Any = field(repr=False, default=None)
    rule: Callable[[tuple[int, ...], int, int], Any] | None = field(repr=False, default=None)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints."""
        printer.text(self.text)


NONE = Choice("None")


@dataclass(frozen=True)
class Problem:
    """A call of an attention function."""

    batch: tuple[int, ...] = ()
    heads: tuple[int, int] = (1, 1)
    lengths: tuple[int, int] = (1, 1)
    features: tuple[int, int] = (1, 1)
    law: str = "normal"
    seed: int = 0
    dtype: str = "float64"
    mask: Choice = NONE
    bias: Choice = NONE
    is_causal: bool = False
    scale: float | None = None
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None
    dropout_mask: Choice = NONE
    dropout_p: float = 0.0
    to: str | None = None

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, key and value in the problem's dtype."""
        return tuple(cast(x, self.dtype) for x in filled(self))

    @property
    def out(self) -> str:
        """Dtype of the output."""
        return self.to or self.dtype

    def arguments(self, library: Library) -> dict[str, Any]:
        """All that is not a default, as keyword arguments of refattn, in the library's arrays."""
        given = {
            "mask": self.mask.given,
            "bias": self.bias.given,
            "is_causal": self.is_causal or None,
            "scale": self.scale,
            "softcap": self.softcap,
            "sinks": None if self.sinks is None else np.array(self.sinks),
            "dropout_mask": self.dropout_mask.given,
            "dropout_p": self.dropout_p or None,
            "dtype": self.to,
        }
        return {
            name: library.array(x) if isinstance(x, np.ndarray) else x for name, x in given.items() if x is not None
        }

    def call(self, function: Callable[..., Any], library: Library, **more: Any) -> Any:
        """The function's result on the library's arrays."""
        return function(*map(library.array, self.arrays), **self.arguments(library), **more)

    def allowed(self, index: tuple[int, ...], i: int, j: int) -> bool:
        """Whether the mask lets query i see key j."""
        return (not self.is_causal or j <= i) and (self.mask.rule is None or self.mask.rule(index, i, j))

    def answer(self, rows: list[tuple[int, ...]] | None = None, tiles: int = 1) -> oracle.Answer:
        """What the oracle says of these rows."""
        return oracle.attention(
            *(x.astype(np.float64) for x in self.arrays), rows=self.rows() if rows is None else rows,
            allowed=self.allowed, bias=self.bias.rule, scale=self.scale, softcap=self.softcap, sinks=self.sinks,
            kept=self.dropout_mask.rule, dropout_p=self.dropout_p, tiles=tiles,
        )  # fmt: skip

    def rows(self, most: int = 12) -> list[tuple[int, ...]]:
        """All rows (..., h, i) where there are few, else some of them: the first, the last, drawn ones."""
        shape = (*self.batch, self.heads[0], self.lengths[0])
        n = math.prod(shape)
        drawn = np.random.default_rng(self.seed).choice(n, size=min(n, most), replace=False)
        chosen = np.unique([*drawn, 0, n - 1]) if n else []
        return [tuple(int(x) for x in np.unravel_index(at, shape)) for at in chosen]

    def spelled_out(self) -> Problem:
        """The same problem with mask and bias written out cell by cell, (..., H, L, S), so that keys can be moved."""
        shape = (*self.batch, self.heads[0], *self.lengths)
        cells = [(at[:-2], at[-2], at[-1]) for at in np.ndindex(shape)]
        rules = {"mask": self.allowed, "bias": self.bias.rule, "dropout_mask": self.dropout_mask.rule}
        found = {
            name: np.array([rule(*at) for at in cells], float if name == "bias" else bool).reshape(shape)
            for name, rule in rules.items()
            if rule is not None
        }
        return self.but(is_causal=False, **{name: _of_cells(f"cells of {name}", x) for name, x in found.items()})

    def moved(self, change: Callable[[np.ndarray], np.ndarray]) -> Problem:
        """The problem with a change made to each array of cells, after `spelled_out`."""
        given = {name: getattr(self, name).given for name in ("mask", "bias", "dropout_mask")}
        return self.but(**{name: _of_cells(f"part of {name}", change(x)) for name, x in given.items() if x is not None})

    def but(self, **changes: Any) -> Problem:
        """The problem with some fields changed."""
        return replace(self, **changes)


def _of_cells(text: str, x: np.ndarray) -> Choice:
    """An array of cells with the rule that it stands for."""
    return Choice(text, x, lambda *at: cell(x, *at).item())


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    """x in the dtype, for the values that tests draw: integers are rounded and cut to int8's range."""
    if dtype == "int8":
        return np.clip(np.rint(4 * x), -128, 127).astype(np.int8)
    with np.errstate(over="ignore"):
        return x.astype(numpy_dtype(dtype))


def filled(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, key and value of the problem's law in float64."""
    (H, Hk), (L, S), (E, Ev) = problem.heads, problem.lengths, problem.features
    rng = np.random.default_rng(problem.seed)
    q, k, v = (rng.standard_normal((*problem.batch, *shape)) for shape in ((H, L, E), (Hk, S, E), (Hk, S, Ev)))
    match problem.law:
        case "peaked":
            q = 6 * q
        case "offset":
            k, v = k + 3, v + 100
        case "rising":  # the maximum rises with every key
            q, k = np.abs(q) + 1, np.linspace(0, 8, S)[:, None] + 0.01 * np.abs(k)
        case "large":  # logits of 1e4
            q, k = q * 100, k * 100
        case "subnormal":
            q, k, v = q * 2.0**-1060, k * 2.0**-520, v * 2.0**-1060
        case "zero":
            q = q * 0
    return q, k, v


def around(sizes: tuple[int, ...]) -> list[int]:
    """Each size, and one less and one more."""
    return sorted({n + d for n in sizes for d in (-1, 0, 1)})


def lengths(most: int = 129) -> st.SearchStrategy[int]:
    """A length: small, at the edge of a tile, or 0."""
    edges = [n for n in around(TILES) if n <= most]
    small = st.integers(1, min(9, most))
    return st.one_of(small, st.sampled_from([1, 0, *edges]))


def heads(most: int = 4) -> st.SearchStrategy[tuple[int, int]]:
    """(H, Hk): MHA, GQA and MQA."""
    pairs = [(h, hk) for h in range(1, most + 1) for hk in range(1, h + 1) if h % hk == 0]
    return st.sampled_from(pairs)


def batches(rank: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Batch axes of rank 0 .. rank, some of them 0 long."""
    return st.lists(st.sampled_from([1, 2, 2, 1, 2, 1, 2, 1, 2, 1, 2, 0]), max_size=rank).map(tuple)


def features() -> st.SearchStrategy[tuple[int, int]]:
    """(E, Ev)."""
    return st.tuples(st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 2, 3, 3, 5, 8, 8, 0]))


def anchors(
    batch: tuple[int, ...], L: int, S: int, far: int = 2**62
) -> st.SearchStrategy[tuple[Any, Callable[[tuple[int, ...]], int]]]:
    """(anchor, offset of a batch index): corners, numbers far and near, one for each batch entry."""
    named = [("lower_right", lambda b: S - L), ("upper_left", lambda b: 0)]
    if L == S:
        named.append((None, lambda b: 0))
    fixed = st.integers(-L - 2, S + 2) | st.sampled_from([far, -far])
    options = [st.sampled_from(named), fixed.map(lambda n: (n, lambda b: n))]
    if batch:
        options.append(
            st.integers(0, 2**20).map(
                lambda seed: _of_batch(np.random.default_rng(seed).integers(-L - 1, S + 2, size=batch))
            )
        )
    return st.one_of(options)


def _of_batch(x: np.ndarray) -> tuple[np.ndarray, Callable[[tuple[int, ...]], int]]:
    return x, lambda b: int(x[b])


@st.composite
def simple_masks(draw: st.DrawFn, batch: tuple[int, ...], H: int, L: int, S: int) -> Choice:
    """One mask of a family, with the rule that it stands for."""
    family = draw(st.sampled_from(["causal", "window", "lengths", "array", "from_function", *mask_rules.KINDS]))
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    if family in mask_rules.KINDS:
        return Choice(*mask_rules.made(family, rng, batch, H, L, S, *draw(anchors(batch, L, S))))
    match family:
        case "causal":
            anchor, offset = draw(anchors(batch, L, S))
            return Choice(f"causal({anchor!r})", masks.causal(anchor), lambda index, i, j: j <= i + offset(index[:-1]))
        case "window":
            anchor, offset = draw(anchors(batch, L, S))
            side = st.none() | st.sampled_from([0, 1, 2, 15, 16, 17, 2**40])
            left, right = draw(side), draw(side)

            def within(index: tuple[int, ...], i: int, j: int) -> bool:
                distance = j - (i + offset(index[:-1]))
                return (left is None or distance >= -left) and (right is None or distance <= right)

            return Choice(f"window({left}, {right}, {anchor!r})", masks.window(left, right, anchor), within)
        case "lengths":
            shape = batch if draw(st.booleans()) else ()
            key, query = rng.integers(0, S + 1, size=shape), rng.integers(0, L + 1, size=shape)
            if draw(st.booleans()):
                query = np.full(shape, L)
                made = masks.lengths(key)
            else:
                made = masks.lengths(key, query)
            return Choice(
                f"lengths({key.tolist()}, {query.tolist()})",
                made,
                lambda index, i, j: j < key[index[: key.ndim]] and i < query[index[: key.ndim]],
            )
        case "array":
            cells = rng.random(draw(broadcastable(batch, H, L, S))) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
            return Choice(f"array{cells.shape} of seed {seed}", cells, lambda *at: cell(cells, *at))
    k = draw(st.integers(1, 5))
    of_head, of_batch = draw(st.booleans()), len(batch) == 1 and draw(st.booleans())

    def rule(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (i + 2 * j + h + 3 * b) % k != 0

    return Choice(
        f"from_function({k}, {of_head}, {of_batch})",
        masks.from_function(rule, batch=batch[0] if of_batch else None, heads=H if of_head else None),
        lambda index, i, j: rule(index[0] if of_batch else 0, index[-1] if of_head else 0, i, j),
    )


@st.composite
def problem_masks(draw: st.DrawFn, batch: tuple[int, ...], H: int, L: int, S: int) -> Choice:
    """No mask, one of any family, or a combination of two."""
    kind = draw(st.sampled_from(["none", "one", "one", "~", "&", "|"]))
    if kind == "none":
        return NONE
    a = draw(simple_masks(batch, H, L, S))
    if kind == "one":
        return a
    mask_a, rule_a = _as_mask(a), a.rule
    assert rule_a is not None
    if kind == "~":
        return Choice(f"~({a.text})", ~mask_a, lambda *at: not rule_a(*at))
    b = draw(simple_masks(batch, H, L, S))
    mask_b, rule_b = _as_mask(b), b.rule
    assert rule_b is not None
    if kind == "&":
        return Choice(f"({a.text}) & ({b.text})", mask_a & mask_b, lambda *at: rule_a(*at) and rule_b(*at))
    return Choice(f"({a.text}) | ({b.text})", mask_a | mask_b, lambda *at: rule_a(*at) or rule_b(*at))


def _as_mask(choice: Choice) -> masks.Mask:
    return masks.array(choice.given) if isinstance(choice.given, np.ndarray) else choice.given


@st.composite
def broadcastable(draw: st.DrawFn, batch: tuple[int, ...], H: int, L: int, S: int) -> tuple[int, ...]:
    """A shape of at least two axes that broadcasts to (*batch, H, L, S)."""
    full = (*batch, H, L, S)
    shape = tuple(n if draw(st.booleans()) else 1 for n in full)
    return shape[draw(st.integers(0, len(full) - 2)) :]


def cell(x: np.ndarray, index: tuple[int, ...], i: int, j: int) -> Any:
    """The cell of a broadcast array at head `index`, query i, key j."""
    at = (*index, i, j)[len(index) + 2 - x.ndim :]
    return x[tuple(0 if n == 1 else k for k, n in zip(at, x.shape, strict=True))]


@st.composite
def problem_biases(draw: st.DrawFn, batch: tuple[int, ...], H: int, L: int, S: int) -> Choice:
    """No bias, an array that broadcasts, or a rule."""
    kind = draw(st.sampled_from(["none", "array", *bias_rules.KINDS]))
    if kind == "none":
        return NONE
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    if kind == "array":
        shape = draw(broadcastable(batch, H, L, S))
        x = rng.standard_normal(shape)
        x = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3])), rng.choice(ADDED, size=shape), x)
        return Choice(f"array{shape} of seed {seed}", x, lambda *at: float(cell(x, *at)))
    anchor, offset = draw(anchors(batch, L, S, far=2**52))
    return Choice(*bias_rules.made(kind, rng, batch, H, anchor, offset))


@st.composite
def problems(
    draw: st.DrawFn,
    dtypes: tuple[str, ...] = ("float64",),
    arguments: tuple[str, ...] = ("mask", "bias", "is_causal", "scale", "softcap", "sinks", "dropout_mask"),
    most: int = 129,
) -> Problem:
    """A whole call, of the arguments named; long ones have one batch entry and at most two heads."""
    L, S = draw(lengths(most)), draw(lengths(most))
    if draw(st.booleans()):
        S = L
    few = L * S > 400
    batch = draw(batches(1 if few else 3)) if not few else draw(st.sampled_from([(), (1,)]))
    H, Hk = draw(heads(2 if few else 4))
    dtype = draw(st.sampled_from(dtypes))
    must_round = dtype == "int8" or dtype.startswith("float8")
    to = draw(
        st.sampled_from(dtypes).filter(_is_float)
        if must_round
        else st.none() | st.sampled_from(dtypes).filter(_is_float)
    )

    def maybe(name: str, strategy: st.SearchStrategy[Any], default: Any) -> Any:
        return draw(strategy) if name in arguments else default

    return Problem(
        batch=batch,
        heads=(H, Hk),
        lengths=(L, S),
        features=draw(features()),
        law=draw(st.sampled_from(LAWS)),
        seed=draw(st.integers(0, 2**20)),
        dtype=dtype,
        mask=maybe("mask", problem_masks(batch, H, L, S), NONE),
        bias=maybe("bias", problem_biases(batch, H, L, S), NONE),
        is_causal=maybe("is_causal", st.booleans() if L == S else st.just(False), False),
        scale=maybe("scale", st.none() | st.sampled_from([0.0, 1.0, -0.3, 1e-3]), None),
        softcap=maybe("softcap", st.none() | st.sampled_from([1e-3, 1.0, 30.0, 1e6]), None),
        sinks=maybe("sinks", st.none() | st.lists(sink_logits(), min_size=H, max_size=H).map(tuple), None),
        **(draw(dropouts(batch, H, L, S)) if "dropout_mask" in arguments else {}),
        to=to,
    )


@st.composite
def dropouts(draw: st.DrawFn, batch: tuple[int, ...], H: int, L: int, S: int) -> dict[str, Any]:
    """No dropout, or its mask (of any family: what a kernel drew may have any form) and its probability."""
    kept = draw(problem_masks(batch, H, L, S))
    return {} if kept is NONE else {"dropout_mask": kept, "dropout_p": draw(st.sampled_from([0.0, 0.1, 0.5, 0.99]))}


def _is_float(dtype: str) -> bool:
    return dtype not in ("int8", "float8_e8m0fnu")


def sink_logits() -> st.SearchStrategy[float]:
    """A sink's logit, or -inf for a head without one."""
    return st.sampled_from([0.0, 1.5, -3.0, 1e4, -1e4, -math.inf])
