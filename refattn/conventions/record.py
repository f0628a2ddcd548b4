"""What a converted call is, and the checks that every system's converter shares."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn import masks
from refattn._core.anchors import Anchor, integers
from refattn._core.arrays import FLOATS, INTEGERS, Array, array_namespace, dtype_name, to_numpy
from refattn._core.checks import check_array, check_integer
from refattn._core.choice import ConventionError
from refattn.masks import Mask


@dataclass(frozen=True)
class Convention:
    """One call of another system, in refattn's words.

    Parameters
    ----------
    arguments : mapping of str to object
        Keyword arguments for `refattn.attention`; what they leave out has refattn's default.
    layout : {"blhd", "bhld", "lbhd"}
        Order of the axes of the system's arrays: "blhd" is (B, L, H, E), "bhld" is (B, H, L, E), refattn's own, "lbhd"
        is (L, B, H, E).
    lse_base : {"e", "2"}
        Base of the logarithm in the log-sum-exp that the system returns; "e" where it returns none.
    empty_row : {"zeros", "nan", "mean", "undefined"}
        What the system writes into the output row of a query that sees no key: zeros, which is refattn's own answer,
        NaN, the mean of all values, or what no document promises.
    notes : tuple of str
        What a person should know who compares: where versions disagree, what else the system returns.
    key_layout : {"blhd", "bhld"}, optional
        Order of the axes of key and value where it is another one than `layout`.
    head_map : str
        Key head that query head h reads, where each key head has G query heads.
    softcap_order : {"before bias", "after bias", "none"}
        Whether the system caps scores before it adds a bias, as refattn does, or after, or cannot cap them at all.
    scores_stage : {"raw", "softcapped", "biased", "weights"}, optional
        Stage of `refattn.attention_scores` that the system's output of scores holds, where the call has such an output.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> call = ra.conventions.torch_sdpa(is_causal=True)
    >>> q, k, v = np.zeros((1, 2, 4)), np.zeros((1, 3, 4)), np.array([[[1.0], [2.0], [6.0]]])
    >>> ra.attention(q, k, v, **call.arguments)[0, :, 0].tolist()
    [1.0, 1.5]
    """

    arguments: Mapping[str, Any]
    layout: str
    lse_base: str = "e"
    empty_row: str = "zeros"
    notes: tuple[str, ...] = ()
    key_layout: str | None = None
    head_map: str = "h // G"
    softcap_order: str = "before bias"
    scores_stage: str | None = None


def both(*masks: Mask | None) -> Mask | None:
    """The mask that all of the masks agree to; None hides nothing."""
    found: Mask | None = None
    for mask in masks:
        found = mask if found is None else found if mask is None else found & mask
    return found


def gather(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not left at refattn's default, None."""
    return {name: x for name, x in arguments.items() if x is not None}


def number(function: str, name: str, x: object) -> float:
    """A finite real number."""
    if not isinstance(x, numbers.Real | np.number) or isinstance(x, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be a real number; got {type(x).__name__}.")
    if not math.isfinite(x):
        raise ValueError(f"{function}: {name} must be finite; got {x}.")
    return float(x)


def switch(function: str, name: str, x: object) -> bool:
    """An attribute that is 0 or 1, or a boolean."""
    if not isinstance(x, bool | int | np.bool_ | np.integer):
        raise TypeError(f"{function}: {name} must be 0 or 1; got {type(x).__name__}.")
    if x not in (0, 1):
        raise ValueError(f"{function}: {name} must be 0 or 1; got {x}.")
    return bool(x)


def scale_of(function: str, name: str, scale: object) -> float | None:
    """A factor on the scores; None is 1/sqrt(E), here as there."""
    return None if scale is None else number(function, name, scale)


def softcap_of(function: str, softcap: object) -> float | None:
    """A cap where 0 means none."""
    cap = number(function, "softcap", softcap)
    if cap < 0:
        raise ConventionError(f"{function}: softcap must not be negative; got {softcap}. Pass 0.0 for no softcap.")
    return cap or None


def reach_of(function: str, name: str, x: object) -> int | None:
    """A side of a window in keys beside the diagonal; -1 and None, no end on that side, become None."""
    if x is None:
        return None
    n = check_integer(function, name, x, least=-1)
    return None if n == -1 else n


def lengths_of(function: str, name: str, x: Array) -> np.ndarray[Any, Any]:
    """One length for each batch entry, (B,), on the host."""
    check_array(function, name, x, (*FLOATS, *INTEGERS, "bool"))
    if dtype_name(x) not in INTEGERS:
        raise TypeError(f"{function}: {name} must have an integer dtype; got {dtype_name(x)}.")
    lengths = to_numpy(x)
    if lengths.ndim != 1:
        raise ValueError(f"{function}: {name} must have shape (B,); got {lengths.shape}.")
    if np.any(lengths < 0):
        raise ValueError(f"{function}: {name} must not be negative; got {lengths.min()}.")
    return lengths.astype(np.int64)


def is_boolean_mask(function: str, name: str, x: Array, *, least_axes: int) -> bool:
    """Whether a mask says which keys take part; otherwise it is a floating-point one, to be added."""
    check_array(function, name, x, (*FLOATS, *INTEGERS, "bool"))
    if dtype_name(x) in INTEGERS:
        raise TypeError(
            f"{function}: {name} must be boolean, True where a key takes part, or floating-point, added to the scores; "
            f"got {dtype_name(x)}."
        )
    _check_axes(function, name, x, least_axes)
    return dtype_name(x) == "bool"


def _check_axes(function: str, name: str, x: Array, least: int) -> None:
    """An array of cells, whose last axes are those of queries and keys."""
    if len(x.shape) < least:
        axes = "1 axis" if least == 1 else f"{least} axes"
        raise ValueError(f"{function}: {name} must have at least {axes}; got {tuple(x.shape)}.")


def refuse_dropout(function: str, dropout_p: object, *, name: str = "dropout_p") -> None:
    """Refuse dropout, whose mask no argument of the system names."""
    if number(function, name, dropout_p) != 0:
        raise ConventionError(
            f"{function}: {name}={dropout_p} is drawn inside the kernel and cannot be expressed. Pass {name}=0.0 here, "
            f"and to attention dropout_p={dropout_p} and the mask that the kernel used as dropout_mask=."
        )


def word(function: str, name: str, x: object, choices: tuple[str, ...]) -> str:
    """One of the words that an argument of the system may be."""
    if not isinstance(x, str) or x not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}; got {x!r}.")
    return x


def band(left: int | None, right: int | None, anchor: Anchor) -> Mask | None:
    """The keys from `left` before to `right` behind the diagonal one; None where both sides are open."""
    if left is None and right is None:
        return None
    return masks.causal(anchor) if left is None and right == 0 else masks.window(left, right, anchor)


def mask_or_bias(function: str, name: str, x: Array | None) -> tuple[Mask | None, Array | None]:
    """A boolean array as the mask that it is, a floating-point one as a bias."""
    if x is None:
        return None, None
    return (masks.array(x), None) if is_boolean_mask(function, name, x, least_axes=2) else (None, x)


def added(function: str, name: str, x: Array | None) -> Array | None:
    """A floating-point array that is added to the scores."""
    if x is not None:
        check_array(function, name, x, (*FLOATS, *INTEGERS, "bool"))
        if dtype_name(x) not in FLOATS:
            raise TypeError(
                f"{function}: {name} must be floating-point, it is added to the scores; got {dtype_name(x)}."
            )
        _check_axes(function, name, x, 2)
    return x


def boolean(function: str, name: str, x: Array | None) -> Array | None:
    """A boolean array."""
    if x is not None:
        check_array(function, name, x, (*FLOATS, *INTEGERS, "bool"))
        if dtype_name(x) != "bool":
            raise TypeError(f"{function}: {name} must be boolean; got {dtype_name(x)}.")
        _check_axes(function, name, x, 2)
    return x


def per_head(function: str, name: str, x: Array | None) -> Array | None:
    """One logit for each head, (H,), of an array that may have axes of length 1 around it."""
    if x is None:
        return None
    check_array(function, name, x, FLOATS)
    if len(x.shape) != 1 and not (len(x.shape) == 4 and math.prod(x.shape) == x.shape[1]):
        raise ValueError(f"{function}: {name} must have shape (H,) or (1, H, 1, 1); got {tuple(x.shape)}.")
    return array_namespace(function, **{name: x}).reshape(x, (-1,))


def integers_of(function: str, name: str, x: Any, *, least: int = 0) -> list[int]:
    """A list of integers, from a list or an integer array of any library."""
    rule = "a list of integers or an integer array (n,)"
    found = np.asarray(integers(function, name, x, rule))
    if found.ndim != 1:
        raise ValueError(f"{function}: {name} must be {rule}; got shape {found.shape}.")
    return [check_integer(function, f"{name}[{n}]", one, least=least) for n, one in enumerate(found.tolist())]
