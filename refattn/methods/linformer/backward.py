"""The public faces of the gradients of low-rank attention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

from refattn._call import AttentionGradient, prepare
from refattn._core.arrays import FLOATS, Array, Namespace, array_namespace, float64, quiet, round_to
from refattn._core.checks import check_array, check_output_dtype, check_shape
from refattn._core.choice import choose, declare
from refattn.methods.linformer import gradient, reference
from refattn.methods.linformer.arguments import check_landmarks, projections
from refattn.methods.linformer.capabilities import LINFORMER, NYSTROM

OF_LINFORMER = replace(
    LINFORMER,
    function="linformer_attention_gradient",
    method="gradient of Linformer",
    inputs=("grad_output", *LINFORMER.inputs),
)
OF_NYSTROM = replace(
    NYSTROM,
    function="nystrom_attention_gradient",
    method="gradient of Nystrom attention",
    inputs=("grad_output", *NYSTROM.inputs),
)


class LinformerGradient(NamedTuple):
    """Gradients of a loss.

    Attributes
    ----------
    query : array, shape (..., H, L, E)
        Of the query.
    key : array, shape (..., Hk, S, E)
        Of the key, summed over the query heads that read it.
    value : array, shape (..., Hk, S, Ev)
        Of the value, likewise.
    key_projection : array, shape of the projection
        Of the key projection; where it projects the values as well, through both.
    value_projection : array, shape of the projection, or None
        Of the value projection; None where the call had none.
    """

    query: Array
    key: Array
    value: Array
    key_projection: Array
    value_projection: Array | None = None


@declare(OF_LINFORMER)
@quiet
def linformer_attention_gradient(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    key_projection: Array,
    value_projection: Array | None = None,
    scale: float | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> LinformerGradient:
    """Gradients of a loss through `linformer_attention`.

        dS = P (dO V~^T - rowsum(P dO V~^T)),    dK = scale E dS^T Q,    dE = scale K Q^T dS,    V~ = F^T V

    Parameters
    ----------
    grad_output : array, shape (..., H, L, Ev)
        Gradient dO of the loss with respect to the output.
    query : array, shape (..., H, L, E)
        Queries; everything as in `linformer_attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    key_projection : array, shape (S, R) or (Hk, S, R)
        The paper's E.
    value_projection : array, shape (S, R) or (Hk, S, R), optional
        The paper's F; default `key_projection`.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
    dtype : dtype or str, optional
        Dtype of all gradients; default that of the array that each is the gradient of. Must be given where one of
        these is float8 or an integer.
    implementation : {"reference"}, optional
        None is the reference.

    Returns
    -------
    LinformerGradient
        The named tuple (query, key, value, key_projection, value_projection) on the namespace and device of the inputs.

    Raises
    ------
    TypeError
        For arguments of the wrong kind or dtype, and for arrays of two libraries or devices.
    ValueError
        For shapes that do not fit.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: about three times that of the forward pass; memory O((L + S) R).

    Numerics: float64, each gradient is rounded once.

    References
    ----------
    .. [1] S. Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020, arXiv:2006.04768.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, k, v = np.zeros((1, 1, 2)), np.ones((1, 2, 2)), np.array([[[1.0], [3.0]]])
    >>> grad = ra.linformer_attention_gradient(np.ones((1, 1, 1)), q, k, v, key_projection=np.eye(2))
    >>> grad.value.tolist(), grad.key_projection.tolist()
    ([[[0.5], [0.5]]], [[0.5, 0.5], [1.5, 1.5]])
    """
    choose(OF_LINFORMER, implementation)
    name = OF_LINFORMER.function
    xp = _check(name, grad_output, query, key, value)
    call = prepare(name, query, key, value, scale=scale, dtype="float64")
    E, F = projections(name, key_projection, value_projection, key, xp)
    dO = call.split(float64(grad_output, xp), 2)
    found = gradient.linformer(*call.grouped(), E, F, dO, scale=call.score.scale, softmax=reference.softmax, xp=xp)
    dE, dF = _of_projection(found.E, E, xp), _of_projection(found.F, F, xp)
    given = {"query": query, "key": key, "value": value, "key_projection": key_projection}
    if value_projection is None:
        return LinformerGradient(**_rounded(name, given, (*found[:3], dE + dF), dtype, xp))
    given["value_projection"] = value_projection
    return LinformerGradient(**_rounded(name, given, (*found[:3], dE, dF), dtype, xp))


@declare(OF_NYSTROM)
@quiet
def nystrom_attention_gradient(
    grad_output: Array,
    query: Array,
    key: Array,
    value: Array,
    *,
    landmarks: int = 64,
    iterations: int = 6,
    coupled: bool = False,
    scale: float | None = None,
    dtype: object = None,
    implementation: str | None = None,
) -> AttentionGradient:
    """Gradients of a loss through `nystrom_attention`, back through the steps of its iteration.

        Z' = Z W / 4,  W = 13 I - X (15 I - X (7 I - X)),  X = A Z:    dZ = dZ' W^T / 4 + A^T dX,    dA += dX Z^T

    Parameters
    ----------
    grad_output : array, shape (..., H, L, Ev)
        Gradient of the loss with respect to the output.
    query : array, shape (..., H, L, E)
        Queries; everything as in `nystrom_attention`.
    key : array, shape (..., Hk, S, E)
        Keys.
    value : array, shape (..., Hk, S, Ev)
        Values.
    landmarks : int, default 64
        Number M of landmarks.
    iterations : int, default 6
        Steps towards the pseudo-inverse.
    coupled : bool, default False
        Whether the iteration begins with sums over all batch entries and heads together.
    scale : float, optional
        Factor on the scores; default 1/sqrt(E).
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
        For shapes that do not fit, and more landmarks than rows.
    ImplementationError
        For an `implementation` that does not exist.

    Notes
    -----
    Cost: about three times that of the forward pass; memory O((L + S) M), and M^2 for each of the iterations.

    Numerics: float64, each gradient is rounded once. It is that of the iterate, not of the pseudo-inverse. Columns of A
    whose sums are equally large share what the largest sum gets.

    References
    ----------
    .. [1] Y. Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention", AAAI 2021,
       arXiv:2102.03902.

    Examples
    --------
    >>> import numpy as np
    >>> import refattn as ra
    >>> q, k, v = np.zeros((1, 1, 2)), np.ones((1, 2, 2)), np.array([[[1.0], [3.0]]])
    >>> ra.nystrom_attention_gradient(np.ones((1, 1, 1)), q, k, v, landmarks=1).value.tolist()
    [[[0.5], [0.5]]]
    """
    choose(OF_NYSTROM, implementation)
    name = OF_NYSTROM.function
    xp = _check(name, grad_output, query, key, value)
    call = prepare(name, query, key, value, scale=scale, dtype="float64")
    M, iterations, coupled = check_landmarks(name, landmarks, iterations, coupled, call.score.lengths)
    steps = partial(reference.iterates, iterations=iterations, coupled=coupled, xp=xp)
    found = gradient.nystrom(
        *call.grouped(), call.split(float64(grad_output, xp), 2), landmarks=M, coupled=coupled,
        scale=call.score.scale, softmax=reference.softmax, iterates=steps, xp=xp,
    )  # fmt: skip
    return AttentionGradient(**_rounded(name, {"query": query, "key": key, "value": value}, found, dtype, xp))


def _check(name: str, grad_output: Array, query: Array, key: Array, value: Array) -> Namespace:
    """The namespace of the arrays, of which grad_output has the output's shape."""
    check_array(name, "grad_output", grad_output, FLOATS)
    for argument, x in (("query", query), ("key", key), ("value", value)):
        check_array(name, argument, x)
    xp = array_namespace(name, query=query, grad_output=grad_output)
    check_shape(name, "grad_output", grad_output, "(..., H, L, Ev)", (*query.shape[:-1], *value.shape[-1:]))
    return xp


def _of_projection(found: Array, like: Array, xp: Namespace) -> Array:
    """Of a projection (S, R) or (Hk, 1, S, R): summed over the batch, and over heads that share it."""
    kept = like.ndim
    axes = tuple(range(found.ndim - kept))
    return xp.sum(found, axis=axes) if axes else found


def _rounded(
    name: str, given: dict[str, Array], found: tuple[Array, ...], dtype: object, xp: Namespace
) -> dict[str, Array]:
    """Gradients in the shapes and dtypes that they are to have."""
    return {
        argument: round_to(xp.reshape(x, tuple(like.shape)), check_output_dtype(name, dtype, like, argument), xp)
        for (argument, like), x in zip(given.items(), found, strict=True)
    }
