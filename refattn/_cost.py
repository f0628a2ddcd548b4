"""The public face of costs: shapes and arguments turned into what the forms of a method count over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from refattn import biases, masks
from refattn._call import prepare
from refattn._core import checks
from refattn._core.arrays import FLOATS, INTEGERS, Array, dtype_name
from refattn._core.choice import Capabilities, ImplementationError
from refattn._core.cost import Cost, Given, Work
from refattn.methods.flash import cost as tiled

# FlashAttention computes what `attention` defines, so its algorithms are forms of it.
TILED = {"attention": tiled.FORMS, "attention_gradient": tiled.GRADIENT_FORMS}

# Arguments that choose how to compute: `tile` is the one of costs.
UNCOUNTED = ("tile_q", "tile_k", "threads")


def cost(
    function: Callable[..., Any],
    query: Array | tuple[int, ...],
    key: Array | tuple[int, ...],
    value: Array | tuple[int, ...],
    *,
    dtype: object = None,
    form: str | None = None,
    tile: tuple[int, int] | None = None,
    on_chip: int | None = None,
    pack_gqa: bool = True,
    **arguments: Any,
) -> Cost:
    """What a call costs in one of its forms: operations by kind, bytes moved, memory; exact counts, nothing is run.

        seconds >= max(flops / peak_flops, bytes / bandwidth)

    Parameters
    ----------
    function : callable
        Public function of query, key and value that counts its costs: `attention`, `flash_attention`, the gradient of
        one, or `linear_attention`.
    query : array, shape (..., H, L, E), or its shape
        Queries, of which only shape and dtype are looked at; anything with both will do.
    key : array, shape (..., Hk, S, E), or its shape
        Keys.
    value : array, shape (..., Hk, S, Ev), or its shape
        Values.
    dtype : dtype or str, optional
        Dtype of the output, and of operands given as shapes; default that of `query`.
    form : str, optional
        Algorithm to count; default the function's first. "reference": refattn's own, float64 array operations one by
        one. "standard": scores and weights written to memory and read back. "flash": FlashAttention-2, each query tile
        against all key tiles. "flash_2022": FlashAttention, each key tile against all query tiles. "quadratic",
        "recurrent" and "chunked" are those of `linear_attention`.
    tile : (int, int), optional
        For tiled forms: query positions and keys in a tile; default (128, 128), for the reference of `flash_attention`
        its own.
    on_chip : int, optional
        For tiled forms: bytes of memory on chip, from which tiles follow by the rule of FlashAttention's Algorithm 1.
    pack_gqa : bool, default True
        For tiled forms: whether the query heads that share a key head share tiles, and so read its keys and values
        once.
    **arguments : any
        The function's own: mask, bias, is_causal, softcap, sinks, dropout_mask, dropout_p, return_lse, return_weights.
        Of biases, sinks and dropout masks only shapes count, which may be given in their place.

    Returns
    -------
    Cost
        The counts, with ``flops``, ``intensity`` and the roofline ``seconds`` made from them.

    Raises
    ------
    TypeError
        For arguments of the wrong kind, or that the function does not take.
    ValueError
        For shapes that do not fit, and tiles for a form without any.
    ImplementationError
        For a function or form whose cost is not counted.

    Notes
    -----
    A sum of n products is n multiply-adds and 2n flops; a sum or maximum of n numbers is n operations. The tiled forms
    skip pairs of tiles that the mask leaves empty and ask the mask in partial ones only; the others compute every cell.
    A Mask or Bias is a rule that is read from nowhere; an array is read wherever it is needed.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022,
       arXiv:2205.14135, Algorithms 0, 1 and 3, Theorem 2.
    .. [2] T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691, Algorithms 1 and 2.
    .. [3] S. Williams, A. Waterman, D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
       Architectures", Communications of the ACM 52(4), 2009.

    Examples
    --------
    >>> import refattn as ra
    >>> shape = (1, 16, 4096, 64)
    >>> for form in ("standard", "flash"):
    ...     x = ra.cost(ra.attention, shape, shape, shape, dtype="bfloat16", form=form, is_causal=True)
    ...     print(f"{form:8} {x.flops:.3g} flops, {x.bytes_moved / 2**20:.0f} MiB, {x.intensity:.0f} flops a byte")
    standard 7.03e+10 flops, 2080 MiB, 32 flops a byte
    flash    3.62e+10 flops, 280 MiB, 123 flops a byte
    """
    declared = getattr(function, "capabilities", None)
    if not isinstance(declared, Capabilities) or declared.cost is None:
        name = declared.function if isinstance(declared, Capabilities) else repr(function)
        raise ImplementationError(f"cost: function must be one whose cost is counted; got {name}.")
    forms = {**declared.cost, **TILED.get(declared.function, {})}
    form = next(iter(forms)) if form is None else form
    if form not in forms:
        raise ImplementationError(
            f"cost: form must be one of {', '.join(map(repr, forms))} for {declared.function}; got {form!r}."
        )
    counted = tuple(name for name in declared.arguments if name not in UNCOUNTED)
    for name in arguments:
        if name not in counted:
            raise TypeError(f"cost: arguments must be those of {declared.function}, {', '.join(counted)}; got {name}.")
    return forms[form](_work(declared.function, query, key, value, dtype, tile, on_chip, pack_gqa, arguments))


def _work(
    function: str,
    query: Any,
    key: Any,
    value: Any,
    dtype: object,
    tile: object,
    on_chip: object,
    pack_gqa: object,
    arguments: Mapping[str, Any],
) -> Work:
    """The record that every form counts over, after every check."""
    q, k, v = (_operand(name, x, dtype) for name, x in (("query", query), ("key", key), ("value", value)))
    bias, sinks, dropped = (arguments.get(name) for name in ("bias", "sinks", "dropout_mask"))
    call = prepare(
        "cost",
        q,
        k,
        v,
        mask=masks.as_mask("cost", arguments.get("mask")),
        bias=bias if isinstance(bias, biases.Bias) else None,
        is_causal=arguments.get("is_causal", False),
        scale=arguments.get("scale"),
        softcap=arguments.get("softcap"),
        sinks=None if sinks is None else np.zeros(_shape_and_dtype("sinks", sinks, dtype)[0]),
        dropout_mask=dropped if isinstance(dropped, masks.Mask) else None,
        dropout_p=arguments.get("dropout_p", 0.0) if dropped is None or isinstance(dropped, masks.Mask) else 0.0,
        dtype=dtype,
    )
    (L, S), lead, mask = call.score.lengths, call.lead, call.score.mask
    assert mask is None or isinstance(mask, masks.Mask)
    dtypes = (dtype_name(q), dtype_name(k), dtype_name(v), call.dtype)
    sizes = tuple(map(_size, dtypes))
    full = (lead, L, S)
    is_rule = arguments.get("mask") is None or isinstance(arguments["mask"], masks.Mask)
    return Work(
        function=function,
        batch=lead[:-1],
        heads=(lead[-1], k.shape[-3]),
        lengths=(L, S),
        features=(q.shape[-1], v.shape[-1]),
        dtypes=dtypes,
        dtype_bytes=(sizes[0], sizes[1], sizes[2], sizes[3]),
        softcap=call.score.softcap is not None,
        sinks=0 if sinks is None else _size(_shape_and_dtype("sinks", sinks, dtype)[1]),
        mask=mask,
        masked=_cells("mask", mask if is_rule else arguments["mask"], dtype, *full),
        bias=_cells("bias", bias, dtype, *full),
        dropout=_cells("dropout_mask", dropped, "bool", *full),
        return_lse=checks.check_flag("cost", "return_lse", arguments.get("return_lse", False)),
        return_weights=checks.check_flag("cost", "return_weights", arguments.get("return_weights", False)),
        tile=_tile(tile),
        on_chip=None if on_chip is None else checks.check_integer("cost", "on_chip", on_chip, least=1),
        pack_gqa=checks.check_flag("cost", "pack_gqa", pack_gqa),
        given=MappingProxyType(dict(arguments)),
    )


def _shape_and_dtype(name: str, x: Any, dtype: object) -> tuple[tuple[int, ...], str]:
    """Shape and name of the dtype of an operand that is given as an array, or as its shape."""
    if isinstance(x, tuple | list):
        if dtype is None:
            raise TypeError(
                f"cost: dtype must be given where {name} is a shape; got None. Pass the dtype of the operands, such as "
                "dtype='bfloat16'."
            )
        return tuple(checks.check_integer("cost", f"{name}[{axis}]", n) for axis, n in enumerate(x)), dtype_name(dtype)
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"cost: {name} must be an array or its shape; got {type(x).__name__}.")
    return tuple(int(n) for n in x.shape), dtype_name(x)


def _operand(name: str, x: Any, dtype: object) -> np.ndarray[Any, Any]:
    """An array of the operand's shape and dtype that takes no memory."""
    shape, named = _shape_and_dtype(name, x, dtype)
    if named not in FLOATS + INTEGERS:
        raise TypeError(f"cost: {name} must have a real floating-point or integer dtype; got {named}.")
    return np.broadcast_to(np.zeros((), np.dtype(getattr(ml_dtypes, named, named))), shape)


def _cells(name: str, x: Any, dtype: object, lead: tuple[int, ...], L: int, S: int) -> Given | None:
    """An operand that broadcasts to (..., H, L, S): a rule, an array or a shape."""
    if x is None:
        return None
    if isinstance(x, biases.Bias | masks.Mask):
        return Given((*x.lead, L, S), 0, True)
    shape, named = _shape_and_dtype(name, x, dtype)
    checks.check_broadcast("cost", name, shape, lead, L, S)
    return Given(shape, _size(named), False)


def _size(dtype: str) -> int:
    """Bytes of an element."""
    return np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize


def _tile(tile: object) -> tuple[int, int] | None:
    """Queries and keys in a tile."""
    if tile is None:
        return None
    if not isinstance(tile, tuple | list) or len(tile) != 2:
        raise TypeError(f"cost: tile must be two positive integers, (queries, keys); got {tile!r}.")
    q, k = (checks.check_integer("cost", f"tile[{axis}]", n, least=1) for axis, n in enumerate(tile))
    return q, k
