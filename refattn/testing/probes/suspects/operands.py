"""Which heads and which memory are read, and what scores are multiplied by, by known mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from refattn.testing.probes.model import Floats, Ints, Model
from refattn.testing.probes.setting import Setting
from refattn.testing.probes.suspects.record import Suspect


def of_heads(setting: Setting, model: Model) -> Iterator[Suspect]:
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


def of_layout(setting: Setting, model: Model) -> Iterator[Suspect]:
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


def of_scale(setting: Setting, model: Model) -> Iterator[Suspect]:
    """What scores are multiplied by."""
    (H, Hk), (E, Ev), scale = setting.heads, setting.dims, model.scale
    own = 1 / math.sqrt(E)
    scales: list[tuple[str | None, str, float]] = []
    if not math.isclose(scale, own, rel_tol=1e-6):
        scales.append(("C2", "the scale that was given is ignored: 1/sqrt(E) is taken", own))
        scales.append((None, "the scale that was given is applied on top of 1/sqrt(E)", scale * own))
        scales.append(("C6", "the factor of 1/sqrt(E) is its square root: it is not squared", math.sqrt(scale * own)))
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
