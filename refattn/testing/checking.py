"""The verdict on arrays that a kernel returned: check and assert_attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._call import Call, prepare
from refattn._core import checks
from refattn._core.arrays import FLOATS, Array, dtype_name, is_array, quiet, to_numpy
from refattn.contract import Contract, eager, resolve
from refattn.contract.presets import FLASH
from refattn.conventions import Convention
from refattn.methods.exact.capabilities import CAPABILITIES
from refattn.testing import symptoms
from refattn.testing.judge import Part, Terms, parts
from refattn.testing.sampling import Rows, choose_rows
from refattn.testing.verdict import Tally, Verdict

LAYOUTS = ("bhld", "blhd")
LSE_BASES = {"e": 1.0, "2": math.log(2)}
EMPTY_ROWS = {"zeros": 0.0, "nan": math.nan}
# Parts with wrong rows that are kept for the search for symptoms.
MOST_PARTS = 64

Keep = masks.Mask | Array | None
Add = biases.Bias | Array | None


def check(
    output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    lse: Array | None = None,
    layout: str = "bhld",
    lse_base: str = "e",
    empty_row: str = "zeros",
    contract: Contract | str | None = None,
    rows: Any = None,
    convention: Convention | None = None,
    mask: Keep = None,
    bias: Add = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
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
        The kernel's log-sum-exp, checked too where it is given. It has this shape in every layout.
    layout : {"bhld", "blhd"}, default "bhld"
        Order of the axes of output, query, key and value: "blhd" is (..., L, H, E).
    lse_base : {"e", "2"}, default "e"
        Base of the logarithm in `lse`.
    empty_row : {"zeros", "nan"}, default "zeros"
        What the output must be where a query may attend to nothing. Its lse must be -inf (the sink, with sinks).
    contract : Contract or str, optional
        The kernel's numerics. A string means ``contract.flash`` of that dtype; default: flash of the output's dtype.
    rows : int or integer array, shape (R, n), optional
        How many rows to check, or which: their indices along (..., H, L). Default: all while that takes less than
        2e11 multiply-adds, else 4,096: first and last rows, tile edges and turns of the mask in every head, the rest
        random with a fixed seed.
    convention : Convention, optional
        What `refattn.conventions` made of the system's own call: its layout, lse base, empty rows and arguments are
        taken over. An argument given beside it must be the same one.
    mask, bias, is_causal, scale, softcap, sinks : see `refattn.attention`
        What the kernel was asked for.

    Returns
    -------
    Verdict
        `passed`, `budget_used`, the worst element, the wrong rows, and a `text` that says all of it.

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
    given = {"mask": mask, "bias": bias, "is_causal": is_causal, "scale": scale, "softcap": softcap, "sinks": sinks}
    words = {"layout": layout, "lse_base": lse_base, "empty_row": empty_row}
    if convention is not None:
        given, words = _merged(function, convention, given, words)
    for name, choices in (("layout", LAYOUTS), ("lse_base", tuple(LSE_BASES)), ("empty_row", tuple(EMPTY_ROWS))):
        check_choice(function, name, words[name], choices)
    call, result = case_on_host(function, output, query, key, value, layout=words["layout"], **given)
    logs = None if lse is None else _host(function, "lse", lse, "bhld")
    check_result_shapes(function, call, result, logs, words["layout"])
    numerics = resolve(contract, dtype_name(result))
    terms = Terms(numerics, CAPABILITIES.bound, LSE_BASES[words["lse_base"]], EMPTY_ROWS[words["empty_row"]])
    return verdict_of(call, choose_rows(function, call, rows), terms, result, logs)


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
    defaults: dict[str, Any] = {
        "mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None,
    }  # fmt: skip
    arguments: dict[str, Any] = {name: to_numpy(x) if is_array(x) else x for name, x in (defaults | given).items()}
    return prepare(function, *operands, dtype="float64", **arguments), result


@quiet
def verdict_of(
    call: Call,
    rows: Rows,
    terms: Terms,
    output: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
    *,
    explain: bool = True,
) -> Verdict:
    """Judge chosen rows of a result whose shapes were checked; where they are wrong, look for what fits."""
    axes = len(call.lead) + 1
    of_output, of_lse = Tally(axes, output.shape[-1]), Tally(axes, 0)
    wrong: list[Part] = []
    for part in parts(call, rows, terms, output, lse):
        rows_wrong = of_output.add(part.index, part.rows, part.output)
        if part.lse is not None:
            rows_wrong = rows_wrong | of_lse.add(part.index, part.rows, part.lse)
        if rows_wrong.any():
            wrong = wrong[:: 1 if len(wrong) < MOST_PARTS else 2]
            wrong.append(symptoms.thinned(part, np.flatnonzero(rows_wrong)))
    elements = of_output.elements + of_lse.elements
    judged = elements - of_output.not_judged - of_lse.not_judged
    passed = not wrong and (judged > 0 or elements == 0)
    explain = explain and bool(wrong)
    tried = symptoms.pick(wrong)
    return Verdict(
        passed=passed,
        budget_used=max(of_output.share, 0.0),
        lse_budget_used=None if lse is None else max(of_lse.share, 0.0),
        worst=of_output.worst,
        worst_lse=of_lse.worst,
        wrong_rows=np.unique(np.concatenate([*of_output.wrong_rows, *of_lse.wrong_rows]), axis=0),
        wrong_columns=np.flatnonzero(of_output.wrong_columns),
        wrong_elements=of_output.wrong_elements,
        elements=of_output.elements,
        not_judged=of_output.not_judged + of_lse.not_judged,
        rows_checked=rows.checked,
        rows=rows.total,
        contract=terms.contract,
        symptoms=symptoms.find(call, terms, tried) if explain else (),
        passes_under=_passes_under(call, rows, terms, output, lse, tried) if explain else None,
        notes=_notes(terms.contract, output),
    )


def check_choice(function: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_result_shapes(
    function: str, call: Call, output: npt.NDArray[Any], lse: npt.NDArray[Any] | None, layout: str
) -> None:
    """An output (..., H, L, Ev) and a log-sum-exp (..., H, L) of the call."""
    L, Ev = call.score.lengths[0], call.value.shape[-1]
    expected = (*call.lead, L, Ev)
    if output.shape != expected:
        swapped = layout == "blhd" and output.ndim > 2
        axes = "(..., L, H, Ev)" if layout == "blhd" else "(..., H, L, Ev)"
        want = (*call.lead[:-1], L, call.lead[-1], Ev) if layout == "blhd" else expected
        got = np.swapaxes(output, -2, -3).shape if swapped else output.shape
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
    return np.swapaxes(array, -2, -3) if layout == "blhd" and array.ndim > 2 else array


def _merged(
    function: str, convention: Convention, given: Mapping[str, Any], words: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments and words with what a convention says in place of defaults."""
    if not isinstance(convention, Convention):
        raise TypeError(
            f"{function}: convention must be a Convention, what a function of refattn.conventions returns; got "
            f"{type(convention).__name__}."
        )
    defaults = {"is_causal": False, "layout": "bhld", "lse_base": "e", "empty_row": "zeros"}
    told = {name: getattr(convention, name) for name in words}
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


def _passes_under(
    call: Call,
    rows: Rows,
    terms: Terms,
    output: npt.NDArray[Any],
    lse: npt.NDArray[Any] | None,
    tried: list[Part],
) -> str | None:
    """Another contract that the same rows pass under: that of stored scores, where this one keeps them."""
    name = terms.contract.query
    if name not in FLASH or terms.contract == eager(name):
        return None
    other = replace(terms, contract=eager(name))
    first = Rows(tuple((part.index, part.rows) for part in tried), 0, 0)
    for chosen in (first, rows):
        for part in parts(call, chosen, other, output, lse):
            if part.output.wrong.any() or (part.lse is not None and part.lse.wrong.any()):
                return None
    return f"eager({name!r})"


def _notes(contract: Contract, output: npt.NDArray[Any]) -> tuple[str, ...]:
    """A word where the output is of another dtype than the contract says."""
    got = dtype_name(output)
    if got == contract.output:
        return ()
    return (f"the output is {got}, the contract's is {contract.output}, whose rounding the bound allows",)
