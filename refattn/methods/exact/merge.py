"""The public face of the softmax state: results over parts of the keys, merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refattn._call import AttentionResult
from refattn._core.arrays import FLOATS, Array, array_namespace, dtype_name, float64, is_array, quiet, round_to
from refattn._core.checks import check_array
from refattn._core.choice import Capabilities, declare
from refattn._core.state import merge_normalised
from refattn.methods.exact.capabilities import CAPABILITIES as WHOLE

CAPABILITIES = Capabilities(
    function="merge_states",
    method="merging of softmax states, Milakov & Gimelshein 2018",
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=tuple(name for name in FLOATS if name != "float8_e8m0fnu"),
    arguments=(),
    inputs=("outputs", "lses"),
    accumulation="float64",
    time="O(n L Ev)",
    memory="O(n L Ev)",
)


@declare(CAPABILITIES)
@quiet
def merge_states(outputs: Array | Sequence[Array], lses: Array | Sequence[Array]) -> AttentionResult:
    """Attention over the union of key sets, from the attention over each set.

        O = sum_n exp(lse_n - lse) O_n,    lse = log sum_n exp(lse_n)

    Parameters
    ----------
    outputs : array, shape (n, ..., L, Ev), or sequence of n arrays
        Normalised outputs over n disjoint sets of keys.
    lses : array, shape (n, ..., L), or sequence of n arrays
        Their natural log-sum-exps; -inf where a set holds no key for the row, whose output is then not read.

    Returns
    -------
    AttentionResult
        output (..., L, Ev) in the dtype of the first output, lse (..., L) in float64, weights None. Rows that no set
        holds a key for are 0 with lse = -inf.

    Raises
    ------
    TypeError
        For arrays of two libraries or devices, or of no real floating-point dtype.
    ValueError
        For no parts, or shapes that do not fit.

    Notes
    -----
    Cost: L Ev multiply-adds and two exponentials a row for each part; memory O(L Ev) beyond the parts.

    Numerics: float64, one rounding at the end.

    Merging is associative and commutative up to float64 rounding, and a set without keys is its neutral element; give
    float64 outputs where partial merges are merged again. A sink is a logit without value: count it in one part only.
    Base-2 log-sum-exps must be multiplied by ln 2 first.

    References
    ----------
    .. [1] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, arXiv:1805.02867.
    .. [2] T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> O, lse, _ = ra.merge_states([np.zeros((1, 1)), np.ones((1, 1))], [np.log([1.0]), np.log([3.0])])
    >>> print(f"{O[0, 0]:.6f} {np.exp(lse[0]):.6f}")
    0.750000 4.000000
    """
    outputs, lses = _parts("outputs", outputs), _parts("lses", lses)
    if len(outputs) == 0 or len(outputs) != len(lses):
        raise ValueError(
            "merge_states: outputs and lses must be of the same length, at least 1; got "
            f"{len(outputs)} outputs and {len(lses)} lses."
        )
    for name, arrays in (("outputs", outputs), ("lses", lses)):
        for n, x in enumerate(arrays):
            check_array("merge_states", f"{name}[{n}]", x, CAPABILITIES.dtypes)
    shape = tuple(outputs[0].shape)
    for n, (output, lse) in enumerate(zip(outputs, lses, strict=True)):
        if len(shape) < 2 or tuple(output.shape) != shape or tuple(lse.shape) != shape[:-1]:
            raise ValueError(
                "merge_states: all outputs must have one shape (..., L, Ev) and all lses (..., L); got outputs[0] "
                f"{shape}, outputs[{n}] {tuple(output.shape)} and lses[{n}] {tuple(lse.shape)}."
            )
    names = {f"outputs[{n}]": x for n, x in enumerate(outputs)} | {f"lses[{n}]": x for n, x in enumerate(lses)}
    xp = array_namespace("merge_states", **names)
    output, lse = merge_normalised([float64(x, xp) for x in outputs], [float64(x, xp) for x in lses], xp=xp)
    return AttentionResult(round_to(output, dtype_name(outputs[0]), xp), lse)


def _parts(name: str, x: Any) -> Sequence[Array]:
    """The parts along the first axis of an array, or the sequence of them."""
    if is_array(x) and len(x.shape) > 0:
        return [x[n, ...] for n in range(x.shape[0])]
    if not isinstance(x, list | tuple):
        raise TypeError(
            f"merge_states: {name} must be a list or tuple of arrays, or one array with the parts along its first "
            f"axis; got {'a 0-d array' if is_array(x) else type(x).__name__}."
        )
    return x
