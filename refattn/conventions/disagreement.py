"""Where two calls, each of its own system, ask for different things."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn import biases, masks
from refattn._core.arrays import FLOATS, is_array, to_numpy
from refattn._core.checks import check_array, check_broadcast, check_integer
from refattn.conventions.record import Convention

DISAGREE = "conventions.disagree"
FIELDS = ("layout", "lse_base", "head_map")
# More keys than these do not fit twice in a line, nor more queries on a page.
MOST_DRAWN = 32


@dataclass(frozen=True, eq=False)
class Disagreement:
    """What two calls differ in, at given lengths; true where they differ in anything.

    Parameters
    ----------
    cells : numpy.ndarray of bool, shape lead + (L, S)
        True where one call lets the key take part and the other does not; a bias of -inf hides like a mask.
    bias : numpy.ndarray of bool, of the same shape
        True where both let it take part and add different numbers to its score.
    terms : mapping of str to (object, object)
        What else differs, by name: what the first call says, and what the second.
    text : str
        All of it in words, and for few queries and keys a picture of both masks.

    Examples
    --------
    >>> import refattn as ra
    >>> a, b = ra.conventions.flash_attn(causal=True), ra.conventions.jax_nn(is_causal=True)
    >>> found = ra.conventions.disagree(a, b, L=1, S=3)
    >>> bool(found), found.cells.tolist(), found.terms
    (True, [[False, True, True]], {})
    """

    cells: npt.NDArray[np.bool_]
    bias: npt.NDArray[np.bool_]
    terms: Mapping[str, tuple[Any, Any]]
    text: str

    def __bool__(self) -> bool:
        """Whether the two calls differ in anything."""
        return bool(self.cells.any() or self.bias.any() or self.terms)

    def __str__(self) -> str:
        """The text."""
        return self.text


def disagree(
    a: Convention, b: Convention, *, L: int, S: int, batch: int | None = None, heads: int | None = None
) -> Disagreement:
    """Cells and terms in which two converted calls differ.

    Parameters
    ----------
    a, b : Convention
        What two functions of `refattn.conventions` returned.
    L, S : int
        Number of queries and of keys.
    batch, heads : int, optional
        Number of batch entries and of query heads. Default: as many as the masks and biases tell apart.

    Returns
    -------
    Disagreement
        The cells that one of them hides, the cells to which they add different numbers, and the terms: scale, softcap,
        sinks, layout, lse_base, head_map, and where they matter key_layout, the order of softcap and bias
        ("softcap_order") and what rows without keys hold ("empty_row").

    Raises
    ------
    TypeError
        If `a` or `b` is no Convention, or a size is no integer.
    ValueError
        If a mask or a bias does not fit the sizes, or the two do not fit each other.

    Notes
    -----
    Cost: all cells of both masks, in memory.

    A scale that one leaves at 1/sqrt(E) and the other gives as a number counts as different, for E is not known here.
    Two calls without difference ask for the same values; how they round is the matter of `refattn.contract`.

    Examples
    --------
    >>> import refattn as ra
    >>> a = ra.conventions.flash_attn(causal=True, window_size=(1, 0))
    >>> b = ra.conventions.transformers(sliding_window=1)
    >>> print(ra.conventions.disagree(a, b, L=3, S=3))
    The two calls differ in 2 of 9 cells and in layout.
    layout: 'blhd' and 'bhld'
    <BLANKLINE>
      first  second
      012    012
    0 #..    #..
    1 +#.    -#.
    2 .+#    .-#
    <BLANKLINE>
    # both see the key, + this one alone, - the other alone
    """
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Convention):
            raise TypeError(
                f"{DISAGREE}: {name} must be a Convention, what a function of refattn.conventions returns; got "
                f"{type(x).__name__}."
            )
    lengths = check_integer(DISAGREE, "L", L), check_integer(DISAGREE, "S", S)
    calls = [_cells(x, *lengths) for x in (a, b)]
    lead = _lead([x.shape[:-2] for pair in calls for x in pair], batch, heads)
    sees_a, sees_b = (np.broadcast_to(sees, (*lead, *lengths)) for sees, _ in calls)
    adds_a, adds_b = (np.broadcast_to(adds, (*lead, *lengths)) for _, adds in calls)
    cells = sees_a != sees_b
    bias = sees_a & sees_b & (adds_a != adds_b)
    terms = _terms(a, b, bool(np.any(~sees_a.any(axis=-1) & ~sees_b.any(axis=-1))))
    return Disagreement(cells, bias, terms, _text(sees_a, sees_b, cells, bias, terms))


def _cells(call: Convention, L: int, S: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """The cells that take part, lead + (L, S), and what is added to their scores."""
    keep = masks.as_mask(DISAGREE, call.arguments.get("mask"))
    if call.arguments.get("is_causal", False):
        keep = masks.causal() if keep is None else masks.causal() & keep
    sees = np.ones((L, S), np.bool_) if keep is None else keep.dense(L, S)
    bias = call.arguments.get("bias")
    if bias is None:
        return sees, np.zeros((L, S))
    if isinstance(bias, biases.Bias):
        bias.check(DISAGREE, L, S)
        return sees, np.asarray(bias.tile(slice(0, L), slice(0, S), L, S, xp=np), np.float64)
    check_array(DISAGREE, "bias", bias, FLOATS)
    check_broadcast(DISAGREE, "bias", tuple(bias.shape), tuple(bias.shape[:-2]), L, S)
    added = np.broadcast_to(to_numpy(bias).astype(np.float64), (*bias.shape[:-2], L, S))
    try:
        return sees & (added != -math.inf), np.where(added == -math.inf, 0.0, added)
    except ValueError:
        raise ValueError(
            f"{DISAGREE}: the leading axes of mask and bias must broadcast; got {sees.shape[:-2]} and "
            f"{added.shape[:-2]}."
        ) from None


def _lead(shapes: list[tuple[int, ...]], batch: int | None, heads: int | None) -> tuple[int, ...]:
    """The leading axes (batch ..., heads) of everything together."""
    wanted: tuple[int, ...] = ()
    if batch is not None or heads is not None:
        sizes = (("batch", batch), ("heads", heads))
        wanted = tuple(1 if n is None else check_integer(DISAGREE, name, n) for name, n in sizes)
    try:
        lead = np.broadcast_shapes(wanted, *shapes)
    except ValueError:
        raise ValueError(
            f"{DISAGREE}: the leading axes of the masks and biases of both calls must broadcast"
            f"{f' with (batch, heads)={wanted}' if wanted else ''}; got {', '.join(map(str, shapes))}."
        ) from None
    if any(n is not None and n != m for n, m in zip((batch, heads), lead[-2:], strict=False)):
        raise ValueError(
            f"{DISAGREE}: (batch, heads)={wanted} must be the sizes that the masks and biases have; got {lead}."
        )
    return lead


def _terms(a: Convention, b: Convention, empty: bool) -> dict[str, tuple[Any, Any]]:
    """The terms in which two calls differ; `empty` tells whether some row sees no key in both."""
    cells = ("mask", "bias", "is_causal")
    names = dict.fromkeys(name for call in (a, b) for name in call.arguments if name not in cells)
    pairs = {name: (a.arguments.get(name), b.arguments.get(name)) for name in ("scale", "softcap", "sinks", *names)}
    pairs |= {name: (getattr(a, name), getattr(b, name)) for name in FIELDS}
    if a.key_layout is not None or b.key_layout is not None:
        pairs["key_layout"] = a.key_layout or a.layout, b.key_layout or b.layout
    if all(call.arguments.get("softcap") is not None and call.arguments.get("bias") is not None for call in (a, b)):
        pairs["softcap_order"] = a.softcap_order, b.softcap_order
    if empty:
        pairs["empty_row"] = a.empty_row, b.empty_row
    return {name: pair for name, pair in pairs.items() if not _same(*pair)}


def _same(x: Any, y: Any) -> bool:
    """Whether two terms are the same; arrays of any library are compared by their numbers."""
    if isinstance(x, tuple) and isinstance(y, tuple):
        return len(x) == len(y) and all(map(_same, x, y))
    if is_array(x) and is_array(y):
        return np.array_equal(to_numpy(x).astype(np.float64), to_numpy(y).astype(np.float64))
    return not is_array(x) and not is_array(y) and bool(x == y)


def _text(
    sees_a: npt.NDArray[np.bool_],
    sees_b: npt.NDArray[np.bool_],
    cells: npt.NDArray[np.bool_],
    bias: npt.NDArray[np.bool_],
    terms: Mapping[str, tuple[Any, Any]],
) -> str:
    """What differs, in words and in a picture."""
    parts = [f"{cells.sum()} of {cells.size} cells"] if cells.any() else []
    parts += [f"the bias of {bias.sum()} cells"] if bias.any() else []
    parts += [", ".join(terms)] if terms else []
    if not parts:
        return f"The two calls agree in all {cells.size} cells and in every term."
    lines = [f"The two calls differ in {' and in '.join(parts)}."]
    lines += [f"{name}: {_shown(x)} and {_shown(y)}" for name, (x, y) in terms.items()]
    L, S = cells.shape[-2:]
    if cells.any() and L <= MOST_DRAWN and S <= MOST_DRAWN:
        at = tuple(int(n) for n in np.argwhere(cells)[0][:-2])
        lines += ["", *([f"{at}"] if at else []), *_picture(sees_a[at], sees_b[at])]
        lines += ["", "# both see the key, + this one alone, - the other alone"]
    return "\n".join(lines)


def _picture(sees_a: npt.NDArray[np.bool_], sees_b: npt.NDArray[np.bool_]) -> list[str]:
    """Two masks side by side, with the cells marked that differ."""
    L, S = sees_a.shape
    width, gap = len(str(L - 1)), max(S, len("first")) + 2
    names = "".join(str(j % 10) for j in range(S))
    lines = [f"{'':{width}} {'first':{gap}}second", f"{'':{width}} {names:{gap}}{names}"]
    for i in range(L):
        drawn = [
            "".join(
                "#" if own and other else "+" if own else "-" if other else "." for own, other in zip(x, y, strict=True)
            )
            for x, y in ((sees_a[i], sees_b[i]), (sees_b[i], sees_a[i]))
        ]
        lines.append(f"{i:{width}} {drawn[0]:{gap}}{drawn[1]}")
    return lines


def _shown(x: Any) -> str:
    """A term as it is written; a long array by its shape."""
    if not is_array(x):
        return repr(x)
    return f"{to_numpy(x).tolist()}" if to_numpy(x).size <= 8 else f"<array {tuple(x.shape)}>"
