"""Known mistakes as models: what each would make of the operands of a probe, to be held against what came back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from refattn import biases
from refattn.masks import Mask
from refattn.testing.probes.model import Floats, Ints, Model, Tiled, rounded
from refattn.testing.probes.setting import Setting, softcap_of

TILES = (16, 32, 64, 128, 256)
SPLITS = (2, 3, 4, 8, 16)


@dataclass(frozen=True)
class Suspect:
    """A mistake, and the model of a kernel that makes it."""

    bug: str | None
    name: str
    model: Model


def suspects(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Mistakes that a kernel could have made besides what the model has already."""
    for family in (
        _of_mask,
        _of_padding,
        _of_heads,
        _of_layout,
        _of_scale,
        _of_softcap,
        _of_bias,
        _of_sinks,
        _of_numbers,
    ):
        yield from family(setting, model)


def _of_mask(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Who takes part."""
    (L, S), counts = setting.lengths, model.counts
    seen = counts > 0

    def taking(keep: Any, bug: str | None, name: str) -> Iterator[Suspect]:
        keep = np.broadcast_to(np.asarray(keep), counts.shape)
        if (keep != seen).any():
            yield Suspect(bug, name, replace(model, counts=keep.astype(np.float64)))

    asked = setting.arguments.get("mask")
    if isinstance(asked, Mask) and L != S:
        for anchor, offset in (("upper_left", 0), ("lower_right", S - L)):
            keep = asked.reanchored(offset).tile(slice(0, L), slice(0, S), L, S, xp=np)
            other = "lower_right" if anchor == "upper_left" else "upper_left"
            if keep.ndim == 2:
                yield from taking(keep, "A1", f"the mask is anchored {anchor}, not {other}")
    yield from _of_band(seen, taking)
    causal = bool(setting.arguments.get("is_causal"))
    yield from taking(True, None, "is_causal is ignored" if causal else "the mask is ignored")
    i, j = np.arange(L)[:, None], np.arange(S)
    if S > L:
        yield from taking(
            seen & (j < L), "D12", f"keys from {L} on are ignored: their number is taken from the queries"
        )
    if not (setting.arguments.get("mask") is not None or causal):
        yield from taking(j <= i + S - L, None, "a causal mask is applied that nothing asks for")
        yield from taking(j <= i, None, "a causal mask, anchored upper_left, is applied that nothing asks for")
        return
    yield from taking(~seen, None, "the mask is inverted: True masks")
    if L == S:
        yield from taking(np.swapaxes(seen, 1, 2), None, "the mask is transposed")
    flat = np.swapaxes(seen, 1, 2).reshape(seen.shape)
    yield from taking(flat, None, "the mask is read in the order (S, L)")
    H = setting.heads[0]
    first = np.repeat(np.arange(setting.batch) * H, H)
    yield from taking(seen[first], None, "the mask of head 0 is applied to all heads")
    yield from taking(seen[np.arange(len(seen)) % H], None, "the mask of batch entry 0 is applied to all entries")
    if setting.batch == H:
        yield from taking(seen[np.arange(len(seen)) % H * H], "A15", "the mask's head axis is taken for its batch axis")
    cap = softcap_of(setting)
    if cap is not None:
        yield Suspect("C7", "the softcap is applied after the mask", replace(model, masked=-cap))


def _of_band(seen: Any, taking: Callable[..., Iterator[Suspect]]) -> Iterator[Suspect]:
    """Mistakes at the edges of masks whose rows are intervals."""
    S = seen.shape[-1]
    j = np.arange(S)
    first = np.argmax(seen, axis=-1)[..., None]
    stop = (S - np.argmax(seen[..., ::-1], axis=-1) * seen.any(axis=-1))[..., None]
    stop = np.where(seen.any(axis=-1)[..., None], stop, first)
    if ((j >= first) & (j < stop) != seen).any():
        return
    left, right = (first > 0).any(), (stop < S).any()
    some = stop > first
    if left:
        wide = np.where(first > 0, first - 1, first)
        yield from taking(some & (j >= wide) & (j < stop), "A4", "the window is one key too wide on the left")
        for narrow in (np.where(first > 0, first + 1, first), first + 1):
            yield from taking((j >= narrow) & (j < stop), "A4", "the window is one key too narrow on the left")
        yield from taking(
            some & (j < stop), "A9", "the window is ignored on the left" if right else "the window is ignored"
        )
    if right:
        wide = np.where(stop < S, stop + 1, stop)
        side = "the window is one key too {} on the right" if left else "the causal mask {}"
        words = ("wide", "narrow") if left else ("lets in one key behind the diagonal", "masks the diagonal itself")
        bug = "A4" if left else None
        yield from taking(some & (j >= first) & (j < wide), bug, side.format(words[0]))
        for narrow in (stop - 1, np.where(stop < S, stop - 1, stop)):
            yield from taking((j >= first) & (j < narrow), bug, side.format(words[1]))
        if left:
            yield from taking(some & (j >= first), "A9", "the window is ignored on the right")


def _of_padding(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Keys that are not there, counted in the row sum."""
    S = setting.lengths[1]
    for size in TILES:
        if more := -S % size:
            name = f"{more} keys of score 0 behind the last one are counted: S is padded to a multiple of {size}"
            yield Suspect("A14", name, replace(model, padding=more))


def _of_heads(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Which head is read."""
    (H, Hk), B = setting.heads, setting.batch
    n = np.arange(B * H)
    entry, head = n // H, n % H
    maps: list[tuple[str | None, str, Ints]] = [
        ("D1", "query head h reads key head h % Hk, not h // (H // Hk)", entry * Hk + head % Hk),
        (None, "all query heads read key head 0", entry * Hk),
        (None, "query heads read the key heads in reverse", entry * Hk + Hk - 1 - head // (H // Hk)),
        (None, "all batch entries read keys and values of entry 0", head // (H // Hk)),
        (
            None,
            "query head h reads key head h of the group, as if there were H of them",
            entry * Hk + np.minimum(head, Hk - 1),
        ),
    ]
    for bug, name, reads in maps:
        for what, fields in (
            ("", ("key_heads", "value_heads")),
            (" (keys only)", ("key_heads",)),
            (" (values only)", ("value_heads",)),
        ):
            if any((getattr(model, x) != reads).any() for x in fields):
                yield Suspect(bug, name + what, replace(model, **dict.fromkeys(fields, reads)))  # type: ignore[arg-type]


def _of_layout(setting: Setting, model: Model) -> Iterator[Suspect]:
    """Operands read at the wrong places."""
    B, (H, Hk), (E, Ev) = setting.batch, setting.heads, setting.dims

    def reshaped(heads: int) -> Callable[[Floats], Floats]:
        return lambda x: np.swapaxes(x.reshape(B, heads, *x.shape[1:]), 1, 2).reshape(x.shape)

    def unshaped(heads: int) -> Callable[[Floats], Floats]:
        return lambda x: np.swapaxes(x.reshape(B, x.shape[1], heads, -1), 1, 2).reshape(x.shape)

    for names in (("query", "key", "value"), ("key", "value"), ("key",), ("value",), ("query",)):
        for form, order in (
            (reshaped, "(B, L, H, E) as if it were (B, H, L, E)"),
            (unshaped, "(B, H, L, E) as if it were (B, L, H, E)"),
        ):
            reads = {name: form(H if name == "query" else Hk) for name in names}
            yield Suspect("D2", f"memory of {' and '.join(names)} in the order {order}", replace(model, reads=reads))
    if E != Ev:
        for read in (partial(_strided, E=E, whole=False), partial(_strided, E=E, whole=True)):
            yield Suspect("D3", "values are read with the strides of the keys", replace(model, reads={"value": read}))
    if Ev > E:
        dropped = {"value": partial(_cut, E=E)}
        yield Suspect("D8", f"columns of the values from {E} on are dropped", replace(model, reads=dropped))
    for name, shift in (("read one row too late", -1), ("read one row too early", 1)):
        for what in ("query", "key", "value"):
            moved = {what: partial(np.roll, shift=shift, axis=1)}
            yield Suspect(None, f"{what} is {name}", replace(model, reads=moved))


def _strided(x: Floats, *, E: int, whole: bool) -> Floats:
    """Rows of values that are read E numbers apart, within each slot or over the whole of the memory."""
    M, S, width = x.shape
    at = np.arange(M)[:, None, None] * S * (E if whole else width) + np.arange(S)[:, None] * E + np.arange(width)
    found: Floats = x.reshape(-1)[np.minimum(at, x.size - 1)]
    return found


def _cut(x: Floats, *, E: int) -> Floats:
    """Values of which the first E columns are left."""
    return np.where(np.arange(x.shape[-1]) < E, x, 0.0)


def _of_scale(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What scores are multiplied by."""
    (H, Hk), (E, Ev), scale = setting.heads, setting.dims, model.scale
    own = 1 / math.sqrt(E)
    scales: list[tuple[str | None, str, float]] = []
    if not math.isclose(scale, own, rel_tol=1e-6):
        scales.append(("C2", "the scale that was given is ignored: 1/sqrt(E) is taken", own))
        scales.append((None, "the scale that was given is applied on top of 1/sqrt(E)", scale * own))
    scales += [
        ("C5", "scores are not scaled", 1.0),
        ("C5", "the scale is inverted", 1 / scale),
        (None, "the scale is applied twice", scale * scale),
        (None, "the square root of the scale is applied", math.sqrt(scale)),
        ("C4", "the scale is 1/sqrt(Ev), not 1/sqrt(E)", 1 / math.sqrt(Ev)),
        ("C4", "the scale is 1/sqrt(H), of the number of heads", 1 / math.sqrt(H)),
        ("C4", "the scale is 1/sqrt(Hk), of the number of key heads", 1 / math.sqrt(Hk)),
        ("C4", "the scale is 1/sqrt(H E), of all heads together", 1 / math.sqrt(H * E)),
        ("C4", "the scale is sqrt(H/E), of E divided by the number of heads", math.sqrt(H / E)),
        ("C4", "the scale is 1/sqrt(E + 1)", 1 / math.sqrt(E + 1)),
        ("C4", "the scale is 1/E", 1 / E),
    ]
    for n, (bug, name, other) in enumerate(scales):
        if not any(math.isclose(other, x, rel_tol=1e-9) for x in (scale, *(x for _, _, x in scales[:n]))):
            yield Suspect(bug, name, replace(model, scale=other))
    ln2 = math.log(2)
    yield Suspect("C1", "log2(e) is forgotten: weights are 2^score", replace(model, base=ln2))
    yield Suspect(None, "log2(e) is applied where weights are e^score", replace(model, base=1 / ln2))
    yield Suspect(None, "log2(e) is cut to 1.44", replace(model, base=1.44 * ln2))
    yield Suspect("B16", "log2(e) is rounded to bfloat16", replace(model, base=1.4453125 * ln2))


def _of_softcap(setting: Setting, model: Model) -> Iterator[Suspect]:
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


def _of_bias(setting: Setting, model: Model) -> Iterator[Suspect]:
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
        own = biases.alibi_slopes(H)[n][:, None, None]
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
    if L == S:
        forms.append((None, "the bias is transposed", np.swapaxes(bias, 1, 2)))
    for bug, name, form in forms:
        if form is None or (form != bias).any():
            yield Suspect(bug, name, replace(model, bias=form))


def _of_sinks(setting: Setting, model: Model) -> Iterator[Suspect]:
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


def _of_numbers(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What is lost on the way."""
    for name in ("bfloat16", "float16", "tf32"):
        yield Suspect(None, f"scores are stored in {name}", replace(model, scores=name))
        yield Suspect(None, f"query and key are rounded to {name}", replace(model, operands=name))
    for size in TILES:
        for backward in (False, True):
            way = f"tiles of {size} keys" + (", last first" if backward else "")
            for text, output, total in (
                ("neither output nor row sum is rescaled", False, False),
                ("the output is not rescaled", False, True),
                ("the row sum is not rescaled", True, False),
            ):
                tiled = Tiled(size, output, total, backward=backward)
                yield Suspect("B2", f"{text} when the maximum rises ({way})", replace(model, tiled=tiled))
        if size < setting.lengths[1]:
            for stored in ("float16", "bfloat16"):
                name = f"the output is accumulated in {stored} (tiles of {size} keys)"
                bug = "B12" if stored == "float16" else None
                yield Suspect(bug, name, replace(model, tiled=Tiled(size, stored=stored)))


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
        yield Suspect("F11", "the log-sum-exp lacks the sinks", replace(model, sinks=None))
    S = setting.lengths[1]
    for size in TILES:
        for first in {(S - 1) // size * size, S // 2, -(-S // 2)} - {0}:
            counts = model.counts * (np.arange(S) >= first)
            yield Suspect("F5", f"the log-sum-exp is that of the keys from {first} on", replace(model, counts=counts))
