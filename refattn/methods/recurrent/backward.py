"""The public face of the recurrence's gradient."""

from __future__ import annotations

from typing import NamedTuple

from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, float64, quiet, round_to
from refattn._core.checks import check_array, check_integer, check_output_dtype, check_shape
from refattn._core.choice import Capabilities, choose, declare
from refattn.methods.recurrent import gradient
from refattn.methods.recurrent.arguments import Call, prepare
from refattn.methods.recurrent.capabilities import ARGUMENTS
from refattn.methods.recurrent.capabilities import CAPABILITIES as WHOLE

CAPABILITIES = Capabilities(
    function="recurrent_attention_gradient",
    method="gradient of the gated and delta recurrences",
    inputs=("grad_output", *WHOLE.inputs),
    implementations=("reference",),
    namespaces=WHOLE.namespaces,
    dtypes=WHOLE.dtypes,
    arguments=(*ARGUMENTS, "grad_state", "chunk"),
    accumulation="float64",
    time="O(L E Ev)",
    memory="O((L / chunk + chunk) E Ev)",
)


# What gradients are taken by, in the order in which one step gives them.
NAMES = ("query", "key", "value", "decay", "beta", "a", "b", "state")


class RecurrentGradient(NamedTuple):
    """Gradients of a loss; what the call did not have is None.

    Attributes
    ----------
    query : array, shape (..., Hq, L, E)
        Of the query, summed over the heads that read it.
    key : array, shape (..., Hk, L, E)
        Of the key, likewise.
    value : array, shape (..., Hv, L, Ev)
        Of the value, likewise.
    decay : array, shape of the decay, or None
        Of the decay; 0 where it is -inf.
    beta : array, shape (..., H, L), or None
        Of beta.
    low_rank : (array, array), each of shape (..., H, L, E), or None
        Of a and b.
    initial_state : array, shape of the initial state, or None
        Of the initial state, float64.
    """

    query: Array
    key: Array
    value: Array
    decay: Array | None = None
    beta: Array | None = None
    low_rank: tuple[Array, Array] | None = None
    initial_state: Array | None = None


@declare(CAPABILITIES)
@quiet
def recurrent_attention_gradient(
    grad_output: Array,
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
    grad_state: Array | None = None,
    chunk: int = 64,
    dtype: object = None,
    implementation: str | None = None,
) -> RecurrentGradient:
    """Gradients of a loss through `recurrent_attention`, back through its steps.

        dS_t += scale q_t do_t^T,    u_t = S_(t-1)^T a_t,    du_t = dS_t^T b_t
        dq_t = scale S_t do_t,    dw_t = dS_t v_t,    dv_t = dS_t^T w_t,    db_t = dS_t u_t,    da_t = S_(t-1) du_t
        dg_t = exp g_t rowsum(dS_t S_(t-1)),    dS_(t-1) = diag(exp g_t) dS_t + a_t du_t^T

    for S_t = diag(exp g_t) S_(t-1) + b_t u_t^T + w_t v_t^T, which all rules are.

    Parameters
    ----------
    grad_output : array, shape (..., H, L, Ev)
        Gradient do of the loss with respect to the output.
    query : array, shape (..., Hq, L, E)
        Queries; everything up to `cu_seqlens` as in `recurrent_attention`.
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
    grad_state : array, shape (..., H, E, Ev), optional
        Gradient of the loss with respect to the final state; default 0. With `cu_seqlens` (..., N, H, E, Ev).
    chunk : int, default 64
        Steps whose states are held together.
    dtype : dtype or str, optional
        Dtype of all gradients but that of the state; default that of the array that each is the gradient of. Must be
        given where one of these is float8 or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    RecurrentGradient
        The named tuple (query, key, value, decay, beta, low_rank, initial_state) on the namespace and device of the
        inputs.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit, and as `recurrent_attention` does.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: about three times that of the forward steps, which are taken twice; memory O((L / chunk + chunk) E Ev).

    Numerics: float64, each gradient is rounded once. Numbers that are not finite spread as the formulas spread them.

    References
    ----------
    .. [1] S. Yang, J. Kautz, A. Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025,
       arXiv:2412.06464.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> x = np.ones((1, 2, 1))
    >>> grad = ra.recurrent_attention_gradient(x, x, x, x, scale=1.0)
    >>> grad.query.tolist(), grad.value.tolist()
    ([[[1.0], [2.0]]], [[[2.0], [1.0]]])
    """
    choose(CAPABILITIES, implementation)
    name = CAPABILITIES.function
    chunk = check_integer(name, "chunk", chunk, least=1)
    check_array(name, "grad_output", grad_output, FLOATS)
    given = {"query": query, "key": key, "value": value, "decay": decay, "beta": beta}
    call = prepare(
        name, query, key, value, decay=decay, beta=beta, low_rank=low_rank, scale=scale, initial_state=initial_state,
        update_rule=update_rule, cu_seqlens=cu_seqlens, dtype="float64",
    )  # fmt: skip
    xp = array_namespace(name, query=query, grad_output=grad_output, grad_state=grad_state)
    check_shape(name, "grad_output", grad_output, "(..., H, L, Ev)", tuple(call.value.shape))
    if grad_state is not None:
        check_array(name, "grad_state", grad_state, FLOATS)
        check_shape(name, "grad_state", grad_state, "(..., H, E, Ev)", tuple(call.state.shape))
    found = _gradients(call, grad_output, grad_state, chunk)
    asked = {**given, "a": (low_rank or (None, None))[0], "b": (low_rank or (None, None))[1]}
    rounded = {n: None if x is None else _rounded(name, found[n], x, n, dtype, xp) for n, x in asked.items()}
    a, b = rounded.pop("a"), rounded.pop("b")
    return RecurrentGradient(
        **rounded,
        low_rank=None if a is None else (a, b),
        initial_state=None if initial_state is None else found["state"],
    )


def _gradients(call: Call, grad_output: Array, grad_state: Array | None, chunk: int) -> dict[str, Array | None]:
    """Gradients in float64 by the arrays of a call, with all H heads, and by its state."""
    xp = call.xp
    dO = float64(grad_output, xp)
    dS = xp.zeros_like(call.state) if grad_state is None else float64(grad_state, xp)
    parts: dict[str, list[Array | None]] = {name: [] for name in NAMES}
    for n, (one, at) in enumerate(zip(call.each(), call.sequences or (slice(None),), strict=True)):
        end = dS if call.sequences is None else dS[..., n, :, :, :]
        found = gradient.gradients(
            one.scale * one.query, one.value, one.steps, one.state, dO[..., at, :], end, chunk=chunk, xp=xp
        )
        dk, dg, dbeta, da, db = found.steps.w, found.steps.g, None, found.steps.a, found.steps.b
        if one.beta is not None:
            dk, dg, dbeta = gradient.of_delta(one.key, one.decay, one.beta, found.steps, xp=xp)
        for name, x in zip(NAMES, (one.scale * found.Q, dk, found.V, dg, dbeta, da, db, found.S), strict=True):
            parts[name].append(x)
    states = parts.pop("state")
    joined = {name: call.joined(column) for name, column in parts.items() if column and column[0] is not None}
    return {**joined, "state": states[0] if call.sequences is None else call.stacked(states)}


def _rounded(function: str, found: Array, like: Array, name: str, dtype: object, xp: Namespace) -> Array:
    """A gradient in the shape and dtype that it is to have: summed over the heads that read one."""
    if name in ("query", "key", "value"):
        *lead, H, L, E = found.shape
        heads = like.shape[-3]
        found = xp.sum(xp.reshape(found, (*lead, heads, H // heads, L, E)), axis=-3)
    return round_to(xp.reshape(found, tuple(like.shape)), check_output_dtype(function, dtype, like, name), xp)
