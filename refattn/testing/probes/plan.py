"""Which probes run on which calls of a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refattn.contract.formats import unit
from refattn.testing.probes.designs import DESIGNS, Design, hashed, means, neutral, sunk_rows
from refattn.testing.probes.measured import Slack
from refattn.testing.probes.model import Floats, Operands, rounded
from refattn.testing.probes.setting import Setting, plain, shaped, varied, with_bias, with_sinks
from refattn.testing.spec import KernelSpec

# Query-key pairs up to which more than one batch entry is run, and of quick runs every probe.
SMALL = 2**15
# The softcap, and the scale in units of 1/sqrt(E), of the settings that vary them.
SOFTCAP, SCALED = 2.0, 0.625
EMPTIED = "mask (some rows see nothing)"


@dataclass(frozen=True)
class Step:
    """Probes of one setting, in their order."""

    setting: Setting
    designs: dict[str, Design]


@dataclass(frozen=True)
class Skipped:
    """A probe that is not run, and why."""

    probe: str
    reason: str


def steps(spec: KernelSpec, *, quick: bool) -> Iterator[Step | Skipped]:
    """The settings of a spec with their probes, the plain calls first."""
    lengths = [x for x in dict.fromkeys(spec.lengths) if x[0] == x[1] or not spec.arguments(*x).get("is_causal")]
    if not lengths:
        yield Skipped("all", "is_causal=True has no meaning for L != S, and all lengths differ")
        return
    by_size = sorted(lengths, key=lambda x: (x[0] == x[1], x[0] * x[1]))
    uneven = [x for x in by_size if x[0] != x[1]]
    square = [x for x in by_size if x[0] == x[1]]
    # The longest of each kind first: they straddle most tiles.
    first = [*reversed(uneven[-1:]), *reversed(square[-1:])]
    chosen = first if quick else first + [x for x in lengths if x not in first]
    dims = spec.features
    for number, pair in enumerate(chosen):
        setting = plain(spec, _batch(spec, pair), pair, dims[0])
        names = list(DESIGNS)
        if quick and number:
            names = ["mask", "needle"]
        if quick and "key bits" in names and math.prod(pair) > SMALL:
            names.remove("key bits")
            yield Skipped("key bits", f"left out of quick runs of {pair[0]} queries and {pair[1]} keys")
        yield Step(setting, {name: DESIGNS[name] for name in names})
    if quick:
        yield from _of_shapes(spec, [x for x in uneven if x not in chosen])
    for other in dims[1:] if not quick else dims[1:2]:
        pair = min(chosen, key=lambda x: abs(math.prod(x) - 4096))
        yield Step(
            plain(spec, _batch(spec, pair), pair, other), {n: DESIGNS[n] for n in ("mask", "needle", "temperature")}
        )
    pair = chosen[0] if quick else max(uneven or square, key=math.prod)
    yield from _of_arguments(spec, plain(spec, _batch(spec, pair), pair, dims[0]), square, quick)


def _of_shapes(spec: KernelSpec, lengths: list[tuple[int, int]]) -> Iterator[Step]:
    """The shortest chunk behind a cache and the longest of more queries than keys, where rows see some of the keys."""
    short = sorted((x for x in lengths if x[0] < x[1]), key=lambda x: (x[0], -x[1]))[:1]
    tall = sorted((x for x in lengths if x[0] > x[1]), key=math.prod)[-1:]
    for pair, names in [(x, ("mask", "needle")) for x in short] + [(x, ("means",)) for x in tall]:
        setting = plain(spec, _batch(spec, pair), pair, spec.features[0])
        if not setting.model.counts.all() and not setting.uneven:
            yield Step(setting, {name: {**DESIGNS, "means": means}[name] for name in names})


def _batch(spec: KernelSpec, lengths: tuple[int, int]) -> int:
    """The number of batch entries to run."""
    return (
        max([n for n in spec.batch if n <= 4] or [min(spec.batch)]) if math.prod(lengths) <= SMALL else min(spec.batch)
    )


def _of_arguments(
    spec: KernelSpec, setting: Setting, square: list[tuple[int, int]], quick: bool
) -> Iterator[Step | Skipped]:
    """The settings in which an accepted argument is varied."""
    packed = {"cu_seqlens_q", "cu_seqlens_k"} & set(spec.tables)
    L, S = setting.lengths
    few = {name: DESIGNS[name] for name in ("mask", "needle", "stairs")[: 2 if quick else 3]}
    if "is_causal" in spec.accepts:
        n = max(square)[0] if square else max(setting.lengths)
        causal = plain(spec, _batch(spec, (n, n)), (n, n), setting.dims)
        yield Step(varied(causal, "is_causal", True), few)
    for name in ("mask", "bias"):
        if name in spec.accepts and packed:
            yield Skipped(name, "packed sequences have no array (B, H, L, S)")
    if "mask" in spec.accepts and not packed:
        shape = (setting.batch, spec.heads[0], L, S)
        gap = np.arange(L)[:, None] + S - L - np.arange(S)
        window = np.broadcast_to((gap >= 0) & (gap <= max(1, S // 4)) | (gap < 0) & (np.arange(S) == 0), shape)
        yield Step(varied(setting, "mask", np.ascontiguousarray(window), "mask (a window)"), few)
        others = scattered(shape)
        yield Step(varied(setting, "mask", others, "mask (scattered)"), {"mask": DESIGNS["mask"]})
        if (reason := spec.expected_failures.get("empty_rows")) is None:
            yield Step(varied(setting, "mask", emptied(others), EMPTIED), {"means": means})
        else:
            yield Skipped(EMPTIED, f"expected to fail: {reason}")
        setting = replace(setting, stale=(others.reshape(-1, L, S), emptied(others).reshape(-1, L, S)))
    if "scale" in spec.accepts:
        scale = SCALED / math.sqrt(setting.dims[0])
        yield Step(varied(setting, "scale", scale), {"temperature": DESIGNS["temperature"]})
    if "softcap" in spec.accepts:
        yield Step(varied(setting, "softcap", SOFTCAP), {"temperature": DESIGNS["temperature"]})
    if "sinks" in spec.accepts:
        some = {"sinks": DESIGNS["mask"], "temperature": DESIGNS["temperature"], "sunk rows": sunk_rows}
        yield Step(with_sinks(setting, sinks_of(setting)), some)
        if (alone := _sinks_alone(spec, setting, packed)) is not None:
            yield Step(alone, {"means": means})
    if "bias" in spec.accepts and not packed:
        yield Step(with_bias(setting, switched(setting)), {"bias": even_bias})
        if setting.model.scale > 0:
            yield Step(with_bias(setting, graded(setting)), {"bias": graded_bias})


def _sinks_alone(spec: KernelSpec, setting: Setting, packed: set[str]) -> Setting | None:
    """A setting in which some rows see sinks alone, if the kernel can be asked for one."""
    tall = sorted((x for x in spec.lengths if x[0] > x[1]), key=math.prod)
    if tall:
        other = plain(spec, _batch(spec, tall[-1]), tall[-1], setting.dims)
        if not other.uneven and not other.model.counts.any(axis=-1).all():
            return with_sinks(other, sinks_of(other))
    if "mask" not in spec.accepts or packed or setting.uneven or "empty_rows" in spec.expected_failures:
        return None
    shape = (setting.batch, spec.heads[0], *setting.lengths)
    masked = varied(setting, "mask", emptied(scattered(shape)), EMPTIED)
    return with_sinks(masked, sinks_of(masked))


def emptied(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A mask with every third row empty."""
    found = mask.copy()
    found[..., 1::3, :] = False
    return found


def scattered(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """A mask without a pattern, in which each row sees a key."""
    B, H, L, S = shape
    n, i, j = np.arange(B * H).reshape(B, H, 1, 1), np.arange(L)[:, None], np.arange(S)
    return np.asarray((hashed(n, i, j) & 1 == 1) | (j == (i * 7 + n) % S))


def sinks_of(setting: Setting) -> Floats:
    """Sinks (H,) that weigh about as much as the keys do, another one for each head."""
    H = setting.heads[0]
    count = max(1.0, float(setting.model.counts.sum(axis=-1).max()))
    steps = np.arange(H) % 16
    return rounded(np.rint(math.log(count)) - 1.0 + steps * 0.25, "bfloat16" if setting.bits == 8 else "float8_e4m3fn")


def switched(setting: Setting) -> Floats:
    """A bias (N, L, S) that takes part of the keys out, without a pattern, and leaves the others as they are."""
    N, L, S = setting.model.counts.shape
    keep = hashed(np.arange(N)[:, None, None], np.arange(L)[:, None], np.arange(S)) & 1
    keep[:, np.arange(L), np.arange(L) * 5 % S] = 1
    return np.where(keep == 1, 0.0, -setting.gap)


def even_bias(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """The weights under a bias that is 0 or takes keys out."""
    query, key, _ = shaped(setting)
    eps = 64 * unit(setting.contract.accumulator) + setting.exp_error
    if setting.contract.normalised_probabilities or setting.model.sinks is not None:
        eps += 2 * unit(setting.contract.probabilities)
    yield Operands(query, key, None), Slack(eps, 4 * eps, 1.1 * unit(setting.contract.probabilities))


def graded(setting: Setting) -> Floats:
    """A bias (N, L, S) that is 0 or -x in row x."""
    (L, S), N = setting.lengths, len(setting.model.counts)
    amounts, _ = neutral(setting, L)
    x = rounded(amounts * setting.model.scale, "bfloat16" if setting.bits == 8 else setting.contract.query)
    return np.broadcast_to(np.where(np.arange(S) % 8 > 0, -x[:, None], 0.0), (N, L, S)).astype(np.float64)


def graded_bias(setting: Setting, quick: bool) -> Iterator[tuple[Operands, Slack]]:
    """Values that tell two biases apart."""
    query, key, value = shaped(setting)
    low = np.arange(setting.lengths[1]) % 8 > 0
    Ev = value.shape[-1]
    value[:, low, 0], value[:, ~low, 1 % Ev], value[..., Ev - 1] = 1.0, 1.0, 1.0
    u = unit(setting.contract.probabilities)
    slack = 2 * u + setting.score_error(8.0) + 32 * unit(setting.contract.accumulator)
    yield Operands(query, key, value), Slack(slack, 2 * slack, 1.1 * u)
