"""What a wrong kernel is computed on: operands, what changes their scores, and how a kernel may have worked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from refattn import masks
from refattn._call import Call, prepare
from refattn._core.arrays import to_numpy
from refattn.biases import Bias
from refattn.masks import Mask
from refattn.testing.inputs.problems import Inputs

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

# Sizes of tiles, and numbers of splits, that a bug is tried for where it is not known what the kernel uses.
TILES = (16, 32, 64, 128)
# Sizes of tiles where two of them are tried, of rows and of keys, and strides that rows are padded to.
SIZES = tuple(range(16, 257, 16))
PADDED = (2, 4, 8, *TILES, 256)
SPLITS = (2, 3, 4, 8)


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """One call of softmax attention, and facts on how a kernel may work that no argument tells.

    Parameters
    ----------
    query, key, value : numpy.ndarray, shape (B, H, L, E), (B, Hk, S, E) and (B, Hk, S, Ev)
        The operands, of any real dtype; what is read is cast to float64.
    scale : float
        Factor of the scores.
    softcap : float, optional
        Of the scores.
    mask : Mask, optional
        Which keys take part, causality included.
    bias : Bias, optional
        What is added to the scores.
    sinks : numpy.ndarray, shape (H,), optional
        One logit for each head, which takes weight and has no value.
    dropout_mask : Mask, optional
        Which weights were kept.
    dropout_p : float, default 0.0
        Probability with which a weight was to be dropped.
    batch : tuple of int
        Leading axes before the heads, of which B is the product: masks and biases are asked by them.
    queries, keys : numpy.ndarray of int, shape (B,), optional
        Lengths of the sequences in padded operands. Default: L and S.
    page_size : int, optional
        Keys in a page, where keys and values are paged.
    block_table : numpy.ndarray of int, shape (B, n), optional
        Number of each page of each sequence in its pool.
    tile_q, tile_k : int, optional
        Sizes of the kernel's tiles. Default: 16, 32, 64 and 128 are tried.
    splits : int, optional
        Number of splits of the keys. Default: 2, 3, 4 and 8 are tried.
    descale : tuple of three float or numpy.ndarray, (H,) and (Hk,), or (B, H) and (B, Hk)
        Factors of quantised operands that are in query, key and value already.
    rotary_base : float, optional
        Base of the rotary embedding that is in the query already, its halves paired as GPT-NeoX pairs them.
    top_k : int, optional
        Number of keys that an index lists for each query; where the mask shows fewer, the rest are -1.
    tree_window : int, optional
        Width of the window of a tree mask, counted by depth.
    previous : Problem, optional
        The call before this one.
    masked : Mask, optional
        The mask array of the last call before this one that had the same shape and was given one.
    margin : int, default 0
        Cells of NaN around the stored operands, along each axis but the last.
    order : str, default "bhld"
        Order of the axes in which the operands are stored.
    """

    query: Array
    key: Array
    value: Array
    scale: float
    softcap: float | None = None
    mask: Mask | None = None
    bias: Bias | None = None
    sinks: Array | None = None
    dropout_mask: Mask | None = None
    dropout_p: float = 0.0
    batch: tuple[int, ...]
    queries: Ints | None = None
    keys: Ints | None = None
    page_size: int | None = None
    block_table: Ints | None = None
    tile_q: int | None = None
    tile_k: int | None = None
    splits: int | None = None
    descale: tuple[Any, Any, Any] = (1.0, 1.0, 1.0)
    rotary_base: float | None = None
    top_k: int | None = None
    tree_window: int | None = None
    previous: Problem | None = None
    masked: Mask | None = None
    margin: int = 0
    order: str = "bhld"

    @classmethod
    def of(cls, call: Call, **facts: Any) -> Problem:
        """Return the problem of a checked call.

        Parameters
        ----------
        call : Call
            The call, with arrays of any library.
        **facts : object
            What else is known, by the names of the fields.

        Returns
        -------
        Problem
            The same arguments; leading axes before the heads are one.
        """
        score, batch = call.score, call.lead[:-1]
        query, key, value = (to_numpy(x) for x in (call.query, call.key, call.value))
        query, key, value = (x.reshape(math.prod(batch), *x.shape[-3:]) for x in (query, key, value))
        kept = score.dropout
        given: dict[str, Any] = {
            "scale": score.scale,
            "softcap": score.softcap,
            "mask": cast(Mask | None, score.mask),
            "bias": cast(Bias | None, score.bias),
            "sinks": None if score.sink is None else to_numpy(score.sink).reshape(-1),
            "dropout_mask": None if kept is None else cast(Mask, kept.mask),
            "dropout_p": 0.0 if kept is None else kept.p,
            "batch": batch,
        }
        return cls(query=query, key=key, value=value, **{**given, **facts})

    @classmethod
    def of_inputs(cls, inputs: Inputs, **facts: Any) -> Problem:
        """Return the problem that `check_kernel` runs a kernel on.

        Parameters
        ----------
        inputs : Inputs
            Arrays and arguments, with the lengths of the sequences where there are some.
        **facts : object
            What else is known, by the names of the fields.

        Returns
        -------
        Problem
            The same arguments; padding is 0 where the lengths tell of it.
        """
        arguments, batch = dict(inputs.arguments), inputs.batch
        query, key, value = inputs.query, inputs.key, inputs.value
        if batch is None:
            return problem(query, key, value, **arguments, **facts)
        if arguments.pop("is_causal", False):
            mask = masks.as_mask("bugs.Problem", arguments.get("mask"))
            # Of each sequence by itself, whose lengths are equal; those of the padded batch may differ.
            arguments["mask"] = masks.causal("lower_right") if mask is None else masks.causal("lower_right") & mask
        query = _cleared(query, batch.queries)
        key, value = (_cleared(x, batch.keys) for x in (key, value))
        return problem(query, key, value, **arguments, queries=batch.queries, keys=batch.keys, **facts)

    @property
    def heads(self) -> tuple[int, int]:
        """Query heads H and key heads Hk."""
        return self.query.shape[1], self.key.shape[1]

    @property
    def group(self) -> int:
        """Query heads that read one key head."""
        return int(self.query.shape[1] // self.key.shape[1])

    @property
    def lengths(self) -> tuple[int, int]:
        """Queries L and keys S of the operands, padding included."""
        return self.query.shape[2], self.key.shape[2]

    @property
    def dims(self) -> tuple[int, int]:
        """Features E of query and key, Ev of value."""
        return self.query.shape[3], self.value.shape[3]

    @property
    def sequences(self) -> tuple[Ints, Ints]:
        """Queries and keys of each batch entry."""
        B, (L, S) = len(self.query), self.lengths
        queries = np.full(B, L) if self.queries is None else np.asarray(self.queries)
        return queries, np.full(B, S) if self.keys is None else np.asarray(self.keys)

    def index(self, b: int, h: int) -> tuple[int, ...]:
        """Return the index of a batch entry and head that masks and biases are asked by.

        Parameters
        ----------
        b, h : int
            Batch entry, 0 .. B - 1, and query head.

        Returns
        -------
        tuple of int
            One entry for each leading axis of the call.
        """
        return (*(int(x) for x in np.unravel_index(b, self.batch)), h) if self.batch else (h,)


def _cleared(x: Array, lengths: Ints) -> Array:
    """A padded operand (B, H, L, E) whose padding is 0."""
    behind = np.arange(x.shape[2]) >= lengths[:, None]
    return np.where(behind[:, None, :, None], x.dtype.type(0), x)


def problem(query: Array, key: Array, value: Array, **given: Any) -> Problem:
    """Problem of a call of `attention`, checked as `attention` checks it.

    Parameters
    ----------
    query, key, value : array, shape (..., H, L, E), (..., Hk, S, E) and (..., Hk, S, Ev)
        The operands, of any array library.
    **given : object
        Arguments of `attention` by name, and facts on the kernel: the other fields of `Problem`.

    Returns
    -------
    Problem
        The arguments; leading axes before the heads are one.

    Raises
    ------
    TypeError, ValueError
        As `attention` does.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.testing import bugs
    >>> x = np.ones((1, 2, 3, 4))
    >>> bugs.problem(x, x, x, is_causal=True, tile_k=64).mask
    masks.causal()
    """
    arguments: dict[str, Any] = {
        "mask": None, "bias": None, "is_causal": False, "scale": None, "softcap": None, "sinks": None,
    }  # fmt: skip
    names = (*arguments, "dropout_mask", "dropout_p")
    arguments.update((name, x) for name, x in given.items() if name in names)
    call = prepare("bugs.problem", query, key, value, dtype="float64", **arguments)
    return Problem.of(call, **{name: x for name, x in given.items() if name not in names})
