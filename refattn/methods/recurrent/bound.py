"""How far a kernel of the recurrence may be from exact arithmetic: a theorem, see the README of this folder."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from refattn._core.arrays import Array, quiet, to_numpy
from refattn._core.checks import check_choice
from refattn.contract.formats import half_ulp, unit
from refattn.contract.record import STORED
from refattn.methods.recurrent.arguments import RecurrentResult, prepare

# Roundings of a step on the way from the state before it to the state after it, those of a sum over E features aside.
STEP = 8
# Roundings of an output on the way from the state, those of a sum over E features aside.
OUTPUT = 3


@quiet
def recurrent_error_bound(
    query: Array,
    key: Array,
    value: Array,
    *,
    decay: Array | None = None,
    beta: Array | None = None,
    low_rank: tuple[Array, Array] | None = None,
    scale: float | None = None,
    initial_state: Array | None = None,
    update_rule: str = "linear",
    cu_seqlens: Array | None = None,
    accumulation: str = "float32",
    dtype: object = None,
) -> RecurrentResult:
    """Bound on the error of any kernel that takes the steps of `recurrent_attention` one by one.

        |computed o_t - o_t| <= gamma_n |scale| A_t^T |q_t| + half ulp,    n = t (E + 8) + E + 3

    Parameters
    ----------
    query : array, shape (..., Hq, L, E)
        Queries; all arrays are those that the kernel was given, and taken as exact.
    key : array, shape (..., Hk, L, E)
        Keys.
    value : array, shape (..., Hv, L, Ev)
        Values.
    decay : array, shape (..., H, L) or (..., H, L, E), optional
        Natural logarithm of the factor on the state.
    beta : array, shape (..., H, L), optional
        How much of the correction is written.
    low_rank : (array, array), each of shape (..., H, L, E), optional
        a and b of a further term.
    scale : float, optional
        Factor on the output; default 1/sqrt(E).
    initial_state : array, shape (..., H, E, Ev), optional
        S_0; with `cu_seqlens` (..., N, H, E, Ev).
    update_rule : {"linear", "gated", "delta", "gated_delta"}, default "linear"
        How a step changes the state.
    cu_seqlens : integer array, shape (N+1,), optional
        Bounds of packed sequences.
    accumulation : str, default "float32"
        Format that the kernel computes and keeps its state in, such as "float32" or "bfloat16".
    dtype : dtype or str, optional
        Dtype that the kernel rounds its output to; default that of `query`.

    Returns
    -------
    RecurrentResult
        The named tuple (output, state) of bounds, NumPy float64, in the shapes of `recurrent_attention`'s results; inf
        where n unit roundoffs reach 1, NaN where the result has NaN.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype.
    ValueError
        For shapes that do not fit, an unknown rule, or an unknown format.

    Notes
    -----
    A_t is the state of the same recurrence on absolute values. gamma_n = n u / (1 - n u) for the unit roundoff u of
    `accumulation`; exponentials may err by 2 u. Sums over features may be taken in any order. Underflow is left aside.
    For "linear" and "gated" the bound holds as well for chunks, but for what the sums of decays lose; for the delta
    rules A_t may grow where the state does not, and chunks solve a triangular system, for which it is not proved.

    References
    ----------
    .. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, Lemma 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> x = np.ones((1, 4, 2), dtype=np.float32)
    >>> ra.recurrent_error_bound(x, x, x, scale=1.0).output[0, :, 0].round(8).tolist()
    [2.38e-06, 7.15e-06, 1.419e-05, 2.384e-05]
    """
    name = "recurrent_error_bound"
    check_choice(name, "accumulation", accumulation, STORED)
    call = prepare(
        name, query, key, value, decay=decay, beta=beta, low_rank=low_rank, scale=scale, initial_state=initial_state,
        update_rule=update_rule, cu_seqlens=cu_seqlens, dtype=dtype,
    )  # fmt: skip
    xp, E = call.xp, call.query.shape[-1]
    exact = to_numpy(call.forward("recurrent", 1)[0])
    a, b = (None, None) if call.steps.a is None else (xp.abs(call.steps.a), xp.abs(call.steps.b))
    # The recurrence on absolute values: steps that read and write what those of the call do, none with a minus.
    absolute = replace(
        call, query=xp.abs(call.query), key=xp.abs(call.steps.w), value=xp.abs(call.value), beta=None,
        low_rank=None if a is None else (a, b), state=xp.abs(call.state), scale=abs(call.scale),
    )  # fmt: skip
    O, S = (to_numpy(x) for x in absolute.forward("recurrent", 1))
    lengths = [exact.shape[-2]] if call.sequences is None else [at.stop - at.start for at in call.sequences]
    t = np.concatenate([1.0 + np.arange(n) for n in lengths])
    output = _gamma(t * (E + STEP) + E + OUTPUT, accumulation)[:, None] * O
    ends = _gamma(np.array(lengths, dtype=np.float64) * (E + STEP), accumulation)
    state = (ends[0] if call.sequences is None else ends[:, None, None, None]) * S
    return RecurrentResult(output + half_ulp(np.abs(exact) + output, call.dtype), state)


def _gamma(n: np.ndarray, accumulation: str) -> np.ndarray:
    """Gamma_n, inf from n u = 1 on; 4 more than n make up for what float64 errs by in evaluating the bound."""
    x = (n + 4) * unit(accumulation)
    return np.where(x < 1, x / np.where(x < 1, 1 - x, 1.0), math.inf)
