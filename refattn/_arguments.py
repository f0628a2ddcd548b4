"""The arguments that all of softmax attention shares: checked, and gathered into one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refattn import biases, masks
from refattn._core import checks
from refattn._core.arrays import (
    FLOATS,
    Array,
    Namespace,
    array_namespace,
    dtype_name,
    float64,
    is_array,
    known,
)
from refattn._core.descale import check_descale, descaled


@dataclass(frozen=True, eq=False)
class Arguments:
    """What a call was given, known to fit together.

    `mask` is what is_causal, mask and a bias of -inf say together; `scale` is None where the call gave none, which
    means 1/sqrt(E); `sinks` are float64; operands that descale multiplies are float64 and multiplied.
    """

    xp: Namespace
    query: Array
    key: Array
    value: Array
    mask: masks.Mask | None
    bias: biases.Bias | None
    scale: float | None
    softcap: float | None
    sinks: Array | None
    dropout_mask: masks.Mask | None
    dropout_p: float
    dtype: str

    @property
    def lead(self) -> tuple[int, ...]:
        """Leading axes (..., H) of the query."""
        return tuple(self.query.shape[:-2])

    @property
    def lengths(self) -> tuple[int, int]:
        """Numbers L of queries and S of keys."""
        return self.query.shape[-2], self.key.shape[-2]

    @property
    def groups(self) -> tuple[int, int]:
        """Key heads, and query heads that read each."""
        heads, key_heads = self.query.shape[-3], self.key.shape[-3]
        return key_heads, heads // key_heads


def gather(
    function: str,
    query: Array,
    key: Array,
    value: Array | None,
    *,
    mask: masks.Mask | Array | None = None,
    bias: biases.Bias | Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    dropout_mask: masks.Mask | Array | None = None,
    dropout_p: float = 0.0,
    descale: Any = None,
    dtype: object,
    has_value: bool = True,
) -> Arguments:
    """Check the arguments, and gather them; scores alone have no value."""
    for name, x in (("query", query), ("key", key), ("value", value))[: 3 if has_value else 2]:
        checks.check_array(function, name, x)
    if sinks is not None:
        checks.check_array(function, "sinks", sinks, FLOATS)
    if bias is not None and not isinstance(bias, biases.Bias):
        checks.check_array(function, "bias", bias, FLOATS)
    bias_array = None if isinstance(bias, biases.Bias) else bias
    keep = masks.as_mask(function, mask)
    kept = masks.as_mask(function, dropout_mask, "dropout_mask")
    factors = check_descale(function, descale)
    xp = array_namespace(
        function,
        query=query,
        key=key,
        value=value,
        mask=None if keep is mask else mask,
        bias=bias_array,
        sinks=sinks,
        dropout_mask=None if kept is dropout_mask else dropout_mask,
        **{f"descale[{n}]": x for n, x in enumerate(factors) if is_array(x)},
    )
    checks.check_attention_shapes(function, query, key, value)
    lead, L, S = tuple(query.shape[:-2]), query.shape[-2], key.shape[-2]
    name = checks.check_output_dtype(function, dtype, query)
    checks.check_held(function, name, xp)
    keep = _mask(function, keep, is_causal, lead, L, S)
    added, keep = _bias(function, bias, keep, lead, L, S, xp)
    if not isinstance(dropout_mask, masks.Mask | None):
        checks.check_broadcast(function, "dropout_mask", tuple(dropout_mask.shape), lead, L, S)
    sinks = checks.check_sinks(function, sinks, query.shape[-3], xp)
    scale, softcap = checks.check_scale(function, scale), checks.check_softcap(function, softcap)
    dropout_p = _dropout(function, kept, dropout_p, lead, L, S)
    key_heads = key.shape[-3]
    groups = key_heads, query.shape[-3] // key_heads
    query, key, value = (
        descaled(function, n, x, factor, groups, xp)
        for n, (x, factor) in enumerate(zip((query, key, value), factors, strict=True))
    )
    return Arguments(xp, query, key, value, keep, added, scale, softcap, sinks, kept, dropout_p, name)


def _mask(
    function: str, keep: masks.Mask | None, is_causal: bool, lead: tuple[int, ...], L: int, S: int
) -> masks.Mask | None:
    """The mask of a call, held against its lengths; is_causal beside a mask means both."""
    if checks.check_flag(function, "is_causal", is_causal):
        if L != S:
            raise ValueError(
                f"{function}: is_causal=True is ambiguous for L={L}, S={S}. Pass "
                'mask=masks.causal(anchor="lower_right") or anchor="upper_left".'
            )
        keep = masks.causal() if keep is None else masks.causal() & keep
    if keep is not None:
        _check_lead(function, "mask", keep.lead, lead, L, S)
        keep.check(function, L, S)
    return keep


def _bias(
    function: str,
    bias: biases.Bias | Array | None,
    keep: masks.Mask | None,
    lead: tuple[int, ...],
    L: int,
    S: int,
    xp: Namespace,
) -> tuple[biases.Bias | None, masks.Mask | None]:
    """The bias of a call; where an array says -inf, the cell is masked instead."""
    if bias is None:
        return None, keep
    if isinstance(bias, biases.Bias):
        _check_lead(function, "bias", bias.lead, lead, L, S)
        bias.check(function, L, S)
        return bias, keep
    checks.check_broadcast(function, "bias", tuple(bias.shape), lead, L, S)
    values = float64(bias, xp) if dtype_name(bias).startswith("float8") else bias
    if known(xp.any(xp.isnan(values) | (values == math.inf))):
        raise ValueError(
            f"{function}: bias must be finite, or -inf where a cell is masked; got NaN or +inf. Pass mask= for cells "
            "that take no part."
        )
    hidden = values == -math.inf
    if not known(~xp.any(hidden)):
        seen = masks.array(~hidden)
        keep = seen if keep is None else keep & seen
    return biases.ArrayBias(values), keep


def _dropout(function: str, kept: masks.Mask | None, p: float, lead: tuple[int, ...], L: int, S: int) -> float:
    """Dropout's probability; it must come with a mask, for an oracle does not draw."""
    p = checks.check_dropout(function, p)
    if kept is None:
        if p > 0:
            raise ValueError(
                f"{function}: dropout_mask must be given with dropout_p={p}: which weights a kernel drops is its own "
                "choice. Pass the mask that it used, True where the weight was kept."
            )
        return p
    _check_lead(function, "dropout_mask", kept.lead, lead, L, S)
    kept.check(function, L, S)
    return p


def _check_lead(function: str, name: str, own: tuple[int, ...], lead: tuple[int, ...], L: int, S: int) -> None:
    """The leading axes that a mask or bias tells apart are axes of the query."""
    checks.check_broadcast(function, name, (*own, 1, 1), lead, L, S)
