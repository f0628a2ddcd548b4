"""What a kernel claims about its own arithmetic: which format is where, and which operations it uses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refattn.contract.formats import FORMATS

OPERANDS = ("query", "key", "value")
# Formats of numbers that are stored one by one, without scales.
STORED = tuple(name for name in FORMATS if name != "float4_e2m1fn")
SCALES = ("e8m0 down", "e8m0 up", "e4m3")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A kernel's numerics: the formats of its intermediate values and the accuracy of its operations.

    A contract and the inputs together fix how far a right kernel may be from the exact answer; `softmax_bound` computes
    that distance, and refattn/contract/README.md proves it. The presets are `flash`, `eager`, `tf32`, `fp8`, `mxfp8`
    and `nvfp4`; `dataclasses.replace` changes one field of one.

    Parameters
    ----------
    query, key, value : str
        Format in which each operand enters its product.
    rounded : tuple of str, optional
        The operands among "query", "key", "value" that the kernel itself rounds to their format right before the
        product: float32 data cut to "tf32", or ``bfloat16(query * scale)``. Operands not named here enter the product
        with the values that the kernel was given.
    rounding : {"nearest", "toward_zero"}, optional
        How `rounded` operands and the weights are brought into their formats; tensor cores that read a float32 as tf32
        cut it off, which is "toward_zero".
    scores : str, optional
        Format in which the scores are stored between operations. The accumulator's or a finer one costs nothing; in a
        coarser one each of the stages (product, times scale; divided by softcap, tanh, times softcap; plus bias) is
        one rounding.
    probabilities : str
        Format of the weights that are multiplied with `value`.
    probability_scale : {"e8m0 down", "e8m0 up", "e4m3"}, optional
        Weights are rounded after a division by a scale, which each block of `probability_block` keys has for itself: a
        power of two, by the rule of the OCP MX specification, which clips, or the least that does not clip; or e4m3,
        the block's largest weight over the largest of the format to nearest or rounded up, which must not overflow.
        None for no scales.
    probability_block : int, optional
        Keys in a block, from the first key of a sequence on; tiles are of whole blocks.
    rounded_sum : bool, optional
        Whether the row sum may add weights that were rounded; False says that it adds them before.
    normalised_probabilities : bool, optional
        Whether the weights were divided by their sum before they were rounded to that format. False is how tiled
        kernels work; True is the order of a plain implementation, and means one softmax over the whole row.
    accumulate : {"ieee", "tensor_core"}
        Arithmetic of the sums of products. "ieee": rounding to nearest after each operation, fused or not, in any
        order. "tensor_core": exact products added several at a time, each cut off at the last bit of the largest.
    accumulator : {"float32", "float64"}, optional
        Format of sums, exponents, rescale factors and the row sum.
    accumulator_bits : int, optional
        Significant bits that a tensor core keeps of each addend and of its result; None means those of the
        accumulator. Hopper's FP8 instructions keep 14.
    accumulator_terms : int, optional
        Least number of products that a tensor core adds at once.
    output : str
        Format in which the output is stored.
    lse : str, optional
        Format in which the log-sum-exp is stored, that of partial results included.
    exp_ulp : float, optional
        Relative error of the exponentials that make the weights, in ulp (2 unit roundoffs) of the accumulator.
    rescale_ulp : float, optional
        The same for the factors ``exp(m_old - m_new)`` that a new maximum brings, and for those that merge partial
        results. Tiled kernels multiply many of these.
    tanh_ulp : float, optional
        Relative error of the softcap's tanh, in ulp of the accumulator, on top of an absolute error of 8 unit roundoffs
        (a tanh made of exponentials).
    min_tile : int, optional
        Fewest keys in a tile: the maximum may change, and parts may be merged, once every `min_tile` keys.
    lazy : float, optional
        How far the number that is subtracted from the scores may lie below the running maximum (in score units, base
        e): kernels that skip small rescalings.
    ahead : float, optional
        How far that number may lie above the maximum of the row.
    weight_shift : int, optional
        The weights may carry a common factor of up to ``2**weight_shift`` when they are rounded, to keep FP8 out of its
        subnormal range.
    merges : int, optional
        How many times in a row a result passes through a stored log-sum-exp: 1 for split keys that one kernel
        combines, P - 1 for a ring of P devices that merge one after another, 0 for none.

    Raises
    ------
    TypeError
        If a field has the wrong kind.
    ValueError
        If a field has a value it can't take.

    Notes
    -----
    Errors that are common to output and row sum cancel, and this is used: the same rescale factors must multiply both.
    Partial outputs must be kept in the accumulator's format.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from refattn import contract
    >>> contract.flash("bfloat16").probabilities
    'bfloat16'
    >>> replace(contract.flash("bfloat16"), rounded=("query",)).describe()
    'q, k, v bfloat16 (q rounded), scores float32, weights bfloat16, tensor_core float32, output bfloat16'
    """

    query: str
    key: str
    value: str
    rounded: tuple[str, ...] = ()
    rounding: str = "nearest"
    scores: str = "float32"
    probabilities: str
    probability_scale: str | None = None
    probability_block: int = 32
    rounded_sum: bool = True
    normalised_probabilities: bool = False
    accumulate: str
    accumulator: str = "float32"
    accumulator_bits: int | None = None
    accumulator_terms: int = 4
    output: str
    lse: str = "float32"
    exp_ulp: float = 2.0
    rescale_ulp: float = 2.0
    tanh_ulp: float = 4.0
    min_tile: int = 16
    lazy: float = 0.0
    ahead: float = 0.0
    weight_shift: int = 0
    merges: int = 1

    def __post_init__(self) -> None:
        """Refuse values that no kernel can have."""
        for field in (*OPERANDS, "probabilities"):
            _check_choice(field, getattr(self, field), tuple(FORMATS))
        for field in ("scores", "output", "lse"):
            _check_choice(field, getattr(self, field), STORED)
        if self.probability_scale is not None:
            _check_choice("probability_scale", self.probability_scale, SCALES)
        _check_choice("rounding", self.rounding, ("nearest", "toward_zero"))
        _check_choice("accumulate", self.accumulate, ("ieee", "tensor_core"))
        _check_choice("accumulator", self.accumulator, ("float32", "float64"))
        _check_operands(self.rounded)
        for field in ("normalised_probabilities", "rounded_sum"):
            if not isinstance(value := getattr(self, field), bool):
                raise TypeError(f"Contract: {field} must be True or False; got {type(value).__name__}.")
        if self.accumulator_bits is not None:
            _check_integer("accumulator_bits", self.accumulator_bits, 2, FORMATS[self.accumulator].precision)
        _check_integer("accumulator_terms", self.accumulator_terms, 1)
        _check_integer("min_tile", self.min_tile, 1)
        _check_integer("probability_block", self.probability_block, 1)
        _check_integer("weight_shift", self.weight_shift, 0, 64)
        _check_integer("merges", self.merges, 0)
        for field in ("exp_ulp", "rescale_ulp", "tanh_ulp"):
            _check_size(field, getattr(self, field), math.inf)
        # Past this, weights leave float32 altogether.
        for field in ("lazy", "ahead"):
            _check_size(field, getattr(self, field), 64.0)

    def describe(self) -> str:
        """Return one line that says which format is where.

        Returns
        -------
        str
            The preset's call first if this is one, then the fields that most kernels differ in.

        Examples
        --------
        >>> from refattn import contract
        >>> contract.flash("float16").describe()
        "flash('float16'): q, k, v float16, scores float32, weights float16, tensor_core float32, output float16"
        """
        operands = "q, k, v " + (self.query if self.query == self.key == self.value else ", ".join(self._operands()))
        rounded = ", ".join(name[0] for name in OPERANDS if name in self.rounded)
        verb = "cut off" if self.rounding == "toward_zero" else "rounded"
        bits = "" if self.accumulator_bits is None else f" of {self.accumulator_bits} bits"
        scale = self.probability_scale
        scaled = "" if scale is None else f" with a scale ({scale}) for {self.probability_block} keys"
        parts = (
            operands + (f" ({rounded} {verb})" if rounded else ""),
            f"scores {self.scores}",
            f"{'normalised ' if self.normalised_probabilities else ''}weights {self.probabilities}{scaled}",
            f"{self.accumulate} {self.accumulator}{bits}",
            f"output {self.output}",
        )
        from refattn.contract.presets import preset_calls

        return "".join(f"{call}: " for call, preset in preset_calls() if preset == self) + ", ".join(parts)

    def _operands(self) -> tuple[str, str, str]:
        """Formats of query, key and value."""
        return self.query, self.key, self.value


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in choices:
        words = [repr(word) for word in choices]
        raise ValueError(f"Contract: {field} must be {', '.join(words[:-1])} or {words[-1]}; got {value!r}.")


def _check_operands(value: object) -> None:
    """A tuple of operands' names."""
    if not isinstance(value, tuple) or not all(name in OPERANDS for name in value):
        raise ValueError(f"Contract: rounded must be a tuple of names among 'query', 'key' and 'value'; got {value!r}.")


def _check_integer(field: str, value: object, least: int, most: int | None = None) -> None:
    """An integer within its range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Contract: {field} must be an integer; got {type(value).__name__}.")
    if value < least or (most is not None and value > most):
        rule = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"Contract: {field} must be {rule}; got {value}.")


def _check_size(field: str, value: object, most: float) -> None:
    """A finite number, not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"Contract: {field} must be a number; got {type(value).__name__}.")
    if not (0 <= value < math.inf and value <= most):
        rule = "finite and at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"Contract: {field} must be {rule}; got {value}.")
