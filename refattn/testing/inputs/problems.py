"""Inputs that a kernel is run on: drawn by five laws, captured from a model, and the arguments that go with them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import data, layouts, masks
from refattn._core.arrays import round_to
from refattn._core.descale import QUANTISED
from refattn.testing.inputs import batches
from refattn.testing.inputs.batches import Batch
from refattn.testing.spec import ARGUMENTS, LAWS, TABLES, KernelSpec

Array = npt.NDArray[Any]
Rng = np.random.Generator
Shape = tuple[int, tuple[int, int], tuple[int, int]]  # batch, (L, S), (E, Ev)

# How far the logits rise over the keys of "rising": past 8 ln 2, where kernels that rescale lazily rescale.
RISE = 16.0
# Share of the weights that dropout drops: 1/(1 - p) is no power of two, so that its rounding is seen too.
DROPPED = 0.3


@dataclass(frozen=True)
class Problem:
    """What one run of a kernel is made from; the arrays are drawn when it is run."""

    check: str
    law: str
    batch: int
    lengths: tuple[int, int]
    dims: tuple[int, int]
    seed: tuple[int, ...]
    varied: str | None = None
    sequences: tuple[tuple[int, int], ...] = ()  # lengths (L, S), where the kernel takes tables


@dataclass(frozen=True, eq=False)
class Inputs:
    """NumPy arrays (B, H, L, E) in the contract's dtypes, and the arguments in refattn's and in the kernel's form.

    Where the kernel takes tables, `batch` has the lengths of the sequences, and what lies past them is NaN.
    """

    query: Array
    key: Array
    value: Array
    arguments: dict[str, Any] = field(default_factory=dict)
    passed: dict[str, Any] = field(default_factory=dict)
    batch: Batch | None = None


@dataclass(frozen=True)
class NotRun:
    """A check that is not run, and why."""

    check: str
    reason: str


def operand_dtypes(spec: KernelSpec) -> list[str]:
    """The dtypes of query, key and value."""
    contract = spec.numerics()
    return [input_dtype(name) for name in (contract.query, contract.key, contract.value)]


def input_dtype(name: str) -> str:
    """The dtype of arrays whose values a format is read from."""
    return "float32" if name == "tf32" else name


def plan(spec: KernelSpec, *, quick: bool, seed: int) -> Iterator[Problem | NotRun]:
    """All problems of a spec, check by check, and the checks that are not run."""
    shapes = _shapes(spec)
    if not shapes:
        yield from (
            NotRun(law, "is_causal=True has no meaning for L != S, and all lengths differ. Pass a mask in computes=")
            for law in LAWS
        )
        return
    # Half of the lengths and one of the dims apart.
    apart = len(shapes) // (2 * len(spec.dims)) * len(spec.dims) + 1
    for number, law in enumerate(LAWS):
        few = [shapes[(7 * number + k * apart) % len(shapes)] for k in range(min(2, len(shapes)))]
        yield from _problems(spec, law, law, few if quick else shapes, seed)
    yield _captured(spec, seed)
    for name in (*ARGUMENTS, "dropout_mask"):
        yield from _of_argument(spec, name, shapes[-1:] if quick else _thin(shapes), seed)
    if "mask" not in spec.accepts:
        yield NotRun("empty_rows", "function does not accept mask")
    elif _has_cells(spec):
        yield from _problems(spec, "empty_rows", "normal", shapes[-1:] if quick else _thin(shapes), seed, "mask")
    else:
        yield NotRun("empty_rows", "packed sequences have no array (B, H, L, S)")
    yield NotRun("gradients", "no backward was given" if spec.backward is None else "gradients are not judged yet")
    for name in spec.accepts:
        if name in TABLES:
            yield from _problems(spec, name, "coded", shapes[-1:] if quick else _thin(shapes), seed)
    if "descale" in spec.accepts:
        yield from _quantised(spec, shapes[-1:] if quick else _thin(shapes), seed)


def _shapes(spec: KernelSpec) -> list[Shape]:
    """Every length that the kernel's own causality has a meaning for, with every dims; the batch sizes take turns."""
    lengths = [(L, S) for L, S in spec.lengths if L == S or not spec.arguments(L, S).get("is_causal", False)]
    turn = max(1, len(lengths) + len(spec.dims) - 1)
    return [
        (spec.batch[(i + j + start) % len(spec.batch)], n, d)
        for start in range(0, len(spec.batch), turn)
        for i, n in enumerate(lengths)
        for j, d in enumerate(spec.features)
    ]


def _thin(shapes: list[Shape]) -> list[Shape]:
    """Every third shape: enough for an argument, since each law ran on all."""
    return shapes[::3]


def _problems(
    spec: KernelSpec, check: str, law: str, shapes: list[Shape], seed: int, varied: str | None = None
) -> Iterator[Problem]:
    """The problems of one check."""
    for number, (B, lengths, dims) in enumerate(shapes):
        seeds = (seed, zlib.crc32(check.encode()), number)
        sequences: tuple[tuple[int, int], ...] = ()
        if spec.tables:
            square = varied == "is_causal" or bool(spec.arguments(*lengths).get("is_causal", False))
            sequences = batches.lengths_of(spec, check, B, lengths, np.random.default_rng((*seeds, 1)), square=square)
        yield Problem(check, law, B, lengths, dims, seeds, varied, sequences)


def _has_cells(spec: KernelSpec) -> bool:
    """Whether an array (B, H, L, S) tells of each query and key: not where they are packed."""
    return not {"cu_seqlens_q", "cu_seqlens_k"} & set(spec.tables)


def _of_argument(spec: KernelSpec, name: str, shapes: list[Shape], seed: int) -> Iterator[Problem | NotRun]:
    """The problems that vary an argument of attention."""
    if name not in spec.accepts:
        always = any(name in spec.arguments(L, S) for L, S in spec.lengths)
        yield NotRun(name, f"function does not accept {name}" + ("; all checks compute with it" if always else ""))
        return
    if name in ("mask", "bias", "dropout_mask") and not _has_cells(spec):
        yield NotRun(name, "packed sequences have no array (B, H, L, S)")
        return
    if name == "is_causal":
        square = [shape for shape in shapes if shape[1][0] == shape[1][1]]
        # Where none of the lengths is square, their larger sides are.
        shapes = square or [(B, (max(n), max(n)), dims) for B, n, dims in shapes[:1]]
    yield from _problems(spec, name, "normal", shapes, seed, name)


def _quantised(spec: KernelSpec, shapes: list[Shape], seed: int) -> Iterator[Problem | NotRun]:
    """Problems whose operands have factors; there are batches of several entries among them, which differ."""
    if wide := [name for name in operand_dtypes(spec) if name not in QUANTISED]:
        yield NotRun("descale", f"products of {wide[0]} operands and factors are not exact")
        return
    blocks = spec.stored.descale
    size = math.lcm(*(tokens or 1 for tokens, _ in blocks))
    if spec.tables and size > 1:
        yield NotRun("descale", "sequences of lengths of their own have no blocks of one size")
        return
    shapes = [
        (max(B, 2), (-(-L // size) * size, -(-S // size) * size), dims)
        for B, (L, S), dims in shapes
        if all(n % (features or 1) == 0 for n, (_, features) in zip((dims[0], *dims), blocks, strict=True))
    ]
    if not shapes:
        yield NotRun("descale", "blocks of features divide none of dims")
        return
    yield from _problems(spec, "descale", "normal", shapes, seed, "descale")


def _captured(spec: KernelSpec, seed: int) -> Problem | NotRun:
    """The real capture, as far as its shapes fit."""
    capture = data.smollm2()
    layers, members, L, E = capture.query.shape
    H, Hk = spec.heads
    available = layers * capture.key.shape[1]
    if (E, E) not in spec.features:
        return NotRun("smollm2", f"its heads have E = Ev = {E}, which dims does not name")
    if Hk > available or H // Hk > members // capture.key.shape[1]:
        return NotRun("smollm2", f"it has {available} key heads of {members} query heads each; heads asks for more")
    varied = "is_causal" if "is_causal" in spec.accepts else None
    sequences = ((L, L),) if spec.tables else ()
    return Problem("smollm2", "smollm2", 1, (L, L), (E, E), (seed,), varied, sequences)


def inputs(spec: KernelSpec, problem: Problem) -> Inputs:
    """Draw the arrays of a problem, and round them to the contract's formats."""
    rng = np.random.default_rng(problem.seed)
    H, Hk = spec.heads
    L, S = problem.lengths
    batch = None
    if problem.law == "smollm2":
        drawn = _smollm2(H, Hk)
    elif problem.sequences:
        drawn = batches.drawn(LAW[problem.law], rng, problem.sequences, spec.heads, problem.dims)
        L, S = drawn[0].shape[-2], drawn[1].shape[-2]
    else:
        drawn = LAW[problem.law](rng, (problem.batch, H, Hk), problem.lengths, problem.dims)
    if problem.sequences:
        queries, keys = np.array(problem.sequences, dtype=np.int64).T
        batch = Batch(queries, keys, problem.seed[-1])
        if problem.check == "block_table":
            batch = batches.with_prefix(spec, batch, drawn)
    factors = None
    if problem.varied == "descale":
        factors = [_factors(rng, x, block) for x, block in zip(drawn, spec.stored.descale, strict=True)]
        drawn = [x / multiplied(np.ones_like(x, np.int8), f) for x, f in zip(drawn, factors, strict=True)]
    names = operand_dtypes(spec)
    q, k, v = (round_to(x, name, np) for x, name in zip(drawn, names, strict=True))
    arguments, passed = spec.arguments(L, S), unvaried(spec, problem.dims[0])
    if problem.varied == "dropout_mask":
        passed["dropout_p"] = arguments["dropout_p"] = DROPPED
    if factors is not None:
        passed["descale"] = arguments["descale"] = tuple(factors)
    elif problem.varied is not None:
        value = _varied(problem, rng, (len(q), H, L, S), names[0])
        passed[problem.varied] = value
        arguments[problem.varied] = masks.array(value) if problem.varied == "mask" and batch is None else value
    return Inputs(q, k, v, arguments, passed, batch)


def _factors(rng: Rng, x: Array, block: tuple[int | None, int | None]) -> Array:
    """A float32 factor from 1/4 to 4 for each batch entry, head and block, (B, heads, blocks), or one axis more."""
    counts = tuple(1 if size is None else n // size for n, size in zip(x.shape[-2:], block, strict=True))
    shape = (*x.shape[:2], *(counts if block[1] is not None else counts[:1]))
    return np.exp2(rng.uniform(-2.0, 2.0, shape)).astype(np.float32)


def multiplied(x: Array, factor: Array) -> Array:
    """An operand times its factors, in float64."""
    factor = factor if factor.ndim == x.ndim else factor[..., None]
    tokens, features = (size // n for size, n in zip(x.shape[-2:], factor.shape[-2:], strict=True))
    whole: Array = layouts.dequantise(x, factor, (tokens, features))
    return whole


def unvaried(spec: KernelSpec, E: int) -> dict[str, Any]:
    """What the kernel gets for the arguments that it takes where none is varied."""
    asks_nothing = {"is_causal": False, "scale": 1 / math.sqrt(E), "dropout_p": 0.0}
    return {name: asks_nothing.get(name) for name in spec.accepts}


def _varied(problem: Problem, rng: Rng, shape: tuple[int, int, int, int], dtype: str) -> Any:
    """A value for the argument that a problem varies, as the kernel gets it."""
    (B, H, L, S), E = shape, problem.dims[0]
    if problem.varied == "is_causal":
        return True
    if problem.varied == "scale":
        return 0.73 / math.sqrt(E)
    if problem.varied == "softcap":
        return 2.0
    if problem.varied == "sinks":
        return round_to(rng.standard_normal(H) + 1.0, dtype, np)
    if problem.varied == "bias":
        return round_to(2.0 * rng.standard_normal(shape), dtype, np)
    if problem.varied == "dropout_mask":
        return rng.random(shape) >= DROPPED
    keep = rng.random(shape) < 0.5
    if problem.check == "empty_rows":
        keep[..., ::3, :] = False
    else:
        # Each row sees a key, and one in four sees a run of keys as in a padded batch.
        keep[..., ::4, :] = np.arange(S) < rng.integers(1, S + 1, size=(B, 1, 1, 1))
        keep[..., np.arange(L), rng.integers(0, S, size=L)] = True
    return keep


def _smollm2(H: int, Hk: int) -> list[Array]:
    """The capture's layers laid side by side as heads, cut to (1, H, L, E) and (1, Hk, L, E)."""
    capture = data.smollm2()
    layers, heads, L, E = capture.query.shape
    key_heads = capture.key.shape[1]
    groups = capture.query.reshape(layers * key_heads, heads // key_heads, L, E)
    query = groups[:Hk, : H // Hk].reshape(1, H, L, E)
    key, value = (x.reshape(1, layers * key_heads, L, E)[:, :Hk] for x in (capture.key, capture.value))
    return [x.astype(np.float64) for x in (query, key, value)]


def _normal(rng: Rng, heads: tuple[int, int, int], lengths: tuple[int, int], dims: tuple[int, int]) -> list[Array]:
    """Independent standard normal numbers."""
    (B, H, Hk), (L, S), (E, Ev) = heads, lengths, dims
    return [rng.standard_normal(shape) for shape in ((B, H, L, E), (B, Hk, S, E), (B, Hk, S, Ev))]


def _peaked(rng: Rng, heads: tuple[int, int, int], lengths: tuple[int, int], dims: tuple[int, int]) -> list[Array]:
    """Queries four times as large: most weight on few keys."""
    q, k, v = _normal(rng, heads, lengths, dims)
    return [4.0 * q, k, v]


def _offset(rng: Rng, heads: tuple[int, int, int], lengths: tuple[int, int], dims: tuple[int, int]) -> list[Array]:
    """Values around 4: a weight that is lost, or counted twice, is seen in every column."""
    q, k, v = _normal(rng, heads, lengths, dims)
    return [q, k, v + 4.0]


def _rising(rng: Rng, heads: tuple[int, int, int], lengths: tuple[int, int], dims: tuple[int, int]) -> list[Array]:
    """Scores that rise along the keys: each tile brings a new maximum."""
    q, k, v = _normal(rng, heads, lengths, dims)
    S, E = k.shape[-2:]
    # Along (1, ..., 1)/sqrt(E) the queries have the length a, the keys a j/S, and a * a / sqrt(E) = RISE.
    a = math.sqrt(RISE * math.sqrt(E)) / math.sqrt(E)
    return [q + a, k + a * (np.arange(S) / S)[:, None], v]


def _coded(rng: Rng, heads: tuple[int, int, int], lengths: tuple[int, int], dims: tuple[int, int]) -> list[Array]:
    """Keys of signs, each query aimed at one key: its weight is near 1, so that this key is nearly the whole answer.

    Over the rows and heads of a key head the aims run backwards through the keys, so a key that is lost, or read from
    another batch entry, head or position, is lost whole.
    """
    (B, H, Hk), (L, S), (E, _) = heads, lengths, dims
    k = rng.choice([-1.0, 1.0], size=(B, Hk, S, E))
    v = rng.integers(-8, 9, size=(B, Hk, S, dims[1])).astype(np.float64)
    member = np.arange(H) % (H // Hk)
    # The last keys first: that is where tiles are cut.
    aims = S - 1 - (member[:, None] * L + np.arange(L)) % S
    q = 12.0 / math.sqrt(E) * np.take_along_axis(np.repeat(k, H // Hk, axis=1), aims[None, :, :, None], axis=2)
    return [q, k, v]


LAW = dict(zip(LAWS, (_normal, _peaked, _offset, _rising, _coded), strict=True))
