"""Mistakes in the log-sum-exp alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from refattn.testing.probes.model import Floats, Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects.record import TILES, Suspect
from refattn.testing.probes.suspects.sums import partitions


def lse_suspects(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Mistakes in the log-sum-exp alone."""
    ln2 = math.log(2)

    def of(form: Callable[[Floats, Floats], Floats], bug: str | None, name: str) -> Suspect:
        return Suspect(bug, name, replace(model, lse=form))

    asked, other = ("2", "e") if setting.spec.returns[-1] == "lse2" else ("e", "2")
    factor = ln2 if asked == "2" else 1 / ln2
    yield of(lambda m, l: factor * (m + np.log(l)), "F1", f"the log-sum-exp is in base {other}, not {asked}")
    yield of(
        lambda m, l: m * factor + np.log(l),
        "F2",
        "the log-sum-exp mixes bases: the maximum is in another than the logarithm of the sum",
    )
    yield of(
        lambda m, l: m + np.log(l) * factor,
        "F2",
        "the log-sum-exp mixes bases: the logarithm of the sum is in another than the maximum",
    )
    yield of(lambda m, l: m / model.scale + np.log(l), "F3", "the maximum in the log-sum-exp lacks the scale")
    yield of(lambda m, l: m * model.scale + np.log(l), "F3", "the maximum in the log-sum-exp is scaled twice")
    own = 1 / math.sqrt(setting.dims[0])
    if not math.isclose(own, model.scale, rel_tol=1e-6):
        other_scale = own / model.scale
        yield of(
            lambda m, l: m * other_scale + np.log(l), "F3", "the maximum in the log-sum-exp has the scale 1/sqrt(E)"
        )
    yield of(lambda m, l: np.zeros_like(m), "F8", "the log-sum-exp is all zeros: it is not written")
    yield of(lambda m, l: np.log(l), None, "the log-sum-exp lacks the maximum")
    yield of(lambda m, l: m, None, "the log-sum-exp is the maximum alone")
    yield of(lambda m, l: l, None, "the log-sum-exp is the sum itself, not its logarithm")
    yield of(lambda m, l: -(m + np.log(l)), None, "the log-sum-exp has the wrong sign")
    yield of(lambda m, l: np.roll(m + np.log(l), 1, axis=-1), "D11", "the log-sum-exp of row i is that of row i - 1")
    yield of(lambda m, l: np.roll(m + np.log(l), -1, axis=-1), "D11", "the log-sum-exp of row i is that of row i + 1")
    yield of(
        lambda m, l: np.swapaxes(m + np.log(l), 0, 1).reshape(m.shape),
        "D11",
        "the log-sum-exp is written in the order (L, H)",
    )
    if model.sinks is not None:
        empty = ~(model.counts > 0).any(axis=-1)
        yield of(
            lambda m, l: np.where(empty, -math.inf, m + np.log(l)),
            "F13",
            "rows that see the sink alone have no log-sum-exp",
        )
        yield Suspect("F11", "the log-sum-exp lacks the sinks", replace(model, sinks=None))
    yield from _of_slopes(setting, model)
    yield from _of_strides(setting, model)
    S = setting.lengths[1]
    for stops in partitions(S):
        for bug, which, keep in (("F5", "last", np.arange(S) >= stops[-2]), ("F6", "first", np.arange(S) < stops[0])):
            name = f"the log-sum-exp is that of the {which} of {len(stops)} parts of the keys"
            yield Suspect(bug, name, replace(model, counts=model.counts * keep))


def _of_slopes(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Distances that are one off, which changes the log-sum-exp alone."""
    bias: Any = setting.arguments.get("bias")
    if getattr(bias, "name", "") == "alibi":
        H = setting.heads[0]
        slopes = np.broadcast_to(np.asarray(bias.numbers, dtype=np.float64), (setting.batch, H)).reshape(-1, 1)
        for sign, words in ((-1, "long"), (1, "short")):
            shift = sign * slopes
            form = partial(_shifted, shift=shift)
            yield Suspect("C13", f"the distances of the bias are one too {words}", replace(model, lse=form))


def _shifted(m: Floats, l: Floats, *, shift: Floats) -> Floats:
    """Log-sum-exps with a number of each head added."""
    return m + np.log(l) + shift


def _of_strides(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Log-sum-exps that are read with another stride than they were written with; NaN where nobody wrote."""
    (L, _), (B, H) = setting.lengths, (setting.batch, setting.heads[0])

    def strided(m: Floats, l: Floats, *, stride: int, rows: int) -> Floats:
        padded = np.full((B * H, stride), np.nan)
        padded[:, :L] = m + np.log(l)
        return padded.reshape(B * H // rows, -1)[:, : rows * L].reshape(B * H, L)

    for stride in dict.fromkeys(-(-L // size) * size for size in (8, *TILES)):
        for rows in dict.fromkeys((H, B * H)) if stride != L else ():
            name = f"the log-sum-exp is written with rows of {stride} and read with rows of {L}"
            yield Suspect("D11", name, replace(model, lse=partial(strided, stride=stride, rows=rows)))
