"""Keys and values in pages of a pool, which a table gives to the sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array
from refattn._core.checks import check_choice, check_flag, check_integer
from refattn.layouts.host import Host, Ints, back, filled, lengths_of, on_host, table_of
from refattn.layouts.ragged import padded_length

PAGES = {"nhd": "(P, page_size, Hk, E)", "hnd": "(P, Hk, page_size, E)"}


class PageTable(NamedTuple):
    """Which pages of a pool belong to which sequence.

    Attributes
    ----------
    block_table : numpy.ndarray of int32, shape (B, max_pages)
        Page n of sequence b is ``block_table[b, n]`` of the pool.
    pages : int
        Number P of pages in the pool.
    """

    block_table: npt.NDArray[np.int32]
    pages: int


def page_table(
    lengths: Any, page_size: int, *, seed: int | None = None, spare: int = 0, beyond: int | None = None
) -> PageTable:
    """Deal out the pages of a pool to sequences.

    Parameters
    ----------
    lengths : array of int, shape (B,)
        Number of tokens of each sequence.
    page_size : int
        Tokens in a page.
    seed : int, optional
        Shuffle the pages with it. Default: they are dealt out in order.
    spare : int, default 0
        Pages of the pool that no sequence gets.
    beyond : int, optional
        Entry of the table where a sequence has no page; no right kernel looks there. Default: a spare page, or -1 where
        there is none.

    Returns
    -------
    PageTable
        ``(block_table, pages)``.

    Raises
    ------
    TypeError
        If a number is no integer.
    ValueError
        If `page_size` is less than 1, or a length or number is negative.

    Examples
    --------
    >>> from refattn import layouts
    >>> block_table, pages = layouts.page_table([3, 0, 9], page_size=4, spare=1)
    >>> block_table.tolist(), pages
    ([[0, 4, 4], [4, 4, 4], [1, 2, 3]], 5)
    """
    function = "layouts.page_table"
    size = check_integer(function, "page_size", page_size, least=1)
    spare = check_integer(function, "spare", spare)
    needed = -(-lengths_of(function, "lengths", lengths, None, None, "") // size)
    pages = int(needed.sum()) + spare
    order = np.arange(pages)
    if seed is not None:
        order = np.random.default_rng(check_integer(function, "seed", seed)).permutation(pages)
    unused = int(order[-1]) if spare else -1
    width = int(needed.max(initial=0))
    filler = unused if beyond is None else check_integer(function, "beyond", beyond, least=-(2**31))
    table = np.full((len(needed), width), filler, np.int32)
    table[np.arange(width) < needed[:, None]] = order[: pages - spare]
    return PageTable(table, pages)


def pack_paged(
    x: Array,
    lengths: Any,
    block_table: Any,
    page_size: int,
    *,
    order: str = "nhd",
    pages: int | None = None,
    shared: bool = False,
    fill: float = 0.0,
) -> Array:
    """Write the sequences of a padded array into the pages of a pool.

    Parameters
    ----------
    x : array, shape (B, Hk, S, E)
        Padded keys or values, of any library and dtype.
    lengths : array of int, shape (B,)
        Number of tokens of each sequence, 0 .. S; what `x` holds past them is left out.
    block_table : array of int, shape (B, max_pages)
        Page n of sequence b is ``block_table[b, n]``. Entries past a sequence's last page are not looked at.
    page_size : int
        Tokens in a page.
    order : {"nhd", "hnd"}, default "nhd"
        Axes of a page: "nhd" is (page_size, Hk, E) (FlashAttention, vLLM, FlashInfer), "hnd" (Hk, page_size, E).
    pages : int, optional
        Number P of pages in the pool. Default: up to the last one that is needed.
    shared : bool, default False
        Let a page serve several places of the table, as a cache does that shares prefixes; each must write the same
        bits there.
    fill : float, default 0.0
        What cells that hold no token are filled with, the tails of last pages and unused pages; NaN shows who reads
        them.

    Returns
    -------
    array, shape (P, page_size, Hk, E) or (P, Hk, page_size, E)
        The pool, of the library and on the device of `x`.

    Raises
    ------
    TypeError
        If `x` is not an array, or a table is not of integers.
    ValueError
        If a length lies beyond S or beyond the table, a page that is needed lies outside the pool or is needed twice,
        or shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> key = np.zeros((3, 2, 9, 8))
    >>> block_table, pages = layouts.page_table([3, 0, 9], page_size=4, seed=0)
    >>> layouts.pack_paged(key, [3, 0, 9], block_table, 4, fill=np.nan).shape
    (4, 4, 2, 8)
    """
    function = "layouts.pack_paged"
    check_choice(function, "order", order, tuple(PAGES))
    size = check_integer(function, "page_size", page_size, least=1)
    host = on_host(function, "x", x, "(B, Hk, S, E)")
    used = lengths_of(function, "lengths", lengths, len(host), host.shape[2], "S")
    table = table_of(function, "block_table", block_table, "(B, max_pages)", (len(host), None))
    P = None if pages is None else check_integer(function, "pages", pages)
    needed = needed_pages(function, "lengths", table, used, size, P)
    P = int(table[needed].max(initial=-1)) + 1 if P is None else P
    places = np.argwhere(needed)
    once, serves = np.unique(table[needed], return_counts=True)
    if not check_flag(function, "shared", shared) and len(once) < len(places):
        page = once[serves > 1][0]
        (b, n), (c, m) = places[table[needed] == page][:2]
        raise ValueError(
            f"{function}: block_table must give each page to one place; got page {page} for page {n} of sequence {b} "
            f"and page {m} of sequence {c}. Pass shared=True if they hold the same numbers."
        )
    pool = filled(function, (P, size, host.shape[1], host.shape[3]), host.dtype, fill)
    for b, n in places:
        tokens = _page(host, used, b, n, size)
        pool[table[b, n], : len(tokens)] = tokens
    if len(once) < len(places):
        for b, n in places:
            tokens = _page(host, used, b, n, size)
            if pool[table[b, n], : len(tokens)].tobytes() != np.ascontiguousarray(tokens).tobytes():
                raise ValueError(
                    f"{function}: x must hold the same numbers in all places of a shared page; got others for page "
                    f"{n} of sequence {b} (page {table[b, n]} of the pool)."
                )
    return back(pool if order == "nhd" else np.swapaxes(pool, 1, 2), x)


def unpack_paged(
    pages: Array,
    block_table: Any,
    seqused_k: Any,
    *,
    order: str = "nhd",
    length: int | None = None,
    fill: float = 0.0,
) -> Array:
    """Padded array of the keys, or values, that lie in pages: what `refattn.attention` takes.

    Parameters
    ----------
    pages : array, shape (P, page_size, Hk, E) or (P, Hk, page_size, E)
        The pool, of any library and dtype.
    block_table : array of int, shape (B, max_pages)
        Page n of sequence b is ``block_table[b, n]``. Entries past a sequence's last page are not looked at. Sequences
        may share pages, as in a cache that shares prefixes.
    seqused_k : array of int, shape (B,)
        Number of tokens of each sequence.
    order : {"nhd", "hnd"}, default "nhd"
        Axes of a page, as in `pack_paged`.
    length : int, optional
        S of the result. Default: the longest sequence's.
    fill : float, default 0.0
        What the padding is filled with.

    Returns
    -------
    array, shape (B, Hk, S, E)
        The same numbers, bit for bit, of the library and on the device of `pages`.

    Raises
    ------
    TypeError
        If `pages` is not an array, or a table is not of integers.
    ValueError
        If a length lies beyond the table or beyond `length`, a page that is needed lies outside the pool, or shapes do
        not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn import layouts
    >>> layouts.unpack_paged(np.zeros((5, 4, 2, 8)), [[2, -1, -1], [4, 0, 1]], [3, 9]).shape
    (2, 2, 9, 8)
    """
    function = "layouts.unpack_paged"
    check_choice(function, "order", order, tuple(PAGES))
    pool = on_host(function, "pages", pages, PAGES[order])
    used = lengths_of(function, "seqused_k", seqused_k, None, None, "")
    L = padded_length(function, length, used)
    return back(gathered(function, "pages", pool, block_table, used, order=order, length=L, fill=fill), pages)


def gathered(
    function: str,
    name: str,
    pool: Host,
    block_table: Any,
    used: Ints,
    *,
    order: str,
    length: int | None = None,
    fill: float = 0.0,
) -> Host:
    """The sequences (B, Hk, S, E) that lie in the pages of a pool."""
    if pool.ndim != 4 or 0 in pool.shape[1:3]:
        raise ValueError(f"{function}: {name} must have pages, {PAGES[order]}; got {pool.shape}.")
    pool = pool if order == "nhd" else np.swapaxes(pool, 1, 2)
    P, size, heads, E = pool.shape
    table = table_of(function, "block_table", block_table, "(B, max_pages)", (len(used), None))
    needed = needed_pages(function, "seqused_k", table, used, size, P)
    S = int(used.max(initial=0)) if length is None else length
    padded = filled(function, (len(used), heads, S, E), pool.dtype, fill)
    for b, n in np.argwhere(needed):
        stop = min(size, used[b] - n * size)
        padded[b, :, n * size : n * size + stop] = np.swapaxes(pool[table[b, n], :stop], 0, 1)
    return padded


def _page(x: Host, used: Ints, b: int, n: int, size: int) -> Host:
    """The tokens (at most page_size, Hk, E) of a page of a sequence."""
    return np.swapaxes(x[b, :, n * size : min((n + 1) * size, used[b])], 0, 1)


def needed_pages(
    function: str, name: str, table: Ints, used: Ints, size: int, pages: int | None
) -> npt.NDArray[np.bool_]:
    """Which entries of a table are looked at; those must lie in the pool."""
    width = table.shape[1]
    if (over := np.flatnonzero(used > width * size)).size:
        at = int(over[0])
        raise ValueError(
            f"{function}: {name} must fit in the pages of block_table, {width} pages of {size}; got {used[at]} for "
            f"sequence {at}."
        )
    needed = np.arange(width) < -(-used // size)[:, None]
    outside = needed & ((table < 0) | (False if pages is None else table >= pages))
    if outside.any():
        b, n = np.argwhere(outside)[0]
        pool = "be no negative page" if pages is None else f"lie in the pool of P={pages} pages"
        raise ValueError(
            f"{function}: block_table must {pool} where a page is needed; got {table[b, n]} for page {n} of sequence "
            f"{b}."
        )
    return needed
