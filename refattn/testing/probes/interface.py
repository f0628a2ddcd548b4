"""The probes run on a kernel, and what they read put in order."""

from __future__ import annotations

from refattn._core.checks import check_flag
from refattn.testing.probes.plan import Skipped, steps
from refattn.testing.probes.readings import Readings
from refattn.testing.probes.record import Bench
from refattn.testing.spec import KernelSpec


def probe(spec: KernelSpec, *, quick: bool = False) -> Readings:
    """Read out of a kernel what it really does, on inputs whose right answer is known without a tolerance.

        softmax(scores) is 0 or 1/n on inputs that are enumerated:    output = n_v / n, rounded once

    Parameters
    ----------
    spec : KernelSpec
        The kernel, how to call it, and what it claims.
    quick : bool, default False
        Run the longest lengths of `spec` alone, and fewer passes.

    Returns
    -------
    Readings
        `passed`, the `explanations` with first causes first, the mask that was applied, and what was not run.

    Raises
    ------
    TypeError
        If `spec` is not a KernelSpec.

    Notes
    -----
    Query, key and value are chosen so that every weight is 0 or the same as all others, in every format: who takes
    part is read off (equal scores, the identity for values), which key and which head (each query aims at one key,
    whose values must come back bit by bit), and every element of queries and keys. Two scores whose weights need no
    rounding show scale, softcap and base; integers show the accumulator, stairs of scores what is done when the maximum
    changes. Accepted is what an exact result times 1 + d rounds to, |d| <= 2**-19 (2**-48 where sums are in float64)
    and what the contract lets exponentials err, where weights are rounded after them.

    A known mistake is named only where its own exact answer is all that the kernel returned, in all probes of the call
    so far; later probes are then held against that, so that nothing is told twice. What fits no known mistake is
    described as it was read, and has no bug.

    Examples
    --------
    >>> import refattn as ra
    >>> from refattn.testing import KernelSpec
    >>> from refattn.testing.probes import probe
    >>> spec = KernelSpec(ra.attention, batch=(1,), dims=(16,), lengths=((5, 9),))
    >>> probe(spec, quick=True).passed
    True
    """
    if not isinstance(spec, KernelSpec):
        raise TypeError(f"probe: spec must be a KernelSpec; got {type(spec).__name__}.")
    quick = check_flag("probe", "quick", quick)
    bench = Bench(quick)
    if spec.tables:
        bench.read_pages(spec)
    for step in steps(spec, quick=quick) if not bench.told else ():
        if isinstance(step, Skipped):
            bench.skip(step.probe, step.reason)
        else:
            bench.run(step)
    return Readings(
        explanations=tuple(bench.told),
        applied_mask=bench.applied,
        asked_mask=bench.asked,
        calls=bench.calls,
        skipped=tuple(bench.skipped),
    )
