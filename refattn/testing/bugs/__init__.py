"""Bugs that attention kernels had, each as a small change of one float64 attention.

An entry has the id of the catalogue and public threads about kernels that had it. `applies` says whether a problem
has what the bug is about, and `apply` computes what a kernel with the bug computes.
"""

from __future__ import annotations

from refattn.testing.bugs.cache import CACHE_BUGS
from refattn.testing.bugs.heads import HEAD_BUGS
from refattn.testing.bugs.mask_geometry import MASK_BUGS
from refattn.testing.bugs.plain import PLAIN_BUGS
from refattn.testing.bugs.problems import Problem, problem
from refattn.testing.bugs.record import Bug, Seen, Variant
from refattn.testing.bugs.scores import SCORE_BUGS
from refattn.testing.bugs.softmax import SOFTMAX_BUGS
from refattn.testing.bugs.splits import DROPOUT_BUGS, SPLIT_BUGS

__all__ = ("BUGS", "LEFT_OUT", "Bug", "Problem", "Seen", "Variant", "describe", "get", "names", "problem")

BUGS: tuple[Bug, ...] = (
    *MASK_BUGS,
    *SOFTMAX_BUGS,
    *SCORE_BUGS,
    *HEAD_BUGS,
    *CACHE_BUGS,
    *SPLIT_BUGS,
    *DROPOUT_BUGS,
    *PLAIN_BUGS,
)

# Entries of the catalogue that no formula of a forward pass tells.
LEFT_OUT: tuple[tuple[str, str], ...] = (
    ("A19", "a hook that dumps logits sees keys behind its split: neither output nor log-sum-exp is wrong"),
    ("B18", "two polynomials of one exponential: no formula tells their last bits"),
    ("C10", "backward only"),
    ("D4", "backward only"),
    ("D6", "its cause was not confirmed"),
    ("D7", "backward only"),
    ("D16", "the launch is refused or rows are not computed, by the size of a grid"),
    ("E2", "what lies behind the block table is any number; a probe reads the entry"),
    *((f"G{n}", "backward only") for n in (*range(1, 8), 9, 11, 13)),
    ("G10", "a race: no formula tells what is read"),
    ("G12", "a test's false alarm"),
)


def names() -> tuple[tuple[str, str], ...]:
    """Id and name of every bug.

    Returns
    -------
    tuple of (str, str)
        In the order of the catalogue; an entry with two formulas comes twice.

    Examples
    --------
    >>> from refattn.testing import bugs
    >>> bugs.names()[2]
    ('A2', 'causality ignores the length of the past')
    """
    return tuple((bug.id, bug.name) for bug in BUGS)


def get(id: str) -> tuple[Bug, ...]:
    """Return the bugs of one entry.

    Parameters
    ----------
    id : str
        Of the entry, "A1".

    Returns
    -------
    tuple of Bug
        One for each formula of the entry.

    Raises
    ------
    ValueError
        If there is no such entry.

    Examples
    --------
    >>> from refattn.testing import bugs
    >>> [bug.formula for bug in bugs.get("B2")]
    ['O += p v (should be O e^(m_old - m_new) + p v)', 'l += p (should be l e^(m_old - m_new) + p)']
    """
    found = tuple(bug for bug in BUGS if bug.id == id)
    if not found:
        known = ", ".join(dict.fromkeys(bug.id for bug in BUGS))
        raise ValueError(f"bugs.get: id must be one of {known}; got {id!r}.")
    return found


def describe(id: str) -> str:
    """Tell of one entry: what is wrong, what it looks like, what is computed, and who had it.

    Parameters
    ----------
    id : str
        Of the entry, "A1".

    Returns
    -------
    str
        A few lines for each formula of the entry.

    Raises
    ------
    ValueError
        If there is no such entry.

    Examples
    --------
    >>> from refattn.testing import bugs
    >>> print(bugs.describe("C6"))
    C6: YaRN's factor enters the scale once instead of squared
      family:  scale, softcap, bias, position
      symptom: attention is too flat for stretched contexts
      formula: mscale / sqrt(E) (should be mscale^2 / sqrt(E))
      https://github.com/NVIDIA/Megatron-LM/issues/1429
    """
    return "\n\n".join(
        "\n".join(
            (
                f"{bug.id}: {bug.name}",
                f"  family:  {bug.family}",
                f"  symptom: {bug.symptom}",
                f"  formula: {bug.formula}",
                *(f"  {link}" for link in bug.links),
            )
        )
        for bug in get(id)
    )
