"""What a test lets through: the bugs of the catalogue held against somebody's own inputs and criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refattn._core.arrays import Array, dtype_name, quiet, round_to, to_numpy
from refattn.testing import bugs
from refattn.testing.bugs import Bug, Variant
from refattn.testing.bugs.engine import run
from refattn.testing.probes.tells import TELLS

Floats = npt.NDArray[np.float64]
Criterion = Callable[[Floats, Floats], bool]

# Parts of a kernel whose bugs show in what it returns.
FAMILIES = (
    "mask geometry",
    "softmax recurrence",
    "scale, softcap, bias, position",
    "heads, layout, strides",
    "cache, paging, quantisation",
    "split, merge, lse, sinks",
    "dropout",
)
# Variants of one bug that are tried: the criterion catches it only if it catches each.
MOST_VARIANTS = 8


@dataclass(frozen=True)
class Power:
    """Which wrong kernels a test would tell from a right one.

    Parameters
    ----------
    caught, let_through : tuple of str
        Bugs by id and name; let through is one of which some variant passes.
    not_reached : tuple of str
        Bugs about which the inputs have nothing: no mask, no second head, lengths that are equal.
    passes : tuple of str
        Results that are no attention at all and pass: "zeros", "stale output", "mean of values".
    right_passes : bool
        Whether the right answer, rounded to the inputs' dtype, passes at all.
    probe : str or None
        The one probe of `refattn.testing.probes` that names most of what is let through or out of reach; None where
        nothing is let through, or no probe names any of it.
    """

    caught: tuple[str, ...]
    let_through: tuple[str, ...]
    not_reached: tuple[str, ...]
    passes: tuple[str, ...]
    right_passes: bool
    probe: str | None

    @property
    def text(self) -> str:
        """All of it for a person."""
        reached = len(self.caught) + len(self.let_through)
        lines = [f"catches {len(self.caught)} of the {reached} known bugs that these inputs reach"]
        if not self.right_passes:
            lines.append("  refuses the right answer, rounded to the dtype of the inputs: nothing below means much")
        if self.passes:
            lines.append(f"  passes without any attention: {', '.join(self.passes)}")
        lines += [f"  lets through: {name}" for name in self.let_through]
        if self.not_reached:
            lines.append(f"  out of reach of these inputs: {len(self.not_reached)} bugs (not_reached)")
        if self.probe is not None:
            lines.append(f'  add: the probe "{self.probe}" (refattn.testing.probes)')
        return "\n".join(lines)

    def __str__(self) -> str:
        """The text."""
        return self.text


def power(inputs: Mapping[str, Any], criterion: Mapping[str, float] | Criterion) -> Power:
    """Say which known bugs a test would let through: its inputs, and what it calls close enough.

        caught: criterion(wrong kernel's output, right output) is False

    Parameters
    ----------
    inputs : mapping
        Arguments of `attention` by name: ``{"query": q, "key": k, "value": v, "is_causal": True}``. Arrays are of any
        library.
    criterion : mapping or callable
        ``{"atol": 1e-2, "rtol": 1e-2}``: NumPy's allclose; or ``criterion(output, expected) -> bool`` on float64 arrays
        (..., H, L, Ev), True where the test passes.

    Returns
    -------
    Power
        Bugs caught, let through and out of reach, and a `text`.

    Raises
    ------
    TypeError
        If `inputs` or `criterion` is of another kind.
    ValueError
        If query, key or value is missing, or a tolerance has another name.

    Notes
    -----
    Every bug is computed in float64 and rounded once to the query's dtype, so that what a criterion catches is the bug.
    A bug that is tried with several sizes of tiles counts as caught if each of them is.

    Examples
    --------
    >>> import numpy as np
    >>> from refattn.testing import power
    >>> x = np.random.default_rng(0).standard_normal((3, 1, 2, 40, 8), dtype=np.float32)
    >>> found = power(dict(zip(("query", "key", "value"), x)), {"atol": 3.0, "rtol": 0.0})
    >>> found.passes
    ('zeros', 'stale output', 'mean of values')
    """
    problem = _problem(inputs)
    passes = _criterion(criterion)
    dtype = dtype_name(problem.query)
    exact = run(problem, {}, None).output
    right = _rounded(exact, dtype)
    caught, through, unreached = [], [], []
    for bug in bugs.BUGS:
        if bug.family not in FAMILIES:
            continue
        variants = [variant for variant, _ in zip(bug.variants(problem), range(MOST_VARIANTS), strict=False)]
        if not variants:
            unreached.append(bug)
        elif any(_passes(variant, right, dtype, passes) for variant in variants):
            through.append(bug)
        else:
            caught.append(bug)
    return Power(
        caught=tuple(map(_named, caught)),
        let_through=tuple(map(_named, through)),
        not_reached=tuple(map(_named, unreached)),
        passes=tuple(name for name, output in _nothing(problem, right) if passes(output, right)),
        right_passes=passes(right, exact),
        probe=_probe([*through, *unreached] if through else []),
    )


def _problem(inputs: Mapping[str, Any]) -> bugs.Problem:
    """The problem that the arguments tell."""
    if not isinstance(inputs, Mapping):
        raise TypeError(f"power: inputs must be a mapping of attention's arguments; got {type(inputs).__name__}.")
    if missing := [name for name in ("query", "key", "value") if name not in inputs]:
        raise ValueError(f"power: inputs must have query, key and value; got no {' and no '.join(missing)}.")
    operands: list[Array] = [to_numpy(inputs[name]) for name in ("query", "key", "value")]
    given = {name: x for name, x in inputs.items() if name not in ("query", "key", "value")}
    return bugs.problem(*operands, **given)


def _criterion(criterion: Mapping[str, float] | Criterion) -> Criterion:
    """The criterion as a function."""
    if isinstance(criterion, Mapping):
        if extra := sorted(set(criterion) - {"atol", "rtol"}):
            raise ValueError(f"power: criterion must have atol and rtol; got {', '.join(extra)}.")
        atol, rtol = criterion.get("atol", 0.0), criterion.get("rtol", 0.0)
        return lambda output, expected: bool(np.allclose(output, expected, rtol=rtol, atol=atol))
    if not callable(criterion):
        raise TypeError(f"power: criterion must be a mapping or callable; got {type(criterion).__name__}.")
    return lambda output, expected: bool(criterion(output, expected))


def _rounded(x: Floats, dtype: str) -> Floats:
    """Values rounded to the inputs' dtype."""
    return np.asarray(round_to(x, dtype, np)).astype(np.float64)


@quiet
def _passes(variant: Variant, right: Floats, dtype: str, passes: Criterion) -> bool:
    """Whether the test would pass a kernel with this bug."""
    return passes(_rounded(variant.apply().output, dtype), right)


def _nothing(problem: bugs.Problem, right: Floats) -> tuple[tuple[str, Floats], ...]:
    """Results that are no attention."""
    value = problem.value.astype(np.float64)
    mean = np.repeat(value.mean(axis=2, keepdims=True), problem.group, axis=1) if value.shape[2] else 0.0
    stale = np.roll(right, 1, axis=2)
    return (
        ("zeros", np.zeros_like(right)),
        ("stale output", stale),
        ("mean of values", np.broadcast_to(mean, right.shape)),
    )


def _named(bug: Bug) -> str:
    """A bug in a line."""
    return f"{bug.id}: {bug.name}"


def _probe(left: list[Bug]) -> str | None:
    """The probe that tells most of these bugs by their ids; of probes that tell as many, the one that runs first."""
    ids = {bug.id for bug in left}
    counts = {name: len(ids & set(told)) for name, told in TELLS.items()}
    return max(counts, key=lambda name: counts[name]) if any(counts.values()) else None
