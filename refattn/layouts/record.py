"""How a kernel stores its arrays, in one record that the judge takes."""

from __future__ import annotations

from dataclasses import dataclass

from refattn._core.checks import check_choice, check_integer
from refattn.layouts.orders import ORDERS
from refattn.layouts.paged import PAGES
from refattn.layouts.quantised import Block

LSE = ("ht", "th")


@dataclass(frozen=True)
class Layout:
    """How a kernel stores its arrays; which of them are packed or paged, the arguments that it takes say.

    Parameters
    ----------
    order : {"bhld", "blhd", "lbhd"}, default "bhld"
        Order of the axes of query, key, value and output, where they are neither packed nor paged. Packed arrays are
        (T, H, E).
    page_size : int, default 16
        Tokens in a page, for a kernel that takes ``block_table``.
    pages : {"nhd", "hnd"}, default "nhd"
        Axes of the pool: "nhd" is (P, page_size, Hk, E) (FlashAttention, vLLM), "hnd" (P, Hk, page_size, E).
    lse : {"ht", "th"}, default "ht"
        Axes of the log-sum-exp of packed queries: "ht" is (H, T) (FlashAttention), "th" (T, H) (FlashInfer). Elsewhere
        it is (B, H, L).
    descale : tuple of three pairs (tokens, features), optional
        Blocks of query, key and value that have a factor each, for a kernel that takes ``descale``; None in a pair is
        the whole axis, and all of them None one factor for each head. A pair with features makes the factors (B, heads,
        blocks of tokens, blocks of features).
    margin : int, default 0
        Cells of NaN around the arrays that the judge hands to a kernel, along each axis but the last: they are views
        with strides that do not follow from their shapes.

    Raises
    ------
    TypeError
        If `page_size`, `margin` or the size of a block is no integer, or `descale` no three pairs.
    ValueError
        If a word is none of the choices, `page_size` or a block less than 1 or `margin` negative.

    Examples
    --------
    >>> from refattn import layouts
    >>> layouts.Layout(page_size=256).pages
    'nhd'
    """

    order: str = "bhld"
    page_size: int = 16
    pages: str = "nhd"
    lse: str = "ht"
    descale: tuple[Block, Block, Block] = ((None, None), (None, None), (None, None))
    margin: int = 0

    def __post_init__(self) -> None:
        """Refuse words and numbers that say nothing."""
        for name, choices in (("order", ORDERS), ("pages", tuple(PAGES)), ("lse", LSE)):
            check_choice("layouts.Layout", name, getattr(self, name), choices)
        check_integer("layouts.Layout", "page_size", self.page_size, least=1)
        try:
            pairs = tuple(tuple(pair) for pair in self.descale)
        except TypeError:
            pairs = ()
        if [len(pair) for pair in pairs] != [2, 2, 2]:
            raise TypeError(f"layouts.Layout: descale must be three pairs (tokens, features); got {self.descale!r}.")
        object.__setattr__(self, "descale", pairs)
        for size in (size for pair in pairs for size in pair if size is not None):
            check_integer("layouts.Layout", "descale", size, least=1)
        check_integer("layouts.Layout", "margin", self.margin)
