"""Formulas of the bug catalogue against loops over Python floats, which share nothing with what computes the bugs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn import biases, masks
from refattn.testing.bugs.cuts import Cuts
from tests.testing.formulas import (
    HK,
    LOG2E,
    LOWER,
    SCALE,
    SINKS,
    B,
    E,
    G,
    H,
    K,
    L,
    Q,
    Rule,
    S,
    V,
    assert_same,
    average,
    dot,
    maximum,
    of_bug,
    of_rule,
    score,
    stale_maximum,
    thirds,
    usual,
    window_of,
)


def from_start(b: int, h: int, i: int) -> Any:
    """A1: the diagonal starts at key 0."""
    return average(usual(b, h, i, range(i + 1)), V[b, h // G])


def floored(b: int, h: int, i: int) -> Any:
    """A8: groups of 4 rows i G + m end at key offset + floor(end / G), the last at L G."""
    end = min(((i * G + h % G) // 3 + 1) * 3, L * G)
    return average(usual(b, h, i, range(min(i + S - L + 1, S - L + end // G))), V[b, h // G])


def shrunk(b: int, h: int, i: int) -> Any:
    """A14: seven keys of padding behind the ninth, of score 0."""
    return average(usual(b, h, i), V[b, h // G], 7.0)


def folded(b: int, h: int, i: int) -> Any:
    """A17: the query stands at i G + m + offset."""
    return average(usual(b, h, i, range(min(S, i * G + h % G + S - L + 1))), V[b, h // G])


def tiled(rescale_l: bool, rescale_output: bool) -> Rule:
    """B2: tiles of four keys, of which one sum keeps its old maximum."""

    def rule(b: int, h: int, i: int) -> Any:
        m, l, o = -math.inf, 0.0, [0.0] * E
        for start in range(0, S, 4):
            s = {j: score(b, h, i, j) for j in range(start, min(S, start + 4))}
            new = max(m, *s.values())
            alpha = 0.0 if m == -math.inf else math.exp(m - new)
            l = l * (alpha if rescale_l else 1.0) + sum(math.exp(x - new) for x in s.values())
            kept = [x * (alpha if rescale_output else 1.0) for x in o]
            o = [kept[e] + sum(math.exp(x - new) * V[b, h // G, j, e] for j, x in s.items()) for e in range(E)]
            m = new
        return [x / l for x in o], m + math.log(l)

    return rule


def merged_as_one(b: int, h: int, i: int) -> Any:
    """B1: normalised thirds, merged as if what was merged had the denominator 1."""
    L_so_far, d, o = -math.inf, 1.0, [0.0] * E
    for n in range(3):
        part, lse = average(usual(b, h, i, range(3 * n, 3 * n + 3)), V[b, h // G])
        m = max(L_so_far, lse)
        a, c = (0.0 if n == 0 else math.exp(L_so_far - m)), math.exp(lse - m)
        d = a + c
        o = [(a * x + c * y) / d for x, y in zip(o, part, strict=True)]
        L_so_far = m
    return o, L_so_far + math.log(d)


def never_divided(b: int, h: int, i: int) -> Any:
    """B1: normalised thirds, weighed by their sums beside the largest one, whose total nobody divides by."""
    parts = thirds(b, h, i)
    top = max(lse for _, lse in parts)
    return [math.fsum(math.exp(lse - top) * o[e] for o, lse in parts) for e in range(E)], top


def with_sum_of(other: Callable[[int], int]) -> Rule:
    """B11: the sum of another row is added, each without its own maximum; none of a row past the last."""

    def rule(b: int, h: int, i: int) -> Any:
        n, m = other(i), maximum(b, h, i)
        extra = math.fsum(usual(b, h, n).values()) * math.exp(m - maximum(b, h, n)) if n < L else 0.0
        return average(usual(b, h, i), V[b, h // G], extra)

    return rule


def in_half(b: int, h: int, i: int) -> Any:
    """B12: q k in float16, then the scale."""
    s = {j: SCALE * float(np.float16(dot(Q[b, h, i], K[b, h // G, j]))) for j in range(S)}
    return average({j: math.exp(x) for j, x in s.items()}, V[b, h // G])


def capped(b: int, h: int, i: int) -> Any:
    """B13: pairs of keys from the last one on, whose first maximum stays, as none rises by 2^8."""
    m = max(score(b, h, i, j) for j in range(S // 2 * 2, S))
    weights = {j: math.exp(score(b, h, i, j) - m) for j in range(S)}
    total = math.fsum(weights.values())
    values = [math.fsum(min(w, 1.75) * V[b, h // G, j, e] for j, w in weights.items()) for e in range(E)]
    return [x / total for x in values], m + math.log(total)


def halved(rounds_lse: bool) -> Rule:
    """B17, B19: thirds whose outputs, or log-sum-exps, are in float16."""

    def rule(b: int, h: int, i: int) -> Any:
        parts = thirds(b, h, i)
        weights = {n: math.exp(float(np.float16(lse)) if rounds_lse else lse) for n, (_, lse) in enumerate(parts)}
        return average(weights, [o if rounds_lse else [float(np.float16(x)) for x in o] for o, _ in parts])

    return rule


def base_2(b: int, h: int, i: int) -> Any:
    """C1: 2^s."""
    return average({j: 2.0 ** score(b, h, i, j) for j in range(S)}, V[b, h // G])


def yarn(b: int, h: int, i: int) -> Any:
    """C6: a scale of m^2 / 2 becomes m / 2."""
    scale = math.sqrt(SCALE * 2) / 2
    return average({j: math.exp(score(b, h, i, j, scale)) for j in range(S)}, V[b, h // G])


def leaking(b: int, h: int, i: int) -> Any:
    """C7: a masked key has the score -cap."""
    s = {j: math.tanh(score(b, h, i, j)) if j <= i + S - L else -1.0 for j in range(S)}
    return average({j: math.exp(x) for j, x in s.items()}, V[b, h // G])


def no_outer(b: int, h: int, i: int) -> Any:
    """C8: tanh(s / 3)."""
    return average({j: math.exp(math.tanh(score(b, h, i, j) / 3)) for j in range(S)}, V[b, h // G])


def steep(b: int, h: int, i: int) -> Any:
    """C12: slopes 1, 1/4, 1/16, 1/64 instead of 1/4, 1/16, 1/64, 1/256."""
    slope = 4.0**-h
    s = {j: score(b, h, i, j) - slope * abs(j - i - (S - L)) for j in range(S)}
    return average({j: math.exp(x) for j, x in s.items()}, V[b, h // G])


def unturned(b: int, h: int, i: int) -> Any:
    """C15: the query's pairs (0, 2) and (1, 3) are turned back by S - L steps."""
    q = list(map(float, Q[b, h, i]))
    for n, frequency in ((0, 1.0), (1, 100.0**-0.5)):
        z = complex(q[n], q[n + 2]) * complex(math.cos((S - L) * frequency), -math.sin((S - L) * frequency))
        q[n], q[n + 2] = z.real, z.imag
    return average({j: math.exp(SCALE * dot(q, K[b, h // G, j])) for j in range(S)}, V[b, h // G])


def in_turns(b: int, h: int, i: int) -> Any:
    """D1: key head h mod Hk."""
    weights = {j: math.exp(SCALE * dot(Q[b, h, i], K[b, h % HK, j])) for j in range(S)}
    return average(weights, V[b, h % HK])


def scrambled(b: int, h: int, i: int) -> Any:
    """D2: arrays (S, H, E) flat, cut as (H, S, E)."""
    q, k, v = (np.swapaxes(x[b], 0, 1).reshape(x[b].shape) for x in (Q, K, V))
    return average({j: math.exp(SCALE * dot(q[h, i], k[h // G, j])) for j in range(S)}, v[h // G])


def wrong_start(b: int, h: int, i: int) -> Any:
    """D9: the keys of entry b start at token b S G of the packed ones, of which there are B S."""
    at = [b * S * G + j for j in range(S)]
    k, v = (
        [x[n // S, h // G, n % S] if n < B * S else np.zeros(E) for n in at] for x in (K, V)
    )  # fmt: skip
    return average({j: math.exp(SCALE * dot(Q[b, h, i], k[j])) for j in range(S)}, v)


def short(b: int, h: int, i: int) -> Any:
    """D12: as many keys as queries."""
    return average(usual(b, h, i, range(L)), V[b, h // G])


def twice_a_page(b: int, h: int, i: int) -> Any:
    """E1: pages of two keys, of whose values the second is the first."""
    return average(usual(b, h, i), [V[b, h // G, j - 2 if j // 2 % 2 else j] for j in range(S)])


def base_of_lse(b: int, h: int, i: int) -> Any:
    """F1: weights e^(L log2 e); their logarithm is taken for one of base 2."""
    parts = thirds(b, h, i)
    weights = {n: math.exp(lse * LOG2E) for n, (_, lse) in enumerate(parts)}
    output, total = average(weights, [o for o, _ in parts])
    return output, total / LOG2E


def stale(b: int, h: int, i: int) -> Any:
    """F6: the second merge takes the first part's log-sum-exp."""
    (o_1, L_1), (o_2, L_2), (o_3, L_3) = thirds(b, h, i)
    both, _ = average({0: math.exp(L_1), 1: math.exp(L_2)}, [o_1, o_2])
    return average({0: math.exp(L_1), 1: math.exp(L_3)}, [both, o_3])


def sink_times(factor: Callable[[int, float], float]) -> Rule:
    """Another number than e^sink in the denominator, from the head and the row's maximum."""

    def rule(b: int, h: int, i: int) -> Any:
        m = max(score(b, h, i, j) for j in range(S))
        return average(usual(b, h, i), V[b, h // G], factor(h, m))

    return rule


FORMULAS: dict[str, tuple[Rule, dict[str, Any]]] = {
    "A1 the causal mask starts in the top left": (from_start, {"mask": LOWER}),
    "A2": (from_start, {"mask": masks.causal(S - L)}),
    "A4 the window is one key too wide": (
        window_of(-3, 0),
        {"mask": masks.window(2, 0, "lower_right"), "choice": "left"},
    ),
    "A4 the window is one key too narrow": (
        window_of(-2, 0),
        {"mask": masks.window(2, 1, "lower_right"), "choice": "right"},
    ),
    "A8": (floored, {"mask": LOWER, "tile_q": 3}),
    "A9 the window is ignored and": (window_of(-S, 0), {"mask": masks.window(2, 0, "lower_right")}),
    "A14": (shrunk, {"tile_k": 16}),
    "A17 the position": (folded, {"mask": LOWER}),
    "B1": (merged_as_one, {"splits": 3, "tile_k": 9}),
    "B2 the output": (tiled(True, False), {"tile_k": 4}),
    "B2 the denominator": (tiled(False, True), {"tile_k": 4}),
    "B1 merging": (never_divided, {"splits": 3, "tile_k": 9, "choice": (Cuts(3, 1, False), False)}),
    "B11 a row": (with_sum_of(lambda i: i + 1), {}),
    "B11 a row sum": (
        with_sum_of(lambda i: i // 2 * 2 + (i + 1) % 2 if i < 4 else i),
        {"tile_q": 2, "choice": "next row, round the end, of tiles of 2 rows"},
    ),
    "B11 a row sum takes": (with_sum_of(lambda i: i ^ 2 if i < 4 else L), {"choice": "row of the other bit 2"}),
    "B12 scores are": (in_half, {"choice": ("float16", "before the scale")}),
    "B13": (capped, {"tile_k": 2, "choice": "key tiles of 2, the last one first; maxima rise by 2^8"}),
    "B17": (halved(False), {"splits": 3, "tile_k": 9, "choice": (Cuts(3, 1, False), "float16")}),
    "B19": (halved(True), {"splits": 3, "tile_k": 9, "choice": (Cuts(3, 1, False), "float16")}),
    "C1": (base_2, {}),
    "C6": (yarn, {}),
    "C7": (leaking, {"mask": LOWER, "softcap": 1.0}),
    "C8": (no_outer, {"softcap": 3.0, "choice": "tanh(s / cap)"}),
    "C12": (steep, {"bias": biases.alibi(4, anchor="lower_right")}),
    "C15": (unturned, {"rotary_base": 100.0}),
    "D1": (in_turns, {}),
    "D2": (scrambled, {}),
    "D9": (wrong_start, {}),
    "D12": (short, {}),
    "E1": (twice_a_page, {"page_size": 2, "choice": "value"}),
    "F1": (base_of_lse, {"splits": 3, "tile_k": 9}),
    "F6 the merged log-sum-exp is not written, and": (stale, {"splits": 3, "tile_k": 9}),
    "F9": (sink_times(lambda h, m: float(SINKS[h]) * math.exp(m)), {"sinks": SINKS}),
    "F10": (sink_times(lambda h, m: 3 * math.exp(SINKS[h])), {"sinks": SINKS, "splits": 3}),
    "F11": (sink_times(lambda h, m: math.exp(SINKS[h] * SCALE)), {"sinks": SINKS, "choice": "times the scale"}),
    "F12": (sink_times(lambda h, m: 0.0), {"sinks": SINKS}),
}


OF_TWO_ROWS = {"tile_q": 2, "choice": "first row of tiles of 2 rows"}
FORMULAS["B14 the sink"] = (
    lambda b, h, i: average(
        usual(b, h, i), V[b, h // G], math.exp(SINKS[h] - stale_maximum(b, h, i) + maximum(b, h, i))
    ),
    {"sinks": SINKS, **OF_TWO_ROWS},
)


@pytest.mark.parametrize("entry", FORMULAS)
def test_a_bug_computes_its_formula(entry: str) -> None:
    id, _, words = entry.partition(" ")
    rule, given = FORMULAS[entry]
    output, lse = of_bug(id, words, **given)
    right_output, right_lse = of_rule(rule)
    assert_same(output, right_output)
    assert_same(lse, right_lse)


def test_a_query_head_writes_into_the_place_of_another() -> None:
    right = of_rule(lambda b, h, i: average(usual(b, h, i), V[b, h // G]))
    output, lse = of_bug("D10")
    assert_same(output, np.swapaxes(right[0], 1, 2).reshape(B, H, L, E))
    assert_same(lse, right[1])


def test_a_padded_log_sum_exp_is_read_without_its_padding() -> None:
    _, right = of_rule(lambda b, h, i: average(usual(b, h, i), V[b, h // G]))
    stored = np.full((B, H, 16), np.nan)
    stored[..., :L] = right
    _, lse = of_bug("D11", choice=(16, "written", True))
    assert_same(lse, stored.reshape(B, -1)[:, : H * L].reshape(B, H, L))
    _, lse = of_bug("D11", choice=(16, "written", False))
    assert_same(lse, stored.reshape(-1)[: B * H * L].reshape(B, H, L))
    longer = np.concatenate([right.reshape(-1), np.full(B * H * 16, np.nan)])
    _, lse = of_bug("D11", choice=(16, "read", False))
    assert_same(lse, longer[: B * H * 16].reshape(B, H, 16)[..., :L])


def test_the_tail_of_the_last_page_takes_part() -> None:
    output, lse = of_bug("E3", page_size=4, keys=np.array([6, 3]))
    # Pages of four end at keys 8 and 4, which the padded operands hold.
    right = of_rule(lambda b, h, i: average(usual(b, h, i, range((8, 4)[b])), V[b, h // G]))
    assert_same(output, right[0])
    assert_same(lse, right[1])


@pytest.mark.parametrize(("words", "factor"), [("dropout is applied without", 0.75), ("dropout's factor", 1 / 0.75)])
def test_dropout_has_its_factor_once(words: str, factor: float) -> None:
    kept = np.random.default_rng(2).random((B, H, L, S)) < 0.75

    def rule(b: int, h: int, i: int) -> Any:
        total = math.fsum(usual(b, h, i).values())
        some = {j: w / 0.75 * factor for j, w in usual(b, h, i).items() if kept[b, h, i, j]}
        return [math.fsum(w * V[b, h // G, j, e] for j, w in some.items()) / total for e in range(E)], math.log(total)

    output, lse = of_bug("G8", words, dropout_mask=kept, dropout_p=0.25)
    right = of_rule(rule)
    assert_same(output, right[0])
    assert_same(lse, right[1])
