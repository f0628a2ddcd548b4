"""What scores are capped to, what is added to them and what enters the row sum besides, by known mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from refattn.testing.probes.model import Floats, Ints, Model, rounded
from refattn.testing.probes.setting import Setting, softcap_of
from refattn.testing.probes.suspects.record import SPLITS, TILES, Suspect


def of_softcap(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What scores are capped to."""
    cap, scale = softcap_of(setting), model.scale
    if cap is None:
        return
    forms: tuple[tuple[str | None, str, Callable[[Floats], Floats] | None], ...] = (
        (None, "the softcap is ignored", None),
        (None, "the softcap is applied before the scale", lambda s: scale * cap * np.tanh(s / scale / cap)),
        ("C8", "softcapped scores are tanh(score / softcap), without the outer factor", lambda s: np.tanh(s / cap)),
        ("C8", "softcapped scores are softcap * tanh(score), without the inner factor", lambda s: cap * np.tanh(s)),
        ("C8", "softcapped scores are tanh(score * softcap)", lambda s: np.tanh(s * cap)),
        ("C8", "softcapped scores are softcap * tanh(score * softcap)", lambda s: cap * np.tanh(s * cap)),
        ("C8", "softcapped scores are score * tanh(score / softcap)", lambda s: s * np.tanh(s / cap)),
        (None, "scores are cut off at the softcap", lambda s: np.clip(s, -cap, cap)),
    )
    for bug, name, form in forms:
        yield Suspect(bug, name, replace(model, cap=form))
    if model.bias is not None:
        yield Suspect("C9", "the bias is added before the softcap", replace(model, capped_last=True))


def of_bias(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What is added to scores."""
    bias = model.bias
    if bias is None:
        return
    (L, S), H = setting.lengths, setting.heads[0]
    forms: list[tuple[str | None, str, Floats | None]] = [
        (None, "the bias is ignored", None),
        (None, "the bias is multiplied by the scale", bias * model.scale),
        (None, "the bias is subtracted", -bias),
        (None, "the bias is in base 2: it lacks log2(e)", bias * math.log(2)),
        ("B16", "the bias is multiplied by log2(e) rounded to bfloat16", bias * 1.4453125 * math.log(2)),
        (None, "the bias of head 0 is added in all heads", bias[np.repeat(np.arange(setting.batch) * H, H)]),
        (None, "the bias of batch entry 0 is added in all entries", bias[np.arange(len(bias)) % H]),
        (None, "the bias is read in the order (S, L)", np.swapaxes(bias, 1, 2).reshape(bias.shape)),
        (None, "the bias is read one key too late", np.roll(bias, -1, axis=-1)),
        (None, "the bias is read one key too early", np.roll(bias, 1, axis=-1)),
    ]
    if setting.arguments.get("bias") is not None and getattr(setting.arguments["bias"], "name", "") == "alibi":
        n, K = np.arange(len(bias)) % H, 2.0 ** math.floor(math.log2(H))
        slopes = np.asarray(setting.arguments["bias"].numbers, dtype=np.float64)
        own = np.broadcast_to(slopes, (setting.batch, H)).reshape(-1)[:, None, None]
        forms += [
            ("C12", "the slopes are 2^(-8h/H) with h from 0", bias * 2.0 ** (8 / H)),
            ("C12", "the slopes are 2^(-8h/H) with h from 2", bias / 2.0 ** (8 / H)),
            (
                "C11",
                "the slopes are 2^(-8h/H) though H is no power of two",
                bias / own * 2.0 ** (-8 * (n + 1) / H)[:, None, None],
            ),
            ("C11", f"the slopes are those of {K:g} heads", bias / own * 2.0 ** (-8 * (n + 1) / K)[:, None, None]),
            ("C14", "the slopes are rounded to bfloat16", bias / own * rounded(own, "bfloat16")),
        ]
    forms += [
        ("C16", f"the bias of the first {size} keys is added to every {size}", bias[..., np.arange(S) % size])
        for size in TILES
        if size < S
    ]
    if L == S:
        forms.append((None, "the bias is transposed", np.swapaxes(bias, 1, 2)))
    for bug, name, form in forms:
        if form is None or (form != bias).any():
            yield Suspect(bug, name, replace(model, bias=form))


def of_sinks(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What enters the row sum without a value."""
    sinks = model.sinks
    if sinks is None:
        yield Suspect(
            None,
            "a score of 0 without a value is counted in the row sum",
            replace(model, sinks=np.zeros(len(model.key_heads))),
        )
        return
    H, Hk = setting.heads
    n = np.arange(len(sinks))
    forms: list[tuple[str | None, str, Floats | None]] = [
        ("F12", "the sinks are ignored", None),
        ("F11", "the sinks are multiplied by the scale", sinks * model.scale),
        (None, "the sink of head 0 is added in all heads", sinks[n // H * H]),
        (None, "head h has the sink of head h % Hk", sinks[n // H * H + n % H % Hk]),
        (None, "head h has the sink of key head h // (H // Hk)", sinks[n // H * H + n % H // (H // Hk)]),
        (None, "the heads have the sinks in reverse", sinks[n // H * H + H - 1 - n % H]),
        (None, "weights of sinks are 2^sink: log2(e) is forgotten", sinks * math.log(2)),
    ]
    forms += [("F10", f"the sink is counted {k} times, as if once a split", sinks + math.log(k)) for k in SPLITS]
    for bug, name, form in forms:
        if form is None or (form != sinks).any():
            yield Suspect(bug, name, replace(model, sinks=form))
    yield Suspect(
        "F9", "the sink itself is added to the row sum, not its exponential", replace(model, linear_sinks=True)
    )
    yield from _of_sunk_rows(setting, model, sinks)


def _of_sunk_rows(setting: Setting, model: Model, sinks: Floats) -> Iterator[Suspect]:
    """Sinks whose weight is taken against the maximum of another row."""

    def against(other: Callable[[Ints], Ints], *, whole: bool) -> Callable[[Floats, Floats], Floats]:
        def summed(m: Floats, l: Floats) -> Floats:
            top = np.maximum(m, sinks[:, None]) if whole else m
            found: Floats = l + np.exp(sinks[:, None] - top[:, other(np.arange(m.shape[1]))] + top - m)
            return found

        return summed

    def first(size: int) -> Callable[[Ints], Ints]:
        return lambda i: i // size * size

    rows = [(f"the first row of each {size}", first(size)) for size in TILES]
    rows += [
        ("row 0", lambda i: i * 0),
        ("the row before", lambda i: np.maximum(i - 1, 0)),
        ("the row behind", lambda i: np.minimum(i + 1, len(i) - 1)),
    ]
    for which, other in rows:
        name = f"the sink's weight is taken against the maximum of {which}"
        for whole in (False, True):
            yield Suspect("B14", name, replace(model, sinks=None, row_sum=against(other, whole=whole)))
