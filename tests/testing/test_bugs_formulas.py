"""Formulas of the bug catalogue against loops over Python floats, which share nothing with what computes the bugs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refattn import biases, masks
from refattn.testing import bugs
from tests.testing.kernels import normal

B, H, HK, L, S, E = 2, 4, 2, 5, 9, 4
G, SCALE = H // HK, 0.4
Q, K, V = (normal(shape, "float64", n) for n, shape in enumerate(((B, H, L, E), (B, HK, S, E), (B, HK, S, E))))
SINKS = normal((H,), "float64", 7)
LOWER = masks.causal("lower_right")
Sums = tuple[float, list[float]]
Rule = Callable[[int, int, int], tuple[list[float], float]]
LOG2E = math.log2(math.e)


# The largest exponent of an entry: a score in base 2, and a sink, and the distances that ALiBi's slopes multiply.
TOP = LOG2E * SCALE * float(np.abs(Q[:, :, :, None] * K.repeat(G, axis=1)[:, :, None]).sum(axis=-1).max())
TOP += float(np.abs(SINKS).max()) + S


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the roundings of E products, of exponentials of up to TOP, and of two sums over S keys."""
    room = 2 * (E + 2 * S + 4 * (1 + TOP)) * 2.0**-53
    np.testing.assert_allclose(got, expected, rtol=0, atol=room * max(1.0, float(np.abs(expected).max())))


def dot(a: Any, b: Any) -> float:
    """Product of two rows."""
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def score(b: int, h: int, i: int, j: int, scale: float = SCALE) -> float:
    """Scaled product of a query and a key."""
    return scale * dot(Q[b, h, i], K[b, h // G, j])


def average(weights: dict[int, float], value: Any, extra: float = 0.0) -> tuple[list[float], float]:
    """Weighted mean of values, and logarithm of the sum, with more in the denominator."""
    total = math.fsum(weights.values()) + extra
    return [math.fsum(w * float(value[j][e]) for j, w in weights.items()) / total for e in range(E)], math.log(total)


def usual(b: int, h: int, i: int, keys: Any = range(S), power: float = 1.0) -> dict[int, float]:
    """Exponentials of the scores of some keys."""
    return {j: math.exp(power * score(b, h, i, j)) for j in keys}


def of_rule(rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of all rows."""
    output, lse = np.zeros((B, H, L, E)), np.zeros((B, H, L))
    for b, h, i in np.ndindex(B, H, L):
        output[b, h, i], lse[b, h, i] = rule(b, h, i)
    return output, lse


def of_bug(id: str, words: str = "", choice: Any = None, **given: Any) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of the bug of an id whose name begins with some words."""
    (bug,) = (bug for bug in bugs.get(id) if bug.name.startswith(words))
    p = bugs.problem(Q, K, V, **{"scale": SCALE, **given})
    variants = [x for x in bug.variants(p) if choice is None or x.choice == choice]
    result = variants[0].apply()
    return result.output, result.lse


def from_start(b: int, h: int, i: int) -> Any:
    """A1: the diagonal starts at key 0."""
    return average(usual(b, h, i, range(i + 1)), V[b, h // G])


def window_of(first: int, last: int) -> Rule:
    """Keys from first to last beside the diagonal of the lower right corner."""
    return lambda b, h, i: average(
        usual(b, h, i, range(max(0, i + S - L + first), min(S, i + S - L + last + 1))), V[b, h // G]
    )


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


def next_sum(b: int, h: int, i: int) -> Any:
    """B11: the sum of the row below is added, each without its own maximum."""

    def l_and_m(row: int) -> tuple[float, float]:
        s = [score(b, h, row, j) for j in range(S)]
        return sum(math.exp(x - max(s)) for x in s), max(s)

    _, m = l_and_m(i)
    extra = l_and_m(i + 1)[0] if i + 1 < L else 0.0
    return average(usual(b, h, i), V[b, h // G], extra * math.exp(m))


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


def thirds(b: int, h: int, i: int) -> list[tuple[list[float], float]]:
    """Output and log-sum-exp of each third of the keys."""
    return [average(usual(b, h, i, range(3 * n, 3 * n + 3)), V[b, h // G]) for n in range(3)]


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
    "B11": (next_sum, {}),
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
    "F6": (stale, {"splits": 3, "tile_k": 9}),
    "F9": (sink_times(lambda h, m: float(SINKS[h]) * math.exp(m)), {"sinks": SINKS}),
    "F10": (sink_times(lambda h, m: 3 * math.exp(SINKS[h])), {"sinks": SINKS, "splits": 3}),
    "F11": (sink_times(lambda h, m: math.exp(SINKS[h] * SCALE)), {"sinks": SINKS, "choice": "times the scale"}),
    "F12": (sink_times(lambda h, m: 0.0), {"sinks": SINKS}),
}


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
    stored = np.zeros((B, H, 16))
    stored[..., :L] = right
    _, lse = of_bug("D11", choice=16)
    assert_same(lse, stored.reshape(B, -1)[:, : H * L].reshape(B, H, L))


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


def test_a_row_without_keys_is_the_mean_of_all_values() -> None:
    keep = np.ones((L, S), bool)
    keep[2] = False
    output, _ = of_bug("B6", mask=masks.array(keep))
    np.testing.assert_allclose(output[:, :, 2], np.repeat(V.mean(axis=2), G, axis=1), rtol=1e-12)
