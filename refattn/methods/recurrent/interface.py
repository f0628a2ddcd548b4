"""The public face of the gated and delta recurrences."""

from __future__ import annotations

from refattn._core.arrays import Array, quiet
from refattn._core.checks import check_choice, check_flag, check_integer
from refattn._core.choice import choose, declare
from refattn.methods.recurrent.arguments import FORMS, RecurrentResult, prepare
from refattn.methods.recurrent.capabilities import CAPABILITIES


@declare(CAPABILITIES)
@quiet
def recurrent_attention(
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
    return_state: bool = False,
    form: str = "recurrent",
    chunk: int = 64,
    dtype: object = None,
    implementation: str | None = None,
) -> Array | RecurrentResult:
    """Attention through a state of fixed size that each step decays, corrects and adds to; causal, without a softmax.

        linear         S_t = S_(t-1) + k_t v_t^T
        gated          S_t = diag(exp g_t) S_(t-1) + k_t v_t^T
        delta          S_t = S_(t-1) + beta_t k_t (v_t - S_(t-1)^T k_t)^T
        gated_delta    R_t = diag(exp g_t) S_(t-1),    S_t = R_t + beta_t k_t (v_t - R_t^T k_t)^T
        output         o_t = scale S_t^T q_t

    Parameters
    ----------
    query : array, shape (..., Hq, L, E)
        Queries; real dtype. H = max(Hq, Hv) heads are computed, of which head h reads query head h // (H // Hq), and
        likewise key and value.
    key : array, shape (..., Hk, L, E)
        Keys; Hq, Hk and Hv divide H.
    value : array, shape (..., Hv, L, Ev)
        Values.
    decay : array, shape (..., H, L) or (..., H, L, E), optional
        Natural logarithm g of the factor on the state, for all features or for each; -inf resets them. For "gated" and
        "gated_delta", which need it.
    beta : array, shape (..., H, L), optional
        How much of the correction is written. For "delta" and "gated_delta", which need it.
    low_rank : (array, array), each of shape (..., H, L, E), optional
        a and b of a further term b_t (a_t^T S_(t-1)), the state read before it decays. For "linear" and "gated".
    scale : float, optional
        Factor on the output; default 1/sqrt(E).
    initial_state : array, shape (..., H, E, Ev), optional
        S_0; default 0. With `cu_seqlens` (..., N, H, E, Ev), one for each sequence.
    update_rule : {"linear", "gated", "delta", "gated_delta"}, default "linear"
        How a step changes the state.
    cu_seqlens : integer array, shape (N+1,), optional
        Where each of N sequences that lie packed along L begins and the last one ends; each has its own state.
    return_state : bool, default False
        Also return the state after the last step.
    form : {"recurrent", "chunked", "parallel"}, default "recurrent"
        Step by step; by chunks, with products of matrices within them; or all steps in one chunk. All are equal.
    chunk : int, default 64
        Steps in a chunk of "chunked"; any number will do.
    dtype : dtype or str, optional
        Dtype of the output; default that of `query`. Must be given where that is float8 or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    array, shape (..., H, L, Ev), or RecurrentResult
        The output in `dtype`, on the namespace and device of the inputs; with `return_state` the named tuple
        (output, state), state in float64.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit, an unknown rule or form, and an argument that the rule lacks or does not take.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: O(L E Ev) a head; "chunked" O(L C (E + Ev)) more for C = `chunk`, O(L C E Ev) never. Memory O(E Ev) for the
    state; in a chunk O(C^2), and O(C^2 E) where each feature has its own decay.

    Numerics: float64, the output is rounded once. Decays are summed segment by segment, so that a strong decay takes
    no digits of those after it.

    Parameter choices of the literature, with keys and queries normalised and gates computed by the caller: linear
    attention (no decay); RetNet and Lightning Attention (decay a constant of the head); Mamba-2 SSD (decay dt A, key
    dt B, query C, value x, scale 1); GLA (decay for each feature); DeltaNet ("delta"); Gated DeltaNet and, with a decay
    for each feature, KDA ("gated_delta"); RWKV-7 and DPLR ("gated" with `low_rank`; for RWKV-7 a = -kappa,
    b = kappa * iclr). The names of the rules are those of ONNX LinearAttention [4]_.

    A number that is not finite makes NaN of all that comes to depend on it: in a value, its column from that step on;
    in a query, its row; elsewhere all columns from that step on. A later reset does not end this. Where float64
    overflows inside a chunk, all of the chunk and what follows is NaN.

    References
    ----------
    .. [1] S. Yang, B. Wang, Y. Zhang, Y. Shen, Y. Kim, "Parallelizing Linear Transformers with the Delta Rule over
       Sequence Length", NeurIPS 2024, arXiv:2406.06484.
    .. [2] S. Yang, J. Kautz, A. Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025,
       arXiv:2412.06464.
    .. [3] T. Dao, A. Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
       Space Duality", ICML 2024, arXiv:2405.21060.
    .. [4] ONNX, operator LinearAttention, opset 27.

    Examples
    --------
    With beta = 1 and keys of length 1 the delta rule replaces what a key held:

    >>> import numpy as np
    >>> import refattn as ra
    >>> k = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    >>> v = np.array([[[1.0], [2.0], [5.0]]])
    >>> ra.recurrent_attention(k, k, v, beta=np.ones((1, 3)), scale=1.0, update_rule="delta", return_state=True).state
    array([[[5.],
            [2.]]])
    """
    choose(CAPABILITIES, implementation)
    name = CAPABILITIES.function
    check_flag(name, "return_state", return_state)
    check_choice(name, "form", form, FORMS)
    chunk = check_integer(name, "chunk", chunk, least=1)
    call = prepare(
        name, query, key, value, decay=decay, beta=beta, low_rank=low_rank, scale=scale, initial_state=initial_state,
        update_rule=update_rule, cu_seqlens=cu_seqlens, dtype=dtype,
    )  # fmt: skip
    O, S = call.forward(form, chunk)
    return RecurrentResult(call.rounded(O), S) if return_state else call.rounded(O)
