"""What a bias is, and the bias that is given cell by cell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from refattn._core.arrays import Array, Namespace, float64, taken


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
        x = x if x.shape[-2] == 1 else taken(x, i, -2, xp)
        x = float64(x if x.shape[-1] == 1 else taken(x, j, -1, xp), xp)
        return xp.where(x == -math.inf, 0.0, x)

    def at(self, index: tuple[int, ...]) -> ArrayBias:
        """The cells of one batch entry and head."""
        return ArrayBias(self.values[(*own(index, self.lead), ...)])


def own(index: tuple[int, ...], lead: tuple[int, ...]) -> tuple[int, ...]:
    """An index into the full leading axes, for an array that has only `lead` of them."""
    last = index[len(index) - len(lead) :]
    return tuple(0 if n == 1 else k for k, n in zip(last, lead, strict=True))
