"""Which row of packed or padded memory each query is read from: every query aims at one token of its own sequence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import round_to
from refattn.testing import running
from refattn.testing.explanation import Explanation
from refattn.testing.inputs.problems import Inputs, input_dtype
from refattn.testing.probes.designs import BASE, places
from refattn.testing.probes.model import Floats, Ints
from refattn.testing.probes.setting import GAPS, called_with, plain, power
from refattn.testing.probes.told import explained
from refattn.testing.probes.words import numbers
from refattn.testing.running import OPERANDS
from refattn.testing.spec import KernelSpec

Flags = npt.NDArray[np.bool_]


def read_rows(spec: KernelSpec, lengths: tuple[tuple[int, int], ...], like: Inputs) -> list[Explanation]:
    """What comes back where each query has score 0 with one token, and none to speak of with others.

    Parameters
    ----------
    spec : KernelSpec
        A kernel that takes tables.
    lengths : tuple of (int, int)
        Lengths (L, S) of the sequences.
    like : Inputs
        Inputs of these lengths, whose shapes and tables are taken.

    Returns
    -------
    list of Explanation
        None where every query gets the values that it aims at, or where the features are too few to tell tokens apart.
    """
    query: Any = np.zeros(like.query.shape)
    key: Any = np.zeros(like.key.shape)
    value: Any = np.zeros(like.value.shape)
    B, S, E = len(lengths), key.shape[2], key.shape[3]
    digits, width = max(1, math.ceil(math.log2(max(2, S)))), E // 2
    count = places(B * S)
    contract = spec.numerics()
    scale = plain(spec, 1, lengths[0] if min(lengths[0]) else (1, 1), spec.features[0]).model.scale
    if width < digits or value.shape[-1] < count or spec.arguments(*lengths[0]).get("softcap") is not None:
        return []
    amount = power(GAPS[contract.accumulator] / (scale * (width // digits)))
    code = (np.arange(S)[:, None] >> (np.arange(width) % digits) & 1) * (np.arange(width) < width // digits * digits)
    key[..., :width], key[..., width : 2 * width] = code, 1 - code
    aim = _aims(spec, lengths, query.shape[2])
    query[..., :width] = (-amount * (1 - code[np.maximum(aim, 0)]))[:, None]
    query[..., width : 2 * width] = (-amount * code[np.maximum(aim, 0)])[:, None]
    number = np.arange(B)[:, None] * S + np.arange(S)
    for column in range(count):
        value[..., column] = (1 + number // BASE**column % BASE)[:, None]
    arrays = [
        np.asarray(round_to(x, input_dtype(getattr(contract, name)), np))
        for name, x in zip(OPERANDS, (query, key, value), strict=True)
    ]
    given = Inputs(arrays[0], arrays[1], arrays[2], like.arguments, like.passed, like.batch)
    returned = called_with(spec, given)
    if returned.fault:
        return [explained(returned.fault)]
    got = returned.output.reshape(B, -1, *returned.output.shape[1:])[..., :count]
    if _lost(got, aim).any() and (found := _poisoned(spec, given, aim)) is not None:
        return [found]
    return _told(got, aim, lengths, S, packed="cu_seqlens_q" in spec.tables)


def _lost(got: Floats, aim: Ints) -> Flags:
    """Sequences of which a row is NaN, or all rows that aim at a token are 0, which no token's value is."""
    blank, asked = (got == 0).all(axis=(1, 3)), aim >= 0
    return np.asarray(np.isnan(got).any(axis=(1, 2, 3)) | (asked.any(axis=-1) & (blank | ~asked).all(axis=-1)))


def _poisoned(spec: KernelSpec, given: Inputs, aim: Ints) -> Explanation | None:
    """Whose NaN, in the cells that hold no token, loses the rows: those of values or those of keys."""
    clean, dirty = running.handed(spec, given, tails=0.0, unused=0.0), running.handed(spec, given)
    for bug, name in (("", ""), ("B8", "value"), ("B9", "key")):
        returned = called_with(spec, given, {**clean, **({name: dirty[name]} if name else {})})
        if returned.fault:
            return None
        lost = _lost(returned.output.reshape(len(aim), -1, *returned.output.shape[1:]), aim)
        if lost.any():
            text = f"NaN in cells that hold no token reaches the output from the {name}s, though their weight is 0"
            where = numbers("sequence", np.flatnonzero(lost))
            return explained(text, where, bug=bug, strength=1.0) if name else None
    return None


def _aims(spec: KernelSpec, lengths: tuple[tuple[int, int], ...], L: int) -> Ints:
    """The token (B, L) of its own sequence that each query aims at, -1 where it may see none."""
    aim = np.full((len(lengths), L), -1)
    for b, (l, s) in enumerate(lengths):
        seen = plain(spec, 1, (l, s), spec.features[0]).model.counts[0] > 0 if l and s else np.zeros((l, s), np.bool_)
        for i in range(l):
            tokens = np.flatnonzero(seen[i])
            if len(tokens):
                aim[b, i] = tokens[(i * 7 + b * 3) % len(tokens)]
    return aim


def _told(got: Floats, aim: Ints, lengths: tuple[tuple[int, int], ...], S: int, *, packed: bool) -> list[Explanation]:
    """What the rows (B, H, L) tell that they should not."""
    digits = np.rint(got) - 1
    with np.errstate(invalid="ignore"):
        whole = ((digits >= 0) & (digits < BASE) & (np.abs(got - 1 - digits) < 1e-3)).all(axis=-1)
    number = np.where(whole, (digits * float(BASE) ** np.arange(got.shape[-1])).sum(axis=-1), -1.0)
    B, _, L = number.shape
    asked = np.where(aim >= 0, np.arange(B)[:, None] * S + aim, -1)[:, None]
    wrong = (number != asked) & (asked >= 0)
    if not wrong.any():
        return []
    b, h, i = (int(x[0]) for x in np.nonzero(wrong))
    sequences = numbers("sequence", np.nonzero(wrong)[0])
    if packed and _padded(number, aim, lengths, S):
        text = f"the queries of sequence b are read from row {L} b on, as if they were padded"
        return [explained(text, sequences, bug="E6", strength=1.0)]
    read = int(number[b, h, i])
    what = f"token {read % S} of sequence {read // S}" if 0 <= read < B * S else "no single token"
    text = f"sequence {b}, row {i} gets the values of {what}; it aims at token {aim[b, i]} of its own"
    return [explained(text, sequences, f"{int(wrong.sum())} rows")]


def _padded(number: npt.NDArray[Any], aim: Ints, lengths: tuple[tuple[int, int], ...], S: int) -> bool:
    """Whether packed queries are read as if they were padded, by the rows that then aim at what they may see."""
    flat = np.concatenate([aim[b, :l] for b, (l, _) in enumerate(lengths)])
    L, told = aim.shape[1], 0
    for b, (l, s) in enumerate(lengths):
        for i in range(l):
            other = int(flat[min(b * L + i, len(flat) - 1)])
            if 0 <= other <= aim[b, :l].max() and other < s and (number[b, :, i] >= 0).all():
                if (number[b, :, i] != b * S + other).any():
                    return False
                told += 1
    return told > 0
