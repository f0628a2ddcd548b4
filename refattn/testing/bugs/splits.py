"""Bugs of splits, their merge, the log-sum-exp and sinks; and of dropout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from refattn.testing.bugs.cuts import Cut, cuts, parts
from refattn.testing.bugs.engine import Floats, Head, State, merge
from refattn.testing.bugs.problems import SPLITS, Problem
from refattn.testing.bugs.record import Bug, Seen, has_empty_rows, threads
from refattn.testing.bugs.rounding import LOG2E, merged, normalised
from refattn.testing.bugs.sums import blank_rows, in_empty_rows

Entry = partial(Bug, family="split, merge, lse, sinks")


def of_base_2(x: Head) -> State:
    """Splits merged with log-sum-exps of base 2 as if they were natural; the result's is taken for base 2."""
    total = merged(normalised(part)._replace(m=part.lse * LOG2E) for part in parts(x, x.choice))
    return normalised(total)._replace(m=total.lse / LOG2E)


def mixed_base(x: Head) -> Floats:
    """Maximum and logarithm of the sum in two bases."""
    m, l = x.total.m, x.total.l
    return np.asarray(m * LOG2E + np.log(l) if x.choice == "log2 maximum" else m + np.log2(l))


def other_scale(x: Head) -> Floats:
    """The maximum with the default scale, and the logarithm of the sum."""
    default = 1 / math.sqrt(x.problem.dims[0])
    return np.asarray(x.total.m * (default / x.problem.scale) + np.log(x.total.l))


def last_split(x: Head) -> Floats:
    """Log-sum-exp of the last split."""
    *_, last = parts(x, x.choice)
    return last.lse


def first_split(x: Head) -> Floats:
    """Log-sum-exp of the first split."""
    return next(parts(x, x.choice)).lse


def stale_merge(x: Head) -> State:
    """States merged one after the other, each time with the log-sum-exp of the first."""
    total, *others = (normalised(part) for part in parts(x, x.choice))
    first = total.m
    for part in others:
        total = normalised(merge(State(first, total.l, total.O), part))
    return total


class Unmerged(NamedTuple):
    """Splits that only some heads merge."""

    cut: Cut
    words: str  # which heads merge
    merges: Callable[[int, int, int], bool]  # of a head, their number, and that of one key head
    last: bool  # whether the others keep the last split, not the first

    def __str__(self) -> str:
        """In words."""
        return f"{self.cut}; {self.words} merged, the others keep the {'last' if self.last else 'first'}"


MERGING: tuple[tuple[str, Callable[[int, int, int], bool]], ...] = (
    ("the first head is", lambda h, H, G: h == 0),
    ("even heads are", lambda h, H, G: h % 2 == 0),
    ("odd heads are", lambda h, H, G: h % 2 == 1),
    ("the first heads of each key head are", lambda h, H, G: h % G == 0),
    ("the heads of the first key head are", lambda h, H, G: h < G),
    ("the first half of the heads are", lambda h, H, G: h < H // 2),
)


def partly_merged(p: Problem) -> Iterator[Unmerged]:
    """Splits, and which heads merge them, each set of heads and what they keep once."""
    H, found = p.heads[0], set()
    if H < 2:
        return
    for cut, last in itertools.product(cuts(p), (False, True)):
        edges = tuple(int(cut.edges(int(S))[-2 if last else 1]) for S in p.sequences[1])
        for words, merges in MERGING:
            key = (edges, last, tuple(merges(h, H, p.group) for h in range(H)))
            if key not in found and not all(key[-1]):
                found.add(key)
                yield Unmerged(cut, words, merges, last)


def unmerged(x: Head) -> State:
    """All splits in some heads, one in the others."""
    if x.choice.merges(x.h, x.problem.heads[0], x.problem.group):
        state: State = x.right("state")
        return state
    first, *_, last = parts(x, x.choice.cut)
    return last if x.choice.last else first


def left_over(p: Problem, seen: Seen) -> list[float] | None:
    """The one number that all log-sum-exps are; None of so few rows that any number is one."""
    if seen.lse is None or len(seen.lse) < FEW:
        return None
    same = bool((seen.lse == seen.lse[0]).all() or np.isnan(seen.lse).all())
    return [float(seen.lse[0])] if same else []


# Rows of which one number in the place of all log-sum-exps is no chance.
FEW = 4


def linear_sink(x: Head) -> State:
    """The sink itself in the denominator."""
    m, l, O = x.state
    assert x.sink is not None
    return State(m, l + x.sink, O)


def many_sinks(x: Head) -> State:
    """A sink for each split."""
    assert x.sink is not None
    return merge(x.state, x.sunk(x.sink, x.choice))


def other_sink(x: Head) -> float:
    """The sink times the scale, or under softcap."""
    sink, cap = float(x.right("sink")), x.problem.softcap
    return sink * x.problem.scale if cap is None or x.choice == "times the scale" else cap * math.tanh(sink / cap)


def sink_changes(p: Problem) -> list[str]:
    """What is done to the sink."""
    if p.sinks is None:
        return []
    return ["times the scale"] + (["soft-capped"] if p.softcap is not None else [])


def sink_alone(p: Problem) -> bool:
    """A row that sees its sink and no key."""
    return p.sinks is not None and has_empty_rows(p)


def counts(p: Problem) -> tuple[int, ...]:
    """Numbers of splits, beside sinks."""
    return () if p.sinks is None else SPLITS if p.splits is None else (p.splits,)


def drops(p: Problem) -> bool:
    """Dropout of some weights."""
    return p.dropout_mask is not None and p.dropout_p > 0


SPLIT_BUGS = (
    Entry(
        id="F1",
        name="log-sum-exps of base 2 are merged as natural ones",
        symptom="the larger part gets too much weight",
        formula="weights e^(L log2(e))",
        links=threads("FI#2113 FI#4485 vllm#47079 sglang#35045 sglang#40903"),
        choices=cuts,
        steps={"state": of_base_2},
    ),
    Entry(
        id="F2",
        name="the log-sum-exp mixes two bases",
        symptom="the output is right, the log-sum-exp is not",
        formula="m log2(e) + ln l, or m + log2 l",
        choices=lambda p: ("log2 maximum", "log2 sum"),
        steps={"lse": mixed_base},
        seen_in="lse",
    ),
    Entry(
        id="F3",
        name="the log-sum-exp has another scale than the scores",
        symptom="the output is right, the log-sum-exp is not",
        formula="m / sqrt(E) + ln l of the maximum before the scale",
        links=threads("TensorRT-LLM#19112"),
        needs=lambda p: p.scale not in (0, 1 / math.sqrt(p.dims[0])),
        steps={"lse": other_scale},
    ),
    Entry(
        id="F4",
        name="merging splits that are all empty",
        symptom="NaN in rows without keys",
        formula="e^(-inf - -inf)",
        links=threads("FA@26d7d92f FA@31920dda"),
        needs=blank_rows,
        steps={name: partial(in_empty_rows, name=name, value=math.nan) for name in ("output", "lse")},
    ),
    Entry(
        id="F5",
        name="the log-sum-exp is that of the last split",
        symptom="the output is right, the log-sum-exp is not",
        formula="L = L of the last split",
        links=threads("FI#58 FI#50"),
        choices=cuts,
        steps={"lse": last_split},
    ),
    Entry(
        id="F6",
        name="the merged log-sum-exp is not written: that of the first split stays",
        symptom="the output is right, the log-sum-exp is not",
        formula="L = L of the first split",
        links=threads("FI@5dadb243"),
        choices=cuts,
        steps={"lse": first_split},
    ),
    Entry(
        id="F6",
        name="the merged log-sum-exp is not written, and the next merge takes the old one",
        symptom="wrong where more than two parts are merged",
        formula="o = (o_12 e^(L_1) + o_3 e^(L_3)) / (e^(L_1) + e^(L_3))",
        links=threads("FI@5dadb243"),
        choices=lambda p: cuts(p, 3),
        steps={"state": stale_merge},
    ),
    Entry(
        id="F7",
        name="splits are merged per token instead of per token and head",
        symptom="some heads are not merged",
        formula="only some heads, as the first, are merged; the others keep one split",
        links=threads("FI#1614"),
        choices=partly_merged,
        steps={"state": unmerged},
    ),
    Entry(
        id="F8",
        name="the log-sum-exp is never written",
        symptom="the output is right, the log-sum-exp is one number, as 0",
        formula="lse = what was there",
        links=threads("FI#3838"),
        choices=lambda p: (0.0, math.nan),
        reads=left_over,
        steps={"lse": lambda x: np.full(len(x.rows), x.choice)},
    ),
    Entry(
        id="F9",
        name="the sink is added to the denominator itself",
        symptom="the weight of the sink is wrong",
        formula="l + sink (should be l + e^(sink - m))",
        links=threads("FA@e81c237e"),
        needs=lambda p: p.sinks is not None,
        steps={"total": linear_sink},
    ),
    Entry(
        id="F10",
        name="the sink is counted once for each split",
        symptom="the output shrinks with the number of splits",
        formula="l + k e^(sink - m) for k splits",
        links=threads("rocm-libraries#12227 rocm-libraries#12229"),
        choices=counts,
        label="{} splits",
        steps={"total": many_sinks},
    ),
    Entry(
        id="F11",
        name="the sink goes through the scale or the softcap of the scores",
        symptom="the weight of the sink is wrong",
        formula="e^(sink scale), or e^(cap tanh(sink / cap))",
        links=threads("rocm-libraries#12229"),
        choices=sink_changes,
        steps={"sink": other_sink},
        seen_in="sink",
    ),
    Entry(
        id="F12",
        name="the sink is dropped",
        symptom="plain softmax",
        formula="l (should be l + e^(sink - m))",
        links=threads("imp#1345 imp#1352 vllm-metal#550"),
        needs=lambda p: p.sinks is not None,
        steps={"sink": lambda x: None},
    ),
    Entry(
        id="F13",
        name="the sink is lost in rows without keys",
        symptom="the log-sum-exp of such rows is -inf",
        formula="lse = -inf (should be the sink)",
        links=threads("FA#2470"),
        needs=sink_alone,
        steps={"lse": lambda x: in_empty_rows(x, "lse", -math.inf)},
    ),
)

DROPOUT_BUGS = (
    Bug(
        id="G8",
        name="dropout is applied without the factor 1/(1 - p)",
        family="dropout",
        symptom="the output is too small",
        formula="p_ij z_ij (should be p_ij z_ij / (1 - p))",
        links=threads("xformers#301"),
        needs=drops,
        steps={"kept": lambda x: x.right("kept") * (1 - x.problem.dropout_p)},
    ),
    Bug(
        id="G8",
        name="dropout's factor is applied twice",
        family="dropout",
        symptom="the output is too large",
        formula="p_ij z_ij / (1 - p)^2",
        links=threads("xformers#301"),
        needs=drops,
        steps={"kept": lambda x: x.right("kept") / (1 - x.problem.dropout_p)},
    ),
)
