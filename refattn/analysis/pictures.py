"""Pictures: an error against its bound, weights of a head, the mask that a kernel applied; drawn into axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from refattn._core.arrays import Array, dtype_name, quiet, to_numpy
from refattn.contract import Contract, resolve, softmax_bound
from refattn.methods.exact.rows import attention_rows
from refattn.testing.probes import Readings
from refattn.testing.verdict.checking import case_on_host, check_result_shapes
from refattn.testing.verdict.judge import Terms, parts
from refattn.testing.verdict.sampling import choose_rows

# More points than this only thicken the cloud.
MOST_POINTS = 20_000

# Cells by 2 asked + applied: told apart in grey as well, and by those who see no red beside green.
CELLS = {
    "masked": "#ffffff",
    "takes part, though masked": "#d55e00",
    "left out, though asked for": "#111111",
    "takes part": "#9ecae1",
}

__all__ = ("applied_mask", "error_against_bound", "weights")


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
