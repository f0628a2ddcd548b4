"""The operators ``& | ~`` of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refattn.masks.base import Mask


class Operators:
    """What combines with ``& | ~`` and has no truth value."""

    # NumPy then leaves `array & mask` to the mask, which refuses it in words.
    __array_ufunc__ = None

    def __and__(self, other: Any) -> Mask:
        """Keys that both let take part."""
        return _combine("&", self, other)

    def __or__(self, other: Any) -> Mask:
        """Keys that either lets take part."""
        return _combine("|", self, other)

    def __rand__(self, other: Any) -> Mask:
        """Only reached when `other` is no mask."""
        return _combine("&", other, self)

    def __ror__(self, other: Any) -> Mask:
        """Only reached when `other` is no mask."""
        return _combine("|", other, self)

    def __invert__(self) -> Mask:
        """Keys that this mask leaves out."""
        return _combine("~", self, self)

    def __bool__(self) -> bool:
        """Refuse, since ``a and b`` would silently be b."""
        raise TypeError("masks: a mask has no truth value. Combine masks with & | ~ instead of and, or, not.")


def _combine(symbol: str, a: Any, b: Any) -> Mask:
    """The combination of two masks, or a word on what is no mask."""
    # Here, since both files stand on this one.
    from refattn.masks.base import Mask
    from refattn.masks.combine import And, Not, Or

    for x in (a, b):
        if not isinstance(x, Mask):
            raise TypeError(
                f"masks: {symbol} takes masks; got {type(x).__name__}. Wrap a boolean array in masks.array."
            )
    return Not(a) if symbol == "~" else And(a, b) if symbol == "&" else Or(a, b)
