"""One call of a kernel that is probed again and again: its shapes, its arguments, and what they ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import masks
from refattn._core.arrays import round_to
from refattn._core.score import Score
from refattn.contract import Contract, errors
from refattn.contract.formats import FORMATS, unit
from refattn.testing import running
from refattn.testing.inputs.batches import Batch
from refattn.testing.inputs.problems import Inputs, input_dtype, unvaried
from refattn.testing.probes.model import Floats, Model, Operands, rounded
from refattn.testing.spec import KernelSpec
from refattn.testing.verdict.checking import LSE_BASES

# Weights below this share of the largest are 0 in the format of the sums, whichever way a kernel takes exponentials:
# e^-104 is half the smallest float32, e^-746 of float64.
GAPS = {"float32": 128.0, "float64": 1024.0}
# Relative error that sums of exact numbers, one division and one reciprocal may have, in unit roundoffs.
UNITS = 32.0


@dataclass(frozen=True, eq=False)
class Setting:
    """A kernel with shapes and arguments.

    `varied` names the argument that is not as in the plain call, `stale` has the masks (N, L, S) that the kernel was
    given before, where it is given none.
    """

    spec: KernelSpec
    batch: int
    lengths: tuple[int, int]
    dims: tuple[int, int]
    arguments: dict[str, Any]
    passed: dict[str, Any]
    model: Model
    varied: str = ""
    stale: tuple[npt.NDArray[np.bool_], ...] = ()

    @property
    def heads(self) -> tuple[int, int]:
        """Query heads H and key heads Hk."""
        return self.spec.heads

    @property
    def contract(self) -> Contract:
        """The kernel's numerics."""
        return self.spec.numerics()

    @property
    def gap(self) -> float:
        """How far below the maximum a score must lie to have no weight, whatever the bias."""
        bias = self.model.bias
        return GAPS[self.contract.accumulator] + (0.0 if bias is None else float(np.ptp(bias[np.isfinite(bias)])))

    @property
    def most(self) -> float:
        """The largest number that query and key can hold, within reason."""
        return min(2.0**14, *(FORMATS[name].max for name in (self.contract.query, self.contract.key)))

    @property
    def bits(self) -> int:
        """Significant bits that all operands have, 8 at most."""
        names = (self.contract.query, self.contract.key, self.contract.value)
        return min(8, *(FORMATS[name].precision for name in names))

    @property
    def eps(self) -> float:
        """Relative error that is accepted where all weights of a row are 0 or equal."""
        contract, model = self.contract, self.model
        above = model.sinks is not None and not (model.sinks <= 0).all()
        eps = UNITS * unit(contract.accumulator) + (self.exponentials if above else self.exp_error)
        if contract.normalised_probabilities:
            # The weights are quotients, whose sums are rounded.
            eps += self.sum_error
        if contract.normalised_probabilities or contract.ahead or above or self.uneven:
            eps += 2 * unit(contract.probabilities)
        return eps + (0.0 if model.bias is None else 8 * unit(contract.accumulator) * float(np.abs(model.bias).max()))

    @property
    def exponentials(self) -> float:
        """How far off the weight of a score below the row's maximum may be within the contract, by its exponential."""
        return 2 * self.contract.exp_ulp * unit(self.contract.accumulator)

    @property
    def exp_error(self) -> float:
        """How far the weights of equal scores may be from the row sum, by the error of a rounded exponential."""
        contract = self.contract
        rounds = FORMATS[contract.probabilities].precision < FORMATS[contract.accumulator].precision
        return self.exponentials * rounds

    @property
    def uneven(self) -> bool:
        """Whether scores differ by themselves, where query and key are zero."""
        return self.model.bias is not None

    @property
    def capped(self) -> bool:
        """Whether a softcap keeps scores from being as far apart as the gap."""
        return self.model.cap is not None

    @property
    def sum_error(self) -> float:
        """How far off a sum over all keys may be within the contract, whose terms are alike and round alike."""
        return float(errors.product_sum(self.contract, self.lengths[1]))

    def score_error(self, size: float) -> float:
        """How far off the weights of scores of a size may be within the contract, what `exp_error` says aside."""
        contract = self.contract
        relative = 16 * unit(contract.accumulator)
        if FORMATS[contract.scores].precision < FORMATS[contract.accumulator].precision:
            relative += 4 * unit(contract.scores)
        relative += sum(2 * unit(getattr(contract, name)) for name in contract.rounded if name != "value")
        if self.model.cap is not None:
            relative += 2 * contract.tanh_ulp * unit(contract.accumulator) + 16 * unit(contract.accumulator)
        return relative * size + max(0.0, self.exponentials - self.exp_error)

    def inputs(self, given: Operands) -> Inputs:
        """The operands as arrays (B, H, L, E) in the dtypes of the contract."""
        contract, B = self.contract, self.batch
        assert given.value is not None

        def held(name: str, x: Floats) -> npt.NDArray[Any]:
            dtype = input_dtype(getattr(contract, name))
            return np.asarray(round_to(x.reshape(B, -1, *x.shape[1:]), dtype, np))

        arrays = (held("query", given.query), held("key", given.key), held("value", given.value))
        batch = None
        if self.spec.tables:
            L, S = self.lengths
            batch = Batch(np.full(B, L), np.full(B, S), 1)
        return Inputs(*arrays, self.arguments, self.passed, batch)


@dataclass(frozen=True)
class Returned:
    """What one call gave: output (N, L, Ev) and natural log-sum-exp (N, L), or the fault in their place."""

    output: Floats
    lse: Floats | None
    fault: str = ""


def called(setting: Setting, given: Operands) -> Returned:
    """Call the kernel once."""
    return called_with(setting.spec, setting.inputs(given))


def called_with(spec: KernelSpec, inputs: Inputs, handed: dict[str, npt.NDArray[Any]] | None = None) -> Returned:
    """Call the kernel once on arrays, in its own memory where that is given."""
    nothing = np.empty(0)
    with np.errstate(all="ignore"):
        _, host = running.called(spec, inputs, running.handed(spec, inputs) if handed is None else handed)
    if isinstance(host, running.Fault):
        return Returned(nothing, None, host.text)
    held = running.sequences_of(spec, inputs)
    if (wrong := running.misshapen(spec, held, host)) is not None:
        return Returned(nothing, None, wrong.text)
    output, lse = running.logical(spec, held, host)
    factor = LSE_BASES["2" if spec.returns[-1] == "lse2" else "e"]
    flat = output.astype(np.float64).reshape(-1, *output.shape[2:])
    return Returned(flat, None if lse is None else lse.astype(np.float64).reshape(-1, lse.shape[-1]) * factor)


def plain(spec: KernelSpec, batch: int, lengths: tuple[int, int], dims: tuple[int, int]) -> Setting:
    """The kernel's own call, in which nothing is varied."""
    return _made(spec, batch, lengths, dims, spec.arguments(*lengths), unvaried(spec, dims[0]), "")


def varied(setting: Setting, name: str, value: Any, label: str = "") -> Setting:
    """The setting with another value of an argument that the kernel takes."""
    arguments = {**setting.arguments, name: masks.array(value) if name == "mask" else value}
    passed = {**setting.passed, name: value}
    made = _made(setting.spec, setting.batch, setting.lengths, setting.dims, arguments, passed, label or name)
    return replace(made, stale=() if name == "mask" else setting.stale)


def with_bias(setting: Setting, bias: Floats) -> Setting:
    """The setting with a bias (N, L, S), in the query's dtype as the kernel gets it."""
    shape = (setting.batch, setting.heads[0], *setting.lengths)
    value = np.asarray(round_to(bias.reshape(shape), input_dtype(setting.contract.query), np))
    return varied(setting, "bias", value)


def with_sinks(setting: Setting, sinks: Floats) -> Setting:
    """The setting with sinks (H,), in the query's dtype as the kernel gets them."""
    return varied(setting, "sinks", np.asarray(round_to(sinks, input_dtype(setting.contract.query), np)))


def _made(
    spec: KernelSpec,
    batch: int,
    lengths: tuple[int, int],
    dims: tuple[int, int],
    arguments: dict[str, Any],
    passed: dict[str, Any],
    label: str,
) -> Setting:
    """A setting, with what its arguments ask for written out."""
    (L, S), (H, Hk), (E, Ev) = lengths, spec.heads, dims
    query, key, value = (np.zeros(shape) for shape in ((batch, H, L, E), (batch, Hk, S, E), (batch, Hk, S, Ev)))
    score = running.prepared(spec, Inputs(query, key, value, arguments)).score
    N, whole = batch * H, (slice(0, L), slice(0, S))
    counts = (
        np.broadcast_to(np.ones((L, S)), (N, L, S))
        if score.mask is None
        else _slots(score.mask.tile(*whole, L, S, xp=np), batch, H, L, S)
    )
    bias = None if score.bias is None else _slots(score.bias.tile(*whole, L, S, xp=np), batch, H, L, S)
    reads = np.arange(N) // H * Hk + np.arange(N) % H // (H // Hk)
    sinks = None if score.sink is None else np.tile(np.asarray(score.sink, dtype=np.float64).reshape(H), batch)
    model = Model(counts, reads, reads, score.scale, _cap(score), bias, sinks=sinks)
    return Setting(spec, batch, lengths, dims, arguments, passed, model, label)


def _slots(x: npt.NDArray[Any], batch: int, H: int, L: int, S: int) -> Floats:
    """An array (..., L, S) for each slot."""
    x = x.astype(np.float64)
    if x.size == x.shape[-2] * x.shape[-1]:
        return np.broadcast_to(x.reshape(x.shape[-2:]), (batch * H, L, S))
    return np.broadcast_to(x, (batch, H, L, S)).reshape(-1, L, S)


def _cap(score: Score) -> Any:
    """The softcap as a function of raw scores."""
    softcap = score.softcap
    return None if softcap is None else lambda raw: softcap * np.tanh(raw / softcap)


def softcap_of(setting: Setting) -> float | None:
    """The number that scores are capped at."""
    found = setting.arguments.get("softcap")
    return None if found is None else float(found)


def power(least: float) -> float:
    """The smallest power of two that is not less."""
    return 2.0 ** math.ceil(math.log2(least))


def shaped(setting: Setting, width: int | None = None) -> tuple[Floats, Floats, Floats]:
    """Zeros of the shapes of query, key and value."""
    (L, S), (H, Hk), (E, Ev) = setting.lengths, setting.heads, setting.dims
    B = setting.batch
    return np.zeros((B * H, L, E)), np.zeros((B * Hk, S, E)), np.zeros((B * Hk, S, Ev if width is None else width))


def in_format(setting: Setting, name: str, x: Floats) -> Floats:
    """Numbers as an operand holds them."""
    return rounded(x, getattr(setting.contract, name))
