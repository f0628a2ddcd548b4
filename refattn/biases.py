"""What is added to scores after softcap, tile by tile."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from refattn._core.arrays import Array, Namespace, device, float64, to_numpy
from refattn._core.checks import check_array, check_integer

__all__ = ["Bias", "alibi", "alibi_slopes"]


class Bias(ABC):
    """A number for each query-key pair, added to the score after softcap; it answers for one tile at a time.

    Notes
    -----
    `lead` is () where all heads and batch entries share the bias, else (..., H) with 1 on each axis that does.
    """

    @property
    @abstractmethod
    def lead(self) -> tuple[int, ...]:
        """Leading axes (..., H) that the bias tells apart."""

    @abstractmethod
    def check(self, function: str, L: int, S: int) -> None:
        """Raise where the bias has no meaning for L queries and S keys.

        Parameters
        ----------
        function : str
            Name of the public function that the message begins with.
        L, S : int
            Number of queries and of keys.

        Raises
        ------
        ValueError
            If the bias leaves open where L queries stand among S keys.
        """

    @abstractmethod
    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """Values for queries i and keys j.

        Parameters
        ----------
        i, j : slice or numpy.ndarray of int, shape (n,)
            Positions of the queries and of the keys.
        L, S : int
            Number of queries and of keys.
        xp : namespace
            Array API namespace of the result.
        device : object, optional
            Device of the result, in the words of `xp`.

        Returns
        -------
        array, broadcastable to ``lead + (len i, len j)``
            Finite float64 values.
        """

    @abstractmethod
    def at(self, index: tuple[int, ...]) -> Bias:
        """Bias of one batch entry and head.

        Parameters
        ----------
        index : tuple of int
            One entry for each leading axis (..., H) of the query.

        Returns
        -------
        Bias
            With ``lead == ()``.
        """


@dataclass(frozen=True, eq=False)
class ArrayBias(Bias):
    """A bias given as an array (..., L, S), each axis of full length or 1; -inf counts as 0, its cell is masked."""

    values: Array

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes of the array."""
        return tuple(self.values.shape[:-2])

    def check(self, function: str, L: int, S: int) -> None:
        """The array's axes were held against the scores' when it was made."""

    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """The cells of the array."""
        x = self.values
        x = x if x.shape[-2] == 1 else _cells(x, i, -2, xp)
        x = float64(x if x.shape[-1] == 1 else _cells(x, j, -1, xp), xp)
        return xp.where(x == -math.inf, 0.0, x)

    def at(self, index: tuple[int, ...]) -> ArrayBias:
        """The cells of one batch entry and head."""
        return ArrayBias(self.values[(*_own(index, self.lead), ...)])


@dataclass(frozen=True, eq=False)
class Alibi(Bias):
    """-slope * distance between the query's own position and the key."""

    slopes: np.ndarray[Any, Any]
    anchor: str | int | None

    @property
    def lead(self) -> tuple[int, ...]:
        """The slopes' axes (..., H)."""
        return tuple(self.slopes.shape)

    def check(self, function: str, L: int, S: int) -> None:
        """An anchor is needed where queries and keys differ in number."""
        if self.anchor is None and L != S:
            raise ValueError(
                f"{function}: biases.alibi() is ambiguous for L={L}, S={S}. Pass anchor='lower_right' or "
                "anchor='upper_left'."
            )

    def tile(
        self, i: slice | Array, j: slice | Array, L: int, S: int, *, xp: Namespace, device: object = None
    ) -> Array:
        """Slopes times distances."""
        offset = S - L if self.anchor == "lower_right" else self.anchor if isinstance(self.anchor, int) else 0
        q, k = np.arange(L)[i], np.arange(S)[j]
        distance = np.abs((q[:, None] - k[None, :]).astype(np.float64) + float(offset))
        slopes = self.slopes[..., None, None]
        # Copies, since PyTorch warns when it is to share a read-only array.
        return -xp.asarray(slopes, copy=True, device=device) * xp.asarray(distance, copy=True, device=device)

    def at(self, index: tuple[int, ...]) -> Alibi:
        """The slope of one batch entry and head."""
        return Alibi(self.slopes[_own(index, self.lead)], self.anchor)


def alibi_slopes(heads: int) -> np.ndarray[Any, Any]:
    """Published ALiBi slopes for any number of heads.

        m_h = 2^(-8 h / n),  h = 1..n,  for n heads, n a power of two

    For other numbers the slopes of the next lower power of two n come first, then every other slope of 2n.

    Parameters
    ----------
    heads : int
        Number of query heads H, at least 1.

    Returns
    -------
    numpy.ndarray, shape (H,)
        float64 slopes, all positive.

    Raises
    ------
    TypeError
        If `heads` is no integer.
    ValueError
        If `heads` is below 1.

    References
    ----------
    .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", ICLR 2022, arXiv:2108.12409, section 3; the rule for other numbers of heads is in its code.

    Examples
    --------
    >>> from refattn import biases
    >>> biases.alibi_slopes(4).tolist()
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> biases.alibi_slopes(3).tolist()
    [0.0625, 0.00390625, 0.25]
    """
    heads = check_integer("biases.alibi_slopes", "heads", heads, least=1)
    n = 2 ** (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * h / n) for h in range(1, n + 1)]
    slopes += [2.0 ** (-4.0 * h / n) for h in range(1, 2 * n, 2)]
    return np.array(slopes[:heads])


def alibi(slopes: int | Array, *, anchor: str | int | None = None) -> Bias:
    """ALiBi: scores fall linearly with the distance between query and key.

        bias[h, i, j] = -m_h |i + offset - j|

    Parameters
    ----------
    slopes : int or array, shape (H,) or (..., H)
        The number of heads, for the published slopes (`alibi_slopes`), or the slopes m_h themselves.
    anchor : {"lower_right", "upper_left"} or int, optional
        Where the queries stand among the keys: offset = S - L, 0, or the integer. Needed only for L != S.

    Returns
    -------
    Bias
        To be passed as ``bias=``.

    Raises
    ------
    TypeError
        If the slopes are neither an integer nor a real array.
    ValueError
        If a slope is not finite or the anchor is unknown.

    Notes
    -----
    The paper writes -m_h (i - j) for the visible keys j <= i of causal attention; this is the same there, and
    symmetric where later keys are visible too.

    References
    ----------
    .. [1] O. Press, N. A. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
       Extrapolation", ICLR 2022, arXiv:2108.12409, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q = k = v = np.ones((1, 2, 3, 4))
    >>> ra.attention(q, k, v, bias=ra.biases.alibi(2), is_causal=True).shape
    (1, 2, 3, 4)
    """
    if anchor is not None and not (isinstance(anchor, str) and anchor in ("lower_right", "upper_left")):
        if isinstance(anchor, str):
            raise ValueError(
                f"biases.alibi: anchor must be 'lower_right', 'upper_left', an integer or None; got {anchor!r}."
            )
        anchor = check_integer("biases.alibi", "anchor", anchor, least=-(2**53))
        if anchor > 2**53:
            raise ValueError(f"biases.alibi: anchor must be at most 2**53, for distances to be exact; got {anchor}.")
    if isinstance(slopes, int | np.integer) and not isinstance(slopes, bool):
        return Alibi(alibi_slopes(int(slopes)), anchor)
    check_array("biases.alibi", "slopes", slopes)
    values = to_numpy(slopes).astype(np.float64)
    if values.ndim == 0:
        raise ValueError("biases.alibi: slopes must have at least the head axis (H,); got a 0-d array.")
    if not np.all(np.isfinite(values)):
        raise ValueError("biases.alibi: slopes must be finite; got NaN or infinity.")
    values.setflags(write=False)
    return Alibi(values, anchor)


def _cells(x: Array, index: slice | Array, axis: int, xp: Namespace) -> Array:
    """Slice or gather along one of the two last axes."""
    if isinstance(index, slice):
        return x[(..., index, slice(None)) if axis == -2 else (..., index)]
    return xp.take(x, xp.asarray(index, device=device(x)), axis=axis)


def _own(index: tuple[int, ...], lead: tuple[int, ...]) -> tuple[int, ...]:
    """An index into the full leading axes, for an array that has only `lead` of them."""
    own = index[len(index) - len(lead) :]
    return tuple(0 if n == 1 else k for k, n in zip(own, lead, strict=True))
