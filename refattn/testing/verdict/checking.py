"""The verdict on arrays that a kernel returned: check and assert_attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._call import Call, prepare
from refattn._core import checks
from refattn._core.arrays import FLOATS, Array, dtype_name, is_array, to_numpy
from refattn._core.descale import check_whole, on_host
from refattn.contract import Contract, resolve
from refattn.conventions import Convention
from refattn.layouts import Layout
from refattn.layouts.orders import AXES, logical_order, stored_order
from refattn.layouts.orders import ORDERS as LAYOUTS
from refattn.methods.exact.capabilities import CAPABILITIES
from refattn.testing.verdict import sequences
from refattn.testing.verdict.judge import Terms
from refattn.testing.verdict.record import Verdict
from refattn.testing.verdict.ruling import verdict_of
from refattn.testing.verdict.sampling import choose_rows
from refattn.testing.verdict.sequences import NOTHING

LSE_BASES = {"e": 1.0, "2": math.log(2)}
EMPTY_ROWS = {"zeros": 0.0, "nan": math.nan, "mean": None, "undefined": None}

Keep = masks.Mask | Array | None
Add = biases.Bias | Array | None


def check(
    output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    lse: Array | None = None,
    cu_seqlens_q: Array | None = None,
    cu_seqlens_k: Array | None = None,
    seqused_k: Array | None = None,
    block_table: Array | None = None,
    layout: str | Layout = "bhld",
    lse_base: str = "e",
    empty_row: str = "zeros",
    contract: Contract | str | None = None,
    rows: Any = None,
    statistics: bool = True,
    convention: Convention | None = None,
    mask: Keep = None,
    bias: Add = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: Keep = None,
    dropout_p: float = 0.0,
    descale: tuple[Any, Any, Any] | None = None,
) -> Verdict:
    """Judge a kernel's result by the bound that its declared numerics imply.

        |output - exact| <= bound(contract, inputs)    for every element that is checked

    Parameters
    ----------
    output : array, shape (..., H, L, Ev)
        What the kernel returned. Arrays may come from any library and device, mixed; they are detached and copied to
        the host where they are not there.
    query : array, shape (..., H, L, E)
        Queries, exactly as the kernel got them.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    lse : array, shape (..., H, L), optional
        The kernel's log-sum-exp, checked too where it is given. It has this shape in every layout; (H, T), or (T, H) as
        the layout says, where queries are packed.
    cu_seqlens_q, cu_seqlens_k : array of int, shape (B + 1,), optional
        Offsets of sequences that are packed: query and output, key and value are then (T, H, E).
    seqused_k : array of int, shape (B,), optional
        How many keys each sequence uses.
    block_table : array of int, shape (B, max_pages), optional
        Pages of each sequence: key and value are then (P, page_size, Hk, E), and `seqused_k`, or else `cu_seqlens_k`,
        says how many keys there are.
    layout : {"bhld", "blhd", "lbhd"} or layouts.Layout, default "bhld"
        Order of the axes of output, query, key and value: "blhd" is (..., L, H, E). A `Layout` says the order of the
        axes of pages too, and of the log-sum-exp.
    lse_base : {"e", "2"}, default "e"
        Base of the logarithm in `lse`.
    empty_row : {"zeros", "nan", "mean", "undefined"}, default "zeros"
        What the output must be where a query may attend to nothing. Its lse must be -inf (the sink, with sinks).
        "mean" (of all values) and "undefined": such rows are not judged.
    contract : Contract or str, optional
        The kernel's numerics. A string means ``contract.flash`` of that dtype; default: flash of the output's dtype.
    rows : int or integer array, shape (R, n), optional
        How many rows to check, or which: their indices along (..., H, L). Default: all while that takes less than
        2e11 multiply-adds, else 4,096: first and last rows, tile edges and turns of the mask in every head, the rest
        random with a fixed seed.
    statistics : bool, default True
        Whether errors must also be no larger than random rounding makes them, and have nothing in common that a
        mistake explains: a scale that is 0.2 % off, a key that is lost. Only for float32 accumulators, without dropout.
    convention : Convention, optional
        What `refattn.conventions` made of the system's own call: its layout, lse base, empty rows and arguments are
        taken over. An argument given beside it must be the same one.
    mask, bias, is_causal, scale, softcap, sinks, dropout_mask, dropout_p : see `refattn.attention`
        What the kernel was asked for.
    descale : tuple (query, key, value), optional
        Factors of quantised operands, as `refattn.attention` takes them in every layout: what they make of the operands
        counts as exact.

    Returns
    -------
    Verdict
        `passed`, `budget_used`, the worst element, the wrong rows, `effects`, and a `text` that says all of it.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit, and words that are none of the choices.

    Notes
    -----
    The exact values are computed in float64, rows by key tiles: O(tile) memory beyond one head's keys and values.
    A NaN or infinity that the definition calls for (a NaN among the visible values) must be in the output; elsewhere
    it is wrong. Elements about which the bound's theorem claims nothing are counted as not judged; if that is all of
    them, the verdict is not passed.

    The bound of each number is proven. What `statistics` adds rests on a model of rounding errors and takes one
    chance in 10^8 of a false alarm: sections 6 and 7 of the page below.

    With any of the four tables each sequence is a problem with its own L and S, in which masks, biases and their
    anchors hold; a `mask` or `bias` that is an array is padded, (..., L, S) of the longest. `rows`, and the rows that
    the verdict names, count along (sequence, head, row of the sequence).

    References
    ----------
    .. [1] The theorem and its proof: refattn/contract/README.md.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 2, 40, 8), dtype=np.float32)
    >>> output = ra.attention(*x, is_causal=True)
    >>> ra.testing.check(output, *x, is_causal=True).passed
    True
    >>> print(ra.testing.check(0.5 * output, *x, is_causal=True).symptoms[0])
    the right output times 0.5 (fits all 32 wrong rows tried)
    """
    function = "check"
    given = {
        "mask": mask, "bias": bias, "is_causal": is_causal, "scale": scale, "softcap": softcap, "sinks": sinks,
        "dropout_mask": dropout_mask, "dropout_p": dropout_p, "descale": descale,
    }  # fmt: skip
    words: dict[str, Any] = {"layout": layout, "lse_base": lse_base, "empty_row": empty_row}
    if convention is not None:
        given, words = _merged(function, convention, given, words)
    given["descale"] = on_host(function, given["descale"])
    stored = _layout(function, words["layout"])
    for name, choices in (("lse_base", tuple(LSE_BASES)), ("empty_row", tuple(EMPTY_ROWS))):
        checks.check_choice(function, name, words[name], choices)
    tables = {
        name: x
        for name, x in (
            ("cu_seqlens_q", cu_seqlens_q),
            ("cu_seqlens_k", cu_seqlens_k),
            ("seqused_k", seqused_k),
            ("block_table", block_table),
        )
        if x is not None
    }
    held = None
    if tables:
        arrays = {"output": output, "query": query, "key": key, "value": value, "lse": lse}
        host = {name: _host(function, name, x, "bhld") for name, x in arrays.items() if x is not None}
        held = sequences.unstored(function, stored, host, tables)
        check_whole(function, given["descale"], len(held.queries))
        packed = cu_seqlens_q is not None
        result = sequences.result_of(function, "output", host["output"], stored, held, packed=packed)
        logs = sequences.result_of(function, "lse", host["lse"], stored, held, packed=packed) if "lse" in host else None
        cases = sequences.chosen(function, held, sequences.arguments_of(function, held, given), rows)
    else:
        if convention is not None and convention.key_layout is not None:
            key, value = (
                stored_order(_host(function, name, x, convention.key_layout), stored.order)
                for name, x in (("key", key), ("value", value))
            )
        call, result = case_on_host(function, output, query, key, value, layout=stored.order, **given)
        logs = None if lse is None else _host(function, "lse", lse, "bhld")
        check_result_shapes(function, call, result, logs, stored.order)
        cases = [(call, choose_rows(function, call, rows))]
    numerics = resolve(contract, dtype_name(result))
    terms = Terms(numerics, CAPABILITIES.bound, LSE_BASES[words["lse_base"]], EMPTY_ROWS[words["empty_row"]])
    verdict = verdict_of(cases, terms, result, logs, statistics=statistics)
    if held is None:
        return verdict
    return sequences.told(function, verdict, held, sequences.arguments_of(function, held, given), terms, result)


def assert_attention(output: Array, query: Array, key: Array, value: Array, **arguments: Any) -> Verdict:
    """Raise where a kernel's result is wrong, with the verdict's text.

        |output - exact| <= bound(contract, inputs)    for every element that is checked

    Parameters
    ----------
    output : array, shape (..., H, L, Ev)
        What the kernel returned.
    query : array, shape (..., H, L, E)
        Queries.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    **arguments
        All other arguments of `check`.

    Returns
    -------
    Verdict
        The verdict, where it is right.

    Raises
    ------
    AssertionError
        If the result is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> x = np.random.default_rng(0).standard_normal((3, 2, 5, 8))
    >>> ra.testing.assert_attention(ra.attention(*x), *x).rows
    10
    >>> ra.testing.assert_attention(0 * x[0], *x)
    Traceback (most recent call last):
    ...
    AssertionError: WRONG: ...
    """
    verdict = check(output, query, key, value, **arguments)
    if not verdict.passed:
        raise AssertionError(verdict.text)
    return verdict


def case_on_host(
    function: str, output: Array, query: Array, key: Array, value: Array, *, layout: str = "bhld", **given: Any
) -> tuple[Call, npt.NDArray[Any]]:
    """A checked call and a result of it as NumPy arrays, axes in the order (..., H, L, E), from any libraries."""
    arrays = {"output": output, "query": query, "key": key, "value": value}
    result, *operands = (_host(function, name, x, layout) for name, x in arrays.items())
    arguments: dict[str, Any] = {name: to_numpy(x) if is_array(x) else x for name, x in (NOTHING | given).items()}
    return prepare(function, *operands, dtype="float64", **arguments), result


def check_result_shapes(
    function: str, call: Call, output: npt.NDArray[Any], lse: npt.NDArray[Any] | None, layout: str
) -> None:
    """An output (..., H, L, Ev) and a log-sum-exp (..., H, L) of the call."""
    L, Ev = call.score.lengths[0], call.value.shape[-1]
    expected = (*call.lead, L, Ev)
    if output.shape != expected:
        axes = AXES[layout].replace("E)", "Ev)")
        want, got = (stored_order(x, layout).shape if x.ndim > 2 else x.shape for x in (np.empty(expected), output))
        raise ValueError(f"{function}: output must have shape {axes}={want}; got {got}.")
    if lse is not None and lse.shape != expected[:-1]:
        raise ValueError(f"{function}: lse must have shape (..., H, L)={expected[:-1]}; got {lse.shape}.")


def _host(function: str, name: str, x: Array, layout: str) -> npt.NDArray[Any]:
    """An array on the host, its axes in the order (..., H, L, E)."""
    if name in ("output", "lse"):
        checks.check_array(function, name, x, FLOATS)
    else:
        checks.check_array(function, name, x)
    array = to_numpy(x)
    if array.ndim != 4 and layout == "lbhd":
        raise ValueError(f"{function}: {name} must have 4 axes {AXES[layout]}; got {array.shape}.")
    return logical_order(array, layout) if array.ndim > 2 else array


def _layout(function: str, layout: object) -> Layout:
    """The layout as a record."""
    if isinstance(layout, Layout):
        return layout
    if not isinstance(layout, str) or layout not in LAYOUTS:
        words = ", ".join(map(repr, LAYOUTS))
        raise ValueError(f"{function}: layout must be one of {words} or a layouts.Layout; got {layout!r}.")
    return Layout(order=layout)


def _merged(
    function: str, convention: Convention, given: Mapping[str, Any], words: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and words with what a convention says in place of defaults."""
    if not isinstance(convention, Convention):
        raise TypeError(
            f"{function}: convention must be a Convention, what a function of refattn.conventions returns; got "
            f"{type(convention).__name__}."
        )
    defaults = {"is_causal": False, "dropout_p": 0.0, "layout": "bhld", "lse_base": "e", "empty_row": "zeros"}
    told = {name: getattr(convention, name) for name in words}
    if isinstance(words["layout"], Layout):
        told["layout"] = words["layout"]  # a convention knows the order only, which is that of its system's arrays
    for name, x in {**convention.arguments, **told}.items():
        own = {**given, **words}[name]
        if own is not defaults.get(name) and own != defaults.get(name) and own is not x and not _equal(own, x):
            raise ValueError(
                f"{function}: {name} must be left out or the same where convention= says it; got {own!r} beside {x!r}."
            )
    return {**given, **convention.arguments}, told


def _equal(a: object, b: object) -> bool:
    """Whether two words or numbers are the same; arrays are told apart by identity."""
    return isinstance(a, str | int | float) and isinstance(b, str | int | float) and a == b
