"""The public face of random-feature attention's gradient."""

from __future__ import annotations

import math
from dataclasses import replace

from refattn._call import AttentionGradient
from refattn._core.arrays import FLOATS, Array, array_namespace, float64, quiet, round_to
from refattn._core.checks import check_array, check_output_dtype, check_shape
from refattn._core.choice import choose, declare
from refattn.methods.performer import gradient
from refattn.methods.performer.arguments import Performer, gather
from refattn.methods.performer.capabilities import CAPABILITIES as WHOLE

CAPABILITIES = replace(
    WHOLE,
    function="performer_attention_gradient",
    method="gradient of random-feature attention",
    inputs=("grad_output", *WHOLE.inputs),
)


@declare(CAPABILITIES)
@quiet
def performer_attention_gradient(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    projection: Array,
    features: str = "positive",
    is_causal: bool = False,
    scale: float | None = None,
    eps: float | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> AttentionGradient:
    """Gradients of a loss through `performer_attention`, in time linear in the length.

        D_i = do_i.o_i,    dphi(q_i) = sum_j phi(k_j) (do_i.v_j - D_i) / Z_i
        dphi(k_j) = sum_i phi(q_i) (do_i.v_j - D_i) / Z_i,    dv_j = sum_i phi(q_i).phi(k_j) do_i / Z_i

    with Z_i the normaliser of o_i, and from there through the features.

    Parameters
    ----------
    grad_output : array, shape (..., H, L, Ev)
        Gradient do of the loss with respect to the output.
    query : array, shape (..., H, L, E)
        Queries; everything as in `performer_attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    projection : array, shape (M, E)
        The vectors w of the features, which are constants here.
    features : {"positive", "hyperbolic", "trigonometric", "relu"}, default "positive"
        The features.
    is_causal : bool, default False
        Whether query i sees only keys j <= i; for L = S.
    scale : float, optional
        Factor on the products q.k; default 1/sqrt(E).
    eps : float, optional
        What is added to "relu" features; 0 or None for the others.
    dtype : dtype or str, optional
        Dtype of all gradients; default that of the array that each is the gradient of. Must be given where one of
        these is float8 or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    AttentionGradient
        The named tuple (query, key, value, None, None) on the namespace and device of the inputs.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit, and as `performer_attention` does; for eps added to positive features.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: three times that of the forward pass, which is taken again; memory O((L + S) M).

    Numerics: float64, each gradient is rounded once. What the keys get is gathered from the last query to the first,
    divided by a running maximum as the sums of the forward pass are.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, arXiv:2009.14794.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, W = np.zeros((1, 1, 2)), np.ones((1, 2))
    >>> k, v = np.zeros((1, 2, 2)), np.array([[[1.0], [3.0]]])
    >>> grad = ra.performer_attention_gradient(np.ones((1, 1, 1)), q, k, v, projection=W)
    >>> grad.value.tolist()
    [[[0.5], [0.5]]]
    """
    choose(CAPABILITIES, implementation)
    name = CAPABILITIES.function
    check_array(name, "grad_output", grad_output, FLOATS)
    arrays = {"query": query, "key": key, "value": value}
    to = {n: check_output_dtype(name, dtype, x, n) for n, x in arrays.items()}
    given = gather(
        name, query, key, value, projection=projection, features=features, is_causal=is_causal, scale=scale, eps=eps,
        dtype="float64",
    )  # fmt: skip
    if features == "positive" and eps:
        raise ValueError(f"{name}: eps must be 0 for positive features: a maximum has no gradient; got {eps}.")
    check_shape(name, "grad_output", grad_output, "(..., H, L, Ev)", (*query.shape[:-1], value.shape[-1]))
    xp = array_namespace(name, query=query, grad_output=grad_output)
    found = zip(arrays.items(), _gradients(given, features, float64(grad_output, xp)), strict=True)
    return AttentionGradient(**{n: round_to(xp.reshape(x, tuple(like.shape)), to[n], xp) for (n, like), x in found})


def _gradients(given: Performer, kind: str, dO: Array) -> tuple[Array, Array, Array]:
    """Gradients by query, key and value, grouped as the call is."""
    call, root = given.call, math.sqrt(given.call.score.scale)
    Q, K, _ = call.grouped()
    if not (Q.shape[-2] and K.shape[-2]):
        return call.xp.zeros_like(Q), call.xp.zeros_like(K), call.xp.zeros_like(given.V)
    sums = gradient.unidirectional if given.causal else gradient.bidirectional
    pulls = sums(given.Q, given.K, given.V, call.split(dO, 2), xp=call.xp)
    through = getattr(gradient, kind)
    dQ, dK = (
        root * through(root * X, given.W, phi, dF, xp=call.xp)
        for X, phi, dF in ((Q, given.Q, pulls.Q), (K, given.K, pulls.K))
    )
    return dQ, dK, pulls.V
