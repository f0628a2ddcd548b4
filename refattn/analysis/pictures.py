"""Pictures: errors against their bounds, weights of a head, the mask that a kernel applied; drawn into axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core.arrays import Array, dtype_name, quiet, to_numpy
from refattn.contract import Contract, resolve, softmax_bound
from refattn.methods.exact.rows import attention_rows
from refattn.testing.probes import Readings
from refattn.testing.verdict.checking import case_on_host, check, check_result_shapes
from refattn.testing.verdict.judge import Terms, parts
from refattn.testing.verdict.record import Verdict, place, share_text
from refattn.testing.verdict.sampling import choose_rows

# More points than this only thicken the cloud.
MOST_POINTS = 20_000

# What a line of the map is, without and with batch axes.
ROWS_OF = ("head", "batch, head")
# Strips of rows that are told apart; each is drawn as its worst row.
MOST_STRIPS = 256
# Shares of the bound, as powers of 10, between which colours change; their names.
DECADES = (-4, 4)
TICKS = {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100", 3: "1,000"}

# Light below the bound, where shares are small; a step at the bound, and darker beyond: seen in grey as well.
SHADES = ((0.0, "#f7fbff"), (0.499, "#c6dbef"), (0.501, "#fdae61"), (0.75, "#d7301f"), (1.0, "#300000"))

# Cells by 2 asked + applied: told apart in grey as well, and by those who see no red beside green.
CELLS = {
    "masked": "#ffffff",
    "takes part, though masked": "#d55e00",
    "left out, though asked for": "#111111",
    "takes part": "#9ecae1",
}

__all__ = ("applied_mask", "error_against_bound", "verdict", "weights")


@quiet
def error_against_bound(
    output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    contract: Contract | str | None = None,
    label: str | None = None,
    ax: Any = None,
    **arguments: Any,
) -> Any:
    """Scatter of each element's error over the bound that its contract gives it.

        a right kernel lies below the line |output - exact| = bound

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
    contract : Contract or str, optional
        The kernel's numerics, as in `refattn.testing.check`.
    label : str, optional
        Name in the legend.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default a new figure's axes.
    **arguments
        mask, bias, is_causal, scale, softcap, sinks of the call.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. An error of 0 is drawn at the lower edge.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    At most 20,000 elements are drawn, evenly spaced over all; bounds of 0 and inf are left out.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> from refattn.analysis import pictures
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 20, 8), dtype=np.float32)
    >>> ax = pictures.error_against_bound(ra.attention(*x), *x)
    """
    call, result = case_on_host("error_against_bound", output, query, key, value, **arguments)
    check_result_shapes("error_against_bound", call, result, None, "bhld")
    terms = Terms(resolve(contract, dtype_name(result)), softmax_bound)
    judged = [part.output for part in parts(call, choose_rows("error_against_bound", call, None), terms, result, None)]
    error = np.concatenate([np.zeros(0), *(np.abs(x.got - x.expected).ravel() for x in judged)])
    bound = np.concatenate([np.zeros(0), *(np.broadcast_to(x.bound, x.got.shape).ravel() for x in judged)])
    step = -(-len(error) // MOST_POINTS) or 1
    error, bound = error[::step], bound[::step]
    shown = np.isfinite(bound) & (bound > 0)
    ax = _axes(ax)
    floor = 1e-4 * float(bound[shown].min(initial=1.0))
    ax.scatter(bound[shown], np.maximum(error[shown], floor), s=3, alpha=0.25, linewidths=0, label=label)
    ax.set(xlabel="bound", ylabel="|output - exact|")
    if shown.any():
        edges = [bound[shown].min(), bound[shown].max()]
        ax.plot(edges, edges, color="black", linewidth=1)
        ax.set(xscale="log", yscale="log")
    return ax


@quiet
def verdict(
    output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    contract: Contract | str | None = None,
    head: tuple[int, ...] | None = None,
    ax: Any = None,
    **arguments: Any,
) -> Any:
    """Map of where a result is wrong: the largest error over its bound in each row of each head, rows to the right.

        |output - exact| / bound    light below 1, dark above

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
    contract : Contract or str, optional
        The kernel's numerics, as in `refattn.testing.check`.
    head : tuple of int, optional
        The (batch ..., head) whose rows and columns of the output are drawn; default all heads, in the order of the
        array.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default a new figure's axes.
    **arguments
        mask, bias, is_causal, scale, softcap, sinks of the call.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. A ring marks the worst element, the title names it, and below it stands what explains the wrong rows,
        such as a key that takes no part. Grey cells are not judged.

    Raises
    ------
    ValueError
        If there is no such head, or no row to draw.
    ImportError
        If matplotlib is not installed.

    Notes
    -----
    Rows are drawn in at most 256 strips, each as its worst row, so that one wrong row of many is seen.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> from refattn.analysis import pictures
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 20, 8), dtype=np.float32)
    >>> pictures.verdict(ra.attention(*x), *x).get_title()
    'right: the worst error is 0.00 times its bound'
    """
    ruling = check(output, query, key, value, contract=contract, **arguments)
    share = _shares(output, query, key, value, ruling.contract, **arguments)
    if share.size == 0:
        raise ValueError(f"verdict: output must have an element to draw; got shape {share.shape}.")
    lead, names = share.shape[:-2], [", ".join(map(str, index)) for index in np.ndindex(share.shape[:-2])]
    if head is None:
        drawn, line = np.fmax.reduce(share, axis=-1).reshape(-1, share.shape[-2]), ROWS_OF[len(lead) > 1]
    elif len(head) != len(lead) or any(not 0 <= n < size for n, size in zip(head, lead, strict=True)):
        raise ValueError(f"verdict: head must be an index below {lead}; got {head}.")
    else:
        drawn, line, names = share[head].T, f"column of head {', '.join(map(str, head))}", []
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(drawn), -1.0, drawn))), drawn.shape)
    ax = _axes(ax)
    _draw_shares(ax, drawn)
    if ruling.worst is not None:
        ax.plot(*worst[::-1], "o", markersize=13, markerfacecolor="none", markeredgecolor="#0072b2", markeredgewidth=2)
    if 1 < len(names) <= 24:
        ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="row", ylabel=line, title=_headline(ruling))
    return ax


def _shares(output: Array, query: Array, key: Array, value: Array, contract: Contract, **arguments: Any) -> Any:
    """Error over bound of each element (..., H, L, Ev)."""
    call, result = case_on_host("verdict", output, query, key, value, **arguments)
    share = np.full(result.shape, np.nan)
    terms = Terms(contract, softmax_bound)
    for part in parts(call, choose_rows("verdict", call, None), terms, result, None):
        share[part.index][part.rows] = part.output.share
    return share


def _draw_shares(ax: Any, share: Any) -> None:
    """The map of shares (lines, rows) and its colours, row by row or in strips."""
    from matplotlib.colors import LinearSegmentedColormap

    lines, rows = share.shape
    strips = -(-rows // MOST_STRIPS)
    held = np.full((lines, -(-rows // strips) * strips), -np.inf)
    held[:, :rows] = np.where(np.isnan(share), -np.inf, share)
    held = held.reshape(lines, -1, strips).max(axis=-1)
    colours = LinearSegmentedColormap.from_list("shares", SHADES).with_extremes(bad="#b0b0b0")
    power = np.ma.masked_array(np.clip(np.log10(held), *DECADES), held == -np.inf)
    image = ax.imshow(
        power, vmin=DECADES[0], vmax=DECADES[1], cmap=colours, interpolation="nearest", aspect="auto",
        extent=(-0.5, held.shape[1] * strips - 0.5, lines - 0.5, -0.5),
    )  # fmt: skip
    ax.set_xlim(-0.5, rows - 0.5)
    bar = ax.figure.colorbar(image, ax=ax, label="largest |error| / bound", extend="both")
    bar.set_ticks(list(TICKS), labels=list(TICKS.values()))


def _headline(ruling: Verdict) -> str:
    """What the title says: how large and where the worst error is, and the first thing that explains it."""
    if ruling.worst is None:
        return "not judged: nothing is proved of scores as large as these"
    times = f"{share_text(ruling.budget_used)} times its bound"
    if not len(ruling.wrong_rows):
        return f"{'right' if ruling.passed else 'not judged'}: the worst error is {times}"
    where = place(ruling.worst.index, columns=True)
    told = [symptom.partition(" (fits all")[0] for symptom in ruling.symptoms[:1]]
    return "\n".join([f"WRONG in {len(ruling.wrong_rows):,} rows: {times} at {where}", *told])


def weights(
    query: Array, key: Array, *, head: tuple[int, ...], is_causal: bool = False, ax: Any = None, **arguments: Any
) -> Any:
    """Picture of one head's attention weights, queries downwards, keys to the right, on a logarithmic scale.

        P = softmax(softcap(scale * Q K^T) + bias)

    Parameters
    ----------
    query : array, shape (..., H, L, E)
        Queries.
    key : array, shape (..., Hk, S, E)
        Keys.
    head : tuple of int
        The (batch ..., head) to draw.
    is_causal : bool, default False
        As in `refattn.attention`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default a new figure's axes.
    **arguments
        mask, bias, scale, softcap, sinks of the call.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the colour bar is log10 of the weight, cut off at -5.

    Raises
    ------
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.analysis import pictures
    >>> x = np.random.default_rng(0).standard_normal((2, 1, 20, 8))
    >>> ax = pictures.weights(*x, head=(0,), is_causal=True)
    """
    query, key = to_numpy(query), to_numpy(key)
    S = key.shape[-2]
    # One row of the identity for each key: the output is then the row of weights.
    one_hot = np.broadcast_to(np.eye(S), (*key.shape[:-2], S, S))
    rows = [(*head, row) for row in range(query.shape[-2])]
    P: Any = attention_rows(query, key, one_hot, rows=rows, is_causal=is_causal, dtype="float64", **arguments)
    ax = _axes(ax)
    with np.errstate(divide="ignore"):
        image = ax.imshow(np.log10(P), vmin=-5, vmax=0, cmap="magma", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label="log10 weight", extend="min")
    ax.set(xlabel="key", ylabel="query")
    return ax


def applied_mask(readings: Readings, *, head: int = 0, ax: Any = None) -> Any:
    """Picture of the mask that a kernel applied beside the one that it was asked for, queries downwards.

        asked and applied | asked, not applied | applied, not asked | neither

    Parameters
    ----------
    readings : Readings
        What `refattn.testing.probe` read.
    head : int, default 0
        The query head to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default a new figure's axes.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; each of the four kinds of cells has its colour, and a legend says how many there are.

    Raises
    ------
    TypeError
        If `readings` is something else.
    ValueError
        If the masks agree in all that was read, so that there is none to draw, or there is no such head.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn import masks
    >>> from refattn.analysis import pictures
    >>> from refattn.testing import KernelSpec, probe
    >>> def kernel(query, key, value):
    ...     return ra.attention(query, key, value, mask=masks.causal("upper_left"))
    >>> spec = KernelSpec(kernel, computes={"mask": masks.causal("lower_right")}, dims=(16,), lengths=((5, 9),))
    >>> ax = pictures.applied_mask(probe(spec, quick=True))
    """
    if not isinstance(readings, Readings):
        raise TypeError(f"applied_mask: readings must be a Readings; got {type(readings).__name__}.")
    asked, applied = readings.asked_mask, readings.applied_mask
    if asked is None or applied is None:
        raise ValueError("applied_mask: readings must have a mask that differs from the one asked for; got none.")
    if not 0 <= head < len(asked):
        raise ValueError(f"applied_mask: head must be from 0 to {len(asked) - 1}; got {head}.")
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    ax = _axes(ax)
    kinds = 2 * asked[head] + applied[head]
    ax.imshow(kinds, vmin=0, vmax=3, cmap=ListedColormap(list(CELLS.values())), interpolation="nearest")
    counts = np.bincount(kinds.ravel(), minlength=len(CELLS))
    handles = [
        Patch(facecolor=colour, edgecolor="black", label=f"{name} ({count:,})")
        for (name, colour), count in zip(CELLS.items(), counts, strict=True)
        if count
    ]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    ax.set(xlabel="key", ylabel="query", title=f"mask of head {head}")
    return ax


def _axes(ax: Any) -> Any:
    """The axes to draw into."""
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib, which is not installed: pip install "refattn[plot]".') from error
    return Figure(layout="constrained").add_subplot()
