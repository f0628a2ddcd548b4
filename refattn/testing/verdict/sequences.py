"""Packed, paged and padded operands judged sequence by sequence, each as a problem with its own L and S."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._call import Call, prepare
from refattn._core.arrays import is_array, quiet, to_numpy
from refattn._core.checks import check_broadcast, check_integer, check_rows, check_shape
from refattn.layouts import Layout
from refattn.layouts.host import lengths_of, offsets_of, table_of
from refattn.layouts.orders import AXES, logical_order, stored_order
from refattn.layouts.paged import PAGES, gathered
from refattn.layouts.ragged import logical
from refattn.masks import Mask
from refattn.testing.verdict.judge import Terms, parts
from refattn.testing.verdict.record import Verdict
from refattn.testing.verdict.sampling import MOST_WORK, SAMPLE, Rows, choose_rows, work

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
# Wrong sequences, and wrong rows of each, that mistakes of storing are held against.
FEW, TRIED = 4, 16
# Arguments of attention that may be arrays (..., L, S).
CELLS = ("mask", "bias", "dropout_mask")
# Arguments of attention that ask for nothing.
NOTHING: dict[str, Any] = {
    "mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None,
}  # fmt: skip
# Keyword arguments of attention for sequence b of l queries and s keys.
Arguments = Callable[[int, int, int], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Padded operands (B, H, L, E), (B, Hk, S, E) and (B, Hk, S, Ev), and the lengths of the sequences in them."""

    query: Array
    key: Array
    value: Array
    queries: Ints
    keys: Ints
    page_size: int | None = None

    def call(self, function: str, b: int, arguments: Arguments) -> Call:
        """Sequence b as a problem of its own; it stands in every place of the batch, so that indices stay its own."""
        l, s = int(self.queries[b]), int(self.keys[b])
        operands = [
            np.broadcast_to(x[b, :, :n], (len(x), x.shape[1], n, x.shape[3]))
            for x, n in ((self.query, l), (self.key, s), (self.value, s))
        ]
        return prepare(function, *operands, dtype="float64", **{**NOTHING, **arguments(b, l, s)})


def unstored(function: str, layout: Layout, arrays: Mapping[str, Array], tables: Mapping[str, Any]) -> Sequences:
    """The padded operands and lengths of what a kernel got."""
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    B = _entries(function, tables, query, key, layout)
    page_size = None
    if "cu_seqlens_q" in tables:
        query, queries = _packed(function, "query", query, "cu_seqlens_q", tables, None)
    else:
        query = _ordered(function, "query", query, layout)
        queries = np.full(B, query.shape[2])
    used = lengths_of(function, "seqused_k", tables["seqused_k"], B, None, "") if "seqused_k" in tables else None
    if "block_table" in tables:
        if used is None and "cu_seqlens_k" not in tables:
            raise ValueError(
                f"{function}: block_table must come with the numbers of keys; got neither seqused_k nor cu_seqlens_k."
            )
        if used is None:
            offsets = table_of(function, "cu_seqlens_k", tables["cu_seqlens_k"], "(B + 1,)", (B + 1,))
            used = np.diff(offsets_of(function, "cu_seqlens_k", offsets, int(offsets[-1])))
        axis = PAGES[layout.pages].split(", ").index("page_size")
        page_size, other = (x.shape[axis] if x.ndim == 4 else 0 for x in (key, value))
        if page_size != other and page_size and other:
            raise ValueError(f"{function}: key and value must have pages of one size; got {page_size} and {other}.")
        key, value = (
            gathered(function, name, x, tables["block_table"], used, order=layout.pages)
            for name, x in (("key", key), ("value", value))
        )
    elif "cu_seqlens_k" in tables:
        (key, used), (value, _) = (
            _packed(function, name, x, "cu_seqlens_k", tables, used) for name, x in (("key", key), ("value", value))
        )
    else:
        key, value = (_ordered(function, name, x, layout) for name, x in (("key", key), ("value", value)))
        if key.shape[:3] != value.shape[:3]:
            raise ValueError(
                f"{function}: key and value must have the same B, Hk and S; got (B, Hk, S) {key.shape[:3]} and "
                f"{value.shape[:3]}."
            )
        used = np.full(B, key.shape[2]) if used is None else used
        lengths_of(function, "seqused_k", used, B, key.shape[2], "S")
    return Sequences(query, key, value, queries, used, page_size)


def result_of(function: str, name: str, x: Array, layout: Layout, given: Sequences, *, packed: bool) -> Array:
    """A padded output (B, H, L, Ev) or log-sum-exp (B, H, L) of what a kernel returned."""
    wanted, axes = result_shape(name, layout, given, packed=packed)
    check_shape(function, name, x, axes, wanted)
    if not packed:
        return x if name == "lse" else logical_order(x, layout.order)
    tokens = x.T if name == "lse" and layout.lse == "ht" else x
    first = np.cumsum(given.queries) - given.queries
    return logical(function, tokens, first, given.queries, given.query.shape[2], 0.0)


def result_shape(name: str, layout: Layout, given: Sequences, *, packed: bool) -> tuple[tuple[int, ...], str]:
    """The shape that an output or log-sum-exp must have, and its axes in words."""
    *lead, H, L, _ = given.query.shape
    Ev, T = given.value.shape[-1], int(given.queries.sum())
    if packed and name == "lse":
        return ((H, T), "(H, T)") if layout.lse == "ht" else ((T, H), "(T, H)")
    if packed:
        return (T, H, Ev), "(T, H, Ev)"
    if name == "lse":
        return (*lead, H, L), "(..., H, L)"
    return stored_order(np.empty((*lead, H, L, Ev)), layout.order).shape, AXES[layout.order].replace("E)", "Ev)")


def chosen(
    function: str, given: Sequences, arguments: Arguments, rows: Any = None, most: float = MOST_WORK
) -> list[tuple[Call, Rows]]:
    """Each sequence that has queries, with the rows of it to check: all while that is cheap, else a sample."""
    B, H, L, E = given.query.shape
    heads = [(b, h) for b in range(B) for h in range(H)]
    per_row = [work(1, int(s), E, given.value.shape[-1]) for s in given.keys]
    index = None if rows is None or np.ndim(rows) == 0 else check_rows(function, rows, (B, H, L))
    if index is not None and (outside := index[:, 2] >= given.queries[index[:, 0]]).any():
        b, _, row = index[outside][0].tolist()
        raise ValueError(
            f"{function}: rows must lie within their sequences; got row {row} of sequence {b}, which has "
            f"{given.queries[b]}."
        )
    total = H * int(given.queries.sum())
    if rows is None:
        wanted = total if H * float(given.queries @ np.array(per_row)) <= most else SAMPLE
    else:
        wanted = check_integer(function, "rows", rows, least=1) if index is None else 0
    found = []
    for b in range(B):
        l = int(given.queries[b])
        if l == 0:
            continue
        call = given.call(function, b, arguments)
        if index is not None:
            own = choose_rows(function, call, index[index[:, 0] == b])
        elif wanted >= total:
            own = Rows(tuple((at, np.arange(l)) for at in heads if at[0] == b), H * l, H * l)
        else:
            # The call has B copies of the sequence, each of which gets its share.
            share = max(1, round(wanted * l * H / total)) * B
            slabs = choose_rows(function, call, share).slabs
            own = Rows(tuple(slab for slab in slabs if slab[0][0] == b), 0, 0)
        own = own._replace(checked=sum(len(positions) for _, positions in own.slabs), total=H * l)
        found.append((call, own))
    return found


def arguments_of(function: str, given: Sequences, arguments: Mapping[str, Any]) -> Arguments:
    """What holds for each sequence: of a padded mask or bias its own cells, and all else as it is."""
    B, H, L, _ = given.query.shape
    whole = {name: to_numpy(x) if is_array(x) else x for name, x in arguments.items()}
    padded = {name: x for name, x in whole.items() if name in CELLS and isinstance(x, np.ndarray)}
    for name, x in padded.items():
        check_broadcast(function, name, x.shape, (B, H), L, given.key.shape[2])

    def of(b: int, l: int, s: int) -> dict[str, Any]:
        return {**whole, **{name: x[..., :l, :s] for name, x in padded.items()}}

    return of


@quiet
def told(
    function: str,
    verdict: Verdict,
    given: Sequences,
    arguments: Arguments,
    terms: Terms,
    output: Array,
    *,
    explain: bool = True,
) -> Verdict:
    """A verdict whose batch entries are sequences, with what the wrong ones have in common."""
    verdict = replace(verdict, entry="sequence")
    wrong = np.unique(verdict.wrong_rows[:, 0])
    if not len(wrong) or not explain:
        return verdict
    common = pattern(given, set(wrong.tolist()))
    few = wrong[np.unique(np.linspace(0, len(wrong) - 1, FEW).astype(int))]
    fit = tuple(mistakes(function, given, arguments, verdict.wrong_rows, few, terms, output))
    return replace(verdict, symptoms=verdict.symptoms + fit, notes=verdict.notes + ((common,) if common else ()))


def mistakes(
    function: str,
    given: Sequences,
    arguments: Arguments,
    wrong_rows: Ints,
    few: Ints,
    terms: Terms,
    output: Array,
) -> Iterator[str]:
    """Mistakes of storing, each computed exactly, that fit wrong rows of the output in a few sequences."""
    rows: dict[int, Rows] = {}
    for b in few.tolist():
        own = wrong_rows[wrong_rows[:, 0] == b].T
        own = own[:, np.unique(np.linspace(0, own.shape[1] - 1, TRIED).astype(int))]
        slabs = tuple(((b, int(n)), own[2, own[1] == n]) for n in np.unique(own[1]))
        judged = parts(given.call(function, b, arguments), Rows(slabs, 0, 0), terms, output, None)
        found = ((part.index, part.rows[part.output.wrong.any(axis=-1)]) for part in judged)
        rows[b] = Rows(tuple(slab for slab in found if len(slab[1])), 0, 0)
    tried = sum(len(positions) for own in rows.values() for _, positions in own.slabs)
    if not tried:
        return
    for text, other, changed in _candidates(given, arguments):
        compared = (
            part.output
            for b, own in rows.items()
            for part in parts(other.call(function, b, changed), own, terms, output, None)
        )
        if all(not part.wrong.any() and not np.isnan(part.share).all() for part in compared):
            yield f"{text} (fits all {tried} wrong rows tried)"


def pattern(given: Sequences, wrong: set[int]) -> str | None:
    """What exactly the wrong sequences have in common."""
    l = given.queries
    judged = set(np.flatnonzero(l > 0).tolist())
    found = []
    for text, holds in _properties(given):
        if {int(b) for b in np.flatnonzero(holds) if b in judged} == wrong != judged:
            found.append(text)
    if not found:
        return None
    return f"wrong are exactly the sequences {', and those '.join(found[:2])}"


def _properties(given: Sequences) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """What a sequence may have that goes wrong, the most telling first."""
    l, s = given.queries, given.keys
    L, S = int(l.max(initial=0)), int(s.max(initial=0))
    yield "without keys", s == 0
    if given.page_size is not None:
        yield "whose last page is not full", s % given.page_size > 0
        yield "of more than one page", s > given.page_size
    yield "after the first", np.arange(len(l)) > int(np.argmax(l > 0))
    yield f"whose S - L is not {S - L}, that of the padded batch", s - l != S - L
    yield f"of fewer than {S} keys, the longest", s < S
    yield f"of fewer than {L} queries, the longest", l < L


def _candidates(given: Sequences, arguments: Arguments) -> Iterator[tuple[str, Sequences, Arguments]]:
    """Mistakes that are right attention of other operands or under another mask."""
    l, s = given.queries, given.keys
    L, S = int(l.max(initial=0)), int(s.max(initial=0))

    def padded(b: int, l: int, s: int) -> Mapping[str, Any]:
        own = dict(arguments(b, l, s))
        if isinstance(own.get("mask"), Mask):
            own["mask"] = own["mask"].reanchored(S - L)
        return own

    yield f"the mask's offset is S - L = {S - L} of the padded lengths, the same for all sequences", given, padded
    tokens = np.concatenate([x[:, :n] for x, n in zip(given.query, l, strict=True)], axis=1)
    rows = np.minimum(np.arange(len(l))[:, None] * L + np.arange(L), tokens.shape[1] - 1)
    query = np.swapaxes(tokens[:, rows], 0, 1)
    text = f"the queries of sequence b are read from row {L} b on, as if they were padded"
    yield text, replace(given, query=query), arguments
    if given.page_size is None or S <= given.page_size:
        return
    place = np.arange(given.key.shape[2])
    page = place % given.page_size
    pair = place // (2 * given.page_size) * 2 * given.page_size
    for text, reads in (
        ("every page of {} is read from the sequence's first", page),
        ("of each two pages of {} the first is read twice", pair + page),
    ):
        key, value = given.key[:, :, reads], given.value[:, :, reads]
        yield text.format("keys and values"), replace(given, key=key, value=value), arguments
        yield text.format("keys"), replace(given, key=key), arguments
        yield text.format("values"), replace(given, value=value), arguments


def _entries(function: str, tables: Mapping[str, Any], query: Array, key: Array, layout: Layout) -> int:
    """The number of sequences, on which all tables agree, and the operands that are neither packed nor paged."""
    told = {}
    if "cu_seqlens_q" not in tables:
        told["query"] = _ordered(function, "query", query, layout).shape[0]
    if not {"cu_seqlens_k", "block_table"} & set(tables):
        told["key"] = _ordered(function, "key", key, layout).shape[0]
    for name, x in tables.items():
        shape = np.shape(x) if not hasattr(x, "shape") else tuple(x.shape)
        told[name] = (shape[0] if shape else 1) - name.startswith("cu_seqlens")
    if len(set(told.values())) > 1:
        raise ValueError(
            f"{function}: {' and '.join(told)} must tell of the same number B of sequences; got "
            f"{', '.join(map(str, told.values()))}."
        )
    return max(0, int(next(iter(told.values()))))


def _packed(
    function: str, name: str, x: Array, table: str, tables: Mapping[str, Any], used: Ints | None
) -> tuple[Array, Ints]:
    """A packed operand (T, H, E) as a padded one, and the lengths of its sequences."""
    if x.ndim != 3:
        raise ValueError(f"{function}: {name} must have 3 axes (T, H, E) beside {table}; got {x.shape}.")
    offsets = offsets_of(function, table, tables[table], len(x))
    room = np.diff(offsets)
    lengths = room if used is None else used
    if (over := np.flatnonzero(lengths > room)).size:
        at = int(over[0])
        raise ValueError(
            f"{function}: seqused_k must not be more than the sequence has; got {lengths[at]} of {room[at]} keys of "
            f"sequence {at}."
        )
    return logical(function, x, offsets[:-1], lengths, int(lengths.max(initial=0)), 0.0), lengths


def _ordered(function: str, name: str, x: Array, layout: Layout) -> Array:
    """An operand of four axes as (B, H, L, E)."""
    if x.ndim != 4:
        axes = AXES[layout.order].replace("...", "B")
        raise ValueError(f"{function}: {name} must have 4 axes {axes} where a batch has tables; got {x.shape}.")
    return logical_order(x, layout.order)
