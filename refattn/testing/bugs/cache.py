"""Bugs of the key-value cache: pages, lengths of sequences, quantised operands."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from refattn.testing.bugs.engine import Floats, Head, State, merge
from refattn.testing.bugs.mask_edits import bands
from refattn.testing.bugs.problems import SPLITS, Problem
from refattn.testing.bugs.record import Bug, sample, threads
from refattn.testing.bugs.sums import blank_rows, in_empty_rows

Entry = partial(Bug, family="cache, paging, quantisation")

# Which factor is read for all heads.
FIRST_OF_ENTRY, FIRST_OF_ALL = "that of the entry's first head", "that of the first head of all"


def first_of_two(name: str, x: Head) -> Floats:
    """Of each two pages the first, twice."""
    page = x.problem.page_size or 1
    at = np.arange(x.S)
    whole: Floats = x.right(name)
    return whole if name not in x.choice else whole[np.where(at // page % 2, at - page, at)]


def whole_pages(x: Head) -> State:
    """The keys behind the last token of the last page too, as they lie in the padded operand; 0 past it."""
    page, p = x.problem.page_size or 1, x.problem
    at = np.arange(x.S, -(-x.S // page) * page)
    inside = (at < p.lengths[1])[:, None]
    read = np.minimum(at, p.lengths[1] - 1)
    key, value = (np.where(inside, x.read(name, x.b, x.kv, read), 0.0) for name in ("key", "value"))
    scores = x.query @ key.T * x.scale
    m = scores.max(axis=-1, initial=-math.inf)
    P = np.exp(scores - m[:, None])
    return merge(x.right("state"), State(m, P.sum(axis=-1), P @ value))


def unfinished_page(p: Problem) -> bool:
    """A last page that is not full, of a sequence with keys, and no diagonal that hides what lies behind it."""
    keys = p.sequences[1]
    ragged = p.page_size is not None and bool(np.any((keys % p.page_size > 0) & (keys > 0)))
    return ragged and all(band.right is None for band in bands(p.mask))


def unwritten(name: str, x: Head) -> Floats:
    """Keys and values of the new tokens are 0 where they are read."""
    return np.where(np.arange(x.S)[:, None] < x.S - x.L, x.right(name), 0.0)


def padded_request(x: Head) -> Floats:
    """Packed queries read from token b L on."""
    queries = x.problem.sequences[0]
    stops = np.cumsum(queries)
    token = np.minimum(x.b * x.problem.lengths[0] + x.rows, stops[-1] - 1)
    b = np.searchsorted(stops, token, side="right")
    return x.read("query", b, x.h, token - (stops - queries)[b])


def ragged_queries(p: Problem) -> bool:
    """Sequences of several lengths."""
    return len(set(p.sequences[0].tolist())) > 1


def keyless(p: Problem) -> bool:
    """A sequence with queries and without keys."""
    return bool(np.any((p.sequences[1] == 0) & (p.sequences[0] > 0))) and p.sinks is None


def in_keyless(name: str, value: float, x: Head) -> Floats:
    """A result with another value in a sequence without keys."""
    right: Floats = x.right(name)
    return right if x.S else np.full_like(right, value)


def factor(p: Problem, n: int) -> Any:
    """Factors (B, heads) of a quantised operand."""
    x = np.asarray(p.descale[n], np.float64)
    return np.broadcast_to(x, (len(p.query), p.heads[min(n, 1)]))


def undone(n: int, name: str, x: Head) -> Floats:
    """An operand without its factor."""
    right: Floats = x.right(name)
    return right / factor(x.problem, n)[x.b, x.kv] if name in x.choice else right


def first_factor(n: int, name: str, x: Head) -> Floats:
    """An operand with the factor of the first head."""
    operands, which = x.choice.split(": ")
    right, factors = x.right(name), factor(x.problem, n)
    read = factors[0 if which == FIRST_OF_ALL else x.b, 0]
    return np.asarray(right * (read / factors[x.b, x.kv])) if name in operands else np.asarray(right)


def read_as_one(p: Problem) -> list[str]:
    """Which operands' factors are read as one, and which one."""
    found = []
    for which in (FIRST_OF_ENTRY, FIRST_OF_ALL):
        axis = 1 if which == FIRST_OF_ENTRY else None
        some = [name for n, name in ((1, "key"), (2, "value")) if np.any(np.ptp(factor(p, n), axis=axis) > 0)]
        found += [f"{operands}: {which}" for operands in (["key and value"] if len(some) > 1 else []) + some]
    return found if len(p.query) > 1 else [choice for choice in found if choice.endswith(FIRST_OF_ENTRY)]


def other_factor(x: Head) -> Floats:
    """The latent's value with the factor of the value."""
    of_key, of_value = (factor(x.problem, n)[x.b, x.kv] for n in (1, 2))
    return np.asarray(x.right("value") * (of_value / of_key))


def shared_latent(p: Problem) -> bool:
    """A value that is the first columns of the key, and two factors."""
    Ev = p.dims[1]
    shared = p.dims[0] >= Ev and np.array_equal(p.value[:1, :, :8], p.key[:1, :, :8, :Ev])
    return bool(shared) and not np.array_equal(*(factor(p, n) for n in (1, 2)))


def outrun(p: Problem) -> list[int]:
    """Numbers of splits of which some sequence fills fewer."""
    counts, (queries, keys) = SPLITS if p.splits is None else (p.splits,), p.sequences
    return [n for n in counts if np.any((keys <= (n - 1) * -(-p.lengths[1] // n)) & (queries > 0))]


def empty_split(x: Head) -> Floats:
    """NaN where some split of the longest sequence's keys holds none of this one's."""
    size = -(-x.problem.lengths[1] // x.choice)
    return np.full_like(x.right("output"), math.nan) if x.S <= (x.choice - 1) * size else np.asarray(x.right("output"))


def lists_none(p: Problem) -> bool:
    """Rows that see fewer keys than the index has places."""
    k = p.top_k
    return k is not None and any((Head(p, *at).keep.sum(axis=-1) < k).any() for at in sample(p))


def index_of_none(x: Head) -> State:
    """The key before the tensor, once for each index of -1."""
    assert x.problem.top_k is not None
    missing = np.maximum(x.problem.top_k - x.keep.sum(axis=-1), 0)
    shape = (x.problem.key.shape[-1], x.problem.dims[1])
    key, value = (
        x.read(name, x.b, x.kv - 1, x.S - 1) if x.kv else np.zeros(n)
        for name, n in zip(("key", "value"), shape, strict=True)
    )
    score = x.query @ key * x.scale
    m = np.where(missing > 0, score, -math.inf)
    return merge(x.right("state"), State(m, missing * 1.0, missing[:, None] * value))


def scaled_operands(p: Problem) -> list[str]:
    """Keys, values, or both, that have a factor."""
    some = [name for n, name in ((1, "key"), (2, "value")) if np.any(factor(p, n) != 1)]
    return some + (["key and value"] if len(some) > 1 else [])


CACHE_BUGS = (
    Entry(
        id="E1",
        name="the page is not advanced for the second half of a tile",
        symptom="every other page is wrong",
        formula="page p twice (should be p and p + 1)",
        links=threads("FI#3022"),
        needs=lambda p: p.page_size is not None and p.lengths[1] > p.page_size,
        choices=lambda p: ("value", "key and value", "key"),
        steps={name: partial(first_of_two, name) for name in ("key", "value")},
        seen_in="output",
    ),
    Entry(
        id="E3",
        name="the keys are bounded in pages instead of tokens",
        symptom="the tail of the last page takes part",
        formula="j < ceil(S / page) page (should be j < S)",
        links=threads("FI#942"),
        needs=unfinished_page,
        steps={"state": whole_pages},
    ),
    Entry(
        id="E4",
        name="appending ignores the strides of the cache",
        symptom="new tokens are written elsewhere",
        formula="k = v = 0 for the last L keys, where they are read",
        links=threads("FI#527"),
        needs=lambda p: 1 <= p.lengths[0] <= p.lengths[1],
        steps={name: partial(unwritten, name) for name in ("key", "value")},
        seen_in="output",
    ),
    Entry(
        id="E5",
        name="the output of a sequence without keys is not written",
        symptom="leftover memory",
        formula="o = what was there, NaN in a fresh buffer (should be 0)",
        links=threads("FI#353 FI#363 FI#440 FI#868 FI#3047 FI#3779 FA@a3a257c7 FA#2470"),
        needs=keyless,
        steps={"output": partial(in_keyless, "output", math.nan)},
        leftover=True,
    ),
    Entry(
        id="E5",
        name="the log-sum-exp of a sequence without keys is 0",
        symptom="a later merge gives weight to nothing",
        formula="lse = 0 (should be -inf)",
        links=threads("FI#353 FI#363 FI#440 FI#868 FI#3047 FI#3779 FA@a3a257c7 FA#2470"),
        needs=keyless,
        steps={"lse": partial(in_keyless, "lse", 0.0)},
    ),
    Entry(
        id="E6",
        name="the offset of a request is the padded one though queries are packed",
        symptom="requests after the first read other queries",
        formula="q from token b max L on (should be offset[b])",
        links=threads("FI#4382"),
        needs=ragged_queries,
        steps={"query": padded_request},
        seen_in="query",
    ),
    Entry(
        id="E7",
        name="rows without keys are skipped and never written",
        symptom="leftover memory",
        formula="o and lse = what was there, NaN in a fresh buffer",
        links=threads("FI#1395 FI#1533"),
        needs=blank_rows,
        steps={name: partial(in_empty_rows, name=name, value=math.nan) for name in ("output", "lse")},
        leftover=True,
    ),
    Entry(
        id="E8",
        name="the scale of a quantised key or value is dropped",
        symptom="scores or outputs are off by a factor",
        formula="s / k_scale, o / v_scale",
        links=threads("FI#1023 FI#1254 FI#1416 FI#4979 sglang#34765"),
        choices=scaled_operands,
        steps={name: partial(undone, n, name) for n, name in ((1, "key"), (2, "value"))},
    ),
    Entry(
        id="E9",
        name="the query's scale is applied to a query that is not quantised",
        symptom="scores are off by a factor",
        formula="s * q_scale",
        links=threads("vllm#53481 vllm#53754"),
        needs=lambda p: bool(np.any(np.asarray(p.descale[0]) != 1)),
        steps={"scale": lambda x: x.problem.scale * factor(x.problem, 0)[x.b, x.h]},
        seen_in="scale",
    ),
    Entry(
        id="E10",
        name="scales of heads are read as one scale",
        symptom="all heads but the first are off by a factor",
        formula="scale[0] (should be scale[h])",
        links=threads("sgl-kernel-xpu#252 vllm#42580"),
        choices=read_as_one,
        steps={name: partial(first_factor, n, name) for n, name in ((1, "key"), (2, "value"))},
    ),
    Entry(
        id="E11",
        name="key and value of one latent have different scales",
        symptom="the output is off by a factor",
        formula="v = latent * v_scale (should be latent * k_scale)",
        links=threads("sglang#34765"),
        needs=shared_latent,
        steps={"value": other_factor},
    ),
    Entry(
        id="E12",
        name="the number of splits is that of the longest sequence, and splits without keys are merged",
        symptom="NaN in short sequences",
        formula="0 * (0 / 0) for each split that lies behind the keys",
        links=threads("FA#2550"),
        choices=outrun,
        label="{} splits",
        steps={"output": empty_split},
    ),
    Entry(
        id="E13",
        name="an index of -1 is not recognised as none",
        symptom="a key before the tensor takes part",
        formula="l += e^(s_(-1) - m) for each index of -1",
        links=threads("miles#2079"),
        needs=lists_none,
        steps={"state": index_of_none},
    ),
)
